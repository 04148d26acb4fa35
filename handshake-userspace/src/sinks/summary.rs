//! The end of a run in a dozen lines: what was seen, how fast, how it failed, and what was lost.
//!
//! It counts every record that the filters let through, also those that `--failed` or `--slow` kept out of
//! the tail. What a newcomer would get wrong: percentiles are of established handshakes only; how long a
//! failure took says nothing about the speed of connecting.

use std::{collections::BTreeMap, fmt::Write};

use hdrhistogram::Histogram;

use super::{counted, json::words, loss_by_cause, second_account, text::duration::human};
use crate::model::{
    handshake::{Accept, Handshake},
    health::Health,
    outcome::{Outcome, Role},
};

/// Gathers records.
#[derive(Debug, Default)]
pub struct Summary {
    clients: Group,
    servers: Group,
    accept_wait: Waits,
    syns_again: u64,
    syn_acks_again: u64,
    retransmitted: u64,
    left_out: u64,
}

impl Summary {
    /// Counts a handshake.
    pub fn handshake(&mut self, handshake: &Handshake) {
        let group = match handshake.role {
            Role::Client | Role::Simultaneous => &mut self.clients,
            Role::Server => &mut self.servers,
        };
        *group.outcomes.entry(words::outcome(handshake.outcome)).or_default() += 1;
        if let (Outcome::Established, Some(latency)) = (handshake.outcome, handshake.latency_ns) {
            group.latency.add(latency);
        }
        if let Some(wait) = handshake.phases.accept_ns {
            self.accept_wait.add(wait);
        }
        let syns = u64::from(handshake.retransmits.syn.unwrap_or(0));
        let syn_acks = u64::from(handshake.retransmits.syn_ack.unwrap_or(0));
        self.syns_again += syns;
        self.syn_acks_again += syn_acks;
        self.retransmitted += u64::from(syns + syn_acks != 0);
    }

    /// Counts the later fate of a queued child.
    pub fn accept(&mut self, accept: &Accept) {
        if let Some(wait) = accept.wait_ns {
            self.accept_wait.add(wait);
        }
    }

    /// Counts a handshake that a filter left out.
    pub fn left_out(&mut self) {
        self.left_out += 1;
    }

    /// The text, each line ended.
    pub fn to_text(&self, health: &Health) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(health, &mut text);
        text
    }

    fn write(&self, health: &Health, out: &mut String) -> std::fmt::Result {
        let tracker = &health.tracker;
        writeln!(out)?;
        writeln!(out, "client  {}", self.clients.counts())?;
        writeln!(out, "server  {}", self.servers.counts())?;
        let rows = [
            ("client latency", &self.clients.latency),
            ("server latency", &self.servers.latency),
            ("accept wait", &self.accept_wait),
        ];
        if rows.iter().any(|(_, waits)| !waits.is_empty()) {
            writeln!(
                out,
                "{:<14} {:>8} {:>10} {:>10} {:>10} {:>10}",
                "", "count", "p50", "p90", "p99", "max"
            )?;
        }
        for (name, waits) in rows {
            if !waits.is_empty() {
                writeln!(out, "{name:<14} {}", waits.row())?;
            }
        }
        if self.retransmitted == 0 {
            writeln!(out, "nothing sent again")?;
        } else {
            writeln!(
                out,
                "sent again: {}, {}, in {}",
                counted(self.syns_again, "SYN"),
                counted(self.syn_acks_again, "SYN-ACK"),
                counted(self.retransmitted, "handshake")
            )?;
        }
        writeln!(
            out,
            "seen {} = established {} + failed {} + in flight {}",
            tracker.seen, tracker.established, tracker.failed, tracker.in_flight
        )?;
        if self.left_out != 0 || health.filtered_unknown != 0 {
            write!(out, "left out by filters: {}", self.left_out)?;
            if health.filtered_unknown != 0 {
                write!(
                    out,
                    ", of them {} because what the filter asks was unknown",
                    health.filtered_unknown
                )?;
            }
            writeln!(out)?;
        }
        if tracker.unmatched != 0 {
            writeln!(out, "events of handshakes that began before we watched: {}", tracker.unmatched)?;
        }
        if health.unknown_kind != 0 {
            writeln!(out, "events of kinds that this version does not know: {}", health.unknown_kind)?;
        }
        if tracker.late != 0 {
            writeln!(
                out,
                "{} came too late to be put in order, and were used all the same",
                counted(tracker.late, "event")
            )?;
        }
        if tracker.ends_unseen != 0 {
            writeln!(
                out,
                "{} the end of which its hook did not see: another one told of it, and when it was is not known",
                counted(tracker.ends_unseen, "handshake")
            )?;
        }
        let causes = loss_by_cause(health);
        if causes.is_empty() {
            writeln!(out, "nothing lost")?;
        } else {
            let causes: Vec<String> =
                causes.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
            writeln!(out, "lost {}: {}", health.lost(), causes.join(", "))?;
        }
        second_account::write(health, out)?;
        match health.missed_probes {
            Some(missed) if missed != 0 => writeln!(
                out,
                "skipped by the kernel: {} of our programs, each because one already ran on that CPU; a record may \
                 lack a detail",
                counted(missed, "hit")
            ),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
struct Group {
    outcomes: BTreeMap<&'static str, u64>,
    latency: Waits,
}

impl Group {
    fn counts(&self) -> String {
        let total: u64 = self.outcomes.values().sum();
        let each: Vec<String> =
            self.outcomes.iter().map(|(name, count)| format!("{count} {}", name.replace('_', " "))).collect();
        match total {
            0 => "0 handshakes".to_owned(),
            1 => format!("1 handshake: {}", each.join(", ")),
            _ => format!("{total} handshakes: {}", each.join(", ")),
        }
    }
}

/// Three digits are kept of each value, whatever its size. One hour is the most: nothing in a handshake
/// takes longer, and what does is counted there.
const MAX_WAIT_NS: u64 = 3_600_000_000_000;

#[derive(Debug)]
struct Waits {
    histogram: Option<Histogram<u64>>,
    max_ns: u64,
}

impl Default for Waits {
    fn default() -> Self {
        Waits { histogram: Histogram::new_with_bounds(1, MAX_WAIT_NS, 3).ok(), max_ns: 0 }
    }
}

impl Waits {
    fn add(&mut self, nanoseconds: u64) {
        self.max_ns = self.max_ns.max(nanoseconds);
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record(nanoseconds);
        }
    }

    fn is_empty(&self) -> bool {
        self.histogram.as_ref().is_none_or(Histogram::is_empty)
    }

    fn row(&self) -> String {
        let Some(histogram) = &self.histogram else { return String::new() };
        // The histogram gives the upper end of a bucket, which may lie above everything that was seen.
        let at = |quantile| human(histogram.value_at_quantile(quantile).min(self.max_ns));
        format!(
            "{:>8} {:>10} {:>10} {:>10} {:>10}",
            histogram.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            human(self.max_ns)
        )
    }
}

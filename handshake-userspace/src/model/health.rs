//! The accounting: what was seen, what is open, what was lost and where.
//!
//! What a newcomer would get wrong: the sums must close. seen = established + failed + in_flight, and every
//! place where something can die has a number of its own here.

use std::collections::BTreeMap;

use super::{mib::Reconciliation, outcome::Outcome};

/// What came of the handshakes that we made ourselves at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// They were reported right.
    Passed,
    /// They could not be made, so nothing is proven.
    CouldNotRun,
    /// `--no-canary`.
    NotWanted,
}

impl Canary {
    /// All of them.
    pub const ALL: [Canary; 3] = [Canary::Passed, Canary::CouldNotRun, Canary::NotWanted];

    /// Its word in records and recordings.
    pub fn word(self) -> &'static str {
        match self {
            Canary::Passed => "passed",
            Canary::CouldNotRun => "could_not_run",
            Canary::NotWanted => "not_wanted",
        }
    }

    /// The one with this word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|canary| canary.word() == word)
    }
}

/// The tracker's part of the accounting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackerCounts {
    /// Handshakes that we began to follow.
    pub seen: u64,
    /// Ended well.
    pub established: u64,
    /// Ended otherwise, `incomplete` included.
    pub failed: u64,
    /// Still open.
    pub in_flight: u64,
    /// Of `failed`: those where we lost sight.
    pub incomplete: u64,
    /// Events for a socket that we did not know, and that could not begin a handshake.
    pub unmatched: u64,
    /// Handshakes that found the table full.
    pub table_full: u64,
    /// Observations that came later than the ordering window allows, and were used all the same.
    pub late: u64,
    /// Of `seen`: active opens whose end was not seen when it came. Another hook found it out, not when it was.
    pub ends_unseen: u64,
    /// Children whose `accept` record is still to come.
    pub queued: u64,
}

/// The whole of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The tracker's part.
    pub tracker: TrackerCounts,
    /// The kernel side's counters, summed over CPUs, by name.
    pub kernel: BTreeMap<&'static str, u64>,
    /// Lost events by CPU: ring buffer full.
    pub ring_full_by_cpu: BTreeMap<u32, u64>,
    /// Hits of our programs that the kernel skipped, summed; absent before 5.12.
    pub missed_probes: Option<u64>,
    /// Events that could not be decoded.
    pub undecodable: u64,
    /// Events of a kind that this version doesn't know.
    pub unknown_kind: u64,
    /// Records that a sink could not take.
    pub sink_dropped: u64,
    /// Server records that a filter by process could not judge: nobody ever accepted.
    pub filtered_unknown: u64,
    /// What came of the canary at the start; absent in a replay of a recording that doesn't say.
    pub canary: Option<Canary>,
    /// Handshakes that the filters let through, by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// How the kernel's own counters compare with what was seen; absent when they were never read.
    pub reconciliation: Option<Reconciliation>,
}

impl Health {
    /// Everything that was lost, in events or handshakes. What came late is not in it, for it was used. Hits that the
    /// kernel skipped are not in it: most are of no handshake, and what one takes from a record is made good or told
    /// by the record.
    pub fn lost(&self) -> u64 {
        self.losses().map(|(_, count)| count).fold(0, u64::saturating_add)
    }

    /// What was lost by cause, in the order of the flow.
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let kernel = self.kernel.iter().filter(|(name, _)| {
            !matches!(**name, "submitted" | "filtered" | "drops_untold" | "drops_forwarded")
        });
        kernel.map(|(name, count)| (*name, *count)).chain([
            ("undecodable", self.undecodable),
            ("sink_dropped", self.sink_dropped),
            ("table_full", self.tracker.table_full),
        ])
    }

    /// Events and handshakes that were lost before the tracker could count them.
    pub fn lost_before_the_tracker(&self) -> u64 {
        let theirs = self.losses().filter(|(name, _)| *name != "sink_dropped");
        theirs.map(|(_, count)| count).fold(self.unknown_kind, u64::saturating_add)
    }

    /// What the kernel counted and we did not see, as far as nothing that was lost or skipped can account for it:
    /// each handshake that was not seen at all takes at least one of those.
    pub fn unexplained(&self) -> u64 {
        let missing = self.reconciliation.as_ref().map_or(0, Reconciliation::missing);
        let taken = self.lost_before_the_tracker().saturating_add(self.missed_probes.unwrap_or(0));
        missing.saturating_sub(taken)
    }

    /// Counts one outcome under its name.
    pub fn count_outcome(&mut self, name: &'static str, _outcome: Outcome) {
        *self.outcomes.entry(name).or_default() += 1;
    }
}

//! Our records beside what the capture shows: what is missing, what is too much, and how far the times differ.
//!
//! A handshake is the same in both when ends and the client's ISN are, and its place among those of which all
//! that is the same. What a reader would get wrong: the times
//! can't be equal. The capture stamps a segment on the link, our hooks run above IP: the difference is the way
//! through the stack, and `differences` says how long that may be.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    super::record::Record,
    differences::Differences,
    evidence::Subject,
    segment::{End, Key, OnTheWire, Segment, handshakes},
};

/// How one role's records compare with the capture at its end.
pub struct Report {
    title: String,
    pub on_the_wire: usize,
    records: usize,
    missed: Vec<String>,
    invented: Vec<String>,
    disagreeing: Vec<String>,
    /// Of the missed, how many this mode can't show, as KERNEL.md says. They are missed all the same.
    beyond_limits: usize,
    /// Told without its time or its end, or with a SYN too few, because the kernel skipped our probe.
    partial: usize,
    may_be_partial: bool,
    may_miss_half_open: bool,
    /// Told otherwise than the capture has it, where ACK and RST arrived so close together that either may have
    /// been worked on first.
    raced: usize,
    is_server: bool,
    ends: BTreeMap<&'static str, usize>,
    sent_again: usize,
    pub over_ipv6: usize,
    differences: Differences,
}

/// What a record must say, given what passed.
struct Expected {
    outcomes: &'static [&'static str],
    /// The field that has the time from SYN to end, and how long that took on the wire.
    time: Option<(&'static str, i64)>,
    counts: Vec<(&'static str, u64)>,
}

/// The client's records and the capture at its link.
pub fn of_client(subject: &Subject, segments: &[Segment], records: &[Record]) -> Report {
    let mut report = Report::new(subject, "client");
    let wire = handshakes(segments);
    let ours = ours(records, ("client", subject.client_netns), "local", "remote", &wire, &mut report);
    report.compare(wire, ours, |one| {
        let since_syn = |time_ns: i64| time_ns - one.first_syn_ns;
        let (name, outcomes, time): (_, &[&str], _) = match (one.end, one.syn_ack) {
            (Some((End::FinalAck, _)), Some((syn_ack_ns, _))) => {
                ("established", &["established"], Some(("latency_ns", since_syn(syn_ack_ns))))
            }
            (Some((End::Refusal, rst_ns)), _) => {
                ("refused", &["refused"], Some(("failed_after_ns", since_syn(rst_ns))))
            }
            // A SYN-ACK for a socket that was closed is answered by a RST, or that was lost on the way out. Who gives up
            // does so before its SYN is sent again, and the kernel a good while after that.
            _ if one.syns > 1 => ("timed_out", &["timed_out"], None),
            _ => ("cancelled", &["cancelled"], None),
        };
        (name, Some(Expected { outcomes, time, counts: vec![("retransmits.syn", one.syns - 1)] }))
    });
    report
}

/// The server's records and the capture at its link.
pub fn of_server(subject: &Subject, segments: &[Segment], records: &[Record]) -> Report {
    let mut report = Report::new(subject, "server");
    let wire = handshakes(segments);
    let ours = ours(records, ("server", subject.server_netns), "remote", "local", &wire, &mut report);
    report.compare(wire, ours, |one| {
        let counts = || {
            vec![("retransmits.syn_ack", one.syn_acks.saturating_sub(1)), ("retransmits.syn_seen", one.syns)]
        };
        let half_open = |outcomes| Some(Expected { outcomes, time: None, counts: counts() });
        match one.end {
            Some((End::FinalAck, ack_ns)) => {
                let time = Some(("latency_ns", ack_ns - one.first_syn_ns));
                ("established", Some(Expected { outcomes: &["established"], time, counts: counts() }))
            }
            Some((End::Reset, _)) => ("reset", half_open(&["reset"])),
            // A SYN to a port where nobody listens is no handshake of anybody's here.
            Some((End::Refusal, _)) => ("refused", None),
            None => ("unanswered", half_open(&["timed_out"])),
        }
    });
    report
}

/// Our records of a role by what they have in common with the capture; what has no such key is invented.
fn ours<'a>(
    records: &'a [Record],
    (role, netns): (&str, u64),
    client: &str,
    server: &str,
    wire: &BTreeMap<Key, OnTheWire>,
    report: &mut Report,
) -> Vec<(Key, &'a Record)> {
    let of_role = records.iter().filter(|record| {
        record.text("kind") == Some("handshake")
            && record.text("role") == Some(role)
            // One that can't say where it was is ours to explain too.
            && record.number("netns").is_none_or(|inode| inode == netns)
    });
    let mut keyed = Vec::new();
    for record in of_role {
        report.records += 1;
        match (end(record, client), end(record, server), record.number(&format!("isn.{client}"))) {
            (Some(client), Some(server), Some(isn)) => {
                keyed.push(((client, server, u32::try_from(isn).expect("an ISN has 32 bits"), 0), record));
            }
            // connect() told the end, for the kernel skipped the hook that has the ISN: the ends have to do.
            (Some(client), Some(server), None) => {
                let mut alike = wire.keys().filter(|key| (key.0, key.1) == (client, server));
                match (alike.next(), alike.next()) {
                    (Some(key), None) => {
                        report.partial += 1;
                        keyed.push((*key, record));
                    }
                    _ => report.invented.push(format!("without ISN: {record}")),
                }
            }
            _ => report.invented.push(format!("without ends: {record}")),
        }
    }
    // Of those that are alike the earlier is the first: the counter in `key` grows.
    keyed.sort_by_key(|(key, record)| (*key, counter(record)));
    for at in 1..keyed.len() {
        let (before, own) = (keyed[at - 1].0, keyed[at].0);
        if (before.0, before.1, before.2) == (own.0, own.1, own.2) {
            keyed[at].0.3 = before.3 + 1;
        }
    }
    keyed
}

/// Whether the record says that it lost sight because no hook saw the end, and for no other reason.
fn lost_sight(record: &Record) -> bool {
    record.text("outcome") == Some("incomplete")
        && matches!(
            record.text("evidence.kind"),
            Some("nothing_more_seen" | "stopped_watching" | "request_dropped")
        )
}

fn counter(record: &Record) -> u64 {
    let key = record.text("key").expect("every record has a key");
    key.rsplit('-').next().and_then(|counter| counter.parse().ok()).expect("it ends in a counter")
}

fn end(record: &Record, side: &str) -> Option<SocketAddr> {
    let address: IpAddr = record.text(&format!("{side}.address"))?.parse().ok()?;
    Some(SocketAddr::new(address, u16::try_from(record.number(&format!("{side}.port"))?).ok()?))
}

impl Report {
    fn new(subject: &Subject, role: &str) -> Self {
        Report {
            title: format!("kernel={} mode={} role={role}", subject.kernel, subject.mode),
            on_the_wire: 0,
            records: 0,
            missed: Vec::new(),
            invented: Vec::new(),
            disagreeing: Vec::new(),
            beyond_limits: 0,
            partial: 0,
            may_be_partial: subject.skips_probes(),
            may_miss_half_open: role == "server" && subject.misses_half_open(),
            raced: 0,
            is_server: role == "server",
            ends: BTreeMap::new(),
            sent_again: 0,
            over_ipv6: 0,
            differences: Differences::none(subject.emulated, role == "server"),
        }
    }

    fn compare(
        &mut self,
        wire: BTreeMap<Key, OnTheWire>,
        ours: Vec<(Key, &Record)>,
        expected: impl Fn(&OnTheWire) -> (&'static str, Option<Expected>),
    ) {
        let mut records: BTreeMap<Key, &Record> = ours.into_iter().collect();
        for (key, one) in &wire {
            self.on_the_wire += 1;
            self.over_ipv6 += usize::from(key.0.is_ipv6());
            self.sent_again += usize::from(one.syns > 1 || one.syn_acks > 1);
            let (end, expected) = expected(one);
            *self.ends.entry(end).or_default() += 1;
            match (expected, records.remove(key)) {
                (Some(expected), Some(record)) => self.agree(key, one, &expected, record),
                (Some(_), None) => {
                    self.missed.push(format!("{key:?}: {one:?}"));
                    let is_half_open = !matches!(one.end, Some((End::FinalAck, _)));
                    self.beyond_limits += usize::from(is_half_open && self.may_miss_half_open);
                }
                (None, Some(record)) => self.invented.push(format!("{record}\n  of {one:?}")),
                (None, None) => {}
            }
        }
        self.invented.extend(records.into_values().map(ToString::to_string));
    }

    fn agree(&mut self, key: &Key, one: &OnTheWire, expected: &Expected, record: &Record) {
        let mut wrong = Vec::new();
        let outcome = record.text("outcome");
        if !outcome.is_some_and(|outcome| expected.outcomes.contains(&outcome)) {
            if self.is_server && one.raced && matches!(outcome, Some("established" | "reset")) {
                self.raced += 1;
                return;
            }
            // It is told, with its ends and ISNs, and says itself that how it ended was not seen.
            if self.may_be_partial && lost_sight(record) {
                self.partial += 1;
                return;
            }
            wrong.push("outcome".to_owned());
        }
        for (field, count) in &expected.counts {
            // What a mode can't count is absent, and never another number.
            let ours = record.number(field);
            if self.may_be_partial && ours.is_some_and(|ours| ours < *count) {
                self.partial += 1;
            } else if ours.is_some_and(|ours| ours > *count) && self.is_server && one.is_raced_by_a_syn() {
                // TCP worked on that SYN first, and answered it.
                self.raced += 1;
            } else if ours.is_some_and(|ours| ours != *count) {
                wrong.push(format!("{field} is {count} on the wire"));
            }
        }
        if let Some((field, on_the_wire_ns)) = expected.time {
            match record.number(field).and_then(|ours| i64::try_from(ours).ok()) {
                Some(ours_ns) => self.differences.add(ours_ns, on_the_wire_ns),
                None if self.may_be_partial => self.partial += 1,
                None => wrong.push(format!("{field} is absent")),
            }
        }
        if !wrong.is_empty() {
            self.disagreeing.push(format!("{}: {key:?}: {one:?}\n  {record}", wrong.join(", ")));
        }
    }

    /// All of it, for a program to read.
    pub fn line(&self) -> String {
        let ends: String = self.ends.iter().map(|(end, count)| format!(" {end}={count}")).collect();
        format!(
            "witness: {} handshakes={} ipv6={}{ends} sent_again={} records={} partial={} raced={} missed={} beyond_limits={} invented={} \
             disagreeing={} {}",
            self.title,
            self.on_the_wire,
            self.over_ipv6,
            self.sent_again,
            self.records,
            self.partial,
            self.raced,
            self.missed.len(),
            self.beyond_limits,
            self.invented.len(),
            self.disagreeing.len(),
            self.differences.line(),
        )
    }

    /// What speaks against us: a handshake missed, invented or told differently, or a bias of the times.
    pub fn disagreement(&self) -> Option<String> {
        let mut offenders: Vec<String> =
            [("invented", &self.invented), ("told differently", &self.disagreeing)]
                .iter()
                .flat_map(|(what, offenders)| offenders.iter().map(move |one| format!("{what}: {one}\n")))
                .collect();
        if self.missed.len() > self.beyond_limits {
            offenders.extend(self.missed.iter().map(|one| format!("missed: {one}\n")));
        }
        // A bound on what is excused, so that a broken hook can't hide behind it.
        let skipped = if self.may_be_partial { self.missed.len() } else { 0 };
        if (self.partial + self.raced + skipped) * 50 > self.on_the_wire {
            offenders.push("more than 2 % were missed, told in part, or raced\n".to_owned());
        }
        offenders.extend(self.differences.out_of_bounds());
        (!offenders.is_empty()).then(|| format!("{}\n{}", self.line(), offenders.concat()))
    }
}

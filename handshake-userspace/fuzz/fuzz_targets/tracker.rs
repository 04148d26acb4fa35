//! Acts in any order, of any socket, with any times: the sums close, nothing is final twice, and no record
//! contradicts itself.
//!
//! What a reader would get wrong: the input is a script and not a recording, so that each of its bytes means
//! something and a change of one makes another story.

#![no_main]

use std::collections::HashSet;

use handshake::{
    decode::decode,
    model::{
        handshake::{Handshake, HandshakeUpdate, Key},
        observation::Input,
    },
    tracker::{Tracker, TrackerConfig},
};
use handshake_common::event::{ABI_VERSION, EventHeader, EventKind};
use libfuzzer_sys::fuzz_target;

const START: u64 = 1_000_000_000_000;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script { rest: bytes };
    let limits = script.byte();
    let config = TrackerConfig {
        max_open: usize::from(limits & 7),
        max_queued: usize::from(limits >> 3 & 3),
        max_held: if limits & 0x80 == 0 { 1_000 } else { 2 },
        ..TrackerConfig::default()
    };
    let (max_open, max_queued) = (config.max_open as u64, config.max_queued as u64);
    let mut tracker = Tracker::new(config);
    let mut told = Told::default();
    let mut now_ns = START;
    let mut out = Vec::new();
    while !script.rest.is_empty() {
        let what = script.byte();
        now_ns = now_ns.saturating_add(script.time());
        let input = if what & 0xf == 0xf {
            Input::Tick { now_ns }
        } else {
            let Ok(observation) = decode(&script.event(what, now_ns)) else { continue };
            Input::Observation(Box::new(observation))
        };
        tracker.observe(input, &mut out);
        let counts = tracker.counts();
        assert_eq!(counts.seen, counts.established + counts.failed + counts.in_flight);
        assert!(counts.in_flight <= max_open + 1 && counts.queued <= max_queued);
        assert_eq!(tracker.open_handshakes().count() as u64, counts.in_flight + counts.queued);
        told.check(out.drain(..));
    }
    tracker.observe(Input::End { now_ns }, &mut out);
    told.check(out.drain(..));
    let counts = tracker.counts();
    assert_eq!((counts.in_flight, counts.queued), (0, 0));
    assert_eq!(told.handshakes.len() as u64, counts.seen);
});

struct Script<'a> {
    rest: &'a [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// From nanoseconds to minutes.
    fn time(&mut self) -> u64 {
        let byte = self.byte();
        u64::from(byte & 0x1f) << (u32::from(byte >> 5) * 5)
    }

    fn event(&mut self, what: u8, now_ns: u64) -> Vec<u8> {
        let kind = EventKind::ALL[usize::from(what & 0xf) % EventKind::ALL.len()];
        let who = self.byte();
        let mut event = vec![0; kind.size_bytes()];
        let payload = event.len() - size_of::<EventHeader>();
        let length = payload.min(self.rest.len());
        event[size_of::<EventHeader>()..][..length].copy_from_slice(&self.rest[..length]);
        self.rest = &self.rest[length..];
        event[..2].copy_from_slice(&(kind as u16).to_le_bytes());
        event[2..4].copy_from_slice(&ABI_VERSION.to_le_bytes());
        event[4..6].copy_from_slice(&((payload + size_of::<EventHeader>()) as u16).to_le_bytes());
        event[6] = what >> 4 & 3;
        event[8..16].copy_from_slice(&now_ns.to_le_bytes());
        event[16..24].copy_from_slice(&u64::from(who & 7).to_le_bytes());
        event[24..32].copy_from_slice(&u64::from(who >> 3 & 3).to_le_bytes());
        event[32..40].copy_from_slice(&u64::from(who >> 5).to_le_bytes());
        event
    }
}

#[derive(Default)]
struct Told {
    handshakes: HashSet<Key>,
    accepts: HashSet<Key>,
}

impl Told {
    fn check(&mut self, updates: impl Iterator<Item = HandshakeUpdate>) {
        for update in updates {
            match update {
                HandshakeUpdate::Handshake(record) => {
                    assert!(self.handshakes.insert(record.key), "final twice: {record:?}");
                    adds_up(&record);
                }
                HandshakeUpdate::Accept(record) => {
                    assert!(self.handshakes.contains(&record.key), "accepted and never seen: {record:?}");
                    assert!(self.accepts.insert(record.key), "accepted twice: {record:?}");
                }
            }
        }
    }
}

/// No part is longer than the whole, and a failure has no latency.
fn adds_up(record: &Handshake) {
    let phases = &record.phases;
    if let Some(latency_ns) = record.latency_ns {
        assert!(phases.wire_ns.unwrap_or(0) <= latency_ns, "{record:#?}");
        let halves = phases.synack_ns.unwrap_or(0).checked_add(phases.ack_ns.unwrap_or(0));
        assert!(halves.is_some_and(|sum| sum <= latency_ns), "{record:#?}");
        assert!(record.rtt_ns.unwrap_or(0) <= latency_ns, "{record:#?}");
        assert_eq!(record.failed_after_ns, None, "{record:#?}");
    }
    if let (Some(rtt_ns), Some(whole_ns)) = (record.rtt_ns, phases.wire_ns.or(phases.ack_ns)) {
        assert!(rtt_ns <= whole_ns, "{record:#?}");
    }
    let mut flags = record.flags.clone();
    flags.sort_unstable();
    flags.dedup();
    assert_eq!(flags, record.flags, "sorted and without repeats: {record:#?}");
}

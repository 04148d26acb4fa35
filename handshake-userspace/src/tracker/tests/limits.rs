//! Full tables, and the end of the source.

use super::super::{Step, Tracker};
use super::script::*;
use crate::model::{
    observation::{Input, Observation},
    outcome::{AcceptOutcome, EvidenceKind, Outcome},
};

fn run(tracker: &mut Tracker, acts: Vec<Observation>) -> Vec<crate::model::handshake::HandshakeUpdate> {
    let mut out = vec![];
    for act in acts {
        tracker.observe(Input::Observation(Box::new(act)), &mut out);
    }
    out
}

#[test]
fn full_table_does_not_grow_and_the_end_still_makes_a_record() {
    let mut tracker = Tracker::new(super::super::TrackerConfig { max_open: 2, ..config() });
    let mut out = vec![];
    for number in 0..10 {
        let client = given_client_at(number).wait(number * US).syn();
        out.extend(run(&mut tracker, client.script.acts));
    }
    tracker.observe(Input::Tick { now_ns: START + SEC }, &mut out);
    assert_eq!((tracker.counts().in_flight, tracker.counts().table_full), (2, 8));
    let last = given_client_at(9).wait(9 * US).syn_unseen().wait(2 * SEC).syn_ack();
    out.extend(run(&mut tracker, last.script.acts));
    tracker.observe(Input::Tick { now_ns: START + 3 * SEC }, &mut out);
    let records = handshakes(&out);
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].outcome, records[0].latency_ns), (Outcome::Established, Some(2 * SEC + 2 * US)));
}

#[test]
fn many_failures_leave_room_for_a_success() {
    let mut tracker = Tracker::new(super::super::TrackerConfig { max_open: 8, ..config() });
    let mut out = vec![];
    for number in 0..100 {
        let client = given_client_at(number).wait(number * SEC).syn().wait(MS).error(ETIMEDOUT);
        out.extend(run(&mut tracker, client.script.acts));
    }
    out.extend(run(&mut tracker, given_client_at(500).wait(200 * SEC).syn().wait(MS).syn_ack().script.acts));
    tracker.observe(Input::End { now_ns: START + 300 * SEC }, &mut out);
    assert_eq!((tracker.counts().failed, tracker.counts().established), (100, 1));
    assert_eq!(tracker.counts().table_full, 0);
}

#[test]
fn full_queue_table_gives_children_up_without_telling_them_twice() {
    let mut tracker = Tracker::new(super::super::TrackerConfig { max_queued: 1, ..config() });
    let mut out = vec![];
    let child = |number: u64| given_listener_at(number).wait(number * MS).syn().syn_ack().final_ack();
    for number in 1..=3 {
        out.extend(run(&mut tracker, child(number).script.acts));
    }
    tracker.observe(Input::Tick { now_ns: START + 2 * SEC }, &mut out);
    assert_eq!((tracker.counts().queued, tracker.counts().table_full), (1, 2));
    for number in 1..=3 {
        let mut accepted = child(number).wait(5 * SEC).accept();
        let accept = accepted.script.acts.pop().into_iter().collect();
        out.extend(run(&mut tracker, accept));
    }
    tracker.observe(Input::Tick { now_ns: START + 8 * SEC }, &mut out);
    assert_eq!(handshakes(&out).len(), 3);
    let fates: Vec<_> = accepts(&out).iter().map(|accept| accept.outcome).collect();
    let lost = AcceptOutcome::Incomplete;
    assert_eq!(fates, vec![lost, lost, AcceptOutcome::Accepted]);
    assert_eq!(tracker.counts().unmatched, 2);
}

#[test]
fn child_that_finds_the_table_full_is_written_at_once() {
    let mut tracker = Tracker::new(super::super::TrackerConfig { max_open: 0, ..config() });
    let server = given_listener().syn().syn_ack().wait(MS).final_ack().wait(MS).accept();
    let mut out = run(&mut tracker, server.script.acts);
    tracker.observe(Input::Tick { now_ns: START + 2 * SEC }, &mut out);
    assert_eq!(handshakes(&out).len(), 1);
    assert_eq!(accepts(&out)[0].outcome, AcceptOutcome::Incomplete);
    assert_eq!(tracker.counts().in_flight, 0);
}

#[test]
fn full_window_processes_the_oldest_early() {
    let mut tracker = Tracker::new(super::super::TrackerConfig { max_held: 1, ..config() });
    let out = run(&mut tracker, given_client().syn().wait(MS).syn_ack().wait(MS).returns(0).script.acts);
    assert_eq!(out.len(), 1);
}

#[test]
fn end_of_the_source_writes_what_is_open() {
    let mut tracker = Tracker::new(config());
    let mut out = run(&mut tracker, given_client().syn().script.acts);
    let waking = given_client_at(2).with(|facts| facts.return_is_seen = true).syn().wait(US).syn_ack();
    out.extend(run(&mut tracker, waking.script.acts));
    out.extend(run(&mut tracker, given_listener_at(3).syn().syn_ack().child_queued().script.acts));
    out.extend(run(&mut tracker, given_listener_at(4).syn().syn_ack().final_ack().script.acts));
    tracker.observe(Input::End { now_ns: START + MS }, &mut out);
    let mut outcomes: Vec<_> =
        handshakes(&out).iter().map(|record| (record.outcome, record.evidence.kind)).collect();
    outcomes.sort_by_key(|(outcome, _)| *outcome == Outcome::Established);
    let stopped = (Outcome::Incomplete, EvidenceKind::StoppedWatching);
    let established = (Outcome::Established, EvidenceKind::StateEstablished);
    assert_eq!(outcomes, vec![stopped, stopped, established, established]);
    assert_eq!((tracker.counts().in_flight, tracker.counts().queued), (0, 0));
    assert_eq!(accepts(&out).len(), 2, "each child in the queue: we don't know if it was ever accepted");
    assert!(accepts(&out).iter().all(|accept| accept.outcome == AcceptOutcome::Incomplete));
}

#[test]
fn open_handshakes_can_be_listed() {
    let mut tracker = Tracker::new(config());
    let mut out = run(&mut tracker, given_client().syn().script.acts);
    out.extend(run(&mut tracker, given_listener().syn().syn_ack().final_ack().script.acts));
    tracker.observe(Input::Tick { now_ns: START + 100 * MS }, &mut out);
    let mut open: Vec<_> = tracker.open_handshakes().map(|open| (open.key.counter, open.step)).collect();
    open.sort_by_key(|(counter, _)| *counter);
    assert_eq!(open, vec![(1, Step::SynSent), (2, Step::InAcceptQueue)]);
}

/// What docs/KERNEL.md (Memory) states.
const STATED_BYTES: usize = 256 << 20;

#[test]
fn full_tables_take_no_more_memory_than_is_stated() {
    use super::super::{
        TrackerConfig, active_open::ActiveOpen, child::Child, drops::DroppedAttempt, queued::QueuedChild,
        table::BYTES_PER_ENTRY, told::Told,
    };
    // Each box of the allocator has a head of its own.
    const HEAD: usize = 16;
    let config = TrackerConfig::default();
    let boxed = [size_of::<ActiveOpen>(), size_of::<Child>(), size_of::<DroppedAttempt>()];
    let open = boxed.into_iter().max().unwrap_or(0) + HEAD + BYTES_PER_ENTRY;
    let queued = size_of::<QueuedChild>() + HEAD + BYTES_PER_ENTRY;
    // In the window: time, order and a box each, in a queue of which up to half is free.
    let held = size_of::<Observation>() + HEAD + 2 * 3 * size_of::<u64>();
    let bytes =
        config.max_open * open + config.max_queued * queued + config.max_held * held + Told::MAX_BYTES;
    assert!(bytes <= STATED_BYTES, "{bytes} bytes");
}

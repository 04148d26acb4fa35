//! A RST and the final ACK of one request at once: one record, of who won, in whatever order they are told.
//!
//! What a newcomer would get wrong: a death by RST is told before the kernel's table has decided, so it is no death yet.

use super::{super::Tracker, script::*};
use crate::{
    model::{
        observation::{Input, Queues},
        outcome::{EvidenceKind, Flag, Outcome},
    },
    tracker::TrackerConfig,
};

fn reset() -> Server {
    given_listener()
        .syn()
        .wait(MS)
        .syn_ack()
        .wait(MS)
        .with(|facts| facts.reset_received = true)
        .request_dies()
}

#[test]
fn request_that_a_rst_ended_is_told_when_we_stop_within_the_moment() {
    let record = reset().wait(US).expect(Outcome::Reset);
    assert_eq!((record.evidence.kind, record.failed_after_ns), (EvidenceKind::ResetReceived, Some(2 * MS)));
}

#[test]
fn request_that_a_rst_ended_is_told_once_though_two_hooks_tell_it() {
    let twice = reset().request_dies().wait(SEC);
    assert_eq!(twice.counts().unmatched, 1);
    twice.expect(Outcome::Reset);
}

#[test]
fn child_that_survives_a_rst_may_be_told_by_its_change_of_state_alone() {
    let survived = reset().wait(US).final_ack_without_queueing().wait(MS).accept();
    let record = survived.expect(Outcome::Established);
    assert_eq!((record.latency_ns.is_some(), record.flags), (true, vec![]));
}

#[test]
fn child_that_survives_a_rst_began_with_the_syn_that_was_dropped() {
    let full = Queues { accept_length: 3, accept_limit: 2, syn_length: 0 };
    let server = given_listener().syn_dropped(full).wait(SEC).syn().wait(MS).syn_ack().wait(MS);
    let died = server.with(|facts| facts.reset_received = true).request_dies();
    let record = died.child_queued().wait(US).established().wait(MS).accept().expect(Outcome::Established);
    assert!(record.latency_ns.is_some_and(|latency_ns| latency_ns >= SEC), "{record:?}");
    assert_eq!(record.flags, vec![Flag::SynDropped]);
}

#[test]
fn request_that_a_rst_ends_at_a_full_table_is_told_at_once_and_is_no_loss() {
    let mut tracker = Tracker::new(TrackerConfig { max_open: 0, ..config() });
    let mut out = vec![];
    for act in reset().script.acts {
        tracker.observe(Input::Observation(Box::new(act)), &mut out);
    }
    tracker.observe(Input::Tick { now_ns: START + SEC / 10 }, &mut out);
    assert_eq!(handshakes(&out).iter().map(|record| record.outcome).collect::<Vec<_>>(), [Outcome::Reset]);
    assert_eq!(tracker.counts().table_full, 0);
}

//! One connection, one record at each end: whatever order the hooks' beginning, the snapshot and a skipped hit make of it.
//!
//! What a newcomer would get wrong: the second event does not look like a second. It names another socket (the request's),
//! another life of it, or nothing that is still in the table; what both have is the ISNs and the ports.

use handshake_common::tcp::TcpState;

use super::script::*;
use crate::model::outcome::{EvidenceKind, Outcome};

fn established() -> Server {
    given_listener().syn().syn_ack().wait(MS).final_ack()
}

/// Whatever came second is counted.
#[track_caller]
fn expect_told_once(server: Server, outcome: Outcome) {
    let server = server.wait(3 * SEC);
    assert_eq!(server.counts().unmatched, 1, "{:#?}", server.records());
    server.expect(outcome);
}

#[test]
fn accept_of_a_child_whose_queueing_did_not_promise_it() {
    // It was queued before the kernel side knew that accept() will be seen.
    let unpromised = given_listener().with(|facts| facts.accept_is_seen = false);
    let server = unpromised.syn().syn_ack().wait(MS).final_ack();
    expect_told_once(server.clone().wait(MS).accept(), Outcome::Established);
    expect_told_once(server.wait(MS).destroyed(), Outcome::Established);
}

#[test]
fn request_that_seems_open_when_we_stop_though_its_child_was_told() {
    let stopped = established().wait(US).accept().wait(SEC).with(|facts| facts.still_open = true);
    expect_told_once(stopped.request_dies(), Outcome::Established);
}

#[test]
fn request_whose_end_was_missed_though_its_child_was_told() {
    let missed = established().wait(US).accept().wait(SEC).with(|facts| facts.end_not_seen = true);
    expect_told_once(missed.request_dies(), Outcome::Established);
}

#[test]
fn request_that_dies_while_its_child_waits_for_accept() {
    let missed = established().wait(MS).with(|facts| facts.end_not_seen = true).request_dies();
    let record = missed.wait(MS).accept().wait(3 * SEC).expect(Outcome::Established);
    assert_eq!(record.process.map(|process| process.pid), Some(81));
}

#[test]
fn child_that_is_queued_when_its_request_was_told_as_dead() {
    let dead = given_listener().syn().syn_ack().with(|facts| facts.end_not_seen = true).request_dies();
    let alive = dead.with(|facts| facts.end_not_seen = false).wait(MS).final_ack();
    let record = alive.wait(SEC).expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::NothingMoreSeen);
}

#[test]
fn change_of_state_that_another_hook_tells_under_another_life() {
    let other_life = |server: Server| server.wait(US).next_generation().established();
    // While the first is in the table, and when it is written.
    let record = other_life(given_listener().syn().syn_ack().child_queued()).expect_records();
    assert_eq!(record, 1);
    assert_eq!(other_life(established().wait(MS).accept()).expect_records(), 1);
}

#[test]
fn change_of_state_that_comes_after_the_patience_with_accept() {
    let server = given_listener().syn().syn_ack().child_queued().wait(US).accept().wait(SEC);
    let record = server.clone().established().wait(SEC).expect(Outcome::Established);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptReturned);
    assert_eq!(server.established().wait(SEC).counts().unmatched, 1);
}

#[test]
fn snapshot_sees_a_child_that_a_hook_announced_or_that_is_accepted_by_then() {
    let announced = established().wait(US).seen_queued_at_start().wait(MS).accept();
    assert_eq!(announced.expect(Outcome::Established).flags, vec![]);
    let accepted = established().wait(US).accept().wait(MS).seen_queued_at_start();
    assert_eq!(accepted.expect(Outcome::Established).flags, vec![]);
}

#[test]
fn snapshot_sees_the_request_before_or_after_its_child() {
    let before = given_listener().syn().syn_ack().seen_half_open_at_start().wait(MS).final_ack().accept();
    before.expect(Outcome::Established);
    established().seen_half_open_at_start().wait(US).accept().expect(Outcome::Established);
}

#[test]
fn another_connection_of_the_same_ports_is_another_record() {
    let first = established().wait(US).accept().wait(SEC).next_generation();
    let second = first.with(|facts| facts.agreed.remote_isn = Some(1)).final_ack().wait(US).accept();
    assert_eq!(second.wait(SEC).records().len(), 2);
}

#[test]
fn request_that_dies_beside_another_one_of_the_same_syn_is_told() {
    // 5.10 keeps both requests of a SYN that two CPUs answered, each with an ISN of its own.
    let server = established().wait(US).accept().wait(SEC);
    let other = server.with(|facts| (facts.agreed.local_isn, facts.timed_out) = (Some(7), true));
    let records = other.request_dies().wait(SEC).records();
    assert_eq!(records.len(), 2);
    assert_eq!(records[1].outcome, Outcome::TimedOut);
}

impl Server {
    fn expect_records(self) -> usize {
        self.wait(3 * SEC).records().len()
    }
}

#[test]
fn refusal_half_open_is_told_once_too() {
    let reset = |server: Server| server.with(|facts| facts.reset_received = true).request_dies();
    let record = reset(reset(given_listener().syn().syn_ack().wait(MS)).wait(MS)).wait(SEC);
    assert_eq!(record.records().len(), 1);
    let closed = given_listener().syn().syn_ack().wait(MS).leaves_syn_received(TcpState::Closed);
    assert_eq!(closed.wait(SEC).records().len(), 1);
}

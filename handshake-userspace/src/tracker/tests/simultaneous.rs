//! Simultaneous opens (RFC 9293 section 3.5, figure 7).

use handshake_common::tcp::TcpState;

use super::script::*;
use crate::model::outcome::{EvidenceKind, Flag, Outcome, Role};

#[test]
fn crossing_syns_establish_a_simultaneous_open() {
    let client = given_client().syn().wait(20 * MS).crossing_syn().wait(20 * MS);
    let record = client.leaves_syn_received(TcpState::Established, 0).expect(Outcome::Established);
    assert_eq!(record.role, Role::Simultaneous);
    assert_eq!(record.flags, vec![Flag::SimultaneousOpen]);
    assert_eq!(record.id, Some(0x0bad_f00d_dead_beef), "the smaller ISN first, so that both ends agree");
    assert_eq!(record.latency_ns, Some(40 * MS));
    assert_eq!(record.phases.wire_ns, Some(20 * MS));
    assert_eq!(record.rtt_ns, None, "a SYN that crosses ours is no answer to it");
    assert_eq!(record.process.map(|process| process.pid), Some(1234));
}

#[test]
fn crossing_whose_first_event_was_lost_is_still_simultaneous() {
    let client = given_client().syn().wait(40 * MS).leaves_syn_received(TcpState::Established, 0);
    assert_eq!(client.expect(Outcome::Established).role, Role::Simultaneous);
}

#[test]
fn reset_after_crossing_is_reset() {
    let client = given_client().syn().wait(MS).crossing_syn().wait(MS);
    let record = client.leaves_syn_received(TcpState::Closed, ECONNRESET).expect(Outcome::Reset);
    assert_eq!(record.role, Role::Simultaneous);
}

#[test]
fn crossing_that_is_never_acknowledged_times_out() {
    let client = given_client().syn().wait(MS).crossing_syn().wait(60 * SEC);
    let record = client.leaves_syn_received(TcpState::Closed, ETIMEDOUT).expect(Outcome::TimedOut);
    assert_eq!(record.failed_after_ns, Some(60 * SEC + MS), "it went on when it had left SYN-SENT");
    assert_eq!(record.phases.wire_ns, Some(MS));
}

#[test]
fn close_after_crossing_is_cancelled() {
    let client = given_client().syn().wait(MS).crossing_syn().wait(MS);
    let by_rst = client.clone().leaves_syn_received(TcpState::Closed, 0).expect(Outcome::Cancelled);
    assert_eq!(by_rst.evidence.kind, EvidenceKind::ClosedInSynReceived);
    client.leaves_syn_received(TcpState::FinWait1, 0).expect(Outcome::Cancelled);
}

#[test]
fn return_of_connect_after_crossing_is_the_wake() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(MS).crossing_syn();
    let client = client.wait(MS).leaves_syn_received(TcpState::Established, 0).wait(US).returns(0);
    assert_eq!(client.expect(Outcome::Established).phases.wake_ns, Some(US));
}

#[test]
fn child_at_the_address_of_a_forgotten_client_is_no_simultaneous_open() {
    let client = given_client().without_generation().syn().wait(MS);
    let server = given_listener_at(client.script.socket.address).without_generation().wait(2 * MS);
    let server = server.syn().syn_ack().wait(MS).final_ack_without_queueing().accept();
    let acts = [client.script.acts.clone(), server.script.acts.clone()].concat();
    let records = server.scripted(|script| script.acts = acts).wait(SEC).records();
    let roles: Vec<_> = records.iter().map(|record| (record.role, record.outcome)).collect();
    assert_eq!(roles, vec![(Role::Client, Outcome::Incomplete), (Role::Server, Outcome::Established)]);
}

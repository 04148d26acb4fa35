//! Active opens that fail: every errno in TCP's words, and what is no failure of the network.

use handshake_common::tcp::TcpState;

use super::script::*;
use crate::model::outcome::{EvidenceKind, Flag, Outcome};

#[test]
fn syn_answered_by_reset_is_refused() {
    let record = given_client().syn().wait(MS).reset().expect(Outcome::Refused);
    assert_eq!(record.evidence.kind, EvidenceKind::ResetReceived);
    assert_eq!((record.evidence.errno, record.evidence.syns), (Some(ECONNREFUSED), Some(1)));
    assert_eq!(record.latency_ns, None, "nothing was established");
    assert_eq!((record.phases.wire_ns, record.rtt_ns), (Some(MS), Some(MS)));
    assert_eq!(record.id, None, "the server never chose an ISN");
    assert_eq!(record.options, None);
}

#[test]
fn port_unreachable_is_refused_by_socket_error() {
    let record = given_client().syn().wait(MS).error(ECONNREFUSED).expect(Outcome::Refused);
    assert_eq!(record.evidence.kind, EvidenceKind::SocketError);
    assert_eq!((record.phases.wire_ns, record.rtt_ns), (None, None), "no segment answered");
}

#[test]
fn syns_unanswered_until_the_kernel_gives_up_time_out() {
    let client = given_client().syn().wait(SEC).syn_retransmit().wait(2 * SEC).syn_retransmit();
    let record = client.wait(4 * SEC).error(ETIMEDOUT).expect(Outcome::TimedOut);
    assert_eq!(record.evidence.kind, EvidenceKind::RetransmitTimeout);
    assert_eq!(record.evidence.syns, Some(3));
    assert_eq!(record.retransmits.waited_ns, Some(3 * SEC));
    assert_eq!(record.phases.wire_ns, None);
}

#[test]
fn soft_icmp_error_before_a_time_out_stays_a_time_out() {
    let client = given_client().syn().wait(SEC).with(|facts| facts.sk_err_soft = 113);
    let record = client.error(ETIMEDOUT).expect(Outcome::TimedOut);
    assert_eq!((record.evidence.errno, record.evidence.soft_errno), (Some(ETIMEDOUT), Some(113)));
}

#[test]
fn icmp_noted_before_the_application_gave_up_is_evidence() {
    let client = given_client().syn().wait(SEC).with(|facts| facts.sk_err_soft = 113);
    let record = client.application_closes().expect(Outcome::Cancelled);
    assert_eq!((record.evidence.errno, record.evidence.soft_errno), (None, Some(113)));
}

#[test]
fn without_an_icmp_nothing_was_noted() {
    let record = given_client().syn().wait(SEC).application_closes().expect(Outcome::Cancelled);
    assert_eq!(record.evidence.soft_errno, None);
}

#[test]
fn icmp_host_unreachable_is_host_unreachable() {
    let record = given_client().syn().wait(MS).error(113).expect(Outcome::HostUnreachable);
    assert_eq!(record.evidence.kind, EvidenceKind::SocketError);
}

#[test]
fn icmp_network_unreachable_is_net_unreachable() {
    given_client().syn().wait(MS).error(101).expect(Outcome::NetUnreachable);
}

#[test]
fn icmp_protocol_unreachable_is_never_a_refusal() {
    for errno in [92, 71, 13, 112, 64, 95] {
        let record = given_client().syn().wait(MS).error(errno).expect(Outcome::HostUnreachable);
        assert_eq!(record.evidence.errno, Some(errno));
    }
}

#[test]
fn reset_with_econnreset_is_reset() {
    let client = given_client().syn().wait(MS).with(|facts| facts.reset_received = true);
    let record = client.error(ECONNRESET).expect(Outcome::Reset);
    assert_eq!(record.evidence.kind, EvidenceKind::ResetReceived);
}

#[test]
fn close_in_syn_sent_is_cancelled_not_refused() {
    let record = given_client().syn().wait(SEC).application_closes().expect(Outcome::Cancelled);
    assert_eq!(record.evidence.kind, EvidenceKind::ClosedInSynSent);
    assert_eq!(record.process.map(|process| process.pid), Some(1234));
}

#[test]
fn connect_to_af_unspec_in_syn_sent_is_cancelled_not_reset() {
    let record = given_client().syn().wait(MS).error(ECONNRESET).expect(Outcome::Cancelled);
    assert_eq!(record.evidence.kind, EvidenceKind::ClosedInSynSent);
}

#[test]
fn unknown_socket_error_with_a_rst_is_refused() {
    let client = given_client().syn().wait(MS).reset();
    let mut acts = client.script.acts.clone();
    if let crate::model::observation::Act::LeftSynSent(left) = &mut acts[1].act {
        left.sk_err = None;
    }
    let record = client.scripted(|script| script.acts = acts).expect(Outcome::Refused);
    assert_eq!(record.evidence.kind, EvidenceKind::ResetReceived);
}

#[test]
fn unknown_socket_error_is_told_by_the_return_of_connect() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(SEC);
    let client = client.with(|facts| facts.sk_err = None);
    let closed = client.leaves(TcpState::Closed);
    let record = closed.clone().wait(US).returns(ETIMEDOUT).expect(Outcome::TimedOut);
    assert_eq!(record.evidence.errno, Some(ETIMEDOUT));
    let record = closed.expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::NothingMoreSeen, "nobody said why");
}

#[test]
fn no_route_is_net_unreachable_without_a_syn() {
    let record = given_client().wait(US).fails(101).expect(Outcome::NetUnreachable);
    assert_eq!(record.evidence.kind, EvidenceKind::ConnectReturned);
    assert_eq!((record.evidence.syns, record.retransmits.syn), (None, None), "no SYN left");
    assert_eq!((record.latency_ns, record.phases.local_ns), (None, None));
    assert_eq!(record.began_ns, START);
}

#[test]
fn unreachable_route_is_host_unreachable_without_a_syn() {
    given_client().fails(113).expect(Outcome::HostUnreachable);
}

#[test]
fn forbidden_or_invalid_destination_is_a_local_error() {
    for errno in [13, 1, 22] {
        let record = given_client().fails(errno).expect(Outcome::LocalError);
        assert_eq!(record.evidence.errno, Some(errno));
    }
}

#[test]
fn no_free_port_is_a_local_error_and_one_record() {
    // tcp_v4_connect enters SYN-SENT, finds no port, goes back to CLOSED, and returns EADDRNOTAVAIL.
    let client = given_client().application_closes().wait(US).fails(99).wait(US).returns(99);
    let record = client.expect(Outcome::LocalError);
    assert_eq!(record.evidence.kind, EvidenceKind::ConnectReturned);
    assert_eq!(record.evidence.errno, Some(99));
    assert_eq!(record.evidence.syns, None);
}

#[test]
fn no_free_port_in_a_mode_that_takes_syn_sent_for_the_syn_is_a_local_error() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(US);
    let record = client.application_closes().wait(US).returns(99).expect(Outcome::LocalError);
    assert_eq!((record.evidence.errno, record.retransmits.syn), (Some(99), None));
    assert_eq!(record.phases.local_ns, None, "no SYN left");
    assert!(
        record.failed_after_ns.is_some_and(|took_ns| took_ns >= 2 * US),
        "until the call returned: {record:?}"
    );
}

#[test]
fn closed_before_any_syn_without_an_errno_is_a_local_error_without_one() {
    let client = given_client().application_closes();
    assert_eq!(client.records(), vec![], "the call's return may still say why");
    let record = client.expect(Outcome::LocalError);
    assert_eq!(record.evidence.errno, None);
}

#[test]
fn a_syn_whose_hook_was_skipped_left_all_the_same_when_its_isn_is_known() {
    let isn = Some(7);
    let record = given_client()
        .with(|facts| facts.agreed.local_isn = isn)
        .application_closes()
        .expect(Outcome::Cancelled);
    assert_eq!((record.isn.local, record.evidence.syns, record.retransmits.syn), (isn, Some(1), Some(0)));
    assert_eq!(record.latency_ns, None);
}

#[test]
fn deferred_fast_open_closed_before_its_first_write_is_cancelled() {
    let client = given_client().wait(SEC).with(|facts| facts.call_returned = true);
    let record = client.application_closes().expect(Outcome::Cancelled);
    assert_eq!((record.evidence.syns, record.phases.local_ns), (None, None));
}

#[test]
fn failure_told_by_both_address_families_is_one_record() {
    given_client().fails(101).wait(US).fails(101).expect(Outcome::NetUnreachable);
    given_client().without_generation().fails(101).wait(US).fails(101).expect(Outcome::NetUnreachable);
}

#[test]
fn second_failing_call_on_one_socket_is_another_handshake() {
    let client = given_client().without_generation().fails(101).wait(MS);
    let client = client.with(|facts| facts.called_ns = Some(START + MS)).fails(101);
    assert_eq!(client.wait(SEC).records().len(), 2);
}

#[test]
fn second_connect_on_a_pending_socket_ends_nothing() {
    // EALREADY, EINPROGRESS and EISCONN say that an earlier call's handshake goes on, or did.
    let client = given_client().syn().wait(MS).fails(114).wait(MS).syn_ack().wait(MS).fails(106);
    client.expect(Outcome::Established);
}

#[test]
fn non_blocking_refusal_is_marked() {
    let client = given_client().syn().wait(US).returns(115).wait(MS).reset();
    assert_eq!(client.expect(Outcome::Refused).flags, vec![Flag::NonBlocking]);
}

#[test]
fn blocking_call_that_returns_its_refusal_leaves_nothing_unmatched() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(MS).reset();
    let client = client.wait(5 * US).returns(ECONNREFUSED);
    assert_eq!(client.counts().unmatched, 0);
    assert_eq!(client.expect(Outcome::Refused).phases.wake_ns, None, "wake is from ESTABLISHED");
}

#[test]
fn silence_longer_than_any_timer_is_incomplete_and_no_failure_of_the_network() {
    let client = given_client().syn().wait(601 * SEC);
    let record = client.expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::NothingMoreSeen);
    assert_eq!(record.evidence.syns, Some(1));
}

#[test]
fn retransmissions_keep_a_slow_handshake_open() {
    let mut client = given_client().syn();
    for _ in 0..10 {
        client = client.wait(120 * SEC).syn_retransmit();
    }
    assert_eq!(client.counts().in_flight, 1);
    let record = client.wait(120 * SEC).error(ETIMEDOUT).expect(Outcome::TimedOut);
    assert_eq!(record.evidence.syns, Some(11));
}

#[test]
fn a_change_to_established_that_was_found_out_later_has_no_latency() {
    let client = given_client().syn().wait(MS).with(|facts| {
        facts.found_late = true;
        facts.end_time_unknown = true;
    });
    let client = client.leaves(TcpState::Established);
    assert_eq!(client.counts().ends_unseen, 1);
    let record = client.expect(Outcome::Established);
    assert_eq!((record.latency_ns, record.phases.wire_ns, record.rtt_ns), (None, None, None));
}

#[test]
fn a_socket_found_closed_without_an_error_was_not_cancelled_for_all_we_know() {
    // SO_ERROR takes the error off a socket; when it is destroyed there is none left to tell of a refusal.
    let client = given_client().syn().wait(MS).with(|facts| facts.found_late = true);
    let record = client.error(0).expect(Outcome::Incomplete);
    assert_eq!((record.evidence.errno, record.failed_after_ns), (None, None));
}

#[test]
fn a_reset_before_a_socket_was_found_closed_is_a_refusal() {
    let client = given_client().syn().wait(MS).with(|facts| {
        facts.found_late = true;
        facts.reset_received = true;
    });
    let record = client.error(0).expect(Outcome::Refused);
    assert_eq!(record.evidence.kind, EvidenceKind::ResetReceived);
}

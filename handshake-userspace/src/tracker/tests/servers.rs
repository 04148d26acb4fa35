//! Passive opens up to ESTABLISHED, or to their end half open.

use handshake_common::{event::Attach, tcp::TcpState};

use super::script::*;
use crate::model::outcome::{EvidenceKind, Flag, Outcome, Role};

#[test]
fn final_ack_establishes_and_accept_takes_the_child() {
    let server = given_listener().syn().wait(9 * US).syn_ack().wait(40 * MS).final_ack();
    let record = server.wait(31 * US).accept().expect(Outcome::Established);
    assert_eq!(record.role, Role::Server);
    assert_eq!(record.phases.synack_ns, Some(9 * US));
    assert_eq!(record.phases.ack_ns, Some(40 * MS));
    assert_eq!(record.phases.accept_ns, Some(33 * US), "from queued to accept()");
    assert_eq!(record.latency_ns, Some(9 * US + 40 * MS + 3 * US));
    assert_eq!((record.rtt_ns, record.kernel_rtt_us), (Some(40 * MS), Some(40_999)));
    assert_eq!((record.retransmits.syn_ack, record.retransmits.syn_seen), (Some(0), Some(1)));
    assert_eq!((record.retransmits.syn, record.retransmits.waited_ns), (None, Some(0)));
    assert_eq!(record.id, Some(0x0bad_f00d_dead_beef), "as the client has it");
    assert_eq!(record.process.map(|process| process.pid), Some(81), "the acceptor, not the listener");
    assert_eq!(record.accept_queue.map(|queue| (queue.length, queue.limit)), Some((1, 128)));
    assert_eq!(record.began_ns, START);
    assert_eq!(record.flags, vec![]);
}

#[test]
fn syn_ack_lost_then_retransmitted_establishes() {
    let server = given_listener().syn().syn_ack().wait(SEC).syn_ack_retransmit().wait(40 * MS);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.retransmits.syn_ack, Some(1));
    assert_eq!(record.retransmits.waited_ns, Some(SEC));
    assert_eq!(record.rtt_ns, None, "Karn");
    assert_eq!(record.evidence.syn_acks, Some(2));
}

#[test]
fn final_ack_lost_and_syn_ack_answered_again_establishes_late() {
    let server = given_listener().syn().syn_ack().wait(40 * MS).wait(SEC).syn_ack_retransmit().wait(MS);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.phases.ack_ns, Some(SEC + 41 * MS), "waits included");
    assert_eq!(record.rtt_ns, None);
}

#[test]
fn syn_seen_twice_blurs_the_round_trip() {
    let record = given_listener().syn().syn_ack().wait(MS).syn().final_ack().accept();
    let record = record.expect(Outcome::Established);
    assert_eq!((record.rtt_ns, record.retransmits.syn_seen), (None, Some(2)));
}

#[test]
fn mode_without_queueing_events_gives_the_same_record() {
    let tracepoint = |script: &mut Script| script.attach = Attach::Tracepoint;
    let server = given_listener().scripted(tracepoint).syn().syn_ack().wait(MS);
    let record = server.final_ack_without_queueing().wait(US).accept().expect(Outcome::Established);
    assert_eq!(record.phases.accept_ns, Some(US));
    assert_eq!(record.rtt_ns, Some(MS));
    assert_eq!(record.attach, Some(Attach::Tracepoint));
}

#[test]
fn syn_ack_stamp_of_whole_microseconds_is_not_before_its_syn() {
    let record = given_listener().wait(700).syn().wait(200).syn_ack().wait(MS).final_ack().accept();
    assert_eq!(record.expect(Outcome::Established).phases.synack_ns, Some(0));
}

#[test]
fn syn_ack_long_before_its_syn_has_no_phase() {
    let record = given_listener().syn_ack().wait(5 * US).syn().wait(MS).final_ack().accept();
    assert_eq!(record.expect(Outcome::Established).phases.synack_ns, None);
}

#[test]
fn syn_before_our_time_starts_the_latency_at_the_syn_ack_and_is_seen_late() {
    let server = given_listener().with(|facts| facts.syn_not_seen = true).syn_ack().wait(MS);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.latency_ns, Some(MS + 3 * US));
    assert_eq!(record.flags, vec![Flag::SeenLate]);
    assert_eq!(record.phases.synack_ns, None);
}

#[test]
fn syn_that_a_mode_without_probes_missed_is_late_only_if_the_request_was_there_at_our_start() {
    let missed = |facts: &mut crate::model::observation::PassiveOpen| facts.syn_not_seen = true;
    let server = given_listener().with(missed).seen_half_open_at_start().wait(MS);
    let record = server.final_ack_without_queueing().accept().expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::SeenLate]);
    // It may have been answered by a cookie, which leaves no trace here.
    let server = given_listener().with(missed).wait(MS);
    let record = server.final_ack_without_queueing().accept().expect(Outcome::Established);
    assert_eq!(record.flags, vec![]);
    assert_eq!((record.latency_ns, record.retransmits.syn_ack), (None, None));
}

#[test]
fn request_that_was_there_at_our_start_dies_seen_late() {
    let late = |facts: &mut crate::model::observation::PassiveOpen| {
        facts.syn_not_seen = true;
        facts.timed_out = true;
    };
    let server =
        given_listener().with(late).seen_half_open_at_start().syn_ack().wait(SEC).syn_ack_retransmit();
    let record = server.wait(SEC).request_dies().expect(Outcome::TimedOut);
    assert_eq!(record.flags, vec![Flag::SeenLate]);
    assert_eq!(record.failed_after_ns, Some(2 * SEC));
    assert_eq!((record.retransmits.syn_ack, record.retransmits.syn_seen), (Some(1), None));
}

#[test]
fn request_whose_syn_ack_an_icmp_answers_is_unreachable_though_its_listener_has_closed() {
    for closes in [false, true] {
        let server = given_listener().with(|facts| facts.icmp_received = true).syn().syn_ack().wait(MS);
        let server = if closes { server.listener_closes() } else { server };
        let record = server.request_dies().expect(Outcome::HostUnreachable);
        assert_eq!(record.evidence.kind, EvidenceKind::IcmpReceived);
        assert_eq!((record.evidence.errno, record.failed_after_ns), (None, Some(MS)));
    }
}

#[test]
fn syn_that_found_the_kernel_table_full_is_marked() {
    let server = given_listener().with(|facts| facts.syn_table_full = true).syn_ack().wait(MS);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::SynTimeLost]);
    assert_eq!(record.latency_ns, Some(MS + 3 * US));
}

#[test]
fn syn_that_found_the_kernel_table_full_is_marked_where_the_syn_ack_has_no_time() {
    let server = given_listener().with(|facts| facts.syn_table_full = true).wait(MS);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!((record.flags, record.latency_ns), (vec![Flag::SynTimeLost], None));
}

#[test]
fn syn_cookie_has_no_round_trip_and_no_retransmission_count() {
    let server = given_listener().with(|facts| facts.syn_cookie = true).wait(40 * MS);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!((record.latency_ns, record.rtt_ns), (None, None), "neither SYN nor SYN-ACK has a time");
    assert_eq!(record.retransmits.syn_ack, None);
    assert_eq!(record.flags, vec![Flag::SynCookie]);
}

#[test]
fn deferred_accept_has_no_round_trip() {
    let server = given_listener().with(|facts| facts.defer_accept = true).syn().syn_ack();
    let record = server.wait(243 * MS).final_ack().accept().expect(Outcome::Established);
    assert_eq!((record.rtt_ns, record.phases.ack_ns), (None, Some(243 * MS)));
    assert_eq!(record.kernel_rtt_us, None, "the kernel measures to the data");
    assert_eq!(record.flags, vec![Flag::DeferAccept]);
}

#[test]
fn fast_open_child_is_accepted_before_it_is_established() {
    let server = given_listener().with(|facts| facts.fast_open = true).syn().syn_ack();
    let server = server.child_queued().wait(5 * US).accept();
    assert_eq!(server.clone().wait(SEC).records(), vec![], "the handshake still goes on");
    let record = server.wait(40 * MS).established().expect(Outcome::Established);
    assert_eq!(record.phases.accept_ns, Some(5 * US));
    assert_eq!(record.latency_ns, Some(40 * MS + 6 * US));
    assert_eq!(record.rtt_ns, None);
    assert_eq!(record.flags, vec![Flag::FastOpen]);
}

#[test]
fn request_of_a_listener_that_closed_is_cancelled_and_not_timed_out() {
    let server = given_listener().syn().syn_ack().wait(MS).listener_closes().wait(SEC);
    let server = server.with(|facts| facts.timed_out = true);
    let record = server.request_dies().expect(Outcome::Cancelled);
    assert_eq!(record.evidence.kind, EvidenceKind::ListenerClosed);
    assert_eq!(record.process.map(|process| process.pid), Some(80), "who listened");
    assert_eq!(record.failed_after_ns, Some(SEC + MS));
}

#[test]
fn request_of_a_listener_that_closed_long_ago_timed_out() {
    let server = given_listener().listener_closes().wait(300 * SEC).syn().syn_ack().wait(60 * SEC);
    let server = server.with(|facts| facts.timed_out = true);
    server.request_dies().expect(Outcome::TimedOut);
}

#[test]
fn fast_open_child_that_no_probe_announced_waits_for_its_final_ack_too() {
    let server = given_listener().syn().syn_ack().wait(5 * US).accept_in_syn_received();
    let server = server.wait(3 * SEC).with(|facts| facts.fast_open = true).established();
    let record = server.expect(Outcome::Established);
    assert_eq!(record.evidence.kind, EvidenceKind::StateEstablished);
    assert_eq!((record.phases.accept_ns, record.rtt_ns), (None, None), "when it was queued is unknown");
    assert_eq!(record.flags, vec![Flag::FastOpen]);
}

#[test]
fn fast_open_child_whose_final_ack_never_comes_times_out() {
    let server = given_listener().with(|facts| facts.fast_open = true).syn().syn_ack();
    let server = server.child_queued().accept().wait(60 * SEC).with(|facts| facts.sk_err = Some(ETIMEDOUT));
    let record = server.leaves_syn_received(TcpState::Closed).expect(Outcome::TimedOut);
    assert_eq!(record.evidence.kind, EvidenceKind::SynAckTimeout);
}

/// Accepted in SYN-RECEIVED; then its owner closes it, which is not told before it is CLOSED.
fn closed_early(old: TcpState) -> Server {
    let server = given_listener().with(|facts| facts.fast_open = true).syn().syn_ack();
    let server = server.accept_in_syn_received().wait(SEC);
    server.with(|facts| (facts.old_state, facts.sk_err) = (Some(old), Some(0)))
}

#[test]
fn fast_open_child_that_was_closed_before_its_final_ack_is_established_by_it() {
    let server = closed_early(TcpState::FinWait2);
    let ack_ns = server.script.time_ns - MS;
    let server = server.with(|facts| (facts.acknowledged, facts.final_ack_ns) = (true, Some(ack_ns)));
    let record = server.leaves_syn_received(TcpState::Closed).expect(Outcome::Established);
    assert_eq!(record.evidence.kind, EvidenceKind::AckAfterClose);
    assert_eq!((record.latency_ns, record.phases.ack_ns), (Some(SEC - MS), Some(SEC - MS)));
    assert!(record.options.is_some(), "the SYN announced them");
}

#[test]
fn fast_open_child_that_was_closed_before_its_unseen_final_ack_has_no_latency() {
    let server = closed_early(TcpState::Closing).with(|facts| facts.acknowledged = true);
    let record = server.leaves_syn_received(TcpState::Closed).expect(Outcome::Established);
    assert_eq!((record.latency_ns, record.phases.ack_ns), (None, None), "->CLOSED is later than that");
}

#[test]
fn fast_open_child_that_was_closed_before_its_final_ack_may_end_otherwise() {
    let ended = |change: fn(&mut crate::model::observation::PassiveOpen)| {
        closed_early(TcpState::FinWait1).with(change).leaves_syn_received(TcpState::Closed)
    };
    let reset = ended(|facts| (facts.reset_received, facts.sk_err) = (true, Some(ECONNRESET)));
    assert_eq!(reset.expect(Outcome::Reset).evidence.kind, EvidenceKind::ResetReceived);
    let late = ended(|facts| facts.sk_err = Some(ETIMEDOUT)).expect(Outcome::TimedOut);
    assert_eq!((late.evidence.kind, late.failed_after_ns), (EvidenceKind::SynAckTimeout, Some(SEC)));
    let given_up = ended(|_| {}).expect(Outcome::Cancelled);
    assert_eq!(given_up.evidence.kind, EvidenceKind::ClosedInSynReceived);
}

#[test]
fn fast_open_child_that_its_server_resets_half_open_is_cancelled() {
    let record = closed_early(TcpState::SynReceived).leaves_syn_received(TcpState::Closed);
    let record = record.expect(Outcome::Cancelled);
    assert_eq!(record.evidence.kind, EvidenceKind::ClosedInSynReceived);
    assert_eq!(record.failed_after_ns, Some(SEC));
}

#[test]
fn fast_open_child_whose_listener_closes_is_cancelled_and_never_accepted() {
    for listener_is_known in [true, false] {
        let server = given_listener().with(|facts| (facts.fast_open, facts.sk_err) = (true, Some(0)));
        let server = server.with(|facts| facts.listener = facts.listener.filter(|_| listener_is_known));
        let server = server.syn().syn_ack().child_queued().wait(MS).listener_closes();
        let server = server.leaves_syn_received(TcpState::Closed).wait(US).destroyed();
        assert_eq!(accepts(&server.updates()).len(), 1);
        let record = server.expect(Outcome::Cancelled);
        assert_eq!(record.evidence.kind, EvidenceKind::ListenerClosed);
    }
}

#[test]
fn fast_open_child_reset_half_open_and_accepted_afterwards_is_one_record() {
    let server = given_listener().with(|facts| facts.fast_open = true).syn().syn_ack().child_queued();
    let server = server.with(|facts| facts.reset_received = true).leaves_syn_received(TcpState::Closed);
    let server = server.wait(MS).accept();
    assert_eq!(accepts(&server.updates()).len(), 1);
    server.expect(Outcome::Reset);
}

#[test]
fn reset_in_syn_received_is_reset() {
    let server = given_listener().syn().syn_ack().with(|facts| facts.sk_err = Some(ECONNRESET));
    let record = server.leaves_syn_received(TcpState::Closed).expect(Outcome::Reset);
    assert_eq!(record.evidence.errno, Some(ECONNRESET));
    assert_eq!(record.latency_ns, None);
}

#[test]
fn syn_acks_unanswered_time_out() {
    let server = given_listener().syn().syn_ack().wait(SEC).syn_ack_retransmit().wait(2 * SEC);
    let server = server.syn_ack_retransmit().wait(4 * SEC).with(|facts| facts.timed_out = true);
    let record = server.request_dies().expect(Outcome::TimedOut);
    assert_eq!(record.evidence.kind, EvidenceKind::SynAckTimeout);
    assert_eq!(record.evidence.syn_acks, Some(3));
    assert_eq!(record.retransmits.waited_ns, Some(3 * SEC));
    assert_eq!(record.process.map(|process| process.pid), Some(80), "who listens");
    assert_eq!(record.accept_queue, None, "it never was in the queue");
    assert_eq!(record.options.map(|options| options.mss), Some(1460), "its SYN-ACK had settled them");
}

#[test]
fn reset_before_the_final_ack_is_reset() {
    let server = given_listener().syn().syn_ack().wait(MS).with(|facts| facts.reset_received = true);
    let record = server.request_dies().expect(Outcome::Reset);
    assert_eq!(record.evidence.kind, EvidenceKind::ResetReceived);
}

#[test]
fn request_dropped_for_no_known_reason_is_incomplete() {
    let record = given_listener().syn().syn_ack().wait(MS).request_dies().expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::RequestDropped);
}

#[test]
fn child_whose_queueing_event_was_lost_is_still_one_record() {
    let server = given_listener().syn().syn_ack().wait(MS).final_ack_without_queueing();
    server.accept().expect(Outcome::Established);
}

#[test]
fn child_whose_established_event_was_lost_is_established_by_its_accept() {
    let record = given_listener().syn().syn_ack().wait(MS).child_queued().wait(US).accept();
    let record = record.expect(Outcome::Established);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptReturned);
    assert_eq!(record.latency_ns, None, "nobody saw when");
    assert_eq!(record.phases.ack_ns, Some(MS));
}

#[test]
fn own_listener_is_marked() {
    let server = given_listener().with(|facts| facts.own = true).syn().syn_ack().final_ack().accept();
    assert_eq!(server.expect(Outcome::Established).flags, vec![Flag::Own]);
}

#[test]
fn a_request_whose_end_no_hook_saw_is_incomplete_and_no_death() {
    let half = || given_listener().syn().syn_ack().wait(SEC);
    let record = half().with(|facts| facts.end_not_seen = true).request_dies().expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::NothingMoreSeen);
    assert_eq!((record.latency_ns, record.failed_after_ns, record.phases.ack_ns), (None, None, None));
    // A RST that came for it need not have been in the window, and the listener's close is no end of it either.
    let record = half()
        .with(|facts| (facts.end_not_seen, facts.reset_received) = (true, true))
        .request_dies()
        .expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::NothingMoreSeen);
}

#[test]
fn a_request_that_is_half_open_when_we_stop_is_incomplete_for_that() {
    let half = given_listener().syn().syn_ack().wait(SEC).with(|facts| facts.still_open = true);
    let record = half.request_dies().expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::StoppedWatching);
    assert_eq!(record.evidence.syn_acks, Some(1));
}

#[test]
fn syn_ack_sent_again_after_the_end_is_no_wait() {
    // Its timer may fire while another CPU makes the child.
    let server = given_listener().syn().syn_ack().wait(SEC);
    let again_ns = server.script.time_ns + 5 * US;
    let server =
        server.with(|facts| (facts.synack_retransmits, facts.last_retransmit_ns) = (1, Some(again_ns)));
    let record = server.final_ack().expect(Outcome::Established);
    assert_eq!((record.retransmits.syn_ack, record.retransmits.waited_ns), (Some(1), None));
}

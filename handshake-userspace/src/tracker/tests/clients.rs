//! Active opens that end well, and the numbers of their records.

use handshake_common::{event::Attach, tcp::TcpState};

use super::script::*;
use crate::model::{
    observation::{Act, Agreed, LeftSynSent},
    outcome::{EvidenceKind, Flag, Outcome, Role},
    process::SafeText,
};

#[test]
fn syn_answered_by_syn_ack_establishes() {
    let record = given_client().wait(8 * US).syn().wait(41 * MS).syn_ack().expect(Outcome::Established);
    assert_eq!(record.role, Role::Client);
    assert_eq!(record.latency_ns, Some(41 * MS + 2 * US));
    assert_eq!((record.rtt_ns, record.kernel_rtt_us), (Some(41 * MS), Some(40_999)));
    assert_eq!(record.phases.local_ns, Some(8 * US));
    assert_eq!(record.phases.wire_ns, Some(41 * MS));
    assert_eq!(record.phases.wake_ns, None);
    assert_eq!(record.retransmits.syn, Some(0));
    assert_eq!(record.retransmits.waited_ns, Some(0));
    assert_eq!(record.retransmits.syn_ack, None, "a client can't count the server's segments");
    assert_eq!(record.began_ns, START);
    assert_eq!(record.id, Some(0x0bad_f00d_dead_beef), "the smaller ISN first");
    assert_eq!(record.evidence.kind, EvidenceKind::StateEstablished);
    assert_eq!(record.evidence.syns, Some(1));
    assert_eq!(record.process.map(|process| process.pid), Some(1234));
    assert_eq!(record.options.map(|options| options.mss), Some(1460));
    assert_eq!(record.flags, vec![]);
    assert_eq!(record.attach, Some(Attach::Fentry));
    assert_eq!((record.key.boot, record.key.counter), (7, 1));
}

#[test]
fn what_was_asked_for_stands_beside_the_end_that_tcp_connected_to() {
    let asked = Some("10.96.0.1:80".parse().unwrap());
    let mut client = given_client().syn();
    client.script.observe(Act::AddressRewritten { asked });
    let record = client.wait(MS).syn_ack().expect(Outcome::Established);
    assert_eq!((record.asked, record.remote), (asked, ends(40_112).remote));
    let mut client = given_client().syn();
    client.script.observe(Act::AddressRewritten { asked: ends(40_112).remote });
    let record = client.wait(MS).syn_ack().expect(Outcome::Established);
    assert_eq!(record.asked, None, "it connected to just that");
}

#[test]
fn a_subflow_that_a_worker_of_the_kernel_opened_is_nobodys() {
    let opened_by = |comm: &[u8], mptcp: bool| {
        let client = given_client().with(|facts| {
            let worker = facts.process.as_mut().unwrap();
            (worker.uid, worker.comm) = (0, SafeText::from_kernel_bytes(comm));
        });
        let client = client.syn().wait(MS).with(|facts| facts.answered_ns = facts.syn_sent_ns);
        let client = client.with(|facts| facts.agreed = Agreed { mptcp, ..agreed() });
        client.leaves(TcpState::Established).expect(Outcome::Established).process.is_some()
    };
    assert!(!opened_by(b"kworker/1:2", true), "it opened it for somebody else");
    assert!(opened_by(b"kworker/1:2", false), "a file system of the network, perhaps");
    assert!(opened_by(b"curl", true));
}

#[test]
fn answer_to_another_connection_is_a_flag_and_no_round_trip() {
    let client = given_client().syn().wait(MS).with(|facts| facts.reset_sent = true);
    let record = client.syn_retransmit().wait(MS).syn_ack().expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::ResetSent]);
    assert_eq!((record.rtt_ns, record.retransmits.syn), (None, Some(1)));
}

#[test]
fn round_trip_of_a_syn_that_was_sent_again_is_the_kernels_alone() {
    let client = given_client().syn().wait(SEC).syn_retransmit().wait(41 * MS).syn_ack();
    let record = client.expect(Outcome::Established);
    assert_eq!((record.rtt_ns, record.kernel_rtt_us), (None, Some(40_999)));
}

#[test]
fn a_syn_said_to_have_been_sent_again_behind_the_answer_waited_for_nothing() {
    let crossed = given_client().syn().wait(MS).crossing_syn().wait(MS);
    let left_again_ns = crossed.script.time_ns;
    let client = given_client().syn().wait(MS).with(|facts| {
        (facts.syn_retransmits, facts.last_retransmit_ns) = (1, Some(left_again_ns));
    });
    let client = client.crossing_syn().wait(3 * MS).leaves_syn_received(TcpState::Established, 0);
    let record = client.expect(Outcome::Established);
    assert_eq!((record.latency_ns, record.phases.wire_ns), (Some(4 * MS), Some(MS)));
    assert_eq!((record.retransmits.syn, record.retransmits.waited_ns), (Some(1), None));
}

#[test]
fn return_of_connect_after_established_is_the_wake() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(MS).syn_ack();
    let record = client.wait(5 * US).returns(0).expect(Outcome::Established);
    assert_eq!(record.phases.wake_ns, Some(5 * US));
    assert_eq!(record.latency_ns, Some(MS + 2 * US), "the wake is no part of the handshake");
}

#[test]
fn return_of_connect_that_never_comes_is_waited_for_and_then_absent() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(MS).syn_ack();
    assert_eq!(client.clone().wait(100 * MS).records(), vec![], "still worth waiting");
    assert_eq!(client.expect(Outcome::Established).phases.wake_ns, None);
}

#[test]
fn return_that_no_hook_sees_is_not_waited_for() {
    assert_eq!(given_client().syn().wait(MS).syn_ack().records().len(), 1);
}

#[test]
fn connect_that_returned_before_the_syn_ack_is_non_blocking() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(US).returns(115);
    let client = client.wait(MS).syn_ack();
    assert_eq!(client.records().len(), 1, "no return to wait for");
    assert_eq!(client.expect(Outcome::Established).flags, vec![Flag::NonBlocking]);
}

#[test]
fn syn_lost_then_retransmitted_establishes_and_names_the_wait() {
    let client = given_client().syn().wait(SEC).syn_retransmit().wait(34 * MS).syn_ack();
    let record = client.expect(Outcome::Established);
    assert_eq!(record.retransmits.syn, Some(1));
    assert_eq!(record.retransmits.waited_ns, Some(SEC));
    assert_eq!(record.phases.wire_ns, Some(SEC + 34 * MS));
    assert_eq!(record.rtt_ns, None, "Karn: whose answer it was is unknown");
    assert_eq!(record.evidence.syns, Some(2));
}

#[test]
fn syn_retransmission_whose_event_was_lost_is_counted_by_the_end() {
    let client = given_client().syn().wait(SEC).with(|facts| {
        facts.syn_retransmits = 2;
        facts.last_retransmit_ns = Some(START + SEC / 2);
    });
    let record = client.syn_ack().expect(Outcome::Established);
    assert_eq!((record.retransmits.syn, record.retransmits.waited_ns), (Some(2), Some(SEC / 2)));
}

#[test]
fn syn_retransmission_that_the_end_does_not_count_is_counted_by_its_event() {
    let client = given_client().syn().wait(SEC).syn_retransmit().wait(MS);
    let client = client.with(|facts| (facts.syn_retransmits, facts.last_retransmit_ns) = (0, None));
    let record = client.syn_ack().expect(Outcome::Established);
    assert_eq!((record.retransmits.syn, record.retransmits.waited_ns), (Some(1), Some(SEC)));
}

#[test]
fn syn_whose_event_was_lost_still_makes_a_whole_record() {
    let record = given_client().wait(US).syn_unseen().wait(MS).syn_ack().expect(Outcome::Established);
    assert_eq!(record.latency_ns, Some(MS + 2 * US));
    assert_eq!(record.phases.local_ns, Some(US));
    assert_eq!(record.flags, vec![]);
}

#[test]
fn deferred_fast_open_has_no_local_phase_and_begins_with_its_syn() {
    let client = given_client().with(|facts| {
        facts.deferred = true;
        facts.fast_open = true;
        facts.call_returned = true;
    });
    let record = client.wait(3 * SEC).syn().wait(MS).syn_ack().expect(Outcome::Established);
    assert_eq!(record.phases.local_ns, None);
    assert_eq!(record.began_ns, START + 3 * SEC);
    assert_eq!(record.latency_ns, Some(MS + 2 * US));
    assert_eq!(record.flags, vec![Flag::FastOpen, Flag::NonBlocking]);
}

#[test]
fn what_a_syn_ack_says_of_fast_open_is_waited_for() {
    let client = given_client().with(|facts| {
        facts.fast_open = true;
        facts.cookie_follows = true;
    });
    let client = client.syn().wait(MS).syn_ack();
    for cookie in [Some(true), Some(false), None] {
        let told = client.clone().wait(US).fast_open_answered(cookie);
        let record = told.expect(Outcome::Established);
        assert_eq!(record.options.expect("it was established").fast_open_cookie, cookie);
    }
    // Its event was lost: the record comes all the same.
    let record = client.expect(Outcome::Established);
    assert_eq!(record.options.expect("it was established").fast_open_cookie, None);
}

#[test]
fn socket_in_syn_sent_at_our_start_is_seen_late() {
    for retransmits in [0, 1] {
        let mut client = given_client().without_generation().with(|facts| facts.called_ns = None);
        let seen = crate::model::observation::SocketSeen {
            ends: client.facts.ends,
            synack_ns: None,
            inode: Some(9),
            accept_queue: None,
            retransmits,
            state: TcpState::SynSent,
            queued: false,
        };
        client.script.observe(Act::SocketSeen(seen));
        let record = client.wait(MS).syn_ack().expect(Outcome::Established);
        assert_eq!(record.flags, vec![Flag::SeenLate]);
        assert_eq!(record.latency_ns, None, "nobody saw the SYN");
        assert_eq!(record.retransmits.syn, Some(u32::from(retransmits)));
        assert_eq!(record.retransmits.waited_ns, None, "nobody saw when it began to wait");
    }
}

#[test]
fn syn_ack_of_a_syn_before_our_time_is_seen_late() {
    let client = given_client().without_generation().with(|facts| facts.called_ns = None);
    let record = client.syn_ack().expect(Outcome::Established);
    assert_eq!((record.latency_ns, record.phases.wire_ns), (None, None));
    assert_eq!(record.flags, vec![Flag::SeenLate]);
    assert_eq!((record.retransmits.syn, record.retransmits.waited_ns), (None, None), "nobody counted");
}

#[test]
fn syn_for_which_the_kernel_side_had_no_room_is_not_seen_late() {
    let client = given_client().without_generation().with(|facts| {
        facts.called_ns = None;
        facts.syn_time_lost = true;
    });
    // Without a SYN (no free port) none has lost its time.
    let record = client.clone().application_closes().returns(99).expect(Outcome::LocalError);
    assert_eq!(record.flags, vec![]);
    let sent = client.clone().with(|facts| facts.agreed.local_isn = Some(7));
    let record = sent.application_closes().expect(Outcome::Cancelled);
    assert_eq!(record.flags, vec![Flag::SynTimeLost]);
    let record = client.syn_ack().expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::SynTimeLost]);
    assert_eq!((record.latency_ns, record.phases.wire_ns), (None, None));
    assert_eq!((record.retransmits.syn, record.retransmits.waited_ns), (None, None), "nobody counted");
}

#[test]
fn answer_that_is_later_than_the_end_is_no_wire_time() {
    let client = given_client().syn().wait(MS).with(|facts| facts.answered_ns = Some(START + SEC));
    let mut acts = client.syn_ack().script.acts;
    if let Act::LeftSynSent(left) = &mut acts[1].act {
        left.answered_ns = Some(START + SEC);
    }
    let record = given_client().wait(MS).scripted(|script| script.acts = acts).expect(Outcome::Established);
    assert!(record.latency_ns.is_some());
    assert_eq!((record.phases.wire_ns, record.rtt_ns), (None, None), "a part is no longer than the whole");
}

#[test]
fn stamps_that_run_backwards_are_absent_and_never_wrapped() {
    let client = given_client().with(|facts| facts.called_ns = Some(START + SEC)).syn().wait(MS);
    let client = client.syn_ack();
    let mut wrong = client.clone().script.acts;
    if let Act::LeftSynSent(left) = &mut wrong[1].act {
        left.syn_sent_ns = Some(START + 2 * SEC);
    }
    let record = client.scripted(|script| script.acts = wrong).expect(Outcome::Established);
    assert_eq!((record.latency_ns, record.rtt_ns, record.phases.wire_ns), (None, None, None));
}

#[test]
fn local_port_that_was_not_chosen_at_first_comes_from_the_end() {
    let chosen = ends(40_112);
    let client = given_client().with(|facts| facts.ends = ends(0)).syn().with(|facts| facts.ends = chosen);
    assert_eq!(client.wait(MS).syn_ack().expect(Outcome::Established).local, chosen.local);
}

#[test]
fn ports_that_close_has_zeroed_come_from_the_syn() {
    let client = given_client().syn().wait(MS).with(|facts| facts.ends = ends(0));
    assert_eq!(client.error(ETIMEDOUT).expect(Outcome::TimedOut).local, ends(40_112).local);
}

#[test]
fn common_tracepoints_leave_the_mode_to_the_other_hooks() {
    let client = given_client().syn().scripted(|script| script.attach = Attach::Common).wait(MS).syn_ack();
    assert_eq!(client.expect(Outcome::Established).attach, Some(Attach::Fentry));
    let common = given_client().scripted(|script| script.attach = Attach::Common).syn().wait(MS).syn_ack();
    assert_eq!(common.expect(Outcome::Established).attach, Some(Attach::Tracepoint));
    let mixed = given_client().syn().scripted(|script| script.attach = Attach::Kprobe).wait(MS).syn_ack();
    assert_eq!(mixed.expect(Outcome::Established).attach, None);
}

#[test]
fn own_and_v4_mapped_sockets_are_marked() {
    let client = given_client().with(|facts| {
        facts.own = true;
        facts.ends.v4_mapped = true;
    });
    let record = client.syn().wait(MS).syn_ack().expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::Own, Flag::V4Mapped]);
}

#[test]
fn time_that_contradicts_the_others_is_left_out() {
    let given = |change: fn(&mut LeftSynSent)| {
        let client = given_client().wait(MS).syn_unseen().wait(SEC).syn_retransmit().wait(MS).with(change);
        client.syn_ack().expect(Outcome::Established)
    };
    let record = given(|_| {});
    assert_eq!((record.began_ns, record.phases.local_ns), (START, Some(MS)));
    assert_eq!(record.retransmits.waited_ns, Some(SEC));
    let record = given(|facts| facts.called_ns = Some(START + 2 * MS));
    assert_eq!(
        (record.began_ns, record.phases.local_ns),
        (START + MS, None),
        "connect() comes before its SYN"
    );
    let record = given(|facts| facts.last_retransmit_ns = Some(START + 5 * SEC));
    assert_eq!(record.retransmits.waited_ns, None, "nobody waits for longer than it took");
}

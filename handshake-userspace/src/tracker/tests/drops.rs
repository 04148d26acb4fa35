//! SYNs and ACKs that this host dropped: for good, or before one was let in.

use std::{collections::BTreeMap, sync::Arc};

use super::script::*;
use crate::model::{
    observation::{Act, Input, Queues, Rejection, SegmentDropped, SocketKey},
    outcome::{EvidenceKind, Flag, Outcome},
};
use crate::tracker::Tracker;

const FULL: Queues = Queues { accept_length: 3, accept_limit: 2, syn_length: 0 };
const HALF_OPEN: Queues = Queues { accept_length: 0, accept_limit: 2, syn_length: 2 };

impl Server {
    /// The SYN that `syn` would send arrives and is dropped.
    pub(super) fn syn_dropped(self, queues: Queues) -> Self {
        let dropped = SegmentDropped {
            ends: self.facts.ends,
            listener: Some(LISTENER),
            isn: self.facts.agreed.remote_isn,
            queues: Some(queues),
            ..SegmentDropped::default()
        };
        self.dropped(dropped)
    }

    fn dropped(mut self, dropped: SegmentDropped) -> Self {
        let socket = SocketKey { address: dropped.listener.unwrap_or(0), generation_ns: None };
        self.script.observe_at(socket, Act::SegmentDropped(Box::new(dropped)));
        self
    }
}

#[test]
fn syns_at_a_full_accept_queue_are_one_handshake_that_was_dropped() {
    let server = given_listener().syn_dropped(FULL).wait(SEC).syn_dropped(FULL).wait(2 * SEC);
    let server = server.syn_dropped(FULL);
    assert_eq!(server.clone().wait(4 * SEC).records(), vec![], "the client may send another SYN");
    let record = server.wait(9 * SEC).expect(Outcome::SynDropped);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptQueueFull);
    assert_eq!(record.dropped.as_ref().map(|dropped| dropped.segments), Some(3));
    assert_eq!(record.retransmits.syn_seen, Some(3));
    assert_eq!(record.process.map(|process| process.pid), Some(80), "who listens");
    assert_eq!(record.accept_queue.map(|queue| (queue.length, queue.limit)), Some((3, 2)));
    assert_eq!((record.latency_ns, record.began_ns), (None, START));
}

#[test]
fn syns_that_are_dropped_at_doubling_gaps_are_one_handshake_however_long_the_gaps() {
    // RFC 6298 section 5.5, up to the 120 s of TCP_RTO_MAX; and as Linux begins since 6.5 (tcp_syn_linear_timeouts).
    for gaps in [&[1, 2, 4, 8, 16, 32, 64, 120][..], &[1, 1, 1, 1, 1, 2, 4, 8, 16, 32, 64], &[3, 6, 12, 24]] {
        let mut server = given_listener().syn_dropped(FULL);
        for gap in gaps {
            server = server.wait(gap * SEC);
            assert_eq!(server.records(), vec![], "a SYN after {gap} s: {gaps:?}");
            server = server.syn_dropped(FULL);
        }
        let record = server.wait(3 * gaps.last().unwrap_or(&0) * SEC).expect(Outcome::SynDropped);
        assert_eq!(record.dropped.map(|dropped| dropped.segments as usize), Some(gaps.len() + 1));
        assert_eq!(record.retransmits.syn_seen.map(|syns| syns as usize), Some(gaps.len() + 1));
    }
}

#[test]
fn an_attempt_that_ends_is_told_soon_after_a_short_gap_and_later_after_a_long_one() {
    let one = given_listener().syn_dropped(FULL);
    assert_eq!(one.clone().wait(4 * SEC).records(), vec![]);
    assert_eq!(one.clone().wait(5 * SEC).records().len(), 1, "nobody waits long for a single SYN of a flood");
    let two = one.wait(4 * SEC).syn_dropped(FULL);
    assert_eq!(two.clone().wait(17 * SEC).records(), vec![]);
    assert_eq!(two.wait(19 * SEC).records().len(), 1);
}

#[test]
fn syn_let_in_after_two_were_dropped_is_one_handshake_from_the_first_syn() {
    let server = given_listener().syn_dropped(FULL).wait(SEC).syn_dropped(FULL).wait(2 * SEC);
    let record = server.syn().syn_ack().wait(MS).final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.key.counter, 1, "it has the key that it had from the first SYN on");
    assert_eq!(record.began_ns, START);
    assert_eq!(record.latency_ns, Some(3 * SEC + MS + 3 * US), "what the client waited for");
    assert_eq!(record.retransmits.syn_seen, Some(3));
    assert_eq!(record.retransmits.waited_ns, Some(3 * SEC));
    assert_eq!(record.rtt_ns, Some(MS), "the SYN-ACK was sent once");
    assert_eq!(record.flags, vec![Flag::SynDropped]);
    assert_eq!(record.dropped.map(|dropped| dropped.cause), Some(EvidenceKind::AcceptQueueFull));
}

#[test]
fn another_isn_is_another_attempt() {
    let server = given_listener().syn_dropped(HALF_OPEN);
    let other = |facts: &mut crate::model::observation::PassiveOpen| facts.agreed.remote_isn = Some(1);
    let server = server.wait(MS).with(other).syn_dropped(HALF_OPEN).wait(10 * SEC);
    let records = server.records();
    assert_eq!(records.len(), 2);
    for record in records {
        assert_eq!(record.outcome, Outcome::SynDropped);
        assert_eq!(record.evidence.kind, EvidenceKind::SynQueueFull);
    }
    assert_eq!(server.counts().in_flight, 0);
}

#[test]
fn request_that_dies_after_a_dropped_syn_continues_it() {
    let server = given_listener().syn_dropped(FULL).wait(SEC).syn().syn_ack().wait(3 * SEC);
    let server = server.with(|facts| facts.timed_out = true);
    let record = server.request_dies().expect(Outcome::TimedOut);
    assert_eq!((record.began_ns, record.key.counter), (START, 1));
    assert_eq!(record.flags, vec![Flag::SynDropped]);
}

#[test]
fn a_reason_of_the_kernel_is_told_by_its_name() {
    let ends = given_listener().facts.ends;
    let dropped =
        SegmentDropped { ends, isn: Some(5), reason: Some(7), listener: None, ..SegmentDropped::default() };
    let names = BTreeMap::from([(7, Arc::from("NETFILTER_DROP"))]);
    let server = given_listener().scripted(|script| script.config.drop_reasons = Arc::new(names));
    let record = server.dropped(dropped).wait(6 * SEC).expect(Outcome::SynDropped);
    assert_eq!(record.evidence.kind, EvidenceKind::DropReason);
    let told = record.dropped.and_then(|dropped| dropped.reason);
    assert_eq!(told.as_deref(), Some("NETFILTER_DROP"));
}

/// A SYN whose remote end nobody may read.
fn of_nobody(isn: Option<u32>) -> SegmentDropped {
    let ends = crate::model::observation::Ends { remote: None, ..given_listener().facts.ends };
    SegmentDropped { ends, isn, listener: Some(LISTENER), queues: Some(FULL), ..SegmentDropped::default() }
}

#[test]
fn syns_of_nobody_are_one_attempt_by_their_isn_at_their_listener() {
    let server = given_listener().dropped(of_nobody(Some(5))).wait(SEC).dropped(of_nobody(Some(5)));
    let record = server.wait(6 * SEC).expect(Outcome::SynDropped);
    assert_eq!((record.remote, record.dropped.map(|dropped| dropped.segments)), (None, Some(2)));
    let two = given_listener().dropped(of_nobody(Some(5))).dropped(of_nobody(Some(6))).wait(6 * SEC);
    assert_eq!(two.records().len(), 2, "two clients");
    let unknown = given_listener().dropped(of_nobody(None)).dropped(of_nobody(None)).wait(6 * SEC);
    assert_eq!(unknown.records().len(), 2, "nothing says that they belong together");
}

#[test]
fn syn_of_nobody_that_is_sent_again_and_let_in_is_its_childs_first() {
    let server = given_listener();
    let isn = server.facts.agreed.remote_isn;
    let record = server
        .dropped(of_nobody(isn))
        .wait(SEC)
        .syn()
        .syn_ack()
        .wait(MS)
        .final_ack()
        .wait(MS)
        .accept()
        .expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::SynDropped]);
    assert!(record.latency_ns.is_some_and(|latency_ns| latency_ns > SEC) && record.remote.is_some());
}

#[test]
fn final_ack_at_a_full_accept_queue_leaves_the_client_alone_connected() {
    let server = given_listener().syn().syn_ack().wait(60 * SEC);
    let server = server.with(|facts| {
        facts.ack_dropped = true;
        facts.timed_out = true;
        facts.accept_queue_length = 3;
        facts.accept_queue_limit = Some(2);
    });
    let record = server.request_dies().expect(Outcome::AckDropped);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptQueueFull);
    assert_eq!(record.accept_queue.map(|queue| (queue.length, queue.limit)), Some((3, 2)));
    assert_eq!(record.flags, vec![Flag::AckDropped]);
}

#[test]
fn final_ack_dropped_and_let_in_later_is_established_and_marked() {
    let server = given_listener().syn().syn_ack().with(|facts| facts.ack_dropped = true).wait(SEC);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::AckDropped]);
    assert_eq!(record.rtt_ns, None);
}

#[test]
fn syn_dropped_on_its_way_out_explains_the_time_out() {
    let mut client = given_client().syn();
    let dropped = SegmentDropped { outgoing: true, reason: Some(7), ..SegmentDropped::default() };
    client.script.observe(Act::SegmentDropped(Box::new(dropped.clone())));
    client = client.wait(SEC).syn_retransmit();
    client.script.observe(Act::SegmentDropped(Box::new(dropped)));
    let record = client.wait(2 * SEC).error(ETIMEDOUT).expect(Outcome::TimedOut);
    assert_eq!(record.dropped.map(|dropped| (dropped.segments, dropped.reason)), Some((2, None)));
    assert_eq!(record.flags, vec![Flag::SynDropped]);
}

/// The final ACK that `final_ack` would send carries a cookie and is dropped.
fn dropped_ack_with_a_cookie() -> SegmentDropped {
    let facts = given_listener().facts;
    SegmentDropped {
        ends: facts.ends,
        listener: Some(LISTENER),
        isn: facts.agreed.remote_isn,
        cookie_ack: true,
        queues: Some(FULL),
        ..SegmentDropped::default()
    }
}

#[test]
fn ack_with_a_cookie_that_was_dropped_for_good_leaves_only_the_client_connected() {
    let record =
        given_listener().dropped(dropped_ack_with_a_cookie()).wait(5 * SEC).expect(Outcome::AckDropped);
    assert_eq!(record.flags, vec![Flag::SynCookie, Flag::AckDropped]);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptQueueFull);
    assert_eq!(record.retransmits.syn_seen, None, "it is no SYN");
}

#[test]
fn ack_with_a_cookie_that_was_dropped_is_no_syn_of_the_child_that_follows() {
    let dropped = dropped_ack_with_a_cookie();
    let server = given_listener().with(|facts| facts.syn_cookie = true).dropped(dropped).wait(SEC);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::SynCookie, Flag::AckDropped]);
    assert_eq!((record.latency_ns, record.retransmits.syn_seen), (None, None), "no SYN was seen");
    assert_eq!(record.key.counter, 1, "and yet it is the same handshake");
}

#[test]
fn syn_dropped_after_one_was_let_in_does_not_move_the_beginning() {
    let server = given_listener().syn().syn_ack().wait(SEC).syn_dropped(FULL).wait(MS);
    let record = server.final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.began_ns, START);
    assert_eq!(record.latency_ns, Some(SEC + MS + 3 * US));
    assert_eq!(record.retransmits.waited_ns, Some(0), "nothing was waited for before the first SYN");
}

#[test]
fn syns_seen_are_not_counted_where_no_hook_counts_them() {
    let server = given_listener().syn_dropped(FULL).wait(SEC).syn().syn_ack().wait(MS);
    let record =
        server.with(|facts| facts.syns_seen = None).final_ack().accept().expect(Outcome::Established);
    assert_eq!(record.retransmits.syn_seen, None);
    assert_eq!(record.dropped.map(|dropped| dropped.segments), Some(1));
}

#[test]
fn empty_syn_queue_of_a_listener_without_a_backlog_is_not_full() {
    let queues = Queues { accept_length: 0, accept_limit: 0, syn_length: 0 };
    let record = given_listener().syn_dropped(queues).wait(6 * SEC).expect(Outcome::SynDropped);
    assert_eq!(record.evidence.kind, EvidenceKind::NoSynAckMade);
}

/// A SYN to port 80 that a firewall dropped before any listener saw it.
fn at_the_firewall() -> SegmentDropped {
    SegmentDropped {
        ends: given_listener().facts.ends,
        isn: Some(5),
        reason: Some(7),
        ..SegmentDropped::default()
    }
}

#[test]
fn syn_that_the_firewall_answers_was_refused_by_this_host() {
    for (answer, evidence) in
        [(Rejection::Reset, EvidenceKind::ResetSent), (Rejection::Icmp, EvidenceKind::IcmpSent)]
    {
        let rejected = SegmentDropped { answer: Some(answer), reason: None, ..at_the_firewall() };
        let server = given_listener().dropped(rejected.clone()).wait(SEC).dropped(rejected);
        let record = server.wait(6 * SEC).expect(Outcome::Refused);
        assert_eq!(record.evidence.kind, evidence);
        assert_eq!(record.dropped.map(|dropped| (dropped.segments, dropped.cause)), Some((2, evidence)));
        assert_eq!(record.process.map(|process| process.pid), Some(80), "who listens there");
    }
}

#[test]
fn syn_dropped_before_routing_is_a_handshake_of_who_listens_for_it_or_of_nobody() {
    let unrouted = SegmentDropped { unrouted: true, ..at_the_firewall() };
    let here = given_listener().dropped(unrouted.clone()).wait(6 * SEC).expect(Outcome::SynDropped);
    assert_eq!(here.process.map(|process| process.pid), Some(80));
    let mut elsewhere = unrouted;
    elsewhere.ends.local = elsewhere.ends.local.map(|local| (local.ip(), local.port() + 1).into());
    let server = given_listener().dropped(elsewhere);
    assert_eq!(server.wait(6 * SEC).records(), vec![], "it was to be forwarded, for all that is known");
}

#[test]
fn final_ack_at_a_full_accept_queue_that_is_answered_by_a_rst_leaves_nobody_connected() {
    let server = given_listener().syn().syn_ack().wait(SEC).with(|facts| {
        facts.reset_sent = true;
        facts.accept_queue_length = 3;
        facts.accept_queue_limit = Some(2);
    });
    let record = server.request_dies().expect(Outcome::Reset);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptQueueFull);
    assert_eq!(record.accept_queue.map(|queue| (queue.length, queue.limit)), Some((3, 2)));
    assert_eq!(record.flags, vec![]);
}

#[test]
fn request_whose_client_begins_anew_inside_its_window_is_reset_by_this_host() {
    let server = given_listener().syn().syn_ack().wait(SEC).with(|facts| {
        facts.reset_sent = true;
        facts.other_syn = true;
    });
    let record = server.request_dies().expect(Outcome::Reset);
    assert_eq!((record.evidence.kind, record.accept_queue), (EvidenceKind::ResetSent, None));
}

#[test]
fn subflow_that_joins_waits_for_no_accept() {
    let server = given_listener().syn().syn_ack().wait(MS).with(|facts| {
        facts.mptcp_join = true;
        facts.accept_is_seen = false;
    });
    let record = server.final_ack().wait(SEC).expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::Mptcp, Flag::MptcpJoin]);
    assert_eq!(record.phases.accept_ns, None);
}

#[test]
fn first_syn_that_comes_late_is_still_the_first() {
    let server = given_listener().syn_dropped(FULL).wait(SEC).syn_dropped(FULL);
    let acts = server.script.acts.clone();
    let mut tracker = Tracker::new(config());
    let mut out = vec![];
    let later = [&acts[0], &acts[2]].map(|act| Input::Observation(Box::new(act.clone())));
    let inputs = later.into_iter().chain([
        Input::Tick { now_ns: START + 2 * SEC },
        Input::Observation(Box::new(acts[1].clone())),
        Input::End { now_ns: START + 3 * SEC },
    ]);
    for input in inputs {
        tracker.observe(input, &mut out);
    }
    assert_eq!((handshakes(&out)[0].began_ns, tracker.counts().late), (START, 1));
}

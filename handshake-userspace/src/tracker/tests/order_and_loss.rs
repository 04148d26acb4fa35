//! Order of arrival, addresses that are used again, and lost events.

use super::super::Tracker;
use super::script::*;
use crate::model::{
    health::{Health, TrackerCounts},
    observation::{Act, Input},
    outcome::{EvidenceKind, Flag, Outcome},
};

#[test]
fn events_out_of_order_within_the_window_make_the_same_record() {
    let client = given_client().with(|facts| facts.return_is_seen = true).syn().wait(MS).syn_ack();
    let client = client.wait(US).returns(0).wait(SEC);
    let reversed = client.clone().scripted(|script| script.acts.reverse());
    assert_eq!(client.updates(), reversed.updates());
    assert_eq!(reversed.counts().late, 0);
    assert_eq!(reversed.counts().unmatched, 0);
}

#[test]
fn nothing_is_processed_before_the_window_has_passed() {
    let client = given_client().syn().wait(MS).syn_ack();
    let mut tracker = Tracker::new(config());
    let mut out = vec![];
    for act in client.script.acts {
        tracker.observe(Input::Observation(Box::new(act)), &mut out);
    }
    tracker.observe(Input::Tick { now_ns: client.script.time_ns + 40 * MS }, &mut out);
    assert_eq!((out.len(), tracker.counts().seen), (0, 0));
    tracker.observe(Input::Tick { now_ns: client.script.time_ns + 51 * MS }, &mut out);
    assert_eq!(out.len(), 1);
}

#[test]
fn event_that_comes_after_the_window_is_processed_and_counted() {
    let client = given_client().syn().wait(MS).syn_ack();
    let mut tracker = Tracker::new(config());
    let mut out = vec![];
    tracker.observe(Input::Tick { now_ns: START + SEC }, &mut out);
    for act in client.script.acts {
        tracker.observe(Input::Observation(Box::new(act)), &mut out);
    }
    assert_eq!(handshakes(&out)[0].outcome, Outcome::Established);
    assert_eq!(tracker.counts().late, 2);
}

#[test]
fn late_event_is_no_loss() {
    let tracker = TrackerCounts { late: 3, ..TrackerCounts::default() };
    let health = Health { tracker, ..Health::default() };
    assert_eq!((health.lost(), health.lost_before_the_tracker()), (0, 0));
}

#[test]
fn late_beginning_of_an_ended_handshake_is_no_second_one() {
    let client = given_client().syn().wait(MS).syn_ack().wait(SEC);
    let server = given_listener().syn().syn_ack().wait(MS).final_ack().accept().wait(SEC);
    for script in [client.script, server.script] {
        let (beginnings, rest): (Vec<_>, Vec<_>) = script
            .acts
            .into_iter()
            .partition(|observation| matches!(observation.act, Act::SynSent(_) | Act::ChildQueued(_)));
        let mut tracker = Tracker::new(config());
        let mut out = vec![];
        for act in rest.into_iter().map(|act| Input::Observation(Box::new(act))) {
            tracker.observe(act, &mut out);
        }
        tracker.observe(Input::Tick { now_ns: START + SEC }, &mut out);
        assert_eq!((handshakes(&out).len(), beginnings.len()), (1, 1));
        let late = beginnings.into_iter().map(|act| Input::Observation(Box::new(act)));
        late.for_each(|act| tracker.observe(act, &mut out));
        tracker.observe(Input::End { now_ns: START + 2 * SEC }, &mut out);
        assert_eq!((handshakes(&out).len(), tracker.counts().seen), (1, 1), "it was told already");
        assert_eq!((tracker.counts().late, tracker.counts().unmatched), (1, 1));
    }
}

#[test]
fn queueing_that_comes_after_its_accept_joins_it() {
    let server = given_listener().syn().syn_ack().wait(MS).final_ack().wait(US).accept();
    let mut tracker = Tracker::new(config());
    let mut out = vec![];
    let mut acts = server.script.acts;
    let accept = acts.remove(3);
    tracker.observe(Input::Observation(Box::new(accept)), &mut out);
    tracker.observe(Input::Tick { now_ns: START + 150 * MS }, &mut out);
    for act in acts {
        tracker.observe(Input::Observation(Box::new(act)), &mut out);
    }
    let records = handshakes(&out);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].latency_ns, Some(MS + 3 * US));
}

#[test]
fn address_reused_within_a_millisecond_makes_two_records() {
    let client = given_client().syn().wait(100 * US).reset().wait(200 * US).next_generation();
    let client = client.with(|facts| (facts.reset_received, facts.called_ns) = (false, Some(START + MS)));
    let records = client.wait(100 * US).syn().wait(100 * US).syn_ack().wait(SEC).records();
    let outcomes: Vec<_> = records.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, vec![Outcome::Refused, Outcome::Established]);
}

#[test]
fn new_syn_at_an_open_address_ends_the_old_life_as_incomplete() {
    let client = given_client().without_generation().syn().wait(MS).syn().wait(MS).syn_ack();
    let records = client.records();
    assert_eq!(records[0].outcome, Outcome::Incomplete);
    assert_eq!(records[0].evidence.kind, EvidenceKind::NothingMoreSeen);
    assert_eq!(records[1].outcome, Outcome::Established);
}

#[test]
fn syn_told_twice_of_one_generation_is_one_handshake() {
    given_client().syn().wait(US).syn().wait(MS).syn_ack().expect(Outcome::Established);
}

#[test]
fn late_event_of_an_earlier_life_leaves_the_later_one_alone() {
    let earlier = given_client().wait(10 * MS).syn_unseen().syn_ack();
    let mut client = given_client().wait(5 * MS).next_generation().syn();
    client.script.acts.extend(earlier.script.acts);
    client.script.time_ns += 20 * MS;
    let client = client.syn_ack().wait(SEC);
    let outcomes: Vec<_> = client.records().iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, vec![Outcome::Established, Outcome::Established]);
}

#[test]
fn child_at_the_address_of_a_queued_one_ends_its_wait() {
    let server = given_listener().syn().syn_ack().wait(MS).final_ack().wait(2 * SEC).next_generation();
    let server = server.with(|facts| facts.agreed.remote_isn = Some(1)).final_ack().accept();
    let updates = server.updates();
    assert_eq!(handshakes(&updates).len(), 2);
    assert_eq!(accepts(&updates).len(), 1);
    assert_eq!(accepts(&updates)[0].key, handshakes(&updates)[0].key);
}

#[test]
fn loss_while_a_handshake_is_open_is_marked_and_makes_no_failure() {
    let client = given_client().syn().wait(MS).scripted(|script| script.lost_before = 3).syn_ack();
    assert_eq!(client.expect(Outcome::Established).flags, vec![Flag::EventsLost]);
}

#[test]
fn loss_before_a_handshake_began_does_not_touch_it() {
    let mut client = given_client().scripted(|script| script.lost_before = 3);
    client.script.observe(Act::ConnectReturned { errno: 0 });
    let client = client.wait(MS).with(|facts| facts.called_ns = Some(START + MS)).syn().wait(MS).syn_ack();
    assert_eq!(client.expect(Outcome::Established).flags, vec![]);
}

#[test]
fn loss_on_another_cpu_touches_it_too() {
    // The end of a handshake may run on any CPU.
    let mut client = given_client().syn().wait(MS);
    client.script.cpu = 5;
    client.script.lost_before = 1;
    let other = crate::model::observation::SocketKey { address: 0x9, generation_ns: None };
    client.script.observe_at(other, Act::ConnectReturned { errno: 0 });
    client.script.cpu = 0;
    client.script.lost_before = 0;
    assert_eq!(client.wait(MS).syn_ack().expect(Outcome::Established).flags, vec![Flag::EventsLost]);
}

#[test]
fn handshake_whose_end_was_lost_is_incomplete_by_loss() {
    let client = given_client().syn().wait(MS).scripted(|script| script.lost_before = 1);
    let mut client = client.next_generation();
    let other = crate::model::observation::SocketKey { address: 0x9, generation_ns: None };
    client.script.observe_at(other, Act::ConnectReturned { errno: 0 });
    let record = client.wait(601 * SEC).expect(Outcome::Incomplete);
    assert_eq!(record.evidence.kind, EvidenceKind::EventsLost);
    assert_eq!(record.flags, vec![Flag::EventsLost]);
}

#[test]
fn accept_whose_queueing_was_lost_is_marked_by_the_loss() {
    let server = given_listener().final_ack_unseen().wait(MS);
    let server = server.scripted(|script| script.lost_before = 2).accept();
    assert_eq!(server.expect(Outcome::Established).flags, vec![Flag::EventsLost]);
}

#[test]
fn retry_that_establishes_after_a_failed_call_is_a_handshake_of_its_own() {
    let client = given_client().without_generation().fails(101).wait(MS);
    let client = client.with(|facts| facts.called_ns = Some(START + MS)).syn_unseen().wait(MS).syn_ack();
    let outcomes: Vec<_> = client.wait(SEC).records().iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, vec![Outcome::NetUnreachable, Outcome::Established]);
}

#[test]
fn child_whose_established_event_was_lost_is_not_told_again_by_a_late_accept() {
    let server = given_listener().syn().syn_ack().child_queued().wait(700 * SEC).accept();
    let updates = server.wait(SEC).updates();
    assert_eq!((handshakes(&updates).len(), accepts(&updates).len()), (1, 1));
    assert_eq!(handshakes(&updates)[0].outcome, Outcome::Incomplete);
}

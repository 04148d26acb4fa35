//! From queued to accept(): the second that a record waits, the record that follows, and RST in the queue.

use super::script::*;
use crate::model::{
    observation::{Accepted, Act},
    outcome::{AcceptOutcome, EvidenceKind, Flag, Outcome},
};

fn queued_child() -> Server {
    given_listener().syn().syn_ack().wait(MS).final_ack()
}

#[test]
fn child_that_waits_for_more_than_a_second_gets_two_records() {
    let server = queued_child().wait(1_500 * MS);
    let updates = server.updates();
    let record = &handshakes(&updates)[0];
    assert_eq!((record.outcome, record.phases.accept_ns), (Outcome::Established, None));
    assert_eq!(record.process.as_ref().map(|process| process.pid), Some(80), "who listens");
    assert_eq!(accepts(&updates), vec![]);
    assert_eq!((server.counts().queued, server.counts().in_flight), (1, 0));

    let server = server.wait(3600 * SEC).accept();
    let updates = server.updates();
    let accept = accepts(&updates).remove(0);
    assert_eq!(handshakes(&updates).len(), 1);
    assert_eq!((accept.key, accept.id), (record.key, record.id));
    assert_eq!(accept.outcome, AcceptOutcome::Accepted);
    assert_eq!(accept.wait_ns, Some(3601 * SEC + 500 * MS + 2 * US));
    assert_eq!(accept.process.map(|process| process.pid), Some(81));
    assert_eq!(server.counts().queued, 0);
}

#[test]
fn child_accepted_within_the_second_gets_one_record() {
    let updates = queued_child().wait(900 * MS).accept().wait(5 * SEC).updates();
    assert_eq!((handshakes(&updates).len(), accepts(&updates).len()), (1, 0));
}

#[test]
fn call_of_accept_tells_a_late_application_from_a_late_wake_up() {
    let server = queued_child().wait(300 * MS);
    let called_ns = server.script.time_ns - 50 * US;
    let late = server.clone().accept_called_at(Some(called_ns)).expect(Outcome::Established);
    assert_eq!(late.phases.accept_ns, Some(300 * MS + 2 * US));
    assert_eq!(late.phases.accept_call_ns, Some(300 * MS + 2 * US - 50 * US));
    let waited = server.clone().accept_called_at(Some(START)).expect(Outcome::Established);
    assert_eq!(waited.phases.accept_call_ns, Some(0), "its thread waited before the child came");
    let unseen = server.clone().accept().expect(Outcome::Established);
    assert_eq!(unseen.phases.accept_call_ns, None);
    let after_it_returned = server.script.time_ns + MS;
    let wrong = server.with(|facts| facts.queued_ns = Some(after_it_returned)).accept_called_at(Some(START));
    let phases = wrong.expect(Outcome::Established).phases;
    assert_eq!((phases.accept_ns, phases.accept_call_ns), (None, None), "a time that is wrong is no time");
}

#[test]
fn call_of_accept_is_told_by_the_accept_record_too() {
    let server = queued_child().wait(5 * SEC);
    let called_ns = server.script.time_ns - 50 * US;
    let updates = server.accept_called_at(Some(called_ns)).updates();
    assert_eq!(accepts(&updates)[0].call_ns, Some(5 * SEC + 2 * US - 50 * US));
}

#[test]
fn rst_while_queued_stays_established() {
    let server = queued_child().wait(US).reset_while_queued().wait(MS).accept();
    let record = server.expect(Outcome::Established);
    assert_eq!(record.flags, vec![Flag::ResetInQueue]);
    assert_eq!(record.phases.accept_ns, Some(MS + 3 * US));
}

#[test]
fn rst_while_queued_for_long_is_told_by_the_accept_record() {
    let server = queued_child().wait(1_200 * MS).reset_while_queued().wait(MS).accept();
    let updates = server.updates();
    assert_eq!(handshakes(&updates)[0].outcome, Outcome::Established);
    assert_eq!(accepts(&updates)[0].outcome, AcceptOutcome::ResetInQueue);
}

#[test]
fn listener_closed_with_a_queued_child_is_never_accepted() {
    let server = queued_child().wait(10 * MS).listener_closes().wait(US).destroyed();
    let record = server.expect(Outcome::NeverAccepted);
    assert_eq!(record.evidence.kind, EvidenceKind::ChildDestroyed);
    assert_eq!(record.process.map(|process| process.pid), Some(80), "its owner is known though it closed");
    assert_eq!(record.latency_ns, Some(MS + 3 * US), "the handshake itself was good");
}

#[test]
fn child_reset_and_destroyed_in_the_queue_is_never_accepted_and_marked() {
    let server = queued_child().reset_while_queued().wait(MS).destroyed();
    assert_eq!(server.expect(Outcome::NeverAccepted).flags, vec![Flag::ResetInQueue]);
}

#[test]
fn child_destroyed_after_its_record_is_told_by_the_accept_record() {
    let server = queued_child().wait(2 * SEC).destroyed();
    let updates = server.updates();
    assert_eq!(handshakes(&updates)[0].outcome, Outcome::Established);
    let accept = &accepts(&updates)[0];
    assert_eq!((accept.outcome, accept.wait_ns), (AcceptOutcome::NeverAccepted, Some(2 * SEC + 2 * US)));
}

#[test]
fn hooks_that_do_not_see_accept_are_not_waited_for() {
    let server = given_listener().with(|facts| facts.accept_is_seen = false).syn().syn_ack().wait(MS);
    let server = server.final_ack();
    assert_eq!(server.records().len(), 1);
    assert_eq!(server.counts().queued, 0);
}

#[test]
fn child_queued_before_our_time_is_established_and_seen_late() {
    let mut server = given_listener().seen_queued_at_start().wait(SEC);
    server.facts.queued_ns = None;
    let record = server.accept().expect(Outcome::Established);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptReturned);
    assert_eq!(record.flags, vec![Flag::SeenLate]);
    assert_eq!((record.latency_ns, record.phases.accept_ns), (None, None));
    assert_eq!(record.process.map(|process| process.pid), Some(81));
}

#[test]
fn new_child_at_the_address_of_one_that_was_there_is_not_seen_late() {
    // The earlier one died unaccepted, and that event was lost.
    let server = given_listener().seen_queued_at_start().wait(SEC).syn().syn_ack().wait(MS);
    for server in [server.clone().final_ack(), server.final_ack_without_queueing()] {
        let record = server.accept().expect(Outcome::Established);
        assert_eq!(record.flags, vec![]);
    }
}

#[test]
fn child_of_which_only_accept_was_seen_is_one_record() {
    let record = given_listener().final_ack_unseen().wait(MS).accept().expect(Outcome::Established);
    assert_eq!(record.evidence.kind, EvidenceKind::AcceptReturned);
    assert_eq!(record.phases.accept_ns, Some(MS));
    assert_eq!(record.flags, vec![], "nothing says that anything was lost");
}

/// That accept() took it shows only by what comes later: nobody saw who called, or when.
fn accepted_unseen(mut server: Server) -> Server {
    server.script.observe(Act::Accepted(Accepted {
        ends: server.facts.ends,
        process: None,
        queued_ns: server.facts.queued_ns,
        waiting_since_ns: None,
        reset_ns: server.reset_ns,
        before_established: false,
        call_not_seen: true,
    }));
    server
}

#[test]
fn accept_that_nobody_saw_is_told_without_time_and_acceptor_as_soon_as_it_shows() {
    let record = accepted_unseen(queued_child().wait(10 * MS)).expect(Outcome::Established);
    assert_eq!(record.evidence.kind, EvidenceKind::StateEstablished);
    assert_eq!((record.phases.accept_ns, record.flags), (None, vec![]));
    assert_eq!(record.process.map(|process| process.pid), Some(80), "who listens");

    let server = accepted_unseen(queued_child().wait(3600 * SEC));
    let updates = server.updates();
    let accept = accepts(&updates).remove(0);
    assert_eq!(accept.key, handshakes(&updates)[0].key);
    assert_eq!((accept.outcome, accept.wait_ns, accept.process), (AcceptOutcome::Accepted, None, None));
    assert_eq!(server.counts().queued, 0);

    let reset = accepted_unseen(queued_child().wait(2 * SEC).reset_while_queued());
    let accept = accepts(&reset.updates()).remove(0);
    assert_eq!((accept.outcome, accept.wait_ns), (AcceptOutcome::ResetInQueue, None));
}

#[test]
fn child_of_which_only_the_destruction_was_seen_is_never_accepted() {
    given_listener().final_ack_unseen().wait(MS).destroyed().expect(Outcome::NeverAccepted);
}

#[test]
fn twenty_thousand_connections_make_twenty_thousand_records() {
    let mut acts = vec![];
    for number in 0..20_000_u64 {
        let late = number * 10 * US;
        let mut server = given_listener_at(0x10_0000 + number % 100 * 0x100).wait(late).next_generation();
        server = server.syn().syn_ack().wait(MS);
        server = match number % 4 {
            0 => server.final_ack(),
            1 => server.final_ack_without_queueing(),
            2 => server.child_queued(),
            _ => server.final_ack_unseen(),
        };
        acts.extend(server.wait(5 * US).accept().script.acts);
    }
    acts.sort_by_key(|act| act.time_ns);
    let server = given_listener().scripted(|script| script.acts = acts).wait(5 * SEC);
    let keys: std::collections::HashSet<_> = server.records().iter().map(|record| record.key).collect();
    assert_eq!(keys.len(), 20_000);
    assert_eq!(server.counts().established, 20_000);
}

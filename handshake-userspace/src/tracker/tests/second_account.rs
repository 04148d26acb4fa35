//! The kernel's own counters beside the tracker's account: what is counted, when, and what is left out.
//!
//! What a newcomer would get wrong: each script has a clock of its own that begins at `START`; the first reading is
//! taken before it and the last one after it, unless a test says otherwise.

use std::collections::BTreeMap;

use handshake_common::tcp::TcpState;
use proptest::prelude::*;

use super::super::Tracker;
use super::script::*;
use crate::model::{
    mib::{Compared, MibReading, MibValues, NamespaceMib, NotCompared, Reconciliation, Tally},
    observation::*,
    outcome::Outcome,
};

const NETNS: u32 = 4_026_531_840;
const IDENTITY: u64 = 1031;
const BEFORE: u64 = START - SEC;
const AFTER: u64 = START + 1_000 * SEC;

/// Active opens, passive opens, failures and resets of requests, after some history.
fn values([active, passive, fails, resets]: [u64; 4]) -> MibValues {
    [
        Some(100 + active),
        Some(50 + passive),
        Some(9 + fails),
        Some(4 + resets),
        Some(1),
        Some(1),
        Some(IDENTITY),
    ]
}

fn reading(time_ns: u64, namespaces: impl IntoIterator<Item = (u32, MibValues)>) -> Input {
    let namespaces: BTreeMap<u32, NamespaceMib> = namespaces
        .into_iter()
        .map(|(netns, values)| (netns, NamespaceMib { from_ns: time_ns, to_ns: time_ns + US, values }))
        .collect();
    Input::Mib(Box::new(MibReading { requests_are_seen: true, namespaces, ..MibReading::default() }))
}

fn acts(acts: &[Observation]) -> Vec<Input> {
    acts.iter().map(|act| Input::Observation(Box::new(act.clone()))).collect()
}

fn reconciled(inputs: impl IntoIterator<Item = Input>) -> Reconciliation {
    let mut tracker = Tracker::new(config());
    let mut out = vec![];
    for input in inputs {
        tracker.observe(input, &mut out);
    }
    tracker.reconciliation().expect("the counters were read").clone()
}

/// The script between two readings of which the second counts as much more.
fn against(kernel: [u64; 4], script: &[Observation]) -> Reconciliation {
    let begin = reading(BEFORE, [(NETNS, values([0; 4]))]);
    let end = [reading(AFTER, [(NETNS, values(kernel))]), Input::End { now_ns: AFTER + SEC }];
    reconciled([begin].into_iter().chain(acts(script)).chain(end))
}

#[track_caller]
fn expect_agreement(kernel: [u64; 4], script: &[Observation]) {
    let compared = against(kernel, script);
    assert_eq!(compared.agrees(), Some(true), "{compared:?}");
    assert_eq!(compared.namespaces, 1);
    assert_eq!(compared.compared().map(|(_, row)| row.kernel).collect::<Vec<_>>().len(), 4);
}

#[test]
fn each_kind_of_handshake_is_what_the_kernel_counts() {
    let client = given_client;
    let server = || given_listener().syn().wait(MS).syn_ack().wait(MS);
    expect_agreement([1, 0, 0, 0], &client().syn().wait(MS).syn_ack().script.acts);
    expect_agreement([1, 0, 1, 0], &client().syn().wait(MS).reset().script.acts);
    expect_agreement([1, 0, 1, 0], &client().syn().wait(SEC).error(ETIMEDOUT).script.acts);
    // close() is no failure for the kernel, and without a SYN there was no open.
    expect_agreement([1, 0, 0, 0], &client().syn().wait(MS).application_closes().script.acts);
    expect_agreement([0, 0, 0, 0], &client().fails(101).script.acts);
    expect_agreement([0, 1, 0, 0], &server().final_ack().wait(MS).accept().script.acts);
    expect_agreement([0, 1, 0, 0], &server().final_ack().wait(MS).destroyed().script.acts);
    let reset = |facts: &mut PassiveOpen| facts.reset_received = true;
    expect_agreement([0, 0, 1, 1], &server().with(reset).request_dies().script.acts);
    let timed_out = |facts: &mut PassiveOpen| facts.timed_out = true;
    expect_agreement([0, 0, 0, 0], &server().with(timed_out).request_dies().script.acts);
    // Still open when we stop.
    expect_agreement([1, 0, 0, 0], &client().syn().script.acts);
}

#[test]
fn an_open_for_which_the_kernel_side_had_no_room_is_counted_at_its_end() {
    let unknown = |syn_time_lost: bool| {
        given_client().without_generation().with(|facts| {
            facts.called_ns = None;
            facts.syn_time_lost = syn_time_lost;
            facts.agreed.local_isn = Some(7);
        })
    };
    expect_agreement([1, 0, 0, 0], &unknown(true).syn_ack().script.acts);
    expect_agreement([1, 0, 0, 0], &unknown(true).application_closes().script.acts);
    // One that was there before us was counted before us.
    expect_agreement([0, 0, 0, 0], &unknown(false).syn_ack().script.acts);
}

#[test]
fn a_child_that_lost_the_race_for_its_request_was_made_all_the_same() {
    let undone = Act::ChildUndone { ends: ends(443) };
    let request = || given_listener().syn().wait(MS).syn_ack().wait(MS);
    // A RST ends the request while the ACK makes a child of it on another CPU: one record, of a reset.
    let reset = request().with(|facts| facts.reset_received = true).request_dies();
    let mut raced = reset.clone();
    raced.script.observe(undone.clone());
    expect_agreement([0, 1, 1, 1], &raced.script.acts);
    raced.expect(Outcome::Reset);
    // The ACK makes a child though a RST came first: one record, established, and a failure that was none.
    let survived = reset.child_queued().wait(US).established().wait(MS).accept();
    expect_agreement([0, 1, 1, 0], &survived.script.acts);
    let record = survived.clone().expect(Outcome::Established);
    assert_eq!((record.flags.as_slice(), record.latency_ns.is_some()), ([].as_slice(), true));
    // Before 5.13 the kernel counts the reset too, and the RST may be told after the child.
    expect_agreement([0, 1, 1, 1], &survived.script.acts);
    let child_first = request().child_queued().with(|facts| facts.reset_received = true).request_dies();
    expect_agreement([0, 1, 1, 0], &child_first.wait(US).established().wait(MS).accept().script.acts);
    // The ACK and a FIN make a child each.
    let mut two = request().child_queued();
    two.script.observe(undone);
    expect_agreement([0, 2, 0, 0], &two.wait(US).established().wait(MS).accept().script.acts);
}

#[test]
fn an_open_whose_syn_event_was_lost_is_counted_at_its_end() {
    let script = given_client().syn().wait(MS).syn_ack().script.acts;
    expect_agreement([1, 0, 0, 0], &script[1..]);
    let script = given_listener().syn().wait(MS).syn_ack().wait(MS).final_ack().wait(MS).accept().script.acts;
    for lost in 0..script.len() {
        let mut rest = script.clone();
        rest.remove(lost);
        expect_agreement([0, 1, 0, 0], &rest);
    }
}

#[test]
fn a_child_of_which_only_accept_is_seen_may_be_older_than_we_are_or_withheld_from_us() {
    let accepted = given_listener().accept().script.acts;
    expect_agreement([0, 1, 0, 0], &accepted);
    expect_agreement([0, 0, 0, 0], &accepted);
    assert_eq!(against([0, 2, 0, 0], &accepted).agrees(), Some(false), "it is one");
}

#[test]
fn a_socket_under_repair_sent_no_syn() {
    let script = given_client().syn().with(|facts| facts.agreed.repair = true).syn_ack();
    let mut acts = script.script.acts;
    let Some(Act::LeftSynSent(end)) = acts.last_mut().map(|last| &mut last.act) else { panic!("its end") };
    end.agreed.repair = true;
    expect_agreement([0, 0, 0, 0], &acts);
}

#[test]
fn a_simultaneous_open_is_one_active_open() {
    let crossing = || given_client().syn().wait(MS).crossing_syn().wait(MS);
    expect_agreement([1, 0, 0, 0], &crossing().leaves_syn_received(TcpState::Established, 0).script.acts);
    expect_agreement([1, 0, 1, 0], &crossing().leaves_syn_received(TcpState::Closed, ECONNRESET).script.acts);
}

#[test]
fn what_was_not_seen_is_missing_by_that_much() {
    let compared = against([4, 2, 0, 0], &given_client().syn().wait(MS).syn_ack().script.acts);
    assert_eq!(compared.agrees(), Some(false));
    let active = Compared { kernel: 4, seen: 1, missing: 3, surplus: 0 };
    assert_eq!(compared.tallies[Tally::ActiveOpens as usize], Some(active));
    assert_eq!(compared.missing(), 5);
    assert_eq!(compared.differences[0].netns, NETNS);
    assert_eq!(
        (compared.differences[0].tally, compared.differences[0].compared),
        (Tally::ActiveOpens, active)
    );
}

#[test]
fn what_the_kernel_did_not_count_is_too_much() {
    let compared = against([0; 4], &given_client().syn().wait(MS).syn_ack().script.acts);
    let active = compared.tallies[Tally::ActiveOpens as usize].unwrap();
    assert_eq!((active.surplus, active.missing, compared.agrees()), (1, 0, Some(false)));
}

#[test]
fn one_namespace_does_not_make_up_for_another() {
    let script = given_client().syn().wait(MS).syn_ack().script.acts;
    let inputs =
        [reading(BEFORE, [(NETNS, values([0; 4])), (7, values([0; 4]))])].into_iter().chain(acts(&script));
    let end = reading(AFTER, [(NETNS, values([0; 4])), (7, values([1, 0, 0, 0]))]);
    let compared = reconciled(inputs.chain([end, Input::End { now_ns: AFTER + SEC }]));
    let active = compared.tallies[Tally::ActiveOpens as usize].unwrap();
    assert_eq!((active.kernel, active.missing, active.surplus), (1, 1, 1));
    assert_eq!(compared.differences.len(), 2);
}

#[test]
fn an_open_while_the_counters_are_read_may_be_on_either_side() {
    let script = given_client().syn().wait(MS).syn_ack().script.acts;
    for (from, to) in [(START + 5 * MS, AFTER), (BEFORE, START - 5 * MS)] {
        for counted in [0, 1] {
            let begin = reading(from, [(NETNS, values([0; 4]))]);
            let end = reading(to, [(NETNS, values([counted, 0, 0, 0]))]);
            let inputs = match to {
                AFTER => [vec![begin], acts(&script), vec![end]].concat(),
                _ => [vec![begin, end], acts(&script)].concat(),
            };
            let compared = reconciled(inputs.into_iter().chain([Input::End { now_ns: AFTER + SEC }]));
            assert_eq!(compared.agrees(), Some(true), "{from} {to} {counted}: {compared:?}");
        }
    }
}

#[test]
fn an_open_after_the_reading_waits_for_the_next_one() {
    let script = given_client().wait(SEC).syn().wait(MS).syn_ack().script.acts;
    let begin = reading(BEFORE, [(NETNS, values([0; 4]))]);
    let end = reading(START + 900 * MS, [(NETNS, values([0; 4]))]);
    let inputs = || [begin.clone(), end.clone()].into_iter().chain(acts(&script));
    let now_ns = START + 2 * SEC;
    let compared = reconciled(inputs().chain([Input::Tick { now_ns }]));
    assert_eq!((compared.agrees(), compared.missing()), (Some(true), 0), "{compared:?}");
    let next = reading(now_ns, [(NETNS, values([1, 0, 0, 0]))]);
    let compared =
        reconciled(inputs().chain([Input::Tick { now_ns }, next, Input::End { now_ns: now_ns + SEC }]));
    assert_eq!(compared.tallies[0], Some(Compared { kernel: 1, seen: 1, missing: 0, surplus: 0 }));
}

#[test]
fn what_happened_before_the_first_reading_is_none_of_the_accounts() {
    let script = given_client().syn().wait(MS).syn_ack().script.acts;
    let inputs = [reading(START + SEC, [(NETNS, values([0; 4]))])].into_iter().chain(acts(&script));
    let end = [reading(AFTER, [(NETNS, values([0; 4]))]), Input::End { now_ns: AFTER + SEC }];
    assert_eq!(reconciled(inputs.chain(end)).agrees(), Some(true));
}

#[test]
fn a_namespace_that_began_meanwhile_is_compared_from_its_first_reading_on() {
    // What its number did before may be of another namespace, which nobody can read any more.
    let early = given_client_at(1).syn().wait(MS).syn_ack().script.acts;
    let late = given_client_at(2).wait(20 * SEC).next_generation().syn().wait(MS).syn_ack().script.acts;
    let first = reading(START + 10 * SEC, [(NETNS, values([0; 4]))]);
    let inputs = || [reading(BEFORE, [])].into_iter().chain(acts(&early)).chain([first.clone()]);
    let compared = reconciled(inputs().chain([Input::Tick { now_ns: START + 11 * SEC }]));
    assert_eq!((compared.agrees(), compared.namespaces, compared.left_out), (None, 0, 1));
    let end = [reading(AFTER, [(NETNS, values([1, 0, 0, 0]))]), Input::End { now_ns: AFTER + SEC }];
    let compared = reconciled(inputs().chain(acts(&late)).chain(end));
    assert_eq!((compared.agrees(), compared.namespaces, compared.left_out), (Some(true), 1, 0));
}

#[test]
fn a_namespace_with_another_routing_socket_is_another_one() {
    let mut young = values([5, 5, 5, 5]);
    young[6] = Some(IDENTITY + 1);
    let inputs = [reading(BEFORE, [(NETNS, values([0; 4]))]), reading(AFTER, [(NETNS, young)])];
    let compared = reconciled(inputs.into_iter().chain([Input::End { now_ns: AFTER + SEC }]));
    assert_eq!((compared.agrees(), compared.namespaces, compared.left_out), (None, 0, 1));
}

#[test]
fn a_namespace_that_ended_is_left_out_and_counted_and_so_is_its_number() {
    let script = given_client().syn().wait(MS).syn_ack().script.acts;
    let gone = reading(START + 10 * SEC, [(7, values([0; 4]))]);
    let tick = |seconds| Input::Tick { now_ns: START + seconds * SEC };
    let inputs = || {
        let begin = reading(BEFORE, [(NETNS, values([0; 4])), (7, values([0; 4]))]);
        [begin].into_iter().chain(acts(&script)).chain([gone.clone(), tick(12)])
    };
    let compared = reconciled(inputs());
    assert_eq!((compared.agrees(), compared.namespaces, compared.left_out), (Some(true), 1, 1));
    // The number is given to another namespace, of which we know too little.
    let again = reading(START + 20 * SEC, [(7, values([0; 4])), (NETNS, values([3, 0, 0, 0]))]);
    let compared = reconciled(inputs().chain([again, tick(22)]));
    assert_eq!((compared.agrees(), compared.namespaces, compared.left_out), (Some(true), 1, 1));
}

#[test]
fn a_counter_that_goes_down_is_another_namespace() {
    let young = [Some(200), Some(0), Some(9), Some(4), Some(0), Some(9), Some(IDENTITY)];
    let inputs = [reading(BEFORE, [(NETNS, values([0; 4]))]), reading(AFTER, [(NETNS, young)])];
    let compared = reconciled(inputs.into_iter().chain([Input::End { now_ns: AFTER + SEC }]));
    assert_eq!((compared.agrees(), compared.namespaces, compared.left_out), (None, 0, 1));
}

#[test]
fn a_counter_that_a_kernel_lacks_is_not_compared() {
    let mut without = values([0; 4]);
    without[3] = None;
    let inputs = [reading(BEFORE, [(NETNS, without)]), reading(AFTER, [(NETNS, without)])];
    let compared = reconciled(inputs.into_iter().chain([Input::End { now_ns: AFTER + SEC }]));
    let known: Vec<Tally> = compared.compared().map(|(tally, _)| tally).collect();
    assert_eq!(known, [Tally::ActiveOpens, Tally::PassiveOpens]);
}

#[test]
fn a_filter_is_a_reason_and_no_difference() {
    let refused = MibReading { refused: Some(NotCompared::Filtered), ..MibReading::default() };
    let compared = reconciled([Input::Mib(Box::new(refused)), Input::End { now_ns: AFTER }]);
    assert_eq!((compared.not_compared, compared.agrees()), (Some(NotCompared::Filtered), None));
}

proptest! {
    #[test]
    fn hostile_readings_never_panic(
        readings in proptest::collection::vec(
            (any::<u64>(), proptest::collection::btree_map(0..4_u32, any::<[Option<u64>; 7]>(), 0..4)), 1..6),
    ) {
        let script = given_client().syn().wait(MS).reset().script.acts;
        let inputs = readings.into_iter().flat_map(|(time_ns, namespaces)| {
            acts(&script).into_iter().chain([
                reading(time_ns.min(u64::MAX - US), namespaces),
                Input::Tick { now_ns: time_ns },
            ])
        });
        let compared = reconciled(inputs.chain([Input::End { now_ns: u64::MAX }]));
        for (_, row) in compared.compared() {
            prop_assert!(row.missing <= row.kernel);
        }
    }
}

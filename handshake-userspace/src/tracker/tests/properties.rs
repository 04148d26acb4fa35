//! What holds for every input: order within the window doesn't matter, sums close, nothing is told twice.

use std::collections::HashSet;

use handshake_common::{event::Attach, tcp::TcpState};
use proptest::{collection::vec, prelude::*};

use super::super::{Tracker, TrackerConfig};
use super::script::*;
use crate::model::{adding_up::Heard, handshake::HandshakeUpdate, observation::*, outcome::Role};

fn feed(config: TrackerConfig, inputs: impl IntoIterator<Item = Input>) -> (Vec<HandshakeUpdate>, Tracker) {
    let mut tracker = Tracker::new(config);
    let mut out = vec![];
    for input in inputs {
        tracker.observe(input, &mut out);
    }
    (out, tracker)
}

/// One connection of some kind, `start` nanoseconds late.
fn connection(kind: u8, address: u64, start: u64, pace: u64) -> Vec<Observation> {
    let client = || given_client_at(address).wait(start).with(|facts| facts.called_ns = Some(START + start));
    let returning = |facts: &mut LeftSynSent| facts.return_is_seen = true;
    let server = || {
        let server = given_listener_at(address).wait(start).next_generation();
        // Each connection has ISNs of its own.
        let server = server.with(|facts| facts.agreed.remote_isn = Some((start ^ address << 28) as u32));
        server.syn().wait(pace).syn_ack()
    };
    match kind % 10 {
        0 => client().with(returning).syn().wait(pace).syn_ack().wait(pace).returns(0).script.acts,
        1 => client().syn().wait(pace).reset().script.acts,
        2 => client().syn().wait(SEC).syn_retransmit().wait(pace).error(ETIMEDOUT).script.acts,
        3 => client().fails(101).wait(pace).fails(101).script.acts,
        4 => client().application_closes().wait(pace).fails(99).wait(pace).returns(99).script.acts,
        5 => server().wait(pace).final_ack().wait(pace).accept().script.acts,
        6 => server().wait(pace).final_ack().wait(2 * SEC).accept().script.acts,
        7 => {
            server()
                .with(|facts| facts.fast_open = true)
                .child_queued()
                .accept()
                .wait(pace)
                .established()
                .script
                .acts
        }
        8 => server().wait(pace).final_ack().wait(pace).destroyed().script.acts,
        _ => {
            client()
                .syn()
                .wait(pace)
                .crossing_syn()
                .wait(pace)
                .leaves_syn_received(TcpState::Established, 0)
                .script
                .acts
        }
    }
}

proptest! {
    #[test]
    fn order_of_arrival_within_the_window_changes_nothing(
        connections in vec((any::<u8>(), 1..8_u64, 0..3 * SEC, 2..20 * MS), 1..20),
        jitters in vec(0..50 * MS, 200),
        with_ticks in any::<bool>(),
    ) {
        let mut acts: Vec<Observation> = connections
            .iter()
            .flat_map(|(kind, address, start, pace)| connection(*kind, *address, *start, *pace))
            .collect();
        // Equal times keep their order of arrival, which a permutation changes; there are none.
        acts.sort_by_key(|act| act.time_ns);
        acts.dedup_by_key(|act| act.time_ns);
        let end = Input::End { now_ns: START + 20 * SEC };
        let input = |act: &Observation| Input::Observation(Box::new(act.clone()));
        let in_order: Vec<Input> = acts.iter().map(input).chain([end.clone()]).collect();

        let mut arrivals: Vec<(u64, &Observation)> =
            acts.iter().zip(jitters.iter().cycle()).map(|(act, jitter)| (act.time_ns + jitter, act)).collect();
        arrivals.sort_by_key(|(arrival_ns, _)| *arrival_ns);
        let tick = |now_ns| with_ticks.then_some(Input::Tick { now_ns });
        let permuted = arrivals
            .iter()
            .flat_map(|(arrival_ns, act)| [Some(input(act)), tick(*arrival_ns)])
            .flatten()
            .chain([end]);

        let (expected, first) = feed(config(), in_order);
        let (found, second) = feed(config(), permuted);
        prop_assert_eq!(second.counts().late, 0);
        prop_assert_eq!(expected, found);
        prop_assert_eq!(first.counts(), second.counts());
    }

    #[test]
    fn sums_close_and_nothing_is_told_twice(
        acts in vec(any_observation(), 0..200),
        max_open in 0..6_usize,
        max_queued in 0..4_usize,
        max_held in prop_oneof![Just(1), Just(1000_usize)],
    ) {
        let config = TrackerConfig { max_open, max_queued, max_held, ..config() };
        let mut tracker = Tracker::new(config);
        let mut out = vec![];
        let mut heard = Heard::default();
        for act in acts {
            let input = Input::Observation(Box::new(act));
            heard.hear(&input);
            tracker.observe(input, &mut out);
            let counts = tracker.counts();
            prop_assert_eq!(counts.seen, counts.established + counts.failed + counts.in_flight);
            prop_assert!(counts.in_flight <= max_open as u64);
            prop_assert!(counts.queued <= max_queued as u64);
            let listed = tracker.open_handshakes().count() as u64;
            prop_assert_eq!(listed, counts.in_flight + counts.queued);
        }
        tracker.observe(Input::End { now_ns: START }, &mut out);
        let counts = tracker.counts();
        let records = handshakes(&out);
        prop_assert_eq!((counts.in_flight, counts.queued), (0, 0));
        prop_assert_eq!(records.len() as u64, counts.seen);
        for record in &records {
            prop_assert_eq!(heard.contradiction(record), None, "{:#?}", record);
        }
        let keys: HashSet<_> = records.iter().map(|record| record.key).collect();
        prop_assert_eq!(keys.len(), records.len(), "one handshake record of each key");
        let accepts = accepts(&out);
        let fates: HashSet<_> = accepts.iter().map(|accept| accept.key).collect();
        prop_assert_eq!(fates.len(), accepts.len(), "one accept record of each key");
        prop_assert!(fates.is_subset(&keys));
        // Two records with one id at the same ends would be one connection, told twice.
        let told: Vec<_> = records
            .iter()
            .filter(|record| record.role == Role::Server && record.id.is_some())
            .map(|record| (record.isn, record.netns, record.local, record.remote))
            .collect();
        let connections: HashSet<_> = told.iter().map(|told| format!("{told:?}")).collect();
        prop_assert_eq!(connections.len(), told.len(), "one handshake record of each connection");
    }
}

fn any_time() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![Just(None), (START..START + 5 * SEC).prop_map(Some), any::<u64>().prop_map(Some)]
}

fn any_state() -> impl Strategy<Value = TcpState> {
    prop_oneof![
        3 => Just(TcpState::Established),
        3 => Just(TcpState::Closed),
        2 => Just(TcpState::SynReceived),
        1 => (1..=12_u8).prop_filter_map("no state", |number| TcpState::try_from(number).ok()),
    ]
}

fn any_left_syn_sent() -> impl Strategy<Value = LeftSynSent> {
    let stamps = (any_time(), any_time(), any_time(), any_time());
    let error = prop_oneof![Just(None), Just(Some(0)), (0..140_u32).prop_map(Some)];
    (stamps, error, any_state(), any::<[bool; 6]>(), any::<u16>()).prop_map(
        |((called_ns, syn_sent_ns, answered_ns, last_retransmit_ns), sk_err, new_state, bits, count)| {
            LeftSynSent {
                called_ns,
                syn_sent_ns,
                answered_ns,
                last_retransmit_ns,
                sk_err,
                new_state,
                syn_retransmits: count,
                deferred: bits[0],
                reset_received: bits[1],
                call_returned: bits[2],
                return_is_seen: bits[3],
                fast_open: bits[4],
                cookie_follows: bits[5],
                ..given_client().facts
            }
        },
    )
}

fn any_passive_open() -> impl Strategy<Value = Box<PassiveOpen>> {
    let stamps = (any_time(), any_time(), any_time(), any_time(), any_time());
    let error = prop_oneof![Just(None), (0..140_u32).prop_map(Some)];
    // Few ISNs, so that one connection often seems to begin twice, and many are another one.
    let isns = (0..4_u32, prop_oneof![9 => (0..8_u32).prop_map(Some), 1 => Just(None)]);
    (stamps, error, any_state(), any::<[bool; 8]>(), any::<u16>(), isns).prop_map(
        |(stamps, sk_err, state, bits, count, (ours, theirs))| {
            let (syn_ns, synack_ns, last_retransmit_ns, final_ack_ns, queued_ns) = stamps;
            let mut agreed = agreed();
            (agreed.local_isn, agreed.remote_isn) = (Some(ours), theirs);
            Box::new(PassiveOpen {
                agreed,
                syn_ns,
                synack_ns,
                last_retransmit_ns,
                final_ack_ns,
                queued_ns,
                sk_err,
                new_state: Some(state),
                synack_retransmits: count,
                listener: bits[0].then_some(LISTENER),
                syn_cookie: bits[1],
                fast_open: bits[2],
                defer_accept: bits[3],
                syn_not_seen: bits[4],
                reset_received: bits[5],
                timed_out: bits[6],
                accept_is_seen: bits[7],
                ..given_listener().facts
            })
        },
    )
}

fn any_act() -> impl Strategy<Value = Act> {
    let syn = any_left_syn_sent().prop_map(|facts| {
        let mut client = given_client().with(|all| *all = facts).syn();
        client.script.acts.remove(0).act
    });
    let failed = (0..140_u32).prop_map(|errno| given_client().fails(errno).script.acts.remove(0).act);
    let accepted =
        (any_time(), any_time(), any::<[bool; 2]>()).prop_map(|(queued_ns, reset_ns, [early, unseen])| {
            Act::Accepted(Accepted {
                ends: ends(1),
                process: None,
                queued_ns,
                waiting_since_ns: None,
                reset_ns,
                before_established: early,
                call_not_seen: unseen,
            })
        });
    let destroyed = (any_time(), any_time()).prop_map(|(queued_ns, reset_ns)| {
        Act::ChildDestroyed(ChildDestroyed { ends: ends(1), queued_ns, reset_ns })
    });
    let seen = (any_state(), any::<bool>()).prop_map(|(state, queued)| {
        Act::SocketSeen(SocketSeen {
            ends: ends(1),
            synack_ns: None,
            inode: None,
            accept_queue: None,
            retransmits: 0,
            state,
            queued,
        })
    });
    prop_oneof![
        syn,
        failed,
        any_left_syn_sent().prop_map(|facts| Act::LeftSynSent(Box::new(facts))),
        (0..140_u32).prop_map(|errno| Act::ConnectReturned { errno }),
        any::<Option<bool>>().prop_map(|cookie| Act::FastOpenAnswered { cookie }),
        any::<u16>().prop_map(|port| Act::AddressRewritten { asked: Some(([10, 96, 0, 1], port).into()) }),
        any_passive_open().prop_map(Act::ChildQueued),
        any_passive_open().prop_map(Act::LeftSynReceived),
        any_passive_open().prop_map(Act::RequestDied),
        accepted,
        destroyed,
        Just(Act::ListenerOpened(listener(80))),
        Just(Act::ListenerClosed(listener(80))),
        Just(Act::ChildUndone { ends: ends(1) }),
        any::<Option<u32>>().prop_map(|attempt| Act::SynRetransmitted { ends: ends(1), attempt }),
        seen,
        any_drop(),
    ]
}

fn any_drop() -> impl Strategy<Value = Act> {
    (0..3_u16, any::<Option<bool>>(), any::<[bool; 4]>(), any::<Option<u32>>(), 0..3_u32).prop_map(
        |(port, isn, [cookie_ack, outgoing, answered, unrouted], reason, length)| {
            Act::SegmentDropped(Box::new(SegmentDropped {
                ends: ends(port),
                listener: None,
                // Two ISNs, of which one is that of the passive opens here.
                isn: isn.map(|same| if same { 0x0bad_f00d } else { 1 }),
                cookie_ack,
                outgoing,
                answer: answered.then_some(Rejection::Reset),
                unrouted,
                reason,
                queues: Some(Queues { accept_length: length, accept_limit: 1, syn_length: length }),
            }))
        },
    )
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let time = prop_oneof![
        50 => START..START + 5 * SEC,
        5 => START..START + 2000 * SEC,
        1 => any::<u64>(),
    ];
    let generation = prop_oneof![Just(None), (1..4_u64).prop_map(Some)];
    (time, 0..5_u64, generation, 0..4_u32, 0..3_u64, any_act()).prop_map(
        |(time_ns, address, generation_ns, cpu, lost_before, act)| Observation {
            time_ns,
            cpu,
            lost_before,
            socket: SocketKey { address, generation_ns },
            attach: Attach::Kprobe,
            act,
        },
    )
}

//! Handshakes that are open while the machine is suspended: the events' clock stands still, and the record says so.

use super::script::*;
use crate::model::{
    handshake::HandshakeUpdate,
    observation::{ClockAnchor, Input, Observation},
    outcome::{Flag, Outcome},
};
use crate::tracker::Tracker;

const HOUR: u64 = 3600 * SEC;

/// The one record of these acts; an hour's suspend at a time in between, and a wall clock set by a day before it.
fn with_a_suspend_at(
    acts: &[Observation],
    suspended_ns: u64,
    end_ns: u64,
) -> crate::model::handshake::Handshake {
    let mut tracker = Tracker::new(config());
    let mut out = vec![];
    let mut asleep_ns = 0;
    let anchor = |monotonic_ns: u64, asleep_ns: u64, wall_ns: u64| {
        let boottime_ns = monotonic_ns + asleep_ns;
        Input::Anchor(ClockAnchor { monotonic_ns, boottime_ns, realtime_ns: boottime_ns + wall_ns })
    };
    tracker.observe(anchor(START - SEC, 0, HOUR), &mut out);
    tracker.observe(anchor(START - SEC / 2, 0, 24 * HOUR), &mut out);
    for act in acts {
        if act.time_ns >= suspended_ns && asleep_ns == 0 {
            asleep_ns = HOUR;
            tracker.observe(anchor(suspended_ns, asleep_ns, 24 * HOUR), &mut out);
        }
        tracker.observe(Input::Observation(Box::new(act.clone())), &mut out);
    }
    if asleep_ns == 0 {
        tracker.observe(anchor(suspended_ns, HOUR, 24 * HOUR), &mut out);
    }
    tracker.observe(Input::Tick { now_ns: end_ns }, &mut out);
    match out.remove(0) {
        HandshakeUpdate::Handshake(record) => *record,
        HandshakeUpdate::Accept(accept) => panic!("an accept record first: {accept:?}"),
    }
}

#[test]
fn a_handshake_that_is_open_during_a_suspend_says_so_and_counts_none_of_it() {
    let server = given_listener().syn().syn_ack().wait(40 * MS).final_ack().wait(MS).accept();
    let record = with_a_suspend_at(&server.script.acts, START + 20 * MS, START + SEC);
    assert_eq!((record.outcome, record.flags), (Outcome::Established, vec![Flag::Suspended]));
    assert_eq!(record.latency_ns, Some(40 * MS + 3 * US));
    let joins =
        given_listener().with(|facts| facts.mptcp_join = true).syn().syn_ack().wait(40 * MS).final_ack();
    let record = with_a_suspend_at(&joins.script.acts, START + 20 * MS, START + 2 * SEC);
    assert_eq!(record.flags, vec![Flag::Mptcp, Flag::Suspended, Flag::MptcpJoin], "in their order");
}

#[test]
fn a_handshake_before_or_after_a_suspend_says_nothing_of_it() {
    let server = given_listener().wait(SEC).syn().syn_ack().wait(40 * MS).final_ack().wait(MS).accept();
    // Just ended, and still held to be put in order when the suspend becomes known.
    for suspended_ns in [START + SEC + 45 * MS, START + SEC / 2] {
        let record = with_a_suspend_at(&server.script.acts, suspended_ns, START + 3 * SEC);
        assert_eq!((record.outcome, record.flags), (Outcome::Established, vec![]), "at {suspended_ns}");
    }
}

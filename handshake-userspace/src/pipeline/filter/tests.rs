//! The filters one by one, and what happens when a record doesn't say what they ask.
//!
//! What a newcomer would get wrong: "unknown" and "no" leave a record out alike, and only "unknown" counts.

use handshake_common::event::Attach;

use super::*;
use crate::model::{
    handshake::{Isn, Phases, Retransmits},
    outcome::{Evidence, EvidenceKind, Outcome},
    process::SafeText,
};

fn process(pid: u32) -> Process {
    Process {
        pid,
        tid: pid,
        uid: 1000,
        comm: SafeText::from_kernel_bytes(b"curl"),
        cgroup_id: None,
        in_cgroups: 0b010,
    }
}

fn handshake(role: Role, process: Option<Process>) -> Handshake {
    Handshake {
        key: Key { boot: 1, counter: 1 },
        id: None,
        began_ns: 0,
        role,
        outcome: Outcome::Established,
        evidence: Evidence {
            kind: EvidenceKind::StateEstablished,
            errno: None,
            soft_errno: None,
            syns: None,
            syn_acks: None,
        },
        local: Some("10.0.0.1:40000".parse().unwrap()),
        remote: Some("10.0.0.2:443".parse().unwrap()),
        asked: None,
        netns: Some(7),
        process,
        latency_ns: Some(10),
        failed_after_ns: None,
        rtt_ns: None,
        kernel_rtt_us: None,
        phases: Phases::default(),
        retransmits: Retransmits::default(),
        isn: Isn::default(),
        options: None,
        accept_queue: None,
        dropped: None,
        flags: vec![],
        attach: Some(Attach::Fentry),
    }
}

fn accept(process: Option<Process>) -> Accept {
    Accept {
        key: Key { boot: 1, counter: 1 },
        id: None,
        time_ns: 0,
        outcome: AcceptOutcome::Accepted,
        wait_ns: Some(2_000_000_000),
        call_ns: None,
        process,
        local: Some("10.0.0.1:40000".parse().unwrap()),
        remote: Some("10.0.0.2:443".parse().unwrap()),
        netns: Some(7),
        attach: None,
    }
}

fn gate(filter: RecordFilter) -> Gate {
    Gate::new(filter, Tail::default())
}

#[test]
fn each_filter_says_yes_and_no() {
    let yes = [
        RecordFilter::default(),
        RecordFilter { ports: vec![1, 443], ..RecordFilter::default() },
        RecordFilter { ports: vec![40000], ..RecordFilter::default() },
        RecordFilter { networks: vec!["10.0.0.0/24".parse().unwrap()], ..RecordFilter::default() },
        RecordFilter { netns: vec![6, 7], ..RecordFilter::default() },
        RecordFilter { side: Some(Side::Client), ..RecordFilter::default() },
        RecordFilter { family: Some(Family::V4), ..RecordFilter::default() },
        RecordFilter { cgroups: Some(0b110), ..RecordFilter::default() },
        RecordFilter { pid: Some(5), uid: Some(1000), comm: Some("curl".into()), ..RecordFilter::default() },
    ];
    let no = [
        RecordFilter { ports: vec![1], ..RecordFilter::default() },
        RecordFilter { networks: vec!["10.0.0.1/32".parse().unwrap()], ..RecordFilter::default() },
        RecordFilter { netns: vec![6], ..RecordFilter::default() },
        RecordFilter { side: Some(Side::Server), ..RecordFilter::default() },
        RecordFilter { family: Some(Family::V6), ..RecordFilter::default() },
        RecordFilter { pid: Some(6), ..RecordFilter::default() },
        RecordFilter { uid: Some(0), ..RecordFilter::default() },
        RecordFilter { cgroups: Some(0b001), ..RecordFilter::default() },
        RecordFilter { comm: Some("cur".into()), ..RecordFilter::default() },
    ];
    let record = handshake(Role::Client, Some(process(5)));
    for filter in yes {
        assert_eq!(gate(filter.clone()).handshake(&record), Verdict::Shown, "{filter:?}");
    }
    for filter in no {
        let mut gate = gate(filter.clone());
        assert_eq!(gate.handshake(&record), Verdict::LeftOut, "{filter:?}");
        assert_eq!(gate.unknown(), 0, "{filter:?}");
    }
}

#[test]
fn a_simultaneous_open_is_active_at_both_ends() {
    for (side, verdict) in [(Side::Client, Verdict::Shown), (Side::Server, Verdict::LeftOut)] {
        let mut gate = gate(RecordFilter { side: Some(side), ..RecordFilter::default() });
        assert_eq!(gate.handshake(&handshake(Role::Simultaneous, None)), verdict);
    }
}

#[test]
fn a_server_without_a_process_is_left_out_and_counted_until_accept_names_one() {
    let mut gate = gate(RecordFilter { pid: Some(5), ..RecordFilter::default() });
    assert_eq!(gate.handshake(&handshake(Role::Server, None)), Verdict::LeftOut);
    assert_eq!(gate.unknown(), 1);
    assert_eq!(gate.accept(&accept(Some(process(5)))), Verdict::Shown);
}

#[test]
fn what_would_be_left_out_anyway_is_not_unknown() {
    let filter = RecordFilter { pid: Some(5), ports: vec![1], ..RecordFilter::default() };
    let mut gate = gate(filter);
    assert_eq!(gate.handshake(&handshake(Role::Server, None)), Verdict::LeftOut);
    assert_eq!(gate.unknown(), 0);
}

#[test]
fn an_accept_follows_its_handshake() {
    let mut gate = gate(RecordFilter { pid: Some(5), ..RecordFilter::default() });
    assert_eq!(gate.handshake(&handshake(Role::Server, Some(process(5)))), Verdict::Shown);
    assert_eq!(
        gate.accept(&accept(Some(process(6)))),
        Verdict::Shown,
        "a worker took what the parent listens for"
    );
    assert_eq!(gate.accept(&accept(Some(process(6)))), Verdict::LeftOut, "its handshake is not known");
}

#[test]
fn our_own_connections_are_hidden_with_their_accept() {
    let mut own = handshake(Role::Server, None);
    own.flags = vec![Flag::Own];
    let mut hidden = gate(RecordFilter::default());
    assert_eq!(hidden.handshake(&own), Verdict::LeftOut);
    assert_eq!(hidden.accept(&accept(None)), Verdict::LeftOut);
    let mut shown = gate(RecordFilter { own: true, ..RecordFilter::default() });
    assert_eq!(shown.handshake(&own), Verdict::Shown);
}

#[test]
fn the_tail_adds_its_conditions_up_and_what_it_hides_is_counted() {
    let tail = Tail { failed: true, slow_ns: Some(100), slow_accept_ns: Some(1_000_000_000) };
    let mut gate = Gate::new(RecordFilter::default(), tail);
    let good = handshake(Role::Server, None);
    assert_eq!(gate.handshake(&good), Verdict::Counted);
    assert_eq!(gate.accept(&accept(None)), Verdict::Shown, "it waited two seconds");
    let slow = Handshake { latency_ns: Some(100), ..good.clone() };
    assert_eq!(gate.handshake(&slow), Verdict::Shown);
    let failed = Handshake { outcome: Outcome::Refused, latency_ns: None, ..good };
    assert_eq!(gate.handshake(&failed), Verdict::Shown);
}

//! The examples of the manual are what the sink writes, to the letter.
//!
//! What a newcomer would get wrong: the examples are read from the module's own documentation, so changing
//! either alone fails here.

use handshake_common::event::Attach;

use super::*;
use crate::{
    model::{
        handshake::{Accept, FastOpen, Handshake, Isn, Key, Options, Phases, Retransmits, Windows},
        health::{Canary, Health, TrackerCounts},
        mib::{Compared, Difference, Reconciliation, Tally},
        outcome::{AcceptOutcome, Evidence, EvidenceKind, Flag, Outcome, Role},
        process::{Process, SafeText},
    },
    sinks::Lost,
};

/// The json blocks of the manual, each as one line.
fn examples() -> Vec<String> {
    let manual = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//!"));
    let mut examples = Vec::new();
    let mut inside = None;
    for line in manual.map(str::trim) {
        match (line, &mut inside) {
            ("```json", _) => inside = Some(String::new()),
            ("```", example) => examples.extend(example.take()),
            (line, Some(example)) => example.push_str(line),
            (_, None) => {}
        }
    }
    examples
}

fn line(record: &Record) -> String {
    let mut bytes = Vec::new();
    write_line(record, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap().trim_end().to_owned()
}

/// 2026-11-21T04:05:06.123456789Z.
const TIME: u64 = 1_795_233_906_123_456_789;

fn process(pid: u32, comm: &str, uid: u32, cgroup_id: u64) -> Process {
    let comm = SafeText::from_kernel_bytes(comm.as_bytes());
    Process { pid, tid: pid, uid, comm, cgroup_id: Some(cgroup_id), in_cgroups: 0 }
}

pub(in crate::sinks) fn client() -> Handshake {
    Handshake {
        key: Key { boot: 0x6f1e_2c00, counter: 1042 },
        id: Some(0x0bad_f00d_dead_beef),
        began_ns: 0,
        role: Role::Client,
        outcome: Outcome::Established,
        evidence: Evidence {
            kind: EvidenceKind::StateEstablished,
            errno: None,
            soft_errno: None,
            syns: Some(1),
            syn_acks: None,
        },
        local: Some("10.9.0.1:40112".parse().unwrap()),
        remote: Some("10.9.0.2:443".parse().unwrap()),
        asked: None,
        netns: Some(4_026_531_840),
        process: Some(process(1234, "curl", 1000, 77)),
        latency_ns: Some(41_020_331),
        failed_after_ns: None,
        rtt_ns: Some(41_012_210),
        kernel_rtt_us: Some(41_010),
        phases: Phases {
            local_ns: Some(8121),
            wire_ns: Some(41_012_210),
            wake_ns: Some(5023),
            ..Phases::default()
        },
        retransmits: Retransmits { syn: Some(0), waited_ns: Some(0), ..Retransmits::default() },
        isn: Isn { local: Some(0xdead_beef), remote: Some(0x0bad_f00d) },
        options: Some(Options {
            mss: 1460,
            window_scale: Some((7, 7)),
            sack: true,
            timestamps: true,
            ecn: false,
            windows: Some(Windows { local_mss: Some(1460), local: 64_240, remote: Some(65_160) }),
            fast_open: Some(FastOpen::None),
            fast_open_cookie: None,
        }),
        accept_queue: None,
        dropped: None,
        flags: vec![],
        attach: Some(Attach::Fentry),
    }
}

#[test]
fn a_handshake_is_as_the_manual_says() {
    assert_eq!(line(&Record::Handshake(Box::new(client()), Some(TIME))), examples()[0]);
}

pub(in crate::sinks) fn accept() -> Accept {
    Accept {
        key: Key { boot: 0x6f1e_2c00, counter: 1043 },
        id: Some(0x0bad_f00d_dead_beef),
        time_ns: 0,
        outcome: AcceptOutcome::Accepted,
        wait_ns: Some(2_000_000_000),
        call_ns: Some(1_999_990_000),
        process: Some(process(99, "nginx", 33, 78)),
        local: Some("10.9.0.2:443".parse().unwrap()),
        remote: Some("10.9.0.1:40112".parse().unwrap()),
        netns: Some(4_026_531_840),
        attach: Some(Attach::Fentry),
    }
}

#[test]
fn an_accept_is_as_the_manual_says() {
    assert_eq!(line(&Record::Accept(Box::new(accept()), Some(TIME + 2_000_000_000))), examples()[1]);
}

fn row(count: u64) -> Option<Compared> {
    Some(Compared { kernel: count, seen: count, ..Compared::default() })
}

fn one_missing(kernel: u64) -> Option<Compared> {
    Some(Compared { kernel, seen: kernel - 1, missing: 1, surplus: 0 })
}

#[test]
fn health_is_as_the_manual_says() {
    let health = Health {
        tracker: TrackerCounts { seen: 3, established: 2, failed: 1, ..TrackerCounts::default() },
        kernel: [("submitted", 9), ("ring_full", 0), ("filtered", 0)].into(),
        missed_probes: Some(0),
        outcomes: [("established", 2), ("refused", 1)].into(),
        canary: Some(Canary::Passed),
        reconciliation: Some(Reconciliation {
            namespaces: 2,
            tallies: [one_missing(3), row(1), row(1), None],
            differences: one_missing(2)
                .map(|compared| Difference { netns: 4_026_531_840, tally: Tally::ActiveOpens, compared })
                .into_iter()
                .collect(),
            ..Reconciliation::default()
        }),
        ..Health::default()
    };
    assert_eq!(line(&Record::Health(Box::new(health), Some(1_795_233_910_000_000_000))), examples()[2]);
}

#[test]
fn loss_is_as_the_manual_says() {
    let lost = Lost { total: 3, grown: 3, causes: [("ring_full", 3)].into() };
    assert_eq!(line(&Record::Lost(lost, Some(1_795_233_910_000_000_000))), examples()[3]);
}

#[test]
fn a_failure_has_its_evidence() {
    let mut refused = client();
    refused.outcome = Outcome::Refused;
    refused.evidence = Evidence {
        kind: EvidenceKind::ResetReceived,
        errno: Some(111),
        soft_errno: None,
        syns: Some(1),
        syn_acks: None,
    };
    let line = line(&Record::Handshake(Box::new(refused), None));
    let expected =
        r#""outcome":"refused","evidence":{"kind":"reset_received","errno":"ECONNREFUSED","syns":1},"local""#;
    assert!(line.contains(expected), "{line}");
}

#[test]
fn what_was_asked_for_follows_the_end_that_was_connected() {
    let led = Handshake { asked: Some("10.96.0.1:80".parse().unwrap()), ..client() };
    let line = line(&Record::Handshake(Box::new(led), None));
    let expected =
        r#""remote":{"address":"10.9.0.2","port":443},"asked":{"address":"10.96.0.1","port":80},"netns""#;
    assert!(line.contains(expected), "{line}");
}

#[test]
fn what_is_unknown_is_absent() {
    let unknown = Handshake {
        key: Key { boot: 0, counter: 7 },
        id: None,
        began_ns: 0,
        role: Role::Server,
        outcome: Outcome::Incomplete,
        evidence: Evidence {
            kind: EvidenceKind::EventsLost,
            errno: None,
            soft_errno: None,
            syns: None,
            syn_acks: None,
        },
        local: None,
        remote: Some("[2001:db8::1]:0".parse().unwrap()),
        asked: None,
        netns: None,
        process: None,
        latency_ns: None,
        failed_after_ns: None,
        rtt_ns: None,
        kernel_rtt_us: None,
        phases: Phases::default(),
        retransmits: Retransmits::default(),
        isn: Isn::default(),
        options: None,
        accept_queue: None,
        dropped: None,
        flags: vec![Flag::SynTimeLost, Flag::EventsLost],
        attach: None,
    };
    assert_eq!(
        line(&Record::Handshake(Box::new(unknown), None)),
        concat!(
            r#"{"schema":1,"kind":"handshake","key":"0-7","role":"server","outcome":"incomplete","#,
            r#""evidence":{"kind":"events_lost"},"remote":{"address":"2001:db8::1"},"#,
            r#""flags":["syn_time_lost","events_lost"],"attach":"mixed"}"#
        )
    );
}

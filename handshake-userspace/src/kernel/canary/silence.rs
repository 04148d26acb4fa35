//! Which hooks are attached and yet told nothing of the canary's handshakes.
//!
//! A probe can be attached and never fire: the compiler may have inlined the function into those who call it, and
//! kept a copy that nobody calls. Nothing that is reported is wrong then; what that hook alone knows is only never
//! there. What a newcomer would get wrong: not every hook can be judged so. The canary loses no segment, drops
//! nothing and lets nothing die half open, so the hooks on those say nothing here, and rightly.

use handshake_common::event::Attach;

use super::super::HookStatus;
use crate::model::{
    handshake::Handshake,
    outcome::{EvidenceKind, Flag, Outcome, Role},
};

/// What a hook, and nobody in its place, gives a record.
struct Gift {
    hook: &'static str,
    /// Whose records and what became of them.
    role: Role,
    outcome: Outcome,
    /// Attached so, it gives that; else nothing is asked.
    attached: &'static [Attach],
    is_in: fn(&Handshake) -> bool,
}

const PROBES: &[Attach] = &[Attach::Fentry, Attach::Kprobe];
const ANY: &[Attach] = &[Attach::Common, Attach::Fentry, Attach::Kprobe, Attach::Tracepoint];

const fn of_client(hook: &'static str, attached: &'static [Attach], is_in: fn(&Handshake) -> bool) -> Gift {
    Gift { hook, role: Role::Client, outcome: Outcome::Established, attached, is_in }
}

const fn of_server(hook: &'static str, attached: &'static [Attach], is_in: fn(&Handshake) -> bool) -> Gift {
    Gift { hook, role: Role::Server, outcome: Outcome::Established, attached, is_in }
}

const GIFTS: &[Gift] = &[
    of_client("connect_called", PROBES, |record| record.phases.local_ns.is_some()),
    // The process id is proven by one that is there.
    of_client("connect_called", ANY, |record| record.process.is_some()),
    of_client("connect_returned", ANY, |record| record.phases.wake_ns.is_some()),
    of_client("syn_sent", ANY, |record| record.phases.wire_ns.is_some()),
    of_server("segment_received", ANY, |record| record.latency_ns.is_some() && !late(record)),
    of_server("request_created", PROBES, |record| record.phases.synack_ns.is_some()),
    of_server("final_ack_received", PROBES, |record| record.retransmits.syn_seen.is_some()),
    of_server("child_queued", PROBES, |record| record.accept_queue.is_some()),
    // It is told by the hook that sees accept() return.
    of_server("accept_waiting", PROBES, |record| {
        record.phases.accept_call_ns.is_some() || record.phases.accept_ns.is_none()
    }),
    of_server("accepted", ANY, |record| record.phases.accept_ns.is_some()),
    Gift {
        hook: "reset_received",
        role: Role::Client,
        outcome: Outcome::Refused,
        attached: ANY,
        is_in: |record| record.evidence.kind == EvidenceKind::ResetReceived,
    },
];

fn late(record: &Handshake) -> bool {
    record.flags.iter().any(|flag| matches!(flag, Flag::SeenLate | Flag::SynTimeLost))
}

/// Hooks that are attached and gave none of these records what they alone know. The kernel may skip a program once,
/// so the records of several attempts count together.
pub(super) fn silent(hooks: &[HookStatus], records: &[Handshake]) -> Vec<&'static str> {
    let is_silent = |gift: &&Gift| {
        let attached = hooks.iter().find(|hook| hook.hook == gift.hook).and_then(|hook| hook.attached);
        let mut told = records
            .iter()
            .filter(|record| (record.role, record.outcome) == (gift.role, gift.outcome))
            // With tcp_syncookies=2 there is no request.
            .filter(|record| !record.flags.contains(&Flag::SynCookie))
            .peekable();
        attached.is_some_and(|attached| gift.attached.contains(&attached))
            && told.peek().is_some()
            && !told.any(gift.is_in)
    };
    let mut silent: Vec<&str> = GIFTS.iter().filter(is_silent).map(|gift| gift.hook).collect();
    silent.dedup();
    silent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        handshake::{AcceptQueue, Isn, Key, Phases, Retransmits},
        outcome::Evidence,
        process::{Process, SafeText},
    };

    /// Both ends of a connection, and a refused one, of which every hook told its part.
    fn handshakes_told_in_full() -> Vec<Handshake> {
        let told = |role, outcome, kind| Handshake {
            key: Key { boot: 0, counter: 1 },
            id: None,
            began_ns: 1,
            role,
            outcome,
            evidence: Evidence { kind, errno: None, soft_errno: None, syns: None, syn_acks: None },
            local: None,
            remote: None,
            asked: None,
            netns: None,
            process: Some(Process {
                pid: 1,
                tid: 1,
                uid: 0,
                comm: SafeText::from_kernel_bytes(b"handshake"),
                cgroup_id: None,
                in_cgroups: 0,
            }),
            latency_ns: Some(5),
            failed_after_ns: None,
            rtt_ns: None,
            kernel_rtt_us: None,
            phases: Phases {
                local_ns: Some(1),
                wire_ns: Some(1),
                wake_ns: Some(1),
                synack_ns: Some(1),
                ack_ns: Some(1),
                accept_ns: Some(1),
                accept_call_ns: Some(0),
            },
            retransmits: Retransmits { syn_seen: Some(1), ..Retransmits::default() },
            isn: Isn { local: None, remote: None },
            options: None,
            accept_queue: Some(AcceptQueue { length: 1, limit: 8 }),
            dropped: None,
            flags: Vec::new(),
            attach: Some(Attach::Fentry),
        };
        vec![
            told(Role::Client, Outcome::Established, EvidenceKind::StateEstablished),
            told(Role::Server, Outcome::Established, EvidenceKind::StateEstablished),
            told(Role::Client, Outcome::Refused, EvidenceKind::ResetReceived),
        ]
    }

    fn all_attached() -> Vec<HookStatus> {
        let status = |gift: &Gift| HookStatus {
            hook: gift.hook,
            attached: Some(Attach::Fentry),
            symbols: Vec::new(),
            tried: Vec::new(),
            without_it: "",
            lacks: String::new(),
        };
        GIFTS.iter().map(status).collect()
    }

    #[test]
    fn hooks_that_all_told_something_are_not_silent() {
        assert_eq!(silent(&all_attached(), &handshakes_told_in_full()), [""; 0]);
    }

    #[test]
    fn each_hook_that_told_nothing_is_named() {
        type Takes = fn(&mut Handshake);
        let cases: [(&str, Takes); 11] = [
            ("connect_called", |record| record.phases.local_ns = None),
            ("connect_called", |record| record.process = None),
            ("connect_returned", |record| record.phases.wake_ns = None),
            ("syn_sent", |record| record.phases.wire_ns = None),
            ("segment_received", |record| record.flags = vec![Flag::SynTimeLost]),
            ("request_created", |record| record.phases.synack_ns = None),
            ("final_ack_received", |record| record.retransmits.syn_seen = None),
            ("child_queued", |record| record.accept_queue = None),
            ("accept_waiting", |record| record.phases.accept_call_ns = None),
            ("accepted", |record| record.phases.accept_ns = None),
            ("reset_received", |record| record.evidence.kind = EvidenceKind::SocketError),
        ];
        for (hook, take) in cases {
            let mut records = handshakes_told_in_full();
            records.iter_mut().for_each(take);
            assert_eq!(silent(&all_attached(), &records), [hook]);
        }
    }

    #[test]
    fn a_hook_that_told_in_one_attempt_of_several_is_not_silent() {
        let mut records = handshakes_told_in_full();
        records.iter_mut().for_each(|record| record.phases.wake_ns = None);
        records.extend(handshakes_told_in_full());
        assert_eq!(silent(&all_attached(), &records), [""; 0]);
    }

    #[test]
    fn a_role_that_nobody_watches_and_a_hook_that_is_not_attached_are_not_silent() {
        let mut records = handshakes_told_in_full();
        records.retain(|record| record.role == Role::Client);
        assert_eq!(silent(&all_attached(), &records), [""; 0]);
        records.iter_mut().for_each(|record| record.phases.wake_ns = None);
        let mut hooks = all_attached();
        hooks.retain(|hook| hook.hook != "connect_returned");
        assert_eq!(silent(&hooks, &records), [""; 0]);
    }
}

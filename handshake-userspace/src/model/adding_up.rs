//! Whether the times and counts of one record agree with each other, to the nanosecond: asked by the tracker's
//! properties, by the fuzzer, and by the kernel tests of the records that the program printed.
//!
//! What a reader would get wrong: the phases do not fill an established handshake's latency. The last of them ends
//! when the kernel begins to work on the segment that ends the handshake, and ESTABLISHED comes when that work is
//! done. What is between is the rest, and no field has it. The phases themselves follow one another without a gap:
//! whoever knows when the acts were ([`Heard`]) finds that each phase begins and ends with one.

use std::collections::HashSet;

use super::{
    handshake::{Handshake, Phases, Retransmits},
    observation::{Act, Input, PassiveOpen},
    outcome::{Flag, Outcome, Role},
};

/// What a record says of times and counts.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// Which side.
    pub role: Role,
    /// The connection was made, whatever became of it then.
    pub is_made: bool,
    /// As in the record.
    pub latency_ns: Option<u64>,
    /// As in the record.
    pub failed_after_ns: Option<u64>,
    /// As in the record.
    pub rtt_ns: Option<u64>,
    /// As in the record.
    pub phases: Phases,
    /// As in the record.
    pub retransmits: Retransmits,
    /// SYNs, or a server's SYN-ACKs, that the outcome rests on.
    pub sent: Option<u32>,
    /// A SYN of it was dropped here: waited for, and no SYN-ACK.
    pub syn_dropped: bool,
}

impl From<&Handshake> for Sums {
    fn from(record: &Handshake) -> Self {
        Sums {
            role: record.role,
            is_made: matches!(record.outcome, Outcome::Established | Outcome::NeverAccepted),
            latency_ns: record.latency_ns,
            failed_after_ns: record.failed_after_ns,
            rtt_ns: record.rtt_ns,
            phases: record.phases,
            retransmits: record.retransmits,
            sent: record.evidence.syns.or(record.evidence.syn_acks),
            syn_dropped: record.flags.contains(&Flag::SynDropped),
        }
    }
}

impl Sums {
    /// From the first SYN to the end.
    pub fn whole_ns(&self) -> Option<u64> {
        self.latency_ns.or(self.failed_after_ns)
    }

    /// From the first SYN (a server's: or its SYN-ACK, if the SYN's time is unknown) to the segment that answered, and
    /// absent if none did.
    pub fn answered_after_ns(&self) -> Option<u64> {
        match self.role {
            Role::Server => self.phases.ack_ns?.checked_add(self.phases.synack_ns.unwrap_or(0)),
            Role::Client | Role::Simultaneous => self.phases.wire_ns,
        }
    }

    /// What the phases leave of the whole: the kernel's work on the segment that ended it.
    pub fn rest_ns(&self) -> Option<u64> {
        self.whole_ns()?.checked_sub(self.answered_after_ns()?)
    }

    /// What it says against itself, if anything.
    pub fn contradiction(&self) -> Option<&'static str> {
        let Sums { phases, retransmits, .. } = *self;
        let is_server = self.role == Role::Server;
        let again = if is_server { retransmits.syn_ack } else { retransmits.syn };
        let no_more_than = |part: Option<u64>, whole: Option<u64>| match (part, whole) {
            (Some(part), Some(whole)) => part <= whole,
            _ => true,
        };
        let of_a_client = phases.local_ns.or(phases.wire_ns).or(phases.wake_ns);
        let of_a_server = phases.synack_ns.or(phases.ack_ns).or(phases.accept_ns).or(phases.accept_call_ns);
        let round_trip_ns = if is_server { phases.ack_ns } else { phases.wire_ns };
        let overflows =
            phases.ack_ns.zip(phases.synack_ns).is_some_and(|(one, two)| one.checked_add(two).is_none());
        let claims = [
            (self.latency_ns.is_none() || self.is_made, "a failure has a latency"),
            (self.failed_after_ns.is_none() || !self.is_made, "what was made has failed after some time"),
            (of_a_client.is_none() || !is_server, "a server has a client's phases"),
            (of_a_server.is_none() || is_server, "a client has a server's phases"),
            (!overflows, "the phases overflow"),
            (no_more_than(self.answered_after_ns(), self.whole_ns()), "the phases are longer than the whole"),
            (no_more_than(phases.synack_ns, self.whole_ns()), "the SYN-ACK left after the end"),
            (no_more_than(retransmits.waited_ns, self.whole_ns()), "it waited for longer than the whole"),
            // A server's SYN-ACK may be sent again behind an ACK that it let pass (a wrong one, TCP_DEFER_ACCEPT).
            (no_more_than(retransmits.waited_ns, phases.wire_ns), "it waited on when it was answered"),
            (self.rtt_ns.is_none() || self.rtt_ns == round_trip_ns, "the round trip is no phase"),
            // SYNs that were dropped before one was let in are seen too, and blur nothing.
            (
                self.rtt_ns.is_none()
                    || again == Some(0) && (self.syn_dropped || retransmits.syn_seen.unwrap_or(1) == 1),
                "a round trip of what was sent again, or not counted",
            ),
            (
                retransmits.waited_ns.unwrap_or(0) == 0
                    || again.is_some_and(|again| again > 0)
                    || is_server && self.syn_dropped,
                "it waited, and nothing was sent again",
            ),
            (
                self.sent.is_none_or(|sent| again.is_some_and(|again| sent == again.saturating_add(1))),
                "what was sent is not one more than what was sent again",
            ),
            (
                phases.accept_call_ns.is_none() || phases.accept_call_ns <= phases.accept_ns,
                "accept() was called after it had returned",
            ),
        ];
        claims.into_iter().find_map(|(holds, what)| (!holds).then_some(what))
    }
}

/// When the acts were that a tracker heard of, to hold its records against.
#[derive(Default)]
pub struct Heard {
    times_ns: HashSet<u64>,
}

impl Heard {
    /// Takes down all times that an act tells.
    pub fn hear(&mut self, input: &Input) {
        let Input::Observation(observation) = input else { return };
        let passive = |act: &PassiveOpen| {
            vec![act.syn_ns, act.synack_ns, act.last_retransmit_ns, act.final_ack_ns, act.queued_ns]
        };
        let told = match &observation.act {
            Act::SynSent(act) => vec![act.called_ns],
            Act::ConnectFailed(act) => vec![act.called_ns],
            Act::LeftSynSent(act) => {
                vec![act.called_ns, act.syn_sent_ns, act.answered_ns, act.last_retransmit_ns]
            }
            Act::ChildQueued(act) | Act::LeftSynReceived(act) | Act::RequestDied(act) => passive(act),
            Act::Accepted(act) => vec![act.queued_ns, act.waiting_since_ns],
            Act::ChildDestroyed(act) => vec![act.queued_ns],
            Act::SocketSeen(act) => vec![act.synack_ns],
            Act::ListenerOpened(_)
            | Act::ListenerClosed(_)
            | Act::SynRetransmitted { .. }
            | Act::ChildUndone { .. }
            | Act::SegmentDropped(_)
            | Act::ConnectReturned { .. }
            | Act::FastOpenAnswered { .. }
            | Act::AddressRewritten { .. } => vec![],
        };
        self.times_ns.extend(told.into_iter().flatten().chain([observation.time_ns]));
    }

    /// What the record says against itself or against what was heard, if anything: it begins with an act, and
    /// from there each phase leads to another act, the latency to the last of the handshake.
    pub fn contradiction(&self, record: &Handshake) -> Option<&'static str> {
        let sums = Sums::from(record);
        let phases = &record.phases;
        let is_active = record.role != Role::Server;
        let after = |from_ns: u64, part: Option<u64>| part.map(|part_ns| from_ns.checked_add(part_ns));
        let began = Some(Some(record.began_ns));
        let Some(syn_ns) = record.began_ns.checked_add(phases.local_ns.unwrap_or(0)) else {
            return Some("its SYN left after all time");
        };
        let over = after(syn_ns, sums.whole_ns());
        let claims = [
            (began, "it begins with no act"),
            (Some(Some(syn_ns)), "its SYN is no act"),
            (after(syn_ns, phases.synack_ns), "its SYN-ACK is no act"),
            (after(syn_ns, sums.answered_after_ns()), "its answer is no act"),
            (over, "its end is no act"),
            // Without the SYN's time it is unknown when the wake-up began.
            (
                over.flatten().and_then(|over_ns| after(over_ns, phases.wake_ns)),
                "connect()'s return is no act",
            ),
            (after(syn_ns, record.retransmits.waited_ns.filter(|_| is_active)), "its last SYN is no act"),
        ];
        sums.contradiction().or_else(|| {
            claims.into_iter().find_map(|(time_ns, what)| {
                let is_act = time_ns
                    .is_none_or(|time_ns| time_ns.is_some_and(|time_ns| self.times_ns.contains(&time_ns)));
                (!is_act).then_some(what)
            })
        })
    }
}

//! Segments that this host dropped: an attempt that never got through, or the early part of one that did.
//!
//! A client whose SYN is dropped sends it again, with the same ISN: its attempt is one handshake, not several.
//! Its entry waits for the next SYN under a key made of ends and ISN, which no kernel address is like. What a
//! newcomer would get wrong: when a later SYN is let in, the child continues that handshake, so its latency
//! begins at the first SYN, as it did for the client.

use std::{net::SocketAddr, sync::Arc};

use super::{
    Tracker, Why,
    entry::{At, Entry, Identity, Kind},
    record::{Head, flags},
    table::{NEXT_SYN_STEPS, Patience},
    verdict::Verdict,
};
use crate::model::{
    handshake::{AcceptQueue, Dropped, Handshake, HandshakeUpdate, Isn, Phases, Retransmits},
    observation::{Ends, PassiveOpen, Queues, Rejection, SegmentDropped},
    outcome::{EvidenceKind, Flag, Outcome, Role},
    process::Process,
};

/// An attempt of which no segment was let in so far.
pub(super) struct DroppedAttempt {
    pub(super) ends: Ends,
    pub(super) isn: Option<u32>,
    pub(super) listener_process: Option<Arc<Process>>,
    pub(super) first_ns: u64,
    /// When the latest one was dropped.
    latest_ns: u64,
    pub(super) segments: u32,
    /// The final ACK with a cookie: the client believes that it is connected.
    pub(super) cookie_ack: bool,
    /// How this host answered the last of them, if it did.
    pub(super) answer: Option<Rejection>,
    pub(super) reason: Option<u32>,
    pub(super) queues: Option<Queues>,
}

impl DroppedAttempt {
    /// What the segments died of, as far as the kernel or the queues say.
    pub(super) fn cause(&self) -> EvidenceKind {
        match self.answer {
            Some(Rejection::Reset) => return EvidenceKind::ResetSent,
            Some(Rejection::Icmp) => return EvidenceKind::IcmpSent,
            None if self.reason.is_some() => return EvidenceKind::DropReason,
            None => {}
        }
        match self.queues {
            // The kernel's own questions: sk_acceptq_is_full and inet_csk_reqsk_queue_is_full. The latter asked for
            // "as many" on some kernels; with a limit of 0 that would be true of an empty queue.
            Some(queues) if queues.accept_length > queues.accept_limit => EvidenceKind::AcceptQueueFull,
            Some(queues) if queues.syn_length >= queues.accept_limit.max(1) => EvidenceKind::SynQueueFull,
            _ => EvidenceKind::NoSynAckMade,
        }
    }
}

/// Where an attempt waits in the table. Half of all keys, and no kernel address, which has its highest bit set.
pub(super) fn place_of(local: SocketAddr, remote: SocketAddr, netns: Option<u32>, isn: u32) -> u64 {
    let fold = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let address = |end: SocketAddr| match end {
        SocketAddr::V4(end) => u128::from(u32::from(*end.ip())),
        SocketAddr::V6(end) => u128::from(*end.ip()),
    };
    let words = [
        address(local) as u64,
        (address(local) >> 64) as u64,
        address(remote) as u64,
        (address(remote) >> 64) as u64,
        u64::from(local.port()) << 48 | u64::from(remote.port()) << 32 | u64::from(isn),
        u64::from(netns.unwrap_or(0)),
    ];
    words.into_iter().fold(0, fold) & !(1 << 63)
}

/// The same where nobody may read whose segment it was (lockdown): at one listener an ISN is rarely two clients'.
fn place_at(listener: u64, netns: Option<u32>, isn: u32) -> u64 {
    let fold = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    [listener, u64::from(netns.unwrap_or(0)) << 32 | u64::from(isn)].into_iter().fold(1, fold) & !(1 << 63)
}

/// How long to wait after a gap between two SYNs: the next may be twice as long, and a little more.
fn next_syn_after(gap_ns: u64, first_ns: u64) -> Patience {
    let wanted_ns = gap_ns.saturating_mul(5) / 2;
    let step = (0..NEXT_SYN_STEPS).find(|step| first_ns.saturating_mul(1 << step) >= wanted_ns);
    Patience::NextSyn { step: step.unwrap_or(NEXT_SYN_STEPS - 1) }
}

impl Tracker {
    pub(super) fn segment_dropped(&mut self, at: At, act: SegmentDropped, out: &mut Vec<HandshakeUpdate>) {
        if act.outgoing {
            self.own_syn_dropped(at, &act, out);
            return;
        }
        let listens = act.ends.local.and_then(|local| self.listeners.at(local, act.ends.netns));
        if act.unrouted && listens.is_none() {
            // Nobody here waits for it: it was to be forwarded, as far as anybody can say.
            self.counts.unmatched += 1;
            return;
        }
        let place = act.isn.and_then(|isn| match (act.ends.local, act.ends.remote) {
            (Some(local), Some(remote)) => Some(place_of(local, remote, act.ends.netns, isn)),
            _ => act.listener.map(|listener| place_at(listener, act.ends.netns, isn)),
        });
        let earlier = place.and_then(|place| self.table.take(place));
        let mut entry = match earlier {
            Some(entry) if matches!(&entry.kind, Kind::Dropped(attempt) if attempt.isn == act.isn) => entry,
            other => {
                if let Some(other) = other {
                    self.finish(other, Why::Displaced, out);
                }
                if !self.has_room() {
                    return;
                }
                let attempt = DroppedAttempt {
                    ends: act.ends,
                    isn: act.isn,
                    listener_process: None,
                    first_ns: at.time_ns,
                    latest_ns: at.time_ns,
                    segments: 0,
                    cookie_ack: false,
                    answer: None,
                    reason: None,
                    queues: None,
                };
                self.dropped_attempts += 1;
                self.begin(at, at.time_ns, Kind::Dropped(Box::new(attempt)))
            }
        };
        entry.identity.attach.add(at.attach);
        let mut gap_ns = 0;
        if let Kind::Dropped(attempt) = &mut entry.kind {
            gap_ns = at.time_ns.saturating_sub(attempt.latest_ns);
            attempt.latest_ns = attempt.latest_ns.max(at.time_ns);
            // It may have come late.
            attempt.first_ns = attempt.first_ns.min(at.time_ns);
            attempt.segments = attempt.segments.saturating_add(1);
            attempt.cookie_ack |= act.cookie_ack;
            attempt.answer = act.answer;
            attempt.reason = act.reason.or(attempt.reason);
            attempt.queues = act.queues.or(attempt.queues);
            if let Some(owner) = self.listeners.owner(act.listener).or(listens.flatten()) {
                attempt.listener_process = Some(owner);
            }
        }
        match place {
            Some(place) => {
                entry.identity.address = place;
                let patience = next_syn_after(gap_ns, self.config.next_syn_patience_ns);
                self.keep(entry, patience, out);
            }
            // Nobody knows whose it was, so nothing could continue it.
            None => self.finish(entry, Why::Ended, out),
        }
    }

    /// A SYN of this host's own was dropped on its way out.
    fn own_syn_dropped(&mut self, at: At, act: &SegmentDropped, out: &mut Vec<HandshakeUpdate>) {
        let Some(mut entry) = self.take_active(at) else {
            self.counts.unmatched += 1;
            return;
        };
        entry.identity.fed_by(at);
        if let Kind::Active(open) = &mut entry.kind {
            open.syns_dropped = open.syns_dropped.saturating_add(1);
            open.drop_reason = act.reason.or(open.drop_reason);
        }
        self.settle_active(entry, out);
    }

    /// The attempt that a request or a child continues, taken out of the table.
    pub(super) fn take_dropped(&mut self, act: &PassiveOpen) -> Option<(Identity, Box<DroppedAttempt>)> {
        if self.dropped_attempts == 0 {
            return None;
        }
        let (local, remote, isn) = (act.ends.local?, act.ends.remote?, act.agreed.remote_isn?);
        let of_nobody = act.listener.map(|listener| place_at(listener, act.ends.netns, isn));
        let is_dropped = |place: &u64| {
            self.table.get(*place).is_some_and(
                |entry| matches!(&entry.kind, Kind::Dropped(attempt) if attempt.isn == Some(isn)),
            )
        };
        let place = [Some(place_of(local, remote, act.ends.netns, isn)), of_nobody]
            .into_iter()
            .flatten()
            .find(is_dropped)?;
        let entry = self.table.take(place)?;
        match entry.kind {
            Kind::Dropped(attempt) => {
                self.dropped_attempts -= 1;
                Some((entry.identity, attempt))
            }
            _ => None,
        }
    }

    /// A child (or a request) begins here, or continues an attempt whose earlier segments were dropped: then it
    /// has the key that the attempt had.
    pub(super) fn begin_or_continue(&mut self, at: At, queued_ns: u64, act: &PassiveOpen) -> Entry {
        let Some((earlier, attempt)) = self.take_dropped(act) else {
            return self.begin_child(at, Some(queued_ns));
        };
        let identity = Identity {
            address: at.socket.address,
            generation_ns: at.socket.generation_ns,
            attach: earlier.attach.and(at.attach),
            ..earlier
        };
        let _ = self.listeners.forget_child(at.socket.address);
        let child = super::child::Child { dropped: Some(attempt), ..Default::default() };
        Entry { identity, kind: Kind::Child(Box::new(child)) }
    }

    /// What a record says of dropped segments.
    pub(super) fn told_drops(&self, segments: u32, cause: EvidenceKind, reason: Option<u32>) -> Dropped {
        let reason = reason.and_then(|number| self.config.drop_reasons.get(&number).cloned());
        Dropped { segments, cause, reason }
    }
}

/// The record of an attempt of which this host let no segment in.
pub(super) fn of_dropped_attempt(attempt: DroppedAttempt, dropped: Dropped, head: Head) -> Handshake {
    let outcome = match attempt.answer {
        _ if attempt.cookie_ack => Outcome::AckDropped,
        Some(_) => Outcome::Refused,
        None => Outcome::SynDropped,
    };
    let syns = (!attempt.cookie_ack).then_some(attempt.segments);
    Handshake {
        key: head.key,
        id: None,
        began_ns: attempt.first_ns,
        role: Role::Server,
        outcome,
        evidence: Verdict::new(outcome, dropped.cause).evidence(None, None),
        local: attempt.ends.local,
        remote: attempt.ends.remote,
        asked: None,
        netns: attempt.ends.netns,
        process: attempt.listener_process.map(|process| (*process).clone()),
        latency_ns: None,
        failed_after_ns: None,
        rtt_ns: None,
        kernel_rtt_us: None,
        phases: Phases::default(),
        retransmits: Retransmits { syn_seen: syns, ..Retransmits::default() },
        isn: Isn { local: None, remote: attempt.isn },
        options: None,
        accept_queue: attempt
            .queues
            .map(|queues| AcceptQueue { length: queues.accept_length, limit: queues.accept_limit }),
        flags: flags([
            (attempt.ends.v4_mapped, Flag::V4Mapped),
            (attempt.cookie_ack, Flag::SynCookie),
            (attempt.cookie_ack, Flag::AckDropped),
            (head.events_lost, Flag::EventsLost),
        ]),
        dropped: Some(dropped),
        attach: head.attach,
    }
}

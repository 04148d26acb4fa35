//! How outcomes, phases and retransmissions read in the tail.
//!
//! Words of TCP and of the evidence, never a guess about its cause. What a newcomer would get wrong: a SYN
//! that was sent again need not have been lost (its SYN-ACK may have been), so the tail says "sent again".

use std::net::SocketAddr;

use super::{duration::human, layout::Density};
use crate::{
    model::{
        handshake::{Dropped, Handshake, Phases, Retransmits},
        outcome::{AcceptOutcome, Evidence, EvidenceKind, Flag, Outcome},
    },
    sinks::errno,
};

/// Address and port; an unknown port is `*`.
pub fn end(end: Option<SocketAddr>) -> String {
    match end {
        None => "-".to_owned(),
        Some(end) if end.port() != 0 => end.to_string(),
        Some(SocketAddr::V4(end)) => format!("{}:*", end.ip()),
        Some(SocketAddr::V6(end)) => format!("[{}]:*", end.ip()),
    }
}

/// `local 8 µs + wire 41.0 ms + wake 5 µs`; where room is short the longest one and the sum of the others.
pub fn phases(phases: &Phases, density: Density) -> String {
    let known: Vec<(&str, u64)> = [
        ("local", phases.local_ns),
        ("wire", phases.wire_ns),
        ("wake", phases.wake_ns),
        ("synack", phases.synack_ns),
        ("ack", phases.ack_ns),
        ("accept", phases.accept_ns),
    ]
    .into_iter()
    .filter_map(|(name, time)| Some((name, time?)))
    .collect();
    let Some((longest, time)) = known.iter().max_by_key(|(_, time)| *time).copied() else {
        return "-".to_owned();
    };
    if density == Density::Wide {
        let each: Vec<String> = known
            .iter()
            .map(|(name, time)| match *name {
                "accept" => accept_wait(*time, phases.accept_call_ns, density),
                name => format!("{name} {}", human(*time)),
            })
            .collect();
        return each.join(" + ");
    }
    let rest: u64 = known.iter().filter(|(name, _)| *name != longest).map(|(_, time)| *time).sum();
    match known.len() {
        1 => format!("{longest} {}", human(time)),
        _ => format!("{longest} {} + {}", human(time), human(rest)),
    }
}

/// From this wait for accept() on it matters who was late: the application, or the kernel with waking it.
const WORTH_A_REASON_NS: u64 = 1_000_000;

/// `accept 300 ms (called late)`; the reason only where there is room.
pub fn accept_wait(wait_ns: u64, call_ns: Option<u64>, density: Density) -> String {
    let wait = format!("accept {}", human(wait_ns));
    match call_ns.filter(|_| density == Density::Wide && wait_ns >= WORTH_A_REASON_NS) {
        Some(call_ns) if call_ns >= wait_ns / 2 => format!("{wait} (called late)"),
        Some(_) => format!("{wait} (woken late)"),
        None => wait,
    }
}

/// Whether anything was sent again, or came again.
pub fn retransmitted(handshake: &Handshake) -> bool {
    let again = &handshake.retransmits;
    again.syn.unwrap_or(0) != 0 || again.syn_ack.unwrap_or(0) != 0 || again.syn_seen.unwrap_or(0) > 1
}

/// `0`, or what was sent again and how long that took: `2 SYN, 3.004 s`.
pub fn retransmits(again: &Retransmits) -> String {
    let mut parts = Vec::new();
    if let Some(count) = again.syn.filter(|count| *count != 0) {
        parts.push(format!("{count} SYN"));
    }
    if let Some(count) = again.syn_ack.filter(|count| *count != 0) {
        parts.push(format!("{count} SYN-ACK"));
    }
    // A SYN that came again was sent again by the peer.
    if let Some(count) = again.syn_seen.filter(|count| *count > 1) {
        parts.push(format!("peer {} SYN", count - 1));
    }
    if parts.is_empty() {
        let known = again.syn.is_some() || again.syn_ack.is_some();
        return if known { "0" } else { "-" }.to_owned();
    }
    if let Some(waited) = again.waited_ns.filter(|waited| *waited != 0) {
        parts.push(human(waited));
    }
    parts.join(", ")
}

/// The outcome, for a failure with its evidence, then the flags. Where room is short the evidence is a word and
/// the flags that only explain a detail are left to `--json`.
pub fn outcome(handshake: &Handshake, density: Density) -> String {
    let said = match density {
        Density::Wide => {
            let reason = handshake.dropped.as_ref().and_then(|dropped| dropped.reason.as_deref());
            evidence(&handshake.evidence, reason)
        }
        Density::Usual | Density::Narrow => short_evidence(&handshake.evidence),
    };
    let mut text = match handshake.outcome {
        Outcome::Established => "established".to_owned(),
        failure if said.is_empty() => failure_word(failure).to_owned(),
        failure => format!("{}: {said}", failure_word(failure)),
    };
    if density == Density::Narrow {
        return text;
    }
    if handshake.asked.is_some() {
        text.push_str(", asked for ");
        text.push_str(&end(handshake.asked));
    }
    for flag in &handshake.flags {
        text.push_str(", ");
        match (&handshake.dropped, flag) {
            (Some(dropped), Flag::SynDropped) => text.push_str(&dropped_here(dropped)),
            _ => text.push_str(flag_words(*flag)),
        }
    }
    let rejected = matches!(handshake.evidence.kind, EvidenceKind::ResetSent | EvidenceKind::IcmpSent);
    if let Some(dropped) = &handshake.dropped
        && (rejected || handshake.outcome == Outcome::SynDropped)
    {
        text.push_str(", ");
        text.push_str(&counted(dropped.segments, "SYN"));
    }
    text
}

/// The fate of a queued child.
pub fn accept_outcome(outcome: AcceptOutcome) -> &'static str {
    match outcome {
        AcceptOutcome::Accepted => "accepted",
        AcceptOutcome::NeverAccepted => "never accepted: destroyed in the accept queue",
        AcceptOutcome::ResetInQueue => "accepted after a RST in the accept queue",
        AcceptOutcome::Incomplete => "incomplete: still queued when we stopped watching",
    }
}

fn failure_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Established => "established",
        Outcome::Refused => "refused",
        Outcome::TimedOut => "timed out",
        Outcome::HostUnreachable => "host unreachable",
        Outcome::NetUnreachable => "network unreachable",
        Outcome::Reset => "reset",
        Outcome::Cancelled => "cancelled",
        Outcome::LocalError => "local error",
        Outcome::NeverAccepted => "never accepted",
        Outcome::SynDropped => "SYN dropped",
        Outcome::AckDropped => "ACK dropped",
        Outcome::Incomplete => "incomplete",
    }
}

/// `2 SYNs dropped here: NETFILTER_DROP`
fn dropped_here(dropped: &Dropped) -> String {
    let why = match (&dropped.reason, dropped.cause) {
        (Some(reason), _) => reason.to_string(),
        (None, EvidenceKind::AcceptQueueFull) => "accept queue full".to_owned(),
        (None, EvidenceKind::SynQueueFull) => "SYN queue full".to_owned(),
        (None, _) => "no reason given".to_owned(),
    };
    format!("{} dropped here: {why}", counted(dropped.segments, "SYN"))
}

/// In a word what the outcome does not say by itself; empty if nothing.
fn short_evidence(evidence: &Evidence) -> String {
    match (evidence.kind, evidence.errno) {
        (EvidenceKind::RetransmitTimeout | EvidenceKind::ClosedInSynSent, _) => {
            evidence.syns.map_or_else(String::new, |syns| counted(syns, "SYN"))
        }
        (EvidenceKind::SynAckTimeout, _) => {
            evidence.syn_acks.map_or_else(String::new, |syn_acks| counted(syn_acks, "SYN-ACK"))
        }
        (EvidenceKind::ResetReceived, _) => "RST".to_owned(),
        (EvidenceKind::ResetSent, _) => "RST sent".to_owned(),
        (EvidenceKind::IcmpSent, _) => "ICMP sent".to_owned(),
        (EvidenceKind::IcmpReceived, _) => "ICMP".to_owned(),
        (_, Some(number)) if number != 0 => errno::name(number).to_string(),
        (EvidenceKind::RequestDropped, _) => "dropped half open".to_owned(),
        (EvidenceKind::ClosedInSynReceived, _) => "closed half open".to_owned(),
        (EvidenceKind::ListenerClosed, _) => "listener closed".to_owned(),
        (EvidenceKind::AcceptQueueFull, _) => "accept queue full".to_owned(),
        (EvidenceKind::SynQueueFull, _) => "SYN queue full".to_owned(),
        (EvidenceKind::EventsLost, _) => "events lost".to_owned(),
        (EvidenceKind::StoppedWatching, _) => "still open".to_owned(),
        _ => String::new(),
    }
}

fn evidence(evidence: &Evidence, reason: Option<&str>) -> String {
    let said = match evidence.kind {
        EvidenceKind::StateEstablished => "reached ESTABLISHED".to_owned(),
        EvidenceKind::ResetReceived => "RST received".to_owned(),
        EvidenceKind::SocketError => "error on the socket, no RST seen".to_owned(),
        EvidenceKind::RetransmitTimeout => match evidence.syns {
            Some(syns) => format!("{} unanswered", counted(syns, "SYN")),
            None => "SYNs unanswered".to_owned(),
        },
        EvidenceKind::ClosedInSynSent => match evidence.syns {
            Some(syns) => format!("closed by the application after {}", counted(syns, "SYN")),
            None => "closed by the application in SYN-SENT".to_owned(),
        },
        EvidenceKind::ClosedInSynReceived => "closed by the application before the final ACK".to_owned(),
        EvidenceKind::AckAfterClose => "acknowledged after the application had closed it".to_owned(),
        EvidenceKind::ConnectReturned => "connect() failed, no SYN sent".to_owned(),
        EvidenceKind::SynAckTimeout => match evidence.syn_acks {
            Some(syn_acks) => format!("{} unanswered", counted(syn_acks, "SYN-ACK")),
            None => "SYN-ACKs unanswered".to_owned(),
        },
        EvidenceKind::RequestDropped => "half-open connection dropped".to_owned(),
        EvidenceKind::ChildDestroyed => "destroyed in the accept queue".to_owned(),
        EvidenceKind::AcceptReturned => "accept() returned it".to_owned(),
        EvidenceKind::EventsLost => "we lost events".to_owned(),
        EvidenceKind::NothingMoreSeen => "nothing more was seen".to_owned(),
        EvidenceKind::StoppedWatching => "still open when we stopped watching".to_owned(),
        EvidenceKind::TableFull => "our table was full".to_owned(),
        EvidenceKind::ListenerClosed => "the listener closed".to_owned(),
        EvidenceKind::AcceptQueueFull => "accept queue full".to_owned(),
        EvidenceKind::SynQueueFull => "SYN queue full".to_owned(),
        EvidenceKind::DropReason => match reason {
            Some(reason) => format!("{reason} on this host"),
            None => "for a reason without a name".to_owned(),
        },
        EvidenceKind::NoSynAckMade => "no SYN-ACK was made".to_owned(),
        EvidenceKind::ResetSent => "RST sent".to_owned(),
        EvidenceKind::IcmpSent => "ICMP error sent".to_owned(),
        EvidenceKind::IcmpReceived => "ICMP error received".to_owned(),
    };
    let said = match evidence.errno {
        Some(number) if number != 0 => format!("{said} ({})", errno::name(number)),
        _ => said,
    };
    match evidence.soft_errno.filter(|number| evidence.errno != Some(*number)) {
        Some(number) => format!("{said}, noted before: {}", errno::name(number)),
        None => said,
    }
}

fn flag_words(flag: Flag) -> &'static str {
    match flag {
        Flag::Own => "our own",
        Flag::V4Mapped => "IPv4-mapped",
        Flag::SynCookie => "SYN cookie",
        Flag::FastOpen => "Fast Open",
        Flag::SimultaneousOpen => "simultaneous open",
        Flag::DeferAccept => "held back by TCP_DEFER_ACCEPT",
        Flag::ResetInQueue => "RST in the accept queue",
        Flag::SeenLate => "had begun before we watched",
        Flag::NonBlocking => "non-blocking",
        Flag::SynTimeLost => "time of the SYN unknown",
        Flag::EventsLost => "details lost",
        Flag::SynDropped => "SYN dropped here",
        Flag::AckDropped => "ACK dropped here",
        Flag::Mptcp => "MPTCP",
        Flag::Repair => "TCP_REPAIR",
        Flag::ResetSent => "peer held an earlier connection, RST sent",
        Flag::Suspended => "suspended meanwhile",
        Flag::MptcpJoin => "joins an MPTCP connection",
    }
}

fn counted(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

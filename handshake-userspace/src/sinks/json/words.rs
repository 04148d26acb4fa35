//! The names of enumerations in records: closed lists, part of the contract.
//!
//! The text sink and the counters use the same names where they need one. What a newcomer would get wrong: a
//! name here is never changed, even when the model's is; programs match on it.

use handshake_common::event::Attach;

use crate::model::{
    handshake::FastOpen,
    mib::{NotCompared, Tally},
    outcome::{AcceptOutcome, EvidenceKind, Flag, Outcome, Role},
};

/// `role`.
pub const fn role(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Server => "server",
        Role::Simultaneous => "simultaneous",
    }
}

/// `outcome` of a handshake.
pub const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Established => "established",
        Outcome::Refused => "refused",
        Outcome::TimedOut => "timed_out",
        Outcome::HostUnreachable => "host_unreachable",
        Outcome::NetUnreachable => "net_unreachable",
        Outcome::Reset => "reset",
        Outcome::Cancelled => "cancelled",
        Outcome::LocalError => "local_error",
        Outcome::NeverAccepted => "never_accepted",
        Outcome::SynDropped => "syn_dropped",
        Outcome::AckDropped => "ack_dropped",
        Outcome::Incomplete => "incomplete",
    }
}

/// `outcome` of an accept.
pub const fn accept_outcome(outcome: AcceptOutcome) -> &'static str {
    match outcome {
        AcceptOutcome::Accepted => "accepted",
        AcceptOutcome::NeverAccepted => "never_accepted",
        AcceptOutcome::ResetInQueue => "reset_in_queue",
        AcceptOutcome::Incomplete => "incomplete",
    }
}

/// `evidence.kind`.
pub const fn evidence(kind: EvidenceKind) -> &'static str {
    match kind {
        EvidenceKind::StateEstablished => "state_established",
        EvidenceKind::ResetReceived => "reset_received",
        EvidenceKind::SocketError => "socket_error",
        EvidenceKind::RetransmitTimeout => "retransmit_timeout",
        EvidenceKind::ClosedInSynSent => "closed_in_syn_sent",
        EvidenceKind::ClosedInSynReceived => "closed_in_syn_received",
        EvidenceKind::AckAfterClose => "ack_after_close",
        EvidenceKind::ConnectReturned => "connect_returned",
        EvidenceKind::SynAckTimeout => "syn_ack_timeout",
        EvidenceKind::RequestDropped => "request_dropped",
        EvidenceKind::ChildDestroyed => "child_destroyed",
        EvidenceKind::AcceptReturned => "accept_returned",
        EvidenceKind::EventsLost => "events_lost",
        EvidenceKind::NothingMoreSeen => "nothing_more_seen",
        EvidenceKind::StoppedWatching => "stopped_watching",
        EvidenceKind::TableFull => "table_full",
        EvidenceKind::ListenerClosed => "listener_closed",
        EvidenceKind::AcceptQueueFull => "accept_queue_full",
        EvidenceKind::SynQueueFull => "syn_queue_full",
        EvidenceKind::DropReason => "drop_reason",
        EvidenceKind::NoSynAckMade => "no_syn_ack_made",
        EvidenceKind::ResetSent => "reset_sent",
        EvidenceKind::IcmpSent => "icmp_sent",
        EvidenceKind::IcmpReceived => "icmp_received",
    }
}

/// One of `flags`.
pub const fn flag(flag: Flag) -> &'static str {
    match flag {
        Flag::Own => "own",
        Flag::V4Mapped => "v4_mapped",
        Flag::SynCookie => "syn_cookie",
        Flag::FastOpen => "fast_open",
        Flag::SimultaneousOpen => "simultaneous_open",
        Flag::DeferAccept => "defer_accept",
        Flag::ResetInQueue => "reset_in_queue",
        Flag::SeenLate => "seen_late",
        Flag::NonBlocking => "non_blocking",
        Flag::SynTimeLost => "syn_time_lost",
        Flag::EventsLost => "events_lost",
        Flag::SynDropped => "syn_dropped",
        Flag::AckDropped => "ack_dropped",
        Flag::Mptcp => "mptcp",
        Flag::Repair => "repair",
        Flag::ResetSent => "reset_sent",
        Flag::Suspended => "suspended",
        Flag::MptcpJoin => "mptcp_join",
    }
}

/// `options.fast_open_cookie`.
pub const fn fast_open_cookie(was_received: bool) -> &'static str {
    if was_received { "received" } else { "none" }
}

/// `options.fast_open`.
pub const fn fast_open(fast_open: FastOpen) -> &'static str {
    match fast_open {
        FastOpen::None => "none",
        FastOpen::Requested => "requested",
        FastOpen::DataSent => "data_sent",
        FastOpen::DataAccepted => "data_accepted",
    }
}

/// `attach`. A hook that every mode uses says nothing about the mode, so it has no name here.
pub const fn attach(attach: Option<Attach>) -> Option<&'static str> {
    match attach {
        None => Some("mixed"),
        Some(Attach::Common) => None,
        Some(Attach::Fentry) => Some("fentry"),
        Some(Attach::Kprobe) => Some("kprobe"),
        Some(Attach::Tracepoint) => Some("tracepoint"),
    }
}

/// A number of the second account.
pub const fn tally(tally: Tally) -> &'static str {
    match tally {
        Tally::ActiveOpens => "active_opens",
        Tally::PassiveOpens => "passive_opens",
        Tally::FailedOpens => "failed_opens",
        Tally::EmbryonicResets => "embryonic_resets",
    }
}

/// Why the kernel's own counters were not compared.
pub const fn not_compared(reason: NotCompared) -> &'static str {
    match reason {
        NotCompared::Filtered => "filtered",
        NotCompared::StoppedEarly => "stopped_early",
        NotCompared::NotYet => "not_yet",
    }
}

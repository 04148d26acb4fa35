//! How a handshake ended, and on what evidence: errno and RST in TCP's words.
//!
//! What a newcomer would get wrong: a socket that leaves SYN-SENT for CLOSED without an error on it has not
//! been refused. Its application closed it, or connect() itself gave up before a SYN left (no free port), and
//! only the call's return tells the two apart.

use handshake_common::tcp::TcpState;

use crate::model::{
    observation::{LeftSynSent, PassiveOpen},
    outcome::{Evidence, EvidenceKind, Outcome},
};

/// The errnos that the kernel puts on a socket in SYN-SENT or SYN-RECEIVED; the same numbers on every
/// architecture that we build for.
pub(super) mod errno {
    pub(crate) const EINTR: u32 = 4;
    pub(crate) const EACCES: u32 = 13;
    pub(crate) const ENONET: u32 = 64;
    pub(crate) const EPROTO: u32 = 71;
    pub(crate) const ENOPROTOOPT: u32 = 92;
    pub(crate) const EOPNOTSUPP: u32 = 95;
    pub(crate) const EADDRNOTAVAIL: u32 = 99;
    pub(crate) const ENETUNREACH: u32 = 101;
    pub(crate) const ECONNRESET: u32 = 104;
    pub(crate) const EISCONN: u32 = 106;
    pub(crate) const ETIMEDOUT: u32 = 110;
    pub(crate) const ECONNREFUSED: u32 = 111;
    pub(crate) const EHOSTDOWN: u32 = 112;
    pub(crate) const EHOSTUNREACH: u32 = 113;
    pub(crate) const EALREADY: u32 = 114;
    pub(crate) const EINPROGRESS: u32 = 115;
    /// Inside the kernel; a hook on a function sees it where a system call would show EINTR.
    pub(crate) const ERESTARTSYS: u32 = 512;
}

/// An outcome and what it rests on.
#[derive(Clone, Copy)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) kind: EvidenceKind,
    pub(super) errno: Option<u32>,
}

impl Verdict {
    pub(super) fn new(outcome: Outcome, kind: EvidenceKind) -> Self {
        Verdict { outcome, kind, errno: None }
    }

    fn with(self, errno: u32) -> Self {
        Verdict { errno: Some(errno), ..self }
    }

    pub(super) fn established() -> Self {
        Verdict::new(Outcome::Established, EvidenceKind::StateEstablished)
    }

    pub(super) fn evidence(self, syns: Option<u32>, syn_acks: Option<u32>) -> Evidence {
        Evidence { kind: self.kind, errno: self.errno, soft_errno: None, syns, syn_acks }
    }
}

/// Whether an errno of connect() says that an earlier call's handshake goes on: it ends none.
pub(super) fn is_still_connecting(number: u32) -> bool {
    matches!(number, errno::EINPROGRESS | errno::EALREADY | errno::EISCONN)
}

/// connect() failed and no SYN had left.
pub(super) fn failed_before_syn(number: u32) -> Verdict {
    let outcome = match number {
        errno::ENETUNREACH => Outcome::NetUnreachable,
        errno::EHOSTUNREACH => Outcome::HostUnreachable,
        _ => Outcome::LocalError,
    };
    Verdict::new(outcome, EvidenceKind::ConnectReturned).with(number)
}

/// The socket went from SYN-SENT to CLOSED. `None` when what was seen doesn't say why.
///
/// `syn_left` is false when no SYN is known to have been sent; `returned` is the errno of the call, where it
/// was seen after this.
pub(super) fn left_syn_sent_for_closed(
    end: &LeftSynSent,
    syn_left: bool,
    returned: Option<u32>,
) -> Option<Verdict> {
    let by_call = |number| closed_with(number, end.reset_received, syn_left, EvidenceKind::ConnectReturned);
    // A call that a signal interrupted says nothing about the handshake either.
    let failed_call = returned.filter(|number| {
        !is_still_connecting(*number) && !matches!(*number, 0 | errno::EINTR | errno::ERESTARTSYS)
    });
    match end.sk_err {
        // Found out when the socket was destroyed: no error is left on it, whether there was none or somebody has read it.
        // What the call said, and a RST, are evidence all the same.
        Some(0) if end.found_late && failed_call.is_some() => failed_call.map(by_call),
        Some(0) if end.found_late && end.reset_received => {
            Some(Verdict::new(Outcome::Refused, EvidenceKind::ResetReceived).with(errno::ECONNREFUSED))
        }
        Some(0) if end.found_late => None,
        // A RST in SYN-SENT means ECONNREFUSED (tcp_reset()). ECONNRESET without one is what tcp_disconnect() puts
        // on a socket that it closes itself, for connect() to AF_UNSPEC.
        Some(0 | errno::ECONNRESET) if !end.reset_received => match failed_call {
            Some(number) if !syn_left || number == errno::EADDRNOTAVAIL => Some(failed_before_syn(number)),
            // connect() had gone back to its caller in SYN-SENT, so nothing failed in it: a deferred Fast Open
            // (TCP_FASTOPEN_CONNECT), whose SYN waits for the first write, was closed before that.
            _ if syn_left || end.deferred || end.call_returned => {
                Some(Verdict::new(Outcome::Cancelled, EvidenceKind::ClosedInSynSent))
            }
            _ => Some(Verdict::new(Outcome::LocalError, EvidenceKind::ClosedInSynSent)),
        },
        // A RST was seen and then the socket was closed without an error: the RST was not acceptable (RFC
        // 9293 section 3.10.7.3) or its errno had been read. In SYN-SENT an acceptable one means refused.
        Some(0) => Some(Verdict::new(Outcome::Cancelled, EvidenceKind::ClosedInSynSent)),
        Some(number) => Some(closed_with(number, end.reset_received, syn_left, EvidenceKind::SocketError)),
        None if end.reset_received => {
            Some(Verdict::new(Outcome::Refused, EvidenceKind::ResetReceived).with(errno::ECONNREFUSED))
        }
        None => failed_call.map(by_call),
    }
}

/// What an errno on a socket in SYN-SENT means. Only ECONNREFUSED is ever a refusal.
fn closed_with(number: u32, reset_received: bool, syn_left: bool, by: EvidenceKind) -> Verdict {
    let by_reset = if reset_received { EvidenceKind::ResetReceived } else { by };
    match number {
        errno::ECONNREFUSED => Verdict::new(Outcome::Refused, by_reset),
        errno::ECONNRESET => Verdict::new(Outcome::Reset, by_reset),
        errno::ETIMEDOUT => Verdict::new(Outcome::TimedOut, EvidenceKind::RetransmitTimeout),
        errno::ENETUNREACH => Verdict::new(Outcome::NetUnreachable, by),
        errno::EHOSTUNREACH => Verdict::new(Outcome::HostUnreachable, by),
        // What icmp_err_convert and icmpv6_err_convert make of the other fatal ICMP codes, after a SYN: host
        // unknown, host isolated, protocol unreachable, source route failed, parameter problem, and (IPv6)
        // administratively prohibited. A router or the host says that it can't be reached this way.
        errno::EHOSTDOWN
        | errno::ENONET
        | errno::ENOPROTOOPT
        | errno::EOPNOTSUPP
        | errno::EPROTO
        | errno::EACCES
            if syn_left =>
        {
            Verdict::new(Outcome::HostUnreachable, by)
        }
        _ => Verdict::new(Outcome::LocalError, by),
    }
    .with(number)
}

/// A child, or one end of a simultaneous open, left SYN-RECEIVED without being established.
pub(super) fn left_syn_received(end: &PassiveOpen, timeout: EvidenceKind) -> Option<Verdict> {
    let errno_known = end.sk_err.filter(|number| *number != 0);
    let verdict = match errno_known {
        _ if end.reset_received => Verdict::new(Outcome::Reset, EvidenceKind::ResetReceived),
        _ if end.timed_out => Verdict::new(Outcome::TimedOut, timeout),
        _ if end.icmp_received => Verdict::new(Outcome::HostUnreachable, EvidenceKind::IcmpReceived),
        Some(errno::ETIMEDOUT) => Verdict::new(Outcome::TimedOut, timeout),
        Some(errno::ECONNRESET | errno::ECONNREFUSED) => {
            Verdict::new(Outcome::Reset, EvidenceKind::SocketError)
        }
        Some(errno::ENETUNREACH) => Verdict::new(Outcome::NetUnreachable, EvidenceKind::SocketError),
        Some(errno::EHOSTUNREACH) => Verdict::new(Outcome::HostUnreachable, EvidenceKind::SocketError),
        _ => return None,
    };
    Some(Verdict { errno: errno_known, ..verdict })
}

/// Whether an application closed it, or its listener did: TCP leaves an error.
pub(super) fn closed_without_error(left: &PassiveOpen) -> bool {
    left.new_state == Some(TcpState::Closed) && left.sk_err == Some(0)
}

/// Fast Open's child was closed half open. Of one that nobody accepted, nobody but its listener is there to close it;
/// which one that was is not known without probes.
pub(super) fn closed_half_open(end: &PassiveOpen, was_accepted: bool) -> Option<Verdict> {
    let kind = match (was_accepted, end.listener) {
        (false, None) => EvidenceKind::ListenerClosed,
        _ => EvidenceKind::ClosedInSynReceived,
    };
    closed_without_error(end).then(|| Verdict::new(Outcome::Cancelled, kind))
}

/// One end of a simultaneous open was closed between the two SYNs and the ACK: by a RST, or by a FIN, which takes it to
/// FIN-WAIT-1. Whether the peer's ACK came after that, nobody asks.
pub(super) fn closed_after_crossing(end: &PassiveOpen) -> Option<Verdict> {
    (end.new_state == Some(TcpState::FinWait1) || closed_without_error(end))
        .then(|| Verdict::new(Outcome::Cancelled, EvidenceKind::ClosedInSynReceived))
}

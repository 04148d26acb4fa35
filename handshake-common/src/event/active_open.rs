//! Acts of an active open: connect() called, SYN sent, answered, given up, returned.
//!
//! What a newcomer would get wrong: the time of connect() and the time of the SYN are different acts. With
//! a deferred Fast Open connect() returns long before the SYN leaves, and a failing connect() never sends
//! one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{endpoint::Endpoints, owner::Owner, tcp::Negotiated};

/// Bits of the `flags` in this module.
pub mod flags {
    /// The SYN left after connect() had returned (TCP_FASTOPEN_CONNECT): `called_ns` is not its beginning.
    pub const DEFERRED: u32 = 1;
    /// A RST for this socket was seen in SYN-SENT.
    pub const RESET_RECEIVED: u32 = 1 << 1;
    /// The connect() call had gone back to its caller (non-blocking, or timed out) when this happened.
    pub const CALL_RETURNED: u32 = 1 << 2;
    /// The hooks could have seen connect() return; without this bit nobody should wait for it.
    pub const RETURN_IS_SEEN: u32 = 1 << 3;
    // Bit 4 named an actor that no hook ever filled (ABI 2).
    /// We answered a segment with a RST in SYN-SENT: its ACK was of no SYN of ours.
    pub const RESET_SENT: u32 = 1 << 5;
    /// The socket is the daemon's own (canary, probe, exporters).
    pub const OWN: u32 = 1 << 6;
    /// The SYN carried Fast Open data or asked for a cookie (tcp_sock.syn_fastopen).
    pub const FAST_OPEN: u32 = 1 << 7;
    /// The peer acknowledged the data of our SYN (tcp_sock.syn_data_acked).
    pub const SYN_DATA_ACKED: u32 = 1 << 8;
    /// `sk_err` was readable.
    pub const ERROR_KNOWN: u32 = 1 << 9;
    /// The SYN carried data.
    pub const SYN_DATA: u32 = 1 << 10;
    /// It went to `new_state` at some time before the event: the kernel skipped the hook that would have said when.
    pub const END_TIME_UNKNOWN: u32 = 1 << 11;
    /// A further subflow of an MPTCP connection.
    pub const MPTCP_JOIN: u32 = 1 << 12;
    /// No hook saw the change of state; another one found it out, and an error may have been read off the socket since.
    pub const FOUND_LATE: u32 = 1 << 13;
    /// `ACTIVE_OPENS` never had it (no room, or the kernel skipped our programs), and it is none of those that were there
    /// when we came: what the table would have known is unknown.
    pub const SYN_TIME_LOST: u32 = 1 << 14;
    /// Our SYN asked for a Fast Open cookie, or showed one: a [`super::FastOpenAnswered`] follows.
    pub const COOKIE_FOLLOWS: u32 = 1 << 15;
}

/// [`FastOpenAnswered::cookie`].
pub mod cookie {
    /// The SYN-ACK's options could not be read.
    pub const UNKNOWN: u32 = 0;
    /// It carried a cookie (RFC 7413 section 4.1.1).
    pub const RECEIVED: u32 = 1;
    /// It carried none.
    pub const NOT_SENT: u32 = 2;
}

/// The first SYN was handed to IP (`tcp_connect`), or as near to that as the mode can see.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SynSent {
    /// Both ends; the local port is final unless the mode is tracepoint without sock_ops.
    pub endpoints: Endpoints,
    /// Who called connect() (or sendmsg() for Fast Open).
    pub owner: Owner,
    /// When connect() was called, 0 if not seen.
    pub called_ns: u64,
    /// Our initial sequence number, if `negotiated.known` says so; the rest of it is unknown as yet.
    pub negotiated: Negotiated,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// connect() failed at once: no route, no free port, forbidden. No SYN left.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ConnectFailed {
    /// Both ends as far as they were known; the remote end is what the caller asked for.
    pub endpoints: Endpoints,
    /// Who called connect().
    pub owner: Owner,
    /// When connect() was called, 0 if not seen.
    pub called_ns: u64,
    /// The errno, positive.
    pub errno: u32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// The socket left SYN-SENT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LeftSynSent {
    /// Both ends, as noted when the SYN was sent (at ->CLOSED the socket's own ports are zero again).
    pub endpoints: Endpoints,
    /// Who called connect().
    pub owner: Owner,
    /// When connect() was called, 0 if not seen.
    pub called_ns: u64,
    /// When the first SYN was sent, 0 if none was seen.
    pub syn_sent_ns: u64,
    /// When the kernel began to process the segment that answered (SYN-ACK, SYN or RST), 0 if none was.
    pub answered_ns: u64,
    /// When the last SYN was retransmitted, 0 if none was.
    pub last_retransmit_ns: u64,
    /// What was agreed on, for a change to ESTABLISHED.
    pub negotiated: Negotiated,
    /// `sk_err`, positive errno, if [`flags::ERROR_KNOWN`].
    pub sk_err: u32,
    /// `sk_err_soft`: what an ICMP said while we went on trying. 0 when nothing.
    pub sk_err_soft: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// SYNs sent again.
    pub syn_retransmits: u16,
    /// The state that it went to, a [`crate::tcp::TcpState`].
    pub new_state: u8,
    /// Keeps the layout free of padding.
    pub reserved: u8,
}

/// A connect() call returned to its caller.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ConnectReturned {
    /// 0, or the errno, positive.
    pub errno: u32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// The SYN-ACK of an active open with Fast Open has been looked at. The kernel does that after the change of state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FastOpenAnswered {
    /// One of [`cookie`].
    pub cookie: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// The SYN goes to another end than connect() was given: a program at the cgroup rewrote the address, or the kernel
/// read an unspecified one as this host's. Follows [`SynSent`], which has the end that TCP connects to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddressRewritten {
    /// What the application gave to connect(); IPv4 as ::ffff:a.b.c.d.
    pub asked_address: [u8; 16],
    /// Its port, host order.
    pub asked_port: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

crate::pod!(SynSent, ConnectFailed, LeftSynSent, ConnectReturned, FastOpenAnswered, AddressRewritten);

const _: () = assert!(size_of::<SynSent>() == 136);
const _: () = assert!(size_of::<ConnectFailed>() == 104);
const _: () = assert!(size_of::<LeftSynSent>() == 168);
const _: () = assert!(size_of::<ConnectReturned>() == 8);
const _: () = assert!(size_of::<FastOpenAnswered>() == 8);
const _: () = assert!(size_of::<AddressRewritten>() == 24);

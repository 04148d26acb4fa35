//! Acts of a passive open: from the SYN that reached a listener to the child in its accept queue.
//!
//! One payload serves the three kinds, because each repeats all that was known. What a newcomer would get
//! wrong: the SYN has no event of its own. Its time waits in the kernel side's `REQUESTS` table and travels
//! with the final ACK, since an event per SYN is what a SYN flood would multiply.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{endpoint::Endpoints, tcp::Negotiated};

/// Bits of [`PassiveOpen::flags`].
pub mod flags {
    /// There was no request sock: the connection was made from a SYN cookie.
    pub const SYN_COOKIE: u32 = 1;
    /// Fast Open: the child existed, and could be accepted, before the final ACK.
    pub const FAST_OPEN: u32 = 1 << 1;
    /// TCP_DEFER_ACCEPT held the child back until data came: the wait after the final ACK is not the network's.
    pub const DEFER_ACCEPT: u32 = 1 << 2;
    /// The SYN came before we watched: `syn_ns` is unknown, `synack_ns` is the kernel's own stamp.
    pub const SYN_NOT_SEEN: u32 = 1 << 3;
    /// The SYN was seen, but `REQUESTS` was full and later requests drove this one out.
    pub const SYN_TABLE_FULL: u32 = 1 << 4;
    /// A RST ended it.
    pub const RESET_RECEIVED: u32 = 1 << 5;
    /// `sk_err` was readable.
    pub const ERROR_KNOWN: u32 = 1 << 6;
    /// The SYN-ACK timer ended it: SYN-ACKs unanswered.
    pub const TIMED_OUT: u32 = 1 << 7;
    /// The listener or the request belongs to the daemon itself.
    pub const OWN: u32 = 1 << 8;
    /// The hooks see how the child leaves the accept queue; without this bit nobody should wait for it.
    pub const ACCEPT_IS_SEEN: u32 = 1 << 9;
    /// An ACK that would have made the child found the accept queue full, and was dropped.
    pub const ACK_DROPPED: u32 = 1 << 10;
    /// It ended, and no hook saw how: the kernel skipped them.
    pub const END_NOT_SEEN: u32 = 1 << 11;
    /// It was half open when we stopped watching.
    pub const STILL_OPEN: u32 = 1 << 12;
    /// We answered a segment of it with a RST: the final ACK, at a full accept queue (tcp_abort_on_overflow) or because
    /// MPTCP wants none of it; or, with [`OTHER_SYN`], another SYN.
    pub const RESET_SENT: u32 = 1 << 13;
    /// A further subflow of an MPTCP connection: accept() never returns it.
    pub const MPTCP_JOIN: u32 = 1 << 14;
    /// An ICMP error that answered its SYN-ACK ended it: the client can't be reached.
    pub const ICMP_RECEIVED: u32 = 1 << 15;
    /// The final ACK came after the child's owner had closed it: it never was ESTABLISHED.
    pub const ACKNOWLEDGED: u32 = 1 << 16;
    /// The RST of [`RESET_SENT`] answered a SYN with another number, inside the window: the client has begun anew.
    pub const OTHER_SYN: u32 = 1 << 17;
}

/// All that is known of one passive open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PassiveOpen {
    /// Both ends.
    pub endpoints: Endpoints,
    /// Address of the listener's `struct sock`, 0 when unknown.
    pub listener: u64,
    /// When the kernel began to process the first SYN, 0 if not seen.
    pub syn_ns: u64,
    /// When the first SYN-ACK was sent, 0 if unknown. From the kernel's `snt_synack` (whole microseconds).
    pub synack_ns: u64,
    /// When the last SYN-ACK was retransmitted, 0 if none was.
    pub last_retransmit_ns: u64,
    /// When the kernel began to process the final ACK, 0 if not seen.
    pub final_ack_ns: u64,
    /// When the child entered the accept queue, 0 if it has not.
    pub queued_ns: u64,
    /// ISNs from the request sock; options too once the child is ESTABLISHED, or the request died.
    pub negotiated: Negotiated,
    /// `sk_err`, positive errno, if [`flags::ERROR_KNOWN`].
    pub sk_err: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Children in the listener's accept queue when this one was queued (itself not counted).
    pub accept_queue_length: u32,
    /// The listener's limit (`sk_max_ack_backlog`), 0 when unknown.
    pub accept_queue_limit: u32,
    /// SYNs of this connection that we saw, 0 if unknown.
    pub syns_seen: u16,
    /// SYN-ACKs sent again.
    pub synack_retransmits: u16,
    /// State before, a [`crate::tcp::TcpState`].
    pub old_state: u8,
    /// State after.
    pub new_state: u8,
    /// Keeps the layout free of padding.
    pub reserved: u16,
}

/// A child that lost: while one CPU made it, another one took its request out of the kernel's table, for a child of its own
/// or because a RST had come. The kernel has counted it (`PassiveOpens`) and closes it unborn; it is no handshake of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ChildUndone {
    /// Both ends.
    pub endpoints: Endpoints,
}

crate::pod!(PassiveOpen, ChildUndone);

const _: () = assert!(size_of::<PassiveOpen>() == 152);
const _: () = assert!(size_of::<ChildUndone>() == 48);

//! A segment of a handshake that this host dropped: the SYN, or the final ACK of a SYN cookie, answered or not.
//!
//! Where the kernel names a reason it is told by its number, which is another on every kernel; the daemon has
//! the names from BTF. What a newcomer would get wrong: most SYN drops have no reason and no tracepoint. That
//! tcp_conn_request returned and no SYN-ACK was made says it, and the lengths of the listener's queues say why.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::endpoint::Endpoints;

/// Bits of [`SegmentDropped::flags`].
pub mod flags {
    /// `isn` is known.
    pub const ISN_KNOWN: u32 = 1;
    /// The final ACK that carried a SYN cookie; else a SYN.
    pub const COOKIE_ACK: u32 = 1 << 1;
    /// It was on its way out: `header.socket` is the socket that connects.
    pub const OUTGOING: u32 = 1 << 2;
    /// The queue lengths are known.
    pub const QUEUES_KNOWN: u32 = 1 << 3;
    /// This host answered it with a RST.
    pub const RESET_SENT: u32 = 1 << 4;
    /// This host answered it with an ICMP error.
    pub const ICMP_SENT: u32 = 1 << 5;
    /// It was dropped before it was known whether it was for this host or to be forwarded.
    pub const UNROUTED: u32 = 1 << 6;
}

/// One dropped segment. Ends are seen from this host's socket: local is where an incoming segment went to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SegmentDropped {
    /// Both ends; what could not be read is 0.
    pub endpoints: Endpoints,
    /// Address of the listener's `struct sock`, 0 when unknown.
    pub listener: u64,
    /// ISN of the end that opened actively.
    pub isn: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// The kernel's `enum skb_drop_reason`, 0 when it gave none.
    pub reason: u32,
    /// Keeps the fields where they are.
    pub reserved: u32,
    /// Children in the listener's accept queue.
    pub accept_queue_length: u32,
    /// Its limit.
    pub accept_queue_limit: u32,
    /// Half-open requests of the listener.
    pub syn_queue_length: u32,
    /// Keeps the layout free of padding.
    pub reserved2: u32,
}

crate::pod!(SegmentDropped);

const _: () = assert!(size_of::<SegmentDropped>() == 88);

//! A half-open passive open as the kernel side's `REQUESTS` table keeps it, between the SYN and its end.
//!
//! Both sides read it: the programs join acts by it, and the daemon tells of entries whose end no hook saw. What a
//! newcomer would get wrong: ends and ISNs are here only for that, because a request that ends before a hook's eyes
//! still has its own.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::endpoint::Endpoints;

/// One entry. In tracepoint mode, whose hook on the SYN sees no request sock, only the times are known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Request {
    /// Both ends; a family of 0 when they are unknown.
    pub endpoints: Endpoints,
    /// When the first SYN began to be processed.
    pub syn_ns: u64,
    /// When the request was created: immediately before the first SYN-ACK.
    pub created_ns: u64,
    /// When the first segment with an ACK for it came.
    pub final_ack_ns: u64,
    /// When the last SYN-ACK was sent again.
    pub last_retransmit_ns: u64,
    /// The listener's sock.
    pub listener: u64,
    /// The accept queue when it last refused the final ACK.
    pub accept_queue_length: u32,
    /// Its limit then.
    pub accept_queue_limit: u32,
    /// ISNs, and which of them are known: bits of [`crate::tcp::known`].
    pub isns_known: u32,
    /// Ours.
    pub local_isn: u32,
    /// The client's.
    pub remote_isn: u32,
    /// Bits of [`crate::event::passive_open::flags`].
    pub flags: u32,
    /// SYNs seen.
    pub syns_seen: u16,
    /// SYN-ACKs sent again.
    pub synack_retransmits: u16,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// A request that found the table full, in its one place, which the next one may take.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LatestRequest {
    /// As in the table; 0 where the place is free.
    pub key: u64,
    /// What is known of it.
    pub request: Request,
}

crate::pod!(Request, LatestRequest);

const _: () = assert!(size_of::<Request>() == 120);

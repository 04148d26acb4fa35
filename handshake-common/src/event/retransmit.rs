//! A SYN was sent again.
//!
//! What a newcomer would get wrong: SYN-ACK retransmissions have no event. A flood would multiply them, so
//! they are counted in the `REQUESTS` table and reported with the end of the passive open.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::endpoint::Endpoints;

/// The kernel sent the SYN of an active open again (RFC 6298: its timer expired).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SynRetransmitted {
    /// Both ends.
    pub endpoints: Endpoints,
    /// Which one it was, counted from 1; 0 when unknown.
    pub attempt: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

crate::pod!(SynRetransmitted);

const _: () = assert!(size_of::<SynRetransmitted>() == 56);

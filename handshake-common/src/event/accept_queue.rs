//! How a child leaves the accept queue: by accept(), or destroyed.
//!
//! What a newcomer would get wrong: a RST while a child is queued does not take it out of the queue;
//! accept() still returns it. So the RST is a time on these events and not an end.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{endpoint::Endpoints, owner::Owner};

/// Bits of the `flags` in this module.
pub mod flags {
    /// The listener belongs to the daemon itself.
    pub const OWN: u32 = 1;
    /// The child was in our table (its queueing was seen).
    pub const QUEUEING_SEEN: u32 = 1 << 1;
    /// accept() took it in SYN-RECEIVED, which only Fast Open makes possible (RFC 7413 section 4.2).
    pub const BEFORE_ESTABLISHED: u32 = 1 << 2;
    /// No hook saw accept() itself: that it took the child shows only now, so who and when are unknown.
    pub const CALL_NOT_SEEN: u32 = 1 << 3;
}

/// accept() took the child.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Accepted {
    /// Both ends of the child.
    pub endpoints: Endpoints,
    /// The thread that called accept().
    pub owner: Owner,
    /// When the child entered the queue, 0 if not seen.
    pub queued_ns: u64,
    /// When this thread began to wait in accept(), 0 if not seen (it waited before we attached).
    pub waiting_since_ns: u64,
    /// When a RST hit the queued child, 0 if none did.
    pub reset_ns: u64,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// A queued child was destroyed, and nobody had accepted it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ChildDestroyed {
    /// Both ends of the child, as noted when it was queued.
    pub endpoints: Endpoints,
    /// When the child entered the queue.
    pub queued_ns: u64,
    /// When a RST hit the queued child, 0 if none did.
    pub reset_ns: u64,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

crate::pod!(Accepted, ChildDestroyed);

const _: () = assert!(size_of::<Accepted>() == 120);
const _: () = assert!(size_of::<ChildDestroyed>() == 72);

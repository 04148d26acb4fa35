//! What the daemon tells the kernel side when everything is attached: what will be seen, and that it may begin.
//!
//! What a newcomer would get wrong: this is no configuration. What is filtered and where fields lie is constant when a
//! program is verified (`filter`, `offsets`); which hooks work is known only when all were tried.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The one entry of the kernel side's map `RUNTIME`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Runtime {
    /// [`RETURN_BY_SOCKET`], [`RETURN_BY_THREAD`], or 0: nobody will see connect() return.
    pub return_is_seen: u32,
    /// Not 0: hooks see how children leave the accept queue.
    pub accept_is_seen: u32,
    /// Bit 0: a probe on connect() fills `ACTIVE_OPENS`. Bit 1: sock_ops or a probe reports the SYN, so that
    /// CLOSED->SYN-SENT need not stand in for it.
    pub syn_sent_is_seen: u32,
    /// Not 0: sock_ops notes the SYN of every passive open.
    pub syn_is_noted: u32,
    /// Not 0: probes see how requests begin and how they die.
    pub requests_are_seen: u32,
    /// Not 0: a hook looks at the SYN-ACK of a Fast Open.
    pub cookie_is_seen: u32,
    /// Not 0: the daemon has asked every network namespace for the sockets that were there before us.
    pub snapshot_is_complete: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
    /// Since when everything is attached, and we watch, CLOCK_MONOTONIC; 0 before that.
    pub since_ns: u64,
}

/// [`Runtime::return_is_seen`]: by a hook that knows the socket.
pub const RETURN_BY_SOCKET: u32 = 1;
/// [`Runtime::return_is_seen`]: by the system call's exit, joined by thread.
pub const RETURN_BY_THREAD: u32 = 2;

crate::pod!(Runtime);

const _: () = assert!(size_of::<Runtime>() == 40);

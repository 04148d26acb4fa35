//! A listener opened or closed, in process context: who owns it.
//!
//! What a newcomer would get wrong: the process that called listen() need not be the one that accepts
//! (forked workers, socket activation); a server record names the acceptor and falls back to this one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{endpoint::Endpoints, owner::Owner};

/// A socket entered or left LISTEN.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Listener {
    /// The local end; the remote end is unspecified.
    pub endpoints: Endpoints,
    /// Who called listen() or close().
    pub owner: Owner,
    /// The limit of its accept queue, 0 when unknown.
    pub accept_queue_limit: u32,
    /// 1 when the listener belongs to the daemon itself.
    pub own: u32,
}

crate::pod!(Listener);

const _: () = assert!(size_of::<Listener>() == 96);

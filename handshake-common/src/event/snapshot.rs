//! A socket that was there before us, read once at start by `iter/tcp`.
//!
//! What a newcomer would get wrong: these are no acts. They only keep a handshake that began before we
//! watched from being told wrongly: it is flagged `seen_late`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::endpoint::Endpoints;

/// One socket as the iterator found it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SocketSeen {
    /// Both ends.
    pub endpoints: Endpoints,
    /// When the first SYN-ACK was sent (request socks only), 0 if unknown.
    pub synack_ns: u64,
    /// Inode of the socket file, 0 when it has none (request sock, or not yet accepted).
    pub inode: u64,
    /// Children in the accept queue (listeners only).
    pub accept_queue_length: u32,
    /// The limit of the accept queue (listeners only).
    pub accept_queue_limit: u32,
    /// Retransmissions so far (SYN or SYN-ACK).
    pub retransmits: u16,
    /// A [`crate::tcp::TcpState`].
    pub state: u8,
    /// Keeps the layout free of padding.
    pub reserved: u8,
    /// 1 for a child that has no socket file yet: queued, not accepted.
    pub queued: u32,
}

crate::pod!(SocketSeen);

const _: () = assert!(size_of::<SocketSeen>() == 80);

//! A socket that was there before us, as `iter/tcp` found it.
//!
//! Mirrors `handshake_common::event::snapshot`. What a reader would get wrong: only listeners have an accept
//! queue; in other sockets those fields mean nothing, so they are dropped there.

use handshake_common::{event::snapshot as raw, tcp::TcpState};

use super::{DecodeError, endpoint::ends, known_ns, state};
use crate::model::observation::{Act, SocketSeen};

pub(super) fn socket_seen(raw: &raw::SocketSeen) -> Result<Act, DecodeError> {
    let state = state(raw.state)?;
    Ok(Act::SocketSeen(SocketSeen {
        ends: ends(&raw.endpoints),
        synack_ns: known_ns(raw.synack_ns),
        inode: (raw.inode != 0).then_some(raw.inode),
        accept_queue: (state == TcpState::Listen)
            .then_some((raw.accept_queue_length, raw.accept_queue_limit)),
        retransmits: raw.retransmits,
        state,
        queued: raw.queued != 0,
    }))
}

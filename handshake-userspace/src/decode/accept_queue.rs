//! How a child left the accept queue: accepted, or destroyed.
//!
//! Mirrors `handshake_common::event::accept_queue`. What a reader would get wrong: `reset_ns` is no end.
//! accept() still returns a child that a RST has hit, and the tracker says what that means.

use handshake_common::event::accept_queue as raw;

use super::{
    endpoint::{ends, process},
    known_ns,
};
use crate::model::observation::{Accepted, Act, ChildDestroyed};

pub(super) fn accepted(raw: &raw::Accepted) -> Act {
    Act::Accepted(Accepted {
        ends: ends(&raw.endpoints),
        process: process(&raw.owner),
        queued_ns: known_ns(raw.queued_ns),
        waiting_since_ns: known_ns(raw.waiting_since_ns),
        reset_ns: known_ns(raw.reset_ns),
        before_established: raw.flags & raw::flags::BEFORE_ESTABLISHED != 0,
        call_not_seen: raw.flags & raw::flags::CALL_NOT_SEEN != 0,
    })
}

pub(super) fn child_destroyed(raw: &raw::ChildDestroyed) -> Act {
    Act::ChildDestroyed(ChildDestroyed {
        ends: ends(&raw.endpoints),
        queued_ns: known_ns(raw.queued_ns),
        reset_ns: known_ns(raw.reset_ns),
    })
}

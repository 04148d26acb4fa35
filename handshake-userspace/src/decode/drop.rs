//! A segment that this host dropped.
//!
//! Mirrors `handshake_common::event::drop`. What a reader would get wrong: the reason stays a number here, for
//! what it means is written in the BTF of the kernel that gave it.

use handshake_common::event::drop::{self as raw, flags};

use super::endpoint::ends;
use crate::model::observation::{Act, Queues, Rejection, SegmentDropped};

pub(super) fn segment_dropped(raw: &raw::SegmentDropped) -> Act {
    let has = |bit| raw.flags & bit != 0;
    Act::SegmentDropped(Box::new(SegmentDropped {
        ends: ends(&raw.endpoints),
        listener: (raw.listener != 0).then_some(raw.listener),
        isn: has(flags::ISN_KNOWN).then_some(raw.isn),
        cookie_ack: has(flags::COOKIE_ACK),
        outgoing: has(flags::OUTGOING),
        answer: match (has(flags::RESET_SENT), has(flags::ICMP_SENT)) {
            (true, _) => Some(Rejection::Reset),
            (false, true) => Some(Rejection::Icmp),
            (false, false) => None,
        },
        unrouted: has(flags::UNROUTED),
        reason: (raw.reason != 0).then_some(raw.reason),
        queues: has(flags::QUEUES_KNOWN).then_some(Queues {
            accept_length: raw.accept_queue_length,
            accept_limit: raw.accept_queue_limit,
            syn_length: raw.syn_queue_length,
        }),
    }))
}

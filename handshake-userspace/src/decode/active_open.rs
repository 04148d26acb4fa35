//! Acts of an active open: SYN sent, connect() failed or returned, SYN-SENT left, Fast Open answered.
//!
//! Mirrors `handshake_common::event::active_open`. What a reader would get wrong: the process is who called connect(),
//! as noted then; who was running when the state changed is nobody's business, for in softirq it is whoever was
//! interrupted.

use handshake_common::event::active_open::{self as raw, cookie, flags};

use super::{
    DecodeError,
    endpoint::{agreed, end, ends, process},
    known_ns, state,
};
use crate::model::observation::{Act, ConnectFailed, LeftSynSent, SynSent};

pub(super) fn syn_sent(raw: &raw::SynSent) -> Act {
    let has = |bit| raw.flags & bit != 0;
    Act::SynSent(SynSent {
        ends: ends(&raw.endpoints),
        process: process(&raw.owner),
        called_ns: known_ns(raw.called_ns),
        local_isn: agreed(&raw.negotiated).local_isn,
        deferred: has(flags::DEFERRED),
        fast_open: has(flags::FAST_OPEN),
        own: has(flags::OWN),
    })
}

pub(super) fn connect_failed(raw: &raw::ConnectFailed) -> Act {
    Act::ConnectFailed(ConnectFailed {
        ends: ends(&raw.endpoints),
        process: process(&raw.owner),
        called_ns: known_ns(raw.called_ns),
        errno: raw.errno,
        own: raw.flags & flags::OWN != 0,
    })
}

pub(super) fn left_syn_sent(raw: &raw::LeftSynSent) -> Result<Act, DecodeError> {
    let has = |bit| raw.flags & bit != 0;
    Ok(Act::LeftSynSent(Box::new(LeftSynSent {
        ends: ends(&raw.endpoints),
        process: process(&raw.owner),
        called_ns: known_ns(raw.called_ns),
        syn_sent_ns: known_ns(raw.syn_sent_ns),
        answered_ns: known_ns(raw.answered_ns),
        last_retransmit_ns: known_ns(raw.last_retransmit_ns),
        agreed: agreed(&raw.negotiated),
        sk_err: has(flags::ERROR_KNOWN).then_some(raw.sk_err),
        sk_err_soft: raw.sk_err_soft,
        syn_retransmits: raw.syn_retransmits,
        new_state: state(raw.new_state)?,
        deferred: has(flags::DEFERRED),
        fast_open: has(flags::FAST_OPEN),
        reset_received: has(flags::RESET_RECEIVED),
        reset_sent: has(flags::RESET_SENT),
        call_returned: has(flags::CALL_RETURNED),
        end_time_unknown: has(flags::END_TIME_UNKNOWN),
        found_late: has(flags::FOUND_LATE),
        syn_time_lost: has(flags::SYN_TIME_LOST),
        return_is_seen: has(flags::RETURN_IS_SEEN),
        own: has(flags::OWN),
        mptcp_join: has(flags::MPTCP_JOIN),
        syn_data: has(flags::SYN_DATA),
        syn_data_acked: has(flags::SYN_DATA_ACKED),
        cookie_follows: has(flags::COOKIE_FOLLOWS),
    })))
}

pub(super) fn address_rewritten(raw: &raw::AddressRewritten) -> Act {
    let port = u16::try_from(raw.asked_port).unwrap_or(0);
    Act::AddressRewritten { asked: end(raw.asked_address, port, false) }
}

pub(super) fn connect_returned(raw: &raw::ConnectReturned) -> Act {
    Act::ConnectReturned { errno: raw.errno }
}

pub(super) fn fast_open_answered(raw: &raw::FastOpenAnswered) -> Act {
    Act::FastOpenAnswered {
        cookie: match raw.cookie {
            cookie::RECEIVED => Some(true),
            cookie::NOT_SENT => Some(false),
            _ => None,
        },
    }
}

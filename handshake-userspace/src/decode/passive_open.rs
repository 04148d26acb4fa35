//! Acts of a passive open: child queued, SYN-RECEIVED left, request died half open.
//!
//! Mirrors `handshake_common::event::passive_open`; one payload serves the three kinds. What a reader would
//! get wrong: a state of 0 is no damage, it says that the act was no change of state (a request sock has
//! none); every other number that is no state is an error.

use handshake_common::{
    event::passive_open::{self as raw, flags},
    tcp::TcpState,
};

use super::{
    DecodeError,
    endpoint::{agreed, ends},
    known_ns, state,
};
use crate::model::observation::{Act, PassiveOpen};

pub(super) fn passive_open(raw: &raw::PassiveOpen) -> Result<Box<PassiveOpen>, DecodeError> {
    let has = |bit| raw.flags & bit != 0;
    Ok(Box::new(PassiveOpen {
        ends: ends(&raw.endpoints),
        listener: (raw.listener != 0).then_some(raw.listener),
        syn_ns: known_ns(raw.syn_ns),
        synack_ns: known_ns(raw.synack_ns),
        last_retransmit_ns: known_ns(raw.last_retransmit_ns),
        final_ack_ns: known_ns(raw.final_ack_ns),
        queued_ns: known_ns(raw.queued_ns),
        agreed: agreed(&raw.negotiated),
        sk_err: has(flags::ERROR_KNOWN).then_some(raw.sk_err),
        accept_queue_length: raw.accept_queue_length,
        accept_queue_limit: (raw.accept_queue_limit != 0).then_some(raw.accept_queue_limit),
        syns_seen: (raw.syns_seen != 0).then_some(raw.syns_seen),
        synack_retransmits: raw.synack_retransmits,
        old_state: state_if_any(raw.old_state)?,
        new_state: state_if_any(raw.new_state)?,
        syn_cookie: has(flags::SYN_COOKIE),
        fast_open: has(flags::FAST_OPEN),
        // The kernel marks a request alike when it drops its final ACK at a full accept queue (tcp_check_req).
        defer_accept: has(flags::DEFER_ACCEPT) && !has(flags::ACK_DROPPED),
        syn_not_seen: has(flags::SYN_NOT_SEEN),
        syn_table_full: has(flags::SYN_TABLE_FULL),
        reset_received: has(flags::RESET_RECEIVED),
        timed_out: has(flags::TIMED_OUT),
        accept_is_seen: has(flags::ACCEPT_IS_SEEN),
        own: has(flags::OWN),
        ack_dropped: has(flags::ACK_DROPPED),
        end_not_seen: has(flags::END_NOT_SEEN),
        still_open: has(flags::STILL_OPEN),
        reset_sent: has(flags::RESET_SENT),
        mptcp_join: has(flags::MPTCP_JOIN),
        icmp_received: has(flags::ICMP_RECEIVED),
        acknowledged: has(flags::ACKNOWLEDGED),
        other_syn: has(flags::OTHER_SYN),
    }))
}

pub(super) fn child_undone(raw: &raw::ChildUndone) -> Act {
    Act::ChildUndone { ends: ends(&raw.endpoints) }
}

fn state_if_any(number: u8) -> Result<Option<TcpState>, DecodeError> {
    if number == 0 { Ok(None) } else { state(number).map(Some) }
}

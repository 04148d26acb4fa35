//! What is known of one passive open, from whatever told of it first.
//!
//! What a newcomer would get wrong: each event repeats what the ones before it said, but a later one may know less; what
//! is known is completed, and never overwritten by an absence.

use std::sync::Arc;

use super::{drops::DroppedAttempt, entry::complete_ends};
use crate::model::{
    observation::{Ends, PassiveOpen},
    process::Process,
};

/// What is known of one passive open.
#[derive(Default)]
pub(super) struct Child {
    pub(super) ends: Ends,
    /// What the kernel said of the half-open time; absent when only accept() or the child's death was seen.
    pub(super) half_open: Option<Box<PassiveOpen>>,
    pub(super) queued_ns: Option<u64>,
    pub(super) established_ns: Option<u64>,
    /// It left SYN-RECEIVED, or died half open, without being established.
    pub(super) closed: bool,
    pub(super) closed_ns: Option<u64>,
    /// Its owner had closed it before that: when it was established is what the ACK says, if that was seen.
    pub(super) acknowledged_late: bool,
    /// It never was more than a request sock.
    pub(super) request_died: bool,
    /// The listener had closed before that.
    pub(super) listener_closed: bool,
    /// accept() took it: when, and who, as far as the call was seen.
    pub(super) taken: Option<(Option<u64>, Option<Process>)>,
    /// When that thread had called accept().
    pub(super) called_ns: Option<u64>,
    pub(super) destroyed: bool,
    pub(super) reset_in_queue: bool,
    /// accept() took it before the final ACK.
    pub(super) early: bool,
    pub(super) own: bool,
    /// The snapshot found it queued before we watched.
    pub(super) seen_late: bool,
    /// Segments of it that were dropped before one was let in.
    pub(super) dropped: Option<Box<DroppedAttempt>>,
    /// The ledger has counted it.
    pub(super) counted: bool,
    /// Who listened when it was queued.
    pub(super) listener_process: Option<Arc<Process>>,
}

impl Child {
    /// Whether it can still leave the accept queue, and we would see that.
    pub(super) fn is_in_queue(&self) -> bool {
        let is_seen = self.half_open.as_ref().is_some_and(|half_open| half_open.accept_is_seen);
        // Fast Open's child is queued when it is made.
        let was_queued = self.queued_ns.is_some() || self.established_ns.is_some() || self.is_fast_open();
        is_seen && was_queued && self.taken.is_none() && !self.destroyed && !self.request_died
    }

    /// Whether Fast Open made it, so that it may be accepted in SYN-RECEIVED.
    pub(super) fn is_fast_open(&self) -> bool {
        self.early || self.half_open.as_ref().is_some_and(|open| open.fast_open)
    }

    pub(super) fn complete_by(&mut self, mut later: Box<PassiveOpen>) {
        self.ends = complete_ends(later.ends, self.ends);
        self.queued_ns = self.queued_ns.or(later.queued_ns);
        self.own |= later.own;
        if let Some(earlier) = self.half_open.take() {
            later.listener = later.listener.or(earlier.listener);
            later.syn_ns = later.syn_ns.or(earlier.syn_ns);
            later.synack_ns = later.synack_ns.or(earlier.synack_ns);
            later.last_retransmit_ns = later.last_retransmit_ns.max(earlier.last_retransmit_ns);
            later.final_ack_ns = later.final_ack_ns.or(earlier.final_ack_ns);
            later.agreed.local_isn = later.agreed.local_isn.or(earlier.agreed.local_isn);
            later.agreed.remote_isn = later.agreed.remote_isn.or(earlier.agreed.remote_isn);
            later.agreed.options = later.agreed.options.or(earlier.agreed.options);
            later.syns_seen = later.syns_seen.max(earlier.syns_seen);
            later.synack_retransmits = later.synack_retransmits.max(earlier.synack_retransmits);
            if later.accept_queue_limit.is_none() {
                later.accept_queue_limit = earlier.accept_queue_limit;
                later.accept_queue_length = earlier.accept_queue_length;
            }
            later.syn_cookie |= earlier.syn_cookie;
            later.fast_open |= earlier.fast_open;
            later.defer_accept |= earlier.defer_accept;
            later.syn_not_seen |= earlier.syn_not_seen;
            later.syn_table_full |= earlier.syn_table_full;
            later.accept_is_seen |= earlier.accept_is_seen;
            later.ack_dropped |= earlier.ack_dropped;
            later.mptcp_join |= earlier.mptcp_join;
        }
        self.half_open = Some(later);
    }
}

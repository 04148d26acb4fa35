//! Passive open: SYN received, request created, final ACK.
//!
//! The SYN's time waits in `REQUESTS` under the request sock and travels with the child. What a newcomer
//! would get wrong: a retransmitted SYN of a pending request never reaches the listener's state machine; it
//! goes through tcp_check_req, like the final ACK and a RST.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    counter::Counter,
    endpoint::Endpoints,
    event::{
        Attach,
        passive_open::{PassiveOpen, flags},
    },
    filter::ROLE_SERVER,
    request::Request,
    tcp::{ACK, FIN, Negotiated, RST, SYN, TcpState, known},
};

use super::{argument, request_end};
use crate::{
    emit::{count, now_ns},
    filter,
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        request_sock::RequestSock,
        sk_buff,
        sock::Sock,
    },
    maps::{self, IN_SOFTIRQ, QUEUED, insert_new_request, insert_request},
};

/// A segment reached a listener. Only a SYN is of interest: its time is noted for the request that the
/// kernel is about to create on this CPU.
#[inline(always)]
pub fn segment_at_listener<M: Memory>(listener: Sock<M>, skb: *const u8) {
    if !filter::wants_role(ROLE_SERVER) || skb.is_null() {
        return;
    }
    no_answer_so_far();
    let Some(segment) = sk_buff::tcp_flags::<M>(skb) else { return };
    if segment & (SYN | ACK | RST | FIN) != SYN {
        return;
    }
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    unsafe {
        (*work).syn_ns = now_ns();
        (*work).syn_listener = listener.key();
    }
}

/// The kernel created a request sock and is about to send the SYN-ACK.
#[inline(always)]
pub fn request_created<M: Memory>(listener: Sock<M>, request: RequestSock<M>, attach: Attach) {
    if !filter::wants_role(ROLE_SERVER) {
        return;
    }
    let mut ends = Endpoints::default();
    request.ends(&mut ends);
    if !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return;
    }
    let mut isns = Negotiated::default();
    request.isns(&mut isns);
    let entry = Request {
        endpoints: ends,
        syn_ns: syn_time(listener.key()),
        created_ns: now_ns(),
        final_ack_ns: 0,
        last_retransmit_ns: 0,
        listener: listener.key(),
        accept_queue_length: 0,
        accept_queue_limit: 0,
        isns_known: isns.known,
        local_isn: isns.local_isn,
        remote_isn: isns.remote_isn,
        flags: 0,
        syns_seen: 1,
        synack_retransmits: 0,
        reserved: 0,
    };
    let key = request.key();
    if !insert_new_request(key, &entry) {
        request_end::end_was_missed(key, attach);
        insert_request(key, &entry);
    }
    if let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) {
        // SAFETY: this CPU's own entry.
        unsafe { (*work).created = key };
    }
}

/// Time of the SYN that this CPU works on, if it is for this listener; taken once.
#[inline(always)]
pub fn syn_time(listener: u64) -> u64 {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own entry.
    unsafe {
        let syn_ns = if (*work).syn_listener == listener { (*work).syn_ns } else { 0 };
        (*work).syn_listener = 0;
        syn_ns
    }
}

/// A segment reached a pending request: the final ACK, a SYN again, or a RST.
#[inline(always)]
pub fn segment_at_request<M: Memory>(listener: Sock<M>, request: RequestSock<M>, skb: *const u8) {
    no_answer_so_far();
    let Some(segment) = sk_buff::tcp_flags::<M>(skb) else { return };
    let Some(entry) = maps::request(request.key()) else {
        // Its beginning was not seen; its end may be within this call.
        if segment & RST != 0
            && is_in_window(request, skb)
            && let Some(work) = IN_SOFTIRQ.get_ptr_mut(0)
        {
            // SAFETY: this CPU's own entry.
            unsafe { (*work).reset_request = request.key() };
        }
        if segment & (RST | SYN | ACK) == ACK {
            closed_child_acknowledged(listener, request, skb);
        }
        return;
    };
    // tcp_check_req asks in this order. An ACK of another number is of an older connection, whatever else the segment is.
    if segment & ACK != 0
        && let Some(number) = sk_buff::acknowledges::<M>(skb)
        && !request.is_acknowledged_by(number)
    {
        return;
    }
    let is_first_number = match sk_buff::sequence::<M>(skb) {
        Some(number) => request.began_with(number),
        None => true,
    };
    // SAFETY: a live entry. Two CPUs may race for one request; what can be lost is one count of a SYN.
    unsafe {
        if segment & (RST | SYN | ACK) == SYN && is_first_number {
            // Of a request that is older than we are nobody counted the first ones.
            if (*entry).flags & flags::SYN_NOT_SEEN == 0 {
                (*entry).syns_seen = (*entry).syns_seen.saturating_add(1);
            }
            return;
        }
        // What is outside the window is answered by an ACK at most, and nothing comes of it.
        if !is_in_window(request, skb) {
            return;
        }
        if segment & RST != 0 {
            (*entry).flags |= flags::RESET_RECEIVED;
        } else if segment & SYN != 0 && !is_first_number {
            may_be_refused(request.key(), skb, flags::RESET_SENT | flags::OTHER_SYN);
        } else if segment & ACK != 0 {
            if (*entry).final_ack_ns == 0 {
                (*entry).final_ack_ns = now_ns();
            }
            // tcp_v4_syn_recv_sock asks the same question and makes no child then; the client, who has sent
            // its ACK, believes that it is connected.
            if let Some((length, limit)) = listener.accept_queue()
                && length > limit
                && would_be_taken(listener, request, skb)
            {
                (*entry).flags |= flags::ACK_DROPPED;
                (*entry).accept_queue_length = length;
                (*entry).accept_queue_limit = limit;
                // With tcp_abort_on_overflow.
                may_be_refused(request.key(), skb, flags::RESET_SENT);
            }
        }
    }
}

/// What was noted of an earlier segment is of no use to the next one, whose memory may be the same: the kernel answers
/// within the call, or not at all.
#[inline(always)]
fn no_answer_so_far() {
    if let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) {
        // SAFETY: this CPU's own entry.
        unsafe { (*work).refusable = 0 };
    }
}

/// Whether a segment touches the window that the request's SYN-ACK announced. Whether its timestamp is of the past (PAWS)
/// is not asked: that is in the header, which lockdown hides.
#[inline(always)]
fn is_in_window<M: Memory>(request: RequestSock<M>, skb: *const u8) -> bool {
    let Some(begin) = sk_buff::sequence::<M>(skb) else { return true };
    let Some(end) = sk_buff::end_sequence::<M>(skb) else { return true };
    request.is_in_window(begin, end)
}

/// Fast Open's child asks about its own request. When its owner has closed it, no change of state says when the final
/// ACK came.
#[inline(always)]
fn closed_child_acknowledged<M: Memory>(child: Sock<M>, request: RequestSock<M>, skb: *const u8) {
    if child.state() != TcpState::FinWait1 as u8 {
        return;
    }
    let Some(queued) = QUEUED.get_ptr_mut(child.key()) else { return };
    if let Some(number) = sk_buff::acknowledges::<M>(skb)
        && !request.is_acknowledged_up_to(number)
    {
        return;
    }
    // SAFETY: a live entry; the child's lock is held.
    unsafe {
        if (*queued).closed_early != 0 && (*queued).passive.final_ack_ns == 0 {
            (*queued).passive.final_ack_ns = now_ns();
        }
    }
}

/// Whether tcp_check_req gets as far as the question whether the accept queue has room: TCP_DEFER_ACCEPT ignores a
/// bare ACK, and a segment outside the window is no more than answered.
#[inline(always)]
fn would_be_taken<M: Memory>(listener: Sock<M>, request: RequestSock<M>, skb: *const u8) -> bool {
    let Some(begin) = sk_buff::sequence::<M>(skb) else { return true };
    let Some(end) = sk_buff::end_sequence::<M>(skb) else { return true };
    request.would_take(begin, end, listener.defers_accept())
}

/// Notes the segment: if a RST for it follows within this call, the request is dropped for that.
#[inline(always)]
fn may_be_refused(request: u64, skb: *const u8, if_refused: u32) {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    unsafe {
        (*work).refusable = skb as u64;
        (*work).refusable_request = request;
        (*work).if_refused = if_refused;
    }
}

/// Writes what is known of a request into the facts of its child (or of its death).
#[inline(always)]
pub fn gather<M: Memory>(request: RequestSock<M>, passive: &mut PassiveOpen) {
    request.isns(&mut passive.negotiated);
    passive.synack_ns = request.synack_ns();
    if request.deferred_accept() {
        passive.flags |= flags::DEFER_ACCEPT;
    }
    let Some(entry) = maps::request(request.key()) else {
        passive.synack_retransmits = request.retransmits();
        // Either it began before we watched, or the table had no room.
        passive.flags |= if passive.synack_ns != 0 && passive.synack_ns >= filter::watching_since_ns() {
            flags::SYN_TABLE_FULL
        } else {
            flags::SYN_NOT_SEEN
        };
        return;
    };
    // SAFETY: a live entry.
    let entry = unsafe { &*entry };
    if entry.isns_known & known::REMOTE_ISN != 0 && entry.remote_isn != passive.negotiated.remote_isn {
        // The one before it at this address, whose end was not seen, as this one's beginning was not.
        passive.flags |= flags::SYN_TABLE_FULL;
        return;
    }
    // The kernel's stamp is in whole microseconds, cut off: the request was created before the SYN-ACK was
    // sent, so the later of the two is the nearer.
    if passive.synack_ns < entry.created_ns {
        passive.synack_ns = entry.created_ns;
    }
    copy_entry(entry, passive);
}

/// What the table holds of a request, but for what its sock says better.
#[inline(always)]
pub fn copy_entry(entry: &Request, passive: &mut PassiveOpen) {
    passive.syn_ns = entry.syn_ns;
    passive.final_ack_ns = entry.final_ack_ns;
    passive.last_retransmit_ns = entry.last_retransmit_ns;
    passive.syns_seen = entry.syns_seen;
    passive.synack_retransmits = entry.synack_retransmits;
    passive.flags |= entry.flags;
    passive.accept_queue_length = entry.accept_queue_length;
    passive.accept_queue_limit = entry.accept_queue_limit;
    if passive.listener == 0 {
        passive.listener = entry.listener;
    }
}

/// The request enters the table of half-open connections.
#[fentry(function = "inet_csk_reqsk_queue_hash_add")]
pub fn hs_request_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    request_created(
        Sock::<Direct>::at(argument!(context, 0)),
        RequestSock::<Direct>::at(argument!(context, 1)),
        Attach::Fentry,
    );
    preempt::enable();
    0
}

/// The request enters the table of half-open connections.
#[kprobe]
pub fn hs_request_kp(context: ProbeContext) -> u32 {
    let (Some(listener), Some(request)) = (argument!(context, 0), argument!(context, 1)) else { return 0 };
    request_created(Sock::<Copied>::at(listener), RequestSock::<Copied>::at(request), Attach::Kprobe);
    0
}

/// A segment for a pending request.
#[fentry(function = "tcp_check_req")]
pub fn hs_check_req_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    segment_at_request(
        Sock::<Direct>::at(argument!(context, 0)),
        RequestSock::<Direct>::at(argument!(context, 2)),
        argument!(context, 1),
    );
    preempt::enable();
    0
}

/// A segment for a pending request.
#[kprobe]
pub fn hs_check_req_kp(context: ProbeContext) -> u32 {
    let (Some(listener), Some(skb), Some(request)) =
        (argument!(context, 0), argument!(context, 1), argument!(context, 2))
    else {
        return 0;
    };
    segment_at_request(Sock::<Copied>::at(listener), RequestSock::<Copied>::at(request), skb);
    0
}

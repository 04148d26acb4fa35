//! Segments of a handshake that this host drops: SYNs at a listener, final ACKs with a cookie, and any SYN for
//! which the kernel names a reason.
//!
//! A SYN that tcp_conn_request drops leaves no tracepoint and no reason on any kernel: that it returned and no
//! SYN-ACK was made is what tells. What a newcomer would get wrong: a flood of SYNs must not become a flood of
//! events, so each listener has so many a second and the rest is counted.

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use handshake_common::{
    counter::Counter,
    endpoint::Endpoints,
    event::{
        Attach, EventKind,
        drop::{SegmentDropped, flags},
    },
    filter::{ROLE_CLIENT, ROLE_SERVER},
    tcp::{ACK, FIN, RST, SYN, TcpState},
};

use super::{argument, listening, rejected};
use crate::{
    emit::{Slot, count, now_ns},
    filter,
    globals::is_told_reason,
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        sk_buff::{self, Destination, Headers},
        sock::Sock,
    },
    maps::{ACTIVE_OPENS, DROPS, DropRate, IN_SOFTIRQ, InSoftirq, answer},
};

/// Events a second for each listener (where it is unknown, for each of the limits in `listening`).
const TOLD_PER_SECOND: u32 = 10;
const SECOND_NS: u64 = 1_000_000_000;

/// The kernel begins to answer a SYN.
#[inline(always)]
pub fn conn_request_begins<M: Memory>(listener: Sock<M>, skb: *const u8) {
    if !filter::wants_role(ROLE_SERVER) {
        return;
    }
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    note(listener, skb, work);
}

/// Notes a segment that this CPU works on, and the listener's queues before it does.
#[inline(always)]
fn note<M: Memory>(listener: Sock<M>, skb: *const u8, work: *mut InSoftirq) {
    let (length, limit) = listener.accept_queue().unwrap_or((0, 0));
    // SAFETY: this CPU's own entry.
    unsafe {
        (*work).segment = skb as u64;
        (*work).listener = listener.key();
        (*work).answered = 0;
        (*work).created = 0;
        (*work).accept_queue_length = length;
        (*work).accept_queue_limit = limit;
        (*work).syn_queue_length = listener.syn_queue().unwrap_or(0);
    }
}

/// A SYN-ACK was made: for a new request, a cookie, or again. Only the first two are within tcp_conn_request.
#[inline(always)]
pub fn syn_ack_made() {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    unsafe { (*work).answered |= answer::SYN_ACK };
}

/// The kernel has answered the SYN, or dropped it.
#[inline(always)]
pub fn conn_request_ends<M: Memory>(listener: Sock<M>, skb: *const u8, attach: Attach) {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    let (segment, answered) = unsafe { ((*work).segment, (*work).answered) };
    if segment != skb as u64 || answered & !answer::RESET != 0 {
        return;
    }
    // MPTCP answers a SYN that joins no connection of ours.
    let bits = if answered & answer::RESET != 0 { flags::RESET_SENT } else { 0 };
    dropped_at_listener(listener, skb, bits, work, attach);
}

/// An ACK with a cookie made no child although it might have: the accept queue is full. The client believes that
/// it is connected.
#[inline(always)]
pub fn cookie_checked<M: Memory>(listener: Sock<M>, skb: *const u8, result: u64, attach: Attach) {
    if result != 0 || !filter::wants_role(ROLE_SERVER) {
        return;
    }
    let Some((length, limit)) = listener.accept_queue() else { return };
    if length <= limit {
        return;
    }
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    note(listener, skb, work);
    dropped_at_listener(listener, skb, flags::COOKIE_ACK, work, attach);
}

#[inline(always)]
fn dropped_at_listener<M: Memory>(
    listener: Sock<M>,
    skb: *const u8,
    bits: u32,
    work: *mut InSoftirq,
    attach: Attach,
) {
    let mut ends = Endpoints::default();
    listener.ends(&mut ends);
    let mut headers = Headers::default();
    if sk_buff::headers::<M>(skb, &mut headers) {
        headers.incoming(&mut ends);
    }
    // SAFETY: this CPU's own entry. A return whose entry was not seen must not find it again.
    unsafe { (*work).segment = 0 };
    if !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return;
    }
    if !is_told(listener.key()) {
        count(Counter::DropsUntold);
        return;
    }
    let slot = Slot::<SegmentDropped>::reserve(0, EventKind::SegmentDropped, attach, listener.key(), 0);
    let Some(mut slot) = slot else { return };
    let event = slot.payload();
    event.endpoints = ends;
    event.listener = listener.key();
    event.flags = bits | flags::QUEUES_KNOWN;
    if let Some(sequence) = sk_buff::sequence::<M>(skb) {
        // The ACK that ends a handshake has the number after the SYN's (RFC 9293 section 3.5).
        event.isn = sequence.wrapping_sub(u32::from(bits & flags::COOKIE_ACK != 0));
        event.flags |= flags::ISN_KNOWN;
    }
    // SAFETY: this CPU's own entry.
    unsafe {
        event.accept_queue_length = (*work).accept_queue_length;
        event.accept_queue_limit = (*work).accept_queue_limit;
        event.syn_queue_length = (*work).syn_queue_length;
    }
    slot.submit();
}

/// Whether this drop gets an event: each listener has so many a second.
#[inline(always)]
pub fn is_told(listener: u64) -> bool {
    let now = now_ns();
    if DROPS.get_ptr_mut(listener).is_none() {
        let fresh = DropRate { since_ns: now, told: 0, reserved: 0 };
        if DROPS.insert(listener, fresh, 0).is_err() {
            return false;
        }
    }
    let Some(rate) = DROPS.get_ptr_mut(listener) else { return false };
    // SAFETY: a live entry. CPUs may race for it; what can be lost is an exact count within one second.
    unsafe {
        if now.wrapping_sub((*rate).since_ns) > SECOND_NS {
            (*rate).since_ns = now;
            (*rate).told = 0;
        }
        if (*rate).told >= TOLD_PER_SECOND {
            return false;
        }
        (*rate).told = (*rate).told.wrapping_add(1);
    }
    true
}

/// The kernel frees a segment and names a reason.
#[inline(always)]
fn freed_with_reason(skb: *const u8, reason: u32) {
    if !is_told_reason(reason) || !sk_buff::is_ip::<Direct>(skb) {
        return;
    }
    let mut headers = Headers::default();
    if !sk_buff::headers::<Direct>(skb, &mut headers) || headers.tcp_flags & (SYN | ACK | RST | FIN) != SYN {
        return;
    }
    // The socket of a SYN-ACK on its way in is known too (early demux); only a SYN is its own.
    let sock = sk_buff::sock::<Direct>(skb);
    if let Some(sock) = sock
        && Sock::<Direct>::at(sock).state() == TcpState::SynSent as u8
    {
        outgoing_syn(sock as u64, reason);
        return;
    }
    if rejected::was_told(skb) {
        return;
    }
    // A SYN that tcp_conn_request dropped does not come here: its segment is consumed, which is no kfree_skb.
    incoming_syn::<Direct>(skb, &headers, reason, 0, Attach::Common);
}

/// This host drops a SYN that came from elsewhere, before any listener saw it.
#[inline(always)]
pub fn incoming_syn<M: Memory>(skb: *const u8, headers: &Headers, reason: u32, bits: u32, attach: Attach) {
    if !filter::wants_role(ROLE_SERVER) {
        return;
    }
    let mut ends = Endpoints { netns: sk_buff::netns::<M>(skb), ..Endpoints::default() };
    headers.incoming(&mut ends);
    if !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return;
    }
    let destination = sk_buff::destination::<M>(skb);
    if destination == Destination::Elsewhere {
        // Its listener, and its failure, are another host's.
        count(Counter::DropsForwarded);
        return;
    }
    let meant = listening::meant_by(&ends);
    if !is_told(meant.limited_by) {
        count(Counter::DropsUntold);
        return;
    }
    let slot = Slot::<SegmentDropped>::reserve(0, EventKind::SegmentDropped, attach, 0, 0);
    let Some(mut slot) = slot else { return };
    let event = slot.payload();
    event.endpoints = ends;
    event.isn = headers.sequence;
    event.flags = bits | flags::ISN_KNOWN;
    if destination == Destination::Unknown {
        event.flags |= flags::UNROUTED;
    }
    event.reason = reason;
    listening::tell_queues(meant.socket, event);
    slot.submit();
}

/// This host drops its own SYN, by a firewall or a queue.
#[inline(always)]
fn outgoing_syn(socket: u64, reason: u32) {
    if !filter::wants_role(ROLE_CLIENT) {
        return;
    }
    let Some(open) = ACTIVE_OPENS.get_ptr(socket) else { return };
    // SAFETY: a live entry.
    let generation_ns = unsafe { (*open).generation_ns };
    let slot =
        Slot::<SegmentDropped>::reserve(0, EventKind::SegmentDropped, Attach::Common, socket, generation_ns);
    let Some(mut slot) = slot else { return };
    let event = slot.payload();
    // SAFETY: a live entry.
    event.endpoints = unsafe { (*open).endpoints };
    event.flags = flags::OUTGOING;
    event.reason = reason;
    slot.submit();
}

/// A SYN at a listener, before it is answered.
#[fentry(function = "tcp_conn_request")]
pub fn hs_conn_req_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    conn_request_begins(Sock::<Direct>::at(argument!(context, 2)), argument!(context, 3));
    preempt::enable();
    0
}

/// A SYN-ACK is made.
#[fentry(function = "tcp_make_synack")]
pub fn hs_synack_fe(_context: FEntryContext) -> i32 {
    preempt::disable();
    syn_ack_made();
    preempt::enable();
    0
}

/// A SYN at a listener, answered or not.
#[fexit(function = "tcp_conn_request")]
pub fn hs_conn_req_fx(context: FExitContext) -> i32 {
    preempt::disable();
    let listener = Sock::<Direct>::at(argument!(context, 2));
    conn_request_ends(listener, argument!(context, 3), Attach::Fentry);
    preempt::enable();
    0
}

/// An ACK that may carry a cookie.
#[fexit(function = "cookie_v4_check")]
pub fn hs_cookie4_fx(context: FExitContext) -> i32 {
    preempt::disable();
    let listener = Sock::<Direct>::at(argument!(context, 0));
    cookie_checked(listener, argument!(context, 1), context.arg::<u64>(2), Attach::Fentry);
    preempt::enable();
    0
}

/// An ACK that may carry a cookie, over IPv6.
#[fexit(function = "cookie_v6_check")]
pub fn hs_cookie6_fx(context: FExitContext) -> i32 {
    preempt::disable();
    let listener = Sock::<Direct>::at(argument!(context, 0));
    cookie_checked(listener, argument!(context, 1), context.arg::<u64>(2), Attach::Fentry);
    preempt::enable();
    0
}

/// A SYN at a listener, before it is answered.
#[kprobe]
pub fn hs_conn_req_kp(context: ProbeContext) -> u32 {
    let (Some(listener), Some(skb)) = (argument!(context, 2), argument!(context, 3)) else { return 0 };
    conn_request_begins(Sock::<Copied>::at(listener), skb);
    0
}

/// A SYN-ACK is made.
#[kprobe]
pub fn hs_synack_kp(_context: ProbeContext) -> u32 {
    syn_ack_made();
    0
}

/// A SYN at a listener, answered or not. A return has no arguments: they were noted at the entry.
#[kretprobe]
pub fn hs_conn_req_kr(_context: RetProbeContext) -> u32 {
    let Some(work) = IN_SOFTIRQ.get_ptr(0) else { return 0 };
    // SAFETY: this CPU's own entry.
    let (listener, skb) = unsafe { ((*work).listener, (*work).segment) };
    if skb != 0 {
        conn_request_ends(Sock::<Copied>::at(listener as *const u8), skb as *const u8, Attach::Kprobe);
    }
    0
}

/// An ACK that may carry a cookie.
#[kprobe]
pub fn hs_cookie_kp(context: ProbeContext) -> u32 {
    let (Some(listener), Some(skb)) = (argument!(context, 0), argument!(context, 1)) else { return 0 };
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return 0 };
    note(Sock::<Copied>::at(listener), skb, work);
    0
}

/// What became of it.
#[kretprobe]
pub fn hs_cookie_kr(context: RetProbeContext) -> u32 {
    let Some(work) = IN_SOFTIRQ.get_ptr(0) else { return 0 };
    // SAFETY: this CPU's own entry.
    let (listener, skb) = unsafe { ((*work).listener, (*work).segment) };
    if skb != 0 {
        let listener = Sock::<Copied>::at(listener as *const u8);
        cookie_checked(listener, skb as *const u8, context.ret::<u64>(), Attach::Kprobe);
    }
    0
}

/// The kernel drops a segment, and says why (5.17 and later).
#[btf_tracepoint(function = "kfree_skb")]
pub fn hs_skb_dropped(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    freed_with_reason(argument!(context, 0), context.arg::<u32>(2));
    preempt::enable();
    0
}

//! The end of a request that never became a child: timed out, reset, unreachable, or dropped with its listener.
//!
//! The dropping function says it at once; where the compiler put that one into its caller (5.10's timer), only
//! the freeing of the request says it. What a newcomer would get wrong: both fire for one request, both fire for every
//! request that became a child too, and a RST may come on one CPU while the final ACK makes the child on another. The
//! kernel's hash table decides who won, and ours whether it was told.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    endpoint::Endpoints,
    event::{
        Attach, EventKind,
        passive_open::{PassiveOpen, flags},
    },
    filter::ROLE_SERVER,
    tcp::TcpState,
};

use super::{
    argument,
    passive_open::{copy_entry, gather},
    subflow::{DIED, LIVES_ON, ended_otherwise},
};
use crate::{
    emit::{Slot, now_ns, submit},
    filter,
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        request_sock::RequestSock,
    },
    maps::{self, IN_SOFTIRQ, remove_request},
};

/// A timer lies inside its request sock, which is no larger than this.
const REQUEST_BYTES: u64 = 512;
/// A request that dies by its timer dies in the same call: within this time of the timer's start, though a hypervisor stops
/// the CPU meanwhile. A timer that sends the SYN-ACK again ends nothing, and clears its mark.
pub const TIMER_WORK_NS: u64 = 1_000_000_000;

/// A request's SYN-ACK timer fired: it sends the SYN-ACK again, or gives up within this call.
#[inline(always)]
pub fn timer_fired(timer: u64) {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    unsafe {
        (*work).timer_ns = now_ns();
        (*work).timer = timer;
    }
}

/// An ICMP error came for a request's SYN-ACK. If it is one that ends the request, the kernel drops that within this
/// call; not if it is of another segment (a number that is none of ours).
#[inline(always)]
fn icmp_received<M: Memory>(request: RequestSock<M>, sequence: u32, is_fatal: bool) {
    if !is_fatal || !request.is_acknowledged_by(sequence.wrapping_add(1)) {
        return;
    }
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    unsafe {
        (*work).icmp_ns = now_ns();
        (*work).icmp_request = request.key();
    }
}

/// Whether this CPU drops this request because of an ICMP error; asked once.
#[inline(always)]
fn is_unreachable(request: u64) -> bool {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry.
    unsafe {
        let is_it = (*work).icmp_request == request;
        (*work).icmp_request = 0;
        is_it && now_ns().wrapping_sub((*work).icmp_ns) < TIMER_WORK_NS
    }
}

/// The kernel is about to drop a request. Who takes it out of the kernel's table decides what becomes of it: if it
/// is out already, another CPU (or the final ACK, on this one) has made a child of it or drops it, and tells; unless the
/// final ACK's child joined an MPTCP connection, and this is how its request is forgotten.
#[inline(always)]
pub fn request_dropped<M: Memory>(request: RequestSock<M>, attach: Attach) {
    let key = request.key();
    let (mut generation_ns, mut how) = (0, DIED);
    if let Some(entry) = maps::request(key) {
        // SAFETY: a live entry.
        let final_ack_ns = unsafe {
            generation_ns = (*entry).created_ns;
            (*entry).final_ack_ns
        };
        how = ended_otherwise(request, final_ack_ns, attach);
        if how == LIVES_ON {
            remove_request(key);
            return;
        }
    } else if !is_news(request) {
        return;
    }
    if how == DIED && request.is_unhashed() {
        return;
    }
    died(request, generation_ns, how, how == DIED, attach);
}

/// A request that no table of ours has, and that is about to be dropped: the kernel skipped the program that should
/// have seen it begin. Not one that was told by the outer of two dropping functions, nor one that was driven out of a
/// full table (and counted), nor one that a filter left out.
#[inline(always)]
fn is_news<M: Memory>(request: RequestSock<M>) -> bool {
    let key = request.key();
    let Some(work) = IN_SOFTIRQ.get_ptr(0) else { return false };
    // SAFETY: this CPU's own entry.
    if unsafe { (*work).told } == key || !filter::wants_role(ROLE_SERVER) || maps::may_be_driven_out(key) {
        return false;
    }
    let mut ends = Endpoints::default();
    request.ends(&mut ends);
    filter::wants_ends(&ends)
}

/// The kernel frees a request. One that became a child, or was reported, is no longer in the table; one that is was
/// dropped within a function that can't be hooked (5.10's timer).
#[inline(always)]
pub fn request_freed<M: Memory>(request: RequestSock<M>, attach: Attach) {
    let key = request.key();
    let Some(entry) = maps::request(key) else { return };
    if request.became_a_child() {
        // The kernel skipped the probe that sees a child queued, with all others of that softirq, because one was
        // running when it came. The child tells of itself; that its request is freed by accept() is no death.
        remove_request(key);
        return;
    }
    // SAFETY: a live entry.
    let (generation_ns, final_ack_ns) = unsafe { ((*entry).created_ns, (*entry).final_ack_ns) };
    let how = ended_otherwise(request, final_ack_ns, attach);
    if how == LIVES_ON {
        remove_request(key);
    } else {
        died(request, generation_ns, how, false, attach);
    }
}

/// Tells it; `how` is DIED, or the flags of a death that MPTCP decided. A generation of 0 is none of our tables'. `is_hashed`:
/// it was so a moment ago, and if it is no longer, another CPU has taken it meanwhile and tells.
#[inline(always)]
fn died<M: Memory>(request: RequestSock<M>, generation_ns: u64, how: u32, is_hashed: bool, attach: Attach) {
    let key = request.key();
    let mut bits = how;
    if how == DIED && timer_is_of(key) {
        bits = flags::TIMED_OUT;
    }
    if how == DIED && is_unreachable(key) {
        bits = flags::ICMP_RECEIVED;
    }
    if maps::request(key).is_none() && was_reset(key) {
        bits |= flags::RESET_RECEIVED;
    }
    // No closure: gathered twice here, it would become a function of its own.
    if let Some(mut slot) =
        Slot::<PassiveOpen>::reserve(0, EventKind::RequestDied, attach, key, generation_ns)
    {
        let event = slot.payload();
        request.ends(&mut event.endpoints);
        gather(request, event);
        request.options(&mut event.negotiated);
        event.flags |= bits;
        event.old_state = TcpState::NewSynReceived as u8;
        event.new_state = TcpState::Closed as u8;
        if is_hashed && request.is_unhashed() {
            slot.discard();
            return;
        }
        slot.submit();
    }
    remove_request(key);
    if let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) {
        // SAFETY: this CPU's own entry.
        unsafe { (*work).told = key };
    }
}

/// Whether this CPU's last RST was for this request, or socket in SYN-SENT, that no table of ours has; asked once.
#[inline(always)]
pub fn was_reset(request: u64) -> bool {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry.
    unsafe {
        let is_it = (*work).reset_request == request;
        (*work).reset_request = 0;
        is_it
    }
}

/// Another request begins where this one was, so this one is over, and no hook saw how.
#[inline(always)]
pub fn end_was_missed(key: u64, attach: Attach) {
    let Some(entry) = maps::request(key) else { return };
    // SAFETY: a live entry; it is this CPU's to overwrite.
    let entry = unsafe { &*entry };
    submit(EventKind::RequestDied, attach, key, entry.created_ns, |event: &mut PassiveOpen| {
        event.endpoints = entry.endpoints;
        event.synack_ns = entry.created_ns;
        event.negotiated.known = entry.isns_known;
        event.negotiated.local_isn = entry.local_isn;
        event.negotiated.remote_isn = entry.remote_isn;
        copy_entry(entry, event);
        event.flags |= flags::END_NOT_SEEN;
        event.old_state = TcpState::NewSynReceived as u8;
        event.new_state = TcpState::Closed as u8;
    });
}

/// Whether this CPU is in the timer of this request.
#[inline(always)]
fn timer_is_of(request: u64) -> bool {
    let Some(request) = maps::as_number(request) else { return false };
    let Some(work) = IN_SOFTIRQ.get_ptr(0) else { return false };
    // SAFETY: this CPU's own entry.
    let (timer, timer_ns) = unsafe { ((*work).timer, (*work).timer_ns) };
    timer.wrapping_sub(request) < REQUEST_BYTES && now_ns().wrapping_sub(timer_ns) < TIMER_WORK_NS
}

/// A SYN-ACK timer fires.
#[fentry(function = "reqsk_timer_handler")]
pub fn hs_req_timer_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    timer_fired(argument!(context, 0) as u64);
    preempt::enable();
    0
}

/// A SYN-ACK timer fires.
#[kprobe]
pub fn hs_req_timer_kp(context: ProbeContext) -> u32 {
    let Some(timer) = argument!(context, 0) else { return 0 };
    timer_fired(timer as u64);
    0
}

/// A request is dropped.
#[fentry(function = "inet_csk_reqsk_queue_drop")]
pub fn hs_req_drop_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    request_dropped(RequestSock::<Direct>::at(argument!(context, 1)), Attach::Fentry);
    preempt::enable();
    0
}

/// A request is dropped (6.12 and later, where the timer calls this one).
#[fentry(function = "__inet_csk_reqsk_queue_drop")]
pub fn hs_req_drop2_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    request_dropped(RequestSock::<Direct>::at(argument!(context, 1)), Attach::Fentry);
    preempt::enable();
    0
}

/// A request is dropped.
#[kprobe]
pub fn hs_req_drop_kp(context: ProbeContext) -> u32 {
    let Some(request) = argument!(context, 1) else { return 0 };
    request_dropped(RequestSock::<Copied>::at(request), Attach::Kprobe);
    0
}

/// An ICMP error for a request's SYN-ACK.
#[fentry(function = "tcp_req_err")]
pub fn hs_req_err_fe(context: FEntryContext) -> i32 {
    let (sequence, is_fatal) = (context.arg::<u32>(1), context.arg::<u32>(2) as u8 != 0);
    preempt::disable();
    icmp_received(RequestSock::<Direct>::at(argument!(context, 0)), sequence, is_fatal);
    preempt::enable();
    0
}

/// An ICMP error for a request's SYN-ACK.
#[kprobe]
pub fn hs_req_err_kp(context: ProbeContext) -> u32 {
    let (Some(request), Some(sequence), Some(is_fatal)) =
        (argument!(context, 0), context.arg::<u32>(1), context.arg::<u32>(2))
    else {
        return 0;
    };
    icmp_received(RequestSock::<Copied>::at(request), sequence, is_fatal as u8 != 0);
    0
}

/// An IPv4 request is freed.
#[fentry(function = "tcp_v4_reqsk_destructor")]
pub fn hs_req_end4_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    request_freed(RequestSock::<Direct>::at(argument!(context, 0)), Attach::Fentry);
    preempt::enable();
    0
}

/// An IPv6 request is freed.
#[fentry(function = "tcp_v6_reqsk_destructor")]
pub fn hs_req_end6_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    request_freed(RequestSock::<Direct>::at(argument!(context, 0)), Attach::Fentry);
    preempt::enable();
    0
}

/// A request is freed.
#[kprobe]
pub fn hs_req_end_kp(context: ProbeContext) -> u32 {
    let Some(request) = argument!(context, 0) else { return 0 };
    request_freed(RequestSock::<Copied>::at(request), Attach::Kprobe);
    0
}

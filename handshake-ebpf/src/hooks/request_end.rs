//! The end of a request that never became a child: timed out, reset, or dropped with its listener.
//!
//! The dropping function says it at once; where the compiler put that one into its caller (5.10's timer), only
//! the freeing of the request says it. What a newcomer would get wrong: both fire for one request, and the
//! freeing fires for every request that became a child too. The table tells: who finds the entry reports.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    event::{
        Attach, EventKind,
        passive_open::{PassiveOpen, flags},
    },
    tcp::TcpState,
};

use super::{argument, passive_open::gather};
use crate::{
    emit::{now_ns, submit},
    kernel::{
        read::{Copied, Direct, Memory},
        request_sock::RequestSock,
    },
    maps::{self, IN_SOFTIRQ, remove_request},
};

/// A timer lies inside its request sock, which is no larger than this.
const REQUEST_BYTES: u64 = 512;
/// A request that dies by its timer dies in the same call: within this time of the timer's start.
pub const TIMER_WORK_NS: u64 = 10_000_000;

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

/// The kernel drops a request, or frees it: where the compiler put the dropping function into the timer's
/// (5.10), only the freeing is seen. One that became a child, or was reported, is no longer in the table.
#[inline(always)]
pub fn request_dropped<M: Memory>(request: RequestSock<M>, attach: Attach) {
    let key = request.key();
    let Some(entry) = maps::request(key) else { return };
    if request.became_a_child() {
        // The kernel skipped the probe that sees a child queued, with all others of that softirq, because one was
        // running when it came. The child tells of itself; that its request is freed by accept() is no death.
        remove_request(key);
        return;
    }
    // SAFETY: a live entry.
    let generation_ns = unsafe { (*entry).created_ns };
    let bits = if timer_is_of(key) { flags::TIMED_OUT } else { 0 };
    submit(EventKind::RequestDied, attach, key, generation_ns, |event: &mut PassiveOpen| {
        request.ends(&mut event.endpoints);
        gather(request, event);
        event.flags |= bits;
        event.old_state = TcpState::NewSynReceived as u8;
        event.new_state = TcpState::Closed as u8;
    });
    remove_request(key);
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
    timer_fired(argument!(context, 0) as u64);
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
    request_dropped(RequestSock::<Direct>::at(argument!(context, 1)), Attach::Fentry);
    0
}

/// A request is dropped (6.12 and later, where the timer calls this one).
#[fentry(function = "__inet_csk_reqsk_queue_drop")]
pub fn hs_req_drop2_fe(context: FEntryContext) -> i32 {
    request_dropped(RequestSock::<Direct>::at(argument!(context, 1)), Attach::Fentry);
    0
}

/// A request is dropped.
#[kprobe]
pub fn hs_req_drop_kp(context: ProbeContext) -> u32 {
    let Some(request) = argument!(context, 1) else { return 0 };
    request_dropped(RequestSock::<Copied>::at(request), Attach::Kprobe);
    0
}

/// An IPv4 request is freed.
#[fentry(function = "tcp_v4_reqsk_destructor")]
pub fn hs_req_end4_fe(context: FEntryContext) -> i32 {
    request_dropped(RequestSock::<Direct>::at(argument!(context, 0)), Attach::Fentry);
    0
}

/// An IPv6 request is freed.
#[fentry(function = "tcp_v6_reqsk_destructor")]
pub fn hs_req_end6_fe(context: FEntryContext) -> i32 {
    request_dropped(RequestSock::<Direct>::at(argument!(context, 0)), Attach::Fentry);
    0
}

/// A request is freed.
#[kprobe]
pub fn hs_req_end_kp(context: ProbeContext) -> u32 {
    let Some(request) = argument!(context, 0) else { return 0 };
    request_dropped(RequestSock::<Copied>::at(request), Attach::Kprobe);
    0
}

//! SYNs and SYN-ACKs sent again.
//!
//! What a newcomer would get wrong: tcp_retransmit_skb fires for every retransmission of every connection;
//! only a socket in SYN-SENT is ours, and that is asked first.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use handshake_common::{
    event::{Attach, EventKind, retransmit::SynRetransmitted},
    offsets::UNAVAILABLE,
    request::Request,
    tcp::TcpState,
};

use super::{argument, request_end::TIMER_WORK_NS};
use crate::{
    emit::{now_ns, submit},
    globals::{RETRANSMIT_ERROR_IS_TOLD, offset},
    kernel::{
        preempt,
        read::{Direct, Memory},
        request_sock::RequestSock,
        sock::Sock,
    },
    maps::{self, ACTIVE_OPENS, IN_SOFTIRQ, QUEUED, insert_request, remove_request},
};

/// -EBUSY: the segment of before has not left this host yet (it waits for its neighbour's address, or in a queue), so
/// TCP has sent nothing.
const STILL_WAITS: i32 = -16;

/// A segment is sent again.
#[inline(always)]
fn segment_sent_again<M: Memory>(sock: Sock<M>) {
    if sock.state() != TcpState::SynSent as u8 {
        return;
    }
    let Some(open) = ACTIVE_OPENS.get_ptr_mut(sock.key()) else { return };
    // SAFETY: a live entry; the socket's lock is held.
    let (attempt, generation_ns) = unsafe {
        (*open).syn_retransmits = (*open).syn_retransmits.saturating_add(1);
        (*open).last_retransmit_ns = now_ns();
        ((*open).syn_retransmits, (*open).generation_ns)
    };
    submit(
        EventKind::SynRetransmitted,
        Attach::Common,
        sock.key(),
        generation_ns,
        |event: &mut SynRetransmitted| {
            // SAFETY: a live entry.
            event.endpoints = unsafe { (*open).endpoints };
            event.attempt = u32::from(attempt);
        },
    );
}

/// The listener of a request closed, and another one of its SO_REUSEPORT group takes it over (5.14,
/// `tcp_migrate_req`): the SYN-ACK timer makes a copy, sends the SYN-ACK for that, and frees the original. What is
/// known moves along; the original, no longer in the table, is not told as dropped.
#[inline(always)]
fn moved(listener: u64, copy: u64) -> bool {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return false };
    let offset = offset!(req_timer);
    // SAFETY: this CPU's own entry.
    let (timer, timer_ns) = unsafe { ((*work).timer, (*work).timer_ns) };
    if offset == UNAVAILABLE || now_ns().wrapping_sub(timer_ns) > TIMER_WORK_NS {
        return false;
    }
    let original = timer.wrapping_sub(u64::from(offset));
    let Some(entry) = maps::request(original) else { return false };
    // SAFETY: a live entry.
    let entry = Request { listener, ..unsafe { *entry } };
    remove_request(original);
    insert_request(copy, &entry);
    true
}

/// A SYN-ACK is sent again. No event: a flood would multiply them.
#[inline(always)]
fn syn_ack_sent_again<M: Memory>(sender: Sock<M>, request: RequestSock<M>) {
    let listener = sender.key();
    // Fast Open's child sends it itself, though its owner has closed it, and its request is in no table.
    let state = sender.state();
    if (state == TcpState::SynReceived as u8 || state == TcpState::FinWait1 as u8)
        && let Some(queued) = QUEUED.get_ptr_mut(sender.key())
    {
        // SAFETY: a live entry. Timer and segments hold the child's lock.
        unsafe {
            let passive = &mut (*queued).passive;
            passive.synack_retransmits = passive.synack_retransmits.saturating_add(1);
            passive.last_retransmit_ns = now_ns();
        }
        return;
    }
    let entry = match maps::request(request.key()) {
        Some(entry) => entry,
        None if moved(listener, request.key()) => {
            let Some(entry) = maps::request(request.key()) else { return };
            entry
        }
        None => {
            let cookie = request.cookie();
            if cookie == 0 {
                return;
            }
            let Some(entry) = maps::request(cookie) else { return };
            entry
        }
    };
    // SAFETY: a live entry. The timer and a retransmitted SYN may race; what can be lost is one count.
    unsafe {
        (*entry).synack_retransmits = (*entry).synack_retransmits.saturating_add(1);
        (*entry).last_retransmit_ns = now_ns();
    }
}

/// A segment is sent again.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn hs_syn_rexmit(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    // Where the kernel has no such argument the verifier never sees it read.
    let error = if RETRANSMIT_ERROR_IS_TOLD.load() != 0 { context.arg::<i32>(2) } else { 0 };
    if error != STILL_WAITS {
        segment_sent_again(Sock::<Direct>::at(argument!(context, 0)));
    }
    preempt::enable();
    0
}

/// A SYN-ACK is sent again.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn hs_synack_rexmit(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    syn_ack_sent_again(
        Sock::<Direct>::at(argument!(context, 0)),
        RequestSock::<Direct>::at(argument!(context, 1)),
    );
    // If this was the request's timer, it has not given up.
    if let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) {
        // SAFETY: this CPU's own entry.
        unsafe { (*work).timer = 0 };
    }
    preempt::enable();
    0
}

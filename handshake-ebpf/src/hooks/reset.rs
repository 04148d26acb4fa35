//! RSTs, received and sent, for sockets whose handshake is open.
//!
//! They are marks on what the tables hold and no events: a RST is evidence, and for a queued child not even
//! an end. What a newcomer would get wrong: the socket of tcp_send_reset may be null; it is only a key here
//! and never dereferenced.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use handshake_common::{
    event::{active_open::flags, passive_open},
    tcp::TcpState,
};

use super::argument;
use crate::{
    emit::now_ns,
    kernel::{
        preempt,
        read::{Direct, Memory},
        sock::Sock,
    },
    maps::{self, ACTIVE_OPENS, IN_SOFTIRQ, QUEUED, answer},
};

/// A valid RST was received for this socket.
#[inline(always)]
fn reset_received<M: Memory>(sock: Sock<M>) {
    let socket = sock.key();
    if let Some(open) = ACTIVE_OPENS.get_ptr_mut(socket) {
        // SAFETY: a live entry; the socket's lock is held.
        unsafe { (*open).flags |= flags::RESET_RECEIVED };
    } else if sock.state() == TcpState::SynSent as u8
        && let Some(work) = IN_SOFTIRQ.get_ptr_mut(0)
    {
        // It was there before us. If the RST ends it, that is within this call.
        // SAFETY: this CPU's own entry.
        unsafe { (*work).reset_request = socket };
    }
    let half_open = sock.state() == TcpState::SynReceived as u8;
    if let Some(queued) = QUEUED.get_ptr_mut(socket) {
        // SAFETY: a live entry; the socket's lock is held.
        unsafe {
            if half_open || (*queued).closed_early != 0 {
                (*queued).passive.flags |= passive_open::flags::RESET_RECEIVED;
            }
            // One with an owner has left the queue, though its accept() was not seen.
            if !sock.has_an_owner() {
                (*queued).reset_ns = now_ns();
            }
        }
    } else if half_open && let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) {
        // Fast Open's child where no probe queued it: it is CLOSED within this call.
        // SAFETY: this CPU's own entry.
        unsafe { (*work).reset_child = socket };
    }
}

/// Whether the RST that this CPU works on ends this child, of which the tables hold nothing; asked once.
#[inline(always)]
pub fn ends_child(child: u64) -> bool {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry.
    unsafe {
        let is_it = (*work).reset_child == child;
        (*work).reset_child = 0;
        is_it
    }
}

/// We answer a segment for this socket with a RST.
#[inline(always)]
fn reset_sent(socket: u64) {
    if let Some(open) = ACTIVE_OPENS.get_ptr_mut(socket) {
        // SAFETY: a live entry; the socket's lock is held.
        unsafe { (*open).flags |= flags::RESET_SENT };
    }
}

/// We answer a segment that this CPU works on: a SYN, or one at a half-open request.
#[inline(always)]
fn segment_answered(listener: u64, segment: u64) {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry, and a live one of the request.
    unsafe {
        if segment == 0 {
            return;
        }
        if (*work).segment == segment {
            (*work).answered |= answer::RESET;
        }
        if (*work).refusable == segment
            && let Some(entry) = maps::request((*work).refusable_request)
            && (*entry).listener == listener
        {
            (*work).refusable = 0;
            let held = (*entry).flags & !passive_open::flags::ACK_DROPPED;
            (*entry).flags = held | (*work).if_refused;
        }
    }
}

/// A RST was received.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn hs_rst_received(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    reset_received(Sock::<Direct>::at(argument!(context, 0)));
    preempt::enable();
    0
}

/// A RST is sent.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn hs_rst_sent(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    reset_sent(argument!(context, 0) as u64);
    segment_answered(argument!(context, 0) as u64, argument!(context, 1) as u64);
    preempt::enable();
    0
}

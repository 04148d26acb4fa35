//! SYNs and SYN-ACKs sent again.
//!
//! What a newcomer would get wrong: tcp_retransmit_skb fires for every retransmission of every connection;
//! only a socket in SYN-SENT is ours, and that is asked first.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use handshake_common::{
    event::{Attach, EventKind, retransmit::SynRetransmitted},
    tcp::TcpState,
};

use super::argument;
use crate::{
    emit::{now_ns, submit},
    kernel::{
        read::{Direct, Memory},
        request_sock::RequestSock,
        sock::Sock,
    },
    maps::{ACTIVE_OPENS, REQUESTS},
};

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

/// A SYN-ACK is sent again. No event: a flood would multiply them.
#[inline(always)]
fn syn_ack_sent_again<M: Memory>(request: RequestSock<M>) {
    let entry = match REQUESTS.get_ptr_mut(request.key()) {
        Some(entry) => entry,
        None => {
            let cookie = request.cookie();
            if cookie == 0 {
                return;
            }
            let Some(entry) = REQUESTS.get_ptr_mut(cookie) else { return };
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
    segment_sent_again(Sock::<Direct>::at(argument!(context, 0)));
    0
}

/// A SYN-ACK is sent again.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn hs_synack_rexmit(context: BtfTracePointContext) -> i32 {
    syn_ack_sent_again(RequestSock::<Direct>::at(argument!(context, 1)));
    0
}

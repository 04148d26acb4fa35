//! sock_ops stands in where no probe can be attached: it sees the SYN leave and the SYN arrive, and has the SYN-ACK at hand.
//!
//! A sock_ops program could change TCP. This one returns 1, never writes `reply` and asks for no further
//! callbacks, so that it only looks. What a newcomer would get wrong: at RWND_INIT the socket is the request
//! sock, and its cookie is the one that the child has later.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RWND_INIT, BPF_SOCK_OPS_TCP_CONNECT_CB},
    helpers::generated,
    macros::sock_ops,
    programs::SockOpsContext,
};
use handshake_common::{
    counter::Counter,
    endpoint::Endpoints,
    event::{
        Attach, EventKind,
        active_open::{SynSent, flags},
    },
    filter::ROLE_SERVER,
    request::Request,
    tcp::TcpState,
};

use super::{asked, fast_open};
use crate::{
    emit::{count, now_ns, submit},
    filter,
    maps::{ACTIVE_OPENS, INTERNAL, insert_request},
};

/// The SYN leaves; ports are final. Process and addresses were noted at CLOSED->SYN-SENT.
#[inline(always)]
fn syn_leaves(socket: u64, local_port: u16) {
    let Some(open) = ACTIVE_OPENS.get_ptr_mut(socket) else { return };
    // SAFETY: a live entry; this thread holds the socket's lock.
    let (generation_ns, sent_before) = unsafe { ((*open).generation_ns, (*open).syn_sent_ns) };
    if sent_before != 0 {
        return;
    }
    // SAFETY: as above.
    let wanted = unsafe {
        (*open).syn_sent_ns = now_ns();
        (*open).endpoints.local_port = local_port;
        if (*open).flags & flags::CALL_RETURNED != 0 {
            (*open).flags |= flags::DEFERRED;
        }
        filter::wants_ends(&(*open).endpoints)
    };
    if !wanted {
        count(Counter::Filtered);
        let _ = ACTIVE_OPENS.remove(socket);
        return;
    }
    submit(EventKind::SynSent, Attach::Tracepoint, socket, generation_ns, |event: &mut SynSent| {
        // SAFETY: as above.
        unsafe {
            event.endpoints = (*open).endpoints;
            event.owner = (*open).owner;
            event.called_ns = (*open).called_ns;
            event.flags = (*open).flags & !INTERNAL;
        }
    });
    asked::tell(open, socket, Attach::Tracepoint);
}

/// A SYN made a request sock.
#[inline(always)]
fn syn_arrives(cookie: u64) {
    if !filter::wants_role(ROLE_SERVER) || cookie == 0 {
        return;
    }
    let now = now_ns();
    let entry = Request {
        endpoints: Endpoints::default(),
        syn_ns: now,
        created_ns: now,
        final_ack_ns: 0,
        last_retransmit_ns: 0,
        listener: 0,
        accept_queue_length: 0,
        accept_queue_limit: 0,
        isns_known: 0,
        local_isn: 0,
        remote_isn: 0,
        flags: 0,
        syns_seen: 0,
        synack_retransmits: 0,
        reserved: 0,
    };
    insert_request(cookie, &entry);
}

/// All callbacks of all sockets below the root of the cgroup hierarchy.
#[sock_ops]
pub fn hs_sock_ops(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            // SAFETY: the context is valid for the program's run; the verifier rewrites the load.
            let socket = unsafe { (*context.ops).__bindgen_anon_2.sk } as u64;
            syn_leaves(socket, context.local_port() as u16);
        }
        BPF_SOCK_OPS_RWND_INIT => {
            // SAFETY: as above.
            let state = unsafe { (*context.ops).state };
            if state == TcpState::NewSynReceived as u32 {
                // SAFETY: the helper takes the context as it is.
                syn_arrives(unsafe { generated::bpf_get_socket_cookie(context.ops.cast()) });
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            // SAFETY: as above.
            let socket = unsafe { (*context.ops).__bindgen_anon_2.sk } as u64;
            fast_open::established(context.ops, socket);
        }
        _ => {}
    }
    1
}

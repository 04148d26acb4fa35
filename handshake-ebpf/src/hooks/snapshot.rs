//! The sockets that were there before us, read once at start through `iter/tcp`.
//!
//! Each becomes a record of the same form as a ring buffer event, written to the iterator's file. What a
//! newcomer would get wrong: the iterator walks only the network namespace of whoever opened it, so the
//! daemon opens it once in each.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use handshake_common::{
    endpoint::Endpoints,
    event::{ABI_VERSION, Attach, Event, EventHeader, EventKind, passive_open::flags, snapshot::SocketSeen},
    filter::{ROLE_CLIENT, ROLE_SERVER},
    request::Request,
    tcp::{Negotiated, TcpState},
};

use super::{child_queued::accept_is_seen, listening};
use crate::{
    emit::now_ns,
    filter,
    globals::offset,
    kernel::{
        read::{Direct, Memory},
        request_sock::RequestSock,
        sock::Sock,
    },
    maps::{self, QUEUED, RUNTIME, insert_request, new_queued, remove_request},
};

/// `struct bpf_iter_meta`.
#[repr(C)]
pub struct IterMeta {
    seq: *mut c_void,
    session_id: u64,
    seq_num: u64,
}

/// `struct bpf_iter__tcp`.
#[repr(C)]
pub struct IterTcp {
    meta: *const IterMeta,
    sock_common: *const u8,
    uid: u32,
}

/// A request that is older than we are enters the table as a new one does, so that its death is told too.
#[inline(always)]
fn request_was_there(request: RequestSock<Direct>, seen: &SocketSeen) {
    let Some(runtime) = RUNTIME.get_ptr(0) else { return };
    // SAFETY: the array's one live entry; aligned u32.
    if unsafe { (*runtime).requests_are_seen } == 0
        || !filter::wants_role(ROLE_SERVER)
        || !filter::wants_ends(&seen.endpoints)
        || maps::request(request.key()).is_some()
    {
        return;
    }
    let mut isns = Negotiated::default();
    request.isns(&mut isns);
    let entry = Request {
        endpoints: seen.endpoints,
        syn_ns: 0,
        // The generation of its events: any time before them.
        created_ns: seen.synack_ns,
        final_ack_ns: 0,
        last_retransmit_ns: 0,
        listener: request.listener(),
        accept_queue_length: 0,
        accept_queue_limit: 0,
        isns_known: isns.known,
        local_isn: isns.local_isn,
        remote_isn: isns.remote_isn,
        flags: flags::SYN_NOT_SEEN,
        syns_seen: 0,
        synack_retransmits: seen.retransmits,
        reserved: 0,
    };
    insert_request(request.key(), &entry);
    // From 5.15 on the iterator does not hold the lock of the request's bucket: its child may have been made meanwhile,
    // and then nobody else would take the entry out.
    if request.is_unhashed() {
        remove_request(request.key());
    }
}

/// A child that was queued before us enters the table, so that it is told when it dies there. `false` when it is none of
/// ours to enter.
#[inline(always)]
fn child_was_there(key: u64, ends: &Endpoints) -> bool {
    // Without a hook on accept() nobody would take it out again.
    if accept_is_seen() == 0
        || !filter::wants_role(ROLE_SERVER)
        || !filter::wants_ends(ends)
        || QUEUED.get_ptr(key).is_some()
    {
        return false;
    }
    let Some(entry) = new_queued(key) else { return false };
    // SAFETY: the entry that was just made.
    unsafe {
        (*entry).generation_ns = now_ns();
        (*entry).left = 1;
        (*entry).passive.endpoints = *ends;
    }
    true
}

/// One TCP socket. aya-ebpf has no macro for iterators; the section's name is all that the loader needs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn hs_snapshot(context: *mut IterTcp) -> i32 {
    // SAFETY: the kernel gives a valid context; the verifier checks each load.
    let (meta, common) = unsafe { ((*context).meta, (*context).sock_common) };
    if common.is_null() {
        return 0;
    }
    let sock = Sock::<Direct>::at(common);
    // The time first: before 5.15 nothing holds the socket, and an end that comes after the look at its state must not
    // seem to be the earlier of the two.
    let now = now_ns();
    let state = sock.state();
    let mut event = Event {
        header: EventHeader {
            kind: EventKind::SocketSeen as u16,
            abi_version: ABI_VERSION,
            size_bytes: size_of::<Event<SocketSeen>>() as u16,
            attach: Attach::Tracepoint as u8,
            time_ns: now,
            socket: common as u64,
            ..EventHeader::default()
        },
        payload: SocketSeen { state, ..SocketSeen::default() },
    };
    let seen = &mut event.payload;
    sock.ends(&mut seen.endpoints);
    // Its end will be left out by the hooks, so its beginning must be too.
    if state == TcpState::SynSent as u8
        && !(filter::wants_role(ROLE_CLIENT)
            && filter::wants_unknown()
            && filter::wants_ends(&seen.endpoints))
    {
        return 0;
    }
    if state == TcpState::NewSynReceived as u8 {
        let request = RequestSock::<Direct>::at(common);
        seen.synack_ns = request.synack_ns();
        if let Some(address) = Direct::tcp_request_sock(common) {
            seen.retransmits = RequestSock::<Direct>::at(address).retransmits();
        }
        request_was_there(request, seen);
    } else if state != TcpState::TimeWait as u8
        // The iterator's pointer is a sock_common; what lies beyond needs the cast.
        && let Some(tcp) = Direct::tcp_sock(common)
    {
        let sock = Sock::<Direct>::at(tcp);
        if state == TcpState::SynSent as u8 {
            if let Some(retransmits) = sock.retransmits() {
                seen.retransmits = u16::from(retransmits);
            }
        } else if state == TcpState::Listen as u8 {
            if filter::wants_role(ROLE_SERVER) {
                listening::begins(sock);
            }
            seen.inode = sock.file_inode().unwrap_or(0);
            if let Some((length, limit)) = sock.accept_queue() {
                seen.accept_queue_length = length;
                seen.accept_queue_limit = limit;
            }
        } else if (state == TcpState::Established as u8 || state == TcpState::CloseWait as u8)
            && Direct::read::<u64>(tcp, offset!(sk_socket)) == Some(0)
        {
            // close() takes an accepted socket out of these states, so one without a file is still queued.
            let is_entered = child_was_there(common as u64, &seen.endpoints);
            // Since 5.15 the iterator holds the lock of the socket. Before, accept() may have come in between, or the
            // socket was an accepted one that was just closed; then nobody else would take the entry out. One that a
            // hook entered is that hook's.
            if sock.state() == state && Direct::read::<u64>(tcp, offset!(sk_socket)) == Some(0) {
                seen.queued = 1;
            } else if is_entered {
                let _ = QUEUED.remove(common as u64);
            }
        }
    }
    // SAFETY: the event is plain integers without padding, on this program's stack.
    unsafe {
        generated::bpf_seq_write(
            (*meta).seq.cast(),
            (&raw const event).cast_mut().cast(),
            size_of::<Event<SocketSeen>>() as u32,
        );
    }
    0
}

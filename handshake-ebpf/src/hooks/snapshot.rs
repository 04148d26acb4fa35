//! The sockets that were there before us, read once at start through `iter/tcp`.
//!
//! Each becomes a record of the same form as a ring buffer event, written to the iterator's file. What a
//! newcomer would get wrong: the iterator walks only the network namespace of whoever opened it, so the
//! daemon opens it once in each.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use handshake_common::{
    event::{ABI_VERSION, Attach, Event, EventHeader, EventKind, snapshot::SocketSeen},
    filter::ROLE_CLIENT,
    tcp::TcpState,
};

use crate::{
    emit::now_ns,
    filter,
    globals::offset,
    kernel::{
        read::{Direct, Memory},
        request_sock::RequestSock,
        sock::Sock,
    },
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
    let state = sock.state();
    let mut event = Event {
        header: EventHeader {
            kind: EventKind::SocketSeen as u16,
            abi_version: ABI_VERSION,
            size_bytes: size_of::<Event<SocketSeen>>() as u16,
            attach: Attach::Tracepoint as u8,
            time_ns: now_ns(),
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
            seen.inode = sock.file_inode().unwrap_or(0);
            if let Some((length, limit)) = sock.accept_queue() {
                seen.accept_queue_length = length;
                seen.accept_queue_limit = limit;
            }
        } else if (state == TcpState::Established as u8 || state == TcpState::CloseWait as u8)
            && Direct::read::<u64>(tcp, offset!(sk_socket)) == Some(0)
        {
            // close() takes an accepted socket out of these states, so one without a file is still queued.
            seen.queued = 1;
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

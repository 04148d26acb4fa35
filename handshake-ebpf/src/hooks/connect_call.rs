//! The connect() call: who makes it and whither, how it goes back to its caller, and when.
//!
//! An AF_INET6 socket that connects to a mapped address enters tcp_v6_connect and, within it, tcp_v4_connect: the
//! outer one notes the call. fexit on inet_stream_connect sees the return without a tax on other system calls, for
//! io_uring, 32-bit and kernel callers too; sys_exit_connect stands in where fexit can't be attached. What a newcomer
//! would get wrong: a return of EINPROGRESS is no failure, a blocking connect() returns after the socket left SYN-SENT,
//! so the event of the end comes first, and a sendmsg() that connects (Fast Open) returns by neither.

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel, bpf_probe_read_user},
    macros::{fentry, fexit, kprobe, tracepoint},
    programs::{FEntryContext, FExitContext, ProbeContext, TracePointContext},
};
use handshake_common::{
    counter::Counter,
    endpoint::{AF_INET, AF_INET6, Endpoints, V4_MAPPED},
    event::{
        Attach, EventKind,
        active_open::{ConnectFailed, ConnectReturned, flags},
    },
    filter::ROLE_CLIENT,
    runtime::RETURN_BY_THREAD,
    tcp::TcpState,
};

use super::{active_open, argument, opener};
use crate::{
    emit::{count, now_ns, submit},
    filter,
    globals::{LOCKED_DOWN, offset},
    kernel::{
        endpoints::{is_mapped, v4_mapped},
        preempt,
        read::{Copied, Direct, Memory},
        sock::Sock,
        task,
    },
    maps::{
        ACTIVE_OPENS, ASKED, ActiveOpen, CALLED_OVER_IPV6, CONNECT_CALLS, ConnectCall, ENDED, INTERNAL,
        RUNTIME,
    },
};

/// connect() reached TCP's function for this address family, in process context. `address` is the kernel's copy of the
/// caller's sockaddr.
#[inline(always)]
pub fn connect_called<M: Memory>(sock: Sock<M>, address: *const u8, by: u16) {
    if !filter::wants_role(ROLE_CLIENT) {
        return;
    }
    let key = sock.key();
    if let Some(open) = ACTIVE_OPENS.get_ptr_mut(key) {
        // SAFETY: a live entry of the table; this thread holds the socket's lock.
        let held = unsafe { (*open).flags };
        // Nobody but tcp_v6_connect calls this function for such a socket.
        let is_nested = by == AF_INET && sock.family() == AF_INET6 && held & CALLED_OVER_IPV6 != 0;
        let over_ipv6 = if by == AF_INET6 { CALLED_OVER_IPV6 } else { 0 };
        if is_nested || held & ASKED != 0 {
            // SAFETY: as above. The entry is of this very call.
            unsafe { (*open).flags = held & !(CALLED_OVER_IPV6 | ASKED) | over_ipv6 };
            return;
        }
    }
    // TCP connects only what is closed, so any other entry is a leftover: of an earlier call whose return nobody saw, or
    // of a socket that had this address before.
    if !opener::is_wanted(sock) {
        count(Counter::Filtered);
        let _ = ACTIVE_OPENS.remove(key);
        return;
    }
    let Some(open) = begin(sock, address) else { return };
    if by == AF_INET6 {
        // SAFETY: the entry that was just made; this thread holds the socket's lock.
        unsafe { (*open).flags |= CALLED_OVER_IPV6 };
    }
}

/// Begins the entry of a call.
#[inline(always)]
pub fn begin<M: Memory>(sock: Sock<M>, address: *const u8) -> Option<*mut ActiveOpen> {
    let open = active_open::begin(sock, now_ns())?;
    // SAFETY: the entry that was just made; this thread holds the socket's lock.
    let endpoints = unsafe { &mut (*open).endpoints };
    sock.ends(endpoints);
    // What the socket has of a remote end is of an earlier call that failed: tcp_v6_connect leaves the address there.
    endpoints.remote_address = [0; 16];
    endpoints.remote_port = 0;
    endpoints.flags = 0;
    remote_of_sockaddr(address, endpoints);
    note_call(sock.key());
    Some(open)
}

/// What the caller asked for. Until a route was found the sock says nothing of it.
#[inline(always)]
fn remote_of_sockaddr(address: *const u8, endpoints: &mut Endpoints) {
    // The sockaddr is longer than its BTF type says, so it needs the helper, which lockdown forbids: then
    // the remote end of a connect() that fails at once is unknown.
    if address.is_null() || LOCKED_DOWN.load() != 0 {
        return;
    }
    // SAFETY: the helper fails instead of faulting; sizes are those of sockaddr_in and sockaddr_in6.
    let Ok(family) = (unsafe { bpf_probe_read_kernel(address.cast::<u16>()) }) else { return };
    // SAFETY: as above.
    let Ok(port) = (unsafe { bpf_probe_read_kernel(address.wrapping_add(2).cast::<u16>()) }) else { return };
    if family == AF_INET {
        // SAFETY: as above.
        let Ok(v4) = (unsafe { bpf_probe_read_kernel(address.wrapping_add(4).cast::<u32>()) }) else {
            return;
        };
        v4_mapped(Some(v4), &mut endpoints.remote_address);
        // tcp_v4_connect within tcp_v6_connect.
        if endpoints.family == AF_INET6 {
            endpoints.flags |= V4_MAPPED;
        }
    } else if family == AF_INET6 {
        // SAFETY: as above.
        let Ok(v6) = (unsafe { bpf_probe_read_kernel(address.wrapping_add(8).cast::<[u8; 16]>()) }) else {
            return;
        };
        endpoints.remote_address = v6;
        if is_mapped(&endpoints.remote_address) {
            endpoints.flags |= V4_MAPPED;
        }
    } else {
        return;
    }
    endpoints.remote_port = u16::from_be(port);
}

/// Notes which socket this thread connects, for the modes that see the return as a system call's.
#[inline(always)]
fn note_call(socket: u64) {
    let Some(runtime) = RUNTIME.get_ptr(0) else { return };
    // SAFETY: the array's one live entry; aligned u32.
    if unsafe { (*runtime).return_is_seen } != RETURN_BY_THREAD {
        return;
    }
    let thread = task::thread();
    let call = match CONNECT_CALLS.get_ptr(thread) {
        // SAFETY: a live entry, copied out. sys_enter_connect made it, or the outer of two nested calls.
        Some(call) => ConnectCall { socket, ..unsafe { *call } },
        None => ConnectCall { called_ns: now_ns(), socket, address: 0, descriptor: -1 },
    };
    if CONNECT_CALLS.insert(thread, call, 0).is_err() {
        count(Counter::ConnectCallsFull);
    }
}

/// connect() on this socket is about to return `result` (0 or a negative errno).
#[inline(always)]
pub fn connect_returned<M: Memory>(sock: Sock<M>, result: i32, attach: Attach) {
    let socket = sock.key();
    let Some(open) = ACTIVE_OPENS.get_ptr_mut(socket) else { return };
    // SAFETY: a live entry; only this thread is in connect() on this socket.
    let (held, syn_sent_ns, generation_ns) =
        unsafe { ((*open).flags, (*open).syn_sent_ns, (*open).generation_ns) };
    let errno = result.unsigned_abs();
    // A connect() that waited and returned 0 is ESTABLISHED (but for a Fast Open that waits for data), and one that
    // failed and left the socket in CLOSED was over before; the hook on the change of state was skipped. The error is
    // the caller's now, not the socket's.
    let state = sock.state();
    let failed = result < 0 && state == TcpState::Closed as u8 && active_open::syn_left(open);
    let connected = result == 0 && (syn_sent_ns != 0 || state != TcpState::SynSent as u8);
    let missed = held & ENDED == 0 && (connected || failed);
    if missed {
        let end = if failed { TcpState::Closed } else { TcpState::Established };
        active_open::end_was_missed(sock, open, end as u8, errno, attach);
    }
    if missed || held & ENDED != 0 {
        submit(EventKind::ConnectReturned, attach, socket, generation_ns, |event: &mut ConnectReturned| {
            event.errno = errno;
            event.flags = held & !INTERNAL;
        });
        let _ = ACTIVE_OPENS.remove(socket);
        return;
    }
    if result < 0 && !active_open::syn_left(open) && held & flags::CALL_RETURNED == 0 {
        // SAFETY: a live entry.
        let ends = unsafe { (*open).endpoints };
        if filter::wants_ends(&ends) {
            submit(EventKind::ConnectFailed, attach, socket, generation_ns, |event: &mut ConnectFailed| {
                event.endpoints = ends;
                // SAFETY: a live entry.
                unsafe {
                    event.owner = (*open).owner;
                    event.called_ns = (*open).called_ns;
                }
                event.errno = errno;
                event.flags = held & !INTERNAL;
            });
        } else {
            count(Counter::Filtered);
        }
        let _ = ACTIVE_OPENS.remove(socket);
        return;
    }
    // SAFETY: a live entry. Softirq may set another bit between load and store; it holds the socket's lock,
    // this thread doesn't. What can be lost is the mark of a RST, which LeftSynSent reads before this
    // thread could be woken.
    unsafe { (*open).flags |= flags::CALL_RETURNED };
    if syn_sent_ns == 0 && state == TcpState::SynSent as u8 {
        // A deferred Fast Open: its ends are chosen, and its SYN, which would tell them, may never leave.
        // SAFETY: as above.
        sock.ends(unsafe { &mut (*open).endpoints });
    }
}

/// A call that failed before it reached TCP, or (tracepoint mode) before the socket left CLOSED, has left no
/// other trace.
#[inline(always)]
fn failed_without_a_trace(call: &ConnectCall, errno: u32) {
    if !filter::wants_role(ROLE_CLIENT) || !is_failure(errno) {
        return;
    }
    let Some(address) = task::sock_of_descriptor(call.descriptor) else { return };
    let sock = Sock::<Copied>::at(address);
    if !sock.is_tcp() || sock.state() != TcpState::Closed as u8 {
        return;
    }
    // An ICMP error after the SYN left these too, for a later connect() to collect. Then the socket has had
    // a SYN, and with it a sequence number; a new one has none.
    if is_collectable(errno) && sock.has_had_a_syn() {
        return;
    }
    let mut ends = Endpoints::default();
    sock.ends(&mut ends);
    remote_of_caller(call.address, &mut ends);
    if !filter::wants_running_thread() || !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return;
    }
    let own = filter::is_own();
    submit(
        EventKind::ConnectFailed,
        Attach::Tracepoint,
        sock.key(),
        call.called_ns,
        |event: &mut ConnectFailed| {
            event.endpoints = ends;
            task::owner(&mut event.owner);
            event.called_ns = call.called_ns;
            event.errno = errno;
            event.flags = if own { flags::OWN } else { 0 };
        },
    );
}

/// Errors that say something of the way to the peer, and not of a misused call: EPERM, EACCES, EINVAL (a
/// blackhole route), EADDRINUSE, EADDRNOTAVAIL, ENETDOWN, ENETUNREACH, ENOBUFS, EHOSTUNREACH.
#[inline(always)]
fn is_failure(errno: u32) -> bool {
    matches!(errno, 1 | 13 | 22 | 98 | 99 | 100 | 101 | 105 | 113)
}

/// A program at the cgroup forbade the call before it reached TCP, so only its return is seen. No failed
/// handshake leaves EPERM on a socket for a later call to collect.
#[inline(always)]
fn forbidden(sock: Sock<Direct>, address: *const u8) {
    if !filter::wants_role(ROLE_CLIENT) || !sock.is_tcp() || sock.state() != TcpState::Closed as u8 {
        return;
    }
    let mut ends = Endpoints::default();
    sock.ends(&mut ends);
    remote_of_sockaddr(address, &mut ends);
    if !filter::wants_running_thread() || !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return;
    }
    let own = filter::is_own();
    submit(EventKind::ConnectFailed, Attach::Fentry, sock.key(), 0, |event: &mut ConnectFailed| {
        event.endpoints = ends;
        task::owner(&mut event.owner);
        event.errno = EPERM as u32;
        event.flags = if own { flags::OWN } else { 0 };
    });
}

const EPERM: i32 = 1;

/// Errors that a failed handshake may leave on its socket and a misrouted call may return as well: EACCES
/// (ICMPv6, administratively prohibited), ENETUNREACH, EHOSTUNREACH.
#[inline(always)]
fn is_collectable(errno: u32) -> bool {
    matches!(errno, 13 | 101 | 113)
}

/// What the caller asked for, from its own memory.
#[inline(always)]
pub fn remote_of_caller(address: u64, ends: &mut Endpoints) {
    let address = address as *const u8;
    // SAFETY: the helper fails instead of faulting; offsets are those of sockaddr_in and sockaddr_in6.
    let Ok(family) = (unsafe { bpf_probe_read_user(address.cast::<u16>()) }) else { return };
    // SAFETY: as above.
    let Ok(port) = (unsafe { bpf_probe_read_user(address.wrapping_add(2).cast::<u16>()) }) else { return };
    if family == AF_INET {
        // SAFETY: as above.
        let Ok(v4) = (unsafe { bpf_probe_read_user(address.wrapping_add(4).cast::<u32>()) }) else { return };
        v4_mapped(Some(v4), &mut ends.remote_address);
    } else if family == AF_INET6 {
        // SAFETY: as above.
        let Ok(v6) = (unsafe { bpf_probe_read_user(address.wrapping_add(8).cast::<[u8; 16]>()) }) else {
            return;
        };
        ends.remote_address = v6;
        if is_mapped(&ends.remote_address) {
            ends.flags |= V4_MAPPED;
        }
    } else {
        return;
    }
    ends.remote_port = u16::from_be(port);
}

/// The return of connect(), whoever called it.
#[fexit(function = "inet_stream_connect")]
pub fn hs_returned_fx(context: FExitContext) -> i32 {
    let socket: *const u8 = argument!(context, 0);
    let Some(sock) = Direct::read::<*const u8>(socket, offset!(socket_sk)) else { return 0 };
    preempt::disable();
    // inet_stream_connect has four arguments on every kernel, so the result is the fifth slot; the helper
    // that would fetch it by name is younger (5.17).
    let (sock, result) = (Sock::<Direct>::at(sock), context.arg::<i32>(4));
    let reached_tcp = ACTIVE_OPENS.get_ptr(sock.key()).is_some();
    connect_returned(sock, result, Attach::Fentry);
    if result == -EPERM && !reached_tcp {
        forbidden(sock, argument!(context, 1));
    }
    preempt::enable();
    0
}

/// The return of sendmsg() from connecting (Fast Open), which doesn't pass the function above. What went on has sent its
/// SYN, and tells of itself.
#[fexit(function = "__inet_stream_connect")]
pub fn hs_sendmsg_fx(context: FExitContext) -> i32 {
    // Five arguments on every kernel, of which the last says that this is sendmsg().
    let (is_sendmsg, result) = (context.arg::<i32>(4), context.arg::<i32>(5));
    if is_sendmsg == 0 || result >= 0 {
        return 0;
    }
    let socket: *const u8 = argument!(context, 0);
    let Some(sock) = Direct::read::<*const u8>(socket, offset!(socket_sk)) else { return 0 };
    preempt::disable();
    let sock = Sock::<Direct>::at(sock);
    match ACTIVE_OPENS.get_ptr_mut(sock.key()) {
        Some(open) if sock.state() == TcpState::Closed as u8 && !active_open::syn_left(open) => {
            connect_returned(sock, result, Attach::Fentry);
        }
        None if result == -EPERM => forbidden(sock, argument!(context, 1)),
        _ => {}
    }
    preempt::enable();
    0
}

/// A connect() system call begins.
#[tracepoint]
pub fn hs_connect_enter(context: TracePointContext) -> u32 {
    // The record: common fields and the call's number, then fd at 16 and the address at 24.
    // SAFETY: the tracepoint's record is at least 40 bytes long.
    let (Ok(descriptor), Ok(address)) = (unsafe { (context.read_at::<i64>(16), context.read_at::<u64>(24)) })
    else {
        return 0;
    };
    let call = ConnectCall { called_ns: now_ns(), socket: 0, address, descriptor };
    if CONNECT_CALLS.insert(task::thread(), call, 0).is_err() {
        count(Counter::ConnectCallsFull);
    }
    0
}

/// A connect() system call returns.
#[tracepoint]
pub fn hs_connect_exit(context: TracePointContext) -> u32 {
    // SAFETY: the tracepoint's record holds the result at 16.
    let Ok(result) = (unsafe { context.read_at::<i64>(16) }) else { return 0 };
    let thread = task::thread();
    let Some(call) = CONNECT_CALLS.get_ptr(thread) else { return 0 };
    // SAFETY: a live entry, copied out before it is deleted.
    let call = unsafe { *call };
    let _ = CONNECT_CALLS.remove(thread);
    if call.socket != 0 {
        let sock = Sock::<Copied>::at(call.socket as *const u8);
        connect_returned(sock, result as i32, Attach::Tracepoint);
    } else if result < 0 {
        failed_without_a_trace(&call, result.unsigned_abs() as u32);
    }
    0
}

/// connect() over IPv4.
#[fentry(function = "tcp_v4_connect")]
pub fn hs_connect4_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    aya_log_ebpf::debug!(&context, "tcp_v4_connect");
    connect_called(Sock::<Direct>::at(argument!(context, 0)), argument!(context, 1), AF_INET);
    preempt::enable();
    0
}

/// connect() over IPv6.
#[fentry(function = "tcp_v6_connect")]
pub fn hs_connect6_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    connect_called(Sock::<Direct>::at(argument!(context, 0)), argument!(context, 1), AF_INET6);
    preempt::enable();
    0
}

/// connect() over IPv4.
#[kprobe]
pub fn hs_connect4_kp(context: ProbeContext) -> u32 {
    let (Some(sock), Some(address)) = (argument!(context, 0), argument!(context, 1)) else { return 0 };
    connect_called(Sock::<Copied>::at(sock), address, AF_INET);
    0
}

/// connect() over IPv6.
#[kprobe]
pub fn hs_connect6_kp(context: ProbeContext) -> u32 {
    let (Some(sock), Some(address)) = (argument!(context, 0), argument!(context, 1)) else { return 0 };
    connect_called(Sock::<Copied>::at(sock), address, AF_INET6);
    0
}

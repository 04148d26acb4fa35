//! The state tracepoint inet_sock_set_state: the one hook that every kernel, mode and path has.
//!
//! It says when a handshake ends, and stands in for the probes that a mode lacks. What a newcomer would get
//! wrong: it fires before the new state is stored, in softirq as often as not, so of the running thread it
//! knows something only at CLOSED->SYN-SENT and where LISTEN begins or ends.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use handshake_common::{
    counter::Counter,
    endpoint::Endpoints,
    event::{
        Attach, EventKind,
        active_open::flags as active_flags,
        listener::Listener,
        passive_open::{PassiveOpen, flags},
    },
    filter::{ROLE_CLIENT, ROLE_SERVER},
    tcp::TcpState,
};

use super::{
    accept_queue, active_open, argument,
    child_queued::accept_is_seen,
    connect_call::remote_of_caller,
    listening,
    never_established::{closed_early, lost_its_race},
    opener,
    reset::ends_child,
    subflow::{joining, joining_attach},
};
use crate::{
    emit::{Slot, count, now_ns, submit},
    filter,
    globals::LOCKED_DOWN,
    kernel::{
        endpoints::halves,
        preempt,
        read::{Direct, Memory},
        sock::Sock,
        task,
    },
    maps::{
        self, ACTIVE_OPENS, CONNECT_CALLS, DROPS, IN_SOFTIRQ, QUEUED, Queued, RUNTIME, new_queued,
        remove_request,
    },
    words,
};

/// A socket goes from one state to another.
#[inline(always)]
fn state_changes<M: Memory>(sock: Sock<M>, old: u8, new: u8) {
    const CLOSED: u8 = TcpState::Closed as u8;
    const SYN_SENT: u8 = TcpState::SynSent as u8;
    const SYN_RECEIVED: u8 = TcpState::SynReceived as u8;
    const LISTEN: u8 = TcpState::Listen as u8;
    const FIN_WAIT1: u8 = TcpState::FinWait1 as u8;
    const LAST_ACK: u8 = TcpState::LastAck as u8;
    const CLOSE_WAIT: u8 = TcpState::CloseWait as u8;
    if old == SYN_SENT {
        if sock.is_tcp() {
            active_open::left_syn_sent(sock, new, Attach::Common);
        }
    } else if old == SYN_RECEIVED {
        if sock.is_tcp() {
            left_syn_received(sock, new);
        }
    } else if old == CLOSED && new == SYN_SENT {
        if sock.is_tcp() {
            entered_syn_sent(sock);
        }
    } else if new == LISTEN && old == CLOSED {
        if sock.is_tcp() {
            listener(sock, EventKind::ListenerOpened);
        }
    } else if old == LISTEN && new == CLOSED && sock.is_tcp() {
        listener(sock, EventKind::ListenerClosed);
    } else if new == FIN_WAIT1 || new == LAST_ACK || new == CLOSE_WAIT || new == CLOSED {
        accept_queue::owner_shows(sock, old, new == FIN_WAIT1 || new == LAST_ACK);
    }
}

/// In process context. With probes the table holds the call already; without, it begins here.
#[inline(always)]
fn entered_syn_sent<M: Memory>(sock: Sock<M>) {
    if !filter::wants_role(ROLE_CLIENT) {
        return;
    }
    let Some(runtime) = RUNTIME.get_ptr(0) else { return };
    // SAFETY: the array's one live entry.
    let is_probed = unsafe { (*runtime).syn_sent_is_seen } & CONNECT_IS_PROBED != 0;
    // A probe on connect() has been here before us, unless the kernel skipped it.
    if is_probed && let Some(open) = ACTIVE_OPENS.get_ptr_mut(sock.key()) {
        // Under lockdown it could not read the caller's sockaddr; by now the socket has the remote end.
        // SAFETY: a live entry; this thread holds the socket's lock.
        if unsafe { (*open).endpoints.remote_port } == 0 {
            // SAFETY: as above.
            sock.ends(unsafe { &mut (*open).endpoints });
        }
        return;
    }
    if !opener::is_wanted(sock) {
        count(Counter::Filtered);
        return;
    }
    let now = now_ns();
    let key = sock.key();
    let mut called_ns = now;
    let mut asked = Endpoints::default();
    if let Some(call) = CONNECT_CALLS.get_ptr_mut(task::thread()) {
        // SAFETY: this thread's own live entry, made at sys_enter_connect.
        unsafe {
            called_ns = (*call).called_ns;
            (*call).socket = key;
            // Under lockdown no system call tells of itself.
            if LOCKED_DOWN.load() == 0 {
                remote_of_caller((*call).address, &mut asked);
            }
        }
    }
    let Some(open) = active_open::begin(sock, called_ns) else { return };
    let (high, low) = halves(&asked.remote_address);
    // SAFETY: the entry that was just made; this thread holds the socket's lock. When connect() was called is not known
    // to better than the search for a route takes, where a probe should have said it.
    unsafe {
        sock.ends(&mut (*open).endpoints);
        (*open).asked = [high, low];
        (*open).asked_port = u32::from(asked.remote_port);
        if is_probed {
            (*open).called_ns = 0;
        }
    }
    // SAFETY: as above.
    if unsafe { (*runtime).syn_sent_is_seen } == 0 {
        // Nothing better will tell of the SYN: it follows within this call. The local port is still 0.
        active_open::syn_sent(sock, Attach::Tracepoint);
    }
}

/// `Runtime::syn_sent_is_seen`: a probe on tcp_v4_connect fills the table.
pub const CONNECT_IS_PROBED: u32 = 1;

/// A child, or a simultaneous open, leaves SYN-RECEIVED.
#[inline(always)]
fn left_syn_received<M: Memory>(sock: Sock<M>, new: u8) {
    let key = sock.key();
    let now = now_ns();
    if let Some(queued) = QUEUED.get_ptr_mut(key) {
        // SAFETY: a live entry; the socket's lock is held.
        let accepted = unsafe { (*queued).accepted };
        if accepted != 0 && new == TcpState::FinWait1 as u8 {
            closed_early(sock, queued);
            return;
        }
        child_left(sock, queued, new, 0);
        if accepted != 0 {
            let _ = QUEUED.remove(key);
        }
        return;
    }
    if let Some(open) = ACTIVE_OPENS.get_ptr(key) {
        // A simultaneous open: this socket was a client. SAFETY: a live entry.
        let generation_ns = unsafe { (*open).generation_ns };
        submit(EventKind::LeftSynReceived, Attach::Common, key, generation_ns, |event: &mut PassiveOpen| {
            // SAFETY: a live entry.
            unsafe {
                event.endpoints = (*open).endpoints;
                if (*open).flags & active_flags::RESET_RECEIVED != 0 {
                    event.flags |= flags::RESET_RECEIVED;
                }
            }
            finish(sock, new, true, event);
        });
        return;
    }
    // A file owns no child before accept(): this is the application's own socket in a simultaneous open, whose
    // beginning a filter left out.
    if !filter::wants_role(ROLE_SERVER) {
        return;
    }
    if child_found_no_room(sock, new) || child_joins(sock, new, now) {
        return;
    }
    if sock.has_an_owner() || lost_its_race(sock, new) {
        return;
    }
    child_without_probes(sock, new, now);
}

/// A child that was told when it was queued, and had no place in `QUEUED`: its socket is all that is known here.
#[inline(always)]
fn child_found_no_room<M: Memory>(sock: Sock<M>, new: u8) -> bool {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry.
    unsafe {
        if (*work).unqueued != sock.key() {
            return false;
        }
        (*work).unqueued = 0;
    }
    submit(EventKind::LeftSynReceived, Attach::Common, sock.key(), 0, |event: &mut PassiveOpen| {
        sock.ends(&mut event.endpoints);
        event.flags |= accept_is_seen();
        finish(sock, new, false, event);
    });
    true
}

/// A subflow that joins an MPTCP connection: it may belong to a file already, and no accept() will return it.
#[inline(always)]
fn child_joins<M: Memory>(sock: Sock<M>, new: u8, now: u64) -> bool {
    if new != TcpState::Established as u8 {
        return false;
    }
    let known = joining(sock);
    if known.is_null() && !sock.joins() {
        return false;
    }
    let mut ends = Endpoints::default();
    sock.ends(&mut ends);
    if !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return true;
    }
    let attach = if known.is_null() { Attach::Tracepoint } else { joining_attach() };
    let slot = Slot::<PassiveOpen>::reserve(0, EventKind::LeftSynReceived, attach, sock.key(), now);
    let Some(mut slot) = slot else { return true };
    let event = slot.payload();
    if known.is_null() {
        let cookie = sock.cookie();
        syn_by_cookie(cookie, event);
        remove_request(cookie);
    } else {
        // SAFETY: this CPU's own entry.
        unsafe { words::copy(known, event) };
    }
    event.endpoints = ends;
    event.flags |= flags::MPTCP_JOIN;
    finish(sock, new, false, event);
    slot.submit();
    true
}

/// Reports that a queued child left SYN-RECEIVED; `time_ns` 0 is now. accept() calls it too, for a child whose
/// change of state the kernel hid from us by skipping the program.
#[inline(always)]
pub fn child_left<M: Memory>(sock: Sock<M>, queued: *mut Queued, new: u8, time_ns: u64) {
    // SAFETY: a live entry; the socket's lock is held.
    let generation_ns = unsafe {
        (*queued).left = 1;
        (*queued).generation_ns
    };
    let kind = EventKind::LeftSynReceived;
    let slot = Slot::<PassiveOpen>::reserve(time_ns, kind, Attach::Common, sock.key(), generation_ns);
    let Some(mut slot) = slot else { return };
    let event = slot.payload();
    // SAFETY: a live entry.
    unsafe { words::copy(&raw const (*queued).passive, event) };
    finish(sock, new, false, event);
    slot.submit();
}

/// No probe saw this child: it is queued now, and its SYN may have been noted under its cookie.
#[inline(always)]
fn child_without_probes<M: Memory>(sock: Sock<M>, new: u8, now: u64) {
    let mut ends = Endpoints::default();
    if new == TcpState::Closed as u8 {
        // A Fast Open child that was reset: by now it has given its port back.
        sock.ends_after_closed(&mut ends);
    } else {
        sock.ends(&mut ends);
    }
    if !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return;
    }
    let cookie = sock.cookie();
    let (mut known, mut queued_ns) = (accept_is_seen(), now);
    if new == TcpState::Closed as u8 {
        // Fast Open's: it has been in the accept queue since the SYN, and stays there.
        known |= flags::FAST_OPEN;
        queued_ns = 0;
        if ends_child(sock.key()) {
            known |= flags::RESET_RECEIVED;
        }
    }
    let fill = |passive: &mut PassiveOpen| {
        passive.endpoints = ends;
        passive.flags |= known;
        passive.queued_ns = queued_ns;
        syn_by_cookie(cookie, passive);
    };
    if let Some(entry) = new_queued(sock.key()) {
        // SAFETY: the entry that was just made.
        unsafe {
            (*entry).generation_ns = now;
            (*entry).left = 1;
            fill(&mut (*entry).passive);
        }
    }
    submit(EventKind::LeftSynReceived, Attach::Tracepoint, sock.key(), now, |event: &mut PassiveOpen| {
        fill(event);
        finish(sock, new, false, event);
    });
    remove_request(cookie);
}

/// What sock_ops noted of the SYN under the child's cookie.
#[inline(always)]
pub fn syn_by_cookie(cookie: u64, passive: &mut PassiveOpen) {
    match maps::request(cookie) {
        // SAFETY: a live entry.
        Some(request) => unsafe {
            passive.syn_ns = (*request).syn_ns;
            passive.last_retransmit_ns = (*request).last_retransmit_ns;
            passive.synack_retransmits = (*request).synack_retransmits;
        },
        None if !syn_is_noted() => {}
        // Sockets that nobody asked for have no cookie: that of a request whose SYN was noted has one.
        None if cookie != 0 && maps::may_be_driven_out(cookie) => passive.flags |= flags::SYN_TABLE_FULL,
        None => passive.flags |= flags::SYN_NOT_SEEN,
    }
}

/// Whether sock_ops notes SYNs: if not, a child without one need not have begun before us.
#[inline(always)]
fn syn_is_noted() -> bool {
    let Some(runtime) = RUNTIME.get_ptr(0) else { return false };
    // SAFETY: the array's one live entry; aligned u32.
    unsafe { (*runtime).syn_is_noted != 0 }
}

#[inline(always)]
pub fn finish<M: Memory>(sock: Sock<M>, new: u8, syn_was_acked: bool, event: &mut PassiveOpen) {
    event.old_state = TcpState::SynReceived as u8;
    event.new_state = new;
    if let Some(error) = sock.error() {
        event.sk_err = error;
        event.flags |= flags::ERROR_KNOWN;
    }
    if new == TcpState::Established as u8 {
        sock.negotiated(&mut event.negotiated, syn_was_acked);
    }
}

/// In process context: listen(), close().
#[inline(always)]
fn listener<M: Memory>(sock: Sock<M>, kind: EventKind) {
    if !filter::wants_role(ROLE_SERVER) {
        return;
    }
    let _ = DROPS.remove(sock.key());
    // One that opens can be in the table only if its end was not seen.
    listening::ends(sock.key());
    if kind == EventKind::ListenerOpened {
        listening::begins(sock);
    }
    submit(kind, Attach::Common, sock.key(), 0, |event: &mut Listener| {
        sock.ends(&mut event.endpoints);
        task::owner(&mut event.owner);
        event.own = u32::from(filter::is_own());
        if let Some((_, limit)) = sock.accept_queue() {
            event.accept_queue_limit = limit;
        }
    });
}

/// Every change of state of every inet socket.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn hs_state(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    let (old, new) = (context.arg::<i32>(1), context.arg::<i32>(2));
    aya_log_ebpf::debug!(&context, "inet_sock_set_state {} -> {}", old, new);
    state_changes(Sock::<Direct>::at(argument!(context, 0)), old as u8, new as u8);
    preempt::enable();
    0
}

//! The accept queue: accept() waits, accept() takes a child, a child is destroyed unaccepted.
//!
//! security_sock_graft runs in the acceptor's context for each child that accept() returns, on every kernel
//! and for calls that slept since before we attached. What a newcomer would get wrong: a return probe on
//! inet_csk_accept would miss exactly those, and silently so, which is why there is none.

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, kprobe, tracepoint},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, TracePointContext},
};
use handshake_common::{
    counter::Counter,
    endpoint::Endpoints,
    event::{
        Attach, EventKind,
        accept_queue::{Accepted, ChildDestroyed, flags},
        passive_open,
    },
    filter::ROLE_SERVER,
    tcp::{ACK, SYN, TcpState},
};

use super::{
    active_open, argument,
    child_queued::accept_is_seen,
    never_established::closed_early_ends,
    state::{child_left, syn_by_cookie},
};
use crate::{
    emit::{count, now_ns, submit},
    filter,
    globals::{LOCKED_DOWN, offset},
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        sock::Sock,
        task,
    },
    maps::{ACCEPT_CALLS, ACTIVE_OPENS, AcceptCall, ENDED, QUEUED, Queued, new_queued},
    words,
};

/// A thread entered accept() on this listener; it may return at once, sleep, or find nothing.
#[inline(always)]
pub fn accept_waits(listener: u64) {
    if !filter::wants_role(ROLE_SERVER) {
        return;
    }
    let call = AcceptCall { waiting_since_ns: now_ns(), listener };
    if ACCEPT_CALLS.insert(task::thread(), call, 0).is_err() {
        count(Counter::AcceptCallsFull);
    }
}

/// accept() returns this child to the running thread.
#[inline(always)]
pub fn accepted<M: Memory>(child: Sock<M>, attach: Attach) {
    if !filter::wants_role(ROLE_SERVER) || !child.is_tcp() {
        return;
    }
    // Two paths with little in common, rather than one with options: before 6.3 the verifier follows each
    // combination of what an option may be to the program's end.
    match QUEUED.get_ptr_mut(child.key()) {
        Some(queued) => queued_child_accepted(child, queued, attach),
        None => unknown_child_accepted(child, attach),
    }
}

/// A child whose queueing was seen.
#[inline(always)]
fn queued_child_accepted<M: Memory>(child: Sock<M>, queued: *mut Queued, attach: Attach) {
    // A RST in the queue has zeroed the socket's own ports. SAFETY: a live entry, here and below.
    if !filter::wants_ends(unsafe { &(*queued).passive.endpoints }) {
        count(Counter::Filtered);
        return;
    }
    let early = child.state() == TcpState::SynReceived as u8;
    // SAFETY: accept() holds the child's lock.
    if !early && unsafe { (*queued).left } == 0 {
        // SAFETY: as above. It left within this softirq's work after it was queued.
        child_left(child, queued, TcpState::Established as u8, unsafe { (*queued).passive.queued_ns });
    }
    let waiting_since_ns = accept_call_ends();
    // SAFETY: as above.
    let generation_ns = unsafe { (*queued).generation_ns };
    submit(EventKind::Accepted, attach, child.key(), generation_ns, |event: &mut Accepted| {
        task::owner(&mut event.owner);
        event.waiting_since_ns = waiting_since_ns;
        // SAFETY: as above.
        unsafe {
            words::copy(&raw const (*queued).passive.endpoints, &raw mut event.endpoints);
            event.queued_ns = (*queued).passive.queued_ns;
            event.reset_ns = (*queued).reset_ns;
        }
        event.flags =
            if early { flags::QUEUEING_SEEN | flags::BEFORE_ESTABLISHED } else { flags::QUEUEING_SEEN };
    });
    if early {
        // Fast Open: accepted before the final ACK. What was gathered is needed when that comes.
        // SAFETY: a live entry; accept() holds the child's lock.
        unsafe { (*queued).accepted = 1 };
    } else {
        let _ = QUEUED.remove(child.key());
    }
}

/// A child that no hook saw queued: queued before us, or no probe sees it, or the table was full.
#[inline(always)]
fn unknown_child_accepted<M: Memory>(child: Sock<M>, attach: Attach) {
    let mut ends = Endpoints::default();
    child.ends(&mut ends);
    if !filter::wants_ends(&ends) {
        count(Counter::Filtered);
        return;
    }
    let mut generation_ns = 0;
    let mut bits = 0;
    if child.state() == TcpState::SynReceived as u8 {
        bits = flags::BEFORE_ESTABLISHED;
        // Without probes nothing has announced it; its ->ESTABLISHED, still to come, must find that it was
        // accepted.
        generation_ns = early_child(child, &ends);
        if generation_ns != 0 {
            bits = flags::BEFORE_ESTABLISHED | flags::QUEUEING_SEEN;
        }
    }
    let waiting_since_ns = accept_call_ends();
    submit(EventKind::Accepted, attach, child.key(), generation_ns, |event: &mut Accepted| {
        event.endpoints = ends;
        task::owner(&mut event.owner);
        event.waiting_since_ns = waiting_since_ns;
        event.flags = bits;
    });
}

/// Since when the running thread has waited in accept(), 0 when that was not seen.
#[inline(always)]
fn accept_call_ends() -> u64 {
    let thread = task::thread();
    let Some(call) = ACCEPT_CALLS.get_ptr(thread) else { return 0 };
    // SAFETY: a live entry.
    let waiting_since_ns = unsafe { (*call).waiting_since_ns };
    let _ = ACCEPT_CALLS.remove(thread);
    waiting_since_ns
}

/// accept() returns the master socket of an MPTCP connection: the child that was queued is its first subflow.
#[inline(always)]
fn subflow_accepted(master: u64, attach: Attach) {
    // The field is beyond the type that the verifier knows the argument by, so it needs the helper.
    if LOCKED_DOWN.load() != 0 {
        return;
    }
    let Some(subflow) = Copied::read::<*const u8>(master as *const u8, offset!(mptcp_first)) else { return };
    if !subflow.is_null() {
        accepted(Sock::<Copied>::at(subflow), attach);
    }
}

/// Enters a child that accept() returns in SYN-RECEIVED and that no probe has seen. Returns its generation, 0
/// when the table is full.
#[inline(always)]
fn early_child<M: Memory>(child: Sock<M>, ends: &Endpoints) -> u64 {
    let Some(entry) = new_queued(child.key()) else { return 0 };
    let now = now_ns();
    // SAFETY: the entry that was just made; accept() holds the child's lock.
    let passive = unsafe {
        (*entry).generation_ns = now;
        (*entry).accepted = 1;
        &mut (*entry).passive
    };
    passive.endpoints = *ends;
    passive.flags = passive_open::flags::FAST_OPEN | accept_is_seen();
    syn_by_cookie(child.cookie(), passive);
    now
}

/// A connection begins to end. If the table still holds it as queued, though it has an owner, its accept() was not
/// seen: it came through io_uring or from a 32-bit program (tracepoint mode), returned MPTCP's master socket, or the
/// kernel skipped our program.
#[inline(always)]
pub fn owner_shows<M: Memory>(sock: Sock<M>, old: u8, sends_fin: bool) {
    let Some(queued) = QUEUED.get_ptr_mut(sock.key()) else { return };
    // SAFETY: a live entry; the socket's lock is held.
    if unsafe { (*queued).closed_early } != 0 {
        // Its FIN is long sent: this is ->CLOSED.
        closed_early_ends(sock, queued, old);
        let _ = QUEUED.remove(sock.key());
        return;
    }
    if sends_fin {
        // Only an owner does that. MPTCP takes the file from its subflows before.
        accepted_unseen(sock.key(), queued);
    } else if sock.has_an_owner() {
        // The peer ended it. accept() may be about to return, which tracepoint mode sees later than the file.
        // SAFETY: a live entry; the socket's lock is held.
        unsafe { (*queued).has_owner = 1 };
    }
}

/// That accept() took this child shows only now.
#[inline(always)]
fn accepted_unseen(child: u64, queued: *mut Queued) {
    // SAFETY: a live entry, here and below.
    let generation_ns = unsafe { (*queued).generation_ns };
    submit(EventKind::Accepted, Attach::Common, child, generation_ns, |event: &mut Accepted| {
        // SAFETY: as above.
        unsafe {
            words::copy(&raw const (*queued).passive.endpoints, &raw mut event.endpoints);
            event.queued_ns = (*queued).passive.queued_ns;
            event.reset_ns = (*queued).reset_ns;
        }
        event.flags = flags::QUEUEING_SEEN | flags::CALL_NOT_SEEN;
    });
    let _ = QUEUED.remove(child);
}

/// A socket is destroyed: the last word on anything that the tables still hold of it.
#[inline(always)]
pub fn destroyed<M: Memory>(sock: Sock<M>) {
    let key = sock.key();
    if let Some(open) = ACTIVE_OPENS.get_ptr_mut(key) {
        // SAFETY: a live entry.
        let (held, answer) = unsafe { ((*open).flags, (*open).answer_flags) };
        if held & ENDED == 0 && (active_open::syn_left(open) || sock.syn_was_acknowledged()) {
            let answered = answer & (SYN | ACK) == SYN | ACK;
            let new = if answered { TcpState::Established } else { TcpState::Closed };
            active_open::end_was_missed(sock, open, new as u8, 0, Attach::Common);
        }
        let _ = ACTIVE_OPENS.remove(key);
    }
    let Some(queued) = QUEUED.get_ptr_mut(key) else { return };
    // SAFETY: a live entry.
    let (accepted, generation_ns, has_owner) =
        unsafe { ((*queued).accepted, (*queued).generation_ns, (*queued).has_owner) };
    // A listener that closes disconnects its children before it destroys them. One that was reset and then accepted
    // is destroyed by its owner's close() without any change of state.
    if accepted == 0 && (has_owner != 0 || !sock.was_disconnected()) {
        accepted_unseen(key, queued);
        return;
    }
    if accepted == 0 {
        submit(
            EventKind::ChildDestroyed,
            Attach::Common,
            key,
            generation_ns,
            |event: &mut ChildDestroyed| {
                // SAFETY: a live entry.
                unsafe {
                    words::copy(&raw const (*queued).passive.endpoints, &raw mut event.endpoints);
                    event.queued_ns = (*queued).passive.queued_ns;
                    event.reset_ns = (*queued).reset_ns;
                    if (*queued).passive.flags & passive_open::flags::OWN != 0 {
                        event.flags |= flags::OWN;
                    }
                }
                event.flags |= flags::QUEUEING_SEEN;
            },
        );
    }
    let _ = QUEUED.remove(key);
}

/// A listener became readable: its youngest child has just been queued. A nearer time of that than the
/// change of state, where no probe sees the queueing itself.
#[inline(always)]
fn readable<M: Memory>(sock: Sock<M>) {
    if sock.state() != TcpState::Listen as u8 || !sock.is_tcp() {
        return;
    }
    let Some(child) = sock.youngest_child() else { return };
    let Some(queued) = QUEUED.get_ptr_mut(child) else { return };
    // SAFETY: a live entry; the event of ->ESTABLISHED has gone out with the earlier time.
    unsafe { (*queued).passive.queued_ns = now_ns() };
}

/// A thread enters accept().
#[fentry(function = "inet_csk_accept")]
pub fn hs_accept_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    accept_waits(argument!(context, 0) as u64);
    preempt::enable();
    0
}

/// A thread enters accept().
#[kprobe]
pub fn hs_accept_kp(context: ProbeContext) -> u32 {
    let Some(listener) = argument!(context, 0) else { return 0 };
    accept_waits(listener as u64);
    0
}

/// accept() gives the child its socket file.
#[fentry(function = "security_sock_graft")]
pub fn hs_graft_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    aya_log_ebpf::debug!(&context, "security_sock_graft");
    let child = Sock::<Direct>::at(argument!(context, 0));
    if child.is_mptcp_master() {
        subflow_accepted(child.key(), Attach::Fentry);
    } else {
        accepted(child, Attach::Fentry);
    }
    preempt::enable();
    0
}

/// accept() gives the child its socket file.
#[kprobe]
pub fn hs_graft_kp(context: ProbeContext) -> u32 {
    let Some(child) = argument!(context, 0) else { return 0 };
    let child = Sock::<Copied>::at(child);
    if child.is_mptcp_master() {
        subflow_accepted(child.key(), Attach::Kprobe);
    } else {
        accepted(child, Attach::Kprobe);
    }
    0
}

/// accept() or accept4() returns a file descriptor (one program, attached to both).
#[tracepoint]
pub fn hs_accept_exit(context: TracePointContext) -> u32 {
    // SAFETY: the tracepoint's record holds the result at 16.
    let Ok(descriptor) = (unsafe { context.read_at::<i64>(16) }) else { return 0 };
    let Some(sock) = task::sock_of_descriptor(descriptor) else { return 0 };
    let sock = Sock::<Copied>::at(sock);
    if sock.is_mptcp_master() {
        subflow_accepted(sock.key(), Attach::Tracepoint);
    } else {
        accepted(sock, Attach::Tracepoint);
    }
    0
}

/// A TCP socket is destroyed.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn hs_destroy(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    destroyed(Sock::<Direct>::at(argument!(context, 0)));
    preempt::enable();
    0
}

/// A socket became readable (6.3 and later).
#[btf_tracepoint(function = "sk_data_ready")]
pub fn hs_data_ready(context: BtfTracePointContext) -> i32 {
    preempt::disable();
    readable(Sock::<Direct>::at(argument!(context, 0)));
    preempt::enable();
    0
}

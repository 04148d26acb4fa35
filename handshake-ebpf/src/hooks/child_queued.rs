//! The child that the final ACK made goes into the accept queue.
//!
//! What a newcomer would get wrong: most children come with their request, which says when the SYN came. One from a SYN
//! cookie has none, and Fast Open queues its child at the SYN; both come through inet_csk_reqsk_queue_add alone.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    endpoint::Endpoints,
    event::{
        Attach, EventKind,
        passive_open::{PassiveOpen, flags},
    },
    filter::ROLE_SERVER,
    tcp::TcpState,
};

use super::{
    argument,
    passive_open::{gather, syn_time},
};
use crate::{
    emit::{now_ns, submit},
    filter,
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        request_sock::RequestSock,
        sock::Sock,
    },
    maps::{IN_SOFTIRQ, QUEUED, RUNTIME, new_queued, remove_request},
    words,
};

/// The final ACK made `child` of `request`, and it goes into `listener`'s accept queue.
#[inline(always)]
pub fn child_linked<M: Memory>(listener: Sock<M>, child: Sock<M>, request: RequestSock<M>, attach: Attach) {
    if filter::wants_role(ROLE_SERVER) && wants_child(child) {
        queue(listener, child, attach, |passive| {
            gather(request, passive);
        });
        // Only now: if the ring was full, the facts were gathered a second time, for the table.
        remove_request(request.key());
    }
}

/// A child goes into the accept queue without a final ACK to a request: from a SYN cookie, or (Fast Open)
/// before the final ACK.
#[inline(always)]
pub fn child_added<M: Memory>(listener: Sock<M>, request: RequestSock<M>, child: Sock<M>, attach: Attach) {
    // Before 6.1 inet_csk_complete_hashdance calls this too, and has queued the child already.
    if !filter::wants_role(ROLE_SERVER) || QUEUED.get_ptr(child.key()).is_some() || !wants_child(child) {
        return;
    }
    let syn_ns = syn_time(listener.key());
    queue(listener, child, attach, |passive| {
        request.isns(&mut passive.negotiated);
        passive.synack_ns = request.synack_ns();
        if child.is_fast_open_child() {
            passive.flags |= flags::FAST_OPEN;
            passive.syn_ns = syn_ns;
            passive.syns_seen = 1;
        } else if passive.synack_ns == 0 {
            passive.flags |= flags::SYN_COOKIE;
        }
    });
}

#[inline(always)]
fn wants_child<M: Memory>(child: Sock<M>) -> bool {
    let mut ends = Endpoints::default();
    child.ends(&mut ends);
    filter::wants_ends(&ends)
}

#[inline(always)]
fn queue<M: Memory>(
    listener: Sock<M>,
    child: Sock<M>,
    attach: Attach,
    gather: impl Fn(&mut PassiveOpen) + Copy,
) {
    let now = now_ns();
    let entry = new_queued(child.key());
    // A child that found no room has no generation, and is told by its next event too.
    let mut generation_ns = now;
    if entry.is_none() {
        generation_ns = 0;
        if let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) {
            // SAFETY: this CPU's own entry.
            unsafe { (*work).unqueued = child.key() };
        }
    }
    let fill = |passive: &mut PassiveOpen| {
        child.ends(&mut passive.endpoints);
        passive.listener = listener.key();
        gather(passive);
        passive.queued_ns = now;
        if let Some((length, limit)) = listener.accept_queue() {
            passive.accept_queue_length = length;
            passive.accept_queue_limit = limit;
        }
        passive.old_state = TcpState::SynReceived as u8;
        passive.new_state = TcpState::SynReceived as u8;
        passive.flags |= accept_is_seen();
    };
    let submitted =
        submit(EventKind::ChildQueued, attach, child.key(), generation_ns, |event: &mut PassiveOpen| {
            fill(event);
            if let Some(entry) = entry {
                // SAFETY: the entry that was just made.
                unsafe { words::copy(event, &raw mut (*entry).passive) };
            }
        });
    let Some(entry) = entry else { return };
    // SAFETY: the entry that was just made.
    unsafe {
        (*entry).generation_ns = now;
        if !submitted {
            fill(&mut (*entry).passive);
        }
    }
}

/// The flag that says whether the daemon will learn how a child leaves the queue.
#[inline(always)]
pub fn accept_is_seen() -> u32 {
    match RUNTIME.get_ptr(0) {
        // SAFETY: the array's one live entry; aligned u32.
        Some(runtime) if unsafe { (*runtime).accept_is_seen } != 0 => flags::ACCEPT_IS_SEEN,
        _ => 0,
    }
}

/// Listener, child and request in one call. `own_req` is 0 when another CPU won the race for the request.
#[fentry(function = "inet_csk_complete_hashdance")]
pub fn hs_child_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    if context.arg::<u32>(3) & 0xff != 0 {
        child_linked(
            Sock::<Direct>::at(argument!(context, 0)),
            Sock::<Direct>::at(argument!(context, 1)),
            RequestSock::<Direct>::at(argument!(context, 2)),
            Attach::Fentry,
        );
    }
    preempt::enable();
    0
}

/// Listener, child and request in one call.
#[kprobe]
pub fn hs_child_kp(context: ProbeContext) -> u32 {
    let (Some(listener), Some(child), Some(request), Some(own)) =
        (argument!(context, 0), argument!(context, 1), argument!(context, 2), context.arg::<u64>(3))
    else {
        return 0;
    };
    if own & 0xff != 0 {
        child_linked(
            Sock::<Copied>::at(listener),
            Sock::<Copied>::at(child),
            RequestSock::<Copied>::at(request),
            Attach::Kprobe,
        );
    }
    0
}

/// A child queued for Fast Open or from a cookie.
#[fentry(function = "inet_csk_reqsk_queue_add")]
pub fn hs_queue_add_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    child_added(
        Sock::<Direct>::at(argument!(context, 0)),
        RequestSock::<Direct>::at(argument!(context, 1)),
        Sock::<Direct>::at(argument!(context, 2)),
        Attach::Fentry,
    );
    preempt::enable();
    0
}

/// A child queued for Fast Open or from a cookie.
#[kprobe]
pub fn hs_queue_add_kp(context: ProbeContext) -> u32 {
    let (Some(listener), Some(request), Some(child)) =
        (argument!(context, 0), argument!(context, 1), argument!(context, 2))
    else {
        return 0;
    };
    child_added(
        Sock::<Copied>::at(listener),
        RequestSock::<Copied>::at(request),
        Sock::<Copied>::at(child),
        Attach::Kprobe,
    );
    0
}

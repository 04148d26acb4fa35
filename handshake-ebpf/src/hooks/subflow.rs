//! Requests that end without a death: those of a subflow that joins an MPTCP connection, and those that another
//! CPU made first.
//!
//! A join's child never enters the accept queue: its request is dropped within the final ACK, and the child is
//! ESTABLISHED a moment later on the same CPU. What a newcomer would get wrong: a join that MPTCP refuses is dropped
//! the same way, after its child was closed.

use handshake_common::event::{
    Attach,
    passive_open::{PassiveOpen, flags},
};

use super::passive_open::gather;
use crate::{
    emit::now_ns,
    kernel::{read::Memory, request_sock::RequestSock, sock::Sock},
    maps::{IN_SOFTIRQ, answer},
    words,
};

/// What the kernel does within one call, it does within this time, though a hypervisor stops the CPU meanwhile.
const ONE_CALL_NS: u64 = 1_000_000_000;

/// [`ended_otherwise`]: it died of nothing that is told here.
pub const DIED: u32 = 0;
/// [`ended_otherwise`]: it did not die.
pub const LIVES_ON: u32 = u32::MAX;

/// How a request that is dropped ended: [`LIVES_ON`], [`DIED`], or the flags of a death that MPTCP decided. A number
/// and no `Option`: of that the compiler copies the undefined half too, which the verifier refuses.
#[inline(always)]
pub fn ended_otherwise<M: Memory>(request: RequestSock<M>, final_ack_ns: u64, attach: Attach) -> u32 {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return DIED };
    // SAFETY: this CPU's own entry, here and below.
    let (created, answered) = unsafe { ((*work).created, (*work).answered) };
    if created == request.key() && answered & answer::SYN_ACK == 0 {
        // Two CPUs answer one SYN, sent twice: the kernel lets one request into its table and forgets the other,
        // before it has sent a SYN-ACK for it.
        // SAFETY: as above.
        unsafe { (*work).answered |= answer::ELSEWHERE };
        return LIVES_ON;
    }
    let now = now_ns();
    let just_acknowledged = now.wrapping_sub(final_ack_ns) < ONE_CALL_NS;
    if !(request.joins() || just_acknowledged && request.may_join()) {
        return DIED;
    }
    // SAFETY: as above.
    let (closed_port, closed_ns) = unsafe { ((*work).closed_port, (*work).closed_ns) };
    if closed_port == u32::from(request.remote_port()) && now.wrapping_sub(closed_ns) < ONE_CALL_NS {
        return flags::MPTCP_JOIN | flags::RESET_SENT;
    }
    // SAFETY: as above; zero is a value of every field.
    let joining = unsafe {
        (*work).joining_ns = now;
        (*work).joining_attach = attach as u32;
        words::zero_behind::<[u64; 0], _>(&raw mut (*work).joining);
        &mut (*work).joining
    };
    request.ends(&mut joining.endpoints);
    gather(request, joining);
    joining.flags |= flags::MPTCP_JOIN;
    LIVES_ON
}

/// What is known of a child that is about to be ESTABLISHED, if it joins; null if it does not.
#[inline(always)]
pub fn joining<M: Memory>(child: Sock<M>) -> *const PassiveOpen {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return core::ptr::null() };
    // SAFETY: this CPU's own entry.
    unsafe {
        if (*work).joining_ns == 0 {
            return core::ptr::null();
        }
        let age_ns = now_ns().wrapping_sub((*work).joining_ns);
        (*work).joining_ns = 0;
        let ends = &(*work).joining.endpoints;
        if age_ns > ONE_CALL_NS || ends.remote_port != child.remote_port() {
            return core::ptr::null();
        }
        &raw const (*work).joining
    }
}

/// By which kind of hook that was learnt.
#[inline(always)]
pub fn joining_attach() -> Attach {
    let Some(work) = IN_SOFTIRQ.get_ptr(0) else { return Attach::Tracepoint };
    // SAFETY: this CPU's own entry.
    if unsafe { (*work).joining_attach } == Attach::Fentry as u32 { Attach::Fentry } else { Attach::Kprobe }
}

/// A child was closed before it was queued.
#[inline(always)]
pub fn closed_before_queued<M: Memory>(child: Sock<M>) {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    unsafe {
        (*work).closed_ns = now_ns();
        (*work).closed_port = u32::from(child.remote_port());
    }
}

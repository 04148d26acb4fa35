//! SYNs that a firewall of this host drops and answers: by a RST, or by an ICMP error.
//!
//! Whoever makes such an answer gives it the connection tracking of the segment that it answers, by nf_ct_attach,
//! which has both: the only call that all of them make, and none on the way of other segments. What a newcomer
//! would get wrong: the segment is freed a moment later with a reason, as one that was dropped without a word is;
//! it must not be told again then.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    event::{Attach, drop::flags},
    tcp::{ACK, FIN, RST, SYN, TcpState},
};

use super::{argument, drop::incoming_syn};
use crate::{
    emit::now_ns,
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        sk_buff::{self, Headers},
        sock::Sock,
    },
    maps::IN_SOFTIRQ,
};

/// Who answered a segment frees it within this time, though a hypervisor stops the CPU meanwhile.
const ANSWER_WORK_NS: u64 = 1_000_000_000;

/// This host answers `segment`, which it will not take, by `answer`.
#[inline(always)]
fn answered<M: Memory>(answer: *const u8, segment: *const u8, attach: Attach) {
    if answer.is_null() || segment.is_null() || !sk_buff::is_ip::<M>(segment) {
        return;
    }
    let mut headers = Headers::default();
    if !sk_buff::headers::<M>(segment, &mut headers) || headers.tcp_flags & (SYN | ACK | RST | FIN) != SYN {
        return;
    }
    // Of our own SYN, on its way out, its socket tells: it gets the answer.
    if let Some(sock) = sk_buff::sock::<M>(segment)
        && Sock::<M>::at(sock).state() == TcpState::SynSent as u8
    {
        return;
    }
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own entry.
    unsafe {
        (*work).rejected = segment as u64;
        (*work).rejected_ns = now_ns();
    }
    // An ICMP error belongs to the kernel's own socket for them; a RST belongs to none.
    let bits = if sk_buff::sock::<M>(answer).is_none() { flags::RESET_SENT } else { flags::ICMP_SENT };
    incoming_syn::<M>(segment, &headers, 0, bits, attach);
}

/// Whether a segment that is freed on this CPU was told when it was answered.
#[inline(always)]
pub fn was_told(segment: *const u8) -> bool {
    let Some(work) = IN_SOFTIRQ.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry.
    unsafe {
        if (*work).rejected != segment as u64 {
            return false;
        }
        (*work).rejected = 0;
        now_ns().wrapping_sub((*work).rejected_ns) < ANSWER_WORK_NS
    }
}

/// The answer to a segment gets that one's connection tracking.
#[fentry(function = "nf_ct_attach")]
pub fn hs_reject_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    answered::<Direct>(argument!(context, 0), argument!(context, 1), Attach::Fentry);
    preempt::enable();
    0
}

/// The answer to a segment gets that one's connection tracking.
#[kprobe]
pub fn hs_reject_kp(context: ProbeContext) -> u32 {
    let (Some(answer), Some(segment)) = (argument!(context, 0), argument!(context, 1)) else { return 0 };
    answered::<Copied>(answer, segment, Attach::Kprobe);
    0
}

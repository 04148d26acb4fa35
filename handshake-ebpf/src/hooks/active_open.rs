//! Active open: SYN sent, answered, out of SYN-SENT. The call around it is `connect_call`'s.
//!
//! The facts gather in `ACTIVE_OPENS` and travel with the last event. What a newcomer would get wrong: a SYN
//! need not leave within connect(): Fast Open sends it from sendmsg(), or from the first write().

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    counter::Counter,
    endpoint::Endpoints,
    event::{
        Attach, EventKind,
        active_open::{LeftSynSent, SynSent, flags},
    },
    filter::ROLE_CLIENT,
    tcp::{ACK, RST, SYN, TcpState, known},
};

use super::{argument, asked, fast_open, opener, passive_open, request_end};
use crate::{
    emit::{Slot, count, now_ns, submit},
    filter,
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        sk_buff,
        sock::Sock,
        task,
    },
    maps::{ACTIVE_OPENS, ActiveOpen, ENDED, INTERNAL, RUNTIME, new_active_open},
};

/// Begins an entry of `ACTIVE_OPENS` for the running thread.
#[inline(always)]
pub fn begin<M: Memory>(sock: Sock<M>, called_ns: u64) -> Option<*mut ActiveOpen> {
    let open = new_active_open(sock.key())?;
    let mut bits = 0;
    if let Some(runtime) = RUNTIME.get_ptr(0)
        // SAFETY: the array's one live entry; aligned u32.
        && unsafe { (*runtime).return_is_seen } != 0
    {
        bits |= flags::RETURN_IS_SEEN;
    }
    if filter::is_own() {
        bits |= flags::OWN;
    }
    // SAFETY: the entry that was just made; this thread holds the socket's lock.
    unsafe {
        (*open).generation_ns = called_ns;
        (*open).called_ns = called_ns;
        (*open).flags = bits;
        (*open).sent_again_before = sock.sent_again() as u8;
        task::owner(&mut (*open).owner);
        opener::owner_of_subflow(sock, &mut (*open).owner);
    }
    Some(open)
}

/// The SYN is about to be handed to IP, in process context; ports are final. Reached from connect(), and
/// from sendmsg() for Fast Open.
#[inline(always)]
pub fn syn_sent<M: Memory>(sock: Sock<M>, attach: Attach) {
    if !filter::wants_role(ROLE_CLIENT) {
        return;
    }
    let key = sock.key();
    let now = now_ns();
    if ACTIVE_OPENS.get_ptr_mut(key).is_none() {
        if !filter::wants_unknown() {
            return;
        }
        // connect() was called before we watched, or the table was full then and may have room now.
        if let Some(open) = begin(sock, now) {
            // SAFETY: the entry that was just made. When connect() was called is unknown.
            unsafe { (*open).called_ns = 0 };
        }
    }
    let Some(open) = ACTIVE_OPENS.get_ptr_mut(key) else { return };
    // SAFETY: a live entry of the table; this thread holds the socket's lock, so nobody else writes to it.
    let endpoints = unsafe {
        asked::keep(open);
        &mut (*open).endpoints
    };
    *endpoints = Endpoints::default();
    sock.ends(endpoints);
    if !filter::wants_ends(endpoints) {
        count(Counter::Filtered);
        let _ = ACTIVE_OPENS.remove(key);
        return;
    }
    // SAFETY: a live entry of the table; this thread holds the socket's lock, so nobody else writes to it.
    unsafe {
        (*open).syn_sent_ns = now;
        if (*open).flags & flags::CALL_RETURNED != 0 {
            (*open).flags |= flags::DEFERRED;
        }
        if sock.fast_open_bits() & FAST_OPEN_BITS != 0 {
            (*open).flags |= flags::FAST_OPEN;
        }
    }
    // SAFETY: as above.
    let generation_ns = unsafe { (*open).generation_ns };
    submit(EventKind::SynSent, attach, key, generation_ns, |event: &mut SynSent| {
        // SAFETY: as above.
        unsafe {
            event.endpoints = (*open).endpoints;
            event.owner = (*open).owner;
            event.called_ns = (*open).called_ns;
            event.flags = (*open).flags & !INTERNAL;
        }
        sock.isn_at_connect(&mut event.negotiated);
    });
    asked::tell(open, key, attach);
}

/// `tcp_sock.syn_data` and `syn_fastopen` in their common byte.
const FAST_OPEN_BITS: u8 = 1 << 2 | 1 << 3;
/// `tcp_sock.syn_data`: the SYN carried data.
const SYN_DATA_BIT: u8 = 1 << 2;
/// `tcp_sock.syn_data_acked` in the same byte.
const SYN_DATA_ACKED_BIT: u8 = 1 << 6;

/// A segment reached a socket outside ESTABLISHED. In SYN-SENT it may be the answer; in LISTEN, a SYN.
#[inline(always)]
pub fn segment_received<M: Memory>(sock: Sock<M>, skb: *const u8) {
    let state = sock.state();
    if state == TcpState::Listen as u8 {
        passive_open::segment_at_listener(sock, skb);
        return;
    }
    // A socket under TCP_REPAIR finishes its "handshake" without a segment: there is no skb then.
    if state != TcpState::SynSent as u8 || skb.is_null() {
        return;
    }
    let Some(open) = ACTIVE_OPENS.get_ptr_mut(sock.key()) else { return };
    let segment = sk_buff::tcp_flags::<M>(skb).unwrap_or(0) & (SYN | ACK | RST);
    // SAFETY: a live entry; the socket's lock is held. The last segment before the change of state is the
    // answer: one with an unacceptable ACK leaves the state alone (RFC 9293 section 3.10.7.3).
    unsafe {
        if (*open).syn_sent_ns == 0 && (*open).answered_ns == 0 && (*open).syn_retransmits == 0 {
            // The kernel skipped our hook on the SYN. The SYN is the last segment for which TCP looked at the clock;
            // for this one it does so within this function.
            (*open).syn_sent_ns = sock.last_segment_ns();
        }
        (*open).answered_ns = now_ns();
        (*open).answer_flags = segment;
        if segment & RST != 0 {
            (*open).flags |= flags::RESET_RECEIVED;
        }
    }
}

/// The socket is leaving SYN-SENT (the state tracepoint: before the state is stored).
#[inline(always)]
pub fn left_syn_sent<M: Memory>(sock: Sock<M>, new_state: u8, attach: Attach) {
    if !filter::wants_role(ROLE_CLIENT) {
        return;
    }
    let key = sock.key();
    let open = ACTIVE_OPENS.get_ptr_mut(key);
    let generation_ns = match open {
        // SAFETY: a live entry.
        Some(open) => unsafe { (*open).generation_ns },
        None if !filter::wants_unknown() => return,
        None => {
            // Ports and addresses are gone by ->CLOSED; family and namespace, which alone are asked for here,
            // are not.
            let mut ends = Endpoints::default();
            sock.ends(&mut ends);
            if !filter::wants_ends(&ends) {
                count(Counter::Filtered);
                return;
            }
            0
        }
    };
    if let Some(open) = open
        && fast_open::cookie_follows(sock, new_state)
    {
        // SAFETY: a live entry; the socket's lock is held.
        unsafe { (*open).flags |= flags::COOKIE_FOLLOWS };
    }
    report_end(sock, open, generation_ns, new_state, (0, 0), attach);
    let Some(open) = open else { return };
    // SAFETY: a live entry.
    let (held, syn_sent_ns) = unsafe { ((*open).flags, (*open).syn_sent_ns) };
    // A simultaneous open goes on in SYN-RECEIVED and needs its entry, as does a SYN-ACK that is yet to be looked at.
    // A call that is still under way says later how long the wake-up took, or, if no SYN ever left, why.
    let keep = new_state == TcpState::SynReceived as u8
        || held & flags::COOKIE_FOLLOWS != 0
        || (awaits_return(held) && (new_state == TcpState::Established as u8 || syn_sent_ns == 0));
    if keep {
        // SAFETY: a live entry.
        unsafe { (*open).flags |= ENDED };
    } else {
        let _ = ACTIVE_OPENS.remove(key);
    }
}

/// Whether a socket in SYN-SENT that the table has not must have begun after us: the daemon has been told of all that had
/// begun before.
#[inline(always)]
fn began_after_us() -> bool {
    let Some(runtime) = RUNTIME.get_ptr(0) else { return false };
    // SAFETY: the array's one live entry; aligned u32.
    unsafe { (*runtime).snapshot_is_complete != 0 }
}

/// Whether a hook will see the call return, by the flags of an entry.
#[inline(always)]
pub fn awaits_return(held: u32) -> bool {
    held & (flags::CALL_RETURNED | flags::RETURN_IS_SEEN) == flags::RETURN_IS_SEEN
}

/// Whether something shows that an entry's SYN left: its hook, or an answer.
#[inline(always)]
pub fn syn_left(open: *const ActiveOpen) -> bool {
    // SAFETY: the caller gives a live entry.
    unsafe { (*open).syn_sent_ns != 0 || (*open).answered_ns != 0 }
}

/// The kernel skips a program that already runs on the CPU, so the state tracepoint can miss the end of an
/// active open. Whoever finds the entry still open afterwards reports it, with the time of the answer. A socket whose SYN
/// was acknowledged was ESTABLISHED, though a RST closed it before connect() woke up. `error` is what connect() took
/// from the socket when it returned it, 0 when it has not.
#[inline(always)]
pub fn end_was_missed<M: Memory>(
    sock: Sock<M>,
    open: *mut ActiveOpen,
    new_state: u8,
    error: u32,
    attach: Attach,
) {
    let established = sock.syn_was_acknowledged();
    let (new_state, error) = if established { (TcpState::Established as u8, 0) } else { (new_state, error) };
    // SAFETY: a live entry.
    let (generation_ns, answered_ns) = unsafe {
        (*open).flags |= flags::FOUND_LATE;
        if (*open).answered_ns == 0 {
            (*open).flags |= flags::END_TIME_UNKNOWN;
        }
        ((*open).generation_ns, (*open).answered_ns)
    };
    report_end(sock, Some(open), generation_ns, new_state, (answered_ns, error), attach);
}

/// Both bits: found out after connect() had returned.
const LATE_AND_RETURNED: u32 = flags::FOUND_LATE | flags::CALL_RETURNED;

/// The event of the end; a time of 0 is now, an error of 0 is what the socket says.
#[inline(always)]
fn report_end<M: Memory>(
    sock: Sock<M>,
    open: Option<*mut ActiveOpen>,
    generation_ns: u64,
    new_state: u8,
    (time_ns, error): (u64, u32),
    attach: Attach,
) {
    let slot =
        Slot::<LeftSynSent>::reserve(time_ns, EventKind::LeftSynSent, attach, sock.key(), generation_ns);
    let Some(mut slot) = slot else { return };
    let event = slot.payload();
    let mut bits = 0;
    if let Some(open) = open {
        // SAFETY: a live entry.
        unsafe {
            event.endpoints = (*open).endpoints;
            event.owner = (*open).owner;
            event.called_ns = (*open).called_ns;
            event.syn_sent_ns = (*open).syn_sent_ns;
            event.answered_ns = (*open).answered_ns;
            event.last_retransmit_ns = (*open).last_retransmit_ns;
            event.syn_retransmits = (*open).syn_retransmits;
            bits = (*open).flags & !INTERNAL;
        }
    }
    if open.is_none() || new_state != TcpState::Closed as u8 {
        sock.ends(&mut event.endpoints);
    }
    if open.is_none() && began_after_us() {
        bits |= flags::SYN_TIME_LOST;
    }
    if open.is_none() && request_end::was_reset(sock.key()) {
        bits |= flags::RESET_RECEIVED;
    }
    if let Some(on_socket) = sock.error() {
        event.sk_err = on_socket;
        bits |= flags::ERROR_KNOWN;
    }
    if error != 0 {
        event.sk_err = error;
        bits |= flags::ERROR_KNOWN;
    }
    event.sk_err_soft = sock.soft_error().unwrap_or(0);
    if new_state == TcpState::Closed as u8
        && let Some(retransmits) = sock.retransmits()
        && u16::from(retransmits) > event.syn_retransmits
    {
        // Before 6.17 tcp_retransmit_skb's tracepoint is silent when the segment could not leave (a firewall of
        // this host); TCP's own count is not. It is cleared by an ACK, so it says nothing at ESTABLISHED.
        event.syn_retransmits = u16::from(retransmits);
    }
    if new_state == TcpState::Closed as u8
        && event.syn_sent_ns == 0
        && event.answered_ns == 0
        && event.syn_retransmits == 0
        && event.called_ns != 0
    {
        // The kernel skipped our hook on the SYN. Since connect() was called TCP has looked at the clock for one segment.
        let last_ns = sock.last_segment_ns();
        if last_ns >= event.called_ns {
            event.syn_sent_ns = last_ns;
        }
    }
    // sock_ops could not tell the ISN when the SYN left. Where the kernel skipped our hook on it, a segment that came,
    // one that was sent again, or a connect() that returned all the same shows that it did; where it skipped all of
    // them, the numbers alone do.
    let syn_left = open.is_none()
        || event.syn_sent_ns != 0
        || event.answered_ns != 0
        || event.syn_retransmits != 0
        || bits & flags::CALL_RETURNED != 0;
    if new_state == TcpState::Closed as u8 && syn_left {
        sock.isn_of_unanswered_syn(&mut event.negotiated);
    }
    if new_state == TcpState::Established as u8 {
        // TCP's own count is the second witness of SYNs sent again: a kernel may withhold the hook on one (decisions/0022).
        // An end that was found out after connect() had returned comes too late, for data may have been sent again since.
        let is_of_syns = time_ns == 0 && bits & LATE_AND_RETURNED != LATE_AND_RETURNED;
        if is_of_syns {
            // A socket that was in SYN-SENT before us has no entry, and nobody saw its SYNs: this count is all there is.
            // SAFETY: a live entry.
            let before = open.map_or(0, |open| unsafe { (*open).sent_again_before });
            let again = u16::from((sock.sent_again() as u8).wrapping_sub(before));
            if again > event.syn_retransmits {
                event.syn_retransmits = again;
            }
        }
        sock.negotiated(&mut event.negotiated, true);
        let fast_open = sock.fast_open_bits();
        if fast_open & SYN_DATA_BIT != 0 {
            bits |= flags::SYN_DATA;
            // The kernel sets the bit after the change of state, when the ACK itself has long been counted.
            let acked = if time_ns == 0 { sock.more_than_syn_was_acked() } else { false };
            if acked || fast_open & SYN_DATA_ACKED_BIT != 0 {
                bits |= flags::SYN_DATA_ACKED;
            }
        }
        if fast_open & FAST_OPEN_BITS != 0 {
            bits |= flags::FAST_OPEN;
        }
    }
    if event.endpoints.local_port == 0 && event.negotiated.known & known::LOCAL_ISN != 0 {
        sock.ends_after_closed(&mut event.endpoints);
    }
    if sock.joins() {
        bits |= flags::MPTCP_JOIN;
    }
    event.flags = bits;
    event.new_state = new_state;
    slot.submit();
}

/// The SYN is built and sent.
#[fentry(function = "tcp_connect")]
pub fn hs_syn_sent_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    syn_sent(Sock::<Direct>::at(argument!(context, 0)), Attach::Fentry);
    preempt::enable();
    0
}

/// The SYN is built and sent.
#[kprobe]
pub fn hs_syn_sent_kp(context: ProbeContext) -> u32 {
    let Some(sock) = argument!(context, 0) else { return 0 };
    syn_sent(Sock::<Copied>::at(sock), Attach::Kprobe);
    0
}

/// A segment for a socket that is not ESTABLISHED.
#[fentry(function = "tcp_rcv_state_process")]
pub fn hs_segment_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    segment_received(Sock::<Direct>::at(argument!(context, 0)), argument!(context, 1));
    preempt::enable();
    0
}

/// A segment for a socket that is not ESTABLISHED.
#[kprobe]
pub fn hs_segment_kp(context: ProbeContext) -> u32 {
    let (Some(sock), Some(skb)) = (argument!(context, 0), argument!(context, 1)) else { return 0 };
    segment_received(Sock::<Copied>::at(sock), skb);
    0
}

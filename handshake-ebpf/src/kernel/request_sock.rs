//! `struct request_sock`: a half-open connection, with the `tcp_request_sock` that it is the beginning of.
//!
//! What a newcomer would get wrong: `snt_synack` is in microseconds of CLOCK_MONOTONIC, is the time of the
//! first SYN-ACK only, and is 0 for a connection made from a SYN cookie.

use core::marker::PhantomData;

use handshake_common::{
    endpoint::Endpoints,
    offsets::UNAVAILABLE,
    tcp::{Negotiated, known, option_bits},
};

use super::{
    endpoints::common_ends,
    read::{Copied, Memory},
};
use crate::globals::{LOCKED_DOWN, offset};

/// A request sock, readable as `M` allows.
pub struct RequestSock<M> {
    address: *const u8,
    memory: PhantomData<M>,
}

impl<M> Clone for RequestSock<M> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for RequestSock<M> {}

impl<M: Memory> RequestSock<M> {
    /// A request sock at this address.
    #[inline(always)]
    pub fn at(address: *const u8) -> Self {
        RequestSock { address, memory: PhantomData }
    }

    /// Its address: its key in `REQUESTS`.
    #[inline(always)]
    pub fn key(self) -> u64 {
        self.address as u64
    }

    /// Its cookie: its key in tracepoint mode, and its child's cookie later.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        M::read::<u64>(self.address, offset!(skc_cookie)).unwrap_or(0)
    }

    /// The listener's sock, 0 when unknown.
    #[inline(always)]
    pub fn listener(self) -> u64 {
        M::read::<u64>(self.address, offset!(skc_listener)).unwrap_or(0)
    }

    /// The remote port.
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        u16::from_be(M::read::<u16>(self.address, offset!(skc_dport)).unwrap_or(0))
    }

    /// Both ends.
    #[inline(always)]
    pub fn ends(self, ends: &mut Endpoints) {
        common_ends::<M>(self.address, ends);
    }

    /// Whether it has a child in the accept queue, or had one that accept() took.
    #[inline(always)]
    pub fn became_a_child(self) -> bool {
        matches!(M::read::<*const u8>(self.address, offset!(req_child)), Some(child) if !child.is_null())
    }

    /// Whether no hash table has it (any more): the CPU that took it out made a child of it, or drops it. Where the
    /// kernel's BTF doesn't say, this is `false`.
    #[inline(always)]
    pub fn is_unhashed(self) -> bool {
        matches!(M::read::<u64>(self.address, offset!(skc_hashed)), Some(0))
    }

    /// SYN-ACKs sent again.
    #[inline(always)]
    pub fn retransmits(self) -> u16 {
        u16::from(M::read::<u8>(self.address, offset!(req_num_retrans)).unwrap_or(0))
    }

    /// A field of the tcp_request_sock that it begins. The verifier's cast knows a listener's request by TCP's own
    /// operations; MPTCP's listeners have others, and of their requests only the helper reads more.
    #[inline(always)]
    fn beyond<T: Copy>(self, offset: u32) -> Option<T> {
        if let Some(request) = M::tcp_request_sock(self.address) {
            return M::read(request, offset);
        }
        if LOCKED_DOWN.load() != 0 || offset!(treq_is_mptcp) == UNAVAILABLE {
            return None;
        }
        Copied::read(self.address, offset)
    }

    /// When the first SYN-ACK was sent, in nanoseconds, 0 if none or unknown.
    #[inline(always)]
    pub fn synack_ns(self) -> u64 {
        self.beyond::<u64>(offset!(treq_snt_synack)).unwrap_or(0).wrapping_mul(1000)
    }

    /// Both ISNs.
    #[inline(always)]
    pub fn isns(self, negotiated: &mut Negotiated) {
        if let Some(sequence) = self.beyond::<u32>(offset!(treq_rcv_isn)) {
            negotiated.remote_isn = sequence;
            negotiated.known |= known::REMOTE_ISN;
        }
        if let Some(sequence) = self.beyond::<u32>(offset!(treq_snt_isn)) {
            negotiated.local_isn = sequence;
            negotiated.known |= known::LOCAL_ISN;
        }
    }

    /// What its SYN and its SYN-ACK agreed on. The client's window comes with the final ACK, and our MSS is the route's:
    /// neither is in a request.
    #[inline(always)]
    pub fn options(self, negotiated: &mut Negotiated) {
        // One by one: of a pattern of several Options the compiler copies undefined halves too, which the verifier
        // refuses.
        let Some(agreed) = self.beyond::<u8>(offset!(ireq_tstamp_ok)) else { return };
        let Some(scales) = self.beyond::<u8>(offset!(ireq_snd_wscale)) else { return };
        let Some(mss) = M::read::<u16>(self.address, offset!(req_mss)) else { return };
        let mut options = 0;
        if agreed & TIMESTAMPS_OK != 0 {
            options |= option_bits::TIMESTAMPS;
        }
        if agreed & SACK_OK != 0 {
            options |= option_bits::SACK;
        }
        if agreed & WINDOW_SCALE_OK != 0 {
            options |= option_bits::WINDOW_SCALE;
            negotiated.remote_window_scale = scales & 0xf;
            negotiated.local_window_scale = scales >> 4;
        }
        if agreed & ECN_OK != 0 {
            options |= option_bits::ECN;
        }
        negotiated.options = options;
        negotiated.mss = mss;
        negotiated.known |= known::OPTIONS;
        // 0 until the kernel has chosen one, which it does before it sends the SYN-ACK.
        let window = M::read::<u32>(self.address, offset!(req_rcv_wnd)).unwrap_or(0);
        if window != 0 {
            negotiated.local_window = window;
            negotiated.known |= known::LOCAL_WINDOW;
        }
    }

    /// Whether an ACK of this number is for its SYN-ACK (RFC 9293 section 3.5). One of another number makes no child.
    #[inline(always)]
    pub fn is_acknowledged_by(self, number: u32) -> bool {
        let Some(isn) = self.beyond::<u32>(offset!(treq_snt_isn)) else { return true };
        number == isn.wrapping_add(1)
    }

    /// Whether a segment that acknowledges this number acknowledges the SYN-ACK, and perhaps data after it.
    #[inline(always)]
    pub fn is_acknowledged_up_to(self, number: u32) -> bool {
        let Some(isn) = self.beyond::<u32>(offset!(treq_snt_isn)) else { return true };
        number.wrapping_sub(isn).wrapping_sub(1) < 1 << 31
    }

    /// Whether its SYN had this number; true where that can't be read.
    #[inline(always)]
    pub fn began_with(self, number: u32) -> bool {
        let Some(isn) = self.beyond::<u32>(offset!(treq_rcv_isn)) else { return true };
        number == isn
    }

    /// Whether a segment with these numbers touches the window that the SYN-ACK announced; true where that can't be read.
    /// From 6.10 the kernel takes no more of it than a header without scaling can say, and before it announced no more.
    #[inline(always)]
    pub fn is_in_window(self, begin: u32, end: u32) -> bool {
        let Some(isn) = self.beyond::<u32>(offset!(treq_rcv_isn)) else { return true };
        let Some(window) = M::read::<u32>(self.address, offset!(req_rcv_wnd)) else { return true };
        let from = isn.wrapping_add(1);
        let to = from.wrapping_add(if window > UNSCALED { UNSCALED } else { window });
        let is_after = |number: u32, other: u32| (number.wrapping_sub(other) as i32) > 0;
        begin == from || is_after(end, from) && is_after(to, begin) || begin == to && end == to
    }

    /// Whether a segment with these numbers lies in the window that the SYN-ACK announced, and what TCP_DEFER_ACCEPT
    /// does with it: a bare ACK is ignored until the SYN-ACK's timer has fired as often as `defer` says.
    #[inline(always)]
    pub fn would_take(self, begin: u32, end: u32, defer: u8) -> bool {
        let Some(isn) = self.beyond::<u32>(offset!(treq_rcv_isn)) else { return true };
        let next = isn.wrapping_add(1);
        if end == next {
            let fired = M::read::<u8>(self.address, offset!(req_num_timeout)).unwrap_or(0) >> 1;
            return begin == end && fired >= defer;
        }
        let Some(window) = M::read::<u32>(self.address, offset!(req_rcv_wnd)) else { return true };
        begin.wrapping_sub(next) <= window
    }

    /// Whether MPTCP wants no child of it in the accept queue: it joins a connection that exists, or is refused. The
    /// verifier knows no request of MPTCP's listeners as a tcp_request_sock, so this needs the helper.
    #[inline(always)]
    pub fn joins(self) -> bool {
        LOCKED_DOWN.load() == 0
            && Copied::read::<u8>(self.address, offset!(treq_is_mptcp)).unwrap_or(0) != 0
            && Copied::read::<u8>(self.address, offset!(treq_drop_req)).unwrap_or(0) != 0
    }

    /// The same without the helper: whether it may join, because its listener is MPTCP's.
    #[inline(always)]
    pub fn may_join(self) -> bool {
        LOCKED_DOWN.load() != 0
            && offset!(treq_is_mptcp) != UNAVAILABLE
            && M::tcp_request_sock(self.address).is_none()
    }

    /// Whether TCP_DEFER_ACCEPT swallowed a bare ACK (`inet_request_sock.acked`, bit 4 of its byte).
    #[inline(always)]
    pub fn deferred_accept(self) -> bool {
        self.beyond::<u8>(offset!(ireq_acked)).unwrap_or(0) & ACKED != 0
    }
}

/// The largest window that a header says by itself.
const UNSCALED: u32 = 0xffff;
/// `inet_request_sock`: snd_wscale:4 rcv_wscale:4, then tstamp_ok sack_ok wscale_ok ecn_ok acked.
const TIMESTAMPS_OK: u8 = 1;
const SACK_OK: u8 = 1 << 1;
const WINDOW_SCALE_OK: u8 = 1 << 2;
const ECN_OK: u8 = 1 << 3;
const ACKED: u8 = 1 << 4;

//! `struct sock`, and the `tcp_sock` that it is the beginning of.
//!
//! What a newcomer would get wrong: the kernel keeps the local port in host order (`skc_num`) and the
//! remote one in network order (`skc_dport`); the swap happens here and nowhere else. At CLOSED->SYN-SENT
//! the local port is still 0, and at ->CLOSED both are zero again.

use core::marker::PhantomData;

use handshake_common::{
    endpoint::{AF_INET, AF_INET6, Endpoints},
    offsets::UNAVAILABLE,
    tcp::{Negotiated, known, option_bits},
};

use super::{
    endpoints::{common_ends, is_bound_to, netns},
    read::Memory,
};
use crate::globals::offset;

/// IPPROTO_TCP.
const TCP: u16 = 6;
/// IPPROTO_MPTCP: a master socket, which reports states that are not TCP's.
const MPTCP: u16 = 262;

/// A socket, readable as `M` allows.
pub struct Sock<M> {
    pub(super) address: *const u8,
    memory: PhantomData<M>,
}

impl<M> Clone for Sock<M> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Sock<M> {}

impl<M: Memory> Sock<M> {
    /// A socket at this address.
    #[inline(always)]
    pub fn at(address: *const u8) -> Self {
        Sock { address, memory: PhantomData }
    }

    /// Its address: the key of every table.
    #[inline(always)]
    pub fn key(self) -> u64 {
        self.address as u64
    }

    /// Whether it is an IPv4 or IPv6 TCP socket, and no MPTCP master.
    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        let family = self.family();
        (family == AF_INET || family == AF_INET6)
            && M::read::<u16>(self.address, offset!(sk_protocol)) == Some(TCP)
    }

    /// Whether it is the master socket of an MPTCP connection.
    #[inline(always)]
    pub fn is_mptcp_master(self) -> bool {
        M::read::<u16>(self.address, offset!(sk_protocol)) == Some(MPTCP)
    }

    /// `skc_family`.
    #[inline(always)]
    pub fn family(self) -> u16 {
        M::read::<u16>(self.address, offset!(skc_family)).unwrap_or(0)
    }

    /// `skc_state`, 0 when unreadable.
    #[inline(always)]
    pub fn state(self) -> u8 {
        M::read::<u8>(self.address, offset!(skc_state)).unwrap_or(0)
    }

    /// The remote port.
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        u16::from_be(M::read::<u16>(self.address, offset!(skc_dport)).unwrap_or(0))
    }

    /// The local port: 0 until it is bound.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        M::read::<u16>(self.address, offset!(skc_num)).unwrap_or(0)
    }

    /// Inode of its network namespace, 0 when unknown.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        netns::<M>(self.address)
    }

    /// Whether its own address takes segments to that of `to`.
    #[inline(always)]
    pub fn is_bound_to(self, to: &Endpoints) -> bool {
        is_bound_to::<M>(self.address, to)
    }

    /// Whether it is an IPv6 socket that takes IPv4 too. Where the kernel's BTF doesn't say, it may.
    #[inline(always)]
    pub fn is_for_both(self) -> bool {
        if self.family() != AF_INET6 {
            return false;
        }
        let bit = offset!(v6_only_bit);
        bit == UNAVAILABLE || M::read::<u8>(self.address, bit >> 3).unwrap_or(0) >> (bit & 7) & 1 == 0
    }

    /// Both ends as they are now.
    #[inline(always)]
    pub fn ends(self, ends: &mut Endpoints) {
        common_ends::<M>(self.address, ends);
    }

    /// What ->CLOSED leaves of both ends: addresses, and a copy of the local port. What it clears is kept from before.
    #[inline(always)]
    pub fn ends_after_closed(self, ends: &mut Endpoints) {
        let remote_port = ends.remote_port;
        self.ends(ends);
        if ends.remote_port == 0 {
            ends.remote_port = remote_port;
        }
        let Some(tcp) = M::tcp_sock(self.address) else { return };
        if let Some(port) = M::read::<u16>(tcp, offset!(inet_sport)) {
            ends.local_port = u16::from_be(port);
        }
    }

    /// `sk_err`.
    #[inline(always)]
    pub fn error(self) -> Option<u32> {
        M::read::<u32>(self.address, offset!(sk_err))
    }

    /// `sk_err_soft`.
    #[inline(always)]
    pub fn soft_error(self) -> Option<u32> {
        M::read::<u32>(self.address, offset!(sk_err_soft))
    }

    /// `skc_cookie`: 0 until somebody asked for one.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        M::read::<u64>(self.address, offset!(skc_cookie)).unwrap_or(0)
    }

    /// A listener's accept queue: length and limit.
    #[inline(always)]
    pub fn accept_queue(self) -> Option<(u32, u32)> {
        let length = M::read::<u32>(self.address, offset!(sk_ack_backlog))?;
        let limit = M::read::<u32>(self.address, offset!(sk_max_ack_backlog))?;
        Some((length, limit))
    }

    /// A listener's half-open requests.
    #[inline(always)]
    pub fn syn_queue(self) -> Option<u32> {
        let tcp = M::tcp_sock(self.address)?;
        M::read::<u32>(tcp, offset!(icsk_syn_queue))
    }

    /// Inode number of the file that owns it.
    #[inline(always)]
    pub fn file_inode(self) -> Option<u64> {
        let socket = M::read::<*const u8>(self.address, offset!(sk_socket))?;
        if socket.is_null() {
            return None;
        }
        let file = M::read::<*const u8>(socket, offset!(socket_file))?;
        if file.is_null() {
            return None;
        }
        let inode = M::read::<*const u8>(file, offset!(file_inode))?;
        if inode.is_null() { None } else { M::read::<u64>(inode, offset!(inode_number)) }
    }

    /// TCP_DEFER_ACCEPT of a listener: how often the SYN-ACK timer fires before a bare ACK is enough; 0 is off.
    #[inline(always)]
    pub fn defers_accept(self) -> u8 {
        let Some(tcp) = M::tcp_sock(self.address) else { return 0 };
        M::read::<u8>(tcp, offset!(icsk_defer_accept)).unwrap_or(0)
    }

    /// The youngest child in a listener's accept queue.
    #[inline(always)]
    pub fn youngest_child(self) -> Option<u64> {
        let tcp = M::tcp_sock(self.address)?;
        let request = M::read::<*const u8>(tcp, offset!(icsk_accept_tail))?;
        if request.is_null() {
            return None;
        }
        Some(M::read::<*const u8>(request, offset!(req_child))? as u64)
    }

    /// Whether it ever sent a SYN: `write_seq` is 0 until then, and no longer afterwards, closed or not.
    #[inline(always)]
    pub fn has_had_a_syn(self) -> bool {
        let Some(tcp) = M::tcp_sock(self.address) else { return false };
        matches!(M::read::<u32>(tcp, offset!(write_seq)), Some(sequence) if sequence != 0)
    }

    /// Whether a `struct socket` owns it: an application's own (or the kernel's), or a child that accept() has returned.
    #[inline(always)]
    pub fn has_an_owner(self) -> bool {
        matches!(M::read::<u64>(self.address, offset!(sk_socket)), Some(socket) if socket != 0)
    }

    /// Whether tcp_disconnect() took its remote end away: a listener that closes does that to the children that
    /// nobody accepted. A child that is closed by a RST, by its timer or by an owner's close() keeps it.
    #[inline(always)]
    pub fn was_disconnected(self) -> bool {
        M::read::<u16>(self.address, offset!(skc_dport)) == Some(0)
    }

    /// How often the segment that is under way was sent again.
    #[inline(always)]
    pub fn retransmits(self) -> Option<u8> {
        let tcp = M::tcp_sock(self.address)?;
        M::read::<u8>(tcp, offset!(icsk_retransmits))
    }

    /// Our ISN while the SYN is being sent: `write_seq`.
    #[inline(always)]
    pub fn isn_at_connect(self, negotiated: &mut Negotiated) {
        let Some(tcp) = M::tcp_sock(self.address) else { return };
        if let Some(sequence) = M::read::<u32>(tcp, offset!(write_seq)) {
            negotiated.local_isn = sequence;
            negotiated.known |= known::LOCAL_ISN;
        }
    }

    /// Our ISN when a SYN without data stayed unanswered, or was refused: `snd_una` is still the SYN's number and
    /// `write_seq` the one after it. Before the SYN is made the two are no neighbours.
    #[inline(always)]
    pub fn isn_of_unanswered_syn(self, negotiated: &mut Negotiated) {
        let Some(tcp) = M::tcp_sock(self.address) else { return };
        // Numbers in any case, as in `v6`: two that are unknown are no neighbours either.
        let sequence = M::read::<u32>(tcp, offset!(snd_una)).unwrap_or(0);
        let next = M::read::<u32>(tcp, offset!(write_seq)).unwrap_or(0);
        if next == sequence.wrapping_add(1) {
            negotiated.local_isn = sequence;
            negotiated.known |= known::LOCAL_ISN;
        }
    }

    /// When TCP last looked at the clock for it: when a segment was sent, or received. 0 when unknown.
    #[inline(always)]
    pub fn last_segment_ns(self) -> u64 {
        let Some(tcp) = M::tcp_sock(self.address) else { return 0 };
        M::read::<u64>(tcp, offset!(tcp_clock_cache)).unwrap_or(0)
    }

    /// Whether a SYN-ACK acknowledged its SYN, whatever became of it later: `bytes_acked` counts the SYN.
    #[inline(always)]
    pub fn syn_was_acknowledged(self) -> bool {
        let Some(tcp) = M::tcp_sock(self.address) else { return false };
        matches!(M::read::<u64>(tcp, offset!(bytes_acked)), Some(bytes) if bytes != 0)
    }

    /// How many segments it has sent again; 0 when unknown.
    #[inline(always)]
    pub fn sent_again(self) -> u32 {
        let Some(tcp) = M::tcp_sock(self.address) else { return 0 };
        M::read::<u32>(tcp, offset!(total_retrans)).unwrap_or(0)
    }

    /// Whether Fast Open made this child before the final ACK.
    #[inline(always)]
    pub fn is_fast_open_child(self) -> bool {
        let Some(tcp) = M::tcp_sock(self.address) else { return false };
        matches!(M::read::<u64>(tcp, offset!(fastopen_rsk)), Some(request) if request != 0)
    }

    /// Bits of `tcp_sock.syn_data` and its neighbours: data 2, Fast Open 3, data acknowledged 6.
    #[inline(always)]
    pub fn fast_open_bits(self) -> u8 {
        let Some(tcp) = M::tcp_sock(self.address) else { return 0 };
        M::read::<u8>(tcp, offset!(syn_data)).unwrap_or(0)
    }

    /// Whether an ACK covered more than the SYN's own number, while ->ESTABLISHED: then it is the SYN's data.
    #[inline(always)]
    pub fn more_than_syn_was_acked(self) -> bool {
        let Some(tcp) = M::tcp_sock(self.address) else { return false };
        M::read::<u64>(tcp, offset!(bytes_acked)).unwrap_or(0) > 1
    }

    /// Whether it was put together under TCP_REPAIR: then no segment was sent or received.
    #[inline(always)]
    pub fn is_under_repair(self) -> bool {
        let bit = offset!(repair_bit);
        if bit == UNAVAILABLE {
            return false;
        }
        let Some(tcp) = M::tcp_sock(self.address) else { return false };
        M::read::<u8>(tcp, bit >> 3).unwrap_or(0) >> (bit & 7) & 1 != 0
    }

    /// Sequence numbers, options and round trip at the moment of ->ESTABLISHED. An ISN that is known from
    /// elsewhere (the request sock, the SYN) is kept. `syn_was_acked`: the peer acknowledged a SYN of this very
    /// socket; a child's SYN-ACK was its request sock's.
    #[inline(always)]
    pub fn negotiated(self, negotiated: &mut Negotiated, syn_was_acked: bool) {
        if self.is_under_repair() {
            // Whatever the socket holds was written by an application.
            negotiated.known = known::OPTIONS;
            negotiated.options = option_bits::REPAIR;
            return;
        }
        let Some(tcp) = M::tcp_sock(self.address) else { return };
        // The SYN takes one sequence number; with Fast Open its data follows, and is counted in bytes_acked
        // (which counts an acknowledged SYN too) and bytes_received.
        if negotiated.known & known::LOCAL_ISN == 0
            && let Some(acknowledged) = M::read::<u32>(tcp, offset!(snd_una))
        {
            let bytes = M::read::<u64>(tcp, offset!(bytes_acked)).unwrap_or(0) as u32;
            let syn = u32::from(!(syn_was_acked && bytes != 0));
            negotiated.local_isn = acknowledged.wrapping_sub(bytes).wrapping_sub(syn);
            negotiated.known |= known::LOCAL_ISN;
        }
        if negotiated.known & known::REMOTE_ISN == 0
            && let Some(next) = M::read::<u32>(tcp, offset!(rcv_nxt))
        {
            let data = M::read::<u64>(tcp, offset!(bytes_received)).unwrap_or(0) as u32;
            negotiated.remote_isn = next.wrapping_sub(1).wrapping_sub(data);
            negotiated.known |= known::REMOTE_ISN;
        }
        if let Some(srtt) = M::read::<u32>(tcp, offset!(srtt_us)) {
            negotiated.srtt_us = srtt >> 3;
            negotiated.known |= known::SRTT;
        }
        // rx_opt: saw_tstamp:1 tstamp_ok:1 dsack:1 wscale_ok:1 sack_ok:3, then snd_wscale:4 rcv_wscale:4;
        // the layout within the two bytes is the same from 5.10 to 7.2 (little endian).
        if let (Some(bits), Some(scales), Some(mss)) = (
            M::read::<u8>(tcp, offset!(rx_opt_tstamp_ok)),
            M::read::<u8>(tcp, offset!(rx_opt_snd_wscale)),
            M::read::<u16>(tcp, offset!(rx_opt_mss_clamp)),
        ) {
            let mut options = 0;
            if bits & (1 << 1) != 0 {
                options |= option_bits::TIMESTAMPS;
            }
            if bits & (1 << 3) != 0 {
                options |= option_bits::WINDOW_SCALE;
            }
            if bits & (7 << 4) != 0 {
                options |= option_bits::SACK;
            }
            // Bit 0 is RFC 3168's ECN on every kernel that we test; bit 4 is accurate ECN (6.18), and was free before.
            if M::read::<u8>(tcp, offset!(ecn_flags)).unwrap_or(0) & (1 | 1 << 4) != 0 {
                options |= option_bits::ECN;
            }
            if M::read::<u8>(tcp, offset!(is_mptcp)).unwrap_or(0) != 0 {
                options |= option_bits::MPTCP;
            }
            negotiated.options = options;
            negotiated.remote_window_scale = scales & 0xf;
            negotiated.local_window_scale = scales >> 4;
            negotiated.mss = mss;
            negotiated.known |= known::OPTIONS;
        }
        if let (Some(mss), Some(local), Some(remote)) = (
            M::read::<u16>(tcp, offset!(advmss)),
            M::read::<u32>(tcp, offset!(rcv_wnd)),
            M::read::<u32>(tcp, offset!(snd_wnd)),
        ) {
            negotiated.local_mss = mss;
            negotiated.local_window = local;
            negotiated.remote_window = remote;
            negotiated.known |= known::WINDOWS;
        }
    }
}

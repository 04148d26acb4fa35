//! What the entries of the maps are made of, where the kernel side alone reads them.
//!
//! Those that the daemon reads too are in `handshake_common`. What a newcomer would get wrong: an entry lives longer than
//! the program that made it, and another CPU may be at it; whoever writes holds the socket's lock, or says why not.

use handshake_common::{endpoint::Endpoints, event::passive_open::PassiveOpen, owner::Owner};

/// See [`super::LISTENING`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Listening {
    /// Its sock: the key, as a number.
    pub socket: u64,
    /// Where it listens.
    pub at: u64,
    /// Not 0: for IPv4 too, though its place is one of IPv6.
    pub is_for_both: u64,
}

/// See [`super::LISTENERS_AT`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ListenersAt {
    /// How many.
    pub count: u64,
    /// The sum of their addresses: of one, its address, whoever came and went before.
    pub sum: u64,
}

/// See [`super::DROPS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DropRate {
    /// When this second began.
    pub since_ns: u64,
    /// Events in it.
    pub told: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// See [`super::ACTIVE_OPENS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ActiveOpen {
    /// When it was inserted: the generation of its events.
    pub generation_ns: u64,
    /// When connect() was called.
    pub called_ns: u64,
    /// When the first SYN was handed to IP, 0 before that.
    pub syn_sent_ns: u64,
    /// When the answer began to be processed.
    pub answered_ns: u64,
    /// When the last SYN was sent again.
    pub last_retransmit_ns: u64,
    /// Both ends: the one asked for at first, the final ones from the SYN on.
    pub endpoints: Endpoints,
    /// What the application asked for, as two words in network order: known once the SYN left, or before from the
    /// system call. Both zero and no port: unknown.
    pub asked: [u64; 2],
    /// Its port, host order.
    pub asked_port: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
    /// Who connects.
    pub owner: Owner,
    /// Bits of `handshake_common::event::active_open::flags`, and of [`INTERNAL`].
    pub flags: u32,
    /// SYNs sent again.
    pub syn_retransmits: u16,
    /// TCP flags of the answer.
    pub answer_flags: u8,
    /// `total_retrans` when it was inserted, its low byte: an earlier connect() of the socket may have sent SYNs again.
    pub sent_again_before: u8,
}

/// [`ActiveOpen::flags`], never in an event: the socket left SYN-SENT, only the call's return is awaited.
pub const ENDED: u32 = 1 << 31;

/// [`ActiveOpen::flags`]: tcp_v6_connect has noted the call, and may go on in tcp_v4_connect.
pub const CALLED_OVER_IPV6: u32 = 1 << 30;

/// [`ActiveOpen::flags`]: the call was seen before the programs at the cgroup were asked, and has not come to TCP yet.
pub const ASKED: u32 = 1 << 29;

/// [`ActiveOpen::flags`], the bits that are never in an event.
pub const INTERNAL: u32 = ENDED | CALLED_OVER_IPV6 | ASKED;

/// See [`super::QUEUED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Queued {
    /// What every event of this child repeats.
    pub passive: PassiveOpen,
    /// When it was inserted: the generation of its events.
    pub generation_ns: u64,
    /// When a RST hit it.
    pub reset_ns: u64,
    /// 1: accept() took it before it was ESTABLISHED (Fast Open).
    pub accepted: u32,
    /// 1: its leaving SYN-RECEIVED was reported.
    pub left: u32,
    /// 1: it was seen to have a file, so accept() has taken it, though no hook on accept() has said so.
    pub has_owner: u32,
    /// 1: its owner closed it in SYN-RECEIVED (Fast Open); how the handshake ends shows when it is CLOSED.
    pub closed_early: u32,
}

/// See [`super::CONNECT_CALLS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ConnectCall {
    /// When the call began.
    pub called_ns: u64,
    /// The sock, 0 until known.
    pub socket: u64,
    /// The caller's sockaddr, in its own memory.
    pub address: u64,
    /// The file descriptor, -1 when unknown.
    pub descriptor: i64,
}

/// See [`super::ACCEPT_CALLS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AcceptCall {
    /// When the thread began to wait.
    pub waiting_since_ns: u64,
    /// The listener's sock.
    pub listener: u64,
}

/// See [`super::IN_SOFTIRQ`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InSoftirq {
    /// When the SYN began to be processed.
    pub syn_ns: u64,
    /// The listener that it is for.
    pub syn_listener: u64,
    /// When a request sock's timer fired.
    pub timer_ns: u64,
    /// Address of that timer, which lies inside the request sock.
    pub timer: u64,
    /// The request that is being looked for: see [`as_number`].
    pub request: u64,
    /// The segment (`sk_buff`) that the kernel answers or drops, and for which listener.
    pub segment: u64,
    /// See `segment`.
    pub listener: u64,
    /// The request whose death this CPU told last: where one dropping function calls the other, both are hooked.
    pub told: u64,
    /// The request, or socket in SYN-SENT, that the last RST was for and that is in no table.
    pub reset_request: u64,
    /// The request whose SYN-ACK was answered by an ICMP error that ends it.
    pub icmp_request: u64,
    /// When.
    pub icmp_ns: u64,
    /// A segment at a half-open request that the kernel may answer with a RST within this call: the final ACK that found the
    /// accept queue full, or another SYN.
    pub refusable: u64,
    /// The request that it is for.
    pub refusable_request: u64,
    /// The request that was created for `segment`.
    pub created: u64,
    /// The latest child that found `QUEUED` full. Its event went out, so it is no child that nobody announced.
    pub unqueued: u64,
    /// The latest child in SYN-RECEIVED, without a place in `QUEUED`, that a RST was for.
    pub reset_child: u64,
    /// A SYN that was answered by a RST or an ICMP error, and that somebody is about to free.
    pub rejected: u64,
    /// When.
    pub rejected_ns: u64,
    /// When a child was closed before anybody queued it.
    pub closed_ns: u64,
    /// Its remote port.
    pub closed_port: u32,
    /// By which kind of hook `joining` was written.
    pub joining_attach: u32,
    /// When `joining` was written; 0 when it was read.
    pub joining_ns: u64,
    /// What is known of a child that joins an MPTCP connection, until it is ESTABLISHED.
    pub joining: PassiveOpen,
    /// How `segment` was answered: bits of [`answer`].
    pub answered: u32,
    /// The listener's queues when the segment came.
    pub accept_queue_length: u32,
    /// See `accept_queue_length`.
    pub accept_queue_limit: u32,
    /// See `accept_queue_length`.
    pub syn_queue_length: u32,
    /// What a RST for `refusable` means: bits of the passive open's flags.
    pub if_refused: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// [`InSoftirq::answered`].
pub mod answer {
    /// A SYN-ACK was made: for a new request, or for a cookie.
    pub const SYN_ACK: u32 = 1;
    /// A RST was sent.
    pub const RESET: u32 = 1 << 1;
    /// Another CPU works on the same SYN, and was faster.
    pub const ELSEWHERE: u32 = 1 << 2;
}

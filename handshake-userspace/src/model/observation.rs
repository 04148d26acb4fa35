//! What was observed, decoded and checked: an event in words, with everything unknown absent.
//!
//! What a newcomer would get wrong: an observation is an act, and no judgement. `LeftSynSent` with errno 111
//! is not yet "refused"; the tracker says so.

use std::net::SocketAddr;

use handshake_common::{event::Attach, tcp::TcpState};

use super::{handshake::Options, mib::MibReading, process::Process};

/// What the tracker is given. A recording holds exactly these (events as raw bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Something happened.
    Observation(Box<Observation>),
    /// It is now this late: open handshakes may expire. CLOCK_MONOTONIC, nanoseconds.
    Tick {
        /// Now.
        now_ns: u64,
    },
    /// The three clocks read together.
    Anchor(ClockAnchor),
    /// The kernel's own counters, after everything that happened before they were read.
    Mib(Box<MibReading>),
    /// The source ended; nothing more will come.
    End {
        /// Now.
        now_ns: u64,
    },
}

/// Three clocks read at one moment, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockAnchor {
    /// CLOCK_MONOTONIC: the events' clock.
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME: runs on in suspend.
    pub boottime_ns: u64,
    /// CLOCK_REALTIME: what a person reads.
    pub realtime_ns: u64,
}

/// A socket in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Address of the kernel's `struct sock`.
    pub address: u64,
    /// When this life entered the kernel side's tables; `None` when they did not hold it.
    pub generation_ns: Option<u64>,
}

/// One act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When, CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// On which CPU.
    pub cpu: u32,
    /// How many events this CPU had lost before.
    pub lost_before: u64,
    /// Which socket (for `RequestDied`: which request sock).
    pub socket: SocketKey,
    /// By which kind of hook.
    pub attach: Attach,
    /// What.
    pub act: Act,
}

/// Both ends of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Local end; absent while neither address nor port are chosen.
    pub local: Option<SocketAddr>,
    /// Remote end.
    pub remote: Option<SocketAddr>,
    /// Inode of the network namespace.
    pub netns: Option<u32>,
    /// An AF_INET6 socket that speaks IPv4.
    pub v4_mapped: bool,
}

/// Sequence numbers, options and round trip, as far as they were readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Our ISN.
    pub local_isn: Option<u32>,
    /// The peer's ISN.
    pub remote_isn: Option<u32>,
    /// The kernel's smoothed round-trip time; absent when it had measured none.
    pub srtt_us: Option<u32>,
    /// The options.
    pub options: Option<Options>,
    /// A subflow of an MPTCP connection.
    pub mptcp: bool,
    /// Put together under TCP_REPAIR: no segment was exchanged.
    pub repair: bool,
}

/// The acts, in TCP words; fields mirror `handshake_common::event`, which documents them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The first SYN left.
    SynSent(SynSent),
    /// connect() failed before any SYN.
    ConnectFailed(ConnectFailed),
    /// The socket left SYN-SENT.
    LeftSynSent(Box<LeftSynSent>),
    /// connect() went back to its caller.
    ConnectReturned {
        /// 0 is success.
        errno: u32,
    },
    /// The SYN-ACK of a Fast Open was looked at.
    FastOpenAnswered {
        /// Whether it carried a cookie; `None` when its options could not be read.
        cookie: Option<bool>,
    },
    /// TCP connects to another end than connect() was given.
    AddressRewritten {
        /// What it was given.
        asked: Option<SocketAddr>,
    },
    /// The final ACK made a child.
    ChildQueued(Box<PassiveOpen>),
    /// A socket left SYN-RECEIVED.
    LeftSynReceived(Box<PassiveOpen>),
    /// A request sock died half open.
    RequestDied(Box<PassiveOpen>),
    /// A child was made of a request that another segment had ended already, and closed unborn.
    ChildUndone {
        /// Both ends.
        ends: Ends,
    },
    /// accept() took a child.
    Accepted(Accepted),
    /// A queued child was destroyed.
    ChildDestroyed(ChildDestroyed),
    /// A socket entered LISTEN.
    ListenerOpened(Listener),
    /// A socket left LISTEN.
    ListenerClosed(Listener),
    /// A SYN was sent again.
    SynRetransmitted {
        /// Both ends.
        ends: Ends,
        /// Counted from 1.
        attempt: Option<u32>,
    },
    /// A socket that was there before us.
    SocketSeen(SocketSeen),
    /// This host dropped a segment of a handshake.
    SegmentDropped(Box<SegmentDropped>),
}

impl Act {
    /// Both ends of the socket, where the act names them.
    pub fn ends(&self) -> Option<&Ends> {
        Some(match self {
            Act::SynSent(act) => &act.ends,
            Act::ConnectFailed(act) => &act.ends,
            Act::LeftSynSent(act) => &act.ends,
            Act::ConnectReturned { .. } | Act::FastOpenAnswered { .. } | Act::AddressRewritten { .. } => {
                return None;
            }
            Act::ChildQueued(act) | Act::LeftSynReceived(act) | Act::RequestDied(act) => &act.ends,
            Act::Accepted(act) => &act.ends,
            Act::ChildDestroyed(act) => &act.ends,
            Act::ListenerOpened(act) | Act::ListenerClosed(act) => &act.ends,
            Act::SynRetransmitted { ends, .. } | Act::ChildUndone { ends } => ends,
            Act::SocketSeen(act) => &act.ends,
            Act::SegmentDropped(act) => &act.ends,
        })
    }
}

/// See [`Act::SynSent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynSent {
    /// Both ends.
    pub ends: Ends,
    /// Who connected.
    pub process: Option<Process>,
    /// When connect() was called.
    pub called_ns: Option<u64>,
    /// Our ISN.
    pub local_isn: Option<u32>,
    /// The SYN left after connect() had returned.
    pub deferred: bool,
    /// Fast Open took part.
    pub fast_open: bool,
    /// One of our own sockets.
    pub own: bool,
}

/// See [`Act::ConnectFailed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectFailed {
    /// Both ends.
    pub ends: Ends,
    /// Who connected.
    pub process: Option<Process>,
    /// When connect() was called.
    pub called_ns: Option<u64>,
    /// Why it failed.
    pub errno: u32,
    /// One of our own sockets.
    pub own: bool,
}

/// See [`Act::LeftSynSent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftSynSent {
    /// Both ends.
    pub ends: Ends,
    /// Who connected.
    pub process: Option<Process>,
    /// When connect() was called.
    pub called_ns: Option<u64>,
    /// When the first SYN was sent.
    pub syn_sent_ns: Option<u64>,
    /// When the answer began to be processed.
    pub answered_ns: Option<u64>,
    /// When the last SYN was sent again.
    pub last_retransmit_ns: Option<u64>,
    /// What was agreed on.
    pub agreed: Agreed,
    /// The socket's error; `None` when it was not readable, 0 when there is none.
    pub sk_err: Option<u32>,
    /// What an ICMP said meanwhile; 0 when nothing.
    pub sk_err_soft: u32,
    /// SYNs sent again.
    pub syn_retransmits: u16,
    /// The new state.
    pub new_state: TcpState,
    /// The SYN left after connect() had returned.
    pub deferred: bool,
    /// Fast Open took part.
    pub fast_open: bool,
    /// A RST was seen.
    pub reset_received: bool,
    /// We answered a segment with a RST.
    pub reset_sent: bool,
    /// connect() had returned before.
    pub call_returned: bool,
    /// The change of state was before this; when is not known.
    pub end_time_unknown: bool,
    /// The change of state was not seen, and found out afterwards; `sk_err` is what was left on the socket by then.
    pub found_late: bool,
    /// It began while we watched, and the kernel side knows nothing of its beginning.
    pub syn_time_lost: bool,
    /// The hooks will say when connect() returns (if it has not).
    pub return_is_seen: bool,
    /// One of our own sockets.
    pub own: bool,
    /// It joins an MPTCP connection that exists.
    pub mptcp_join: bool,
    /// The SYN carried data (Fast Open).
    pub syn_data: bool,
    /// The peer took that data.
    pub syn_data_acked: bool,
    /// A [`Act::FastOpenAnswered`] follows.
    pub cookie_follows: bool,
}

/// See [`Act::ChildQueued`], [`Act::LeftSynReceived`] and [`Act::RequestDied`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassiveOpen {
    /// Both ends.
    pub ends: Ends,
    /// Address of the listener's sock.
    pub listener: Option<u64>,
    /// When the first SYN was received.
    pub syn_ns: Option<u64>,
    /// When the first SYN-ACK was sent.
    pub synack_ns: Option<u64>,
    /// When the last SYN-ACK was sent again.
    pub last_retransmit_ns: Option<u64>,
    /// When the final ACK was received.
    pub final_ack_ns: Option<u64>,
    /// When the child was queued.
    pub queued_ns: Option<u64>,
    /// What was agreed on.
    pub agreed: Agreed,
    /// The socket's error.
    pub sk_err: Option<u32>,
    /// Children queued before this one.
    pub accept_queue_length: u32,
    /// The limit; `None` when unknown.
    pub accept_queue_limit: Option<u32>,
    /// SYNs of this connection that were seen.
    pub syns_seen: Option<u16>,
    /// SYN-ACKs sent again.
    pub synack_retransmits: u16,
    /// State before, where there was a change of state.
    pub old_state: Option<TcpState>,
    /// State after.
    pub new_state: Option<TcpState>,
    /// Made from a SYN cookie.
    pub syn_cookie: bool,
    /// Fast Open.
    pub fast_open: bool,
    /// TCP_DEFER_ACCEPT held it back.
    pub defer_accept: bool,
    /// The SYN came before we watched.
    pub syn_not_seen: bool,
    /// The kernel side had no room for the SYN's time.
    pub syn_table_full: bool,
    /// A RST ended it.
    pub reset_received: bool,
    /// The SYN-ACK timer ended it.
    pub timed_out: bool,
    /// The hooks will say how the child leaves the queue.
    pub accept_is_seen: bool,
    /// One of our own sockets.
    pub own: bool,
    /// An ACK that would have made the child found the accept queue full.
    pub ack_dropped: bool,
    /// It ended, and no hook saw how.
    pub end_not_seen: bool,
    /// It was half open when we stopped watching.
    pub still_open: bool,
    /// We answered a segment of it with a RST.
    pub reset_sent: bool,
    /// That segment was a SYN with another number: its client has begun anew.
    pub other_syn: bool,
    /// An ICMP error that answered its SYN-ACK ended it.
    pub icmp_received: bool,
    /// It joins an MPTCP connection that exists; accept() never returns it.
    pub mptcp_join: bool,
    /// The final ACK came after its owner had closed it.
    pub acknowledged: bool,
}

/// See [`Act::SegmentDropped`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentDropped {
    /// Both ends; the remote one is unknown where memory may not be copied.
    pub ends: Ends,
    /// The listener, where the segment got that far.
    pub listener: Option<u64>,
    /// ISN of the end that opened actively.
    pub isn: Option<u32>,
    /// The final ACK with a SYN cookie; else a SYN.
    pub cookie_ack: bool,
    /// On its way out of this host.
    pub outgoing: bool,
    /// How this host answered it all the same.
    pub answer: Option<Rejection>,
    /// Nobody knows whether it was for this host, or to be forwarded.
    pub unrouted: bool,
    /// The kernel's number for the reason.
    pub reason: Option<u32>,
    /// The listener's queues when it came.
    pub queues: Option<Queues>,
}

/// How this host says that it won't take a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// By a RST.
    Reset,
    /// By an ICMP error.
    Icmp,
}

/// Both queues of a listener at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Children that wait for accept().
    pub accept_length: u32,
    /// How many may.
    pub accept_limit: u32,
    /// Half-open requests.
    pub syn_length: u32,
}

/// See [`Act::Accepted`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Both ends.
    pub ends: Ends,
    /// Who accepted.
    pub process: Option<Process>,
    /// When the child was queued.
    pub queued_ns: Option<u64>,
    /// When the acceptor called accept().
    pub waiting_since_ns: Option<u64>,
    /// When a RST hit the queued child.
    pub reset_ns: Option<u64>,
    /// It was in SYN-RECEIVED still, which only Fast Open makes possible.
    pub before_established: bool,
    /// That accept() took it shows only now; who did, and when, is unknown.
    pub call_not_seen: bool,
}

/// See [`Act::ChildDestroyed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildDestroyed {
    /// Both ends.
    pub ends: Ends,
    /// When the child was queued.
    pub queued_ns: Option<u64>,
    /// When a RST hit it.
    pub reset_ns: Option<u64>,
}

/// See [`Act::ListenerOpened`] and [`Act::ListenerClosed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The local end.
    pub ends: Ends,
    /// Who called listen() or close().
    pub process: Option<Process>,
    /// The limit of its accept queue.
    pub accept_queue_limit: Option<u32>,
    /// One of our own sockets.
    pub own: bool,
}

/// See [`Act::SocketSeen`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSeen {
    /// Both ends.
    pub ends: Ends,
    /// When the first SYN-ACK was sent.
    pub synack_ns: Option<u64>,
    /// Inode of the socket file.
    pub inode: Option<u64>,
    /// Accept queue of a listener.
    pub accept_queue: Option<(u32, u32)>,
    /// Retransmissions so far.
    pub retransmits: u16,
    /// Its state.
    pub state: TcpState,
    /// A child that nobody has accepted yet.
    pub queued: bool,
}

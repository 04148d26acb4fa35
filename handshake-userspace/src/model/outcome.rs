//! How a handshake ended, on what evidence, and the marks that qualify it: the closed lists of docs/EVENTS.md.
//!
//! What a newcomer would get wrong: `Incomplete` is about us (we lost sight), never about the network.

/// Which side of the connection this socket was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Active open: it sent the first SYN.
    Client,
    /// Passive open: a listener received the SYN.
    Server,
    /// Both ends sent a SYN (RFC 9293 section 3.5, figure 7).
    Simultaneous,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The three segments were exchanged.
    Established,
    /// Our SYN was answered by RST. For a server: this host dropped the SYN, and said so by RST or ICMP.
    Refused,
    /// SYNs (or, for a server, SYN-ACKs) stayed unanswered until the kernel gave up.
    TimedOut,
    /// An ICMP or the route said: host unreachable (EHOSTUNREACH).
    HostUnreachable,
    /// An ICMP or the route said: network unreachable (ENETUNREACH).
    NetUnreachable,
    /// A RST ended it half open (server), ours or the peer's, or ended it in another way than refusal (client).
    Reset,
    /// The application closed its socket in SYN-SENT or, a server's with Fast Open, in SYN-RECEIVED.
    Cancelled,
    /// connect() failed on this host before any SYN left.
    LocalError,
    /// The connection was made, and died in the accept queue unaccepted.
    NeverAccepted,
    /// This host dropped every SYN of the attempt.
    SynDropped,
    /// This host dropped the final ACK, so the client believes that it is connected, and nobody here does.
    AckDropped,
    /// We lost sight of it.
    Incomplete,
}

impl Outcome {
    /// Whether this is anything but a good connection.
    pub fn is_failure(self) -> bool {
        self != Outcome::Established
    }
}

/// What an outcome rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EvidenceKind {
    /// The socket's state became ESTABLISHED.
    StateEstablished,
    /// A RST for this socket was received.
    ResetReceived,
    /// `sk_err` named the error when the socket went to CLOSED; no RST was seen (ICMP, firewall).
    SocketError,
    /// The kernel's retransmission timer gave up (`ETIMEDOUT`).
    RetransmitTimeout,
    /// The socket was closed in SYN-SENT with no error on it.
    ClosedInSynSent,
    /// The application closed the socket in SYN-RECEIVED (Fast Open, simultaneous open), with no error on it.
    ClosedInSynReceived,
    /// The final ACK came after the application had closed the socket (Fast Open): it never was ESTABLISHED.
    AckAfterClose,
    /// connect() returned this errno.
    ConnectReturned,
    /// The SYN-ACK timer dropped the request sock.
    SynAckTimeout,
    /// The request sock was dropped, and no hook said why.
    RequestDropped,
    /// The child was destroyed in the accept queue.
    ChildDestroyed,
    /// accept() returned the child; its way there was before our time, or its events were lost.
    AcceptReturned,
    /// Events were lost while this handshake was open.
    EventsLost,
    /// It was open for longer than any kernel timer, and nothing more came.
    NothingMoreSeen,
    /// The program stopped while it was open.
    StoppedWatching,
    /// The tracker's table was full.
    TableFull,
    /// The listener had closed while it was half open.
    ListenerClosed,
    /// The listener's accept queue was full (more children than its limit).
    AcceptQueueFull,
    /// The listener had as many half-open requests as its limit allows.
    SynQueueFull,
    /// The kernel named a reason ([`super::handshake::Dropped::reason`]).
    DropReason,
    /// The kernel took the SYN, made no SYN-ACK, and gave no reason; no queue was full.
    NoSynAckMade,
    /// This host answered with a RST.
    ResetSent,
    /// This host answered with an ICMP error.
    IcmpSent,
    /// An ICMP error answered our SYN-ACK: the client can't be reached.
    IcmpReceived,
}

/// What an outcome rests on, with the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What it is.
    pub kind: EvidenceKind,
    /// The errno that the socket or the call had.
    pub errno: Option<u32>,
    /// What TCP had noted before and gone on trying for all that: an ICMP, or a route that was gone (client).
    pub soft_errno: Option<u32>,
    /// SYNs sent (client), the first one included.
    pub syns: Option<u32>,
    /// SYN-ACKs sent (server), the first one included.
    pub syn_acks: Option<u32>,
}

/// Marks that qualify a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flag {
    /// One of the daemon's own sockets.
    Own,
    /// An AF_INET6 socket that spoke to an IPv4-mapped address.
    V4Mapped,
    /// Made from a SYN cookie: no request sock, SYN time and options degraded.
    SynCookie,
    /// Fast Open took part.
    FastOpen,
    /// Both ends sent a SYN.
    SimultaneousOpen,
    /// TCP_DEFER_ACCEPT held the child back until data came.
    DeferAccept,
    /// A RST hit the child in the accept queue; accept() returned it all the same.
    ResetInQueue,
    /// It had begun before we watched.
    SeenLate,
    /// connect() had returned before the handshake ended (non-blocking, or its own time-out).
    NonBlocking,
    /// The SYN's time is unknown (no room in the kernel side's table, or no hook that sees it): a server's latency
    /// starts at the SYN-ACK, a client's is unknown.
    SynTimeLost,
    /// Events of this CPU were lost while it was open; a detail may be missing.
    EventsLost,
    /// This host dropped a SYN of it before it let one in.
    SynDropped,
    /// This host dropped an ACK of it, because the accept queue was full.
    AckDropped,
    /// A subflow of an MPTCP connection.
    Mptcp,
    /// Put together under TCP_REPAIR: no segment was exchanged.
    Repair,
    /// In SYN-SENT we answered a segment with a RST: the peer held an earlier connection with these ends.
    ResetSent,
    /// The machine was suspended while it was open; no duration counts that time.
    Suspended,
    /// A further subflow of an MPTCP connection: accept() never returns it.
    MptcpJoin,
}

/// What became of a child that was still queued when its handshake record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcceptOutcome {
    /// accept() took it.
    Accepted,
    /// It died unaccepted.
    NeverAccepted,
    /// accept() took it after a RST had hit it.
    ResetInQueue,
    /// We stopped watching, or lost sight.
    Incomplete,
}

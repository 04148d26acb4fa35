//! A handshake record: everything we know of one end of one handshake, ready for a sink.
//!
//! All times are nanoseconds of CLOCK_MONOTONIC or differences of them; a sink turns `began_ns` into wall
//! time with the anchor. What a newcomer would get wrong: `None` is the only way to say unknown.

use std::{net::SocketAddr, sync::Arc};

use handshake_common::event::Attach;

use super::{
    outcome::{AcceptOutcome, Evidence, EvidenceKind, Flag, Outcome, Role},
    process::Process,
};

/// Joins the records of one handshake on this host: boot and counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// From the kernel's boot id: the same for every record of one boot.
    pub boot: u32,
    /// Counts handshakes from the start of this run.
    pub counter: u64,
}

/// What the tracker hands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeUpdate {
    /// A handshake is final.
    Handshake(Box<Handshake>),
    /// The later fate of a child whose handshake record was written while it was queued.
    Accept(Box<Accept>),
}

/// One end of one handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Joins it to its `accept` record.
    pub key: Key,
    /// Client's and server's ISN: both ends compute the same. Absent when one is unknown.
    pub id: Option<u64>,
    /// When it began, CLOCK_MONOTONIC: connect() or the first SYN, whichever is the first known.
    pub began_ns: u64,
    /// Which side this is.
    pub role: Role,
    /// How it ended.
    pub outcome: Outcome,
    /// What that rests on.
    pub evidence: Evidence,
    /// Our end; absent when no address was ever chosen.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub remote: Option<SocketAddr>,
    /// What the application gave to connect(), where TCP connected to another end (client).
    pub asked: Option<SocketAddr>,
    /// Inode of the network namespace.
    pub netns: Option<u32>,
    /// Client: who called connect(). Server: who accepted, else who listens.
    pub process: Option<Process>,
    /// Client: SYN sent to ESTABLISHED. Server: SYN received to ESTABLISHED.
    pub latency_ns: Option<u64>,
    /// A failure: from its first SYN (or connect(), where none left) to its end.
    pub failed_after_ns: Option<u64>,
    /// One round trip, if nothing was retransmitted (Karn) and nothing else blurs it.
    pub rtt_ns: Option<u64>,
    /// The round trip as the kernel measured it by itself, in microseconds.
    pub kernel_rtt_us: Option<u32>,
    /// Where the time went.
    pub phases: Phases,
    /// What was sent again.
    pub retransmits: Retransmits,
    /// Initial sequence numbers.
    pub isn: Isn,
    /// What the SYNs agreed on; absent when not readable, and when there was no answer to agree by.
    pub options: Option<Options>,
    /// The accept queue when the child was queued (server).
    pub accept_queue: Option<AcceptQueue>,
    /// Segments of it that this host dropped.
    pub dropped: Option<Dropped>,
    /// Sorted, without repeats.
    pub flags: Vec<Flag>,
    /// By which hooks it was seen; `None` stands for a mixture.
    pub attach: Option<Attach>,
}

/// Each from one act to another, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Client: connect() called -> SYN sent. Absent for a deferred Fast Open.
    pub local_ns: Option<u64>,
    /// Client: first SYN sent -> answer processed, waits for retransmissions included.
    pub wire_ns: Option<u64>,
    /// Client: ESTABLISHED -> connect() returned.
    pub wake_ns: Option<u64>,
    /// Server: SYN received -> SYN-ACK sent.
    pub synack_ns: Option<u64>,
    /// Server: SYN-ACK sent -> final ACK processed, waits for retransmissions included.
    pub ack_ns: Option<u64>,
    /// Server: queued -> accept() returned.
    pub accept_ns: Option<u64>,
    /// Server: queued -> the call of accept() that took it; 0 when its thread was waiting by then.
    pub accept_call_ns: Option<u64>,
}

/// What was sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retransmits {
    /// SYNs that this end sent again (client).
    pub syn: Option<u32>,
    /// SYN-ACKs that this end sent again (server).
    pub syn_ack: Option<u32>,
    /// SYNs that this end received (server).
    pub syn_seen: Option<u32>,
    /// First to last sending of the segment: time that no round trip took. 0 when nothing was sent again.
    pub waited_ns: Option<u64>,
}

/// Initial sequence numbers, as this end sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isn {
    /// Ours.
    pub local: Option<u32>,
    /// The peer's.
    pub remote: Option<u32>,
}

/// TCP options that both SYNs carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size that the peer announced, in bytes.
    pub mss: u16,
    /// Our and the peer's window scale; absent when not agreed on.
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// Explicit congestion notification.
    pub ecn: bool,
    /// Our MSS and both windows, in bytes.
    pub windows: Option<Windows>,
    /// What became of Fast Open (client).
    pub fast_open: Option<FastOpen>,
    /// Whether the SYN-ACK carried a Fast Open cookie (client); absent when its SYN had no such option.
    pub fast_open_cookie: Option<bool>,
}

/// What the first segments announced beside the peer's MSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Maximum segment size that we announced, in bytes; unknown of a request that died half open.
    pub local_mss: Option<u16>,
    /// Our window.
    pub local: u32,
    /// The peer's: a server's is told by the final ACK.
    pub remote: Option<u32>,
}

/// How far a client came with Fast Open (RFC 7413).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastOpen {
    /// It didn't ask for it.
    None,
    /// Its SYN asked for a cookie.
    Requested,
    /// Its SYN carried data, which the server did not take.
    DataSent,
    /// Its SYN carried data, and the server took it.
    DataAccepted,
}

/// Segments that this host dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// How many: SYNs (a server's that came, a client's that were to leave), or final ACKs.
    pub segments: u32,
    /// What they died of.
    pub cause: EvidenceKind,
    /// The kernel's name for it, without its prefix.
    pub reason: Option<Arc<str>>,
}

/// A listener's accept queue at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Children in it, the one that this record is about included.
    pub length: u32,
    /// Its limit.
    pub limit: u32,
}

/// The later fate of a queued child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Key of its handshake record.
    pub key: Key,
    /// Its `id`, if known.
    pub id: Option<u64>,
    /// When it happened, CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// What happened.
    pub outcome: AcceptOutcome,
    /// From queued to that.
    pub wait_ns: Option<u64>,
    /// From queued to the call of accept() that took it; 0 when its thread was waiting by then.
    pub call_ns: Option<u64>,
    /// Who accepted.
    pub process: Option<Process>,
    /// Our end.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub remote: Option<SocketAddr>,
    /// Inode of the network namespace.
    pub netns: Option<u32>,
    /// By which hooks it was seen; `None` stands for a mixture.
    pub attach: Option<Attach>,
}

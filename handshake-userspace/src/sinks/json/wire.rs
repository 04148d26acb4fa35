//! The records as serde sees them: borrowed from the model, with the names and the order of the contract.
//!
//! The model derives no `Serialize` on purpose: renaming a field there must not change what other programs
//! read. What a newcomer would get wrong: the order of the fields here is the order in the line.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::words;
use crate::{
    model::{handshake as model, outcome::EvidenceKind, process},
    sinks::{WallTime, errno},
};

/// Raised when a reader of the old records would read the new ones wrongly.
pub(super) const SCHEMA: u32 = 1;

#[derive(Serialize)]
pub(super) struct Handshake<'a> {
    schema: u32,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Shown<Time>>,
    key: Shown<Key>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Shown<Id>>,
    role: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<Evidence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    asked: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_after_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_rtt_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phases: Option<Phases>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retransmits: Option<Retransmits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isn: Option<Isn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Options>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accept_queue: Option<AcceptQueue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<Dropped<'a>>,
    flags: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attach: Option<&'static str>,
}

impl<'a> Handshake<'a> {
    pub(super) fn new(handshake: &'a model::Handshake, time: WallTime) -> Self {
        let phases = &handshake.phases;
        let again = &handshake.retransmits;
        let isn = &handshake.isn;
        Handshake {
            schema: SCHEMA,
            kind: "handshake",
            time: shown_time(time),
            key: Shown(Key(handshake.key)),
            id: handshake.id.map(|id| Shown(Id(id))),
            role: words::role(handshake.role),
            outcome: words::outcome(handshake.outcome),
            // What "established" rests on is always the same.
            evidence: (handshake.evidence.kind != EvidenceKind::StateEstablished).then(|| Evidence {
                kind: words::evidence(handshake.evidence.kind),
                errno: handshake.evidence.errno.map(errno::name),
                soft_errno: handshake.evidence.soft_errno.map(errno::name),
                syns: handshake.evidence.syns,
                syn_acks: handshake.evidence.syn_acks,
            }),
            local: handshake.local.map(End::new),
            remote: handshake.remote.map(End::new),
            asked: handshake.asked.map(End::new),
            netns: handshake.netns,
            process: handshake.process.as_ref().map(Process::new),
            latency_ns: handshake.latency_ns,
            failed_after_ns: handshake.failed_after_ns,
            rtt_ns: handshake.rtt_ns,
            kernel_rtt_us: handshake.kernel_rtt_us,
            phases: (*phases != model::Phases::default()).then_some(Phases {
                local_ns: phases.local_ns,
                wire_ns: phases.wire_ns,
                wake_ns: phases.wake_ns,
                synack_ns: phases.synack_ns,
                ack_ns: phases.ack_ns,
                accept_ns: phases.accept_ns,
                accept_call_ns: phases.accept_call_ns,
            }),
            retransmits: (*again != model::Retransmits::default()).then_some(Retransmits {
                syn: again.syn,
                syn_ack: again.syn_ack,
                syn_seen: again.syn_seen,
                waited_ns: again.waited_ns,
            }),
            isn: (*isn != model::Isn::default()).then_some(Isn { local: isn.local, remote: isn.remote }),
            options: handshake.options.map(|options| Options {
                mss: options.mss,
                window_scale: options.window_scale.map(|(local, remote)| WindowScale { local, remote }),
                sack: options.sack,
                timestamps: options.timestamps,
                ecn: options.ecn,
                fast_open: options.fast_open.map(words::fast_open),
                fast_open_cookie: options.fast_open_cookie.map(words::fast_open_cookie),
                local_mss: options.windows.and_then(|windows| windows.local_mss),
                window: options
                    .windows
                    .map(|windows| Window { local: windows.local, remote: windows.remote }),
            }),
            accept_queue: handshake
                .accept_queue
                .map(|queue| AcceptQueue { length: queue.length, limit: queue.limit }),
            dropped: handshake.dropped.as_ref().map(|dropped| Dropped {
                segments: dropped.segments,
                cause: words::evidence(dropped.cause),
                reason: dropped.reason.as_deref(),
            }),
            flags: handshake.flags.iter().map(|flag| words::flag(*flag)).collect(),
            attach: words::attach(handshake.attach),
        }
    }
}

#[derive(Serialize)]
struct Dropped<'a> {
    segments: u32,
    cause: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct Accept<'a> {
    schema: u32,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Shown<Time>>,
    key: Shown<Key>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Shown<Id>>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attach: Option<&'static str>,
}

impl<'a> Accept<'a> {
    pub(super) fn new(accept: &'a model::Accept, time: WallTime) -> Self {
        Accept {
            schema: SCHEMA,
            kind: "accept",
            time: shown_time(time),
            key: Shown(Key(accept.key)),
            id: accept.id.map(|id| Shown(Id(id))),
            outcome: words::accept_outcome(accept.outcome),
            local: accept.local.map(End::new),
            remote: accept.remote.map(End::new),
            netns: accept.netns,
            process: accept.process.as_ref().map(Process::new),
            wait_ns: accept.wait_ns,
            call_ns: accept.call_ns,
            attach: words::attach(accept.attach),
        }
    }
}

#[derive(Serialize)]
struct Evidence {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    soft_errno: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    syns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    syn_acks: Option<u32>,
}

#[derive(Serialize)]
struct End {
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

impl End {
    fn new(end: SocketAddr) -> Self {
        // Port 0 is no port: it was not chosen, or is not known any more.
        End { address: end.ip(), port: (end.port() != 0).then(|| end.port()) }
    }
}

#[derive(Serialize)]
struct Process<'a> {
    pid: u32,
    tid: u32,
    comm: &'a str,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_id: Option<Shown<u64>>,
}

impl<'a> Process<'a> {
    fn new(process: &'a process::Process) -> Self {
        Process {
            pid: process.pid,
            tid: process.tid,
            comm: process.comm.as_str(),
            uid: process.uid,
            cgroup_id: process.cgroup_id.map(Shown),
        }
    }
}

#[derive(Serialize)]
struct Phases {
    #[serde(skip_serializing_if = "Option::is_none")]
    local_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wire_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wake_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    synack_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accept_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accept_call_ns: Option<u64>,
}

#[derive(Serialize)]
struct Retransmits {
    #[serde(skip_serializing_if = "Option::is_none")]
    syn: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    syn_ack: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    syn_seen: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ns: Option<u64>,
}

#[derive(Serialize)]
struct Isn {
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<u32>,
}

#[derive(Serialize)]
struct Options {
    mss: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_scale: Option<WindowScale>,
    sack: bool,
    timestamps: bool,
    ecn: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    fast_open: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fast_open_cookie: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_mss: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
}

#[derive(Serialize)]
struct Window {
    local: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<u32>,
}

#[derive(Serialize)]
struct WindowScale {
    local: u8,
    remote: u8,
}

#[derive(Serialize)]
struct AcceptQueue {
    length: u32,
    limit: u32,
}

/// Serialises as the string that it displays, without building that string first.
pub(super) struct Shown<T>(T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

pub(super) struct Time(Timestamp);

impl Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.0)
    }
}

pub(super) fn shown_time(time: WallTime) -> Option<Shown<Time>> {
    Timestamp::from_nanosecond(i128::from(time?)).ok().map(|time| Shown(Time(time)))
}

struct Key(model::Key);

impl Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.0.boot, self.0.counter)
    }
}

struct Id(u64);

impl Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

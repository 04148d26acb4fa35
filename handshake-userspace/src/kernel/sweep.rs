//! Sweeps what nothing deletes from the kernel side's tables, and tells of the half-open requests among it.
//!
//! Tables refuse when they are full, so an entry whose end no hook sees would stay for ever: a half-open request in
//! tracepoint mode, or whose probes the kernel skipped; a call of a thread that was killed. What a newcomer would get
//! wrong: age alone decides, and it is far above any timer of the kernel, so that nothing alive is swept; only when
//! we stop is the rest taken as it is.

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapData},
};
use bytes::Bytes;
use handshake_common::{
    event::{
        ABI_VERSION, Attach, Event, EventHeader, EventKind,
        passive_open::{PassiveOpen, flags},
    },
    request::{LatestRequest, Request},
    tcp::TcpState,
};
use zerocopy::IntoBytes as _;

/// Half-open requests: SYN-ACK retries (five by default) end after about 63 s, at most after some minutes.
const REQUEST_AGE_NS: u64 = 600_000_000_000;
/// Calls: a thread may well wait an hour in accept(); losing the start of its wait costs one detail.
const CALL_AGE_NS: u64 = 3_600_000_000_000;

/// Handles on the tables that can leak.
pub struct Sweeper {
    requests: Option<HashMap<MapData, u64, Request>>,
    latest_requests: Option<Array<MapData, LatestRequest>>,
    /// How the hooks on requests are attached; `None` where an entry that is left need not be an open request
    /// (tracepoint mode: one that was answered by a cookie is gone already).
    told_as: Option<Attach>,
    /// `ConnectCall`: the time is its first word.
    connect_calls: Option<HashMap<MapData, u64, [u64; 4]>>,
    /// `AcceptCall`: the time is its first word.
    accept_calls: Option<HashMap<MapData, u64, [u64; 2]>>,
    /// `DropRate`: the time is its first word.
    drops: Option<HashMap<MapData, u64, [u64; 2]>>,
}

impl Sweeper {
    pub(super) fn new(ebpf: &mut Ebpf, told_as: Option<Attach>) -> Self {
        Sweeper {
            requests: table(ebpf, "REQUESTS"),
            latest_requests: ebpf.take_map("LATEST_REQUESTS").and_then(|map| Array::try_from(map).ok()),
            told_as,
            connect_calls: table(ebpf, "CONNECT_CALLS"),
            accept_calls: table(ebpf, "ACCEPT_CALLS"),
            drops: table(ebpf, "DROPS"),
        }
    }

    /// Deletes what is too old; returns how many entries, and events of the requests whose end was not seen.
    pub fn sweep(&mut self, now_ns: u64) -> (usize, Vec<Bytes>) {
        let old = sweep(&mut self.requests, now_ns, REQUEST_AGE_NS, |request| request.created_ns);
        let told = self.tell(&old, now_ns, flags::END_NOT_SEEN);
        let swept = old.len()
            + sweep(&mut self.connect_calls, now_ns, CALL_AGE_NS, |value| value[0]).len()
            + sweep(&mut self.accept_calls, now_ns, CALL_AGE_NS, |value| value[0]).len()
            + sweep(&mut self.drops, now_ns, REQUEST_AGE_NS, |value| value[0]).len();
        (swept, told)
    }

    /// Events of the requests that are half open now. The hooks must be detached: a table that changes may be walked
    /// twice.
    pub fn still_open(&self, now_ns: u64) -> Vec<Bytes> {
        if self.told_as.is_none() {
            return Vec::new();
        }
        let mut open: Vec<(u64, Request)> = self.requests.iter().flat_map(HashMap::iter).flatten().collect();
        // Oldest first: the order of a hash table would be another one in each run.
        open.extend(self.driven_out());
        open.sort_by_key(|(key, request)| (request.created_ns, *key));
        self.tell(&open, now_ns, flags::STILL_OPEN)
    }

    fn driven_out(&self) -> impl Iterator<Item = (u64, Request)> {
        let places = self.latest_requests.iter().flat_map(|places| places.iter().flatten());
        places.filter(|place| place.key != 0).map(|place| (place.key, place.request))
    }

    fn tell(&self, requests: &[(u64, Request)], now_ns: u64, how: u32) -> Vec<Bytes> {
        let Some(attach) = self.told_as else { return Vec::new() };
        requests.iter().map(|(key, request)| event(*key, request, attach, now_ns, how)).collect()
    }
}

/// What the kernel side would have submitted, had a hook seen the end.
fn event(key: u64, request: &Request, attach: Attach, now_ns: u64, how: u32) -> Bytes {
    let mut payload = PassiveOpen {
        endpoints: request.endpoints,
        listener: request.listener,
        syn_ns: request.syn_ns,
        synack_ns: request.created_ns,
        last_retransmit_ns: request.last_retransmit_ns,
        final_ack_ns: request.final_ack_ns,
        flags: request.flags | how,
        accept_queue_length: request.accept_queue_length,
        accept_queue_limit: request.accept_queue_limit,
        syns_seen: request.syns_seen,
        synack_retransmits: request.synack_retransmits,
        old_state: TcpState::NewSynReceived as u8,
        ..PassiveOpen::default()
    };
    payload.negotiated.known = request.isns_known;
    payload.negotiated.local_isn = request.local_isn;
    payload.negotiated.remote_isn = request.remote_isn;
    let header = EventHeader {
        kind: EventKind::RequestDied as u16,
        abi_version: ABI_VERSION,
        size_bytes: size_of::<Event<PassiveOpen>>() as u16,
        attach: attach as u8,
        time_ns: now_ns,
        socket: key,
        generation_ns: request.created_ns,
        ..EventHeader::default()
    };
    Bytes::from([header.as_bytes(), payload.as_bytes()].concat())
}

fn table<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Option<HashMap<MapData, u64, V>> {
    let map = ebpf.take_map(name)?;
    HashMap::try_from(map).inspect_err(|error| log::warn!("{name} is not swept: {error}")).ok()
}

/// Deletes what is too old, and returns it.
fn sweep<V: Pod>(
    table: &mut Option<HashMap<MapData, u64, V>>,
    now_ns: u64,
    age_ns: u64,
    born_ns: impl Fn(&V) -> u64,
) -> Vec<(u64, V)> {
    let Some(table) = table else { return Vec::new() };
    let mut old: Vec<(u64, V)> =
        table.iter().flatten().filter(|(_, value)| now_ns.saturating_sub(born_ns(value)) > age_ns).collect();
    // Whoever else removed it first has told of it.
    old.retain(|(key, _)| table.remove(key).is_ok());
    old
}

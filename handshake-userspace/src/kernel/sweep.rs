//! Sweeps what nothing deletes from the kernel side's tables.
//!
//! Tables refuse when they are full, so an entry whose end no hook sees would stay for ever: a half-open
//! request in tracepoint mode, a call of a thread that was killed. What a newcomer would get wrong: age alone
//! decides, and it is far above any timer of the kernel, so that nothing alive is swept.

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData},
};

/// Half-open requests: SYN-ACK retries (five by default) end after about 63 s, at most after some minutes.
const REQUEST_AGE_NS: u64 = 600_000_000_000;
/// Calls: a thread may well wait an hour in accept(); losing the start of its wait costs one detail.
const CALL_AGE_NS: u64 = 3_600_000_000_000;

/// Handles on the tables that can leak.
pub struct Sweeper {
    /// `Request`: the creation time is its second word.
    requests: Option<HashMap<MapData, u64, [u64; 7]>>,
    /// `ConnectCall`: the time is its first word.
    connect_calls: Option<HashMap<MapData, u64, [u64; 4]>>,
    /// `AcceptCall`: the time is its first word.
    accept_calls: Option<HashMap<MapData, u64, [u64; 2]>>,
    /// `DropRate`: the time is its first word.
    drops: Option<HashMap<MapData, u64, [u64; 2]>>,
}

impl Sweeper {
    pub(super) fn new(ebpf: &mut Ebpf) -> Self {
        Sweeper {
            requests: table(ebpf, "REQUESTS"),
            connect_calls: table(ebpf, "CONNECT_CALLS"),
            accept_calls: table(ebpf, "ACCEPT_CALLS"),
            drops: table(ebpf, "DROPS"),
        }
    }

    /// Deletes what is too old; returns how many entries.
    pub fn sweep(&mut self, now_ns: u64) -> usize {
        sweep(&mut self.requests, now_ns, REQUEST_AGE_NS, |value| value[1])
            + sweep(&mut self.connect_calls, now_ns, CALL_AGE_NS, |value| value[0])
            + sweep(&mut self.accept_calls, now_ns, CALL_AGE_NS, |value| value[0])
            + sweep(&mut self.drops, now_ns, REQUEST_AGE_NS, |value| value[0])
    }
}

fn table<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Option<HashMap<MapData, u64, V>> {
    let map = ebpf.take_map(name)?;
    HashMap::try_from(map).inspect_err(|error| log::warn!("{name} is not swept: {error}")).ok()
}

fn sweep<V: Pod>(
    table: &mut Option<HashMap<MapData, u64, V>>,
    now_ns: u64,
    age_ns: u64,
    born_ns: impl Fn(&V) -> u64,
) -> usize {
    let Some(table) = table else { return 0 };
    let old: Vec<u64> = table
        .iter()
        .flatten()
        .filter(|(_, value)| now_ns.saturating_sub(born_ns(value)) > age_ns)
        .map(|(key, _)| key)
        .collect();
    old.iter().filter(|key| table.remove(key).is_ok()).count()
}

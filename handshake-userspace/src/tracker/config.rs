//! What the tracker is told at its start: limits, and how long it waits for what.
//!
//! What a newcomer would get wrong: a patience is no taste of ours but a fact of TCP or of the kernel, named at each;
//! where one is shorter than that fact, handshakes that are still alive are given up.

use std::{collections::BTreeMap, sync::Arc};

/// What the tracker is told at its start.
#[derive(Clone, Debug)]
pub struct TrackerConfig {
    /// For the keys of records: from the kernel's boot id.
    pub boot: u32,
    /// How far out of order observations may come.
    pub window_ns: u64,
    /// Observations that may wait in the window; beyond that the oldest is processed early. Five million a second
    /// fill it.
    pub max_held: usize,
    /// Handshakes that may be open at once.
    pub max_open: usize,
    /// Children that may wait for accept() after their record was written.
    pub max_queued: usize,
    /// How long a record waits for accept().
    pub accept_patience_ns: u64,
    /// How long a record waits for the return of a system call that is about to come.
    pub wake_patience_ns: u64,
    /// How long an attempt whose first SYN was dropped waits for its next one: longer than the first gap (1 s, or 3 s
    /// in RFC 1122's time), and short enough to be told. The gaps double (RFC 6298 section 5.5), and the wait with
    /// them, so that one attempt is one record.
    pub next_syn_patience_ns: u64,
    /// The kernel's names for its drop reasons, by number.
    pub drop_reasons: Arc<BTreeMap<u32, Arc<str>>>,
    /// After how long a silence a handshake is given up as incomplete. Longer than any pause of the kernel's
    /// retransmission timer (120 s, `TCP_RTO_MAX`).
    pub expire_ns: u64,
}

impl Default for TrackerConfig {
    fn default() -> Self {
        TrackerConfig {
            boot: 0,
            window_ns: 50_000_000,
            max_held: 250_000,
            max_open: 200_000,
            max_queued: 200_000,
            accept_patience_ns: 1_000_000_000,
            wake_patience_ns: 200_000_000,
            next_syn_patience_ns: 4_500_000_000,
            drop_reasons: Arc::default(),
            expire_ns: 600_000_000_000,
        }
    }
}

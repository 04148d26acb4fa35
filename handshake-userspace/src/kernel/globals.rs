//! What the programs know as constants, and the object loaded with them.
//!
//! What a newcomer would get wrong: these are read-only to the verifier too. A filter that is off, or a field that this
//! kernel lacks, leaves no instruction behind.

use aya::{Btf, Ebpf, EbpfLoader};
use handshake_common::{filter::Filter, offsets::Offsets};

use super::{StartError, attach_problem::chain, log_messages};

/// Per CPU; rounded up to a power of two and bounded below.
const RING_BYTES_PER_CPU: usize = 1 << 20;
/// Holds what 400,000 events a second leave between two drains.
const RING_BYTES_MIN: usize = 4 << 20;
const RING_BYTES_MAX: usize = 32 << 20;
/// The reader is woken before its timer when this part of the ring is full.
const WAKE_AT_PART: u64 = 4;

/// What the programs know as constants.
pub(super) struct Globals {
    pub(super) offsets: Offsets,
    pub(super) filter: Filter,
    pub(super) locked_down: u32,
    pub(super) told_reasons: [u64; 4],
    pub(super) retransmit_error_is_told: u32,
    pub(super) ring_bytes: u32,
}

impl Globals {
    /// Loads the object with them; no program is loaded yet.
    pub(super) fn load(&self, bytes: &[u8], btf: &Btf, cpus: usize) -> Result<Ebpf, StartError> {
        let wake_at_bytes = u64::from(self.ring_bytes) / WAKE_AT_PART;
        let log_level = log_messages::level();
        EbpfLoader::new()
            .btf(Some(btf))
            .override_global("OFFSETS", &self.offsets, true)
            .override_global("FILTER", &self.filter, true)
            .override_global("LOCKED_DOWN", &self.locked_down, true)
            .override_global("WAKE_AT_BYTES", &wake_at_bytes, true)
            .override_global("TOLD_REASONS", &self.told_reasons, true)
            .override_global("RETRANSMIT_ERROR_IS_TOLD", &self.retransmit_error_is_told, true)
            // Absent when no log statement survived compilation.
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries("EVENTS", self.ring_bytes)
            .map_max_entries("COUNTERS", cpus as u32)
            .load(bytes)
            .map_err(|error| StartError::Failed(format!("the kernel refused our maps: {}", chain(&error))))
    }
}

/// A power of two and a multiple of the page, as the kernel wants it.
pub(super) fn ring_bytes(asked: Option<u32>, cpus: usize) -> u32 {
    let bytes = match asked {
        Some(asked) => (asked as usize).max(rustix::param::page_size()),
        None => (cpus * RING_BYTES_PER_CPU).clamp(RING_BYTES_MIN, RING_BYTES_MAX),
    };
    u32::try_from(bytes.next_power_of_two()).unwrap_or(1 << 31)
}

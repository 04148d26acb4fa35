//! The running kernel as an event source: the ring buffer, and the counters that say what it lost.
//!
//! What a newcomer would get wrong: the kernel keeps the number of skipped probes with the programs, so it is
//! read before they go; our own counters are shared memory and are right to the last.

use super::{CounterReading, EventSource, SourceError, SourceItem, ring_buffer::RingBufferSource};
use crate::kernel::KernelCounters;

/// Gives what the hooks see.
pub struct LiveSource {
    ring: RingBufferSource,
    counters: KernelCounters,
    detached: Option<Detached>,
}

/// What was known when the programs went.
#[derive(Clone, Copy)]
struct Detached {
    missed_probes: Option<u64>,
}

impl LiveSource {
    /// Takes over what a started trace streams and counts.
    pub fn new(ring: RingBufferSource, counters: KernelCounters) -> Self {
        LiveSource { ring, counters, detached: None }
    }
}

impl EventSource for LiveSource {
    async fn next_batch(&mut self, batch: &mut Vec<SourceItem>) -> Result<bool, SourceError> {
        self.ring.next_batch(batch).await
    }

    fn drain(&mut self, batch: &mut Vec<SourceItem>) -> Result<(), SourceError> {
        self.ring.drain(batch)
    }

    fn counters(&self) -> Option<CounterReading> {
        let missed_probes = match self.detached {
            Some(detached) => detached.missed_probes,
            None => self.counters.missed_probes(),
        };
        Some(CounterReading::new(&self.counters.read(), missed_probes))
    }

    fn detach(&mut self) {
        let missed_probes = self.counters.missed_probes();
        self.detached.get_or_insert(Detached { missed_probes });
        self.ring.detach();
    }
}

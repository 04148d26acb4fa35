//! The running kernel as an event source: the ring buffer together with what keeps the hooks attached.
//!
//! What a newcomer would get wrong: detaching must not take the ring with it. What the hooks had put there is
//! drained afterwards, and only then does the ring stop growing.

use std::time::{Duration, Instant};

use super::{CounterReading, EventSource, SourceError, SourceItem, ring_buffer::RingBufferSource};
use crate::{
    kernel::{Attached, KernelCounters, LiveTrace, Sweeper},
    model::mib::MibReading,
};

/// Entries are swept when they are minutes old; asking more often than this would only cost system calls.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Gives what the hooks see.
pub struct LiveSource {
    hooks: Hooks,
    swept: Instant,
}

enum Hooks {
    Attached(Box<LiveTrace>),
    Detached(Box<Leftover>),
    /// Only while one becomes the other.
    Changing,
}

/// What outlives the hooks.
struct Leftover {
    source: RingBufferSource,
    counters: KernelCounters,
    /// As it was before: the kernel keeps it with the programs, which are gone.
    missed_probes: Option<u64>,
    /// Knows the requests that were half open then, until it was asked.
    sweeper: Option<Sweeper>,
}

impl LiveSource {
    /// Takes over a trace that has started.
    pub fn new(trace: LiveTrace) -> Self {
        LiveSource { hooks: Hooks::Attached(Box::new(trace)), swept: Instant::now() }
    }

    fn ring(&mut self) -> Option<&mut RingBufferSource> {
        match &mut self.hooks {
            Hooks::Attached(trace) => Some(&mut trace.source),
            Hooks::Detached(left) => Some(&mut left.source),
            Hooks::Changing => None,
        }
    }

    /// Events of requests whose end no hook saw go into the batch.
    fn sweep_if_due(&mut self, batch: &mut Vec<SourceItem>) {
        if let Hooks::Attached(trace) = &mut self.hooks
            && self.swept.elapsed() >= SWEEP_EVERY
        {
            self.swept = Instant::now();
            let (swept, told) = trace.attached.sweeper.sweep(super::ring_buffer::monotonic_ns());
            batch.extend(told.into_iter().map(SourceItem::Event));
            if swept != 0 {
                log::info!("{swept} entries of the kernel side's tables had outlived everything; swept");
            }
        }
    }
}

impl EventSource for LiveSource {
    async fn next_batch(&mut self, batch: &mut Vec<SourceItem>) -> Result<bool, SourceError> {
        self.sweep_if_due(batch);
        if let Hooks::Attached(trace) = &mut self.hooks
            && let Some(cgroups) = &mut trace.attached.cgroups
        {
            cgroups.look_if_due();
        }
        match self.ring() {
            Some(ring) => ring.next_batch(batch).await,
            None => Ok(false),
        }
    }

    fn drain(&mut self, batch: &mut Vec<SourceItem>) -> Result<(), SourceError> {
        self.ring().map_or(Ok(()), |ring| ring.drain(batch))?;
        // Behind what the ring says of them, and at a time after its tick: detaching takes longer than the ordering
        // window.
        if let Hooks::Detached(left) = &mut self.hooks
            && !batch.iter().any(|item| matches!(item, SourceItem::Event(_)))
            && let Some(sweeper) = left.sweeper.take()
        {
            let open = sweeper.still_open(super::ring_buffer::monotonic_ns());
            batch.extend(open.into_iter().map(SourceItem::Event));
        }
        Ok(())
    }

    fn counters(&self) -> Option<CounterReading> {
        match &self.hooks {
            Hooks::Attached(trace) => {
                Some(CounterReading::new(&trace.counters.read(), trace.counters.missed_probes()))
            }
            Hooks::Detached(left) => Some(CounterReading::new(&left.counters.read(), left.missed_probes)),
            Hooks::Changing => None,
        }
    }

    fn mib(&mut self) -> Option<MibReading> {
        match &mut self.hooks {
            Hooks::Attached(trace) => Some(trace.mib_at_start.take().unwrap_or_else(|| trace.mib.read())),
            // What happens from now on is in the kernel's counters and not in ours.
            Hooks::Detached(_) | Hooks::Changing => None,
        }
    }

    fn detach(&mut self) {
        self.hooks = match std::mem::replace(&mut self.hooks, Hooks::Changing) {
            Hooks::Attached(trace) => {
                let missed_probes = trace.counters.missed_probes();
                let (source, counters, sweeper) = detached(*trace);
                Hooks::Detached(Box::new(Leftover {
                    source,
                    counters,
                    missed_probes,
                    sweeper: Some(sweeper),
                }))
            }
            other => other,
        };
    }
}

/// Keeps these and drops the rest: programs and links go, so every hook is detached on return.
fn detached(trace: LiveTrace) -> (RingBufferSource, KernelCounters, Sweeper) {
    let LiveTrace { source, counters, attached, .. } = trace;
    let Attached { sweeper, .. } = attached;
    (source, counters, sweeper)
}

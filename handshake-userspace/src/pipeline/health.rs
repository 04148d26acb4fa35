//! The accounting beside the tracker's: what the kernel side, decode and the sinks counted, and when to say so.
//!
//! What a newcomer would get wrong: the kernel's counters are totals since attach. A reading replaces the
//! one before; nothing is added up here.

use std::collections::BTreeMap;

use handshake_common::counter::Counter;

use super::notice::Doubling;
use crate::{
    model::{
        health::{Canary, Health, TrackerCounts},
        outcome::Outcome,
    },
    sinks::{Lost, json::words, loss_by_cause},
    source::CounterReading,
};

/// How often a `health` record is written.
const HEALTH_EVERY_NS: u64 = 10_000_000_000;

/// How often it is asked whether loss has grown.
const LOSS_CHECK_EVERY_NS: u64 = 1_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Accounting {
    pub(super) undecodable: u64,
    pub(super) unknown_kind: u64,
    canary: Option<Canary>,
    kernel: Option<CounterReading>,
    outcomes: BTreeMap<&'static str, u64>,
    health_due_ns: Option<u64>,
    loss_check_due_ns: u64,
    told: Doubling,
}

impl Accounting {
    /// Of a run whose canary ended so.
    pub(super) fn new(canary: Option<Canary>) -> Self {
        Accounting { canary, ..Accounting::default() }
    }

    pub(super) fn counters(&mut self, reading: CounterReading) {
        self.kernel = Some(reading);
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) {
        *self.outcomes.entry(words::outcome(outcome)).or_default() += 1;
    }

    pub(super) fn health(&self, tracker: TrackerCounts, filtered_unknown: u64, sink_dropped: u64) -> Health {
        let mut kernel = BTreeMap::new();
        let mut ring_full_by_cpu = BTreeMap::new();
        let mut missed_probes = None;
        if let Some(reading) = &self.kernel {
            for counter in Counter::ALL {
                let of_cpus = reading.by_cpu.iter().map(|slots| slots[counter as usize]);
                kernel.insert(counter.name(), of_cpus.fold(0, u64::saturating_add));
            }
            for (cpu, slots) in (0..).zip(&reading.by_cpu) {
                let ring_full = slots[Counter::RingFull as usize];
                if ring_full != 0 {
                    ring_full_by_cpu.insert(cpu, ring_full);
                }
            }
            missed_probes = reading.missed_probes;
        }
        Health {
            tracker,
            kernel,
            ring_full_by_cpu,
            missed_probes,
            undecodable: self.undecodable,
            unknown_kind: self.unknown_kind,
            sink_dropped,
            filtered_unknown,
            canary: self.canary,
            outcomes: self.outcomes.clone(),
            reconciliation: None,
        }
    }

    /// Every ten seconds, the first time ten seconds after the first tick.
    pub(super) fn health_is_due(&mut self, now_ns: u64) -> bool {
        let due_ns = *self.health_due_ns.get_or_insert(now_ns.saturating_add(HEALTH_EVERY_NS));
        if now_ns < due_ns {
            return false;
        }
        self.health_due_ns = Some(now_ns.saturating_add(HEALTH_EVERY_NS));
        true
    }

    pub(super) fn loss_check_is_due(&mut self, now_ns: u64) -> bool {
        if now_ns < self.loss_check_due_ns {
            return false;
        }
        self.loss_check_due_ns = now_ns.saturating_add(LOSS_CHECK_EVERY_NS);
        true
    }

    /// The loss, if it is time to tell of it.
    pub(super) fn grown_loss(&mut self, health: &Health) -> Option<Lost> {
        let total = health.lost();
        let grown = self.told.grown(total)?;
        Some(Lost { total, grown, causes: loss_by_cause(health) })
    }
}

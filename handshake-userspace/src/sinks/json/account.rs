//! The accounting on the wire: `health`, and `lost` when it happens.
//!
//! What a newcomer would get wrong: these are totals since the start. Only `grown` is since the last one.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    second_account::SecondAccount,
    wire::{SCHEMA, Shown, Time, shown_time},
};
use crate::{
    model::health,
    sinks::{self, WallTime},
};

#[derive(Serialize)]
pub(super) struct Health<'a> {
    schema: u32,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Shown<Time>>,
    seen: u64,
    established: u64,
    failed: u64,
    in_flight: u64,
    incomplete: u64,
    queued: u64,
    lost: u64,
    unmatched: u64,
    table_full: u64,
    late: u64,
    ends_unseen: u64,
    outcomes: &'a BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    kernel: &'a BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ring_full_by_cpu: Option<&'a BTreeMap<u32, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missed_probes: Option<u64>,
    undecodable: u64,
    unknown_kind: u64,
    sink_dropped: u64,
    filtered_unknown: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_counters: Option<SecondAccount<'a>>,
}

impl<'a> Health<'a> {
    pub(super) fn new(health: &'a health::Health, time: WallTime) -> Self {
        let tracker = &health.tracker;
        Health {
            schema: SCHEMA,
            kind: "health",
            time: shown_time(time),
            seen: tracker.seen,
            established: tracker.established,
            failed: tracker.failed,
            in_flight: tracker.in_flight,
            incomplete: tracker.incomplete,
            queued: tracker.queued,
            lost: health.lost(),
            unmatched: tracker.unmatched,
            table_full: tracker.table_full,
            late: tracker.late,
            ends_unseen: tracker.ends_unseen,
            outcomes: &health.outcomes,
            kernel: &health.kernel,
            ring_full_by_cpu: (!health.kernel.is_empty()).then_some(&health.ring_full_by_cpu),
            missed_probes: health.missed_probes,
            undecodable: health.undecodable,
            unknown_kind: health.unknown_kind,
            sink_dropped: health.sink_dropped,
            filtered_unknown: health.filtered_unknown,
            canary: health.canary.map(health::Canary::word),
            kernel_counters: SecondAccount::of(health),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Lost<'a> {
    schema: u32,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Shown<Time>>,
    total: u64,
    grown: u64,
    causes: &'a BTreeMap<&'static str, u64>,
}

impl<'a> Lost<'a> {
    pub(super) fn new(lost: &'a sinks::Lost, time: WallTime) -> Self {
        Lost {
            schema: SCHEMA,
            kind: "lost",
            time: shown_time(time),
            total: lost.total,
            grown: lost.grown,
            causes: &lost.causes,
        }
    }
}

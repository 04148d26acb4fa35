//! When the machine was suspended, for the records that were open then.
//!
//! What a newcomer would get wrong: nothing has to be corrected. The events' clock stands still in a suspend, and so do
//! the kernel's own timers of the handshake; but who reads `latency_ns` must know that hours may lie in between.

use crate::model::observation::ClockAnchor;

/// Clocks that are read one after the other differ by less.
const NOTABLE_NS: u64 = 1_000_000;

/// See the module.
#[derive(Default)]
pub(super) struct Suspends {
    asleep_ns: Option<u64>,
    latest_ns: Option<u64>,
}

impl Suspends {
    /// Reads the clocks: CLOCK_BOOTTIME goes on in a suspend, CLOCK_MONOTONIC does not.
    pub(super) fn note(&mut self, anchor: ClockAnchor) {
        let asleep_ns = anchor.boottime_ns.saturating_sub(anchor.monotonic_ns);
        if self.asleep_ns.is_some_and(|before| asleep_ns.saturating_sub(before) > NOTABLE_NS) {
            self.latest_ns = Some(anchor.monotonic_ns);
        }
        self.asleep_ns = Some(asleep_ns);
    }

    /// Whether it was suspended between these times.
    pub(super) fn is_between(&self, began_ns: u64, now_ns: u64) -> bool {
        self.latest_ns.is_some_and(|latest_ns| began_ns < latest_ns && latest_ns <= now_ns)
    }
}

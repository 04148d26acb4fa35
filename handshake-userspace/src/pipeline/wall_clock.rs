//! Turns CLOCK_MONOTONIC into wall time, by anchors taken again every few seconds.
//!
//! A moment is told by the last anchor before it, so that a clock that was set, or a suspend, after a
//! handshake began does not bend its time. What a newcomer would get wrong: CLOCK_MONOTONIC stands still in
//! suspend and the wall clock does not, so one anchor at start would be hours off after a laptop's night.

use std::collections::VecDeque;

use crate::{model::observation::ClockAnchor, sinks::WallTime};

/// Enough for the longest handshake (minutes of SYNs) at an anchor every few seconds; the oldest goes first.
const ANCHORS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct WallClock {
    anchors: VecDeque<ClockAnchor>,
}

impl WallClock {
    pub(super) fn anchor(&mut self, anchor: ClockAnchor) {
        if self.anchors.len() == ANCHORS {
            self.anchors.pop_front();
        }
        self.anchors.push_back(anchor);
    }

    /// Nanoseconds since 1970; `None` before the first anchor, and for what lies before 1970.
    pub(super) fn at(&self, monotonic_ns: u64) -> WallTime {
        let before = self.anchors.iter().rev().find(|anchor| anchor.monotonic_ns <= monotonic_ns);
        let anchor = before.or(self.anchors.front())?;
        let since = i128::from(monotonic_ns) - i128::from(anchor.monotonic_ns);
        u64::try_from(i128::from(anchor.realtime_ns) + since).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(monotonic_ns: u64, realtime_ns: u64) -> ClockAnchor {
        ClockAnchor { monotonic_ns, boottime_ns: monotonic_ns, realtime_ns }
    }

    #[test]
    fn a_clock_step_does_not_bend_what_began_before_it() {
        let mut clock = WallClock::default();
        assert_eq!(clock.at(5), None);
        clock.anchor(anchor(100, 1_000));
        clock.anchor(anchor(200, 9_100));
        assert_eq!(clock.at(150), Some(1_050));
        assert_eq!(clock.at(200), Some(9_100));
        assert_eq!(clock.at(90), Some(990), "before the first anchor");
        assert_eq!(clock.at(u64::MAX), None, "nothing overflows");
    }
}

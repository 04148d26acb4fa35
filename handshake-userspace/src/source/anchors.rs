//! When the clocks are handed on: every few seconds, and as soon as one of them went on without the others.
//!
//! CLOCK_MONOTONIC, the events' clock, stands still while the machine is suspended and knows nothing of a wall clock
//! that was set. What a newcomer would get wrong: such a step lies between two readings, and we are frozen during a
//! suspend. So what lies after the time at which we would have read again had we not been frozen lies after the step.

use std::time::Duration;

use crate::model::observation::ClockAnchor;

/// How often the clocks are handed on though they agree.
const EVERY_NS: u64 = 5_000_000_000;
/// NTP slews the events' clock and the wall clock alike, so what moves them apart by more is a step.
const STEP_NS: u64 = 1_000_000;
/// A reading that took no longer is exact enough.
const QUICK_NS: u64 = 100_000;
/// Readings before the best of them has to do.
const TRIES: u32 = 4;

/// The three clocks, read one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) clocks: ClockAnchor,
    /// How long that took: by so much they may seem to differ.
    pub(super) took_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Anchors {
    /// Time between two readings, with what a timer may be late.
    read_every_ns: u64,
    /// When the clocks were last seen to agree with what was handed on.
    agreed_ns: u64,
    given: Option<ClockAnchor>,
}

impl Anchors {
    pub(super) fn new(read_every: Duration) -> Self {
        let every_ns = u64::try_from(read_every.as_nanos()).unwrap_or(u64::MAX);
        Anchors { read_every_ns: every_ns.saturating_add(every_ns / 4), agreed_ns: 0, given: None }
    }

    /// What to hand on after this reading.
    pub(super) fn due(&mut self, reading: Reading) -> Option<ClockAnchor> {
        let Reading { clocks, took_ns } = reading;
        let step_ns = STEP_NS.max(took_ns.saturating_mul(2));
        let anchor = match self.given {
            None => Some(clocks),
            Some(given) if is_stepped(given, clocks, step_ns) => {
                let since_ns = clocks.monotonic_ns.saturating_sub(self.agreed_ns);
                Some(earlier(clocks, since_ns.saturating_sub(self.read_every_ns)))
            }
            Some(given) => {
                (clocks.monotonic_ns.saturating_sub(given.monotonic_ns) >= EVERY_NS).then_some(clocks)
            }
        };
        self.agreed_ns = clocks.monotonic_ns;
        self.given = anchor.or(self.given);
        anchor
    }
}

/// Whether one of the other clocks went on by more or by less than the events' clock.
fn is_stepped(before: ClockAnchor, now: ClockAnchor, step_ns: u64) -> bool {
    let went = |clock: fn(&ClockAnchor) -> u64| i128::from(clock(&now)) - i128::from(clock(&before));
    let monotonic = went(|clocks| clocks.monotonic_ns);
    let others = [went(|clocks| clocks.boottime_ns), went(|clocks| clocks.realtime_ns)];
    others.iter().any(|other| (other - monotonic).unsigned_abs() > u128::from(step_ns))
}

/// The same relation between the clocks, at an earlier time.
fn earlier(clocks: ClockAnchor, by_ns: u64) -> ClockAnchor {
    ClockAnchor {
        monotonic_ns: clocks.monotonic_ns.saturating_sub(by_ns),
        boottime_ns: clocks.boottime_ns.saturating_sub(by_ns),
        realtime_ns: clocks.realtime_ns.saturating_sub(by_ns),
    }
}

/// CLOCK_MONOTONIC, the events' clock.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

/// The clocks now; again if somebody else had the CPU in between.
pub(super) fn read_clocks() -> Reading {
    let mut best = read_once();
    for _ in 1..TRIES {
        if best.took_ns <= QUICK_NS {
            break;
        }
        let again = read_once();
        if again.took_ns < best.took_ns {
            best = again;
        }
    }
    best
}

fn read_once() -> Reading {
    let clocks = ClockAnchor {
        monotonic_ns: monotonic_ns(),
        boottime_ns: nanoseconds(rustix::time::ClockId::Boottime),
        realtime_ns: nanoseconds(rustix::time::ClockId::Realtime),
    };
    Reading { clocks, took_ns: monotonic_ns().saturating_sub(clocks.monotonic_ns) }
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const HOUR: u64 = 3_600_000 * MS;

    fn reading(monotonic_ns: u64, asleep_ns: u64, wall_ns: u64) -> Reading {
        let boottime_ns = monotonic_ns + asleep_ns;
        let clocks = ClockAnchor { monotonic_ns, boottime_ns, realtime_ns: boottime_ns + wall_ns };
        Reading { clocks, took_ns: 300 }
    }

    fn anchors() -> Anchors {
        let mut anchors = Anchors::new(Duration::from_millis(40));
        assert_eq!(anchors.due(reading(HOUR, 0, HOUR)), Some(reading(HOUR, 0, HOUR).clocks), "the first one");
        anchors
    }

    #[test]
    fn clocks_that_agree_are_handed_on_every_five_seconds() {
        let mut anchors = anchors();
        let given = (1..=500).filter(|step| anchors.due(reading(HOUR + step * 40 * MS, 0, HOUR)).is_some());
        assert_eq!(given.collect::<Vec<_>>(), [125, 250, 375, 500]);
    }

    #[test]
    fn a_suspend_is_told_at_the_first_reading_after_it() {
        let mut anchors = anchors();
        assert_eq!(anchors.due(reading(HOUR + 40 * MS, 0, HOUR)), None);
        // Frozen 20 ms later; suspending and resuming took 300 ms in which the clock ran.
        let after = anchors.due(reading(HOUR + 360 * MS, 8 * HOUR, HOUR));
        let since = reading(HOUR + 90 * MS, 8 * HOUR, HOUR).clocks;
        assert_eq!(after, Some(since), "no connect() that was called before we were frozen is so late");
        assert_eq!(anchors.due(reading(HOUR + 400 * MS, 8 * HOUR, HOUR)), None, "it is told once");
    }

    #[test]
    fn a_wall_clock_that_is_set_is_told_at_once_in_both_directions() {
        let mut anchors = anchors();
        for (step, wall_ns) in [(1, 2 * HOUR), (2, HOUR), (3, HOUR + 2 * MS)] {
            let now = reading(HOUR + step * 40 * MS, 0, wall_ns);
            assert_eq!(anchors.due(now), Some(now.clocks));
        }
    }

    #[test]
    fn a_reading_that_was_interrupted_is_no_step() {
        let mut anchors = anchors();
        let slow = Reading { took_ns: 30 * MS, ..reading(HOUR + 40 * MS, 30 * MS, HOUR) };
        assert_eq!(anchors.due(slow), None);
    }

    #[test]
    fn the_clocks_can_be_read() {
        let reading = read_clocks();
        assert!(reading.clocks.monotonic_ns > 0 && reading.clocks.boottime_ns >= reading.clocks.monotonic_ns);
    }
}

//! How far our times are from the capture's, and how far they may be.
//!
//! What a reader would get wrong: the largest says how busy the machine was, and bounds nothing. The tails have
//! bounds on both sides, for a time that was taken from or to a wrong segment is too short as often as too long; and
//! of more than one handshake in a hundred a segment is sent again.

/// Of one role's handshakes: ours less the capture's.
pub struct Differences {
    ns: Vec<i64>,
    bounds: Bounds,
}

/// Where some parts of a hundred of the differences must lie, in nanoseconds.
struct Bounds {
    /// The hundredth part from below.
    least_ns: i64,
    /// The middle one, which is never negative.
    middle_ns: i64,
    /// The hundredth part from above.
    most_ns: i64,
}

impl Differences {
    /// None yet.
    ///
    /// On a machine the way through the stack takes some 10 us. A tail of 1 ms is the shortest time that a segment is
    /// under way, so a time that runs from or to another segment is beyond it. In a guest an emulated CPU takes 200 us,
    /// and up to 85 ms for one in a hundred while others have the machine's; half a second is half of what is waited
    /// before a SYN or a SYN-ACK is sent again.
    pub fn none(emulated: bool, is_server: bool) -> Self {
        let (middle_ns, most_ns) = if emulated { (1_000_000, 500_000_000) } else { (100_000, 1_000_000) };
        // A client's SYN is on the wire after we saw it, and the answer before. At a server both are before.
        let least_ns = if is_server { -most_ns } else { 0 };
        Differences { ns: Vec::new(), bounds: Bounds { least_ns, middle_ns, most_ns } }
    }

    pub fn add(&mut self, ours_ns: i64, wire_ns: i64) {
        self.ns.push(ours_ns - wire_ns);
    }

    /// Sorted differences at some parts of a hundred.
    fn at(&self, percent: usize) -> Option<i64> {
        let mut sorted = self.ns.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len().saturating_sub(1) * percent).div_ceil(100)).copied()
    }

    /// For a program to read.
    pub fn line(&self) -> String {
        let us = |percent| self.at(percent).map_or(f64::NAN, |ns| ns as f64 / 1_000.0);
        format!(
            "timed={} min_us={:.1} p1_us={:.1} median_us={:.1} p99_us={:.1} max_us={:.1}",
            self.ns.len(),
            us(0),
            us(1),
            us(50),
            us(99),
            us(100)
        )
    }

    /// Which part of them is not where it must be.
    pub fn out_of_bounds(&self) -> Vec<String> {
        let Bounds { least_ns, middle_ns, most_ns } = self.bounds;
        [
            ("first hundredth", 1, least_ns..=most_ns),
            ("median", 50, 0..=middle_ns),
            ("last hundredth", 99, least_ns..=most_ns),
        ]
        .into_iter()
        .filter(|(_, percent, range)| !self.at(*percent).is_some_and(|ns| range.contains(&ns)))
        .map(|(what, _, range)| format!("the {what} of the differences is not in {range:?} ns\n"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host shows, with some of a thousand changed.
    fn with(wrong: usize, by_ns: i64, emulated: bool, is_server: bool) -> Differences {
        let mut differences = Differences::none(emulated, is_server);
        for number in 0..1_000 {
            let off_ns = if number < wrong { by_ns } else { 0 };
            differences.add(5_000_000 + number as i64 * 40 + off_ns, 5_000_000);
        }
        differences
    }

    #[test]
    fn a_bias_is_out_of_bounds_and_a_few_late_ones_are_not() {
        for (emulated, is_server) in [(false, false), (false, true), (true, false), (true, true)] {
            let (bias_ns, tail_ns) = if emulated { (1_500_000, 750_000_000) } else { (150_000, 1_500_000) };
            let faults = |wrong, by_ns| with(wrong, by_ns, emulated, is_server).out_of_bounds();
            assert!(faults(0, 0).is_empty());
            assert!(faults(5, 3_000_000_000).is_empty() && faults(5, -3_000_000_000).is_empty());
            assert_eq!(
                faults(1_000, bias_ns),
                ["the median"; 1].map(|what| within(what, 0, bias_ns * 2 / 3))
            );
            assert_eq!(faults(20, tail_ns).len(), 1, "two of a hundred are measured to a later segment");
            assert_eq!(faults(20, -tail_ns).len(), 1, "or from a later one");
            assert_eq!(
                faults(20, -50_000).is_empty(),
                is_server,
                "a client's SYN is never on the wire before"
            );
        }
    }

    #[test]
    fn without_any_there_is_nothing_in_bounds() {
        assert_eq!(Differences::none(false, false).out_of_bounds().len(), 3);
    }

    fn within(what: &str, from_ns: i64, to_ns: i64) -> String {
        format!("{what} of the differences is not in {:?} ns\n", from_ns..=to_ns)
    }
}

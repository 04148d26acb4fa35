//! Durations for people: three digits and a unit, the unit chosen by size.
//!
//! What a newcomer would get wrong: nothing is rounded into the next unit's look-alike. 999.9 µs is `1.00 ms`
//! and not `1000 µs`, so every text has the same few shapes and a column of them can be compared at a glance.

/// `812 ns`, `8 µs`, `812 µs`, `4.10 ms`, `41.0 ms`, `410 ms`, `1.034 s`, `75.0 s`, `2 min 11 s`, `3 h 05 min`.
pub fn human(nanoseconds: u64) -> String {
    // Each step asks what the value would be after rounding, so that no unit overflows.
    if nanoseconds < 1_000 {
        return format!("{nanoseconds} ns");
    }
    let microseconds = rounded(nanoseconds, 1_000);
    if microseconds < 1_000 {
        return format!("{microseconds} µs");
    }
    let hundredths = rounded(nanoseconds, 10_000);
    if hundredths < 1_000 {
        return format!("{}.{:02} ms", hundredths / 100, hundredths % 100);
    }
    let tenths = rounded(nanoseconds, 100_000);
    if tenths < 1_000 {
        return format!("{}.{} ms", tenths / 10, tenths % 10);
    }
    let milliseconds = rounded(nanoseconds, 1_000_000);
    if milliseconds < 1_000 {
        return format!("{milliseconds} ms");
    }
    if milliseconds < 10_000 {
        return format!("{}.{:03} s", milliseconds / 1_000, milliseconds % 1_000);
    }
    let tenths = rounded(nanoseconds, 100_000_000);
    if tenths < 1_200 {
        return format!("{}.{} s", tenths / 10, tenths % 10);
    }
    let seconds = rounded(nanoseconds, 1_000_000_000);
    if seconds < 3_600 {
        return format!("{} min {:02} s", seconds / 60, seconds % 60);
    }
    let minutes = seconds / 60;
    format!("{} h {:02} min", minutes / 60, minutes % 60)
}

fn rounded(nanoseconds: u64, unit: u64) -> u64 {
    nanoseconds / unit + u64::from(nanoseconds % unit >= unit / 2)
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn durations_read_as_people_say_them() {
        let expected = [
            (0, "0 ns"),
            (812, "812 ns"),
            (8_121, "8 µs"),
            (812_000, "812 µs"),
            (999_600, "1.00 ms"),
            (4_104_000, "4.10 ms"),
            (41_020_331, "41.0 ms"),
            (99_960_000, "100 ms"),
            (410_000_000, "410 ms"),
            (1_034_000_000, "1.034 s"),
            (999_999_999, "1.000 s"),
            (75_000_000_000, "75.0 s"),
            (131_000_000_000, "2 min 11 s"),
            (11_100_000_000_000, "3 h 05 min"),
            (u64::MAX, "5124095 h 34 min"),
        ];
        for (nanoseconds, text) in expected {
            assert_eq!(human(nanoseconds), text);
        }
    }
}

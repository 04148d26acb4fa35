//! The second table of `cargo xtask table`: what the packet captures beside us said, a row per kernel, mode and role.
//!
//! It is made of the lines that begin with `witness: ` in the kept outputs; the latest of a kernel and mode counts.
//!
//! What one would get wrong: a figure that a line lacks is a hole in the table and no zero.

use std::{collections::BTreeMap, fmt::Write as _};

/// Kernels by number, then fentry before kprobe, then the client before the server.
type Place = (Vec<u32>, String, String);

/// The lines of the kept outputs, as rows.
#[derive(Default)]
pub struct CaptureTable {
    rows: BTreeMap<Place, BTreeMap<String, String>>,
}

impl CaptureTable {
    /// Takes one line of an output, in the order in which the outputs were written.
    pub fn line(&mut self, line: &str) {
        let Some(facts) = line.strip_prefix("witness: kernel=") else { return };
        let (kernel, facts) = facts.split_once(' ').unwrap_or((facts, ""));
        let facts: BTreeMap<String, String> = facts
            .split_whitespace()
            .filter_map(|fact| fact.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (Some(mode), Some(role)) = (facts.get("mode"), facts.get("role")) else { return };
        let number = kernel.split(['.', '-']).take(2).map_while(|part| part.parse().ok()).collect();
        self.rows.insert((number, mode.clone(), role.clone()), facts);
    }

    /// The table in Markdown.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "\n| kernel, mode | role | on the wire | over IPv6 | missed | of them half open and excused | invented | told otherwise | partial \
             | raced | p1 us | median us | p99 us | max us |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for ((number, mode, role), facts) in &self.rows {
            let number: Vec<String> = number.iter().map(u32::to_string).collect();
            let _ = write!(text, "| {} {mode} | {role} |", number.join("."));
            for count in [
                "handshakes",
                "ipv6",
                "missed",
                "beyond_limits",
                "invented",
                "disagreeing",
                "partial",
                "raced",
            ] {
                let _ = write!(text, " {} |", facts.get(count).map_or("", String::as_str));
            }
            for time in ["p1_us", "median_us", "p99_us", "max_us"] {
                let _ = write!(text, " {} |", facts.get(time).map_or("", String::as_str));
            }
            text.push('\n');
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_line_of_a_kernel_and_mode_is_its_row() {
        let mut table = CaptureTable::default();
        table.line("witness: kernel=6.12.107+deb13-amd64 mode=fentry role=client handshakes=1 missed=1");
        table
            .line("witness: kernel=5.10.0-32-amd64 mode=kprobe role=server handshakes=9 missed=0 max_us=3.5");
        table.line(
            "witness: kernel=6.12.107+deb13-amd64 mode=fentry role=client handshakes=2208 ipv6=552 missed=0",
        );
        table.line("test witness ... ok");
        let text = table.text();
        let rows: Vec<&str> = text.lines().skip(3).filter(|line| !line.is_empty()).collect();
        assert_eq!(
            rows,
            [
                "| 5.10 kprobe | server | 9 |  | 0 |  |  |  |  |  |  |  |  | 3.5 |",
                "| 6.12 fentry | client | 2208 | 552 | 0 |  |  |  |  |  |  |  |  |  |",
            ]
        );
    }
}

//! The table that `cargo xtask test` ends with, and the skips and failures before it.
//!
//! What one would get wrong: the closing line is read by other programs. It stands alone, is the last line of
//! stdout, and is always `N passed, N failed, N skipped`.

use crate::libtest::Tally;
use std::{fmt::Write as _, time::Duration};

/// One run of tests: a row of the table.
pub struct Run {
    /// `host`, or the kernel of a VM.
    pub kernel: String,
    /// `unit` for the workspace's own tests, else how hooks attach.
    pub mode: String,
    /// What became of the tests.
    pub tally: Tally,
    /// How long it took.
    pub took: Duration,
}

/// All runs.
#[derive(Default)]
pub struct Results {
    /// In the order of the table.
    pub runs: Vec<Run>,
    /// Runs that could not be made here, with the reason; each counts as one skip.
    pub not_run: Vec<(String, String)>,
}

impl Results {
    /// Whether nothing failed and something ran.
    pub fn are_good(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(|run| run.tally.failed.is_empty())
    }

    /// The report.
    pub fn report(&self) -> String {
        let mut text = String::from("\n");
        for run in &self.runs {
            for (name, reason) in run.tally.skipped() {
                let _ = writeln!(text, "skipped  {} {}: {name}: {reason}", run.kernel, run.mode);
            }
        }
        for (name, reason) in &self.not_run {
            let _ = writeln!(text, "skipped  {name}: {reason}");
        }
        for run in &self.runs {
            for name in &run.tally.unstable {
                let _ = writeln!(
                    text,
                    "UNSTABLE {} {}: {name}: failed, and passed when it ran once more",
                    run.kernel, run.mode
                );
            }
        }
        for run in &self.runs {
            for name in &run.tally.failed {
                let _ = writeln!(text, "FAILED   {} {}: {name}", run.kernel, run.mode);
            }
        }
        let _ = writeln!(
            text,
            "\n{:<8} {:<12} {:>7} {:>7} {:>8} {:>8}",
            "kernel", "mode", "passed", "failed", "skipped", "seconds"
        );
        let (mut passed, mut failed, mut skipped) = (0, 0, self.not_run.len());
        for Run { kernel, mode, tally, took } in &self.runs {
            let counts = (tally.passed(), tally.failed.len(), tally.skipped().len());
            passed += counts.0;
            failed += counts.1;
            skipped += counts.2;
            let (a, b, c, seconds) = (counts.0, counts.1, counts.2, took.as_secs());
            let _ = writeln!(text, "{kernel:<8} {mode:<12} {a:>7} {b:>7} {c:>8} {seconds:>8}");
        }
        let _ = write!(text, "\n{passed} passed, {failed} failed, {skipped} skipped");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kernel: &str, lines: &[&str]) -> Run {
        let mut tally = Tally::default();
        for line in lines {
            tally.line(line);
        }
        tally.finish(None);
        Run { kernel: kernel.to_owned(), mode: "fentry".to_owned(), tally, took: Duration::from_secs(42) }
    }

    #[test]
    fn last_line_sums_up_all_runs() {
        let runs = vec![
            run("6.12", &["test a ... ok", "test b ... FAILED"]),
            run("5.10", &["test a ... ok", "SKIP a: no netem", "test c ... ok"]),
        ];
        let results = Results { runs, not_run: vec![("host tracepoint".into(), "not root".into())] };
        let report = results.report();
        assert!(report.ends_with("\n2 passed, 1 failed, 2 skipped"), "{report}");
        assert!(report.contains("skipped  5.10 fentry: a: no netem"), "{report}");
        assert!(report.contains("skipped  host tracepoint: not root"), "{report}");
        assert!(report.contains("FAILED   6.12 fentry: b"), "{report}");
        assert!(!results.are_good());
    }

    #[test]
    fn what_passed_only_the_second_time_is_named() {
        let mut first = run("6.12", &["test a ... FAILED"]);
        first.tally.run_once_more(run("6.12", &["test a ... ok"]).tally);
        let results = Results { runs: vec![first], not_run: Vec::new() };
        let report = results.report();
        assert!(
            report.contains("UNSTABLE 6.12 fentry: a: failed, and passed when it ran once more"),
            "{report}"
        );
        assert!(report.ends_with("\n1 passed, 0 failed, 0 skipped"), "{report}");
        assert!(results.are_good());
    }

    #[test]
    fn no_runs_are_not_good() {
        assert!(!Results::default().are_good());
    }
}

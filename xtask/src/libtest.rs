//! Reads what libtest binaries print, line by line, while they run.
//!
//! A test that cannot run here prints `SKIP name: reason` and returns. Libtest calls it passed, this calls it
//! skipped. The binary has to run with `--show-output`, or libtest swallows that line.
//!
//! What one would get wrong: a binary that dies in the middle prints no result line. Whatever had begun and not
//! ended is then a failure, by name; and a run of no tests at all is a failure too.

use std::collections::BTreeMap;

/// What became of one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// It ran and passed.
    Passed,
    /// It ran and failed.
    Failed,
    /// It could not run here, for this reason.
    Skipped(&'a str),
}

impl Outcome<'_> {
    /// In a sum.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Skipped(_) => "skipped",
        }
    }
}

/// What became of the tests of one or more binaries.
#[derive(Debug, Default)]
pub struct Tally {
    ok: Vec<String>,
    /// By name, or why the run as a whole failed.
    pub failed: Vec<String>,
    /// Those that failed, ran once more and passed.
    pub unstable: Vec<String>,
    ignored: BTreeMap<String, String>,
    announced: BTreeMap<String, String>,
    running: Option<String>,
    in_output_of_passed: bool,
}

impl Tally {
    /// Takes one line; says whether a reader wants to see it. Of the tests that passed, only what they skip is
    /// wanted.
    pub fn line(&mut self, line: &str) -> bool {
        let announced = announced_skip(line);
        if let Some((name, reason)) = announced {
            self.announced.insert(name.to_owned(), reason.to_owned());
        }
        match line {
            "successes:" => self.in_output_of_passed = true,
            "failures:" => self.in_output_of_passed = false,
            _ if line.starts_with("test result: ") || line.starts_with("running ") => {
                self.in_output_of_passed = false;
            }
            _ => {}
        }
        if self.in_output_of_passed {
            return announced.is_some();
        }
        if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, result)) = rest.split_once(" ...")
        {
            let name = name.strip_suffix(" - should panic").unwrap_or(name);
            self.running = Some(name.to_owned());
            self.result(result.trim_start());
        } else if self.running.is_some() {
            // What the kernel or a process of the test prints may stand between a name and its result.
            self.result(line);
        }
        true
    }

    fn result(&mut self, result: &str) {
        let Some(name) = self.running.take() else { return };
        // What a test brought out of its VM is judged outside, under the same name. It passed if it did in both places.
        if result == "ok" {
            if !self.ok.contains(&name) && !self.failed.contains(&name) {
                self.ok.push(name);
            }
        } else if result == "FAILED" {
            self.ok.retain(|passed| *passed != name);
            self.failed.push(name);
        } else if let Some(reason) = result.strip_prefix("ignored") {
            let reason = reason.trim_start_matches(", ");
            let reason = if reason.is_empty() { "marked #[ignore]" } else { reason };
            self.ignored.insert(name, reason.to_owned());
        } else {
            self.running = Some(name);
        }
    }

    /// Takes the results of a second run of what did not pass; what failed only the first time is kept as unstable.
    pub fn run_once_more(&mut self, later: Tally) {
        let passed = |name: &String| later.ok.iter().any(|later| later == without_fault(name));
        self.unstable.extend(self.failed.iter().filter(|name| passed(name)).cloned());
        self.replace_by(later);
    }

    /// Takes the results of a later run of some of the tests in the place of its own.
    pub fn replace_by(&mut self, later: Tally) {
        let again: Vec<String> = later.outcomes().map(|(name, _)| name.to_owned()).collect();
        self.ok.retain(|name| !again.contains(name));
        self.failed.retain(|name| !again.iter().any(|again| again == without_fault(name)));
        self.announced
            .retain(|name, _| !again.iter().any(|test| test == name || test.ends_with(&format!("::{name}"))));
        self.ok.extend(later.ok);
        self.failed.extend(later.failed);
        self.ignored.extend(later.ignored);
        self.announced.extend(later.announced);
    }

    /// Ends the run; `fault` says how the process ended when that was not with success.
    pub fn finish(&mut self, fault: Option<&str>) {
        if let Some(name) = self.running.take() {
            self.failed.push(format!("{name} ({})", fault.unwrap_or("never ended")));
        } else if let Some(fault) = fault.filter(|_| self.failed.is_empty()) {
            self.failed.push(format!("the run itself: {fault}"));
        } else if self.ok.is_empty() && self.failed.is_empty() && self.ignored.is_empty() {
            self.failed.push("the run itself: it had no tests".to_owned());
        }
    }

    /// How many passed, and not because they had nothing to do.
    pub fn passed(&self) -> usize {
        self.ok.iter().filter(|name| self.skip_of(name).is_none()).count()
    }

    /// Every test that did not run, with the reason.
    pub fn skipped(&self) -> Vec<(&str, &str)> {
        self.announced
            .iter()
            .chain(&self.ignored)
            .map(|(name, reason)| (name.as_str(), reason.as_str()))
            .collect()
    }

    /// Every test, with what became of it.
    pub fn outcomes(&self) -> impl Iterator<Item = (&str, Outcome<'_>)> {
        let ran = self.ok.iter().map(|name| {
            let skip = self.skip_of(name);
            (name.as_str(), skip.map_or(Outcome::Passed, |reason| Outcome::Skipped(reason)))
        });
        let failed = self.failed.iter().map(|name| (without_fault(name), Outcome::Failed));
        let ignored = self.ignored.iter().map(|(name, reason)| (name.as_str(), Outcome::Skipped(reason)));
        ran.chain(failed).chain(ignored)
    }

    /// Whether a test failed first, and passed when it ran once more.
    pub fn is_unstable(&self, name: &str) -> bool {
        self.unstable.iter().any(|unstable| without_fault(unstable) == name)
    }

    /// Those that passed, were skipped or ignored.
    pub fn outcomes_but_failures(&self) -> impl Iterator<Item = (&str, Outcome<'_>)> {
        self.outcomes().filter(|(_, outcome)| *outcome != Outcome::Failed)
    }

    /// A test may announce itself by its full path or by the name of its function.
    fn skip_of(&self, test: &str) -> Option<&String> {
        let function = test.rsplit("::").next().unwrap_or(test);
        self.announced.get(test).or_else(|| self.announced.get(function))
    }
}

/// The test that ran when a run ended is named with how that ended, in brackets.
fn without_fault(name: &str) -> &str {
    name.split_once(" (").map_or(name, |(name, _)| name)
}

/// `SKIP name: reason`, at the start of a line or, from a binary that doesn't capture, behind the test's name.
fn announced_skip(line: &str) -> Option<(&str, &str)> {
    let (before, note) = line.split_once("SKIP ")?;
    if !before.is_empty() && !before.ends_with("... ") {
        return None;
    }
    note.split_once(": ").filter(|(name, _)| !name.contains(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str, fault: Option<&str>) -> Tally {
        let mut tally = Tally::default();
        for line in text.lines() {
            tally.line(line);
        }
        tally.finish(fault);
        tally
    }

    #[test]
    fn what_fails_outside_has_not_passed() {
        let mut tally = Tally::default();
        for line in ["test a ... ok", "test b ... ok"] {
            tally.line(line);
        }
        for line in ["test a ... ", "witness: x", "ok", "test b ... FAILED"] {
            tally.line(line);
        }
        tally.finish(None);
        assert_eq!((tally.passed(), &tally.failed[..]), (1, &["b".to_owned()][..]));
        let outcomes: Vec<_> = tally.outcomes().collect();
        assert_eq!(outcomes, [("a", Outcome::Passed), ("b", Outcome::Failed)]);
    }

    #[test]
    fn what_ran_again_counts_as_it_was_the_last_time() {
        let mut all = tally("test a ... FAILED\ntest b ... ok\ntest c ... SKIP c: no root\nok", None);
        all.replace_by(tally("test a ... ok\ntest c ... ok", None));
        assert_eq!((all.passed(), all.failed.len(), all.skipped().len()), (3, 0, 0));
        all.replace_by(tally("test b ... FAILED", None));
        assert_eq!((all.passed(), &all.failed[..]), (2, &["b".to_owned()][..]));
    }

    #[test]
    fn counts_and_names_are_read() {
        let text = "running 4 tests\ntest a::passes ... ok\ntest b ... FAILED\ntest c ... ignored, too slow\n\
            test d - should panic ... ok\n\nfailures:\n\n---- b stdout ----\nSKIP of no test\n\nfailures:\n    b\n\n\
            test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let tally = tally(text, Some("exit status: 101"));
        assert_eq!(tally.passed(), 2);
        assert_eq!(tally.failed, ["b"]);
        assert_eq!(tally.skipped(), [("c", "too slow")]);
    }

    #[test]
    fn a_test_that_announces_a_skip_did_not_pass() {
        let text = "running 2 tests\ntest live::needs_nft ... ok\ntest other ... ok\n\nsuccesses:\n\n\
            ---- live::needs_nft stdout ----\nSKIP needs_nft: no nft in PATH\n\nsuccesses:\n    other\n\n\
            test result: ok. 2 passed; 0 failed\n";
        let tally = tally(text, None);
        assert_eq!(tally.passed(), 1);
        assert_eq!(tally.skipped(), [("needs_nft", "no nft in PATH")]);
        assert!(tally.failed.is_empty());
    }

    #[test]
    fn a_skip_behind_the_name_of_an_uncaptured_test_counts() {
        let tally = tally("running 1 test\ntest a ... SKIP a: no IPv6\nok\ntest result: ok.\n", None);
        assert_eq!((tally.passed(), tally.skipped()), (0, vec![("a", "no IPv6")]));
    }

    #[test]
    fn noise_between_name_and_result_is_survived() {
        let tally = tally("test a ... [   12.3] a kernel message\nmore\nok\ntest result: ok.\n", None);
        assert_eq!((tally.passed(), tally.failed.len()), (1, 0));
    }

    #[test]
    fn the_test_that_ran_when_the_guest_died_failed() {
        let tally = tally("running 2 tests\ntest a ... ok\ntest b ...\n", Some("the guest died"));
        assert_eq!(tally.failed, ["b (the guest died)"]);
    }

    #[test]
    fn a_run_without_tests_failed() {
        assert_eq!(tally("running 0 tests\n\ntest result: ok. 0 passed\n", None).failed.len(), 1);
        assert_eq!(tally("", None).failed.len(), 1);
    }

    #[test]
    fn output_of_tests_that_passed_is_not_shown() {
        let mut tally = Tally::default();
        assert!(tally.line("test a ... ok"));
        assert!(!tally.line("successes:"));
        assert!(!tally.line("chatter"));
        assert!(tally.line("SKIP a: why"));
        assert!(tally.line("test result: ok. 1 passed"));
    }
}

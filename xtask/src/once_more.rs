//! Which kernel tests run a second time, and how that is told.
//!
//! They measure time on machines that stand still without notice: two emulated processors share a real one, and this
//! machine's own kernel runs no program where a thread of the machine's agent happens to be interrupted
//! (docs/decisions/0022). A test that fails runs once more, by itself, and both results are shown: the second one
//! counts, and the report names the test as unstable.
//!
//! What one would get wrong: this is for accidents. Where more than a few fail nothing is repeated, and nothing runs a
//! third time.

use crate::libtest::Tally;

/// More failures than this in one run are no accident.
const MOST: usize = 3;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With the last test.
    ByItself,
    /// In the middle: the guest died, so that the tests behind have not run at all.
    InTheMiddle,
    /// It hung, which would take as long again.
    TooLate,
}

/// What the test binary is told in order to run what did not pass, and nothing else; `None` when that is not to be.
pub fn arguments(tally: &Tally, ended: Ended) -> Option<Vec<String>> {
    let failed = tally.failed.len();
    if failed == 0 || failed > MOST {
        return None;
    }
    let (how, names): (_, Vec<&str>) = match ended {
        Ended::ByItself => (&["--exact"][..], tally.failed.iter().map(String::as_str).collect()),
        Ended::InTheMiddle => {
            (&["--exact", "--skip"][..], tally.outcomes_but_failures().map(|(name, _)| name).collect())
        }
        Ended::TooLate => return None,
    };
    let mut arguments = vec![how[0].to_owned()];
    for name in names {
        arguments.extend(how[1..].iter().map(|word| (*word).to_owned()));
        arguments.push(name.to_owned());
    }
    Some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str], fault: Option<&str>) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.line(line);
        }
        tally.finish(fault);
        tally
    }

    #[test]
    fn what_failed_runs_again_by_name() {
        let tally = tally(&["test a ... ok", "test m::b ... FAILED"], Some("exit status 101"));
        assert_eq!(arguments(&tally, Ended::ByItself), Some(vec!["--exact".to_owned(), "m::b".to_owned()]));
        assert_eq!(arguments(&tally, Ended::TooLate), None);
    }

    #[test]
    fn after_a_death_all_that_had_not_passed_runs() {
        let tally = tally(&["test a ... ok", "test b ... "], Some("the guest died"));
        let expected = ["--exact", "--skip", "a"].map(str::to_owned).to_vec();
        assert_eq!(arguments(&tally, Ended::InTheMiddle), Some(expected));
    }

    #[test]
    fn many_failures_are_no_accident() {
        let failures = ["test a ... FAILED", "test b ... FAILED", "test c ... FAILED", "test d ... FAILED"];
        assert_eq!(arguments(&tally(&failures, None), Ended::ByItself), None);
        assert_eq!(arguments(&tally(&["test a ... ok"], None), Ended::ByItself), None);
    }

    #[test]
    fn the_second_result_counts_and_the_first_is_told() {
        let mut first = tally(&["test a ... ok", "test b ... FAILED", "test c ... "], Some("the guest died"));
        first.run_once_more(tally(&["test b ... ok", "test c ... ok", "test d ... FAILED"], None));
        assert_eq!((first.passed(), &first.failed[..]), (3, &["d".to_owned()][..]));
        assert_eq!(first.unstable, ["b", "c (the guest died)"]);
    }

    #[test]
    fn a_second_run_that_did_not_come_about_changes_nothing() {
        let mut first = tally(&["test a ... ok", "test b ... FAILED"], None);
        first.run_once_more(tally(&[], Some("no such file")));
        assert_eq!((first.passed(), first.failed.len(), first.unstable.len()), (1, 2, 0));
    }
}

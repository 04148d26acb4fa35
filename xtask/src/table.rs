//! `cargo xtask table`: what the kept outputs of the kernel tests say, as one table of scenario by kernel and mode.
//!
//! It stands in docs/TESTING.md between two marks and is replaced there as a whole, and so does that of the packet captures
//! (`capture_table`).
//!
//! What one would get wrong: it runs nothing. It reads what the last `cargo xtask test` of each kernel left in
//! `target/test-output`. A run of which nothing is kept has no column, and is named below the table.

use crate::{
    capture_table::CaptureTable,
    kernel_test::{AGAIN, output_folder, parts_of},
    kernels::Selection,
    libtest::{Outcome, Tally},
    test::Mode,
    workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

const SCENARIOS: &str = "<!-- `cargo xtask table` writes from here -->\n";
const CAPTURES: &str = "<!-- `cargo xtask table` writes the captures from here -->\n";
const END: &str = "<!-- to here -->\n";
/// The live run on this machine's own kernel.
pub const HOST: &str = "host-tracepoint";

/// Where to.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print the table and leave docs/TESTING.md as it is
    #[arg(long)]
    print: bool,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut names = vec![HOST.to_owned()];
    for kernel in Selection::all().0 {
        names.extend(
            [Mode::Fentry, Mode::Kprobe, Mode::Lockdown, Mode::Tracepoint]
                .map(|mode| format!("{kernel}-{}", mode.name())),
        );
    }
    let (mut runs, mut absent) = (Vec::new(), Vec::new());
    let mut captures = CaptureTable::default();
    for name in names {
        match read(&name, &mut captures)? {
            Some(tally) => runs.push((name, tally)),
            None => absent.push(name.replace('-', " ")),
        }
    }
    if runs.is_empty() {
        bail!(
            "no output of any run in {}: `cargo xtask test --kernels all` leaves it there",
            output_folder().display()
        );
    }
    let mut table = table(&runs);
    if !absent.is_empty() {
        let _ = writeln!(table, "No output is kept of {}.\n", absent.join(", "));
    }
    let captures = captures.text();
    if arguments.print {
        print!("{table}{captures}");
        return Ok(());
    }
    let path = workspace::root().join("docs/TESTING.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = replaced(&text, SCENARIOS, &table).and_then(|text| replaced(&text, CAPTURES, &captures));
    let Some(text) = text else {
        bail!("{} has lost the marks between which the tables stand", path.display());
    };
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The text with what stands between this mark and the end mark behind it replaced.
fn replaced(text: &str, begin: &str, by: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    Some(format!("{before}{begin}{by}{END}{}", rest.split_once(END)?.1))
}

/// `None` when nothing is kept of it. What ran again under a filter counts as it was the last time.
fn read(name: &str, captures: &mut CaptureTable) -> Result<Option<Tally>> {
    let whole = output_folder().join(format!("{name}.log"));
    if !whole.exists() {
        return Ok(None);
    }
    let mut tally = parse(&whole, captures)?;
    for part in parts_of(name) {
        let later = parse(&part, captures)?;
        if part.file_name().is_some_and(|file| file == format!("{name}.{AGAIN}.log").as_str()) {
            tally.run_once_more(later);
        } else {
            tally.replace_by(later);
        }
    }
    Ok(Some(tally))
}

fn parse(path: &Path, captures: &mut CaptureTable) -> Result<Tally> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut tally = Tally::default();
    for line in text.lines() {
        tally.line(line);
        captures.line(line);
    }
    tally.finish(None);
    Ok(tally)
}

/// The binary has tests of its own parts too, in modules of that name, and two that are no tests but processes that
/// others start.
fn is_scenario(name: &str) -> bool {
    !name.contains("::tests::")
        && !["peer::peer_process", "unusual_callers::ia32::asks_for_its_number"].contains(&name)
}

fn table(runs: &[(String, Tally)]) -> String {
    let scenarios: BTreeSet<&str> = runs
        .iter()
        .flat_map(|(_, tally)| tally.outcomes().map(|(name, _)| name).filter(|name| is_scenario(name)))
        .collect();
    // In the order of their first use, so that the notes below can be read from the top.
    let mut reasons: Vec<&str> = Vec::new();
    let mut text = String::from("\n| scenario |");
    for (name, _) in runs {
        let _ = write!(text, " {} |", name.replace('-', " "));
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(runs.len()));
    for scenario in scenarios {
        let (room, name) = scenario.split_once("::").unwrap_or(("", scenario));
        let _ = write!(text, "| {room}: {} |", name.replace('_', " "));
        for (_, tally) in runs {
            let cell = match tally.outcomes().find(|(name, _)| *name == scenario).map(|(_, outcome)| outcome)
            {
                Some(Outcome::Passed) if tally.is_unstable(scenario) => "pass, the second time".to_owned(),
                Some(Outcome::Passed) => "pass".to_owned(),
                Some(Outcome::Failed) => "**FAIL**".to_owned(),
                Some(Outcome::Skipped(reason)) => {
                    let place = reasons.iter().position(|known| *known == reason).unwrap_or_else(|| {
                        reasons.push(reason);
                        reasons.len() - 1
                    });
                    format!("({})", place + 1)
                }
                None => "not run".to_owned(),
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text.push_str("\nCannot be seen there, because:\n\n");
    for (place, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "{}. {reason}", place + 1);
    }
    let mut sums: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, outcome) in
        runs.iter().flat_map(|(_, tally)| tally.outcomes()).filter(|(name, _)| is_scenario(name))
    {
        *sums.entry(outcome.word()).or_default() += 1;
    }
    let sums: Vec<String> = sums.iter().map(|(word, count)| format!("{count} {word}")).collect();
    let _ = writeln!(text, "\nTogether: {}.\n", sums.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, lines: &[&str]) -> (String, Tally) {
        let mut tally = Tally::default();
        for line in lines {
            tally.line(line);
        }
        tally.finish(None);
        (name.to_owned(), tally)
    }

    #[test]
    fn what_failed_outside_its_guest_stands_out_and_is_in_the_sum() {
        let lines = ["test w::a ... ok", "test w::a ... FAILED", "test w::b ... "];
        let table = table(&[run("7.2-kprobe", &lines)]);
        assert!(table.contains("| w: a | **FAIL** |") && table.contains("| w: b | **FAIL** |"), "{table}");
        assert!(table.contains("Together: 2 failed."), "{table}");
    }

    #[test]
    fn what_passed_only_when_it_ran_once_more_says_so() {
        let mut first = run("6.1-fentry", &["test w::a ... FAILED"]);
        first.1.run_once_more(run("6.1-fentry", &["test w::a ... ok"]).1);
        assert!(table(&[first]).contains("| w: a | pass, the second time |"));
    }

    #[test]
    fn a_skip_is_a_note_with_its_reason_and_a_failure_stands_out() {
        let runs = [
            run(
                "5.10-fentry",
                &["test a::one_syn ... ok", "test a::two ... FAILED", "test b::c ... SKIP c: no nft", "ok"],
            ),
            run("6.1-kprobe", &["test a::one_syn ... ok"]),
        ];
        let table = table(&runs);
        assert!(table.contains("| scenario | 5.10 fentry | 6.1 kprobe |"), "{table}");
        assert!(table.contains("| a: one syn | pass | pass |"), "{table}");
        assert!(table.contains("| a: two | **FAIL** | not run |"), "{table}");
        assert!(table.contains("| b: c | (1) | not run |") && table.contains("\n1. no nft\n"), "{table}");
        assert!(table.contains("Together: 1 failed, 2 passed, 1 skipped."), "{table}");
    }
}

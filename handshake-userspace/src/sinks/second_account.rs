//! What the summary says of the kernel's own counters: they agree, they disagree and by how much, or why they were
//! not compared.
//!
//! What a newcomer would get wrong: lost events can only be an upper bound. One lost event need not cost a
//! handshake, so what they may account for is told beside the difference and never taken off it.

use std::fmt::{self, Write};

use super::{counted, json::words};
use crate::model::{
    health::Health,
    mib::{Compared, Difference, NotCompared, Reconciliation, Tally},
};

/// So many namespaces are named; the `health` record has more.
const NAMED: usize = 3;

/// The lines, each ended; none when the kernel's counters were never read.
pub(super) fn write(health: &Health, out: &mut String) -> fmt::Result {
    let Some(compared) = &health.reconciliation else { return Ok(()) };
    match (compared.not_compared, compared.agrees()) {
        (Some(reason), _) => writeln!(out, "kernel counters not compared: {}", because(reason))?,
        (None, None) => {
            write!(out, "kernel counters not compared: no network namespace could be read to the end")?;
            return left_out(compared, out);
        }
        (None, Some(true)) => {
            let rows: Vec<String> =
                compared.compared().map(|(tally, row)| tallied(row.kernel, tally)).collect();
            write!(out, "kernel counters agree: {}", rows.join(", "))?;
            return left_out(compared, out);
        }
        (None, Some(false)) => {
            let (same, differ): (Vec<_>, Vec<_>) =
                compared.compared().partition(|(_, row)| row.missing == 0 && row.surplus == 0);
            let rows: Vec<String> = differ.into_iter().map(|(tally, row)| both(tally, row)).collect();
            write!(out, "kernel counters disagree: the kernel counted {}", rows.join(", and "))?;
            left_out(compared, out)?;
            account_for(health, compared, out)?;
            where_they_differ(&compared.differences, out)?;
            let same: Vec<String> = same.into_iter().map(|(tally, row)| tallied(row.kernel, tally)).collect();
            if !same.is_empty() {
                writeln!(out, "  they agree on {}", same.join(", "))?;
            }
        }
    }
    Ok(())
}

fn tallied(count: u64, tally: Tally) -> String {
    let plural = words::tally(tally).replace('_', " ");
    counted(count, plural.trim_end_matches('s'))
}

const fn because(reason: NotCompared) -> &'static str {
    match reason {
        NotCompared::Filtered => {
            "a filter leaves handshakes out, and they do not (--netns alone can be compared)"
        }
        NotCompared::StoppedEarly => "the run ended at a limit before all that had happened was looked at",
        NotCompared::NotYet => "they were read only once",
    }
}

fn left_out(compared: &Reconciliation, out: &mut String) -> fmt::Result {
    if compared.namespaces != 0 {
        write!(out, "; in {}", counted(compared.namespaces, "network namespace"))?;
    }
    if compared.left_out != 0 {
        write!(
            out,
            "; {} began or ended meanwhile, or could not be read",
            counted(compared.left_out, "network namespace")
        )?;
    }
    writeln!(out)
}

/// `1204 active opens, 1198 were seen (6 missing)`
fn both(tally: Tally, row: Compared) -> String {
    let verb = if row.seen == 1 { "was" } else { "were" };
    format!("{}, {} {verb} seen{}", tallied(row.kernel, tally), row.seen, by_how_much(row))
}

fn by_how_much(row: Compared) -> String {
    match (row.missing, row.surplus) {
        (0, 0) => String::new(),
        (missing, 0) => format!(" ({missing} missing)"),
        (0, surplus) => format!(" ({surplus} too many)"),
        (missing, surplus) => format!(" ({missing} missing, {surplus} too many)"),
    }
}

fn account_for(health: &Health, compared: &Reconciliation, out: &mut String) -> fmt::Result {
    let missing = compared.missing();
    let (lost, skipped) = (health.lost_before_the_tracker(), health.missed_probes.unwrap_or(0));
    if missing == 0 {
        return Ok(());
    }
    let mut causes = Vec::new();
    if lost != 0 {
        causes.push(counted(lost, "lost event"));
    }
    if skipped != 0 {
        causes.push(format!("{} that the kernel skipped", counted(skipped, "hit")));
    }
    if causes.is_empty() {
        return writeln!(out, "  nothing that was lost accounts for it; please report this with a recording");
    }
    match health.unexplained() {
        0 => writeln!(out, "  {} may account for it", causes.join(" and ")),
        unexplained => writeln!(
            out,
            "  {} can account for no more than {} of the missing: {unexplained} unexplained",
            causes.join(" and "),
            missing - unexplained
        ),
    }
}

fn where_they_differ(differences: &[Difference], out: &mut String) -> fmt::Result {
    let Some(first) = differences.first() else { return Ok(()) };
    if differences.iter().all(|difference| difference.netns == first.netns) {
        return writeln!(out, "  all of it in network namespace {}", first.netns);
    }
    for difference in differences.iter().take(NAMED) {
        let row = both(difference.tally, difference.compared);
        writeln!(out, "  in network namespace {}: {row}", difference.netns)?;
    }
    if differences.len() > NAMED {
        writeln!(out, "  and more of them: see the `health` record (--json)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::health::TrackerCounts;

    fn row(kernel: u64, seen: u64) -> Option<Compared> {
        let (missing, surplus) = (kernel.saturating_sub(seen), seen.saturating_sub(kernel));
        Some(Compared { kernel, seen, missing, surplus })
    }

    fn said(reconciliation: Reconciliation, ring_full: u64) -> String {
        let health = Health {
            reconciliation: Some(reconciliation),
            kernel: [("ring_full", ring_full)].into(),
            tracker: TrackerCounts::default(),
            ..Health::default()
        };
        let mut text = String::new();
        write(&health, &mut text).unwrap();
        text
    }

    #[test]
    fn agreement_is_one_line() {
        let compared = Reconciliation {
            namespaces: 4,
            left_out: 1,
            tallies: [row(1204, 1204), row(1, 1), row(0, 0), None],
            ..Reconciliation::default()
        };
        assert_eq!(
            said(compared, 0),
            "kernel counters agree: 1204 active opens, 1 passive open, 0 failed opens; in 4 network namespaces; \
             1 network namespace began or ended meanwhile, or could not be read\n"
        );
    }

    #[test]
    fn disagreement_says_by_how_much_and_where() {
        let compared = Reconciliation {
            namespaces: 1,
            tallies: [row(1204, 1198), row(611, 612), row(3, 3), None],
            differences: vec![
                Difference { netns: 9, tally: Tally::ActiveOpens, compared: row(7, 1).unwrap() },
                Difference { netns: 8, tally: Tally::PassiveOpens, compared: row(0, 1).unwrap() },
            ],
            ..Reconciliation::default()
        };
        assert_eq!(
            said(compared.clone(), 4),
            "kernel counters disagree: the kernel counted 1204 active opens, 1198 were seen (6 missing), and 611 \
             passive opens, 612 were seen (1 too many); in 1 network namespace\n  \
             4 lost events can account for no more than 4 of the missing: 2 unexplained\n  \
             in network namespace 9: 7 active opens, 1 was seen (6 missing)\n  \
             in network namespace 8: 0 passive opens, 1 was seen (1 too many)\n  \
             they agree on 3 failed opens\n"
        );
        assert!(said(compared.clone(), 6).contains("\n  6 lost events may account for it\n"));
        assert!(said(compared, 0).contains("nothing that was lost accounts for it"));
    }

    #[test]
    fn what_was_not_compared_has_a_reason() {
        let text = said(Reconciliation::without(NotCompared::Filtered), 0);
        assert!(text.starts_with("kernel counters not compared: a filter "), "{text}");
        let text = said(Reconciliation { left_out: 2, ..Reconciliation::default() }, 0);
        assert!(text.contains("could be read to the end; 2 network namespaces"), "{text}");
    }
}

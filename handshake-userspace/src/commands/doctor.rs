//! `doctor`: hook by hook what works on this kernel, how, and what is not shown without it.
//!
//! It only renders a report that `kernel` made by trying. What a newcomer would get wrong: a missing hook is
//! no failure of doctor, so the exit code is 0 as long as tracing works at all.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use serde::Serialize;

use super::live::attach_name;
use crate::{
    cli::plan::Plan,
    kernel::{self, HookStatus},
};

/// What was found out.
#[derive(Debug)]
pub struct Report {
    /// `uname -r`.
    pub kernel_release: String,
    /// `uname -m`.
    pub architecture: String,
    /// Every hook of the hook table.
    pub hooks: Vec<HookStatus>,
    /// Anything else worth knowing, one sentence each.
    pub notes: Vec<String>,
}

/// Makes the report and prints it.
pub fn run(plan: &Plan) -> anyhow::Result<ExitCode> {
    let hooks = super::runtime()?.block_on(async { kernel::start(&plan.trace).map(|trace| trace.hooks) })?;
    let system = rustix::system::uname();
    let report = Report {
        kernel_release: system.release().to_string_lossy().into_owned(),
        architecture: system.machine().to_string_lossy().into_owned(),
        hooks,
        notes: Vec::new(),
    };
    let text = if plan.output.json { json(&report)? } else { text(&report, plan.verbosity) };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        written => written.map(|()| ExitCode::SUCCESS).context("standard output"),
    }
}

/// The report as a table; with `verbosity`, also what was tried in vain.
pub fn text(report: &Report, verbosity: u8) -> String {
    let rows: Vec<[String; 4]> = report
        .hooks
        .iter()
        .map(|hook| {
            [
                hook.hook.to_owned(),
                hook.attached.map_or("-", attach_name).to_owned(),
                if hook.symbols.is_empty() { "-".to_owned() } else { hook.symbols.join(", ") },
                if hook.attached.is_some() { String::new() } else { hook.without_it.to_owned() },
            ]
        })
        .collect();
    let titles = ["HOOK", "ATTACHED", "SYMBOL", "NOT SHOWN WITHOUT IT"].map(str::to_owned);
    let width =
        |at: usize| rows.iter().chain([&titles]).map(|row| row[at].chars().count()).max().unwrap_or(0);
    let (hook, attached, symbol) = (width(0), width(1), width(2));
    let mut out = format!("kernel {} on {}\n\n", report.kernel_release, report.architecture);
    for (at, row) in [&titles].into_iter().chain(&rows).enumerate() {
        let [name, how, symbols, without] = row;
        let line = format!("{name:<hook$}  {how:<attached$}  {symbols:<symbol$}  {without}");
        out.push_str(line.trim_end());
        out.push('\n');
        // The first row is the titles, so the hooks are counted from 1.
        let tried = at.checked_sub(1).and_then(|at| report.hooks.get(at)).map(|hook| &hook.tried);
        for attempt in tried.into_iter().flatten().filter(|_| verbosity != 0) {
            out.push_str(&format!("    {attempt}\n"));
        }
    }
    let missing = report.hooks.iter().filter(|hook| hook.attached.is_none()).count();
    out.push_str(&match missing {
        0 => format!("\nall {} hooks work\n", report.hooks.len()),
        _ => format!("\n{} of {} hooks work\n", report.hooks.len() - missing, report.hooks.len()),
    });
    for note in &report.notes {
        out.push_str(note);
        out.push('\n');
    }
    out
}

/// The report as one JSON object on one line.
pub fn json(report: &Report) -> anyhow::Result<String> {
    let wire = Wire {
        schema: 1,
        kind: "doctor",
        kernel: &report.kernel_release,
        architecture: &report.architecture,
        hooks: report
            .hooks
            .iter()
            .map(|hook| WireHook {
                hook: hook.hook,
                attached: hook.attached.map(attach_name),
                symbols: &hook.symbols,
                tried: &hook.tried,
                without_it: hook.without_it,
            })
            .collect(),
        notes: &report.notes,
    };
    let mut line = serde_json::to_string(&wire)?;
    line.push('\n');
    Ok(line)
}

#[derive(Serialize)]
struct Wire<'a> {
    schema: u32,
    kind: &'static str,
    kernel: &'a str,
    architecture: &'a str,
    hooks: Vec<WireHook<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct WireHook<'a> {
    hook: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attached: Option<&'static str>,
    symbols: &'a [&'static str],
    tried: &'a [String],
    without_it: &'a str,
}

#[cfg(test)]
mod tests {
    use handshake_common::event::Attach;

    use super::*;

    fn report() -> Report {
        Report {
            kernel_release: "6.12.0".to_owned(),
            architecture: "x86_64".to_owned(),
            hooks: vec![
                HookStatus {
                    hook: "syn_sent",
                    attached: Some(Attach::Fentry),
                    symbols: vec!["tcp_connect"],
                    tried: vec![],
                    without_it: "active opens",
                },
                HookStatus {
                    hook: "accept_waiting",
                    attached: None,
                    symbols: vec![],
                    tried: vec!["fentry inet_csk_accept: no such function".to_owned()],
                    without_it: "when accept() began to wait",
                },
            ],
            notes: vec!["lockdown: none".to_owned()],
        }
    }

    #[test]
    fn a_missing_hook_says_what_is_lost() {
        assert_eq!(
            text(&report(), 0),
            "kernel 6.12.0 on x86_64\n\
             \n\
             HOOK            ATTACHED  SYMBOL       NOT SHOWN WITHOUT IT\n\
             syn_sent        fentry    tcp_connect\n\
             accept_waiting  -         -            when accept() began to wait\n\
             \n\
             1 of 2 hooks work\n\
             lockdown: none\n"
        );
        assert!(text(&report(), 1).contains("\n    fentry inet_csk_accept: no such function\n"));
    }

    #[test]
    fn the_report_is_machine_readable() {
        assert_eq!(
            json(&report()).unwrap(),
            concat!(
                r#"{"schema":1,"kind":"doctor","kernel":"6.12.0","architecture":"x86_64","hooks":["#,
                r#"{"hook":"syn_sent","attached":"fentry","symbols":["tcp_connect"],"tried":[],"#,
                r#""without_it":"active opens"},"#,
                r#"{"hook":"accept_waiting","symbols":[],"tried":["fentry inet_csk_accept: no such function"],"#,
                r#""without_it":"when accept() began to wait"}],"notes":["lockdown: none"]}"#,
                "\n"
            )
        );
    }
}

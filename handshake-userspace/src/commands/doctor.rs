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

use crate::{
    cli::plan::Plan,
    kernel::{self, doctor::DoctorReport},
};

/// Makes the report and prints it.
pub fn run(plan: &Plan) -> anyhow::Result<ExitCode> {
    let report = super::runtime()?.block_on(async { kernel::doctor::report(&plan.trace) })?;
    let text = if plan.output.json { json(&report)? } else { text(&report, plan.verbosity) };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        written => written.map(|()| ExitCode::SUCCESS).context("standard output"),
    }
}

/// The report as a table; with `verbosity`, also what was tried in vain.
pub fn text(report: &DoctorReport, verbosity: u8) -> String {
    let rows: Vec<[String; 4]> = report
        .hooks
        .iter()
        .map(|hook| {
            [
                hook.hook.to_owned(),
                hook.attached.map_or("-", kernel::name).to_owned(),
                if hook.symbols.is_empty() { "-".to_owned() } else { hook.symbols.join(", ") },
                if hook.attached.is_some() { hook.lacks.clone() } else { hook.without_it.to_owned() },
            ]
        })
        .collect();
    let titles = ["HOOK", "ATTACHED", "SYMBOL", "NOT SHOWN"].map(str::to_owned);
    let width =
        |at: usize| rows.iter().chain([&titles]).map(|row| row[at].chars().count()).max().unwrap_or(0);
    let (hook, attached, symbol) = (width(0), width(1), width(2));
    let lockdown =
        if report.locked_down { "; lockdown=confidentiality: no kernel memory may be copied" } else { "" };
    let mut out = format!(
        "kernel {} on {}, {} CPUs{lockdown}\nkernel side built with {}\n\n",
        report.kernel_release, report.architecture, report.cpus, report.built_with
    );
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
    out.push_str(&format!("canary {}\n", report.canary));
    let taxed = report
        .hooks
        .iter()
        .any(|hook| hook.attached.is_some() && hook.symbols.iter().any(|symbol| symbol.starts_with("sys_")));
    if taxed {
        out.push_str(SYSTEM_CALL_TAX);
    }
    for missing in &report.missing_fields {
        out.push_str(&format!(
            "no {} ({}): not shown: {}\n",
            missing.field, missing.reason, missing.without_it
        ));
    }
    out
}

/// The kernel then takes the slow way into and out of every system call, of whatever process.
const SYSTEM_CALL_TAX: &str = "system call tracepoints are on: every system call of this host takes longer while \
                               we trace (measured once: 119 ns became 151 ns)\n";

/// The report as one JSON object on one line.
pub fn json(report: &DoctorReport) -> anyhow::Result<String> {
    let wire = Wire {
        schema: 1,
        kind: "doctor",
        kernel: &report.kernel_release,
        architecture: &report.architecture,
        cpus: report.cpus,
        locked_down: report.locked_down,
        built_with: report.built_with,
        canary: WireCanary { result: report.canary.kind().word(), says: report.canary.to_string() },
        hooks: report
            .hooks
            .iter()
            .map(|hook| WireHook {
                hook: hook.hook,
                attached: hook.attached.map(kernel::name),
                symbols: &hook.symbols,
                tried: &hook.tried,
                without_it: hook.without_it,
                lacks: &hook.lacks,
            })
            .collect(),
        missing_fields: report
            .missing_fields
            .iter()
            .map(|missing| WireField {
                field: missing.field,
                reason: &missing.reason,
                without_it: missing.without_it,
            })
            .collect(),
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
    cpus: usize,
    locked_down: bool,
    built_with: &'a str,
    canary: WireCanary,
    hooks: Vec<WireHook<'a>>,
    missing_fields: Vec<WireField<'a>>,
}

#[derive(Serialize)]
struct WireCanary {
    result: &'static str,
    says: String,
}

#[derive(Serialize)]
struct WireField<'a> {
    field: &'a str,
    reason: &'a str,
    without_it: &'a str,
}

#[derive(Serialize)]
struct WireHook<'a> {
    hook: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attached: Option<&'static str>,
    symbols: &'a [&'static str],
    tried: &'a [String],
    without_it: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    lacks: &'a str,
}

#[cfg(test)]
mod tests {
    use handshake_common::event::Attach;

    use super::*;
    use crate::kernel::{HookStatus, doctor::MissingField};

    fn report() -> DoctorReport {
        DoctorReport {
            kernel_release: "6.12.0".to_owned(),
            architecture: "x86_64".to_owned(),
            built_with: "rustc 1.95",
            locked_down: false,
            cpus: 4,
            canary: kernel::CanaryResult::Passed(3),
            hooks: vec![
                HookStatus {
                    hook: "syn_sent",
                    attached: Some(Attach::Fentry),
                    symbols: vec!["tcp_connect"],
                    tried: vec![],
                    without_it: "active opens",
                    lacks: String::new(),
                },
                HookStatus {
                    hook: "accept_waiting",
                    attached: None,
                    symbols: vec![],
                    tried: vec!["fentry inet_csk_accept: no such function".to_owned()],
                    without_it: "when accept() began to wait",
                    lacks: String::new(),
                },
            ],
            missing_fields: vec![MissingField {
                field: "tcp_sock.syn_fastopen",
                reason: "no such member".to_owned(),
                without_it: "Fast Open",
            }],
        }
    }

    #[test]
    fn a_missing_hook_says_what_is_lost() {
        assert_eq!(
            text(&report(), 0),
            "kernel 6.12.0 on x86_64, 4 CPUs\n\
             kernel side built with rustc 1.95\n\
             \n\
             HOOK            ATTACHED  SYMBOL       NOT SHOWN\n\
             syn_sent        fentry    tcp_connect\n\
             accept_waiting  -         -            when accept() began to wait\n\
             \n\
             1 of 2 hooks work\n\
             canary passed: ends, process, namespace, ISNs, outcome and times of 3 loopback handshakes were reported \
             right\n\
             no tcp_sock.syn_fastopen (no such member): not shown: Fast Open\n"
        );
        assert!(text(&report(), 1).contains("\n    fentry inet_csk_accept: no such function\n"));
    }

    #[test]
    fn the_report_is_machine_readable() {
        assert_eq!(
            json(&report()).unwrap(),
            concat!(
                r#"{"schema":1,"kind":"doctor","kernel":"6.12.0","architecture":"x86_64","cpus":4,"#,
                r#""locked_down":false,"built_with":"rustc 1.95","#,
                r#""canary":{"result":"passed","says":"passed: ends, process, namespace, ISNs, outcome and times of "#,
                r#"3 loopback handshakes were reported right"},"hooks":["#,
                r#"{"hook":"syn_sent","attached":"fentry","symbols":["tcp_connect"],"tried":[],"#,
                r#""without_it":"active opens"},"#,
                r#"{"hook":"accept_waiting","symbols":[],"tried":["fentry inet_csk_accept: no such function"],"#,
                r#""without_it":"when accept() began to wait"}],"missing_fields":["#,
                r#"{"field":"tcp_sock.syn_fastopen","reason":"no such member","without_it":"Fast Open"}]}"#,
                "\n"
            )
        );
    }
}

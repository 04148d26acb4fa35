//! `trace` and `record`: from the running kernel to the sinks.
//!
//! What a newcomer would get wrong: the line `tracing: ...` on stderr is a contract. Scripts wait for it,
//! because a handshake before it may not have been seen, so it is written even with `--quiet`.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, Permissions},
    future,
    io::{self, IsTerminal},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use handshake_common::event::{ABI_VERSION, Attach};

use super::output;
use crate::{
    cli::plan::Plan,
    kernel::{self, CanaryResult, Cgroup, HookStatus},
    model::drop_reasons::DropReasons,
    pipeline::{self, Feed, WhenFull, filter::Gate, notice, shutdown},
    source::{
        live::LiveSource,
        recording::{
            format::{RecordedCgroup, RecordingHeader, boot_number},
            writer::Recorder,
        },
    },
};

/// Traces until told to stop; with a path, keeps the raw events there.
pub fn run(plan: Plan, recording: Option<&Path>) -> anyhow::Result<ExitCode> {
    let records_on_stdout = recording.is_none() || !plan.output.quiet;
    let sinks = output::sinks(&plan, records_on_stdout)?;
    let file = recording
        .map(|path| open(path).with_context(|| format!("the recording {} cannot be created", path.display())))
        .transpose()?;
    let ending = super::runtime()?.block_on(async {
        let (stop, reopen) =
            shutdown::install(plan.output.file.is_some()).context("signals cannot be caught")?;
        let trace = kernel::start(&plan.trace)?;
        let hooks = &trace.hooks;
        let header = RecordingHeader {
            hooks: hook_texts(hooks),
            drop_reasons: reason_texts(&trace.drop_reasons),
            canary: Some(trace.canary.kind()),
            cgroups: recorded(&plan.trace.cgroups),
            ..header()
        };
        let recorder = file
            .map(|file| empty(&file).and_then(|()| Recorder::start(file, &header)))
            .transpose()
            .context("the recording cannot be written")?;
        if let Some(warning) = kernel::pid_namespace_warning() {
            notice::warn(warning);
        }
        notice::say(&tracing_line(hooks, trace.cpus, trace.ring_bytes));
        match &trace.canary {
            CanaryResult::NotRun(_) => notice::warn(&format!("canary {}", trace.canary)),
            _ => log::info!("canary {}", trace.canary),
        }
        for hook in hooks.iter().filter(|hook| trace.silent_hooks.contains(&hook.hook)) {
            notice::warn(&format!("hook {} is attached, and {}", hook.hook, hook.lacks));
        }
        for line in not_shown(hooks).into_iter().filter(|_| plan.verbosity != 0) {
            notice::say(&line);
        }
        let time_is_up = async {
            match plan.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => future::pending().await,
            }
        };
        let shutdown = async {
            tokio::select! {
                () = stop => {}
                () = time_is_up => {}
            }
        };
        let flow = pipeline::Plan {
            boot: header.boot(),
            drop_reasons: trace.drop_reasons.clone(),
            canary: header.canary,
            waiting: waiting(&plan),
            gate: Gate::new(plan.filter.clone(), plan.tail),
            count: plan.count,
            stream_limit_ns: None,
            when_full: WhenFull::Drop,
        };
        let feed = Feed { source: LiveSource::new(trace), recorder };
        let ending = pipeline::run(feed, flow, sinks, shutdown, reopen).await;
        ending.context("the pipeline cannot start")
    })?;
    output::finish(&plan.output, ending)
}

/// A recording holds sequence numbers of live connections, so it is for its owner only. One that is there
/// already keeps its contents until tracing has begun.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes room for the new recording. A pipe or a device has neither a length nor a mode of ours.
fn empty(file: &File) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)
}

fn header() -> RecordingHeader {
    let system = rustix::system::uname();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot_number(&boot_id) == 0 {
        log::warn!("the boot id cannot be read; keys of records begin with 0");
    }
    RecordingHeader {
        kernel_release: system.release().to_string_lossy().into_owned(),
        architecture: system.machine().to_string_lossy().into_owned(),
        boot_id: boot_id.trim().to_owned(),
        abi_version: ABI_VERSION,
        hooks: Vec::new(),
        drop_reasons: Vec::new(),
        canary: None,
        cgroups: Vec::new(),
    }
}

fn reason_texts(reasons: &DropReasons) -> Vec<(u32, String)> {
    reasons.names().iter().map(|(number, name)| (*number, name.to_string())).collect()
}

fn recorded(cgroups: &[Cgroup]) -> Vec<RecordedCgroup> {
    let recorded = |cgroup: &Cgroup| RecordedCgroup {
        id: cgroup.id,
        path: cgroup.path.to_string_lossy().into_owned(),
        typed: cgroup.typed.clone(),
    };
    cgroups.iter().map(recorded).collect()
}

fn hook_texts(hooks: &[HookStatus]) -> Vec<(String, String)> {
    hooks
        .iter()
        .map(|hook| {
            let attached = hook.attached.map_or("missing", kernel::name);
            (hook.hook.to_owned(), format!("{attached} {}", hook.symbols.join(" ")).trim_end().to_owned())
        })
        .collect()
}

/// `tracing: fentry on 19 of 20 hooks, 4 CPUs, 1 MiB ring; missing: accept_waiting`
fn tracing_line(hooks: &[HookStatus], cpus: usize, ring_bytes: u32) -> String {
    let mut by_mode: BTreeMap<Attach, usize> = BTreeMap::new();
    for attach in hooks.iter().filter_map(|hook| hook.attached) {
        *by_mode.entry(attach).or_default() += 1;
    }
    let attached: usize = by_mode.values().sum();
    // BTF tracepoints belong to every mode and the snapshot is no hook: neither says how we trace.
    by_mode.remove(&Attach::Common);
    if by_mode.len() > 1 && hooks.iter().filter(|hook| hook.attached == Some(Attach::Tracepoint)).count() == 1
    {
        by_mode.remove(&Attach::Tracepoint);
    }
    let modes: Vec<&str> = by_mode.keys().map(|attach| kernel::name(*attach)).collect();
    let mut line = format!("tracing: {} on {attached} of {} hooks", modes.join(" and "), hooks.len());
    if cpus != 0 {
        line.push_str(&format!(", {cpus} CPUs"));
    }
    line.push_str(&format!(", {} KiB ring", ring_bytes / 1024));
    let missing: Vec<&str> =
        hooks.iter().filter(|hook| hook.attached.is_none()).map(|hook| hook.hook).collect();
    if !missing.is_empty() {
        line.push_str(&format!("; missing: {} (see `handshake doctor`)", missing.join(", ")));
    }
    line
}

fn not_shown(hooks: &[HookStatus]) -> Vec<String> {
    hooks
        .iter()
        .filter(|hook| hook.attached.is_none())
        .map(|hook| format!("  without {}: {}", hook.hook, hook.without_it))
        .collect()
}

fn waiting(plan: &Plan) -> Option<String> {
    if plan.output.quiet || !io::stderr().is_terminal() {
        return None;
    }
    // `--own` shows more, not less.
    let filter = pipeline::filter::RecordFilter { own: false, ..plan.filter.clone() };
    let all = filter == pipeline::filter::RecordFilter::default();
    let mut only = Vec::new();
    if plan.tail.failed {
        only.push("failed");
    }
    if plan.tail.slow_ns.is_some() {
        only.push("slow");
    }
    if plan.tail.slow_accept_ns.is_some() {
        only.push("slowly accepted");
    }
    let which = if only.is_empty() { String::new() } else { format!("{} ", only.join(" or ")) };
    Some(match (all, only.is_empty()) {
        (true, true) => "waiting: no handshake yet; `cargo xtask demo` makes some".to_owned(),
        (true, false) => format!("waiting: no {which}handshake yet"),
        (false, _) => format!("waiting: no {which}handshake yet that the filters let through"),
    })
}

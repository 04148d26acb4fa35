//! `replay`: a recording through the very same pipeline, without privilege.
//!
//! What a newcomer would get wrong: `--duration` is time of the recording. A replay runs as fast as it can
//! and waits for slow sinks, so nothing is dropped.

use std::{fs::File, path::Path, process::ExitCode, sync::Arc};

use anyhow::{Context, bail};

use super::output;
use crate::{
    cli::plan::{Plan, nanoseconds},
    model::{drop_reasons::DropReasons, process::SafeText},
    pipeline::{
        self, Feed, WhenFull,
        filter::{Gate, RecordFilter},
        notice, shutdown,
    },
    source::recording::{
        RecordingSource,
        format::{RecordedCgroup, RecordingHeader},
        reader::Ending,
    },
};

/// Shows what was recorded.
pub fn run(plan: Plan, path: &Path) -> anyhow::Result<ExitCode> {
    let file = File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    let source = RecordingSource::open(file).with_context(|| path.display().to_string())?;
    let sinks = output::sinks(&plan, true)?;
    let boot = source.header().boot();
    let named = source.header().drop_reasons.iter();
    let drop_reasons = DropReasons::from_names(named.map(|(number, name)| {
        // A recording is any file: what it calls a reason is shown, so it is made safe to show.
        (*number, Arc::from(SafeText::from_kernel_bytes(name.as_bytes()).as_str()))
    }));
    let filter = RecordFilter { cgroups: cgroups(&plan.cgroups, source.header())?, ..plan.filter.clone() };
    let oddities = source.ending();
    let ending = super::runtime()?.block_on(async {
        let (stop, reopen) =
            shutdown::install(plan.output.file.is_some()).context("signals cannot be caught")?;
        let flow = pipeline::Plan {
            boot,
            drop_reasons,
            gate: Gate::new(filter, plan.tail),
            count: plan.count,
            stream_limit_ns: plan.duration.map(nanoseconds),
            when_full: WhenFull::Wait,
            waiting: None,
            canary: source.header().canary,
        };
        let feed = Feed { source, recorder: None };
        let ending = pipeline::run(feed, flow, sinks, stop, reopen).await;
        ending.context("the pipeline cannot start")
    })?;
    let stopped_early = plan.count.is_some() || plan.duration.is_some();
    if let Some(oddities) = oddities.get()
        && !stopped_early
        && ending.source_failed.is_none()
    {
        tell(oddities);
    }
    output::finish(&plan.output, ending).with_context(|| path.display().to_string())
}

/// The bits of the cgroups that are asked for. A recording knows only those that it was made with: which cgroup lies in
/// which is nowhere in it.
fn cgroups(asked: &[String], header: &RecordingHeader) -> anyhow::Result<Option<u32>> {
    if asked.is_empty() {
        return Ok(None);
    }
    let mut bits = 0;
    for text in asked {
        let is_asked = |cgroup: &RecordedCgroup| {
            *text == cgroup.typed
                || text.parse() == Ok(cgroup.id)
                || text.strip_prefix("0::").unwrap_or(text) == cgroup.path
        };
        let Some(bit) = header.cgroups.iter().position(is_asked) else {
            let known: Vec<String> =
                header.cgroups.iter().map(|known| format!("{} ({})", known.path, known.id)).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            bail!(
                "--cgroup {text}: a recording knows only the cgroups that `record --cgroup` was given, and this one knows \
                 {}; `process.cgroup_id` of its records (--json) is the innermost one",
                SafeText::from_kernel_bytes(known.as_bytes())
            );
        };
        bits |= 1 << bit;
    }
    Ok(Some(bits))
}

fn tell(oddities: &Ending) {
    if oddities.missing_frames != 0 {
        notice::warn(&format!(
            "the recorder could not keep up: {} items are missing",
            oddities.missing_frames
        ));
    }
    if oddities.unknown_frames != 0 {
        notice::warn(&format!(
            "{} parts of the recording are of a later version and were skipped",
            oddities.unknown_frames
        ));
    }
    if !oddities.complete {
        notice::warn("the recording has no end: its recorder was killed, or still writes");
    }
}

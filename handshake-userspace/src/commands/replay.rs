//! `replay`: a recording through the very same pipeline, without privilege.
//!
//! What a newcomer would get wrong: `--duration` is time of the recording. A replay runs as fast as it can
//! and waits for slow sinks, so nothing is dropped.

use std::{fs::File, path::Path, process::ExitCode, sync::Arc};

use anyhow::Context;

use super::output;
use crate::{
    cli::plan::{Plan, nanoseconds},
    model::{drop_reasons::DropReasons, process::SafeText},
    pipeline::{self, Feed, WhenFull, filter::Gate, notice, shutdown},
    source::recording::{RecordingSource, reader::Ending},
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
    let oddities = source.ending();
    let ending = super::runtime()?.block_on(async {
        let (stop, reopen) =
            shutdown::install(plan.output.file.is_some()).context("signals cannot be caught")?;
        let flow = pipeline::Plan {
            boot,
            drop_reasons,
            gate: Gate::new(plan.filter.clone(), plan.tail),
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

//! The flow, from a source to the sinks: record what came, decode, track, filter, fan out.
//!
//! ```text
//! source --SourceItem--> [recorder] -> stage (decode -> tracker -> gate) --Record--> fan_out --> sinks
//! ```
//!
//! `stage` is synchronous and pure but for its log, so the same items give the same records; everything that
//! waits is here and in `fan_out`. What a newcomer would get wrong: shutdown is a parameter. A signal, the
//! end of `--duration` and a test all end the pipeline the same way: it drains the source, tells the tracker
//! that nothing more comes, and writes `health` last.

pub mod fan_out;
pub mod filter;
pub mod health;
pub mod notice;
pub mod shutdown;
mod stage;
mod wall_clock;

use std::{io, pin::pin};

use tokio::sync::mpsc;

pub use self::fan_out::WhenFull;
use self::{fan_out::FanOut, filter::Gate, stage::Stage};
use crate::{
    kernel::KernelCounters,
    model::health::Health,
    sinks::{Record, Sink, summary::Summary},
    source::{CounterReading, EventSource, SourceError, SourceItem, recording::writer::Recorder},
};

/// How often the kernel side's counters are read: often enough that loss is told while it happens, seldom
/// enough that thousands of CPUs cost nothing.
const COUNTERS_EVERY_NS: u64 = 1_000_000_000;

/// What flows in.
pub struct Feed<S> {
    /// Events, ticks and anchors.
    pub source: S,
    /// The kernel side's counters, for a live source. A recording has them among its items.
    pub counters: Option<KernelCounters>,
    /// Keeps everything that came in.
    pub recorder: Option<Recorder>,
}

/// What to do with it.
#[derive(Debug)]
pub struct Plan {
    /// For the keys of records: from the boot id of the kernel that made the events.
    pub boot: u32,
    /// Which records to show.
    pub gate: Gate,
    /// End after this many handshake records.
    pub count: Option<u64>,
    /// End after this much time of the source's own clock (a recording's, not today's).
    pub stream_limit_ns: Option<u64>,
    /// What to do when a sink is too slow.
    pub when_full: WhenFull,
    /// Said once on stderr when nothing has come for five seconds.
    pub waiting: Option<String>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ending {
    /// The whole accounting.
    pub health: Health,
    /// Totals and percentiles.
    pub summary: Summary,
    /// Why the source could give no more, if that was an error.
    pub source_failed: Option<SourceError>,
    /// Why the recording could not be written.
    pub recording_failed: Option<io::Error>,
}

/// Runs until the source ends, `shutdown` is ready, the plan's limits are reached or nobody reads any more.
/// Each message of `reopen` makes the sinks reopen their files.
pub async fn run<S: EventSource>(
    mut feed: Feed<S>,
    plan: Plan,
    sinks: Vec<Box<dyn Sink>>,
    shutdown: impl Future<Output = ()>,
    mut reopen: mpsc::Receiver<()>,
) -> io::Result<Ending> {
    let mut fan_out = FanOut::start(sinks, plan.when_full)?;
    let mut intake = Intake { counters: feed.counters, recorder: feed.recorder, counters_read_ns: None };
    let mut stage = Stage::new(plan);
    let mut batch = Vec::new();
    let mut source_failed = None;
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            () = fan_out.closed() => break,
            Some(()) = reopen.recv() => fan_out.reopen(),
            more = feed.source.next_batch(&mut batch) => match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    source_failed = Some(error);
                    break;
                }
            },
        }
        process(&mut batch, &mut intake, &mut stage, &mut fan_out).await;
        if stage.is_done() {
            break;
        }
    }
    if let Err(error) = feed.source.drain(&mut batch) {
        source_failed.get_or_insert(error);
    }
    // The hooks go with the source: from here on the host pays nothing for us, however slow the sinks are.
    drop(feed.source);
    if intake.counters.is_some() {
        batch.push(SourceItem::Tick { now_ns: monotonic_ns() });
    }
    intake.counters_read_ns = None;
    process(&mut batch, &mut intake, &mut stage, &mut fan_out).await;
    let mut records = Vec::new();
    stage.end(&mut records);
    for record in records {
        fan_out.publish(record).await;
    }
    let dropped_by_recorder = intake.recorder.as_ref().map_or(0, Recorder::dropped);
    let recording_failed = intake.recorder.and_then(|recorder| recorder.finish().err());
    let health = stage.health(fan_out.dropped() + dropped_by_recorder);
    fan_out.publish_last(Record::Health(Box::new(health), stage.wall_time())).await;
    let dropped = fan_out.finish().await;
    let health = stage.health(dropped + dropped_by_recorder);
    Ok(Ending { health, summary: stage.into_summary(), source_failed, recording_failed })
}

/// What stands between the source and the stage.
struct Intake {
    counters: Option<KernelCounters>,
    recorder: Option<Recorder>,
    counters_read_ns: Option<u64>,
}

impl Intake {
    /// The counters, if at this tick it is time to read them.
    fn counters_at(&mut self, item: &SourceItem) -> Option<SourceItem> {
        let (Some(counters), SourceItem::Tick { now_ns }) = (&self.counters, item) else { return None };
        if self.counters_read_ns.is_some_and(|read| now_ns.saturating_sub(read) < COUNTERS_EVERY_NS) {
            return None;
        }
        self.counters_read_ns = Some(*now_ns);
        let reading = CounterReading::new(&counters.read(), counters.missed_probes());
        Some(SourceItem::Counters(Box::new(reading)))
    }

    fn record(&mut self, item: &SourceItem) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(item);
        }
    }
}

async fn process(batch: &mut Vec<SourceItem>, intake: &mut Intake, stage: &mut Stage, fan_out: &mut FanOut) {
    let mut records = Vec::new();
    for item in batch.drain(..) {
        // A recording's own counters come as items; a live source's are put in here, so that both kinds of
        // run see them at the same place.
        let counters = intake.counters_at(&item);
        for item in counters.into_iter().chain([item]) {
            intake.record(&item);
            let dropped = fan_out.dropped() + intake.recorder.as_ref().map_or(0, Recorder::dropped);
            stage.take(item, dropped, &mut records);
            for record in records.drain(..) {
                fan_out.publish(record).await;
            }
        }
    }
    if let Some(recorder) = &mut intake.recorder {
        recorder.hand_over();
    }
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

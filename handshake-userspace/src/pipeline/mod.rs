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
    model::{drop_reasons::DropReasons, health::Health},
    sinks::{Record, Sink, summary::Summary},
    source::{EventSource, SourceError, SourceItem, recording::writer::Recorder},
};

/// How often the kernel side's counters are read: often enough that loss is told while it happens, seldom
/// enough that thousands of CPUs cost nothing.
const COUNTERS_EVERY_NS: u64 = 1_000_000_000;

/// The kernel's own counters are read once for each `health` record, a second before it: a reading is compared when
/// everything from before it has been put in order.
const MIB_EVERY_NS: u64 = 10_000_000_000;
const MIB_FIRST_NS: u64 = 9_000_000_000;

/// What flows in.
pub struct Feed<S> {
    /// Events, ticks and anchors.
    pub source: S,
    /// Keeps everything that came in.
    pub recorder: Option<Recorder>,
}

/// What to do with it.
#[derive(Debug)]
pub struct Plan {
    /// For the keys of records: from the boot id of the kernel that made the events.
    pub boot: u32,
    /// The kernel's names for why it drops segments.
    pub drop_reasons: DropReasons,
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
    /// What came of the canary, for `health`.
    pub canary: Option<crate::model::health::Canary>,
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
    /// Records for standard output could not be written; that has been told.
    pub spoilt: bool,
}

/// How far a recording is searched for its closing reading of the counters when a limit ended the run: a replay
/// of few records must not read the whole of a large file.
const READ_AHEAD_BATCHES: u32 = 16;

/// Runs until the source ends, `shutdown` is ready, the plan's limits are reached or nobody reads any more.
/// Each message of `reopen` makes the sinks reopen their files.
pub async fn run<S: EventSource>(
    feed: Feed<S>,
    plan: Plan,
    sinks: Vec<Box<dyn Sink>>,
    shutdown: impl Future<Output = ()>,
    mut reopen: mpsc::Receiver<()>,
) -> io::Result<Ending> {
    let mut fan_out = FanOut::start(sinks, plan.when_full)?;
    let mut intake =
        Intake { source: feed.source, recorder: feed.recorder, counters_read_ns: None, mib_due_ns: None };
    let mut stage = Stage::new(plan);
    // Both accounts begin here, before anything that may end the run.
    intake.hand_on_mib(&mut stage, &mut fan_out).await;
    let mut source_failed = None;
    let mut shutdown = pin!(shutdown);
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            () = fan_out.closed() => break,
            Some(()) = reopen.recv() => fan_out.reopen(),
            more = intake.source.next_batch(&mut batch) => match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    source_failed = Some(error);
                    break;
                }
            },
        }
        intake.process(batch, &mut stage, &mut fan_out).await;
        if stage.is_done() {
            break;
        }
    }
    // A live source is asked for the closing reading below; a recording that was made with the same limit has it
    // in the few items that are left.
    let mut ahead = READ_AHEAD_BATCHES;
    while stage.is_done() && ahead > 0 && intake.source.counters().is_none() {
        ahead -= 1;
        let mut batch = Vec::new();
        if !matches!(intake.source.next_batch(&mut batch).await, Ok(true)) {
            break;
        }
        intake.process(batch, &mut stage, &mut fan_out).await;
    }
    // While the hooks still see what the kernel counts.
    intake.hand_on_mib(&mut stage, &mut fan_out).await;
    // From here on the host pays nothing for us, however slow the sinks are; and the ring only gets emptier.
    intake.source.detach();
    loop {
        let mut batch = Vec::new();
        if let Err(error) = intake.source.drain(&mut batch) {
            source_failed.get_or_insert(error);
        }
        // A live source that has no more says so by a tick; a recording gives nothing here.
        let over = !batch.iter().any(|item| matches!(item, SourceItem::Event(_)));
        if let Some(reading) = over.then(|| intake.source.counters()).flatten() {
            batch.push(SourceItem::Counters(Box::new(reading)));
        }
        intake.process(batch, &mut stage, &mut fan_out).await;
        if over {
            break;
        }
    }
    let mut records = Vec::new();
    stage.end(fan_out.dropped() + intake.dropped(), &mut records);
    for record in records {
        fan_out.publish(record).await;
    }
    let dropped_by_recorder = intake.dropped();
    let recording_failed = intake.recorder.and_then(|recorder| recorder.finish().err());
    let health = stage.health(fan_out.dropped() + dropped_by_recorder);
    fan_out.publish_last(Record::Health(Box::new(health), stage.wall_time())).await;
    let (dropped, spoilt) = fan_out.finish().await;
    let health = stage.health(dropped + dropped_by_recorder);
    Ok(Ending { health, summary: stage.into_summary(), source_failed, recording_failed, spoilt })
}

/// The source and what listens in on it.
struct Intake<S> {
    source: S,
    recorder: Option<Recorder>,
    counters_read_ns: Option<u64>,
    /// When the kernel's own counters are read next; known from the first tick on.
    mib_due_ns: Option<u64>,
}

impl<S: EventSource> Intake<S> {
    async fn process(&mut self, batch: Vec<SourceItem>, stage: &mut Stage, fan_out: &mut FanOut) {
        for item in batch {
            // A recording's counters come as items; a live source's are put in here, so that both kinds of
            // run see them at the same place.
            let counters = self.counters_at(&item);
            let mib = self.mib_at(&item);
            for item in counters.into_iter().chain(mib).chain([item]) {
                self.hand_on(item, stage, fan_out).await;
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.hand_over();
        }
    }

    async fn hand_on(&mut self, item: SourceItem, stage: &mut Stage, fan_out: &mut FanOut) {
        let mut records = Vec::new();
        if let Some(recorder) = &mut self.recorder {
            recorder.record(&item);
        }
        stage.take(item, fan_out.dropped() + self.dropped(), &mut records);
        for record in records {
            fan_out.publish(record).await;
        }
    }

    async fn hand_on_mib(&mut self, stage: &mut Stage, fan_out: &mut FanOut) {
        if let Some(reading) = self.source.mib() {
            self.hand_on(SourceItem::Mib(Box::new(reading)), stage, fan_out).await;
        }
    }

    /// The kernel's own counters, if at this tick it is time to read them.
    fn mib_at(&mut self, item: &SourceItem) -> Option<SourceItem> {
        let SourceItem::Tick { now_ns } = item else { return None };
        if *now_ns < *self.mib_due_ns.get_or_insert(now_ns.saturating_add(MIB_FIRST_NS)) {
            return None;
        }
        self.mib_due_ns = Some(now_ns.saturating_add(MIB_EVERY_NS));
        self.source.mib().map(|reading| SourceItem::Mib(Box::new(reading)))
    }

    /// The counters, if at this tick it is time to read them.
    fn counters_at(&mut self, item: &SourceItem) -> Option<SourceItem> {
        let SourceItem::Tick { now_ns } = item else { return None };
        if self.counters_read_ns.is_some_and(|read| now_ns.saturating_sub(read) < COUNTERS_EVERY_NS) {
            return None;
        }
        self.counters_read_ns = Some(*now_ns);
        self.source.counters().map(|reading| SourceItem::Counters(Box::new(reading)))
    }

    /// Frames that the recording lacks.
    fn dropped(&self) -> u64 {
        self.recorder.as_ref().map_or(0, Recorder::dropped)
    }
}

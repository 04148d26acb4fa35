//! Gives every record to every sink, each on a thread of its own behind a bounded channel.
//!
//! A sink may block (a pipe that nobody reads, a slow disk) without holding up the others or the tracker.
//! What a newcomer would get wrong: a full channel means two things. Live, the record is dropped for that
//! sink and counted, because waiting would fill the ring buffer and lose events for all; a replay waits,
//! because a file can.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot};

use super::notice::{self, Doubling};
use crate::sinks::{Record, Sink, SinkError};

/// Records that wait for one sink: about 10 MiB, some seconds of a busy host while a terminal scrolls or a
/// disk flushes. When full: see [`WhenFull`].
const RECORDS_IN_FLIGHT: usize = 16_384;

/// A sink that never runs out of records is flushed this often all the same.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// What happens to a record for which a sink has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Dropped for that sink, counted as `sink_dropped`, told by a `lost` record.
    Drop,
    /// Everything waits for the sink.
    Wait,
}

pub(super) struct FanOut {
    outlets: Vec<Outlet>,
    when_full: WhenFull,
    shared: Arc<Shared>,
}

struct Outlet {
    sender: mpsc::Sender<Message>,
    reopen: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

enum Message {
    Record(Arc<Record>),
    /// Only wakes the thread, which then finds `reopen` set.
    Wake,
}

#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    /// What the user waits for could not be written.
    spoilt: AtomicBool,
    closed: Notify,
}

impl FanOut {
    pub(super) fn start(sinks: Vec<Box<dyn Sink>>, when_full: WhenFull) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let outlets =
            sinks.into_iter().map(|sink| Outlet::start(sink, &shared)).collect::<io::Result<Vec<_>>>()?;
        Ok(FanOut { outlets, when_full, shared })
    }

    /// Ready when a sink has found that nobody reads any more.
    pub(super) async fn closed(&self) {
        self.shared.closed.notified().await;
    }

    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    pub(super) async fn publish(&mut self, record: Record) {
        let record = Arc::new(record);
        for outlet in &self.outlets {
            let message = Message::Record(Arc::clone(&record));
            match self.when_full {
                // A closed channel is a sink whose reader went away: no loss.
                WhenFull::Wait => drop(outlet.sender.send(message).await),
                WhenFull::Drop => {
                    if let Err(mpsc::error::TrySendError::Full(_)) = outlet.sender.try_send(message) {
                        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// The last record is the accounting, which must not be what is dropped: it waits for room.
    pub(super) async fn publish_last(&mut self, record: Record) {
        self.when_full = WhenFull::Wait;
        self.publish(record).await;
    }

    pub(super) fn reopen(&self) {
        for outlet in &self.outlets {
            outlet.reopen.store(true, Ordering::Release);
            // A full channel needs no waking: its thread is at work and will see the flag.
            let _ = outlet.sender.try_send(Message::Wake);
        }
    }

    /// Lets every sink write what it has; gives the number of records dropped in all, and whether that spoils
    /// the run.
    pub(super) async fn finish(self) -> (u64, bool) {
        for outlet in self.outlets {
            drop(outlet.sender);
            // An error means that the thread is gone, which is what we wait for.
            let _ = outlet.ended.await;
        }
        let spoilt = self.shared.spoilt.load(Ordering::Relaxed);
        (self.shared.dropped.load(Ordering::Relaxed), spoilt)
    }
}

impl Outlet {
    fn start(sink: Box<dyn Sink>, shared: &Arc<Shared>) -> io::Result<Self> {
        let (sender, records) = mpsc::channel(RECORDS_IN_FLIGHT);
        let (end, ended) = oneshot::channel();
        let reopen = Arc::new(AtomicBool::new(false));
        let mut thread = SinkThread {
            sink,
            reopen: Arc::clone(&reopen),
            shared: Arc::clone(shared),
            failed: 0,
            told: Doubling::default(),
        };
        std::thread::Builder::new().name("sink".to_owned()).spawn(move || {
            if thread.serve(records).is_err() {
                thread.shared.closed.notify_one();
            }
            let _ = end.send(());
        })?;
        Ok(Outlet { sender, reopen, ended })
    }
}

struct SinkThread {
    sink: Box<dyn Sink>,
    reopen: Arc<AtomicBool>,
    shared: Arc<Shared>,
    failed: u64,
    told: Doubling,
}

/// Nobody reads what this sink writes.
struct ReaderGone;

impl SinkThread {
    fn serve(&mut self, mut records: mpsc::Receiver<Message>) -> Result<(), ReaderGone> {
        let mut flushed = Instant::now();
        while let Some(message) = records.blocking_recv() {
            let mut next = Some(message);
            while let Some(message) = next {
                if self.reopen.swap(false, Ordering::AcqRel) {
                    let result = self.sink.reopen();
                    self.judge(result)?;
                }
                if let Message::Record(record) = message {
                    let result = self.sink.accept(&record);
                    self.judge(result)?;
                }
                if flushed.elapsed() >= FLUSH_EVERY {
                    let result = self.sink.flush();
                    self.judge(result)?;
                    flushed = Instant::now();
                }
                next = records.try_recv().ok();
            }
            let result = self.sink.flush();
            self.judge(result)?;
            flushed = Instant::now();
        }
        Ok(())
    }

    fn judge(&mut self, result: Result<(), SinkError>) -> Result<(), ReaderGone> {
        match result {
            Ok(()) => Ok(()),
            Err(SinkError::Closed) => Err(ReaderGone),
            Err(SinkError::Write { name, error, records, spoils_run }) => {
                self.shared.spoilt.fetch_or(spoils_run, Ordering::Relaxed);
                self.shared.dropped.fetch_add(records, Ordering::Relaxed);
                self.failed += records;
                if records == 0 {
                    notice::warn(&format!("{name}: {error}"));
                } else if self.told.grown(self.failed).is_some() {
                    notice::warn(&format!("{name}: {error}; records dropped so far: {}", self.failed));
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::sinks::Lost;

    /// Waits for the test at each record.
    struct Slow {
        go: Receiver<()>,
        taken: Sender<u64>,
    }

    impl Sink for Slow {
        fn accept(&mut self, record: &Record) -> Result<(), SinkError> {
            self.go.recv().map_err(|_| SinkError::Closed)?;
            if let Record::Lost(lost, _) = record {
                self.taken.send(lost.total).unwrap();
            }
            Ok(())
        }

        fn flush(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    fn record(total: u64) -> Record {
        Record::Lost(Lost { total, ..Lost::default() }, None)
    }

    #[tokio::test]
    async fn what_a_slow_sink_has_no_room_for_is_dropped_and_counted() {
        let (go, wait) = channel();
        let (taken, seen) = channel();
        let mut fan_out = FanOut::start(vec![Box::new(Slow { go: wait, taken })], WhenFull::Drop).unwrap();
        let sent = RECORDS_IN_FLIGHT as u64 + 100;
        for total in 0..sent {
            fan_out.publish(record(total)).await;
        }
        let dropped = fan_out.dropped();
        // The sink may have taken one out of the channel already.
        assert!((99..=100).contains(&dropped), "{dropped}");
        for _ in 0..=sent {
            go.send(()).unwrap();
        }
        fan_out.publish_last(record(u64::MAX)).await;
        assert_eq!(fan_out.finish().await, (dropped, false));
        let seen: Vec<u64> = seen.iter().collect();
        assert_eq!(seen.len() as u64, sent - dropped + 1);
        assert_eq!(seen.last(), Some(&u64::MAX), "the last record is never dropped");
    }

    #[tokio::test]
    async fn a_reader_that_went_away_ends_the_pipeline_quietly() {
        let (go, wait) = channel();
        let (taken, _seen) = channel();
        let mut fan_out = FanOut::start(vec![Box::new(Slow { go: wait, taken })], WhenFull::Wait).unwrap();
        drop(go);
        fan_out.publish(record(1)).await;
        fan_out.closed().await;
        fan_out.publish(record(2)).await;
        assert_eq!(fan_out.finish().await, (0, false));
    }
}

//! A recording as an event source: what `record` wrote, given again in the same order.
//!
//! A thread of its own reads the file and hands over batches through a bounded channel, so that a slow disk
//! or a FIFO never stands in the way of a signal. What a newcomer would get wrong: nothing here sleeps to
//! imitate the recorded pace. Time is in the ticks of the recording, and a replay runs as fast as it can.

pub mod format;
mod mib;
pub mod reader;
pub mod writer;

use std::{
    io::Read,
    sync::{Arc, OnceLock},
};

use tokio::sync::mpsc;

pub use self::mib::MAX_NAMESPACES;
use self::{
    format::RecordingHeader,
    reader::{Ending, RecordingReader},
};
use super::{EventSource, SourceError, SourceItem};

/// Batches that wait between the reading thread and the pipeline. Two would keep both busy, four ride out a
/// slow moment of either. When full the reading thread waits: a file loses nothing by waiting.
const BATCHES_IN_FLIGHT: usize = 4;

/// Items in one batch: large enough to make the hand-over cheap, small enough that a signal is heard soon.
const BATCH_ITEMS: usize = 1024;

/// Gives the events of a recording.
pub struct RecordingSource {
    header: RecordingHeader,
    batches: mpsc::Receiver<Result<Vec<SourceItem>, SourceError>>,
    ending: Arc<OnceLock<Ending>>,
}

impl RecordingSource {
    /// Reads the header, then starts the thread that reads the rest.
    pub fn open(input: impl Read + Send + 'static) -> Result<Self, SourceError> {
        let mut reader = RecordingReader::new(input)?;
        let header = reader.header().clone();
        let (sender, batches) = mpsc::channel(BATCHES_IN_FLIGHT);
        let ending = Arc::new(OnceLock::new());
        let told = Arc::clone(&ending);
        std::thread::Builder::new()
            .name("recording".to_owned())
            .spawn(move || {
                read_batches(&mut reader, &sender);
                // Nobody else sets it, so it cannot be taken already.
                let _ = told.set(reader.ending());
            })
            .map_err(SourceError::Thread)?;
        Ok(RecordingSource { header, batches, ending })
    }

    /// Where and how it was recorded.
    pub fn header(&self) -> &RecordingHeader {
        &self.header
    }

    /// A handle that says, once everything was read, what was odd about the recording.
    pub fn ending(&self) -> Arc<OnceLock<Ending>> {
        Arc::clone(&self.ending)
    }
}

impl EventSource for RecordingSource {
    async fn next_batch(&mut self, batch: &mut Vec<SourceItem>) -> Result<bool, SourceError> {
        match self.batches.recv().await {
            Some(Ok(mut items)) => {
                batch.append(&mut items);
                Ok(true)
            }
            Some(Err(error)) => Err(error),
            None => Ok(false),
        }
    }

    fn drain(&mut self, _batch: &mut Vec<SourceItem>) -> Result<(), SourceError> {
        // Whoever stops a replay wants it to stop; nothing is lost, it is all in the file.
        Ok(())
    }
}

fn read_batches<R: Read>(
    reader: &mut RecordingReader<R>,
    sender: &mpsc::Sender<Result<Vec<SourceItem>, SourceError>>,
) {
    loop {
        let mut items = Vec::with_capacity(BATCH_ITEMS);
        let mut over = false;
        let mut damage = None;
        while items.len() < BATCH_ITEMS {
            match reader.next_item() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => {
                    over = true;
                    break;
                }
                Err(error) => {
                    damage = Some(error);
                    break;
                }
            }
        }
        // What stood before the damage is good and is handed over first. A closed channel means that the
        // replay was stopped.
        if (!items.is_empty() && sender.blocking_send(Ok(items)).is_err()) || over {
            return;
        }
        if let Some(error) = damage {
            let _ = sender.blocking_send(Err(error));
            return;
        }
    }
}

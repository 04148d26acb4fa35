//! Writes what the source gives to a recording, from a thread of its own.
//!
//! It stands in the pipeline before `decode`, so that a recording holds exactly what the tracker was given.
//! What a newcomer would get wrong: when the disk cannot keep up, frames of the recording are dropped and a
//! gap frame says how many. The trace itself never waits for the disk, or the ring buffer would overflow.

use std::{
    fs::File,
    io::{self, Write},
    sync::mpsc::{SyncSender, sync_channel},
    thread::JoinHandle,
};

use bytes::{Bytes, BytesMut};

use super::format::{END, FRAME_HEADER_BYTES, GAP, RecordingHeader, put_frame, put_item, put_preamble};
use crate::source::SourceItem;

/// Chunks that wait for the disk, 16 MiB in all: seconds of a busy host. When full, the chunk is dropped,
/// counted, and marked in the recording by a gap frame.
const CHUNKS_IN_FLIGHT: usize = 256;

/// A chunk is handed over when it is this long, or when a batch of the source ends.
const CHUNK_BYTES: usize = 64 << 10;

/// Appends items to a recording.
pub struct Recorder {
    chunks: Option<SyncSender<Bytes>>,
    pending: BytesMut,
    pending_frames: u64,
    /// Frames dropped that no gap frame tells of yet.
    untold: u64,
    dropped: u64,
    writer: JoinHandle<io::Result<()>>,
}

impl Recorder {
    /// Writes magic, version and header, and starts the writing thread.
    pub fn start(mut file: File, header: &RecordingHeader) -> io::Result<Self> {
        let mut preamble = BytesMut::new();
        put_preamble(header, &mut preamble);
        file.write_all(&preamble)?;
        let (sender, chunks) = sync_channel::<Bytes>(CHUNKS_IN_FLIGHT);
        let writer = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            for chunk in chunks {
                file.write_all(&chunk)?;
            }
            // A FIFO or a device cannot be synchronised; the data is as safe there as it will ever be.
            let _ = file.sync_data();
            Ok(())
        })?;
        Ok(Recorder {
            chunks: Some(sender),
            pending: BytesMut::with_capacity(CHUNK_BYTES),
            pending_frames: 0,
            untold: 0,
            dropped: 0,
            writer,
        })
    }

    /// Adds one item.
    pub fn record(&mut self, item: &SourceItem) {
        if self.pending.is_empty() && self.untold != 0 {
            put_frame(GAP, &self.untold.to_le_bytes(), &mut self.pending);
        }
        put_item(item, &mut self.pending);
        self.pending_frames += 1;
        if self.pending.len() >= CHUNK_BYTES {
            self.hand_over();
        }
    }

    /// Gives the writing thread what has gathered.
    pub fn hand_over(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let frames = std::mem::take(&mut self.pending_frames);
        let chunk = self.pending.split().freeze();
        let told = self.untold;
        let sent = self.chunks.as_ref().is_some_and(|chunks| chunks.try_send(chunk).is_ok());
        if sent {
            // The chunk began with a gap frame that told of all of these.
            self.untold -= told;
        } else {
            self.untold += frames;
            self.dropped += frames;
        }
    }

    /// Frames that the recording lacks.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes the end and waits for the disk.
    pub fn finish(mut self) -> io::Result<()> {
        self.hand_over();
        let mut last = BytesMut::with_capacity(4 * FRAME_HEADER_BYTES);
        if self.untold != 0 {
            put_frame(GAP, &self.untold.to_le_bytes(), &mut last);
        }
        put_frame(END, &[], &mut last);
        if let Some(chunks) = self.chunks.take() {
            // Waits: the end must not be what is dropped. It fails only when the thread ended with an error,
            // which joining it tells.
            let _ = chunks.send(last.freeze());
        }
        self.writer.join().unwrap_or_else(|_| Err(io::Error::other("the recording thread died")))
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

/// A whole recording in memory, for tests and for hand-made ones.
pub fn recording_of(header: &RecordingHeader, items: &[SourceItem]) -> Bytes {
    let mut bytes = BytesMut::new();
    put_preamble(header, &mut bytes);
    for item in items {
        put_item(item, &mut bytes);
    }
    put_frame(END, &[], &mut bytes);
    bytes.freeze()
}

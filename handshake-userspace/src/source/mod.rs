//! Where events come from: the ring buffer of the running kernel, or a recording.
//!
//! What a newcomer would get wrong: a source hands on raw bytes and clocks, unjudged. Whether they make
//! sense is `decode`'s business, so that a recording keeps even what we could not decode.

mod anchors;
mod before_us;
pub mod live;
pub mod recording;
pub mod ring_buffer;
mod ring_positions;

use bytes::Bytes;

use handshake_common::counter::{CpuCounters, SLOTS};

use crate::model::{mib::MibReading, observation::ClockAnchor};

/// One thing that a source gives, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceItem {
    /// A record of the ring buffer, copied out once; clones are cheap.
    Event(Bytes),
    /// Time passes: CLOCK_MONOTONIC, nanoseconds.
    Tick {
        /// Now.
        now_ns: u64,
    },
    /// The clocks read together, again every few seconds.
    Anchor(ClockAnchor),
    /// The kernel side's counters as they were read. A live source is asked for them
    /// ([`EventSource::counters`]); a recording has them here, at the place where they were read.
    Counters(Box<CounterReading>),
    /// The kernel's own counters of every network namespace as they were read; asked for as the others are
    /// ([`EventSource::mib`]).
    Mib(Box<MibReading>),
}

/// The kernel side's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterReading {
    /// By CPU number, then by [`handshake_common::counter::Counter`].
    pub by_cpu: Vec<[u64; SLOTS]>,
    /// Hits of our programs that the kernel skipped; `None` where the kernel doesn't say.
    pub missed_probes: Option<u64>,
}

impl CounterReading {
    /// Takes what the kernel side's mapped counters said.
    pub fn new(by_cpu: &[CpuCounters], missed_probes: Option<u64>) -> Self {
        CounterReading { by_cpu: by_cpu.iter().map(|cpu| cpu.slots).collect(), missed_probes }
    }
}

/// Something that gives events.
pub trait EventSource {
    /// Waits until there is something, and appends it to `batch`. `Ok(false)`: nothing will ever come again.
    /// Cancel safe: what was not appended is given by the next call.
    fn next_batch(
        &mut self,
        batch: &mut Vec<SourceItem>,
    ) -> impl Future<Output = Result<bool, SourceError>> + Send;

    /// Appends what is there already, without waiting: the last words at shutdown.
    fn drain(&mut self, batch: &mut Vec<SourceItem>) -> Result<(), SourceError>;

    /// The kernel side's counters now; `None` for a source that has them among its items, or not at all.
    fn counters(&self) -> Option<CounterReading> {
        None
    }

    /// The kernel's own counters: at first as they were when this source began, then as they are now; `None` for a
    /// source that has them among its items, or not at all.
    fn mib(&mut self) -> Option<MibReading> {
        None
    }

    /// No new event is made from now on; what was made already can still be drained.
    fn detach(&mut self) {}
}

/// Why a source can give no more.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The ring buffer could not be polled.
    #[error("the ring buffer cannot be read: {0}")]
    RingBuffer(std::io::Error),
    /// The thread that reads a recording could not be started.
    #[error("no thread for reading the recording: {0}")]
    Thread(std::io::Error),
    /// A recording could not be read.
    #[error("the recording is damaged at byte {offset}: {problem}")]
    Recording {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        problem: String,
    },
}

//! Where records go. A sink turns records into bytes for one reader and knows nothing of the others.
//!
//! Each sink runs on a thread of its own behind a bounded channel (`pipeline::fan_out`), so it may block.
//! What a newcomer would get wrong: records come here finished, filtered and with their wall time; a sink
//! that leaves one out, for whatever reason, reports it as dropped and never hides it.

pub mod errno;
pub mod file;
pub mod json;
mod second_account;
pub mod stdout;
pub mod summary;
pub mod text;

use std::{collections::BTreeMap, io};

use crate::model::{
    handshake::{Accept, Handshake},
    health::Health,
};

/// Nanoseconds since 1970 in UTC; `None` before the first clock anchor.
pub type WallTime = Option<u64>;

/// What a sink is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A handshake, and when it began.
    Handshake(Box<Handshake>, WallTime),
    /// The later fate of a queued child, and when that was.
    Accept(Box<Accept>, WallTime),
    /// The accounting so far.
    Health(Box<Health>, WallTime),
    /// Loss has grown.
    Lost(Lost, WallTime),
}

/// How much was lost so far, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Everything lost since the start.
    pub total: u64,
    /// How much of it is new since the last such record.
    pub grown: u64,
    /// The total by cause, causes without loss left out.
    pub causes: BTreeMap<&'static str, u64>,
}

/// Takes records.
pub trait Sink: Send {
    /// Takes one record; it may be kept back until [`Sink::flush`].
    fn accept(&mut self, record: &Record) -> Result<(), SinkError>;

    /// Writes what was kept back. Called when no record waits, so at least after each batch.
    fn flush(&mut self) -> Result<(), SinkError>;

    /// Closes what it writes to and opens it again by name: a log rotation moved it away.
    fn reopen(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Why a sink could not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Nobody reads any more (EPIPE): a quiet end, and no failure.
    #[error("nobody reads any more")]
    Closed,
    /// Records could not be written; the sink goes on trying with the next ones.
    #[error("{name}: {error}")]
    Write {
        /// What was written to.
        name: String,
        /// Why it failed.
        error: io::Error,
        /// Records that were in what failed.
        records: u64,
        /// Whether the run has failed without them: standard output is what the user waits for.
        spoils_run: bool,
    },
}

/// The health counters that say what was lost, in the order of the flow.
pub fn loss_by_cause(health: &Health) -> BTreeMap<&'static str, u64> {
    health.losses().filter(|(_, count)| *count != 0).collect()
}

/// A number and its noun.
fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

//! Standard output as a place to write to, without the surprises of `std::io::Stdout`.
//!
//! Rust ignores SIGPIPE, so a reader that went away shows as EPIPE, which is a quiet end. What a newcomer
//! would get wrong: `std::io::Stdout` flushes at each line and locks; a sink writes whole batches and owns
//! the descriptor alone while the pipeline runs.

use std::{fs::File, io, os::fd::AsFd};

use super::SinkError;

/// A descriptor of our own for standard output.
pub fn open() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// What a failed write to standard output means for the pipeline.
pub fn sink_error(error: io::Error, records: u64) -> SinkError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        SinkError::Closed
    } else {
        SinkError::Write { name: "standard output".to_owned(), error, records, spoils_run: true }
    }
}

//! The ring buffer as an event source on tokio.

use super::{EventSource, SourceError, SourceItem};

/// Reads the kernel side's ring buffer.
pub struct RingBufferSource {}

impl EventSource for RingBufferSource {
    async fn next_batch(&mut self, _batch: &mut Vec<SourceItem>) -> Result<bool, SourceError> {
        Ok(false)
    }

    fn drain(&mut self, _batch: &mut Vec<SourceItem>) -> Result<(), SourceError> {
        Ok(())
    }
}

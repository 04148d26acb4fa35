//! The kernel side's ring buffer as an event source on tokio.
//!
//! A timer drains the ring; the kernel side wakes us only when it is filling up faster than that. What a newcomer
//! would get wrong: the clock is read **before** the ring is drained, and the tick is handed on after it, and only if what
//! was reserved by then has all been read: then everything that happened before the tick has been given.

use std::{io, os::fd::AsFd as _, time::Duration};

use aya::maps::{MapData, RingBuf};
use bytes::BytesMut;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Interval, MissedTickBehavior},
};

pub(crate) use super::anchors::monotonic_ns;
use super::{
    EventSource, SourceError, SourceItem,
    anchors::{Anchors, read_clocks},
    before_us::{BeforeUs, time_of},
    ring_positions::RingPositions,
};

/// How long an event may wait in the ring below the watermark: what a person at the live tail doesn't notice.
const DRAIN_EVERY: Duration = Duration::from_millis(40);
/// Events handed on in one batch: bounds what the pipeline holds when the ring is full.
const BATCH_EVENTS: usize = 8192;
/// Events are copied out into blocks of this size, whose parts are then shared without copying.
const BLOCK_BYTES: usize = 256 * 1024;

/// Reads the kernel side's ring buffer.
pub struct RingBufferSource {
    ring: AsyncFd<RingBuf<MapData>>,
    positions: RingPositions,
    timer: Interval,
    block: BytesMut,
    before_us: BeforeUs,
    anchors: Anchors,
    /// The last batch ended before the ring was empty, so there is nothing to wait for.
    more: bool,
}

impl RingBufferSource {
    /// Takes the ring over; `before_us` are events that are not in it, and are given at their times. Needs a tokio
    /// runtime.
    pub(crate) fn new(ring: RingBuf<MapData>, before_us: Vec<SourceItem>) -> io::Result<Self> {
        let positions = RingPositions::map(ring.as_fd())?;
        // SAFETY: aya's RingBuf owns its descriptor and gives the same one until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| io::Error::other(error.to_string()))?;
        let mut timer = tokio::time::interval(DRAIN_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(RingBufferSource {
            ring,
            positions,
            timer,
            block: BytesMut::with_capacity(BLOCK_BYTES),
            before_us: BeforeUs::new(before_us),
            anchors: Anchors::new(DRAIN_EVERY),
            more: false,
        })
    }

    fn anchor_if_due(&mut self, batch: &mut Vec<SourceItem>) {
        batch.extend(self.anchors.due(read_clocks()).map(SourceItem::Anchor));
    }

    /// Copies out what is there; `true` when the ring is empty then.
    fn take(&mut self, batch: &mut Vec<SourceItem>) -> bool {
        let ring = self.ring.get_mut();
        for _ in 0..BATCH_EVENTS {
            let Some(record) = ring.next() else {
                self.before_us.give_rest(batch);
                return true;
            };
            if self.block.capacity() - self.block.len() < record.len() {
                self.block = BytesMut::with_capacity(BLOCK_BYTES.max(record.len()));
            }
            self.before_us.give_before(&record, batch);
            self.block.extend_from_slice(&record);
            batch.push(SourceItem::Event(self.block.split().freeze()));
        }
        false
    }
}

impl EventSource for RingBufferSource {
    async fn next_batch(&mut self, batch: &mut Vec<SourceItem>) -> Result<bool, SourceError> {
        if self.more {
            // Full speed for the ring, but other tasks must run too.
            tokio::task::yield_now().await;
            return self.drain(batch).map(|()| true);
        }
        tokio::select! {
            guard = self.ring.readable_mut() => {
                // Cleared before draining: an event that comes in between makes it readable again.
                guard.map_err(SourceError::RingBuffer)?.clear_ready();
            }
            _ = self.timer.tick() => {}
        }
        self.drain(batch)?;
        Ok(true)
    }

    fn drain(&mut self, batch: &mut Vec<SourceItem>) -> Result<(), SourceError> {
        self.anchor_if_due(batch);
        let now_ns = monotonic_ns();
        // An event's time is read after its place was reserved: what happened before `now_ns` lies before this.
        let reserved = self.positions.reserved();
        let first = batch.len();
        self.more = !self.take(batch);
        order(&mut batch[first..]);
        if self.positions.have_passed(reserved) {
            batch.push(SourceItem::Tick { now_ns });
        }
        Ok(())
    }
}

/// Puts the events of one batch in the order of their times. A program that loses the CPU between reserving its place and
/// reading the clock holds up all that comes behind it in the ring and happened before; together they are one batch.
fn order(items: &mut [SourceItem]) {
    let time_ns = |item: &SourceItem| match item {
        SourceItem::Event(bytes) => time_of(bytes),
        _ => 0,
    };
    if !items.is_sorted_by_key(time_ns) {
        items.sort_by_key(time_ns);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use handshake_common::event::EventHeader;
    use zerocopy::{FromBytes as _, IntoBytes as _};

    use super::*;

    fn at(time_ns: u64, socket: u64) -> SourceItem {
        let header = EventHeader { time_ns, socket, ..EventHeader::default() };
        SourceItem::Event(Bytes::copy_from_slice(header.as_bytes()))
    }

    fn sockets(items: &[SourceItem]) -> Vec<u64> {
        let socket = |item: &SourceItem| match item {
            SourceItem::Event(bytes) => {
                EventHeader::read_from_prefix(bytes).ok().map(|(header, _)| header.socket)
            }
            _ => None,
        };
        items.iter().filter_map(socket).collect()
    }

    #[test]
    fn what_a_stopped_program_held_up_comes_before_it() {
        let mut items = vec![at(100, 1), at(10, 2), at(20, 3)];
        order(&mut items);
        assert_eq!(sockets(&items), [2, 3, 1]);
    }

    #[test]
    fn equal_times_stay_in_the_order_of_the_ring() {
        let mut items = vec![at(20, 1), at(10, 2), at(20, 3), at(10, 4)];
        order(&mut items);
        assert_eq!(sockets(&items), [2, 4, 1, 3]);
    }
}

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

use handshake_common::event::EventHeader;
use zerocopy::FromBytes as _;

use super::{EventSource, SourceError, SourceItem, ring_positions::RingPositions};
use crate::model::observation::ClockAnchor;

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
    /// Sockets that were there before us, given in the first batch.
    snapshot: Vec<SourceItem>,
    anchored: Option<Instant>,
    /// The last batch ended before the ring was empty, so there is nothing to wait for.
    more: bool,
}

impl RingBufferSource {
    /// Takes the ring over; `snapshot` is given among its first events. Needs a tokio runtime.
    pub(crate) fn new(ring: RingBuf<MapData>, snapshot: Vec<SourceItem>) -> io::Result<Self> {
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
        if self.anchored.is_none_or(|at| at.elapsed() >= ANCHOR_EVERY) {
            batch.push(SourceItem::Anchor(read_clocks()));
            self.anchored = Some(Instant::now());
        }
    }

    /// Reading the snapshot took its time on a host with many namespaces, and the hooks saw handshakes meanwhile. What
    /// lies in the ring since then is as old, so it comes along, and is put in order with it.
    fn take_with_snapshot(&mut self, reserved: u64, batch: &mut Vec<SourceItem>) {
        batch.append(&mut self.snapshot);
        self.more = !self.take(batch);
        while self.more && !self.positions.have_passed(reserved) {
            self.more = !self.take(batch);
        }
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
        if self.snapshot.is_empty() {
            self.more = !self.take(batch);
        } else {
            self.take_with_snapshot(reserved, batch);
        }
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
        SourceItem::Event(bytes) => {
            EventHeader::read_from_prefix(bytes).map_or(0, |(header, _)| header.time_ns)
        }
        _ => 0,
    };
    if !items.is_sorted_by_key(time_ns) {
        items.sort_by_key(time_ns);
    }
}

/// CLOCK_MONOTONIC, the events' clock.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

/// The three clocks, read one after the other.
pub(crate) fn read_clocks() -> ClockAnchor {
    ClockAnchor {
        monotonic_ns: monotonic_ns(),
        boottime_ns: nanoseconds(rustix::time::ClockId::Boottime),
        realtime_ns: nanoseconds(rustix::time::ClockId::Realtime),
    }
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use zerocopy::IntoBytes as _;

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

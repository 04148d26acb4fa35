//! What was seen while the hooks were being attached, merged into the ring's events by time.
//!
//! The snapshot is read after most hooks are attached, and reading it takes long where there are many namespaces: the
//! ring holds what is older by then, and what is younger. What a newcomer would get wrong: the tracker can't put that in
//! order by itself, for attaching takes longer than its window.

use std::collections::VecDeque;

use handshake_common::event::EventHeader;
use zerocopy::FromBytes as _;

use super::SourceItem;

/// See the module.
pub(super) struct BeforeUs(VecDeque<(u64, SourceItem)>);

impl BeforeUs {
    pub(super) fn new(items: Vec<SourceItem>) -> Self {
        let mut timed: Vec<_> = items.into_iter().map(|item| (time_ns(&item), item)).collect();
        timed.sort_by_key(|(time_ns, _)| *time_ns);
        BeforeUs(timed.into())
    }

    /// Gives what happened before this event of the ring.
    pub(super) fn give_before(&mut self, event: &[u8], batch: &mut Vec<SourceItem>) {
        if !self.0.is_empty() {
            self.give_until(time_of(event), batch);
        }
    }

    /// Gives the rest: the ring has nothing older.
    pub(super) fn give_rest(&mut self, batch: &mut Vec<SourceItem>) {
        self.give_until(u64::MAX, batch);
    }

    fn give_until(&mut self, until_ns: u64, batch: &mut Vec<SourceItem>) {
        while self.0.front().is_some_and(|(time_ns, _)| *time_ns <= until_ns)
            && let Some((_, item)) = self.0.pop_front()
        {
            batch.push(item);
        }
    }
}

fn time_ns(item: &SourceItem) -> u64 {
    match item {
        SourceItem::Event(bytes) => time_of(bytes),
        _ => 0,
    }
}

/// The time in an event's header; 0 if it has none.
pub(super) fn time_of(event: &[u8]) -> u64 {
    EventHeader::read_from_prefix(event).map_or(0, |(header, _)| header.time_ns)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use zerocopy::IntoBytes as _;

    use super::*;

    fn event(time_ns: u64) -> Bytes {
        Bytes::copy_from_slice(EventHeader { time_ns, ..EventHeader::default() }.as_bytes())
    }

    #[test]
    fn what_was_there_before_us_comes_at_its_time() {
        const MS: u64 = 1_000_000;
        // The snapshot at 500 and 600 ms, and what the canary found in the ring until then.
        let items = [500 * MS, 600 * MS, 100 * MS].map(|time_ns| SourceItem::Event(event(time_ns)));
        let mut before = BeforeUs::new(items.into());
        let mut batch = Vec::new();
        // A ring without a canary is read only now.
        for ring in [event(50 * MS), event(520 * MS)] {
            before.give_before(&ring, &mut batch);
            batch.push(SourceItem::Event(ring));
        }
        before.give_rest(&mut batch);
        let order: Vec<u64> = batch.iter().map(|item| time_ns(item) / MS).collect();
        assert_eq!(order, [50, 100, 500, 520, 600]);
    }
}

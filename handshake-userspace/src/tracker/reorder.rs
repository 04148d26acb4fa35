//! Puts observations back into the order of time before the state machine sees them.
//!
//! Several rings and CPUs feed one tracker, and a time is read before its record is committed, so what
//! arrives is nearly but not quite sorted. What is in order waits in a queue, what is not in a heap, and the
//! earlier of the two heads leaves first: sorted input costs a push and a pop, a straggler O(log n). What a
//! newcomer would get wrong: equal times leave in order of arrival, because only that is the same at replay.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, VecDeque},
};

use super::Tracker;
use crate::model::{
    handshake::HandshakeUpdate,
    observation::{Act, Observation},
};

/// Observations that are too young to be processed.
#[derive(Default)]
pub(super) struct ReorderBuffer {
    in_order: VecDeque<Held>,
    stragglers: BinaryHeap<Reverse<Held>>,
    arrivals: u64,
}

impl ReorderBuffer {
    /// Holds one more.
    pub(super) fn push(&mut self, observation: Box<Observation>) {
        let held = Held { time_ns: observation.time_ns, arrival: self.arrivals, observation };
        self.arrivals += 1;
        match self.in_order.back() {
            Some(last) if held.time_ns < last.time_ns => self.stragglers.push(Reverse(held)),
            _ => self.in_order.push_back(held),
        }
    }

    /// Time of the earliest.
    pub(super) fn earliest_ns(&self) -> Option<u64> {
        match (self.in_order.front(), self.stragglers.peek()) {
            (Some(a), Some(Reverse(b))) => Some(a.time_ns.min(b.time_ns)),
            (Some(a), None) => Some(a.time_ns),
            (None, Some(Reverse(b))) => Some(b.time_ns),
            (None, None) => None,
        }
    }

    /// Takes the earliest out.
    pub(super) fn pop(&mut self) -> Option<Box<Observation>> {
        let straggler_first = match (self.in_order.front(), self.stragglers.peek()) {
            (Some(a), Some(Reverse(b))) => b < a,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if straggler_first {
            self.stragglers.pop().map(|Reverse(held)| held.observation)
        } else {
            self.in_order.pop_front().map(|held| held.observation)
        }
    }

    /// How many it holds.
    pub(super) fn len(&self) -> usize {
        self.in_order.len() + self.stragglers.len()
    }
}

impl Tracker {
    /// What came later than the window allows. It is used, but begins nothing: what it would begin may have ended
    /// already, and would be told twice; the event at its end repeats all that it says.
    pub(super) fn process_late(&mut self, observation: Observation, out: &mut Vec<HandshakeUpdate>) {
        let begins = matches!(observation.act, Act::SynSent(_) | Act::ChildQueued(_));
        let entry = self.table.get(observation.socket.address);
        if begins && !entry.is_some_and(|entry| entry.identity.is_life_of(observation.socket)) {
            self.losses.note(observation.cpu, observation.lost_before, observation.time_ns);
            self.counts.unmatched += 1;
        } else {
            self.process(observation, out);
        }
    }
}

struct Held {
    time_ns: u64,
    arrival: u64,
    observation: Box<Observation>,
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time_ns, self.arrival).cmp(&(other.time_ns, other.arrival))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

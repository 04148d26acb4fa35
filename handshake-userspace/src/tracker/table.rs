//! The open handshakes, by socket address, and who among them has waited long enough.
//!
//! A slab of entries, an index by address, and one queue for each kind of patience. What a newcomer would get
//! wrong: each queue has one fixed patience and entries join it in order of time, so it is sorted by deadline
//! without ever being sorted; an entry that ends leaves it in O(1), and no stale deadline stays behind.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
};

use super::{TrackerConfig, entry::Entry};

/// What an entry waits for; each has its own time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// The return of a system call that is about to come.
    Wake,
    /// accept(), before the record is written without it.
    Accept,
    /// Anything at all.
    Silence,
    /// accept(), after the record was written: an application may take all day.
    Forever,
    /// The next SYN of an attempt whose SYN was dropped; each step waits twice as long as the one before.
    NextSyn {
        /// From 0, below [`NEXT_SYN_STEPS`].
        step: usize,
    },
}

/// With the usual 4.5 s for the first, the last one lasts 144 s: longer than any pause of the retransmission timer
/// (120 s, `TCP_RTO_MAX`).
pub(super) const NEXT_SYN_STEPS: usize = 6;

impl Patience {
    fn queue(self) -> usize {
        match self {
            Patience::Wake => 0,
            Patience::Accept => 1,
            Patience::Silence => 2,
            Patience::Forever => 3,
            Patience::NextSyn { step } => 4 + step.min(NEXT_SYN_STEPS - 1),
        }
    }
}

/// What the table needs for each entry beside what the entry points to: a slot and its place in the index. Both
/// grow by doubling, so up to half of them is free.
#[cfg(test)]
pub(super) const BYTES_PER_ENTRY: usize = 2 * (size_of::<Slot>() + size_of::<(u64, u32)>() + 1);
const QUEUES: usize = 4 + NEXT_SYN_STEPS;
const NONE: u32 = u32::MAX;

/// See the module.
pub(super) struct Table {
    index: HashMap<u64, u32, AddressHasher>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    queues: [Queue; QUEUES],
    /// How long each [`Patience`] lasts.
    limits_ns: [u64; QUEUES],
}

struct Slot {
    entry: Option<Entry>,
    deadline_ns: u64,
    patience: Patience,
    before: u32,
    after: u32,
}

#[derive(Clone, Copy)]
struct Queue {
    first: u32,
    last: u32,
}

impl Table {
    /// An empty one.
    pub(super) fn new(config: &TrackerConfig) -> Self {
        let limits_ns = std::array::from_fn(|queue| match queue {
            0 => config.wake_patience_ns,
            1 => config.accept_patience_ns,
            2 => config.expire_ns,
            3 => u64::MAX,
            _ => config.next_syn_patience_ns.saturating_mul(1 << (queue - 4)),
        });
        Table {
            index: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            queues: [Queue { first: NONE, last: NONE }; QUEUES],
            limits_ns,
        }
    }

    /// Looks at the entry of this address.
    pub(super) fn get(&self, address: u64) -> Option<&Entry> {
        let slot = *self.index.get(&address)?;
        self.slots.get(slot as usize)?.entry.as_ref()
    }

    /// Takes the entry of this address out.
    pub(super) fn take(&mut self, address: u64) -> Option<Entry> {
        let slot = self.index.remove(&address)?;
        self.vacate(slot)
    }

    /// Puts an entry in. The caller took out, or saw to be absent, whatever had its address.
    pub(super) fn put(&mut self, entry: Entry, patience: Patience, now_ns: u64) {
        debug_assert!(!self.index.contains_key(&entry.identity.address), "two entries for one address");
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        self.index.insert(entry.identity.address, slot);
        let limit_ns = self.limits_ns[patience.queue()];
        let last = self.queues[patience.queue()].last;
        let filled = Slot {
            entry: Some(entry),
            deadline_ns: now_ns.saturating_add(limit_ns),
            patience,
            before: last,
            after: NONE,
        };
        match self.slots.get_mut(slot as usize) {
            Some(vacant) => *vacant = filled,
            None => self.slots.push(filled),
        }
        match self.slots.get_mut(last as usize) {
            Some(before) if last != NONE => before.after = slot,
            _ => self.queues[patience.queue()].first = slot,
        }
        self.queues[patience.queue()].last = slot;
    }

    /// Takes out the entry whose deadline is the earliest, if that is before `now_ns`, and says when it was.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<(u64, Entry)> {
        let mut due: Option<(u64, u32)> = None;
        for queue in self.queues {
            let Some(slot) = self.slots.get(queue.first as usize) else { continue };
            if slot.deadline_ns < now_ns && due.is_none_or(|(earliest, _)| slot.deadline_ns < earliest) {
                due = Some((slot.deadline_ns, queue.first));
            }
        }
        let (deadline_ns, slot) = due?;
        let entry = self.vacate(slot)?;
        self.index.remove(&entry.identity.address);
        Some((deadline_ns, entry))
    }

    /// Every entry, in no order that means anything.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref())
    }

    /// Takes all entries out, oldest first.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.slots.drain(..).filter_map(|slot| slot.entry).collect();
        self.index.clear();
        self.free.clear();
        self.queues = [Queue { first: NONE, last: NONE }; QUEUES];
        entries.sort_unstable_by_key(|entry| entry.identity.counter);
        entries
    }

    fn vacate(&mut self, slot: u32) -> Option<Entry> {
        let vacated = self.slots.get_mut(slot as usize)?;
        let entry = vacated.entry.take();
        let (before, after, queue) = (vacated.before, vacated.after, vacated.patience.queue());
        match self.slots.get_mut(before as usize) {
            Some(neighbour) => neighbour.after = after,
            None => self.queues[queue].first = after,
        }
        match self.slots.get_mut(after as usize) {
            Some(neighbour) => neighbour.before = before,
            None => self.queues[queue].last = before,
        }
        self.free.push(slot);
        entry
    }
}

/// Hashes a kernel address (or CPU number) by one multiplication: std's SipHash guards against keys that an
/// attacker chooses, and these the kernel's allocator chooses. It also has no random seed, so the order of a
/// map, should it ever leak out, is the same at replay.
#[derive(Clone, Copy, Default)]
pub(super) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing; the fold brings the well-mixed high bits down to where the map takes its index.
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

impl BuildHasher for AddressHasher {
    type Hasher = AddressHasher;

    fn build_hasher(&self) -> AddressHasher {
        AddressHasher(0)
    }
}

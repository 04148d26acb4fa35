//! Where events were lost: which handshakes could be missing one.
//!
//! Every event says how many its CPU had lost before it. A rise between two events of one CPU puts the loss
//! between them, and a handshake that was open at that time may have lost a detail or its end. What a
//! newcomer would get wrong: the CPU doesn't matter for whom it touches, because one handshake's events come
//! from several CPUs (the caller's, the softirq's, the acceptor's).

use std::collections::HashMap;

use super::table::AddressHasher;

/// More CPUs than any kernel has (`CONFIG_NR_CPUS` ends at 8192); only garbage gets here.
const MAX_CPUS: usize = 16_384;

/// What is known of losses so far.
#[derive(Default)]
pub(super) struct Losses {
    lost_by_cpu: HashMap<u32, u64, AddressHasher>,
    /// Time of the event that showed the latest loss: the loss was before it.
    latest_ns: Option<u64>,
}

impl Losses {
    /// Reads one event's `lost_before`. The kernel's counters start at 0, so a first event with more
    /// shows a loss too.
    pub(super) fn note(&mut self, cpu: u32, lost_before: u64, time_ns: u64) {
        match self.lost_by_cpu.get_mut(&cpu) {
            Some(lost) if *lost >= lost_before => return,
            Some(lost) => *lost = lost_before,
            None => {
                if self.lost_by_cpu.len() < MAX_CPUS {
                    self.lost_by_cpu.insert(cpu, lost_before);
                }
                if lost_before == 0 {
                    return;
                }
            }
        }
        self.latest_ns = self.latest_ns.max(Some(time_ns));
    }

    /// Whether events were lost at a time when a handshake that was open since `since_ns` could have had one.
    pub(super) fn touches(&self, since_ns: u64) -> bool {
        self.latest_ns.is_some_and(|latest| latest > since_ns)
    }
}

//! The second account: what the kernel counts too, kept by namespace and compared with what it says.
//!
//! An opening is counted when the tracker first knows of it, so that a handshake still open is in both accounts.
//! What a newcomer would get wrong: a reading is no moment. The kernel counts an open a little after (or, for a
//! child, before) our hook saw it, so one that falls near a reading may be on either side of
//! it: such opens are a play of the comparison, and everything else must be equal.

use std::collections::{BTreeMap, btree_map::Entry};

use super::child::Child;
use crate::model::mib::{
    Compared, Difference, MibCounter, MibReading, MibValues, NamespaceMib, NotCompared, Reconciliation,
    TALLIES, Tally,
};

/// How long before a reading our hook may have seen what the kernel counts only after it. tcp_connect() counts last
/// of all, and its thread may lose the CPU before that. It must be less than the tracker's ordering window:
/// what is older than that has been counted when a reading comes.
const NEAR_BEFORE_NS: u64 = 40_000_000;

/// How long after a reading our hook may have seen what the kernel had counted before it: a child and a failure
/// are counted first, in the same softirq work.
const NEAR_AFTER_NS: u64 = 10_000_000;

/// Namespaces that are followed; a host with more has the rest counted as left out.
const MAX_NAMESPACES: usize = 16_384;

/// A record names this many namespaces that differ.
const MAX_DIFFERENCES: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    started: Option<Started>,
    accounts: BTreeMap<u32, Account>,
    /// The latest reading, until everything from before its end has been processed.
    pending: Option<MibReading>,
    latest: Option<Reconciliation>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Started {
    Comparing,
    Refused(NotCompared),
}

/// One namespace.
#[derive(Default)]
struct Account {
    /// It ended, or became another one under the same number: what was counted is of several.
    lost_track: bool,
    /// The first reading that it was in. What it did before is not counted: another namespace may have had its
    /// number then.
    base: Option<NamespaceMib>,
    /// The latest values, which tell whether it is still the same one.
    latest: Option<MibValues>,
    /// When something was counted in it for the first time.
    first_ns: Option<u64>,
    /// After the first reading.
    seen: [u64; TALLIES],
    /// Near the first reading, and in `seen` not.
    near_base: [u64; TALLIES],
    /// Near the pending reading, and in `seen` too.
    near_pending: [u64; TALLIES],
    /// After the pending reading, and in `seen` too.
    after_pending: [u64; TALLIES],
    /// What the kernel may have counted since and may have counted before: the resets of half-open requests that were
    /// there before us, whose end no hook of ours tells, and children of which nobody saw when they were queued.
    unsure: [u64; TALLIES],
}

impl Ledger {
    /// Counts `weight` of something that happened at `time_ns`.
    pub(super) fn add(&mut self, netns: Option<u32>, tally: Tally, time_ns: u64, weight: u64) {
        if weight != 0 {
            self.change(netns, tally, time_ns, |count| *count = count.saturating_add(weight));
        }
    }

    /// Takes one back that was none, as it turned out.
    pub(super) fn take_back(&mut self, netns: Option<u32>, tally: Tally, time_ns: u64) {
        self.change(netns, tally, time_ns, |count| *count = count.saturating_sub(1));
    }

    /// A child was made; the first event that tells of it counts.
    pub(super) fn count_child(&mut self, child: &mut Child, netns: Option<u32>, made_ns: u64) {
        if !child.counted {
            child.counted = true;
            self.add(netns, Tally::PassiveOpens, made_ns, 1);
        }
    }

    /// A request that was half open before us.
    pub(super) fn request_was_there(&mut self, netns: Option<u32>) {
        self.may_be_counted(netns, Tally::EmbryonicResets);
    }

    /// A child of which the first that is seen is that it leaves the queue. The kernel withheld the hits before that,
    /// and counted it; unless it was made before our time.
    pub(super) fn child_came_unseen(&mut self, child: &mut Child, netns: Option<u32>) {
        if !child.counted && !child.seen_late {
            child.counted = true;
            self.may_be_counted(netns, Tally::PassiveOpens);
        }
    }

    /// A RST reached a request that became a child: the kernel counts the attempt as failed before it knows who wins, and
    /// before 5.13 the reset too.
    pub(super) fn reset_came_to_nothing(&mut self, netns: Option<u32>) {
        self.may_be_counted(netns, Tally::FailedOpens);
        self.may_be_counted(netns, Tally::EmbryonicResets);
    }

    fn may_be_counted(&mut self, netns: Option<u32>, tally: Tally) {
        if let Some(account) = self.account(netns) {
            account.unsure[tally as usize] += 1;
        }
    }

    fn account(&mut self, netns: Option<u32>) -> Option<&mut Account> {
        if self.started != Some(Started::Comparing) {
            return None;
        }
        let full = self.accounts.len() >= MAX_NAMESPACES;
        // A socket without a namespace does not exist; if one could not be read, it is in none of ours.
        match self.accounts.entry(netns.unwrap_or(0)) {
            Entry::Occupied(account) => Some(account.into_mut()),
            Entry::Vacant(_) if full => None,
            Entry::Vacant(place) => Some(place.insert(Account::default())),
        }
    }

    fn change(&mut self, netns: Option<u32>, tally: Tally, time_ns: u64, change: impl Fn(&mut u64)) {
        let pending = netns.and_then(|netns| self.pending.as_ref()?.namespaces.get(&netns)).copied();
        let Some(account) = self.account(netns).filter(|account| !account.lost_track) else { return };
        let at = tally as usize;
        account.first_ns = account.first_ns.or(Some(time_ns));
        let Some(base) = account.base.filter(|base| !is_before(time_ns, *base)) else { return };
        if is_near(time_ns, base) {
            change(&mut account.near_base[at]);
            return;
        }
        change(&mut account.seen[at]);
        if let Some(pending) = pending {
            if is_near(time_ns, pending) {
                change(&mut account.near_pending[at]);
            } else if !is_before(time_ns, pending) {
                change(&mut account.after_pending[at]);
            }
        }
    }

    /// Takes a reading of the kernel's counters.
    pub(super) fn read(&mut self, reading: MibReading) {
        if self.started.is_none() {
            self.start(reading);
            return;
        }
        if self.started == Some(Started::Comparing) && reading.refused.is_none() {
            self.forget_pending();
            for (netns, mib) in &reading.namespaces {
                if let Some(account) = self.account(Some(*netns)) {
                    account.base.get_or_insert(*mib);
                }
            }
            self.pending = Some(reading);
        }
    }

    fn start(&mut self, reading: MibReading) {
        if let Some(reason) = reading.refused {
            self.started = Some(Started::Refused(reason));
            self.latest = Some(Reconciliation::without(reason));
            return;
        }
        self.started = Some(Started::Comparing);
        self.latest = Some(Reconciliation::without(NotCompared::NotYet));
        self.accounts = reading
            .namespaces
            .into_iter()
            .take(MAX_NAMESPACES)
            .map(|(netns, mib)| {
                (netns, Account { base: Some(mib), latest: Some(mib.values), ..Account::default() })
            })
            .collect();
    }

    /// Everything before `watermark_ns` was processed; compares if that is all the pending reading needs.
    pub(super) fn processed_before(&mut self, watermark_ns: u64) {
        let is_due = self.pending.as_ref().is_some_and(|reading| {
            let last_ns = reading.namespaces.values().map(|mib| mib.to_ns).max().unwrap_or(0);
            watermark_ns > last_ns.saturating_add(NEAR_AFTER_NS)
        });
        if is_due {
            self.compare();
        }
    }

    /// How the two accounts compare; absent when the kernel's was never read.
    pub(super) fn reconciliation(&self) -> Option<&Reconciliation> {
        self.latest.as_ref()
    }

    /// Compares with the pending reading, if there is one.
    pub(super) fn compare(&mut self) {
        let Some(reading) = self.pending.take() else { return };
        let first_ns = reading.namespaces.values().map(|mib| mib.from_ns).min().unwrap_or(0);
        let mut result = Reconciliation::default();
        for (netns, mib) in &reading.namespaces {
            let Some(account) = self.accounts.get_mut(netns) else {
                result.left_out += 1;
                continue;
            };
            account.lost_track |= account.latest.is_some_and(|before| is_another(before, mib.values));
            if account.lost_track {
                continue;
            }
            account.latest = Some(mib.values);
            if account.base == Some(*mib) {
                // It began meanwhile: from now on it can be compared.
                result.left_out += 1;
                continue;
            }
            result.namespaces += 1;
            for tally in Tally::ALL {
                if tally == Tally::EmbryonicResets && !reading.requests_are_seen {
                    continue;
                }
                let Some(compared) = account.compared(tally, &mib.values) else { continue };
                add_row(&mut result.tallies[tally as usize], compared);
                if (compared.missing != 0 || compared.surplus != 0)
                    && result.differences.len() < MAX_DIFFERENCES
                {
                    result.differences.push(Difference { netns: *netns, tally, compared });
                }
            }
        }
        for (netns, account) in &mut self.accounts {
            // One that was born after the reading is none of its business yet.
            let is_younger = account.base.is_none() && account.first_ns.is_none_or(|first| first > first_ns);
            account.lost_track |= !reading.namespaces.contains_key(netns) && !is_younger;
            result.left_out += u64::from(account.lost_track);
        }
        result.left_out += u64::from(reading.unread);
        self.latest = Some(result);
        self.forget_pending();
    }

    fn forget_pending(&mut self) {
        self.pending = None;
        for account in self.accounts.values_mut() {
            account.near_pending = [0; TALLIES];
            account.after_pending = [0; TALLIES];
        }
    }
}

impl Account {
    fn compared(&self, tally: Tally, values: &MibValues) -> Option<Compared> {
        let at = tally as usize;
        let base = tally.in_kernel(&self.base?.values)?;
        let kernel = tally.in_kernel(values)?.saturating_sub(base);
        let not_yet = self.near_pending[at].saturating_add(self.after_pending[at]);
        let least = self.seen[at].saturating_sub(not_yet);
        let play = self.near_base[at].saturating_add(self.near_pending[at]).saturating_add(self.unsure[at]);
        let seen = kernel.clamp(least, least.saturating_add(play));
        Some(Compared {
            kernel,
            seen,
            missing: kernel.saturating_sub(seen),
            surplus: seen.saturating_sub(kernel),
        })
    }
}

fn add_row(row: &mut Option<Compared>, more: Compared) {
    let row = row.get_or_insert_default();
    row.kernel = row.kernel.saturating_add(more.kernel);
    row.seen = row.seen.saturating_add(more.seen);
    row.missing = row.missing.saturating_add(more.missing);
    row.surplus = row.surplus.saturating_add(more.surplus);
}

fn is_before(time_ns: u64, reading: NamespaceMib) -> bool {
    time_ns < reading.from_ns.saturating_sub(NEAR_BEFORE_NS)
}

fn is_near(time_ns: u64, reading: NamespaceMib) -> bool {
    !is_before(time_ns, reading) && time_ns <= reading.to_ns.saturating_add(NEAR_AFTER_NS)
}

/// The kernel gives a dead namespace's number to the next one, whose counters begin anew.
fn is_another(before: MibValues, now: MibValues) -> bool {
    MibCounter::ALL.into_iter().any(|counter| match (before[counter as usize], now[counter as usize]) {
        (Some(before), Some(now)) if counter == MibCounter::Identity => now != before,
        (Some(before), Some(now)) => now < before,
        _ => false,
    })
}

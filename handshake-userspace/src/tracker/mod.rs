//! Reconstructs handshakes from acts: observations in, one record per handshake out.
//!
//! Second stage of the pipeline, after decode. Pure and synchronous: no clock, no I/O, no log, no channel;
//! time comes in with observations and ticks, so that the same input gives the same records, byte for byte.
//! Observations wait in a short window to be put in order (`reorder`), then each acts on the entry of its
//! socket (`table`): `active_open`, `simultaneous` and `passive_open` follow the two sides, `verdict` says
//! how one ended, `record` writes it, `queued` follows a child that accept() leaves waiting.
//! What a newcomer would get wrong: deadlines fire by the time of what is processed and not of what arrives,
//! else the records would depend on how the reader's batches fell.

mod active_open;
mod child;
mod config;
mod drops;
mod entry;
mod ledger;
mod listeners;
mod loss;
mod passive_open;
mod queued;
mod raced;
mod record;
mod reorder;
mod simultaneous;
mod suspends;
mod table;
mod told;
mod verdict;
mod views;

#[cfg(test)]
mod tests;

use handshake_common::tcp::TcpState;

pub use self::{
    config::TrackerConfig,
    views::{OpenHandshake, Step},
};
use self::{
    entry::{At, AttachMix, Entry, Identity, Kind},
    ledger::Ledger,
    listeners::Listeners,
    loss::Losses,
    queued::{GivenUp, QueuedChild},
    record::Head,
    reorder::ReorderBuffer,
    suspends::Suspends,
    table::{Patience, Table},
    told::{Connection, Told},
};
use crate::model::{
    handshake::{Handshake, HandshakeUpdate, Key},
    health::TrackerCounts,
    mib::{Reconciliation, Tally},
    observation::{Act, Ends, Input, Observation, SocketSeen},
    outcome::{EvidenceKind, Flag, Outcome, Role},
};

/// See the module.
pub struct Tracker {
    config: TrackerConfig,
    held: ReorderBuffer,
    table: Table,
    listeners: Listeners,
    losses: Losses,
    suspends: Suspends,
    given_up: GivenUp,
    told: Told,
    ledger: Ledger,
    counts: TrackerCounts,
    /// Attempts in the table of which no segment was let in so far.
    dropped_attempts: usize,
    /// Counter of the latest key.
    latest_key: u64,
    /// The latest time that an observation or a tick told.
    newest_ns: u64,
    /// All that is older has been processed.
    watermark_ns: u64,
    /// Time of what is being processed; never goes back.
    clock_ns: u64,
}

/// Why an entry ends now; matters where it has not ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Its last act was seen.
    Ended,
    /// It waited long enough.
    OutOfPatience,
    /// Its address has another life now.
    Displaced,
    /// There is no room for it.
    TableFull,
    /// The source ended.
    Stopped,
}

impl Tracker {
    /// One that has seen nothing.
    pub fn new(config: TrackerConfig) -> Self {
        Tracker {
            table: Table::new(&config),
            config,
            held: ReorderBuffer::default(),
            listeners: Listeners::default(),
            losses: Losses::default(),
            suspends: Suspends::default(),
            given_up: GivenUp::default(),
            told: Told::default(),
            ledger: Ledger::default(),
            counts: TrackerCounts::default(),
            dropped_attempts: 0,
            latest_key: 0,
            newest_ns: 0,
            watermark_ns: 0,
            clock_ns: 0,
        }
    }

    /// Takes one input and appends what became final by it.
    pub fn observe(&mut self, input: Input, out: &mut Vec<HandshakeUpdate>) {
        match input {
            Input::Observation(observation) => {
                if observation.time_ns < self.watermark_ns {
                    self.counts.late += 1;
                    self.process_late(*observation, out);
                } else {
                    self.newest_ns = self.newest_ns.max(observation.time_ns);
                    self.held.push(observation);
                    if self.held.len() > self.config.max_held
                        && let Some(earliest_ns) = self.held.earliest_ns()
                    {
                        self.process_before(earliest_ns.saturating_add(1), out);
                    }
                    self.process_before(self.newest_ns.saturating_sub(self.config.window_ns), out);
                }
            }
            Input::Tick { now_ns } => {
                self.newest_ns = self.newest_ns.max(now_ns);
                self.process_before(self.newest_ns.saturating_sub(self.config.window_ns), out);
            }
            Input::Anchor(anchor) => self.suspends.note(anchor),
            Input::Mib(reading) => self.ledger.read(*reading),
            Input::End { now_ns } => self.end(now_ns, out),
        }
        debug_assert_eq!(
            self.counts.seen,
            self.counts.established + self.counts.failed + self.counts.in_flight,
            "the sums must close"
        );
    }

    /// The accounting.
    pub fn counts(&self) -> TrackerCounts {
        self.counts.clone()
    }

    /// How the kernel's own counters compare with what was seen; absent when they were never read.
    pub fn reconciliation(&self) -> Option<&Reconciliation> {
        self.ledger.reconciliation()
    }

    /// Processes in order what happened before `watermark_ns`. An act and a deadline of the same time: the
    /// act comes first.
    fn process_before(&mut self, watermark_ns: u64, out: &mut Vec<HandshakeUpdate>) {
        if watermark_ns <= self.watermark_ns {
            return;
        }
        while self.held.earliest_ns().is_some_and(|time_ns| time_ns < watermark_ns)
            && let Some(observation) = self.held.pop()
        {
            self.fire_deadlines(observation.time_ns, out);
            self.process(*observation, out);
        }
        self.fire_deadlines(watermark_ns, out);
        self.watermark_ns = watermark_ns;
        self.ledger.processed_before(watermark_ns);
    }

    fn fire_deadlines(&mut self, now_ns: u64, out: &mut Vec<HandshakeUpdate>) {
        while let Some((deadline_ns, entry)) = self.table.take_due(now_ns) {
            self.clock_ns = self.clock_ns.max(deadline_ns);
            self.finish(entry, Why::OutOfPatience, out);
        }
    }

    fn end(&mut self, now_ns: u64, out: &mut Vec<HandshakeUpdate>) {
        self.newest_ns = self.newest_ns.max(now_ns);
        self.process_before(self.newest_ns.saturating_add(1), out);
        // Only garbage has the last time there is; it is processed all the same.
        while let Some(observation) = self.held.pop() {
            self.process(*observation, out);
        }
        self.ledger.compare();
        self.clock_ns = self.clock_ns.max(self.newest_ns);
        for entry in self.table.take_all() {
            self.finish(entry, Why::Stopped, out);
        }
    }

    fn process(&mut self, observation: Observation, out: &mut Vec<HandshakeUpdate>) {
        let at = At::from(&observation);
        self.clock_ns = self.clock_ns.max(at.time_ns);
        self.losses.note(observation.cpu, observation.lost_before, at.time_ns);
        match observation.act {
            Act::SynSent(act) => self.syn_sent(at, act, out),
            Act::ConnectFailed(act) => self.connect_failed(at, act, out),
            Act::LeftSynSent(act) => self.left_syn_sent(at, act, out),
            Act::ConnectReturned { errno } => self.connect_returned(at, errno, out),
            Act::FastOpenAnswered { cookie } => self.fast_open_answered(at, cookie, out),
            Act::AddressRewritten { asked } => self.address_rewritten(at, asked, out),
            Act::ChildQueued(act) => self.child_queued(at, act, out),
            Act::LeftSynReceived(act) => self.left_syn_received(at, act, out),
            Act::RequestDied(act) => self.request_died(at, act, out),
            // The handshake is the winner's; the kernel has counted both.
            Act::ChildUndone { ends } => self.ledger.add(ends.netns, Tally::PassiveOpens, at.time_ns, 1),
            Act::Accepted(act) => self.accepted(at, act, out),
            Act::ChildDestroyed(act) => self.child_destroyed(at, act, out),
            Act::ListenerOpened(act) => self.listeners.opened(at.socket.address, act),
            Act::ListenerClosed(_) => self.listeners.closed(at.socket.address, at.time_ns),
            Act::SynRetransmitted { ends, attempt } => self.syn_retransmitted(at, ends, attempt, out),
            Act::SocketSeen(seen) => self.socket_seen(at, seen, out),
            Act::SegmentDropped(act) => self.segment_dropped(at, *act, out),
        }
    }

    fn socket_seen(&mut self, at: At, seen: SocketSeen, out: &mut Vec<HandshakeUpdate>) {
        if matches!(seen.state, TcpState::SynReceived | TcpState::NewSynReceived) {
            self.ledger.request_was_there(seen.ends.netns);
        }
        match seen.state {
            TcpState::SynSent => self.seen_connecting(at, seen, out),
            // What it tells when it ends need not say that it is old (tracepoint mode).
            TcpState::NewSynReceived => self.listeners.request_was_there(seen.ends),
            // A child that the hooks have already announced needs nothing.
            _ if seen.queued && self.table.get(at.socket.address).is_none() => {
                self.listeners.child_was_there(at.socket.address);
            }
            _ => {}
        }
    }

    /// Takes out the entry that an event is about. One of an earlier life of the address is over by that; one
    /// of a later life stays where it is, for the event only comes late.
    fn take_life(&mut self, at: At, out: &mut Vec<HandshakeUpdate>) -> Option<Entry> {
        let entry = self.table.get(at.socket.address)?;
        if entry.identity.is_after(at.socket) {
            return None;
        }
        let is_it = entry.identity.is_life_of(at.socket);
        let entry = self.table.take(at.socket.address)?;
        if is_it {
            return Some(entry);
        }
        self.finish(entry, Why::Displaced, out);
        None
    }

    /// Whether an opening act may begin an entry; if not, that is counted.
    fn has_room(&mut self) -> bool {
        let has_room = self.counts.in_flight < self.config.max_open as u64;
        if !has_room {
            self.counts.table_full += 1;
        }
        has_room
    }

    /// Gives a handshake its key. It is in flight from now on, in the table or not.
    fn begin(&mut self, at: At, since_ns: u64, kind: Kind) -> Entry {
        self.latest_key += 1;
        self.counts.seen += 1;
        self.counts.in_flight += 1;
        let identity = Identity {
            address: at.socket.address,
            generation_ns: at.socket.generation_ns,
            counter: self.latest_key,
            since_ns,
            attach: AttachMix::default().and(at.attach),
        };
        Entry { identity, kind }
    }

    /// Puts an entry into the table to wait; where it can't wait, it ends with what is known.
    fn keep(&mut self, entry: Entry, patience: Patience, out: &mut Vec<HandshakeUpdate>) {
        if self.table.get(entry.identity.address).is_some() {
            self.finish(entry, Why::Displaced, out);
        } else if self.counts.in_flight > self.config.max_open as u64 {
            self.counts.table_full += 1;
            self.finish(entry, Why::TableFull, out);
        } else {
            self.table.put(entry, patience, self.clock_ns);
        }
    }

    /// Writes the record of an entry that is out of the table.
    fn finish(&mut self, entry: Entry, why: Why, out: &mut Vec<HandshakeUpdate>) {
        let Entry { identity, kind } = entry;
        let events_lost = self.losses.touches(identity.since_ns);
        let head = Head {
            key: Key { boot: self.config.boot, counter: identity.counter },
            attach: identity.attach.kind(),
            since_ns: identity.since_ns,
            events_lost,
            cut_short: match why {
                Why::Stopped => EvidenceKind::StoppedWatching,
                Why::TableFull => EvidenceKind::TableFull,
                _ if events_lost => EvidenceKind::EventsLost,
                _ => EvidenceKind::NothingMoreSeen,
            },
        };
        let (mut record, still_queued) = match kind {
            Kind::Active(open) => {
                let (netns, counted_ns) = (open.ends.netns, open.counted_ns.filter(|_| !open.syns_uncounted));
                let dropped = (open.syns_dropped != 0)
                    .then(|| self.told_drops(open.syns_dropped, EvidenceKind::DropReason, open.drop_reason));
                let record = record::of_active_open(*open, dropped, head);
                if let (Some(counted_ns), None) = (counted_ns, record.retransmits.syn) {
                    // Under TCP_REPAIR, or because tcp_connect() failed, no SYN left after all.
                    self.ledger.take_back(netns, Tally::ActiveOpens, counted_ns);
                }
                (record, None)
            }
            Kind::Dropped(attempt) => {
                self.dropped_attempts -= 1;
                let dropped = self.told_drops(attempt.segments, attempt.cause(), attempt.reason);
                (drops::of_dropped_attempt(*attempt, dropped, head), None)
            }
            Kind::Child(child) => {
                let still_queued = child.is_in_queue().then_some((child.ends, child.queued_ns));
                let dropped = child
                    .dropped
                    .as_ref()
                    .map(|attempt| self.told_drops(attempt.segments, attempt.cause(), attempt.reason));
                (record::of_child(*child, dropped, head), still_queued)
            }
            Kind::Queued(child) => {
                self.counts.queued -= 1;
                self.lost_in_queue(identity, *child, out);
                return;
            }
        };
        if record.role == Role::Server && self.is_told_by_another(&identity, &record) {
            self.counts.seen -= 1;
            self.counts.in_flight -= 1;
            self.counts.unmatched += 1;
            return;
        }
        if self.suspends.is_between(record.began_ns, self.clock_ns) {
            record.flags.push(Flag::Suspended);
            record.flags.sort_unstable();
        }
        self.counts.in_flight -= 1;
        if record.outcome.is_failure() {
            self.counts.failed += 1;
        } else {
            self.counts.established += 1;
        }
        if record.outcome == Outcome::Incomplete {
            self.counts.incomplete += 1;
        }
        let id = record.id;
        out.push(HandshakeUpdate::Handshake(Box::new(record)));
        if let Some((ends, queued_ns)) = still_queued {
            self.follow_in_queue(identity, QueuedChild { id, ends, queued_ns }, why, out);
        }
    }

    /// Whether a passive open has its record, by events that named it otherwise. If not, this is it.
    fn is_told_by_another(&mut self, identity: &Identity, record: &Handshake) -> bool {
        let ends =
            Ends { local: record.local, remote: record.remote, netns: record.netns, ..Ends::default() };
        let connection = Connection::of(&ends, record.isn.local, record.isn.remote);
        if connection.is_some_and(|connection| self.told.is_anothers(connection, identity.counter)) {
            return true;
        }
        self.told.write(identity);
        false
    }

    /// The record of a queued child is written; follows it to accept() if that can be.
    fn follow_in_queue(
        &mut self,
        identity: Identity,
        child: QueuedChild,
        why: Why,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        let waits =
            matches!(why, Why::Ended | Why::OutOfPatience) && self.table.get(identity.address).is_none();
        if waits && self.counts.queued < self.config.max_queued as u64 {
            self.counts.queued += 1;
            let entry = Entry { identity, kind: Kind::Queued(Box::new(child)) };
            self.table.put(entry, Patience::Forever, self.clock_ns);
            return;
        }
        if waits || why == Why::TableFull {
            self.given_up.add(child.queued_ns.unwrap_or(self.clock_ns));
        }
        if waits {
            self.counts.table_full += 1;
        }
        self.lost_in_queue(identity, child, out);
    }
}

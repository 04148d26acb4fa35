//! Active opens: from the first SYN to the end of SYN-SENT and the return of connect().
//!
//! Each event at an end repeats what came before, so any of them alone makes a record; an entry only fills
//! the gaps and joins what one event can't know. What a newcomer would get wrong: the socket is ESTABLISHED
//! when it leaves SYN-SENT, and connect() returns later, when the scheduler gets to it: the wait for that
//! return is short, and the record goes out without it if need be.

use std::net::SocketAddr;

use super::{
    Tracker, Why,
    entry::{At, Entry, Kind, complete_ends},
    table::Patience,
    verdict,
};
use crate::model::{
    handshake::HandshakeUpdate,
    mib::Tally,
    observation::{ConnectFailed, Ends, LeftSynSent, PassiveOpen, SocketSeen, SynSent},
    process::Process,
};
use handshake_common::tcp::TcpState;

/// What is known of one active open; facts of later events replace those of earlier ones.
#[derive(Default)]
pub(super) struct ActiveOpen {
    pub(super) ends: Ends,
    /// What connect() was given, where TCP connects to another end.
    pub(super) asked: Option<SocketAddr>,
    pub(super) process: Option<Process>,
    pub(super) called_ns: Option<u64>,
    pub(super) syn_sent_ns: Option<u64>,
    pub(super) local_isn: Option<u32>,
    pub(super) deferred: bool,
    pub(super) fast_open: bool,
    pub(super) own: bool,
    pub(super) seen_late: bool,
    /// It began while we watched, and the kernel side had no room for what it saw then.
    pub(super) syn_time_lost: bool,
    /// How many SYNs left, before we watched or unseen, is unknown.
    pub(super) syns_uncounted: bool,
    pub(super) syn_retransmits: u32,
    pub(super) last_retransmit_ns: Option<u64>,
    /// SYNs that this host dropped on their way out, and why.
    pub(super) syns_dropped: u32,
    pub(super) drop_reason: Option<u32>,
    /// When its SYN left, as the ledger counted it.
    pub(super) counted_ns: Option<u64>,
    /// connect() went back to its caller while the socket was still in SYN-SENT.
    pub(super) returned_early: bool,
    /// connect() went back to its caller after the end: when, and the errno.
    pub(super) returned: Option<(u64, u32)>,
    /// connect() failed before any SYN, with this errno, and when.
    pub(super) failed: Option<u32>,
    pub(super) failed_ns: Option<u64>,
    /// The socket left SYN-SENT.
    pub(super) end: Option<(u64, Box<LeftSynSent>)>,
    /// The SYN-ACK was looked at for a Fast Open cookie; what was found, if its options could be read.
    pub(super) cookie: Option<Option<bool>>,
    /// It left SYN-RECEIVED: a simultaneous open.
    pub(super) crossed: Option<(u64, Box<PassiveOpen>)>,
}

impl ActiveOpen {
    /// Whether the handshake itself has ended.
    pub(super) fn is_over(&self) -> bool {
        let left = self.end.as_ref().is_some_and(|(_, end)| end.new_state != TcpState::SynReceived);
        left || self.failed.is_some() || self.crossed.is_some()
    }

    /// Whether a SYN is known to have left.
    pub(super) fn syn_left(&self) -> bool {
        let answered = self.end.as_ref().is_some_and(|(_, end)| {
            // The kernel side reads an ISN off a closed socket only where something shows that the SYN left.
            end.agreed.local_isn.is_some()
                || end.answered_ns.is_some()
                || end.reset_received
                || end.new_state != TcpState::Closed
        });
        self.syn_sent_ns.is_some() || self.syn_retransmits > 0 || self.seen_late || answered
    }

    /// Whether the return of connect() is still to come and worth waiting for.
    pub(super) fn awaits_return(&self) -> bool {
        if self.returned.is_some() || self.returned_early {
            return false;
        }
        let Some((_, end)) = &self.end else {
            // A failed call may be reported twice (an AF_INET6 socket calls the IPv4 function inside its
            // own), so even a certain failure is held for a moment.
            return self.failed.is_some();
        };
        // Closed without an error before any SYN: only the call's errno says why, if anything does.
        let closed_by_call = end.new_state == TcpState::Closed && !self.syn_left() && !end.deferred;
        !end.call_returned && (end.return_is_seen || closed_by_call)
    }

    /// Whether what the SYN-ACK says of Fast Open is still to come: it follows the end at once.
    pub(super) fn awaits_cookie(&self) -> bool {
        self.cookie.is_none() && self.end.as_ref().is_some_and(|(_, end)| end.cookie_follows)
    }

    fn complete_by(&mut self, time_ns: u64, mut end: Box<LeftSynSent>) {
        self.ends = complete_ends(end.ends, self.ends);
        self.process = end.process.take().or(self.process.take());
        self.called_ns = end.called_ns.or(self.called_ns);
        self.syn_sent_ns = end.syn_sent_ns.or(self.syn_sent_ns);
        self.local_isn = end.agreed.local_isn.or(self.local_isn);
        self.deferred |= end.deferred;
        self.fast_open |= end.fast_open;
        self.own |= end.own;
        self.syn_retransmits = self.syn_retransmits.max(u32::from(end.syn_retransmits));
        self.last_retransmit_ns = self.last_retransmit_ns.max(end.last_retransmit_ns);
        self.end = Some((time_ns, end));
    }
}

impl Tracker {
    pub(super) fn syn_sent(&mut self, at: At, act: SynSent, out: &mut Vec<HandshakeUpdate>) {
        if let Some(mut old) = self.take_life(at, out) {
            if old.identity.is_named_by(at.socket) && matches!(old.kind, Kind::Active(_)) {
                old.identity.fed_by(at);
                self.settle_active(old, out);
                return;
            }
            self.finish(old, Why::Displaced, out);
        }
        let open = ActiveOpen {
            ends: act.ends,
            process: act.process,
            called_ns: act.called_ns,
            syn_sent_ns: Some(at.time_ns),
            local_isn: act.local_isn,
            deferred: act.deferred,
            fast_open: act.fast_open,
            own: act.own,
            counted_ns: Some(at.time_ns),
            ..ActiveOpen::default()
        };
        // With the table full this act is dropped and counted: the event at the end repeats it.
        if self.has_room() {
            self.ledger.add(open.ends.netns, Tally::ActiveOpens, at.time_ns, 1);
            let entry = self.begin(at, at.time_ns, Kind::Active(Box::new(open)));
            self.keep(entry, Patience::Silence, out);
        }
    }

    pub(super) fn left_syn_sent(&mut self, at: At, act: Box<LeftSynSent>, out: &mut Vec<HandshakeUpdate>) {
        let mut entry = match self.take_life(at, out) {
            Some(entry)
                if matches!(&entry.kind, Kind::Active(open) if open.end.is_none()
                    && (open.failed.is_none() || act.new_state == TcpState::Closed)) =>
            {
                entry
            }
            Some(entry) if entry.identity.is_named_by(at.socket) && matches!(entry.kind, Kind::Active(_)) => {
                // Told twice; the first time counts.
                self.settle_active(entry, out);
                return;
            }
            other => {
                if let Some(old) = other {
                    self.finish(old, Why::Displaced, out);
                }
                let since_ns = act.called_ns.or(act.syn_sent_ns).unwrap_or(at.time_ns);
                // Neither a SYN nor a place in the kernel side's tables: it was in SYN-SENT before us, unless the kernel
                // side knows better.
                let syns_uncounted = act.syn_sent_ns.is_none()
                    && at.socket.generation_ns.is_none()
                    && act.new_state != TcpState::Closed;
                let open = ActiveOpen {
                    seen_late: syns_uncounted && !act.syn_time_lost,
                    syn_time_lost: act.syn_time_lost,
                    syns_uncounted,
                    ..ActiveOpen::default()
                };
                self.begin(at, since_ns, Kind::Active(Box::new(open)))
            }
        };
        entry.identity.fed_by(at);
        self.counts.ends_unseen += u64::from(act.found_late);
        if let Kind::Active(open) = &mut entry.kind {
            if is_given_up(&act) {
                self.ledger.add(act.ends.netns, Tally::FailedOpens, at.time_ns, 1);
            }
            if open.counted_ns.is_none() && !open.seen_late {
                open.counted_ns = syn_left_ns(&act).or_else(|| {
                    // It left while we watched; when is all that is unknown.
                    (open.syn_time_lost && act.agreed.local_isn.is_some()).then_some(at.time_ns)
                });
                if let Some(time_ns) = open.counted_ns {
                    self.ledger.add(act.ends.netns, Tally::ActiveOpens, time_ns, 1);
                }
            }
            open.complete_by(at.time_ns, act);
        }
        self.settle_active(entry, out);
    }

    pub(super) fn connect_failed(&mut self, at: At, act: ConnectFailed, out: &mut Vec<HandshakeUpdate>) {
        if verdict::is_still_connecting(act.errno) {
            // A second connect() on a socket whose handshake goes on fails for itself alone.
            self.counts.unmatched += 1;
            return;
        }
        let mut entry = match self.take_life(at, out) {
            Some(entry) if Self::is_same_call(&entry, at, &act) => entry,
            other => {
                if let Some(old) = other {
                    self.finish(old, Why::Displaced, out);
                }
                let since_ns = act.called_ns.unwrap_or(at.time_ns);
                self.begin(at, since_ns, Kind::Active(Box::default()))
            }
        };
        entry.identity.fed_by(at);
        if let Kind::Active(open) = &mut entry.kind {
            open.ends = complete_ends(act.ends, open.ends);
            open.process = act.process.or(open.process.take());
            open.called_ns = open.called_ns.or(act.called_ns);
            open.own |= act.own;
            open.failed = open.failed.or(Some(act.errno));
            open.failed_ns = open.failed_ns.or(Some(at.time_ns));
        }
        self.settle_active(entry, out);
    }

    pub(super) fn connect_returned(&mut self, at: At, errno: u32, out: &mut Vec<HandshakeUpdate>) {
        self.learn(at, out, |open| {
            if open.is_over() {
                open.returned = open.returned.or(Some((at.time_ns, errno)));
            } else {
                open.returned_early = true;
            }
        });
    }

    pub(super) fn fast_open_answered(
        &mut self,
        at: At,
        cookie: Option<bool>,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        self.learn(at, out, |open| open.cookie = open.cookie.or(Some(cookie)));
    }

    pub(super) fn address_rewritten(
        &mut self,
        at: At,
        asked: Option<SocketAddr>,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        self.learn(at, out, |open| open.asked = open.asked.or(asked));
    }

    pub(super) fn syn_retransmitted(
        &mut self,
        at: At,
        ends: Ends,
        attempt: Option<u32>,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        self.learn(at, out, |open| {
            open.ends = complete_ends(open.ends, ends);
            open.syn_retransmits = attempt.unwrap_or(0).max(open.syn_retransmits.saturating_add(1));
            open.last_retransmit_ns = open.last_retransmit_ns.max(Some(at.time_ns));
        });
    }

    /// What an act adds to an active open that is known; one that is not begins nothing by it, and is counted.
    fn learn(&mut self, at: At, out: &mut Vec<HandshakeUpdate>, what: impl FnOnce(&mut ActiveOpen)) {
        let Some(mut entry) = self.take_active(at) else {
            self.counts.unmatched += 1;
            return;
        };
        entry.identity.fed_by(at);
        if let Kind::Active(open) = &mut entry.kind {
            what(open);
        }
        self.settle_active(entry, out);
    }

    /// The snapshot found a socket in SYN-SENT.
    pub(super) fn seen_connecting(&mut self, at: At, seen: SocketSeen, out: &mut Vec<HandshakeUpdate>) {
        // What the hooks know of it is more than what the iterator saw.
        if self.table.get(at.socket.address).is_some() || !self.has_room() {
            return;
        }
        let open = ActiveOpen {
            ends: seen.ends,
            seen_late: true,
            syn_retransmits: u32::from(seen.retransmits),
            ..ActiveOpen::default()
        };
        let entry = self.begin(at, at.time_ns, Kind::Active(Box::new(open)));
        self.keep(entry, Patience::Silence, out);
    }

    /// Writes the record if nothing more is worth waiting for.
    pub(super) fn settle_active(&mut self, entry: Entry, out: &mut Vec<HandshakeUpdate>) {
        match &entry.kind {
            Kind::Active(open) if !open.is_over() => self.keep(entry, Patience::Silence, out),
            Kind::Active(open) if open.awaits_return() || open.awaits_cookie() => {
                self.keep(entry, Patience::Wake, out);
            }
            _ => self.finish(entry, Why::Ended, out),
        }
    }

    /// Takes out the active open that an event is about.
    pub(super) fn take_active(&mut self, at: At) -> Option<Entry> {
        let entry = self.table.get(at.socket.address)?;
        let is_it = entry.identity.is_life_of(at.socket) && matches!(entry.kind, Kind::Active(_));
        if is_it { self.table.take(at.socket.address) } else { None }
    }

    /// Whether a failed call belongs to this entry: the same generation, or where there is none the same
    /// call. One that failed once and is called again is another handshake.
    fn is_same_call(entry: &Entry, at: At, act: &ConnectFailed) -> bool {
        let Kind::Active(open) = &entry.kind else { return false };
        if entry.identity.is_named_by(at.socket) {
            return true;
        }
        match (open.called_ns, act.called_ns) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => open.failed.is_none() || !open.is_over(),
        }
    }
}

/// When the SYN left, if its own event was lost or its hook was skipped: then connect() was called and answered.
fn syn_left_ns(end: &LeftSynSent) -> Option<u64> {
    let answered = end.answered_ns.is_some() || end.new_state != TcpState::Closed;
    end.syn_sent_ns.or(end.called_ns.filter(|_| answered))
}

/// Whether the kernel gave the socket up, by tcp_done(), and nobody closed it: that leaves an error on it. The one
/// that tcp_disconnect() leaves on a socket which it closes itself comes later, unless its event did.
fn is_given_up(end: &LeftSynSent) -> bool {
    let by_itself = end.sk_err == Some(verdict::errno::ECONNRESET) && !end.reset_received;
    end.new_state == TcpState::Closed && end.sk_err.is_some_and(|error| error != 0) && !by_itself
}

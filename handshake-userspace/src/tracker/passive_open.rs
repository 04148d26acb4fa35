//! Passive opens: from the child that the final ACK made to accept(), or to its death.
//!
//! The SYN and the half-open time have no events of their own; what ends the half-open time tells of them.
//! What a newcomer would get wrong: with Fast Open accept() takes the child before it is ESTABLISHED, and a
//! RST while it is queued doesn't take it out of the queue, so acts are joined and never ordered by force.

use handshake_common::tcp::TcpState;

use super::{
    Tracker, Why,
    child::Child,
    entry::{At, Entry, Kind, complete_ends},
    queued::Leaving,
    table::Patience,
    told::Connection,
    verdict::{closed_without_error, errno},
};
use crate::model::{
    handshake::HandshakeUpdate,
    mib::Tally,
    observation::{Accepted, ChildDestroyed, PassiveOpen},
    outcome::AcceptOutcome,
};

impl Tracker {
    pub(super) fn child_queued(&mut self, at: At, act: Box<PassiveOpen>, out: &mut Vec<HandshakeUpdate>) {
        let queued_ns = act.queued_ns.unwrap_or(at.time_ns);
        let mut entry = match self.take_life(at, out) {
            // Its accept() was processed first (it came too late to be put in order), or it is told twice.
            Some(entry)
                if matches!(&entry.kind, Kind::Child(child) if child.half_open.is_none()
                    || entry.identity.is_named_by(at.socket)) =>
            {
                entry
            }
            other => {
                if let Some(old) = other {
                    self.finish(old, Why::Displaced, out);
                }
                match self.take_survivor(at, &act) {
                    Some(survivor) => survivor,
                    None if self.is_told(at, &act) => return,
                    None if !self.has_room() => {
                        // The event at ->ESTABLISHED repeats this one. With Fast Open accept() may come before
                        // that, and must not look like a child that nobody had announced.
                        self.given_up.add(queued_ns);
                        return;
                    }
                    None => self.begin_or_continue(at, queued_ns, &act),
                }
            }
        };
        entry.identity.fed_by(at);
        if let Kind::Child(child) = &mut entry.kind {
            child.listener_process = self.listeners.owner(act.listener).or(child.listener_process.take());
            child.queued_ns = child.queued_ns.or(Some(queued_ns));
            self.ledger.count_child(child, act.ends.netns, queued_ns);
            if act.reset_received {
                self.ledger.reset_came_to_nothing(act.ends.netns);
            }
            if child.established_ns.is_none() && !child.closed {
                if let Some(connection) = connection_of(&act) {
                    self.told.is_anothers(connection, entry.identity.counter);
                }
                child.complete_by(act);
            }
        }
        self.settle_child(entry, out);
    }

    pub(super) fn left_syn_received(
        &mut self,
        at: At,
        mut act: Box<PassiveOpen>,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        // A mode without probes misses the SYN of a handshake that is older than we are, and also each SYN that
        // was answered by a cookie.
        if act.syn_not_seen && act.synack_ns.is_none() {
            act.syn_not_seen = self.listeners.forget_request(&act.ends);
        }
        let mut entry = match self.take_life(at, out) {
            Some(entry) => match &entry.kind {
                Kind::Active(open)
                    if !open.is_over() && act.listener.is_none() && act.queued_ns.is_none() =>
                {
                    self.crossed_syn_received(at, entry, act, out);
                    return;
                }
                Kind::Child(child) if child.established_ns.is_none() && !child.closed => entry,
                Kind::Child(_) if entry.identity.is_named_by(at.socket) => {
                    self.settle_child(entry, out);
                    return;
                }
                Kind::Queued(_) if entry.identity.is_named_by(at.socket) => {
                    self.table.put(entry, Patience::Forever, self.clock_ns);
                    return;
                }
                _ => {
                    self.finish(entry, Why::Displaced, out);
                    match self.survive_or_begin(at, act.queued_ns.unwrap_or(at.time_ns), &act) {
                        Some(entry) => entry,
                        None => return,
                    }
                }
            },
            None => match self.survive_or_begin(at, act.queued_ns.unwrap_or(at.time_ns), &act) {
                Some(entry) => entry,
                None => return,
            },
        };
        entry.identity.fed_by(at);
        if let Kind::Child(child) = &mut entry.kind {
            child.listener_process = self.listeners.owner(act.listener).or(child.listener_process.take());
            self.ledger.count_child(child, act.ends.netns, act.queued_ns.unwrap_or(at.time_ns));
            self.ledger.add(act.ends.netns, Tally::FailedOpens, at.time_ns, failed_opens(&act));
            // A listener that closes disconnects the children that nobody accepted.
            if child.taken.is_none()
                && closed_without_error(&act)
                && let Some(owner) = self.listeners.closed_lately(act.listener, at.time_ns)
            {
                child.listener_closed = true;
                child.listener_process = owner;
            }
            match act.new_state {
                Some(TcpState::Established) => child.established_ns = Some(at.time_ns),
                _ if act.acknowledged => {
                    child.acknowledged_late = true;
                    child.established_ns =
                        Some(act.final_ack_ns.map_or(at.time_ns, |ack_ns| ack_ns.min(at.time_ns)));
                }
                _ => {
                    child.closed = true;
                    child.closed_ns = Some(at.time_ns);
                }
            }
            if let Some(connection) = connection_of(&act) {
                self.told.is_anothers(connection, entry.identity.counter);
            }
            child.complete_by(act);
        }
        self.settle_child(entry, out);
    }

    /// Whether what this event would begin is told already, or about to be; then that is counted.
    pub(super) fn is_told(&mut self, at: At, act: &PassiveOpen) -> bool {
        let is_told = self.told.covers(at, connection_of(act));
        self.counts.unmatched += u64::from(is_told);
        is_told
    }

    /// A request sock died half open. Its address is not a socket's, so it meets no entry, and its record
    /// needs nothing more.
    pub(super) fn request_died(&mut self, at: At, act: Box<PassiveOpen>, out: &mut Vec<HandshakeUpdate>) {
        if self.is_told(at, &act) {
            if act.reset_received {
                self.ledger.reset_came_to_nothing(act.ends.netns);
            }
            return;
        }
        let mut entry = self.begin_or_continue(at, at.time_ns, &act);
        // A SYN-ACK that its timer sends may be answered by a RST within the timer's own call.
        if act.reset_received && !act.end_not_seen && !act.still_open {
            self.ledger.add(act.ends.netns, Tally::EmbryonicResets, at.time_ns, 1);
        }
        let lost_sight = match (act.end_not_seen, act.still_open) {
            (_, true) => Some(Why::Stopped),
            (true, _) => Some(Why::OutOfPatience),
            _ => None,
        };
        if act.reset_sent && act.mptcp_join {
            // Its child was made, and closed in SYN-RECEIVED.
            self.ledger.add(act.ends.netns, Tally::PassiveOpens, at.time_ns, 1);
            self.ledger.add(act.ends.netns, Tally::FailedOpens, at.time_ns, 1);
        } else if act.reset_sent {
            // tcp_abort_on_overflow is no failed attempt to the kernel, though it is an embryonic reset, which is taken
            // off those.
            self.ledger.add(act.ends.netns, Tally::EmbryonicResets, at.time_ns, 1);
            if !act.other_syn {
                self.ledger.take_back(act.ends.netns, Tally::FailedOpens, at.time_ns);
            }
        }
        if let Kind::Child(child) = &mut entry.kind {
            child.listener_process = self.listeners.owner(act.listener);
            if let Some(why) = lost_sight {
                child.complete_by(act);
                self.finish(entry, why, out);
                return;
            }
            child.closed = true;
            child.closed_ns = Some(at.time_ns);
            child.request_died = true;
            if let Some(owner) = self.listeners.closed_lately(act.listener, at.time_ns) {
                child.listener_closed = true;
                child.listener_process = owner;
            }
            child.complete_by(act);
        }
        self.settle_request(entry, out);
    }

    pub(super) fn accepted(&mut self, at: At, act: Accepted, out: &mut Vec<HandshakeUpdate>) {
        let mut entry = match self.take_life(at, out) {
            Some(Entry { identity, kind }) => match kind {
                Kind::Child(_) => Entry { identity, kind },
                Kind::Queued(child) => {
                    self.counts.queued -= 1;
                    let reset = act.reset_ns.is_some();
                    let leaving = Leaving {
                        outcome: if reset { AcceptOutcome::ResetInQueue } else { AcceptOutcome::Accepted },
                        process: act.process,
                        queued_ns: act.queued_ns,
                        called_ns: act.waiting_since_ns,
                        when_is_known: !act.call_not_seen,
                    };
                    self.left_queue(at, identity, *child, leaving, out);
                    return;
                }
                Kind::Active(_) | Kind::Dropped(_) => {
                    self.finish(Entry { identity, kind }, Why::Displaced, out);
                    self.begin_child(at, act.queued_ns)
                }
            },
            None if self.given_up.covers(act.queued_ns) || self.told.is_written(at.socket) => {
                self.counts.unmatched += 1;
                return;
            }
            None => self.begin_child(at, act.queued_ns),
        };
        entry.identity.fed_by(at);
        if let Kind::Child(child) = &mut entry.kind {
            child.ends = complete_ends(child.ends, act.ends);
            child.queued_ns = act.queued_ns.or(child.queued_ns);
            self.count_leaving(child, act.queued_ns);
            child.reset_in_queue |= act.reset_ns.is_some();
            child.early |= act.before_established;
            if child.taken.is_none() {
                child.taken = Some(((!act.call_not_seen).then_some(at.time_ns), act.process));
                child.called_ns = act.waiting_since_ns;
            }
        }
        self.settle_child(entry, out);
    }

    pub(super) fn child_destroyed(&mut self, at: At, act: ChildDestroyed, out: &mut Vec<HandshakeUpdate>) {
        let mut entry = match self.take_life(at, out) {
            Some(Entry { identity, kind }) => match kind {
                Kind::Child(_) => Entry { identity, kind },
                Kind::Queued(child) => {
                    self.counts.queued -= 1;
                    let leaving = Leaving {
                        outcome: AcceptOutcome::NeverAccepted,
                        process: None,
                        queued_ns: act.queued_ns,
                        called_ns: None,
                        when_is_known: true,
                    };
                    self.left_queue(at, identity, *child, leaving, out);
                    return;
                }
                Kind::Active(_) | Kind::Dropped(_) => {
                    self.finish(Entry { identity, kind }, Why::Displaced, out);
                    self.begin_child(at, act.queued_ns)
                }
            },
            None if self.given_up.covers(act.queued_ns) || self.told.is_written(at.socket) => {
                self.counts.unmatched += 1;
                return;
            }
            None => self.begin_child(at, act.queued_ns),
        };
        entry.identity.fed_by(at);
        if let Kind::Child(child) = &mut entry.kind {
            child.ends = complete_ends(child.ends, act.ends);
            child.queued_ns = child.queued_ns.or(act.queued_ns);
            self.count_leaving(child, act.queued_ns);
            child.reset_in_queue |= act.reset_ns.is_some();
            child.destroyed = true;
        }
        self.settle_child(entry, out);
    }

    /// Its way into the queue is known to the hooks, or was withheld from them.
    fn count_leaving(&mut self, child: &mut Child, queued_ns: Option<u64>) {
        match queued_ns {
            Some(queued_ns) => self.ledger.count_child(child, child.ends.netns, queued_ns),
            None => self.ledger.child_came_unseen(child, child.ends.netns),
        }
    }

    /// A child whose queueing was seen is none of those that the snapshot found, though its address may be:
    /// the event of that one's death may have been lost.
    pub(super) fn begin_child(&mut self, at: At, queued_ns: Option<u64>) -> Entry {
        let was_there = self.listeners.forget_child(at.socket.address);
        let child = Child { seen_late: was_there && queued_ns.is_none(), ..Child::default() };
        self.begin(at, queued_ns.unwrap_or(at.time_ns), Kind::Child(Box::new(child)))
    }

    /// Writes the record if nothing more is worth waiting for.
    fn settle_child(&mut self, entry: Entry, out: &mut Vec<HandshakeUpdate>) {
        let Kind::Child(child) = &entry.kind else { return self.finish(entry, Why::Ended, out) };
        if child.destroyed || child.closed {
            self.finish(entry, Why::Ended, out);
        } else if child.established_ns.is_some() {
            if child.is_in_queue() {
                self.keep(entry, Patience::Accept, out);
            } else {
                self.finish(entry, Why::Ended, out);
            }
        } else if child.taken.is_some() && !child.is_fast_open() {
            // accept() returns no child before it is ESTABLISHED unless by Fast Open: the event was lost, or
            // it was before our time. If it is only late it still gets in.
            self.keep(entry, Patience::Wake, out);
        } else {
            self.keep(entry, Patience::Silence, out);
        }
    }
}

fn connection_of(act: &PassiveOpen) -> Option<Connection> {
    Connection::of(&act.ends, act.agreed.local_isn, act.agreed.remote_isn)
}

/// How often the kernel counts the end of a child as a failed attempt.
fn failed_opens(left: &PassiveOpen) -> u64 {
    match (left.old_state, left.sk_err) {
        // Beyond SYN-RECEIVED only a RST is one: it ends the request, which Fast Open keeps beside its child.
        (Some(TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing), _) => {
            u64::from(left.reset_received && !left.acknowledged)
        }
        // It ends the request, and then the child.
        (_, Some(errno::ECONNRESET)) => 2 * given_up(left),
        _ => given_up(left),
    }
}

/// 1 if the kernel gave up a socket in SYN-RECEIVED, by tcp_done(): that leaves an error on it.
pub(super) fn given_up(left: &PassiveOpen) -> u64 {
    let with_an_error = left.sk_err.is_some_and(|error| error != 0);
    u64::from(left.new_state == Some(TcpState::Closed) && with_an_error)
}

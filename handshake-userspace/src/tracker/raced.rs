//! A RST and the final ACK of one request, on two CPUs at once.
//!
//! The kernel's table of sockets decides: who takes the request out of it wins. The hook that tells of the RST runs just
//! before that is decided, so what it tells may not come true: then the ACK's child follows within microseconds, and
//! the RST is the child's. So a request that a RST ended waits for a moment before its record is written. What a
//! newcomer would get wrong: the kernel counts a failed attempt for a RST that lost, though nothing failed.

use super::{
    Tracker, Why,
    drops::place_of,
    entry::{At, Entry, Identity, Kind},
    table::Patience,
};
use crate::model::{handshake::HandshakeUpdate, mib::Tally, observation::PassiveOpen};

/// Where such a request waits; absent where nothing would say that a child is its.
fn place(act: &PassiveOpen) -> Option<u64> {
    let remote_isn = act.agreed.local_isn.and(act.agreed.remote_isn)?;
    Some(place_of(act.ends.local?, act.ends.remote?, act.ends.netns, remote_isn))
}

impl Tracker {
    /// Writes the record of a request that died half open, now or in a moment.
    pub(super) fn settle_request(&mut self, mut entry: Entry, out: &mut Vec<HandshakeUpdate>) {
        let place = match &entry.kind {
            Kind::Child(child) => {
                child.half_open.as_deref().filter(|request| request.reset_received).and_then(place)
            }
            _ => None,
        };
        match place {
            // Where there is no room to wait, what is known is told.
            Some(place) if self.counts.in_flight <= self.config.max_open as u64 => {
                entry.identity.address = place;
                self.keep(entry, Patience::Wake, out);
            }
            _ => self.finish(entry, Why::Ended, out),
        }
    }

    /// What begins with this event of a child: its request that is told to be dead, and is not; or a new entry. Nothing,
    /// where it is told already.
    pub(super) fn survive_or_begin(&mut self, at: At, queued_ns: u64, act: &PassiveOpen) -> Option<Entry> {
        if let Some(survivor) = self.take_survivor(at, act) {
            return Some(survivor);
        }
        (!self.is_told(at, act)).then(|| self.begin_or_continue(at, queued_ns, act))
    }

    /// The request that this child was made of, if it is told to be dead: it is not.
    pub(super) fn take_survivor(&mut self, at: At, act: &PassiveOpen) -> Option<Entry> {
        let place = place(act)?;
        let is_its = |entry: &Entry| {
            matches!(&entry.kind, Kind::Child(child) if child.request_died
            && child.half_open.as_ref().is_some_and(|request| {
                (request.agreed.local_isn, request.ends.remote) == (act.agreed.local_isn, act.ends.remote)
            }))
        };
        if !self.table.get(place).is_some_and(is_its) {
            return None;
        }
        let Entry { identity, mut kind } = self.table.take(place)?;
        if let Kind::Child(child) = &mut kind {
            let died_ns = child.closed_ns.take().unwrap_or(at.time_ns);
            self.ledger.take_back(child.ends.netns, Tally::EmbryonicResets, died_ns);
            self.ledger.reset_came_to_nothing(child.ends.netns);
            (child.closed, child.request_died, child.listener_closed) = (false, false, false);
            if let Some(request) = &mut child.half_open {
                request.reset_received = false;
            }
        }
        let identity = Identity {
            address: at.socket.address,
            generation_ns: at.socket.generation_ns,
            attach: identity.attach.and(at.attach),
            ..identity
        };
        Some(Entry { identity, kind })
    }
}

//! What is open right now, for health and for views of what is in flight.
//!
//! What a newcomer would get wrong: this is a look at the table and no record; order means nothing, and
//! an entry may have ended already and only wait for the return of a system call.

use std::net::SocketAddr;

use super::{
    Tracker,
    entry::{Entry, Kind},
};
use crate::model::{handshake::Key, outcome::Role, process::Process};

/// How far an open handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The SYN left and was not answered yet.
    SynSent,
    /// SYN-RECEIVED.
    SynReceived,
    /// ESTABLISHED or failed; the return of connect() or accept() is awaited, or (after a RST) whether a child survived.
    Returning,
    /// In the accept queue.
    InAcceptQueue,
    /// Its SYN was dropped here; the client may send it again.
    Dropped,
}

/// A handshake that is still open, or a child whose accept() is still to come.
#[derive(Clone, Copy, Debug)]
pub struct OpenHandshake<'a> {
    /// Its key, as its record will have it.
    pub key: Key,
    /// Which side.
    pub role: Role,
    /// How far it is.
    pub step: Step,
    /// Since when it is known, CLOCK_MONOTONIC.
    pub since_ns: u64,
    /// Our end.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub remote: Option<SocketAddr>,
    /// Who connected, or who listens.
    pub process: Option<&'a Process>,
}

impl Tracker {
    /// What is open, in no particular order; costs one walk over the table.
    pub fn open_handshakes(&self) -> impl Iterator<Item = OpenHandshake<'_>> {
        self.table.entries().map(|entry| self.view(entry))
    }

    fn view<'a>(&self, entry: &'a Entry) -> OpenHandshake<'a> {
        let (role, step, ends, process) = match &entry.kind {
            Kind::Active(open) => {
                let crossed = open.crossed.is_some() || open.end.is_some() && !open.is_over();
                let role = if crossed { Role::Simultaneous } else { Role::Client };
                let step = match (open.is_over(), crossed) {
                    (true, _) => Step::Returning,
                    (false, true) => Step::SynReceived,
                    (false, false) => Step::SynSent,
                };
                (role, step, open.ends, open.process.as_ref())
            }
            Kind::Child(child) => {
                let step = match (child.established_ns, &child.taken) {
                    _ if child.closed => Step::Returning,
                    (Some(_), None) => Step::InAcceptQueue,
                    (None, None) => Step::SynReceived,
                    (_, Some(_)) => Step::Returning,
                };
                (Role::Server, step, child.ends, child.listener_process.as_deref())
            }
            Kind::Dropped(attempt) => {
                (Role::Server, Step::Dropped, attempt.ends, attempt.listener_process.as_deref())
            }
            Kind::Queued(child) => (Role::Server, Step::InAcceptQueue, child.ends, None),
        };
        OpenHandshake {
            key: Key { boot: self.config.boot, counter: entry.identity.counter },
            role,
            step,
            since_ns: entry.identity.since_ns,
            local: ends.local,
            remote: ends.remote,
            process,
        }
    }
}

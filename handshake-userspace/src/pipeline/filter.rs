//! Which records the user wants: the filters of the command line, applied to finished records.
//!
//! The kernel side filters first, to spare events; this repeats all of it, for what the kernel cannot judge
//! (who accepts) and for recordings. What a newcomer would get wrong: a filter by process on a server's
//! record asks for the acceptor, else the listener's owner. Nobody known means left out, and counted.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::model::{
    handshake::{Accept, Handshake, Key},
    outcome::{AcceptOutcome, Flag, Role},
    process::Process,
};

/// What must be true of a record. An empty list, or `None`, asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordFilter {
    /// Either end has one of these ports.
    pub ports: Vec<u16>,
    /// The remote address lies in one of these.
    pub networks: Vec<IpNet>,
    /// It happened in one of these namespaces.
    pub netns: Vec<u32>,
    /// Only this side of a handshake.
    pub side: Option<Side>,
    /// Only this family, mapped addresses being IPv4.
    pub family: Option<Family>,
    /// The process has this id.
    pub pid: Option<u32>,
    /// The thread has this user id.
    pub uid: Option<u32>,
    /// The thread is called so, in the form of [`crate::model::process::SafeText`].
    pub comm: Option<String>,
    /// The thread is in one of these cgroups, or in one below: bits of [`Process::in_cgroups`].
    pub cgroups: Option<u32>,
    /// Our own sockets too.
    pub own: bool,
}

/// `--role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Active opens.
    Client,
    /// Passive opens.
    Server,
}

/// `-4` and `-6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What is worth a line; records that are not are counted all the same. Conditions add up: a record that
/// meets one of them is shown, and without any all are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Handshakes that failed.
    pub failed: bool,
    /// Handshakes of this latency or more.
    pub slow_ns: Option<u64>,
    /// Waits for accept() of this length or more.
    pub slow_accept_ns: Option<u64>,
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is counted and shown.
    Shown,
    /// It is counted.
    Counted,
    /// The user did not ask for it.
    LeftOut,
}

/// Server records whose `accept` record may still come and for which the verdict is remembered: as many as
/// the tracker itself follows. Beyond that an `accept` record is judged by itself.
const MAX_REMEMBERED: usize = 200_000;

/// Judges records one after the other.
#[derive(Debug, Default)]
pub struct Gate {
    filter: RecordFilter,
    tail: Tail,
    /// Whether the handshakes of queued children passed the filter.
    queued: HashMap<Key, bool>,
    unknown: u64,
}

impl Gate {
    /// Lets through what the filter asks for, and shows what the tail asks for.
    pub fn new(filter: RecordFilter, tail: Tail) -> Self {
        Gate { filter, tail, ..Gate::default() }
    }

    /// Records left out because what a filter asks was unknown.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Judges a handshake.
    pub fn handshake(&mut self, handshake: &Handshake) -> Verdict {
        let facts = Facts {
            role: handshake.role,
            local: handshake.local,
            remote: handshake.remote,
            netns: handshake.netns,
            process: handshake.process.as_ref(),
        };
        let own = handshake.flags.contains(&Flag::Own) && !self.filter.own;
        let answer = if own { Some(false) } else { self.filter.asks_for(&facts) };
        let passed = answer.unwrap_or(false);
        self.unknown += u64::from(answer.is_none());
        let still_queued = handshake.role == Role::Server
            && !handshake.outcome.is_failure()
            && handshake.phases.accept_ns.is_none();
        // Our own listeners stay hidden whoever accepts. What could not be judged is judged again when the
        // `accept` record names a process.
        if let (true, Some(passed)) = (still_queued && self.queued.len() < MAX_REMEMBERED, answer) {
            self.queued.insert(handshake.key, passed);
        }
        if !passed {
            return Verdict::LeftOut;
        }
        if self.tail.shows_handshake(handshake) { Verdict::Shown } else { Verdict::Counted }
    }

    /// Judges the later fate of a queued child.
    pub fn accept(&mut self, accept: &Accept) -> Verdict {
        let facts = Facts {
            role: Role::Server,
            local: accept.local,
            remote: accept.remote,
            netns: accept.netns,
            process: accept.process.as_ref(),
        };
        let remembered = self.queued.remove(&accept.key);
        let passed = remembered.or_else(|| self.filter.asks_for(&facts)).unwrap_or(false);
        if !passed {
            return Verdict::LeftOut;
        }
        if self.tail.shows_accept(accept) { Verdict::Shown } else { Verdict::Counted }
    }
}

struct Facts<'a> {
    role: Role,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    netns: Option<u32>,
    process: Option<&'a Process>,
}

impl RecordFilter {
    /// `None` when the record does not say what a filter asks.
    fn asks_for(&self, facts: &Facts<'_>) -> Option<bool> {
        let answers = [
            self.side.map(|side| Some(side.is(facts.role))),
            self.family.map(|family| Some(family.is(facts.remote.or(facts.local)?.ip()))),
            (!self.ports.is_empty()).then(|| self.ports_match(facts)),
            (!self.networks.is_empty()).then(|| {
                let remote = facts.remote?.ip().to_canonical();
                Some(self.networks.iter().any(|network| network.contains(&remote)))
            }),
            (!self.netns.is_empty()).then(|| Some(self.netns.contains(&facts.netns?))),
            self.pid.map(|pid| Some(facts.process?.pid == pid)),
            self.uid.map(|uid| Some(facts.process?.uid == uid)),
            self.comm.as_ref().map(|comm| Some(facts.process?.comm.as_str() == comm)),
            self.cgroups.map(|wanted| Some(facts.process?.in_cgroups & wanted != 0)),
        ];
        let asked = answers.into_iter().flatten();
        // A known "no" outweighs what is unknown: the record would be left out in any case.
        let mut all = Some(true);
        for answer in asked {
            match answer {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    fn ports_match(&self, facts: &Facts<'_>) -> Option<bool> {
        let ports =
            [facts.local, facts.remote].map(|end| end.map(|end| end.port()).filter(|port| *port != 0));
        if ports.iter().flatten().any(|port| self.ports.contains(port)) {
            return Some(true);
        }
        ports.iter().all(Option::is_some).then_some(false)
    }
}

impl Side {
    fn is(self, role: Role) -> bool {
        match role {
            Role::Client => self == Side::Client,
            Role::Server => self == Side::Server,
            // Both ends of it opened actively (RFC 9293 section 3.5).
            Role::Simultaneous => self == Side::Client,
        }
    }
}

impl Family {
    fn is(self, address: IpAddr) -> bool {
        (self == Family::V4) == address.to_canonical().is_ipv4()
    }
}

impl Tail {
    fn shows_all(&self) -> bool {
        *self == Tail::default()
    }

    fn shows_handshake(&self, handshake: &Handshake) -> bool {
        self.shows_all()
            || (self.failed && handshake.outcome.is_failure())
            || reaches(handshake.latency_ns, self.slow_ns)
            || reaches(handshake.phases.accept_ns, self.slow_accept_ns)
    }

    fn shows_accept(&self, accept: &Accept) -> bool {
        self.shows_all()
            || (self.failed && accept.outcome == AcceptOutcome::NeverAccepted)
            || reaches(accept.wait_ns, self.slow_accept_ns)
    }
}

fn reaches(value: Option<u64>, limit: Option<u64>) -> bool {
    matches!((value, limit), (Some(value), Some(limit)) if value >= limit)
}

#[cfg(test)]
mod tests;

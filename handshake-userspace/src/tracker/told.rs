//! Which passive opens have a record, or an entry that will make one: none is told twice.
//!
//! Of one connection several hooks can each tell by themselves: the child's queueing, its change of state, accept(), the
//! death of its request. They are joined by socket and generation; but where a hook was skipped, or was attached a moment
//! too late, two of them name it by different sockets, or the second comes when the record is written. What a newcomer
//! would get wrong: a record is final, so what comes too late is counted as `unmatched`, though it knows more.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use super::{
    entry::{At, Identity},
    table::AddressHasher,
};
use crate::model::observation::{Ends, SocketKey};

/// Connections and lives that are remembered, the latest of each: at ten thousand a second, those of a second and a half.
const MAX_REMEMBERED: usize = 16_384;

/// See the module.
#[derive(Default)]
pub(super) struct Told {
    /// Counter of the entry that each connection belongs to. std's hasher, because a peer chooses much of it; nothing
    /// iterates.
    connections: HashMap<Connection, u64>,
    connections_order: VecDeque<Connection>,
    /// Of each address the latest life whose record is written.
    lives: HashMap<u64, u64, AddressHasher>,
    lives_order: VecDeque<(u64, u64)>,
}

/// What no two connections have in common: both ISNs at the same ports of one network.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Connection {
    netns: Option<u32>,
    ports: [Option<u16>; 2],
    isns: [u32; 2],
}

impl Connection {
    /// `None` where an ISN is unknown: then nothing says that two are one.
    pub(super) fn of(ends: &Ends, local_isn: Option<u32>, remote_isn: Option<u32>) -> Option<Self> {
        let ports = [ends.local, ends.remote].map(|end| end.as_ref().map(SocketAddr::port));
        Some(Connection { netns: ends.netns, ports, isns: [local_isn?, remote_isn?] })
    }
}

impl Told {
    /// Whether another entry than this one has the connection; if none does, it is this one's from now on.
    pub(super) fn is_anothers(&mut self, connection: Connection, counter: u64) -> bool {
        if let Some(holder) = self.connections.get(&connection) {
            return *holder != counter;
        }
        if self.connections_order.len() >= MAX_REMEMBERED
            && let Some(oldest) = self.connections_order.pop_front()
        {
            self.connections.remove(&oldest);
        }
        self.connections.insert(connection, counter);
        self.connections_order.push_back(connection);
        false
    }

    /// Whether some entry has it.
    pub(super) fn has(&self, connection: Option<Connection>) -> bool {
        connection.is_some_and(|connection| self.connections.contains_key(&connection))
    }

    /// The record of this life of a socket is written.
    pub(super) fn write(&mut self, identity: &Identity) {
        let Some(generation_ns) = identity.generation_ns else { return };
        if self.lives_order.len() >= MAX_REMEMBERED
            && let Some((oldest, its_generation_ns)) = self.lives_order.pop_front()
            && self.lives.get(&oldest) == Some(&its_generation_ns)
        {
            self.lives.remove(&oldest);
        }
        self.lives.insert(identity.address, generation_ns);
        self.lives_order.push_back((identity.address, generation_ns));
    }

    /// Whether an event is about a life whose record is written.
    pub(super) fn is_written(&self, socket: SocketKey) -> bool {
        socket.generation_ns.is_some() && self.lives.get(&socket.address).copied() == socket.generation_ns
    }

    /// Whether what an event would begin is told already.
    pub(super) fn covers(&self, at: At, connection: Option<Connection>) -> bool {
        self.is_written(at.socket) || self.has(connection)
    }

    /// What it needs at most, in bytes. Maps grow by doubling, and are at most seven eighths full.
    #[cfg(test)]
    pub(super) const MAX_BYTES: usize = MAX_REMEMBERED
        * (3 * (size_of::<(Connection, u64)>() + 1)
            + 2 * size_of::<Connection>()
            + 3 * (size_of::<(u64, u64)>() + 1)
            + 2 * size_of::<(u64, u64)>());
}

//! Who owns which listener, and which children were queued before we watched.
//!
//! A server record names who accepted; a child that nobody accepts falls back to who listens. What a newcomer
//! would get wrong: closing a listener destroys its children after the listener has left LISTEN, so a child
//! takes its owner along when it is queued. Its half-open requests die later still, by their own timers, so a
//! closed listener is remembered for a while.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use super::table::AddressHasher;
use crate::model::{
    observation::{Ends, Listener},
    process::Process,
};

/// A host with more listeners than this loses their owners' names, and drops before routing at the others.
const MAX_LISTENERS: usize = 65_536;

/// Children that the snapshot may name: the sum of all accept queues at the moment of our start.
const MAX_EARLIER_CHILDREN: usize = 65_536;

/// Half-open requests that the snapshot may name.
const MAX_EARLIER_REQUESTS: usize = 65_536;

/// Listeners that closed and whose requests may still be pending; with more than this the oldest are forgotten.
const MAX_CLOSED: usize = 4_096;

/// Longer than SYN-ACKs are sent again with any usual setting.
const REMEMBERED_NS: u64 = 120_000_000_000;

/// See the module.
#[derive(Default)]
pub(super) struct Listeners {
    closed: HashMap<u64, (u64, Option<Arc<Process>>), AddressHasher>,
    /// The same in order of closing.
    closed_order: VecDeque<(u64, u64)>,
    open: HashMap<u64, Open, AddressHasher>,
    earlier_children: HashMap<u64, (), AddressHasher>,
    /// Ends of requests that the snapshot found. std's hasher, because a peer chooses its port; nothing iterates.
    earlier_requests: HashSet<(Option<SocketAddr>, Option<SocketAddr>, Option<u32>)>,
}

/// One listener.
struct Open {
    owner: Option<Arc<Process>>,
    local: Option<SocketAddr>,
    netns: Option<u32>,
}

impl Open {
    /// Whether a SYN to these ends would be for it.
    fn takes(&self, to: SocketAddr, netns: Option<u32>) -> bool {
        self.netns == netns
            && self.local.is_some_and(|local| {
                local.port() == to.port() && (local.ip().is_unspecified() || local.ip() == to.ip())
            })
    }
}

impl Listeners {
    /// A socket entered LISTEN.
    pub(super) fn opened(&mut self, address: u64, listener: Listener) {
        // listen() again only changes the backlog; the latest process to call it is named.
        if self.open.len() < MAX_LISTENERS || self.open.contains_key(&address) {
            let owner = listener.process.map(Arc::new);
            self.open.insert(address, Open { owner, local: listener.ends.local, netns: listener.ends.netns });
        }
    }

    /// A socket left LISTEN.
    pub(super) fn closed(&mut self, address: u64, time_ns: u64) {
        let owner = self.open.remove(&address).and_then(|listener| listener.owner);
        while let Some((oldest, closed_ns)) = self.closed_order.front().copied()
            && (self.closed_order.len() >= MAX_CLOSED || time_ns.saturating_sub(closed_ns) > REMEMBERED_NS)
        {
            self.closed_order.pop_front();
            // An address that closed again since has a later entry of its own.
            if self.closed.get(&oldest).is_some_and(|(noted_ns, _)| *noted_ns == closed_ns) {
                self.closed.remove(&oldest);
            }
        }
        self.closed.insert(address, (time_ns, owner));
        self.closed_order.push_back((address, time_ns));
    }

    /// Whether this listener closed not long ago, and who owned it. An address that listens again did not.
    pub(super) fn closed_lately(&self, address: Option<u64>, now_ns: u64) -> Option<Option<Arc<Process>>> {
        let address = address?;
        if self.open.contains_key(&address) {
            return None;
        }
        let (closed_ns, owner) = self.closed.get(&address)?;
        (now_ns.saturating_sub(*closed_ns) <= REMEMBERED_NS).then(|| owner.clone())
    }

    /// Who listens at this socket.
    pub(super) fn owner(&self, address: Option<u64>) -> Option<Arc<Process>> {
        self.open.get(&address?)?.owner.clone()
    }

    /// Who listens where a SYN went; `None` if nobody that we know of does. Asked for drops only, of which ten a second
    /// are told: so all are looked at.
    pub(super) fn at(&self, to: SocketAddr, netns: Option<u32>) -> Option<Option<Arc<Process>>> {
        let named = self.open.values().filter(|listener| listener.takes(to, netns));
        named.map(|listener| listener.owner.clone()).max_by_key(Option::is_some)
    }

    /// A child was in an accept queue before we watched.
    pub(super) fn child_was_there(&mut self, address: u64) {
        if self.earlier_children.len() < MAX_EARLIER_CHILDREN {
            self.earlier_children.insert(address, ());
        }
    }

    /// Whether this child was; it is forgotten by that, for the address may have another life.
    pub(super) fn forget_child(&mut self, address: u64) -> bool {
        !self.earlier_children.is_empty() && self.earlier_children.remove(&address).is_some()
    }

    /// A request was half open before we watched.
    pub(super) fn request_was_there(&mut self, ends: Ends) {
        if self.earlier_requests.len() < MAX_EARLIER_REQUESTS {
            self.earlier_requests.insert((ends.local, ends.remote, ends.netns));
        }
    }

    /// Whether the request with these ends was; it is forgotten by that, for its ports are used again.
    pub(super) fn forget_request(&mut self, ends: &Ends) -> bool {
        !self.earlier_requests.is_empty()
            && self.earlier_requests.remove(&(ends.local, ends.remote, ends.netns))
    }
}

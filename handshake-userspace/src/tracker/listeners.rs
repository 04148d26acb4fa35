//! Who owns which listener, and which children were queued before we watched.
//!
//! A server record names who accepted; a child that nobody accepts falls back to who listens. What a newcomer
//! would get wrong: closing a listener destroys its children after the listener has left LISTEN, so a child
//! takes its owner along when it is queued, and this table may forget him at once.

use std::{collections::HashMap, sync::Arc};

use super::table::AddressHasher;
use crate::model::{observation::Listener, process::Process};

/// A host with more listeners than this loses their owners' names, and nothing else.
const MAX_LISTENERS: usize = 65_536;

/// Children that the snapshot may name: the sum of all accept queues at the moment of our start.
const MAX_EARLIER_CHILDREN: usize = 65_536;

/// See the module.
#[derive(Default)]
pub(super) struct Listeners {
    owners: HashMap<u64, Arc<Process>, AddressHasher>,
    earlier_children: HashMap<u64, (), AddressHasher>,
}

impl Listeners {
    /// A socket entered LISTEN.
    pub(super) fn opened(&mut self, address: u64, listener: Listener) {
        match listener.process {
            // listen() again only changes the backlog; the latest process to call it is named.
            Some(process) if self.owners.len() < MAX_LISTENERS || self.owners.contains_key(&address) => {
                self.owners.insert(address, Arc::new(process));
            }
            Some(_) => {}
            None => {
                self.owners.remove(&address);
            }
        }
    }

    /// A socket left LISTEN.
    pub(super) fn closed(&mut self, address: u64) {
        self.owners.remove(&address);
    }

    /// Who listens at this socket.
    pub(super) fn owner(&self, address: Option<u64>) -> Option<Arc<Process>> {
        self.owners.get(&address?).cloned()
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
}

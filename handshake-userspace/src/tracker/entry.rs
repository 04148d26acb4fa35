//! One open handshake in the table, and what all kinds of them have in common.
//!
//! What a newcomer would get wrong: a socket's address names a handshake only together with its generation,
//! because the kernel uses the memory of a closed socket again within milliseconds.

use handshake_common::event::Attach;

use super::{active_open::ActiveOpen, child::Child, drops::DroppedAttempt, queued::QueuedChild};
use crate::model::observation::{Ends, Observation, SocketKey};

/// See the module.
pub(super) struct Entry {
    /// Whose it is.
    pub(super) identity: Identity,
    /// Which side, and how far.
    pub(super) kind: Kind,
}

/// Which handshake an entry is, apart from what is known of it.
#[derive(Clone, Copy)]
pub(super) struct Identity {
    /// Address of the socket.
    pub(super) address: u64,
    /// Which life of that address, if an event said so.
    pub(super) generation_ns: Option<u64>,
    /// Counter of the record's key, given in the order of opening.
    pub(super) counter: u64,
    /// Since when an event of it could have been lost.
    pub(super) since_ns: u64,
    /// By which hooks it was seen.
    pub(super) attach: AttachMix,
}

/// Which side a handshake is, and how far it is.
pub(super) enum Kind {
    /// Active open (or simultaneous), not yet written.
    Active(Box<ActiveOpen>),
    /// Passive open, not yet written.
    Child(Box<Child>),
    /// Passive open, written, still in the accept queue.
    Queued(Box<QueuedChild>),
    /// Passive open of which every segment was dropped so far.
    Dropped(Box<DroppedAttempt>),
}

impl Identity {
    /// Whether an event is about this life of the socket. What says no generation is believed to be.
    pub(super) fn is_life_of(&self, socket: SocketKey) -> bool {
        match (self.generation_ns, socket.generation_ns) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        }
    }

    /// Whether an event is about an earlier life of the address: it came late.
    pub(super) fn is_after(&self, socket: SocketKey) -> bool {
        matches!((self.generation_ns, socket.generation_ns), (Some(ours), Some(theirs)) if ours > theirs)
    }

    /// Whether an event is certainly about this life of the socket: it names it.
    pub(super) fn is_named_by(&self, socket: SocketKey) -> bool {
        self.generation_ns.is_some() && self.generation_ns == socket.generation_ns
    }

    /// Notes that another event told of it.
    pub(super) fn fed_by(&mut self, at: At) {
        self.attach.add(at.attach);
        self.generation_ns = self.generation_ns.or(at.socket.generation_ns);
    }
}

/// The head of an observation, without its act.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// When.
    pub(super) time_ns: u64,
    /// Which socket.
    pub(super) socket: SocketKey,
    /// By which hook.
    pub(super) attach: Attach,
}

impl From<&Observation> for At {
    fn from(observation: &Observation) -> Self {
        At { time_ns: observation.time_ns, socket: observation.socket, attach: observation.attach }
    }
}

/// The kinds of hooks that fed one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AttachMix(u8);

impl AttachMix {
    /// One more. [`Attach::Common`] serves every mode and says nothing.
    pub(super) fn add(&mut self, attach: Attach) {
        if attach != Attach::Common {
            self.0 |= 1 << attach as u8;
        }
    }

    /// Both.
    pub(super) fn and(mut self, attach: Attach) -> Self {
        self.add(attach);
        self
    }

    /// The one kind; `None` stands for several. Common tracepoints alone are tracepoints.
    pub(super) fn kind(self) -> Option<Attach> {
        match self.0 {
            0 => Some(Attach::Tracepoint),
            mix if mix == 1 << Attach::Fentry as u8 => Some(Attach::Fentry),
            mix if mix == 1 << Attach::Kprobe as u8 => Some(Attach::Kprobe),
            mix if mix == 1 << Attach::Tracepoint as u8 => Some(Attach::Tracepoint),
            _ => None,
        }
    }
}

/// What the later event says of the ends, completed by the earlier one. A port of 0 is no port: in tracepoint
/// mode the local port is not chosen when the first event comes.
pub(super) fn complete_ends(later: Ends, earlier: Ends) -> Ends {
    let complete = |later: Option<std::net::SocketAddr>, earlier: Option<std::net::SocketAddr>| match later {
        Some(address) if address.port() != 0 => later,
        _ => earlier.filter(|address| address.port() != 0).or(later).or(earlier),
    };
    Ends {
        local: complete(later.local, earlier.local),
        remote: complete(later.remote, earlier.remote),
        netns: later.netns.or(earlier.netns),
        v4_mapped: later.v4_mapped || earlier.v4_mapped,
    }
}

/// From one act to another; absent when one is unknown or the order says that a stamp is wrong.
pub(super) fn between(from_ns: Option<u64>, to_ns: Option<u64>) -> Option<u64> {
    to_ns?.checked_sub(from_ns?)
}

/// How long a child was queued before accept() was called for it; 0 when its thread was waiting by then. Absent as
/// in `between`.
pub(super) fn until_called(
    queued_ns: Option<u64>,
    called_ns: Option<u64>,
    taken_ns: Option<u64>,
) -> Option<u64> {
    let (queued_ns, called_ns, taken_ns) = (queued_ns?, called_ns?, taken_ns?);
    (queued_ns.max(called_ns) <= taken_ns).then(|| called_ns.saturating_sub(queued_ns))
}

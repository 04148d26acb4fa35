//! Children whose handshake record is written and whose `accept` record is still to come.
//!
//! An application may leave a child in the queue for hours, so what is kept of one is small. What a newcomer
//! would get wrong: when there is no room to follow a child, its later accept() must not look like a
//! connection that was never seen; so the time span of those that were given up is remembered.

use handshake_common::event::Attach;

use super::{
    Tracker,
    entry::{At, Identity, between, until_called},
};
use crate::model::{
    handshake::{Accept, HandshakeUpdate, Key},
    observation::{Ends, SocketKey},
    outcome::AcceptOutcome,
    process::Process,
};

/// See the module.
pub(super) struct QueuedChild {
    pub(super) id: Option<u64>,
    pub(super) ends: Ends,
    pub(super) queued_ns: Option<u64>,
}

/// How a child left the queue.
pub(super) struct Leaving {
    pub(super) outcome: AcceptOutcome,
    pub(super) process: Option<Process>,
    /// Entry time as the event at the end has it.
    pub(super) queued_ns: Option<u64>,
    /// When who took it had called accept().
    pub(super) called_ns: Option<u64>,
    /// The call was seen, not only that it had been made.
    pub(super) when_is_known: bool,
}

/// When the children that we could not follow were queued: first and last.
#[derive(Default)]
pub(super) struct GivenUp(Option<(u64, u64)>);

impl GivenUp {
    pub(super) fn add(&mut self, queued_ns: u64) {
        let (first, last) = self.0.unwrap_or((queued_ns, queued_ns));
        self.0 = Some((first.min(queued_ns), last.max(queued_ns)));
    }

    /// Whether a child that was queued then may be one of them.
    pub(super) fn covers(&self, queued_ns: Option<u64>) -> bool {
        match (self.0, queued_ns) {
            (Some((first, last)), Some(queued_ns)) => (first..=last).contains(&queued_ns),
            _ => false,
        }
    }
}

impl Tracker {
    /// Writes the `accept` record of a child that left the queue.
    pub(super) fn left_queue(
        &mut self,
        at: At,
        identity: Identity,
        child: QueuedChild,
        leaving: Leaving,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        let queued_ns = leaving.queued_ns.or(child.queued_ns);
        let left_ns = leaving.when_is_known.then_some(at.time_ns);
        out.push(HandshakeUpdate::Accept(Box::new(Accept {
            key: Key { boot: self.config.boot, counter: identity.counter },
            id: child.id,
            time_ns: at.time_ns,
            outcome: leaving.outcome,
            wait_ns: between(queued_ns, left_ns),
            call_ns: until_called(queued_ns, leaving.called_ns, left_ns),
            process: leaving.process,
            local: child.ends.local,
            remote: child.ends.remote,
            netns: child.ends.netns,
            attach: identity.attach.and(at.attach).kind(),
        })));
    }

    /// Writes the `accept` record of a child that we follow no longer.
    pub(super) fn lost_in_queue(
        &mut self,
        identity: Identity,
        child: QueuedChild,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        let at = At {
            time_ns: self.clock_ns,
            socket: SocketKey { address: identity.address, generation_ns: identity.generation_ns },
            attach: Attach::Common,
        };
        let leaving = Leaving {
            outcome: AcceptOutcome::Incomplete,
            process: None,
            queued_ns: None,
            called_ns: None,
            when_is_known: false,
        };
        self.left_queue(at, identity, child, leaving, out);
    }
}

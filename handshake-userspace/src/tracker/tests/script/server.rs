//! The words of a passive open: `given_listener().syn().syn_ack().final_ack().accept().expect(...)`.
//!
//! What a newcomer would get wrong: `syn`, `syn_ack` and its retransmissions are no events. They only become
//! facts of the event at the final ACK.

use handshake_common::tcp::TcpState;

use super::*;

/// A listener, and one connection to it.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) script: Script,
    pub(crate) facts: PassiveOpen,
    pub(crate) reset_ns: Option<u64>,
}

script_words!(Server);

/// A listener of process 80 to which a client connects.
pub(crate) fn given_listener() -> Server {
    given_listener_at(USUAL)
}

/// Where a script's child is unless it says so.
const USUAL: u64 = 0xd000;

pub(crate) fn given_listener_at(address: u64) -> Server {
    let mut script = Script::new(address);
    script
        .observe_at(SocketKey { address: LISTENER, generation_ns: None }, Act::ListenerOpened(listener(80)));
    let mut facts = half_open();
    if address != USUAL {
        // No two connections have the same ISNs.
        facts.agreed.remote_isn = Some(address as u32);
    }
    Server { script, facts, reset_ns: None }
}

pub(crate) fn listener(pid: u32) -> Listener {
    Listener { ends: ends(443), process: Some(process(pid)), accept_queue_limit: Some(128), own: false }
}

impl Server {
    pub(crate) fn with(mut self, change: impl FnOnce(&mut PassiveOpen)) -> Self {
        change(&mut self.facts);
        self
    }

    pub(crate) fn syn(mut self) -> Self {
        self.facts.syn_ns = self.facts.syn_ns.or(Some(self.script.time_ns));
        self.facts.syns_seen = Some(self.facts.syns_seen.unwrap_or(0) + 1);
        self
    }

    pub(crate) fn syn_ack(mut self) -> Self {
        self.facts.synack_ns = Some(self.script.time_ns / 1_000 * 1_000);
        self
    }

    pub(crate) fn syn_ack_retransmit(mut self) -> Self {
        self.facts.synack_retransmits += 1;
        self.facts.last_retransmit_ns = Some(self.script.time_ns);
        self
    }

    /// The final ACK makes the child, which is queued 1 us later and ESTABLISHED after 2 us more.
    pub(crate) fn final_ack(self) -> Self {
        self.child_queued().wait(2 * US).established()
    }

    pub(crate) fn child_queued(mut self) -> Self {
        self.facts.final_ack_ns = Some(self.script.time_ns);
        self.script.time_ns += US;
        self.facts.queued_ns = Some(self.script.time_ns);
        self.script.observe(Act::ChildQueued(Box::new(self.facts.clone())));
        self
    }

    /// As `final_ack`, in a mode (or with a loss) that shows no queueing.
    pub(crate) fn final_ack_without_queueing(mut self) -> Self {
        self.facts.final_ack_ns = Some(self.script.time_ns);
        self.script.time_ns += 3 * US;
        self.facts.queued_ns = Some(self.script.time_ns);
        self.established()
    }

    /// As `final_ack`, with both events lost.
    pub(crate) fn final_ack_unseen(mut self) -> Self {
        self.script.time_ns += 3 * US;
        self.facts.queued_ns = Some(self.script.time_ns);
        self
    }

    pub(crate) fn established(self) -> Self {
        self.leaves_syn_received(TcpState::Established)
    }

    pub(crate) fn leaves_syn_received(mut self, new_state: TcpState) -> Self {
        self.facts.new_state = Some(new_state);
        self.script.observe(Act::LeftSynReceived(Box::new(self.facts.clone())));
        self
    }

    pub(crate) fn reset_while_queued(mut self) -> Self {
        self.reset_ns = Some(self.script.time_ns);
        self
    }

    pub(crate) fn accept(self) -> Self {
        self.accept_called_at(None)
    }

    pub(crate) fn accept_called_at(mut self, waiting_since_ns: Option<u64>) -> Self {
        self.script.observe(Act::Accepted(Accepted {
            ends: self.facts.ends,
            process: Some(process(81)),
            queued_ns: self.facts.queued_ns,
            waiting_since_ns,
            reset_ns: self.reset_ns,
            before_established: false,
            call_not_seen: false,
        }));
        self
    }

    /// Fast Open without probes: accept() comes first, and tells that it was early.
    pub(crate) fn accept_in_syn_received(mut self) -> Self {
        self.script.observe(Act::Accepted(Accepted {
            ends: self.facts.ends,
            process: Some(process(81)),
            queued_ns: None,
            waiting_since_ns: None,
            reset_ns: None,
            before_established: true,
            call_not_seen: false,
        }));
        self
    }

    pub(crate) fn destroyed(mut self) -> Self {
        self.script.observe(Act::ChildDestroyed(ChildDestroyed {
            ends: self.facts.ends,
            queued_ns: self.facts.queued_ns,
            reset_ns: self.reset_ns,
        }));
        self
    }

    pub(crate) fn listener_closes(mut self) -> Self {
        let socket = SocketKey { address: LISTENER, generation_ns: None };
        self.script.observe_at(socket, Act::ListenerClosed(listener(80)));
        self
    }

    pub(crate) fn request_dies(mut self) -> Self {
        let socket = SocketKey { address: 0xe000, generation_ns: Some(START) };
        self.script.observe_at(socket, Act::RequestDied(Box::new(self.facts.clone())));
        self
    }

    pub(crate) fn seen_queued_at_start(self) -> Self {
        self.seen_at_start(TcpState::Established)
    }

    pub(crate) fn seen_half_open_at_start(self) -> Self {
        self.seen_at_start(TcpState::NewSynReceived)
    }

    fn seen_at_start(mut self, state: TcpState) -> Self {
        let seen = SocketSeen {
            ends: self.facts.ends,
            synack_ns: None,
            inode: None,
            accept_queue: None,
            retransmits: 0,
            state,
            queued: state == TcpState::Established,
        };
        let address = if state == TcpState::Established { self.script.socket.address } else { 0xe000 };
        let socket = SocketKey { address, generation_ns: None };
        self.script.observe_at(socket, Act::SocketSeen(seen));
        self
    }
}

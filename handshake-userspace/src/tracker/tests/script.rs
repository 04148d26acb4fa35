//! A client, or a listener's peer, that acts in TCP's words.
//!
//! Each act is one observation with all facts that the kernel side would repeat. What a newcomer would get
//! wrong: `with` changes the facts of the acts that follow, and not of those before.

use std::net::SocketAddr;

use handshake_common::{event::Attach, tcp::TcpState};

use super::super::{Tracker, TrackerConfig};
use crate::model::{
    handshake::{Accept, Handshake, HandshakeUpdate, Options},
    health::TrackerCounts,
    observation::*,
    outcome::Outcome,
    process::{Process, SafeText},
};

pub(super) const US: u64 = 1_000;
pub(super) const MS: u64 = 1_000_000;
pub(super) const SEC: u64 = 1_000_000_000;
pub(super) const START: u64 = 100 * SEC;
pub(super) const LISTENER: u64 = 0x1000;

pub(super) const ECONNRESET: u32 = 104;
pub(super) const ETIMEDOUT: u32 = 110;
pub(super) const ECONNREFUSED: u32 = 111;

pub(super) fn config() -> TrackerConfig {
    TrackerConfig { boot: 7, ..TrackerConfig::default() }
}

pub(super) fn process(pid: u32) -> Process {
    let comm = SafeText::from_kernel_bytes(b"test\0");
    Process { pid, tid: pid, uid: 1000, comm, cgroup_id: None }
}

pub(super) fn ends(port: u16) -> Ends {
    Ends {
        local: Some(SocketAddr::from(([10, 9, 0, 1], port))),
        remote: Some(SocketAddr::from(([10, 9, 0, 2], 443))),
        netns: Some(4_026_531_840),
        v4_mapped: false,
    }
}

pub(super) fn agreed() -> Agreed {
    let options = Options { mss: 1460, window_scale: Some((7, 8)), sack: true, timestamps: true };
    Agreed {
        local_isn: Some(0xdead_beef),
        remote_isn: Some(0x0bad_f00d),
        srtt_us: None,
        options: Some(options),
    }
}

/// What both kinds of scripts are made of.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) time_ns: u64,
    pub(super) socket: SocketKey,
    pub(super) attach: Attach,
    pub(super) cpu: u32,
    pub(super) lost_before: u64,
    pub(super) acts: Vec<Observation>,
    pub(super) config: TrackerConfig,
}

impl Script {
    fn new(address: u64) -> Self {
        let socket = SocketKey { address, generation_ns: Some(START) };
        Script {
            time_ns: START,
            socket,
            attach: Attach::Fentry,
            cpu: 0,
            lost_before: 0,
            acts: vec![],
            config: config(),
        }
    }

    pub(super) fn observe(&mut self, act: Act) {
        self.observe_at(self.socket, act);
    }

    pub(super) fn observe_at(&mut self, socket: SocketKey, act: Act) {
        let (time_ns, cpu, lost_before) = (self.time_ns, self.cpu, self.lost_before);
        self.acts.push(Observation { time_ns, cpu, lost_before, socket, attach: self.attach, act });
    }

    /// Everything that comes out up to the script's time, the source still open, and the accounting.
    pub(super) fn run(&self) -> (Vec<HandshakeUpdate>, TrackerCounts) {
        let mut tracker = Tracker::new(self.config.clone());
        let mut out = vec![];
        for act in &self.acts {
            tracker.observe(Input::Observation(Box::new(act.clone())), &mut out);
        }
        tracker.observe(Input::Tick { now_ns: self.time_ns + self.config.window_ns + 1 }, &mut out);
        (out, tracker.counts())
    }
}

pub(super) fn handshakes(updates: &[HandshakeUpdate]) -> Vec<Handshake> {
    let is = |update: &HandshakeUpdate| match update {
        HandshakeUpdate::Handshake(record) => Some((**record).clone()),
        HandshakeUpdate::Accept(_) => None,
    };
    updates.iter().filter_map(is).collect()
}

pub(super) fn accepts(updates: &[HandshakeUpdate]) -> Vec<Accept> {
    let is = |update: &HandshakeUpdate| match update {
        HandshakeUpdate::Accept(record) => Some((**record).clone()),
        HandshakeUpdate::Handshake(_) => None,
    };
    updates.iter().filter_map(is).collect()
}

macro_rules! script_words {
    ($name:ident) => {
        impl $name {
            pub(super) fn wait(mut self, ns: u64) -> Self {
                self.script.time_ns += ns;
                self
            }
            pub(super) fn scripted(mut self, change: impl FnOnce(&mut Script)) -> Self {
                change(&mut self.script);
                self
            }
            pub(super) fn without_generation(mut self) -> Self {
                self.script.socket.generation_ns = None;
                self
            }
            /// Another socket at the same address, from now on.
            pub(super) fn next_generation(mut self) -> Self {
                self.script.socket.generation_ns = Some(self.script.time_ns);
                self
            }
            pub(super) fn updates(&self) -> Vec<HandshakeUpdate> {
                self.script.run().0
            }
            pub(super) fn records(&self) -> Vec<Handshake> {
                handshakes(&self.updates())
            }
            pub(super) fn counts(&self) -> TrackerCounts {
                self.script.run().1
            }
            /// The one record, two seconds later.
            pub(super) fn expect(self, outcome: Outcome) -> Handshake {
                let script = self.wait(2 * SEC);
                let mut records = script.records();
                assert_eq!(records.len(), 1, "one record and not {records:#?}");
                let counts = script.counts();
                assert_eq!(counts.seen, counts.established + counts.failed + counts.in_flight);
                assert_eq!(records[0].outcome, outcome, "{:#?}", records[0]);
                records.remove(0)
            }
        }
    };
}

/// A socket that calls connect().
#[derive(Clone)]
pub(super) struct Client {
    pub(super) script: Script,
    pub(super) facts: LeftSynSent,
}

script_words!(Client);

/// A client that calls connect() now.
pub(super) fn given_client() -> Client {
    given_client_at(0xc000)
}

pub(super) fn given_client_at(address: u64) -> Client {
    let facts = LeftSynSent {
        ends: ends(40_112),
        process: Some(process(1234)),
        actor: None,
        called_ns: Some(START),
        syn_sent_ns: None,
        answered_ns: None,
        last_retransmit_ns: None,
        agreed: Agreed { local_isn: agreed().local_isn, ..Agreed::default() },
        sk_err: Some(0),
        sk_err_soft: 0,
        syn_retransmits: 0,
        new_state: TcpState::Closed,
        answer_flags: None,
        deferred: false,
        fast_open: false,
        reset_received: false,
        call_returned: false,
        return_is_seen: false,
        own: false,
    };
    Client { script: Script::new(address), facts }
}

impl Client {
    pub(super) fn with(mut self, change: impl FnOnce(&mut LeftSynSent)) -> Self {
        change(&mut self.facts);
        self
    }

    pub(super) fn syn(mut self) -> Self {
        self.facts.syn_sent_ns = Some(self.script.time_ns);
        self.script.observe(Act::SynSent(SynSent {
            ends: self.facts.ends,
            process: self.facts.process.clone(),
            called_ns: self.facts.called_ns,
            local_isn: self.facts.agreed.local_isn,
            deferred: self.facts.deferred,
            fast_open: self.facts.fast_open,
            own: self.facts.own,
        }));
        self
    }

    /// The SYN leaves, but its event is lost; the kernel side still knows of it.
    pub(super) fn syn_unseen(mut self) -> Self {
        self.facts.syn_sent_ns = Some(self.script.time_ns);
        self
    }

    pub(super) fn syn_retransmit(mut self) -> Self {
        self.facts.syn_retransmits += 1;
        self.facts.last_retransmit_ns = Some(self.script.time_ns);
        let attempt = Some(u32::from(self.facts.syn_retransmits));
        self.script.observe(Act::SynRetransmitted { ends: self.facts.ends, attempt });
        self
    }

    /// The SYN-ACK arrives and establishes, 2 us later.
    pub(super) fn syn_ack(mut self) -> Self {
        self.facts.answered_ns = Some(self.script.time_ns);
        self.facts.agreed = agreed();
        self.wait(2 * US).leaves(TcpState::Established)
    }

    /// A SYN arrives instead of a SYN-ACK.
    pub(super) fn crossing_syn(mut self) -> Self {
        self.facts.answered_ns = Some(self.script.time_ns);
        self.facts.agreed = agreed();
        self.leaves(TcpState::SynReceived)
    }

    pub(super) fn reset(mut self) -> Self {
        self.facts.answered_ns = Some(self.script.time_ns);
        self.facts.reset_received = true;
        self.wait(US).error(ECONNREFUSED)
    }

    /// The socket goes to CLOSED with this error on it.
    pub(super) fn error(mut self, errno: u32) -> Self {
        self.facts.sk_err = Some(errno);
        self.leaves(TcpState::Closed)
    }

    pub(super) fn application_closes(mut self) -> Self {
        self.facts.actor = self.facts.process.clone();
        self.error(0)
    }

    pub(super) fn leaves(mut self, new_state: TcpState) -> Self {
        self.facts.new_state = new_state;
        self.script.observe(Act::LeftSynSent(Box::new(self.facts.clone())));
        self
    }

    pub(super) fn returns(mut self, errno: u32) -> Self {
        self.facts.call_returned = true;
        self.script.observe(Act::ConnectReturned { errno });
        self
    }

    pub(super) fn fails(mut self, errno: u32) -> Self {
        self.script.observe(Act::ConnectFailed(ConnectFailed {
            ends: self.facts.ends,
            process: self.facts.process.clone(),
            called_ns: self.facts.called_ns,
            errno,
            own: self.facts.own,
        }));
        self
    }

    /// The socket of a simultaneous open leaves SYN-RECEIVED.
    pub(super) fn leaves_syn_received(mut self, new_state: TcpState, sk_err: u32) -> Self {
        let mut left = half_open();
        left.ends = self.facts.ends;
        left.listener = None;
        left.accept_is_seen = false;
        left.new_state = Some(new_state);
        left.sk_err = Some(sk_err);
        self.script.observe(Act::LeftSynReceived(Box::new(left)));
        self
    }
}

fn half_open() -> PassiveOpen {
    PassiveOpen {
        ends: ends(443),
        listener: Some(LISTENER),
        syn_ns: None,
        synack_ns: None,
        last_retransmit_ns: None,
        final_ack_ns: None,
        queued_ns: None,
        agreed: agreed(),
        sk_err: None,
        accept_queue_length: 0,
        accept_queue_limit: Some(128),
        syns_seen: None,
        synack_retransmits: 0,
        old_state: Some(TcpState::SynReceived),
        new_state: None,
        syn_cookie: false,
        fast_open: false,
        defer_accept: false,
        syn_not_seen: false,
        syn_table_full: false,
        reset_received: false,
        timed_out: false,
        accept_is_seen: true,
        own: false,
    }
}

/// A listener, and one connection to it.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) script: Script,
    pub(super) facts: PassiveOpen,
    pub(super) reset_ns: Option<u64>,
}

script_words!(Server);

/// A listener of process 80 to which a client connects.
pub(super) fn given_listener() -> Server {
    given_listener_at(0xd000)
}

pub(super) fn given_listener_at(address: u64) -> Server {
    let mut script = Script::new(address);
    script
        .observe_at(SocketKey { address: LISTENER, generation_ns: None }, Act::ListenerOpened(listener(80)));
    Server { script, facts: half_open(), reset_ns: None }
}

pub(super) fn listener(pid: u32) -> Listener {
    Listener { ends: ends(443), process: Some(process(pid)), accept_queue_limit: Some(128), own: false }
}

impl Server {
    pub(super) fn with(mut self, change: impl FnOnce(&mut PassiveOpen)) -> Self {
        change(&mut self.facts);
        self
    }

    pub(super) fn syn(mut self) -> Self {
        self.facts.syn_ns = self.facts.syn_ns.or(Some(self.script.time_ns));
        self.facts.syns_seen = Some(self.facts.syns_seen.unwrap_or(0) + 1);
        self
    }

    pub(super) fn syn_ack(mut self) -> Self {
        self.facts.synack_ns = Some(self.script.time_ns / 1_000 * 1_000);
        self
    }

    pub(super) fn syn_ack_retransmit(mut self) -> Self {
        self.facts.synack_retransmits += 1;
        self.facts.last_retransmit_ns = Some(self.script.time_ns);
        self
    }

    /// The final ACK makes the child, which is queued 1 us later and ESTABLISHED after 2 us more.
    pub(super) fn final_ack(self) -> Self {
        self.child_queued().wait(2 * US).established()
    }

    pub(super) fn child_queued(mut self) -> Self {
        self.facts.final_ack_ns = Some(self.script.time_ns);
        self.script.time_ns += US;
        self.facts.queued_ns = Some(self.script.time_ns);
        self.script.observe(Act::ChildQueued(Box::new(self.facts.clone())));
        self
    }

    /// As `final_ack`, in a mode (or with a loss) that shows no queueing.
    pub(super) fn final_ack_without_queueing(mut self) -> Self {
        self.facts.final_ack_ns = Some(self.script.time_ns);
        self.script.time_ns += 3 * US;
        self.facts.queued_ns = Some(self.script.time_ns);
        self.established()
    }

    /// As `final_ack`, with both events lost.
    pub(super) fn final_ack_unseen(mut self) -> Self {
        self.script.time_ns += 3 * US;
        self.facts.queued_ns = Some(self.script.time_ns);
        self
    }

    pub(super) fn established(self) -> Self {
        self.leaves_syn_received(TcpState::Established)
    }

    pub(super) fn leaves_syn_received(mut self, new_state: TcpState) -> Self {
        self.facts.new_state = Some(new_state);
        self.script.observe(Act::LeftSynReceived(Box::new(self.facts.clone())));
        self
    }

    pub(super) fn reset_while_queued(mut self) -> Self {
        self.reset_ns = Some(self.script.time_ns);
        self
    }

    pub(super) fn accept(mut self) -> Self {
        self.script.observe(Act::Accepted(Accepted {
            ends: self.facts.ends,
            process: Some(process(81)),
            queued_ns: self.facts.queued_ns,
            waiting_since_ns: None,
            reset_ns: self.reset_ns,
        }));
        self
    }

    pub(super) fn destroyed(mut self) -> Self {
        self.script.observe(Act::ChildDestroyed(ChildDestroyed {
            ends: self.facts.ends,
            queued_ns: self.facts.queued_ns,
            reset_ns: self.reset_ns,
        }));
        self
    }

    pub(super) fn listener_closes(mut self) -> Self {
        let socket = SocketKey { address: LISTENER, generation_ns: None };
        self.script.observe_at(socket, Act::ListenerClosed(listener(80)));
        self
    }

    pub(super) fn request_dies(mut self) -> Self {
        let socket = SocketKey { address: 0xe000, generation_ns: Some(START) };
        self.script.observe_at(socket, Act::RequestDied(Box::new(self.facts.clone())));
        self
    }

    pub(super) fn seen_queued_at_start(mut self) -> Self {
        let seen = SocketSeen {
            ends: self.facts.ends,
            synack_ns: None,
            inode: None,
            accept_queue: None,
            retransmits: 0,
            state: TcpState::Established,
            queued: true,
        };
        let socket = SocketKey { address: self.script.socket.address, generation_ns: None };
        self.script.observe_at(socket, Act::SocketSeen(seen));
        self
    }
}

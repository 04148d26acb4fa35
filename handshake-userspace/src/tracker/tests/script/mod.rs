//! A client, or a listener's peer, that acts in TCP's words.
//!
//! Each act is one observation with all facts that the kernel side would repeat. What a newcomer would get
//! wrong: `with` changes the facts of the acts that follow, and not of those before.

use std::net::SocketAddr;

use handshake_common::{event::Attach, tcp::TcpState};

use crate::model::{
    handshake::{Accept, Handshake, HandshakeUpdate, Options},
    health::TrackerCounts,
    observation::*,
    outcome::Outcome,
    process::{Process, SafeText},
};
use crate::tracker::{Tracker, TrackerConfig};

pub(crate) const US: u64 = 1_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000_000_000;
pub(crate) const START: u64 = 100 * SEC;
pub(crate) const LISTENER: u64 = 0x1000;

pub(crate) const ECONNRESET: u32 = 104;
pub(crate) const ETIMEDOUT: u32 = 110;
pub(crate) const ECONNREFUSED: u32 = 111;

pub(crate) fn config() -> TrackerConfig {
    TrackerConfig { boot: 7, ..TrackerConfig::default() }
}

pub(crate) fn process(pid: u32) -> Process {
    let comm = SafeText::from_kernel_bytes(b"test\0");
    Process { pid, tid: pid, uid: 1000, comm, cgroup_id: None, in_cgroups: 0 }
}

pub(crate) fn ends(port: u16) -> Ends {
    Ends {
        local: Some(SocketAddr::from(([10, 9, 0, 1], port))),
        remote: Some(SocketAddr::from(([10, 9, 0, 2], 443))),
        netns: Some(4_026_531_840),
        v4_mapped: false,
    }
}

pub(crate) fn agreed() -> Agreed {
    let options = Options {
        mss: 1460,
        window_scale: Some((7, 8)),
        sack: true,
        timestamps: true,
        ecn: false,
        windows: None,
        fast_open: None,
        fast_open_cookie: None,
    };
    Agreed {
        local_isn: Some(0xdead_beef),
        remote_isn: Some(0x0bad_f00d),
        srtt_us: Some(40_999),
        options: Some(options),
        mptcp: false,
        repair: false,
    }
}

/// What both kinds of scripts are made of.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) time_ns: u64,
    pub(crate) socket: SocketKey,
    pub(crate) attach: Attach,
    pub(crate) cpu: u32,
    pub(crate) lost_before: u64,
    pub(crate) acts: Vec<Observation>,
    pub(crate) config: TrackerConfig,
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

    pub(crate) fn observe(&mut self, act: Act) {
        self.observe_at(self.socket, act);
    }

    pub(crate) fn observe_at(&mut self, socket: SocketKey, act: Act) {
        let (time_ns, cpu, lost_before) = (self.time_ns, self.cpu, self.lost_before);
        self.acts.push(Observation { time_ns, cpu, lost_before, socket, attach: self.attach, act });
    }

    /// Everything that comes out up to the script's time, the source still open, and the accounting.
    pub(crate) fn run(&self) -> (Vec<HandshakeUpdate>, TrackerCounts) {
        let mut tracker = Tracker::new(self.config.clone());
        let mut out = vec![];
        for act in &self.acts {
            tracker.observe(Input::Observation(Box::new(act.clone())), &mut out);
        }
        tracker.observe(Input::Tick { now_ns: self.time_ns + self.config.window_ns + 1 }, &mut out);
        (out, tracker.counts())
    }
}

pub(crate) fn handshakes(updates: &[HandshakeUpdate]) -> Vec<Handshake> {
    let is = |update: &HandshakeUpdate| match update {
        HandshakeUpdate::Handshake(record) => Some((**record).clone()),
        HandshakeUpdate::Accept(_) => None,
    };
    updates.iter().filter_map(is).collect()
}

pub(crate) fn accepts(updates: &[HandshakeUpdate]) -> Vec<Accept> {
    let is = |update: &HandshakeUpdate| match update {
        HandshakeUpdate::Accept(record) => Some((**record).clone()),
        HandshakeUpdate::Handshake(_) => None,
    };
    updates.iter().filter_map(is).collect()
}

macro_rules! script_words {
    ($name:ident) => {
        impl $name {
            pub(crate) fn wait(mut self, ns: u64) -> Self {
                self.script.time_ns += ns;
                self
            }
            pub(crate) fn scripted(mut self, change: impl FnOnce(&mut Script)) -> Self {
                change(&mut self.script);
                self
            }
            pub(crate) fn without_generation(mut self) -> Self {
                self.script.socket.generation_ns = None;
                self
            }
            /// Another socket at the same address, from now on.
            pub(crate) fn next_generation(mut self) -> Self {
                self.script.socket.generation_ns = Some(self.script.time_ns);
                self
            }
            pub(crate) fn updates(&self) -> Vec<HandshakeUpdate> {
                self.script.run().0
            }
            pub(crate) fn records(&self) -> Vec<Handshake> {
                handshakes(&self.updates())
            }
            pub(crate) fn counts(&self) -> TrackerCounts {
                self.script.run().1
            }
            /// The one record, two seconds later.
            pub(crate) fn expect(self, outcome: Outcome) -> Handshake {
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

/// What the kernel side says of a half-open connection, before anything happened.
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
        ack_dropped: false,
        end_not_seen: false,
        still_open: false,
        reset_sent: false,
        mptcp_join: false,
        icmp_received: false,
        acknowledged: false,
        other_syn: false,
        own: false,
    }
}

mod client;
mod server;

pub(crate) use self::{
    client::{given_client, given_client_at},
    server::{Server, given_listener, given_listener_at, listener},
};

//! Bytes as a story: each input of the tracker takes a few of them.
//!
//! What a reader would get wrong: the bytes are a script and not a recording, so that each means something and a
//! change of one makes another story. A time in an act is a distance from now, else chance would never put two of
//! them near each other; a few stay what the bytes say, however wild.

use std::collections::BTreeMap;

use handshake::{
    decode::decode,
    model::{
        mib::{MIB_COUNTERS, MibReading, MibValues, NamespaceMib, NotCompared},
        observation::{Act, ClockAnchor, Ends, Input, Observation, PassiveOpen},
    },
};
use handshake_common::event::{ABI_VERSION, EventHeader, EventKind};

const START: u64 = 1_000_000_000_000;
/// Low bits of a story's namespace numbers: few, so that acts and readings meet in one.
const NAMESPACES: u32 = 3;

/// See the module.
pub struct Script<'a> {
    rest: &'a [u8],
    pub now_ns: u64,
    /// What the kernel's counters stand at, by namespace.
    counters: BTreeMap<u32, MibValues>,
    asleep_ns: u64,
}

impl<'a> Script<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Script { rest: bytes, now_ns: START, counters: BTreeMap::new(), asleep_ns: 0 }
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// What the tracker is given next, if these bytes are anything.
    pub fn next(&mut self) -> Option<Option<Input>> {
        if self.rest.is_empty() {
            return None;
        }
        let what = self.byte();
        let step = self.byte();
        self.now_ns = self.now_ns.saturating_add(distance(step));
        Some(match what & 0xf {
            0xf => Some(Input::Tick { now_ns: self.now_ns }),
            0xe if what & 0x10 == 0 => Some(Input::Anchor(self.anchor())),
            0xe => Some(Input::Mib(Box::new(self.reading()))),
            _ => self.act(what).map(|act| Input::Observation(Box::new(act))),
        })
    }

    /// A time before or after now: from nanoseconds to minutes away.
    fn time(&mut self, is_later: bool) -> u64 {
        let far = distance(self.byte());
        if is_later { self.now_ns.saturating_add(far) } else { self.now_ns.saturating_sub(far) }
    }

    fn anchor(&mut self) -> ClockAnchor {
        let slept = self.byte();
        // The clocks are set by people too: it may seem to have slept less than before.
        self.asleep_ns = match slept & 1 {
            0 => self.asleep_ns.saturating_add(distance(slept)),
            _ => self.asleep_ns.saturating_sub(distance(slept)),
        };
        let boottime_ns = self.now_ns.saturating_add(self.asleep_ns);
        ClockAnchor { monotonic_ns: self.now_ns, boottime_ns, realtime_ns: boottime_ns }
    }

    /// The counters go on from where they stood, or a namespace ends, or another one has its number.
    fn reading(&mut self) -> MibReading {
        let what = self.byte();
        let took_ns = distance(self.byte());
        for netns in 0..=NAMESPACES {
            let change = self.byte();
            if change & 0xf0 == 0xf0 {
                self.counters.remove(&netns);
                continue;
            }
            let values = self.counters.entry(netns).or_insert([Some(0); MIB_COUNTERS]);
            let at = usize::from(change >> 4) % (MIB_COUNTERS + 1);
            match values.get_mut(at) {
                Some(Some(value)) => *value = value.saturating_add(u64::from(change & 7)),
                Some(value) => *value = Some(u64::from(change & 7)),
                None => *values = [(change & 1 == 0).then_some(0); MIB_COUNTERS],
            }
            if change & 8 != 0
                && let Some(value) = values.get_mut(at)
            {
                *value = None;
            }
        }
        let read = |(netns, values): (&u32, &MibValues)| {
            (
                *netns,
                NamespaceMib {
                    from_ns: self.now_ns.saturating_sub(took_ns),
                    to_ns: self.now_ns,
                    values: *values,
                },
            )
        };
        MibReading {
            refused: (what & 0x70 == 0x70).then_some(NotCompared::Filtered),
            requests_are_seen: what & 1 != 0,
            unread: u32::from(what >> 1 & 3),
            namespaces: self.counters.iter().map(read).collect(),
        }
    }

    fn act(&mut self, what: u8) -> Option<Observation> {
        let kind = EventKind::ALL[usize::from(what & 0xf) % EventKind::ALL.len()];
        let who = self.byte();
        let happened_ns = if what & 0x40 == 0 { self.now_ns } else { self.time(what & 0x80 != 0) };
        let mut event = vec![0; kind.size_bytes()];
        let payload = event.len() - size_of::<EventHeader>();
        let length = payload.min(self.rest.len());
        event[size_of::<EventHeader>()..][..length].copy_from_slice(&self.rest[..length]);
        self.rest = &self.rest[length..];
        event[..2].copy_from_slice(&(kind as u16).to_le_bytes());
        event[2..4].copy_from_slice(&ABI_VERSION.to_le_bytes());
        event[4..6].copy_from_slice(&((payload + size_of::<EventHeader>()) as u16).to_le_bytes());
        event[6] = what >> 4 & 3;
        event[8..16].copy_from_slice(&happened_ns.to_le_bytes());
        event[16..24].copy_from_slice(&u64::from(who & 7).to_le_bytes());
        event[24..32].copy_from_slice(&u64::from(who >> 3 & 3).to_le_bytes());
        event[32..40].copy_from_slice(&u64::from(who >> 5).to_le_bytes());
        let mut observation = decode(&event).ok()?;
        bring_near(&mut observation);
        Some(observation)
    }
}

/// From nanoseconds to minutes.
fn distance(byte: u8) -> u64 {
    u64::from(byte & 0x1f) << (u32::from(byte >> 5) * 5)
}

/// Makes the times within an act distances from when it happened, and namespaces few.
fn bring_near(observation: &mut Observation) {
    let happened_ns = observation.time_ns;
    let near = |time_ns: &mut Option<u64>| {
        if let Some(time_ns) = time_ns {
            let [far, is_later, .., wild] = time_ns.to_le_bytes();
            *time_ns = match (wild, is_later & 1) {
                (0xf0.., _) => *time_ns,
                (_, 0) => happened_ns.saturating_sub(distance(far)),
                (_, _) => happened_ns.saturating_add(distance(far)),
            };
        }
    };
    let few = |ends: &mut Ends| {
        if let Some(netns) = &mut ends.netns {
            *netns &= NAMESPACES;
        }
    };
    let passive = |act: &mut PassiveOpen| {
        few(&mut act.ends);
        near(&mut act.syn_ns);
        near(&mut act.synack_ns);
        near(&mut act.last_retransmit_ns);
        near(&mut act.final_ack_ns);
        near(&mut act.queued_ns);
    };
    match &mut observation.act {
        Act::SynSent(act) => {
            few(&mut act.ends);
            near(&mut act.called_ns);
        }
        Act::ConnectFailed(act) => {
            few(&mut act.ends);
            near(&mut act.called_ns);
        }
        Act::LeftSynSent(act) => {
            few(&mut act.ends);
            near(&mut act.called_ns);
            near(&mut act.syn_sent_ns);
            near(&mut act.answered_ns);
            near(&mut act.last_retransmit_ns);
        }
        Act::ChildQueued(act) | Act::LeftSynReceived(act) | Act::RequestDied(act) => passive(act),
        Act::Accepted(act) => {
            few(&mut act.ends);
            near(&mut act.queued_ns);
            near(&mut act.waiting_since_ns);
            near(&mut act.reset_ns);
        }
        Act::ChildDestroyed(act) => {
            few(&mut act.ends);
            near(&mut act.queued_ns);
            near(&mut act.reset_ns);
        }
        Act::SocketSeen(act) => {
            few(&mut act.ends);
            near(&mut act.synack_ns);
        }
        Act::ListenerOpened(act) | Act::ListenerClosed(act) => few(&mut act.ends),
        Act::SynRetransmitted { ends, .. } | Act::ChildUndone { ends } => few(ends),
        Act::SegmentDropped(act) => few(&mut act.ends),
        Act::ConnectReturned { .. } | Act::FastOpenAnswered { .. } | Act::AddressRewritten { .. } => {}
    }
}

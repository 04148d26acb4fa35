//! The canary: three handshakes of our own on loopback, of which everything is known, before the first line.
//!
//! A wrong offset (a BTF that is not of this kernel, a field that means something else in it) gives records that
//! look right and are not. So one IPv4 connection, one IPv6 connection and one that is refused are made, and what
//! the hooks report of them goes through the same decode and tracker as everything later; ends, process, namespace,
//! ISNs, outcome and times must be what the socket calls and our own clock say. What a newcomer would get wrong:
//! there are three results. A loopback that is down proves nothing against the kernel side, so that is a warning;
//! only a report that is wrong, or that doesn't come, stops us. A hook that tells nothing is a warning too.

mod handshakes;
mod silence;
mod verdict;

use std::{
    collections::HashSet,
    fmt, thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use handshake_common::filter::{CANARY_PORTS, Filter};

use self::{
    handshakes::{Baits, Made},
    verdict::Expected,
};
use super::HookStatus;
use crate::{
    decode::decode,
    model::{
        handshake::{Handshake, HandshakeUpdate},
        health,
        observation::{Act, Ends, Input, Observation, SocketKey},
    },
    source::{SourceItem, ring_buffer::monotonic_ns},
    tracker::{Tracker, TrackerConfig},
};

/// How often it is tried: the kernel may skip one of our programs once (recursion), and a foreign RST may hit.
const ATTEMPTS: usize = 3;
/// How long the report of one attempt may take to come.
const PATIENCE: Duration = Duration::from_millis(500);
/// Later than every patience of the tracker, so that nothing is held back.
const LONG_AFTER_NS: u64 = 3_600_000_000_000;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryResult {
    /// Everything was reported right, of so many handshakes.
    Passed(usize),
    /// It could not be made, and why: nothing is proven.
    NotRun(String),
    /// `--no-canary`.
    NotWanted,
}

impl CanaryResult {
    /// For `health` and recordings.
    pub fn kind(&self) -> health::Canary {
        match self {
            CanaryResult::Passed(_) => health::Canary::Passed,
            CanaryResult::NotRun(_) => health::Canary::CouldNotRun,
            CanaryResult::NotWanted => health::Canary::NotWanted,
        }
    }
}

impl fmt::Display for CanaryResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CanaryResult::Passed(handshakes) => write!(
                f,
                "passed: ends, process, namespace, ISNs, outcome and times of {handshakes} loopback handshakes were \
                 reported right"
            ),
            CanaryResult::NotRun(why) => write!(f, "could not run: {why}"),
            CanaryResult::NotWanted => f.write_str("not run (--no-canary)"),
        }
    }
}

/// Sockets that wait for the hooks to be attached; their ports are known to the kernel side's filter.
pub(super) enum Canary {
    Ready(Baits),
    Not(CanaryResult),
}

impl Canary {
    /// Takes ports, before anything is loaded.
    pub(super) fn prepare(wanted: bool) -> Self {
        if !wanted {
            return Canary::Not(CanaryResult::NotWanted);
        }
        match Baits::lay() {
            Ok(baits) => Canary::Ready(baits),
            Err(why) => Canary::Not(CanaryResult::NotRun(why)),
        }
    }

    /// `filter`, with our ports let through.
    pub(super) fn past(&self, filter: &Filter) -> Filter {
        let mut filter = *filter;
        if let Canary::Ready(baits) = self {
            let ports = baits.servers().map(|server| server.port());
            for (slot, port) in filter.canary[..CANARY_PORTS].iter_mut().zip(ports) {
                *slot = port;
            }
        }
        filter
    }

    /// Makes the handshakes and judges what `ring` gives. An error says what was reported wrongly.
    pub(super) fn sing(
        self,
        filter: &Filter,
        hooks: &[HookStatus],
        mut ring: impl FnMut() -> Option<Bytes>,
    ) -> Result<Sung, String> {
        let baits = match self {
            Canary::Ready(baits) => baits,
            Canary::Not(result) => return Ok(Sung { result, silent: Vec::new(), others: Vec::new() }),
        };
        let mut seen = Seen::default();
        let mut every_made = Vec::new();
        let mut verdict = Err(String::new());
        for _ in 0..ATTEMPTS {
            let made = match baits.make() {
                Ok(made) => made,
                Err(why) => {
                    seen.drain(&mut ring);
                    let others = seen.not_of(&baits);
                    return Ok(Sung { result: CanaryResult::NotRun(why), silent: Vec::new(), others });
                }
            };
            every_made.extend(made.iter().copied());
            let deadline = Instant::now() + PATIENCE;
            loop {
                seen.drain(&mut ring);
                match judge(&made, &seen, filter) {
                    Ok(()) => {
                        let mut ours = seen.records();
                        ours.retain(|record| is_of(record, &every_made));
                        verdict = Ok((made.len(), silence::silent(hooks, &ours)));
                    }
                    // One attempt that was reported right proves what another one, that was disturbed, does not.
                    Err(problem) if verdict.is_err() => verdict = Err(problem),
                    Err(_) => {}
                }
                if told_in_full(&verdict) || Instant::now() >= deadline {
                    break;
                }
                thread::sleep(Duration::from_millis(2));
            }
            if told_in_full(&verdict) {
                break;
            }
        }
        let (handshakes, silent) = verdict?;
        Ok(Sung { result: CanaryResult::Passed(handshakes), silent, others: seen.not_of(&baits) })
    }
}

/// Whether everything was right, and no hook was silent.
fn told_in_full(verdict: &Result<(usize, Vec<&str>), String>) -> bool {
    matches!(verdict, Ok((_, silent)) if silent.is_empty())
}

/// What the canary's handshakes showed.
pub(super) struct Sung {
    pub(super) result: CanaryResult,
    /// Hooks that are attached and told nothing.
    pub(super) silent: Vec<&'static str>,
    /// What else was in the ring: other handshakes have begun by now.
    pub(super) others: Vec<SourceItem>,
}

/// Whether a record is of one of these handshakes, whichever its end.
fn is_of(record: &Handshake, made: &[Made]) -> bool {
    let ends = (record.local, record.remote);
    made.iter().any(|made| {
        let (client, server) = (Some(made.client), Some(made.server));
        ends == (client, server) || ends == (server, client)
    })
}

fn judge(made: &[Made], seen: &Seen, filter: &Filter) -> Result<(), String> {
    let records = seen.records();
    made.iter().try_for_each(|made| {
        let expected = Expected { made, filter };
        expected.found_in(&records)?;
        seen.observations().try_for_each(|observation| expected.times_are_true(observation))
    })
}

/// What the ring gave meanwhile, in its order.
#[derive(Default)]
struct Seen {
    events: Vec<(Bytes, Option<Observation>)>,
}

impl Seen {
    fn drain(&mut self, ring: &mut impl FnMut() -> Option<Bytes>) {
        while let Some(bytes) = ring() {
            let observation = decode(&bytes).ok();
            self.events.push((bytes, observation));
        }
    }

    fn observations(&self) -> impl Iterator<Item = &Observation> {
        self.events.iter().filter_map(|(_, observation)| observation.as_ref())
    }

    /// Through a tracker of its own, as if an hour had passed since.
    fn records(&self) -> Vec<Handshake> {
        let mut tracker = Tracker::new(TrackerConfig::default());
        let mut updates = Vec::new();
        for observation in self.observations() {
            tracker.observe(Input::Observation(Box::new(observation.clone())), &mut updates);
        }
        tracker.observe(Input::Tick { now_ns: monotonic_ns().saturating_add(LONG_AFTER_NS) }, &mut updates);
        let records = updates.into_iter().filter_map(|update| match update {
            HandshakeUpdate::Handshake(handshake) => Some(*handshake),
            HandshakeUpdate::Accept(_) => None,
        });
        records.collect()
    }

    /// The events that are not the canary's: nobody asked for those.
    fn not_of(self, baits: &Baits) -> Vec<SourceItem> {
        let servers: Vec<_> = baits.servers().collect();
        let is_ours =
            |ends: &Ends| [ends.local, ends.remote].into_iter().flatten().any(|end| servers.contains(&end));
        // connect()'s return and the answer to a Fast Open name no ends, only the socket.
        let ours: HashSet<SocketKey> = self
            .events
            .iter()
            .filter_map(|(_, observation)| observation.as_ref())
            .filter(|observation| observation.act.ends().is_some_and(is_ours))
            .map(|observation| observation.socket)
            .collect();
        let others = self.events.into_iter().filter(|(_, observation)| match observation {
            Some(observation) => match &observation.act {
                Act::ConnectReturned { .. } | Act::FastOpenAnswered { .. } | Act::AddressRewritten { .. } => {
                    !ours.contains(&observation.socket)
                }
                act => !act.ends().is_some_and(is_ours),
            },
            None => true,
        });
        others.map(|(bytes, _)| SourceItem::Event(bytes)).collect()
    }
}

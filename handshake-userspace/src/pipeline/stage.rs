//! One item of the source in, finished records out: decode, track, filter, account.
//!
//! Everything here is a function of the items alone, ticks included, so a recording gives the records of the
//! run that it was made by. What a newcomer would get wrong: `health` and `lost` come by the source's clock
//! too, not by a timer of ours.

use super::{
    Plan,
    filter::{Gate, Verdict},
    health::Accounting,
    notice,
    wall_clock::WallClock,
};
use crate::{
    decode::{DecodeError, decode},
    model::{
        handshake::HandshakeUpdate,
        health::Health,
        mib::{NotCompared, Reconciliation},
        observation::Input,
    },
    sinks::{Record, WallTime, summary::Summary},
    source::SourceItem,
    tracker::{Tracker, TrackerConfig},
};

/// How long nothing may come before we say what we wait for.
const PATIENCE_NS: u64 = 5_000_000_000;

pub(super) struct Stage {
    tracker: Tracker,
    gate: Gate,
    clock: WallClock,
    accounting: Accounting,
    summary: Summary,
    updates: Vec<HandshakeUpdate>,
    count_left: Option<u64>,
    stream_limit_ns: Option<u64>,
    waiting: Option<String>,
    first_tick_ns: Option<u64>,
    now_ns: u64,
    done: bool,
}

impl Stage {
    pub(super) fn new(plan: Plan) -> Self {
        Stage {
            tracker: Tracker::new(TrackerConfig {
                boot: plan.boot,
                drop_reasons: plan.drop_reasons.names(),
                ..TrackerConfig::default()
            }),
            gate: plan.gate,
            clock: WallClock::default(),
            accounting: Accounting::new(plan.canary),
            summary: Summary::default(),
            updates: Vec::new(),
            count_left: plan.count,
            stream_limit_ns: plan.stream_limit_ns,
            waiting: plan.waiting,
            first_tick_ns: None,
            now_ns: 0,
            done: false,
        }
    }

    /// Takes one item; `sink_dropped` is what the sinks have dropped so far.
    pub(super) fn take(&mut self, item: SourceItem, sink_dropped: u64, out: &mut Vec<Record>) {
        match item {
            // The last reading belongs into the last account, limit or not.
            SourceItem::Counters(reading) => self.accounting.counters(*reading),
            _ if self.done => {}
            SourceItem::Mib(reading) => self.observe(Input::Mib(reading), out),
            SourceItem::Event(bytes) => match decode(&bytes) {
                Ok(observation) => self.observe(Input::Observation(Box::new(observation)), out),
                Err(error @ DecodeError::UnknownKind { .. }) => {
                    log::debug!("{error}");
                    self.accounting.unknown_kind += 1;
                }
                Err(error) => {
                    // One line says what is wrong; the count says how often.
                    if self.accounting.undecodable == 0 {
                        log::warn!("{error}");
                    }
                    self.accounting.undecodable += 1;
                }
            },
            SourceItem::Anchor(anchor) => {
                self.clock.anchor(anchor);
                self.observe(Input::Anchor(anchor), out);
            }
            SourceItem::Tick { now_ns } => {
                self.observe(Input::Tick { now_ns }, out);
                self.tick(now_ns, sink_dropped, out);
            }
        }
    }

    /// Nothing more will come.
    pub(super) fn end(&mut self, sink_dropped: u64, out: &mut Vec<Record>) {
        if !self.done {
            self.observe(Input::End { now_ns: self.now_ns }, out);
        }
        // A run that ends between two checks tells of its loss like any other.
        self.tell_grown_loss(sink_dropped, out);
    }

    /// Whether a limit of the plan is reached.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn health(&self, sink_dropped: u64) -> Health {
        let mut health = self.accounting.health(self.tracker.counts(), self.gate.unknown(), sink_dropped);
        health.reconciliation = self.tracker.reconciliation().map(|compared| match self.done {
            true if compared.not_compared != Some(NotCompared::Filtered) => {
                Reconciliation::without(NotCompared::StoppedEarly)
            }
            _ => compared.clone(),
        });
        health
    }

    pub(super) fn wall_time(&self) -> WallTime {
        self.clock.at(self.now_ns)
    }

    pub(super) fn into_summary(self) -> Summary {
        self.summary
    }

    fn tick(&mut self, now_ns: u64, sink_dropped: u64, out: &mut Vec<Record>) {
        self.now_ns = self.now_ns.max(now_ns);
        let first_ns = *self.first_tick_ns.get_or_insert(now_ns);
        let elapsed_ns = now_ns.saturating_sub(first_ns);
        if self.accounting.health_is_due(now_ns) {
            let health = self.health(sink_dropped);
            out.push(Record::Health(Box::new(health), self.wall_time()));
        }
        if self.accounting.loss_check_is_due(now_ns) {
            self.tell_grown_loss(sink_dropped, out);
        }
        if elapsed_ns >= PATIENCE_NS
            && let Some(waiting) = self.waiting.take()
        {
            notice::say(&waiting);
        }
        self.done |= self.stream_limit_ns.is_some_and(|limit| elapsed_ns >= limit);
    }

    fn tell_grown_loss(&mut self, sink_dropped: u64, out: &mut Vec<Record>) {
        let health = self.health(sink_dropped);
        if let Some(lost) = self.accounting.grown_loss(&health) {
            out.push(Record::Lost(lost, self.wall_time()));
        }
    }

    fn observe(&mut self, input: Input, out: &mut Vec<Record>) {
        let mut updates = std::mem::take(&mut self.updates);
        self.tracker.observe(input, &mut updates);
        for update in updates.drain(..) {
            if !self.done {
                self.judge(update, out);
            }
        }
        self.updates = updates;
    }

    fn judge(&mut self, update: HandshakeUpdate, out: &mut Vec<Record>) {
        match update {
            HandshakeUpdate::Handshake(handshake) => {
                let verdict = self.gate.handshake(&handshake);
                if verdict == Verdict::LeftOut {
                    self.summary.left_out();
                    return;
                }
                self.summary.handshake(&handshake);
                self.accounting.outcome(handshake.outcome);
                if verdict == Verdict::Shown {
                    self.waiting = None;
                    let time = self.clock.at(handshake.began_ns);
                    out.push(Record::Handshake(handshake, time));
                    if let Some(left) = &mut self.count_left {
                        *left = left.saturating_sub(1);
                        self.done |= *left == 0;
                    }
                }
            }
            HandshakeUpdate::Accept(accept) => {
                let verdict = self.gate.accept(&accept);
                if verdict == Verdict::LeftOut {
                    return;
                }
                self.summary.accept(&accept);
                if verdict == Verdict::Shown {
                    let time = self.clock.at(accept.time_ns);
                    out.push(Record::Accept(accept, time));
                }
            }
        }
    }
}

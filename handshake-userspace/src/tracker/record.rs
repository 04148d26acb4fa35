//! Records out of what is known: phases, round trip, retransmissions, flags.
//!
//! The last step of the tracker. What a newcomer would get wrong: each number is from one act to another,
//! and one that can't be told apart from a wrong one is absent: no subtraction wraps, no 0 stands for
//! unknown, and nothing that includes a retransmission is a round trip (Karn, RFC 6298 section 3).

use handshake_common::{event::Attach, tcp::TcpState};

use super::{
    active_open::ActiveOpen,
    entry::{between, until_called},
    passive_open::Child,
    verdict::{self, Verdict, errno},
};
use crate::model::{
    handshake::{AcceptQueue, Dropped, FastOpen, Handshake, Isn, Key, Options, Phases, Retransmits},
    observation::{Agreed, LeftSynSent},
    outcome::{Evidence, EvidenceKind, Flag, Outcome, Role},
};

/// What the record needs and the handshake itself doesn't know.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) key: Key,
    pub(super) attach: Option<Attach>,
    /// When the first event of it happened: its beginning if nothing better is known.
    pub(super) since_ns: u64,
    /// Events were lost while it was open.
    pub(super) events_lost: bool,
    /// What to say if it has not ended by itself.
    pub(super) cut_short: EvidenceKind,
}

impl Head {
    fn incomplete(self) -> Verdict {
        Verdict::new(Outcome::Incomplete, self.cut_short)
    }
}

/// The record of an active open.
pub(super) fn of_active_open(open: ActiveOpen, dropped: Option<Dropped>, head: Head) -> Handshake {
    let verdict = judge_active(&open).unwrap_or(head.incomplete());
    let established = verdict.outcome == Outcome::Established;
    let (end_ns, end) = open
        .end
        .map_or((None, None), |(time_ns, end)| ((!end.end_time_unknown).then_some(time_ns), Some(end)));
    let (crossed_ns, crossed) =
        open.crossed.map_or((None, None), |(time_ns, left)| (Some(time_ns), Some(left)));
    let is_crossed =
        crossed.is_some() || end.as_ref().is_some_and(|end| end.new_state == TcpState::SynReceived);

    // A call that failed before any SYN, though a mode without a hook on the SYN itself took the change to
    // SYN-SENT for one.
    let no_syn = open.failed.is_some()
        || end.as_ref().is_some_and(|end| end.agreed.repair)
        || verdict.kind == EvidenceKind::ConnectReturned && verdict.errno == Some(errno::EADDRNOTAVAIL);
    let syn_ns = open.syn_sent_ns.filter(|_| !no_syn);
    let syn_left = !no_syn
        && (syn_ns.is_some() || open.local_isn.is_some() || open.seen_late || open.syn_retransmits > 0);
    let established_ns = if is_crossed { crossed_ns } else { end_ns }.filter(|_| established);
    let returned_ns = open.returned.map(|(time_ns, _)| time_ns).filter(|_| no_syn);
    // A simultaneous open goes on when it leaves SYN-SENT.
    let failed_ns = crossed_ns.or(end_ns.filter(|_| !no_syn)).or(open.failed_ns).or(returned_ns);
    let failed_ns = failed_ns.filter(|_| ended_badly(verdict.outcome));
    let over_ns = established_ns.or(failed_ns);
    let by_reset = verdict.kind == EvidenceKind::ResetReceived;
    // Only a segment is an answer: what an ICMP ended has no wire time, nor has a close.
    let answered_ns = (established && !no_syn || by_reset || is_crossed)
        .then(|| end.as_ref().and_then(|end| end.answered_ns).or(end_ns))
        .flatten()
        .filter(|answered_ns| not_after(*answered_ns, over_ns));
    let wire_ns = between(syn_ns, answered_ns);
    let last_retransmit_ns = open.last_retransmit_ns.filter(|again_ns| not_after(*again_ns, over_ns));
    let syns_again = (syn_left && !open.syns_uncounted).then_some(open.syn_retransmits);
    let syns = syns_again.map(|again| again.saturating_add(1));

    let agreed = agreed_by(end.as_ref().map(|end| end.agreed), crossed.as_ref().map(|left| left.agreed));
    let isn = match agreed.repair {
        true => Isn::default(),
        false => Isn { local: agreed.local_isn.or(open.local_isn), remote: agreed.remote_isn },
    };
    let id = match (isn.local, isn.remote) {
        (Some(local), Some(remote)) => Some(join(local, remote)),
        _ => None,
    };
    let over = end.is_some() || is_crossed;
    let non_blocking = over && (open.returned_early || end.as_ref().is_some_and(|end| end.call_returned));
    let joins = end.as_ref().is_some_and(|end| end.mptcp_join);
    let called_ns = open.called_ns.filter(|called_ns| not_after(*called_ns, syn_ns));
    let began_ns = if open.deferred { syn_ns.or(called_ns) } else { called_ns.or(syn_ns) };
    Handshake {
        key: head.key,
        id,
        began_ns: began_ns.unwrap_or(head.since_ns),
        role: if is_crossed { Role::Simultaneous } else { Role::Client },
        outcome: verdict.outcome,
        evidence: Evidence {
            soft_errno: end.as_ref().map(|end| end.sk_err_soft).filter(|number| *number != 0 && !established),
            ..verdict.evidence(syns, None)
        },
        local: open.ends.local,
        remote: open.ends.remote,
        asked: open.asked.filter(|asked| open.ends.remote != Some(*asked)),
        netns: open.ends.netns,
        // Under lockdown nobody may read which subflows join; that a worker of the kernel opened one shows it.
        process: open.process.filter(|process| !(agreed.mptcp && process.is_kernel_worker())),
        latency_ns: between(syn_ns, established_ns),
        failed_after_ns: between(syn_ns.or(called_ns), failed_ns),
        // In a simultaneous open the SYN that came is no answer to ours.
        rtt_ns: wire_ns.filter(|_| open.syn_retransmits == 0 && !is_crossed),
        kernel_rtt_us: agreed
            .srtt_us
            .filter(|_| established && !agreed.repair)
            // Read off the socket later, it would be of the data's round trips too.
            .filter(|_| !end.as_deref().is_some_and(was_read_later)),
        phases: Phases {
            local_ns: if open.deferred { None } else { between(called_ns, syn_ns) },
            wire_ns,
            // Under TCP_REPAIR nobody waited for anything.
            wake_ns: between(
                established_ns.filter(|_| !agreed.repair),
                open.returned.map(|(time_ns, _)| time_ns),
            ),
            ..Phases::default()
        },
        retransmits: Retransmits {
            syn: syns_again,
            waited_ns: match syns_again {
                None => None,
                // Its SYNs are counted by TCP itself; when the first one left, and so how long it waited, is before our time.
                Some(_) if open.seen_late => None,
                Some(0) => Some(0),
                Some(_) => between(syn_ns, last_retransmit_ns),
            },
            ..Retransmits::default()
        },
        isn,
        options: agreed.options.filter(|_| established).map(|options| Options {
            fast_open: end.as_ref().map(|end| fast_open_of(end, open.fast_open)),
            fast_open_cookie: open.cookie.flatten(),
            ..options
        }),
        accept_queue: None,
        flags: flags([
            (dropped.is_some(), Flag::SynDropped),
            (agreed.mptcp || joins, Flag::Mptcp),
            (joins, Flag::MptcpJoin),
            (agreed.repair, Flag::Repair),
            (open.own, Flag::Own),
            (open.ends.v4_mapped, Flag::V4Mapped),
            (open.fast_open, Flag::FastOpen),
            (is_crossed, Flag::SimultaneousOpen),
            (open.seen_late, Flag::SeenLate),
            (open.syn_time_lost && syn_left, Flag::SynTimeLost),
            (non_blocking, Flag::NonBlocking),
            (end.as_ref().is_some_and(|end| end.reset_sent), Flag::ResetSent),
            (head.events_lost, Flag::EventsLost),
        ]),
        dropped,
        attach: head.attach,
    }
}

/// Whether the socket was asked when the handshake had been over for a while.
fn was_read_later(end: &LeftSynSent) -> bool {
    end.found_late && (end.end_time_unknown || end.call_returned)
}

fn judge_active(open: &ActiveOpen) -> Option<Verdict> {
    if let Some(number) = open.failed {
        return Some(verdict::failed_before_syn(number));
    }
    let left_syn_sent = open.end.as_ref().map(|(_, end)| (end.new_state, end));
    match (left_syn_sent, &open.crossed) {
        (Some((TcpState::Established, _)), _) => Some(Verdict::established()),
        (Some((TcpState::Closed, end)), _) => {
            let returned = open.returned.map(|(_, number)| number);
            verdict::left_syn_sent_for_closed(end, open.syn_left(), returned)
        }
        (_, Some((_, left))) if left.new_state == Some(TcpState::Established) => Some(Verdict::established()),
        (_, Some((_, left))) => verdict::left_syn_received(left, EvidenceKind::RetransmitTimeout)
            .or_else(|| verdict::closed_after_crossing(left)),
        _ => None,
    }
}

/// The record of a passive open.
pub(super) fn of_child(child: Child, dropped: Option<Dropped>, head: Head) -> Handshake {
    let verdict = judge_child(&child).unwrap_or(head.incomplete());
    let known = child.half_open.as_deref();
    let fast_open = child.is_fast_open();
    let syn_cookie = known.is_some_and(|open| open.syn_cookie);
    let defer_accept = known.is_some_and(|open| open.defer_accept);
    let is_established = child.established_ns.is_some();
    let ack_was_seen = known.is_some_and(|open| open.final_ack_ns.is_some());
    let established_ns = child.established_ns.filter(|_| !child.acknowledged_late || ack_was_seen);
    let failed_ns = child.closed_ns.filter(|_| ended_badly(verdict.outcome));
    let in_time = |time_ns: &u64| not_after(*time_ns, established_ns.or(failed_ns));
    // The SYN that was let in, and the first one, which may have been dropped.
    let let_in_ns = known.and_then(|open| open.syn_ns).filter(in_time);
    // An ACK with a cookie that was dropped is no SYN, and says nothing of when one came.
    let syns = child.dropped.as_ref().filter(|attempt| !attempt.cookie_ack);
    let first_dropped_ns = syns
        .map(|attempt| attempt.first_ns)
        .filter(in_time)
        .filter(|first_ns| let_in_ns.is_none_or(|let_in_ns| *first_ns < let_in_ns));
    let syn_ns = first_dropped_ns.or(let_in_ns);
    let syns_dropped = syns.map_or(0, |attempt| attempt.segments);
    let cookie_ack_dropped = child.dropped.as_ref().is_some_and(|attempt| attempt.cookie_ack);
    let ack_dropped = cookie_ack_dropped || known.is_some_and(|open| open.ack_dropped);
    let joins = known.is_some_and(|open| open.mptcp_join);
    let refused_ack = known.is_some_and(|open| open.reset_sent);
    // It answered the SYN that was let in, and no earlier one.
    let synack_ns = known
        .and_then(|open| open.synack_ns)
        .and_then(|synack_ns| sent_after(synack_ns, let_in_ns.or(syn_ns)))
        .filter(in_time);
    let final_ack_ns = known.and_then(|open| open.final_ack_ns).filter(in_time);
    let last_retransmit_ns = known.and_then(|open| open.last_retransmit_ns).filter(in_time);
    let retransmits = known.map_or(0, |open| open.synack_retransmits);
    let ack_ns = between(synack_ns, final_ack_ns.or(established_ns));
    let blurred = retransmits > 0
        || syn_cookie
        || defer_accept
        || fast_open
        || ack_dropped
        || known.and_then(|open| open.syns_seen).is_some_and(|syns| syns > 1);
    // A child of which neither SYN nor SYN-ACK was seen (tracepoint mode without sock_ops) has no count either.
    let counts_syn_acks = known.is_some() && !syn_cookie && (syn_ns.is_some() || synack_ns.is_some());
    let late_start = syn_ns.is_none() && synack_ns.is_some();
    let syn_not_seen = known.is_some_and(|open| open.syn_not_seen);
    // Tracepoint mode knows no time of the SYN-ACK, from which the latency could start.
    let syn_had_no_room = syn_ns.is_none() && known.is_some_and(|open| open.syn_table_full);

    let agreed = known.map(|open| open.agreed).unwrap_or_default();
    let isn = Isn { local: agreed.local_isn, remote: agreed.remote_isn };
    let id = match (isn.remote, isn.local) {
        (Some(client), Some(server)) => Some(join(client, server)),
        _ => None,
    };
    let listener_process = child.listener_process;
    let (taken_ns, acceptor) = child.taken.unwrap_or_default();
    Handshake {
        key: head.key,
        id,
        began_ns: syn_ns.or(synack_ns).or(child.queued_ns).or(final_ack_ns).unwrap_or(head.since_ns),
        role: Role::Server,
        outcome: verdict.outcome,
        evidence: verdict.evidence(None, counts_syn_acks.then(|| u32::from(retransmits).saturating_add(1))),
        local: child.ends.local,
        remote: child.ends.remote,
        asked: None,
        netns: child.ends.netns,
        process: acceptor.or_else(|| listener_process.map(|process| (*process).clone())),
        latency_ns: between(syn_ns.or(synack_ns), established_ns),
        failed_after_ns: between(syn_ns.or(synack_ns), failed_ns),
        rtt_ns: ack_ns.filter(|_| !blurred),
        // The kernel measures to the ACK that made the child. That it was the first one only probes can tell.
        kernel_rtt_us: agreed
            .srtt_us
            .filter(|_| established_ns.is_some() && final_ack_ns.is_some())
            .filter(|_| !defer_accept && !ack_dropped && !syn_cookie),
        phases: Phases {
            synack_ns: between(syn_ns, synack_ns),
            ack_ns,
            accept_ns: between(child.queued_ns, taken_ns),
            accept_call_ns: until_called(child.queued_ns, child.called_ns, taken_ns),
            ..Phases::default()
        },
        retransmits: Retransmits {
            syn: None,
            syn_ack: counts_syn_acks.then_some(u32::from(retransmits)),
            syn_seen: known
                .and_then(|open| open.syns_seen)
                .map(|syns| u32::from(syns).saturating_add(syns_dropped)),
            waited_ns: waited_by_server(
                counts_syn_acks.then_some(retransmits),
                // Tracepoint mode has no time of the SYN-ACK. It left microseconds after its SYN, and waits are seconds.
                between(synack_ns.or(let_in_ns), last_retransmit_ns),
                first_dropped_ns.and_then(|first_ns| between(Some(first_ns), let_in_ns)),
            ),
        },
        isn,
        // A request that died half open tells them too: its SYN-ACK had settled them.
        options: agreed.options.filter(|_| is_established || !fast_open),
        // One that was refused is not in it.
        accept_queue: known
            .filter(|_| child.queued_ns.is_some() || ack_dropped || refused_ack)
            .and_then(|open| open.accept_queue_limit.map(|limit| (open.accept_queue_length, limit)))
            .map(|(before, limit)| {
                let itself = u32::from(child.queued_ns.is_some());
                AcceptQueue { length: before.saturating_add(itself), limit }
            }),
        dropped,
        flags: flags([
            (child.own, Flag::Own),
            (child.ends.v4_mapped, Flag::V4Mapped),
            (syn_cookie, Flag::SynCookie),
            (fast_open, Flag::FastOpen),
            (defer_accept, Flag::DeferAccept),
            (child.reset_in_queue, Flag::ResetInQueue),
            (agreed.mptcp || joins, Flag::Mptcp),
            (joins, Flag::MptcpJoin),
            (syns_dropped != 0, Flag::SynDropped),
            (ack_dropped, Flag::AckDropped),
            (child.seen_late || syn_not_seen, Flag::SeenLate),
            (syn_had_no_room || late_start && !syn_not_seen, Flag::SynTimeLost),
            (head.events_lost, Flag::EventsLost),
        ]),
        attach: head.attach,
    }
}

/// Whether the handshake itself came to an end, and not a good one: not when we only lost sight.
fn ended_badly(outcome: Outcome) -> bool {
    outcome.is_failure() && outcome != Outcome::Incomplete
}

/// How far a client came with Fast Open.
fn fast_open_of(end: &LeftSynSent, asked: bool) -> FastOpen {
    match (end.syn_data_acked, end.syn_data, asked || end.fast_open) {
        (true, _, _) => FastOpen::DataAccepted,
        (false, true, _) => FastOpen::DataSent,
        (false, false, true) => FastOpen::Requested,
        (false, false, false) => FastOpen::None,
    }
}

/// Waiting for a SYN-ACK to be sent again, and for a SYN to be let in.
fn waited_by_server(
    again: Option<u16>,
    for_syn_acks_ns: Option<u64>,
    for_syns_ns: Option<u64>,
) -> Option<u64> {
    let for_syn_acks_ns = match again {
        None => None,
        Some(0) => Some(0),
        Some(_) => for_syn_acks_ns,
    };
    match (for_syn_acks_ns, for_syns_ns) {
        (Some(syn_acks_ns), Some(syns_ns)) => Some(syn_acks_ns.saturating_add(syns_ns)),
        (syn_acks_ns, None) => syn_acks_ns,
        (None, syns_ns) => syns_ns,
    }
}

fn judge_child(child: &Child) -> Option<Verdict> {
    let known = child.half_open.as_deref();
    if child.established_ns.is_none() && child.closed {
        let open = known?;
        // The request outlived its listener: its timer, or the client's next segment, found nobody.
        if child.listener_closed && !open.reset_received && !open.icmp_received {
            return Some(Verdict::new(Outcome::Cancelled, EvidenceKind::ListenerClosed));
        }
        if open.reset_sent {
            let why = if open.mptcp_join { EvidenceKind::ResetSent } else { EvidenceKind::AcceptQueueFull };
            return Some(Verdict::new(Outcome::Reset, why));
        }
        if open.ack_dropped {
            return Some(Verdict::new(Outcome::AckDropped, EvidenceKind::AcceptQueueFull));
        }
        return verdict::left_syn_received(open, EvidenceKind::SynAckTimeout).or_else(|| {
            // The listener closed, or the request was dropped for a reason that no hook told.
            if child.request_died {
                return Some(Verdict::new(Outcome::Incomplete, EvidenceKind::RequestDropped));
            }
            verdict::closed_half_open(open, child.taken.is_some())
        });
    }
    if child.destroyed {
        return Some(Verdict::new(Outcome::NeverAccepted, EvidenceKind::ChildDestroyed));
    }
    if child.acknowledged_late {
        return Some(Verdict::new(Outcome::Established, EvidenceKind::AckAfterClose));
    }
    if child.established_ns.is_some() {
        return Some(Verdict::established());
    }
    (child.taken.is_some() && !child.is_fast_open())
        .then(|| Verdict::new(Outcome::Established, EvidenceKind::AcceptReturned))
}

/// When the SYN-ACK was sent. The kernel stamps it in whole microseconds, rounded down: one that was sent within
/// the microsecond of its SYN seems to be earlier, and was sent with it. A stamp that is earlier still is wrong.
fn sent_after(synack_ns: u64, syn_ns: Option<u64>) -> Option<u64> {
    match syn_ns {
        Some(syn_ns) if synack_ns < syn_ns => (syn_ns - synack_ns < 1_000).then_some(syn_ns),
        _ => Some(synack_ns),
    }
}

/// Whether a part does not outlast the whole: no phase of a record is longer than its latency.
fn not_after(time_ns: u64, end_ns: Option<u64>) -> bool {
    end_ns.is_none_or(|end_ns| time_ns <= end_ns)
}

/// What the later event says, completed by the earlier one.
fn agreed_by(earlier: Option<Agreed>, later: Option<Agreed>) -> Agreed {
    let (earlier, later) = (earlier.unwrap_or_default(), later.unwrap_or_default());
    Agreed {
        local_isn: later.local_isn.or(earlier.local_isn),
        remote_isn: later.remote_isn.or(earlier.remote_isn),
        srtt_us: later.srtt_us.or(earlier.srtt_us),
        options: later.options.or(earlier.options),
        mptcp: later.mptcp || earlier.mptcp,
        repair: later.repair || earlier.repair,
    }
}

/// `id` of both ends: the smaller ISN first, because the ends may differ about who opened. When SYNs cross, one
/// end may see a SYN where the other sees a SYN-ACK (RFC 9293 section 3.5, figure 7).
fn join(one: u32, other: u32) -> u64 {
    u64::from(one.min(other)) << 32 | u64::from(one.max(other))
}

pub(super) fn flags<const N: usize>(marks: [(bool, Flag); N]) -> Vec<Flag> {
    let mut flags: Vec<Flag> = marks.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect();
    flags.sort_unstable();
    flags
}

//! The record of a passive open.
//!
//! What a newcomer would get wrong: a child and the request that it came from are one handshake, and a SYN that was dropped
//! before the request was made is its beginning.

use super::{
    super::{
        child::Child,
        entry::{between, until_called},
        verdict::{self, Verdict},
    },
    Head, ended_badly, flags, join, not_after,
};
use crate::model::{
    handshake::{AcceptQueue, Dropped, Handshake, Isn, Phases, Retransmits},
    outcome::{EvidenceKind, Flag, Outcome, Role},
};

/// The record of a passive open.
pub(in crate::tracker) fn of_child(child: Child, dropped: Option<Dropped>, head: Head) -> Handshake {
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
    let refused_ack = known.is_some_and(|open| open.reset_sent && !open.other_syn);
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
            let why = match open.mptcp_join || open.other_syn {
                true => EvidenceKind::ResetSent,
                false => EvidenceKind::AcceptQueueFull,
            };
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

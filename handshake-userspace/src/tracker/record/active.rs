//! The record of an active open.
//!
//! What a newcomer would get wrong: its end may have been told by another hook than the one on it, and what was read off
//! the socket then is of a later time; such a round trip is no part of the handshake.

use handshake_common::tcp::TcpState;

use super::{
    super::{
        active_open::ActiveOpen,
        entry::between,
        verdict::{self, Verdict, errno},
    },
    Head, agreed_by, ended_badly, flags, join, not_after,
};
use crate::model::{
    handshake::{Dropped, FastOpen, Handshake, Isn, Options, Phases, Retransmits},
    observation::LeftSynSent,
    outcome::{Evidence, EvidenceKind, Flag, Outcome, Role},
};

/// The record of an active open.
pub(in crate::tracker) fn of_active_open(
    open: ActiveOpen,
    dropped: Option<Dropped>,
    head: Head,
) -> Handshake {
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
    // One that is said to have left behind the answer waited for nothing.
    let last_retransmit_ns = open
        .last_retransmit_ns
        .filter(|again_ns| not_after(*again_ns, over_ns) && not_after(*again_ns, answered_ns));
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

/// How far a client came with Fast Open.
fn fast_open_of(end: &LeftSynSent, asked: bool) -> FastOpen {
    match (end.syn_data_acked, end.syn_data, asked || end.fast_open) {
        (true, _, _) => FastOpen::DataAccepted,
        (false, true, _) => FastOpen::DataSent,
        (false, false, true) => FastOpen::Requested,
        (false, false, false) => FastOpen::None,
    }
}

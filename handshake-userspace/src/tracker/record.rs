//! Records out of what is known: phases, round trip, retransmissions, flags.
//!
//! The last step of the tracker. What a newcomer would get wrong: each number is from one act to another,
//! and one that can't be told apart from a wrong one is absent: no subtraction wraps, no 0 stands for
//! unknown, and nothing that includes a retransmission is a round trip (Karn, RFC 6298 section 3).

mod active;
mod passive;

use handshake_common::event::Attach;

pub(super) use self::{active::of_active_open, passive::of_child};
use super::verdict::Verdict;
use crate::model::{
    handshake::Key,
    observation::Agreed,
    outcome::{EvidenceKind, Flag, Outcome},
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

/// Whether the handshake itself came to an end, and not a good one: not when we only lost sight.
fn ended_badly(outcome: Outcome) -> bool {
    outcome.is_failure() && outcome != Outcome::Incomplete
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

//! Simultaneous opens: both ends sent a SYN, and the two crossed (RFC 9293 section 3.5, figure 7).
//!
//! The socket goes SYN-SENT, SYN-RECEIVED, ESTABLISHED, without listener, request sock or accept queue. What
//! a newcomer would get wrong: the kernel reports its way out of SYN-RECEIVED like that of a server's child;
//! only that this socket once sent a SYN tells them apart.

use super::{
    Tracker,
    entry::{At, Entry, Kind, complete_ends},
    passive_open::given_up,
};
use crate::model::{handshake::HandshakeUpdate, mib::Tally, observation::PassiveOpen};

impl Tracker {
    /// A socket that is in our table as an active open left SYN-RECEIVED.
    pub(super) fn crossed_syn_received(
        &mut self,
        at: At,
        mut entry: Entry,
        act: Box<PassiveOpen>,
        out: &mut Vec<HandshakeUpdate>,
    ) {
        entry.identity.fed_by(at);
        if let Kind::Active(open) = &mut entry.kind {
            open.ends = complete_ends(act.ends, open.ends);
            open.own |= act.own;
            if open.crossed.is_none() {
                self.ledger.add(act.ends.netns, Tally::FailedOpens, at.time_ns, given_up(&act));
            }
            if open.crossed.is_none() {
                open.crossed = Some((at.time_ns, act));
            }
        }
        self.settle_active(entry, out);
    }
}

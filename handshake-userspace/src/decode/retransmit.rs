//! A SYN that was sent again.
//!
//! Mirrors `handshake_common::event::retransmit`. What a reader would get wrong: attempts count from 1, so
//! 0 is unknown and not the first.

use handshake_common::event::retransmit as raw;

use super::endpoint::ends;
use crate::model::observation::Act;

pub(super) fn syn_retransmitted(raw: &raw::SynRetransmitted) -> Act {
    Act::SynRetransmitted { ends: ends(&raw.endpoints), attempt: (raw.attempt != 0).then_some(raw.attempt) }
}

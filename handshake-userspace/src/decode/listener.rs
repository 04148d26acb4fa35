//! A listener that opened or closed.
//!
//! Mirrors `handshake_common::event::listener`; one payload serves both kinds. What a reader would get
//! wrong: `0.0.0.0:80` and `[::]:80` are real local ends here (every address of the host), and no gaps.

use handshake_common::event::listener as raw;

use super::endpoint::{ends, process};
use crate::model::observation::Listener;

pub(super) fn listener(raw: &raw::Listener) -> Listener {
    Listener {
        ends: ends(&raw.endpoints),
        process: process(&raw.owner),
        accept_queue_limit: (raw.accept_queue_limit != 0).then_some(raw.accept_queue_limit),
        own: raw.own != 0,
    }
}

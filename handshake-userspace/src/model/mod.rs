//! The words that the rest of the daemon speaks: what was observed, what a handshake is, how it ended.
//!
//! Plain types without I/O and without serde: `model` imports nothing of ours but the shared crate, and
//! `decode`, `tracker`, `sinks` and `tui` import `model`. What a newcomer would get wrong: these are not the
//! wire format of any sink; a sink converts.

pub mod adding_up;
pub mod drop_reasons;
pub mod handshake;
pub mod health;
pub mod mib;
pub mod observation;
pub mod outcome;
pub mod process;

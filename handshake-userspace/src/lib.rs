//! The daemon as a library: kernel events in, handshake records out.
//!
//! ```text
//! kernel hooks --bytes--> source -> decode -> tracker -> pipeline::filter -> pipeline::fan_out -> sinks
//! ```
//!
//! A reader walks the modules in the order in which an event does. What a newcomer would get wrong: only
//! `pipeline` and `commands` know everything; `decode`, `tracker` and `sinks` meet in `model` alone.

pub mod cli;
pub mod commands;
pub mod decode;
pub mod kernel;
pub mod model;
pub mod pipeline;
pub mod sinks;
pub mod source;
pub mod tracker;

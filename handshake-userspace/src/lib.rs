//! The daemon as a library: kernel events in, handshake records out.

pub mod decode;
pub mod kernel;
pub mod model;
pub mod source;
pub mod tracker;

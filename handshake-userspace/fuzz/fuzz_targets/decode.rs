//! One event of hostile bytes: an observation or an error, and never a panic.
//!
//! What a reader would get wrong: most bytes are refused by their header. The second try gives them a header that
//! is in order, so that the payload is reached.

#![no_main]

use handshake::decode::decode;
use handshake_common::event::{ABI_VERSION, EventKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    let Some((kind, rest)) = bytes.split_first() else { return };
    let kind = EventKind::ALL[usize::from(*kind) % EventKind::ALL.len()];
    let mut event = vec![0; kind.size_bytes()];
    let length = rest.len().min(event.len());
    event[..length].copy_from_slice(&rest[..length]);
    event[..2].copy_from_slice(&(kind as u16).to_le_bytes());
    event[2..4].copy_from_slice(&ABI_VERSION.to_le_bytes());
    event[4..6].copy_from_slice(&(kind.size_bytes() as u16).to_le_bytes());
    event[6] %= 4;
    let _ = decode(&event);
});

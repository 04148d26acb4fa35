//! The frame of the kernel's own counters: its bytes, and back.
//!
//! What a newcomer would get wrong: a later version may have more counters than this one; those that we don't know
//! are skipped, and those that it doesn't have are absent.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};

use super::format::MAX_FRAME_BYTES;
use crate::model::mib::{MIB_COUNTERS, MibReading, NamespaceMib, NotCompared};

const HEAD_BYTES: usize = 16;
/// Before the counters of each namespace.
const NAMESPACE_BYTES: usize = 32;
const FILTERED: u32 = 1;

/// Namespaces that fit into one frame; of a host with more the rest counts as not read.
pub const MAX_NAMESPACES: usize =
    (MAX_FRAME_BYTES as usize - HEAD_BYTES) / (NAMESPACE_BYTES + 8 * MIB_COUNTERS);

/// The payload.
pub(super) fn payload(reading: &MibReading) -> Vec<u8> {
    let mut payload =
        Vec::with_capacity(HEAD_BYTES + reading.namespaces.len() * (NAMESPACE_BYTES + 8 * MIB_COUNTERS));
    payload.put_u32_le(if reading.refused.is_some() { FILTERED } else { 0 });
    payload.put_u32_le(u32::from(reading.requests_are_seen));
    payload.put_u32_le(reading.unread);
    payload.put_u32_le(MIB_COUNTERS as u32);
    for (netns, mib) in &reading.namespaces {
        payload.put_u32_le(*netns);
        payload.put_u32_le(0);
        payload.put_u64_le(mib.from_ns);
        payload.put_u64_le(mib.to_ns);
        let known = (0..).zip(&mib.values).map(|(bit, value)| u64::from(value.is_some()) << bit);
        payload.put_u64_le(known.sum());
        for value in mib.values {
            payload.put_u64_le(value.unwrap_or(0));
        }
    }
    payload
}

/// What a payload says, if it is one.
pub(super) fn reading(mut payload: &[u8]) -> Option<MibReading> {
    if payload.len() < HEAD_BYTES {
        return None;
    }
    let refused = (payload.get_u32_le() != 0).then_some(NotCompared::Filtered);
    let requests_are_seen = payload.get_u32_le() != 0;
    let unread = payload.get_u32_le();
    let counters = payload.get_u32_le() as usize;
    // Absent counters have a bit, and there are 64 of them.
    let size = (counters <= 64).then_some(NAMESPACE_BYTES + 8 * counters)?;
    if !payload.len().is_multiple_of(size) {
        return None;
    }
    let mut namespaces = BTreeMap::new();
    for mut bytes in payload.chunks_exact(size) {
        let netns = bytes.get_u32_le();
        bytes.advance(4);
        let mut mib = NamespaceMib {
            from_ns: bytes.get_u64_le(),
            to_ns: bytes.get_u64_le(),
            ..NamespaceMib::default()
        };
        let known = bytes.get_u64_le();
        for (bit, value) in (0..counters).zip(&mut mib.values) {
            let read = bytes.get_u64_le();
            *value = (known >> bit & 1 != 0).then_some(read);
        }
        namespaces.insert(netns, mib);
    }
    Some(MibReading { refused, requests_are_seen, unread, namespaces })
}

//! `struct sk_buff`, as far as TCP left its notes in the control block.
//!
//! What a newcomer would get wrong: the header itself is behind a plain byte pointer that a direct load may
//! not follow. TCP has copied the flags into `tcp_skb_cb` before any of our hooks runs.

use super::read::Memory;
use crate::globals::offset;
use handshake_common::offsets::UNAVAILABLE;

/// Flags of the TCP header. From 6.17 the field is two bytes; ours is the low one (little endian).
#[inline(always)]
pub fn tcp_flags<M: Memory>(skb: *const u8) -> Option<u8> {
    let (control_block, flags) = (offset!(skb_cb), offset!(tcp_cb_flags));
    if control_block == UNAVAILABLE || flags == UNAVAILABLE {
        return None;
    }
    M::read::<u8>(skb, control_block.wrapping_add(flags))
}

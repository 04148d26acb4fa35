//! `mptcp_subflow_context`: what a TCP socket is to MPTCP.
//!
//! It lies behind an untyped pointer of the socket, so reading it needs the helper, which lockdown forbids. What a
//! newcomer would get wrong: the subflow that a connection begins with has one too, and only bits in it tell which of
//! the two a subflow is.

use handshake_common::offsets::UNAVAILABLE;

use super::{
    read::{Copied, Memory},
    sock::Sock,
};
use crate::globals::{LOCKED_DOWN, offset};

impl<M: Memory> Sock<M> {
    /// Whether it is a further subflow of an MPTCP connection, or asked to be one.
    #[inline(always)]
    pub fn joins(self) -> bool {
        if LOCKED_DOWN.load() != 0 {
            return false;
        }
        let context = self.subflow_context();
        !context.is_null() && joins(context)
    }

    /// Its context; null for plain TCP. Who reads it asks for lockdown first, so that the verifier sees no such read.
    #[inline(always)]
    pub fn subflow_context(self) -> *const u8 {
        let nothing = core::ptr::null();
        let Some(tcp) = M::tcp_sock(self.address) else { return nothing };
        if M::read::<u8>(tcp, offset!(is_mptcp)).unwrap_or(0) == 0 {
            return nothing;
        }
        M::read::<*const u8>(tcp, offset!(icsk_ulp_data)).unwrap_or(nothing)
    }
}

/// Whether a subflow joined a connection, or asks to.
#[inline(always)]
pub fn joins(context: *const u8) -> bool {
    let (asked, joined) = (offset!(subflow_request_join_bit), offset!(subflow_mp_join_bit));
    if asked == UNAVAILABLE || joined == UNAVAILABLE {
        return false;
    }
    let asked = Copied::read::<u8>(context, asked >> 3).unwrap_or(0) >> (asked & 7);
    let joined = Copied::read::<u8>(context, joined >> 3).unwrap_or(0) >> (joined & 7);
    (asked | joined) & 1 != 0
}

/// What names its connection on this host, known before the SYN leaves; 0 when it speaks plain TCP after all.
#[inline(always)]
pub fn token(context: *const u8) -> u32 {
    Copied::read::<u32>(context, offset!(subflow_token)).unwrap_or(0)
}

//! Whose MPTCP connection a subflow belongs to: a client's joining SYN is sent by a worker of the kernel.
//!
//! Each client's connection has a token, which its subflows share; who opened the first one is kept under it. What a
//! newcomer would get wrong: the key is no address. The kernel uses the memory of a socket again at once, but makes
//! each token from a new random key, so an entry that outlives its connection names nobody else.

use handshake_common::owner::Owner;

use crate::{
    filter,
    globals::LOCKED_DOWN,
    kernel::{read::Memory, sock::Sock, subflow},
    maps::MPTCP_OPENERS,
    words,
};

/// Keeps who opens an MPTCP connection; for a subflow that joins one puts who opened that in the place of the worker
/// that runs, and nobody where that is not known.
#[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be copied over the stack")]
#[inline(always)]
pub fn owner_of_subflow<M: Memory>(sock: Sock<M>, owner: &mut Owner) {
    if LOCKED_DOWN.load() != 0 {
        return;
    }
    let context = sock.subflow_context();
    if context.is_null() {
        return;
    }
    let token = subflow::token(context);
    if !subflow::joins(context) {
        if token != 0 {
            let _ = MPTCP_OPENERS.insert(token, &*owner, 0);
        }
        return;
    }
    match MPTCP_OPENERS.get_ptr(token) {
        // SAFETY: a live entry, and one that is not in the table's memory.
        Some(opener) => unsafe { words::copy(opener, owner) },
        // SAFETY: plain integers, for which zero is a value.
        None => unsafe { words::zero_behind::<[u64; 0], Owner>(owner) },
    }
}

/// Whether the running thread may be the one that connects, or opens a subflow for one that is wanted. Process context
/// only.
#[inline(always)]
pub fn is_wanted<M: Memory>(sock: Sock<M>) -> bool {
    filter::wants_running_thread() || joins_a_wanted_one(sock)
}

/// Only the connections of those whom the filters want are kept.
#[inline(always)]
fn joins_a_wanted_one<M: Memory>(sock: Sock<M>) -> bool {
    if LOCKED_DOWN.load() != 0 {
        return false;
    }
    let context = sock.subflow_context();
    !context.is_null() && subflow::joins(context) && MPTCP_OPENERS.get_ptr(subflow::token(context)).is_some()
}

//! The hooks, in the order in which a handshake meets them.
//!
//! Each file has the bodies first, generic over how memory is read and told by which kind of hook they were
//! reached, then the programs: `*_fentry`, `*_kprobe` and so on, a few lines each. What is verified as one
//! is what runs as the other. What a newcomer would get wrong: a hook may be missing on a kernel, so no body
//! relies on another having run; what a table doesn't hold is unknown, not wrong.

pub mod accept_queue;
pub mod active_open;
pub mod asked;
pub mod child_queued;
pub mod connect_call;
pub mod drop;
pub mod fast_open;
pub mod listening;
pub mod never_established;
pub mod opener;
pub mod passive_open;
pub mod rejected;
pub mod request_end;
pub mod reset;
pub mod retransmit;
pub mod snapshot;
pub mod sock_ops;
pub mod state;
pub mod subflow;

/// The arguments of a hook that are pointers.
macro_rules! argument {
    ($context:ident, $index:literal) => {
        $context.arg::<*const u8>($index)
    };
}

pub(crate) use argument;

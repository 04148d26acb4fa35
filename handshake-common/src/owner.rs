//! Who did something: the thread that was running in process context.
//!
//! What a newcomer would get wrong: in softirq `current` is whoever was interrupted, so only hooks that
//! run in process context may fill an [`Owner`]; everywhere else it stays unknown and is joined by socket.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length of the kernel's `task_struct::comm`, with its terminating zero.
pub const COMM_BYTES: usize = 16;

/// A thread, as numbered by the host's first pid namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Owner {
    /// Id of its cgroup (v2), 0 when unknown.
    pub cgroup_id: u64,
    /// Process id (the kernel's tgid).
    pub pid: u32,
    /// Thread id (the kernel's pid).
    pub tid: u32,
    /// Real user id of the thread.
    pub uid: u32,
    /// 0 when nothing is known, and everything else is meaningless. Else [`known::FILLED`], and a bit for each cgroup
    /// that the filter wanted and this thread was in: see [`known::in_cgroups`].
    pub known: u32,
    /// The thread's command name, zero-terminated, chosen by the process: hostile text.
    pub comm: [u8; COMM_BYTES],
}

crate::pod!(Owner);

/// What [`Owner::known`] says.
pub mod known {
    /// The other fields were filled.
    pub const FILLED: u32 = 1;

    /// The bits for the cgroups that a thread is in, or in one below: bit n of `cgroups` is the filter's nth.
    #[inline(always)]
    pub const fn in_cgroups(cgroups: u32) -> u32 {
        cgroups << 1
    }

    /// What [`in_cgroups`] made bits of.
    pub const fn cgroups(known: u32) -> u32 {
        known >> 1
    }
}

const _: () = assert!(size_of::<Owner>() == 40);

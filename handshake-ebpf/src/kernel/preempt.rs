//! Keeps another thread off this CPU while a program runs.
//!
//! The kernel skips a program that already runs on the CPU. Up to 6.12 no thread is preempted within one; 7.2 preempts
//! programs on trampolines and BTF tracepoints, and then skips them for the threads that run meanwhile. So
//! these programs switch preemption off by the kernel's own function (since 6.10). What a newcomer would get wrong: no
//! helper has these numbers. The daemon turns the calls into calls of the kernel's functions, which it finds by BTF, or
//! where there are none, into nothing.

use handshake_common::preempt::{DISABLE, ENABLE};

/// The first act of a program.
#[inline(always)]
pub fn disable() {
    // SAFETY: the daemon replaces the call; the function takes nothing, returns nothing and can't fail.
    unsafe { core::mem::transmute::<usize, unsafe extern "C" fn()>(DISABLE as usize)() }
}

/// The last one; a program that lacks it is refused by the verifier.
#[inline(always)]
pub fn enable() {
    // SAFETY: as above.
    unsafe { core::mem::transmute::<usize, unsafe extern "C" fn()>(ENABLE as usize)() }
}

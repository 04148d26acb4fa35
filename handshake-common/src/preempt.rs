//! Stand-ins, in the object, for calls of kernel functions that only the daemon can name.
//!
//! What a newcomer would get wrong: a kernel function is called by the number that its type has in the running kernel's
//! BTF, which no compiler knows.

/// For `bpf_preempt_disable()`.
pub const DISABLE: u32 = 0x6873_0001;
/// For `bpf_preempt_enable()`.
pub const ENABLE: u32 = 0x6873_0002;

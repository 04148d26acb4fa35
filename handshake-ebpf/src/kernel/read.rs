//! The two ways to read kernel memory.
//!
//! [`Direct`] is for pointers that the verifier knows as BTF types (arguments of fentry, fexit and BTF
//! tracepoints): plain loads, which cost next to nothing and are allowed under lockdown=confidentiality.
//! [`Copied`] is for everything else (kprobes, tracepoints): the helper bpf_probe_read_kernel. What a
//! newcomer would get wrong: a direct load must hit a real member with its real size, and beyond the type's
//! end only after the helper that casts it (`tcp_sock`, `request`) said it is of the larger type.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use handshake_common::{counter::Counter, offsets::UNAVAILABLE};

use crate::emit::count;

/// How a hook may read kernel memory.
pub trait Memory {
    /// Reads a `T` at `base + offset`; `None` when the kernel lacks the field or the read fails.
    fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T>;

    /// The `tcp_sock` that a `sock` is, if it is one.
    fn tcp_sock(sock: *const u8) -> Option<*const u8>;

    /// The `tcp_request_sock` that a `request_sock` is, if it is one.
    fn tcp_request_sock(request: *const u8) -> Option<*const u8>;
}

/// Plain loads from pointers that the verifier trusts.
pub struct Direct;

impl Memory for Direct {
    #[inline(always)]
    fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
        if offset == UNAVAILABLE {
            return None;
        }
        // SAFETY: the verifier only accepts this load if `base` is a BTF pointer with a member of this size
        // at this offset; a bad pointer reads as zero (the load has an exception table entry). Volatile, so
        // that the compiler doesn't merge neighbouring loads into one that spans members.
        Some(unsafe { base.add(offset as usize).cast::<T>().read_volatile() })
    }

    #[inline(always)]
    fn tcp_sock(sock: *const u8) -> Option<*const u8> {
        // SAFETY: the helper checks state and protocol itself; the verifier checks the pointer.
        let tcp = unsafe { generated::bpf_skc_to_tcp_sock(sock.cast_mut().cast()) };
        if tcp.is_null() { None } else { Some(tcp.cast()) }
    }

    #[inline(always)]
    fn tcp_request_sock(request: *const u8) -> Option<*const u8> {
        // SAFETY: as above; a request_sock begins with a sock_common.
        let request = unsafe { generated::bpf_skc_to_tcp_request_sock(request.cast_mut().cast()) };
        if request.is_null() { None } else { Some(request.cast()) }
    }
}

/// Copies through bpf_probe_read_kernel.
pub struct Copied;

impl Memory for Copied {
    #[inline(always)]
    fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
        if offset == UNAVAILABLE {
            return None;
        }
        // SAFETY: the helper checks the address and fails instead of faulting.
        match unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) } {
            Ok(value) => Some(value),
            Err(_) => {
                count(Counter::ReadFailed);
                None
            }
        }
    }

    #[inline(always)]
    fn tcp_sock(sock: *const u8) -> Option<*const u8> {
        // Callers know by protocol and state what it is; a kprobe has no helper that would check.
        Some(sock)
    }

    #[inline(always)]
    fn tcp_request_sock(request: *const u8) -> Option<*const u8> {
        Some(request)
    }
}

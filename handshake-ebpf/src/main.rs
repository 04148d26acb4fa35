//! The kernel side of handshake: BPF programs that report acts of TCP handshakes, and judge none of them.
//!
//! Read `hooks/` first: one file per part of a handshake, each with the bodies that all attach modes share
//! and, below them, the thin programs that the loader attaches. Everything a body knows of the kernel's
//! memory goes through `kernel/`. What a newcomer would get wrong: the same body runs on pointers that may
//! be loaded directly (fentry, BTF tracepoints) and on ones that must be copied with a helper (kprobes),
//! which is why bodies are generic over [`kernel::read::Memory`].
//!
//! On the host this crate is an empty program, so that the stable compiler checks and lints it.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
// The BPF target declares no atomic read-modify-write for core's types, though the machine has the add.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "the toolchain for this target is pinned")
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(dead_code, reason = "on the host nothing calls the programs; the compiler only checks them")
)]

mod emit;
mod filter;
mod globals;
mod hooks;
mod kernel;
mod maps;
mod words;

/// The kernel lets only GPL-compatible programs call the helpers that tracing needs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier would refuse a reachable loop, so that this compiles into no program at all.
    loop {}
}

//! What the daemon sets before it loads the programs: offsets, filters, and the state of the host.
//!
//! These are read-only data that the kernel freezes: the verifier sees constants and removes what can't be
//! reached, so a filter that is off costs nothing. What a newcomer would get wrong: loading a whole struct
//! with [`Global::load`] copies it over the stack; [`global!`] reads one field.

use aya_ebpf::Global;
use handshake_common::{filter::Filter, offsets::Offsets};

/// Where the kernel keeps its fields; nothing is known until the daemon says so.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<Offsets> = Global::new(Offsets::UNKNOWN);

/// What to leave out.
#[unsafe(no_mangle)]
pub static FILTER: Global<Filter> = Global::new(Filter::NONE);

/// 1 under `lockdown=confidentiality`: a program that calls bpf_probe_read_kernel would be refused.
#[unsafe(no_mangle)]
pub static LOCKED_DOWN: Global<u32> = Global::new(0);

/// 1 where the tracepoint tcp_retransmit_skb has a third argument, the error (6.17 and later): it fires for attempts that
/// failed too then.
#[unsafe(no_mangle)]
pub static RETRANSMIT_ERROR_IS_TOLD: Global<u32> = Global::new(0);

/// Waiting bytes at which the reader is woken before its timer: a part of the ring.
#[unsafe(no_mangle)]
pub static WAKE_AT_BYTES: Global<u64> = Global::new(256 * 1024);

/// Which numbers of `enum skb_drop_reason` are told, a bit each; the daemon knows them by name.
#[unsafe(no_mangle)]
pub static TOLD_REASONS: Global<[u64; 4]> = Global::new([0; 4]);

/// Whether a drop for this reason is told. Reasons of subsystems have numbers far above.
#[inline(always)]
pub fn is_told_reason(reason: u32) -> bool {
    let words: [u64; 4] = global_words();
    let word = match reason >> 6 {
        0 => words[0],
        1 => words[1],
        2 => words[2],
        3 => words[3],
        _ => 0,
    };
    word >> (reason & 63) & 1 != 0
}

#[inline(always)]
fn global_words() -> [u64; 4] {
    let address = (&raw const TOLD_REASONS).cast::<u64>();
    // SAFETY: four words, which the daemon writes before the program is loaded. Volatile, because the compiler
    // sees the initial value.
    unsafe {
        [
            address.read_volatile(),
            address.add(1).read_volatile(),
            address.add(2).read_volatile(),
            address.add(3).read_volatile(),
        ]
    }
}

/// One field of a read-only global struct, as a constant to the verifier.
macro_rules! global {
    ($name:ident, $ty:ty, $($field:tt)+) => {{
        let address = (&raw const $crate::globals::$name).cast::<$ty>();
        // SAFETY: Global<T> is transparent over T, the static lives for ever, and the daemon writes it
        // only before the program is loaded. Volatile, because the compiler sees the initial value.
        unsafe { core::ptr::read_volatile(&raw const (*address).$($field)+) }
    }};
}

/// Offset of a kernel field.
macro_rules! offset {
    ($field:ident) => {
        $crate::globals::global!(OFFSETS, handshake_common::offsets::Offsets, $field)
    };
}

/// One setting of the filter.
macro_rules! filter {
    ($($field:tt)+) => {
        $crate::globals::global!(FILTER, handshake_common::filter::Filter, $($field)+)
    };
}

pub(crate) use {filter, global, offset};

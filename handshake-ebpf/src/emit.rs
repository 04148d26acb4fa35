//! Counts, and hands events to the ring buffer.
//!
//! The reader is woken by batch: a wake-up costs up to fifty times the event itself, so the ring is left
//! asleep until [`WAKE_AT_BYTES`] wait in it, and the daemon drains it on a timer besides. What a newcomer
//! would get wrong: the time is read after the slot was reserved, so that ring order is nearly time order.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
};
use handshake_common::{
    counter::{Counter, CpuCounters},
    event::{ABI_VERSION, Attach, Event, EventHeader, EventKind},
};

use crate::maps::{COUNTERS, EVENTS};

/// Waiting bytes at which the reader is woken: about forty events.
const WAKE_AT_BYTES: u64 = 8 * 1024;

/// CLOCK_MONOTONIC, the clock of `snt_synack` too.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing and can't fail.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts one on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    let Some(counters) = COUNTERS.get_ptr_mut(cpu()) else { return };
    // SAFETY: the map gave a pointer to a live CpuCounters.
    unsafe { add_one(&raw mut (*counters).slots[counter as usize]) };
}

/// Atomic, because softirq may interrupt a program in process context on the same CPU between load and store.
/// Relaxed and its result unused, so that it becomes the plain atomic add that 5.10 has (no fetch).
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn add_one(slot: *mut u64) {
    // SAFETY: the caller gives an aligned, live slot.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(slot, 1)
    };
}

/// The host only checks the code; nothing runs there.
#[cfg(not(target_arch = "bpf"))]
unsafe fn add_one(slot: *mut u64) {
    // SAFETY: the caller gives an aligned, live slot.
    unsafe { *slot += 1 };
}

/// Reserves an event, fills it, submits it. A full ring is counted; the loss is located by the next event
/// of this CPU, which says how many were lost before it. Returns whether it was submitted.
#[inline(always)]
pub fn submit<T: 'static>(
    kind: EventKind,
    attach: Attach,
    socket: u64,
    generation_ns: u64,
    fill: impl FnOnce(&mut T),
) -> bool {
    let Some(mut slot) = EVENTS.reserve::<Event<T>>(0) else {
        count(Counter::RingFull);
        return false;
    };
    let event = slot.as_mut_ptr();
    let cpu = cpu();
    let header = EventHeader {
        kind: kind as u16,
        abi_version: ABI_VERSION,
        size_bytes: size_of::<Event<T>>() as u16,
        attach: attach as u8,
        reserved: 0,
        time_ns: now_ns(),
        socket,
        generation_ns,
        lost_before: lost(cpu),
        cpu,
        reserved2: 0,
    };
    // SAFETY: the slot is ours until it is submitted, is as large as Event<T>, and every byte of it is
    // written here: the header, then zeroes that `fill` overwrites. Payloads are plain integers, for which
    // zero is a value.
    unsafe {
        (&raw mut (*event).header).write(header);
        (&raw mut (*event).payload).write_bytes(0, 1);
        fill(&mut (*event).payload);
    }
    let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    let flags = if waiting >= WAKE_AT_BYTES { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    slot.submit(u64::from(flags));
    count(Counter::Submitted);
    true
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper takes nothing and can't fail.
    unsafe { bpf_get_smp_processor_id() as u32 }
}

#[inline(always)]
fn lost(cpu: u32) -> u64 {
    let Some(counters) = COUNTERS.get_ptr_mut(cpu) else { return 0 };
    // SAFETY: a live CpuCounters; an aligned u64 is read whole.
    unsafe {
        (&raw const (*counters.cast::<CpuCounters>()).slots[Counter::RingFull as usize]).read_volatile()
    }
}

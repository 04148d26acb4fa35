//! Counts, and hands events to the ring buffer.
//!
//! The reader is woken only when the ring is filling up; the daemon drains it on a timer. A wake-up costs up
//! to fifty times the event, and worse: it is an interrupt in the middle of our program, after which another
//! thread may be given the CPU, and the kernel then skips our programs for that thread (measured: 0.4 % of the
//! hits of the state tracepoint were skipped with a wake-up every 8 KiB). What a newcomer would get wrong: the
//! time is read after the slot was reserved, so that ring order is nearly time order.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    maps::ring_buf::RingBufEntry,
};
use handshake_common::{
    counter::{Counter, CpuCounters},
    event::{ABI_VERSION, Attach, Event, EventHeader, EventKind},
};

use crate::{
    globals::WAKE_AT_BYTES,
    maps::{COUNTERS, EVENTS},
    words,
};

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
    unsafe { add(&raw mut (*counters).slots[counter as usize], 1) };
}

/// Atomic, because softirq may interrupt a program in process context on the same CPU between load and store.
/// Relaxed and its result unused, so that it becomes the plain atomic add that 5.10 has (no fetch).
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn add(slot: *mut u64, value: u64) {
    // SAFETY: the caller gives an aligned, live slot.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(slot, value)
    };
}

/// The host only checks the code; nothing runs there.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn add(slot: *mut u64, value: u64) {
    // SAFETY: the caller gives an aligned, live slot.
    unsafe { *slot = (*slot).wrapping_add(value) };
}

/// Reserves an event, fills it, submits it. Returns whether there was room.
#[inline(always)]
pub fn submit<T: 'static>(
    kind: EventKind,
    attach: Attach,
    socket: u64,
    generation_ns: u64,
    fill: impl FnOnce(&mut T),
) -> bool {
    let Some(mut slot) = Slot::reserve(0, kind, attach, socket, generation_ns) else { return false };
    fill(slot.payload());
    slot.submit();
    true
}

/// A reserved event, whose payload is all zeroes at first.
///
/// Long fillings use this instead of a closure: one that the compiler does not inline becomes a function of its
/// own, into which the verifier does not follow pointers that lie on the stack.
pub struct Slot<T: 'static> {
    entry: RingBufEntry<Event<T>>,
}

impl<T> Slot<T> {
    /// Takes room in the ring. A full ring is counted; the loss is located by the next event of this CPU, which
    /// says how many were lost before it. `time_ns` is for an act whose own hook the kernel skipped, 0 for now.
    #[inline(always)]
    pub fn reserve(
        time_ns: u64,
        kind: EventKind,
        attach: Attach,
        socket: u64,
        generation_ns: u64,
    ) -> Option<Self> {
        let Some(mut entry) = EVENTS.reserve::<Event<T>>(0) else {
            count(Counter::RingFull);
            return None;
        };
        let event = entry.as_mut_ptr();
        let cpu = cpu();
        let header = EventHeader {
            kind: kind as u16,
            abi_version: ABI_VERSION,
            size_bytes: size_of::<Event<T>>() as u16,
            attach: attach as u8,
            reserved: 0,
            time_ns: if time_ns == 0 { now_ns() } else { time_ns },
            socket,
            generation_ns,
            lost_before: lost(cpu),
            cpu,
            reserved2: 0,
        };
        // SAFETY: the entry is ours until it is submitted, is as large as Event<T>, and every byte of it is
        // written here. Payloads are plain integers, for which zero is a value.
        unsafe {
            (&raw mut (*event).header).write(header);
            words::zero_behind::<EventHeader, _>(event);
        }
        Some(Slot { entry })
    }

    /// What the kind says.
    #[inline(always)]
    pub fn payload(&mut self) -> &mut T {
        // SAFETY: `reserve` wrote every byte.
        unsafe { &mut (*self.entry.as_mut_ptr()).payload }
    }

    /// Gives the room back: there is nothing to tell after all.
    #[inline(always)]
    pub fn discard(self) {
        self.entry.discard(u64::from(BPF_RB_NO_WAKEUP));
    }

    /// Hands it to the daemon.
    #[inline(always)]
    pub fn submit(self) {
        let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
        let flags = if waiting >= WAKE_AT_BYTES.load() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
        self.entry.submit(u64::from(flags));
        count(Counter::Submitted);
    }
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

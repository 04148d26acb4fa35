//! What the kernel side counts, per CPU: above all each place where something can be lost.
//!
//! One [`CpuCounters`] per CPU lives in a memory-mapped array, so that the daemon reads it without a
//! system call and without a capability. What a newcomer would get wrong: `Filtered` is no loss (the user
//! asked for it), nor are `DropsUntold` (they are counted) and `DropsForwarded` (nobody here was meant); every other one but `Submitted` is.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The slots of [`CpuCounters`]; numbers are never reused.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Events handed to the ring buffer.
    Submitted = 0,
    /// Events lost because the ring buffer had no room.
    RingFull = 1,
    /// Acts left out because a filter said so: up to three of one handshake (request, child, accept()).
    Filtered = 2,
    /// Kernel fields that could not be read where they must be.
    ReadFailed = 3,
    /// Active opens that found `ACTIVE_OPENS` full: their phases are unknown.
    ActiveOpensFull = 4,
    /// Requests that later ones drove out of a full table: their death is not told, the time of their SYN is unknown.
    RequestsFull = 5,
    /// Children that found `QUEUED` full: their end in the accept queue is unknown.
    QueuedFull = 6,
    /// Calls of connect() that found `CONNECT_CALLS` full: their return is unknown.
    ConnectCallsFull = 7,
    /// Calls of accept() that found `ACCEPT_CALLS` full: when they began to wait is unknown.
    AcceptCallsFull = 8,
    /// SYNs (and final ACKs) that this host dropped and of which no event tells: so many come at a listener
    /// that only some a second are told.
    DropsUntold = 9,
    /// SYNs that this host would have forwarded, and dropped: handshakes of other hosts.
    DropsForwarded = 10,
    /// Listeners that found `LISTENING` or `LISTENERS_AT` full: SYNs that die before they see one have no queue.
    ListenersFull = 11,
}

impl Counter {
    /// Every counter, in the order of their slots.
    pub const ALL: [Counter; 12] = [
        Counter::Submitted,
        Counter::RingFull,
        Counter::Filtered,
        Counter::ReadFailed,
        Counter::ActiveOpensFull,
        Counter::RequestsFull,
        Counter::QueuedFull,
        Counter::ConnectCallsFull,
        Counter::AcceptCallsFull,
        Counter::DropsUntold,
        Counter::DropsForwarded,
        Counter::ListenersFull,
    ];

    /// The name in `health` records and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Counter::Submitted => "submitted",
            Counter::RingFull => "ring_full",
            Counter::Filtered => "filtered",
            Counter::ReadFailed => "read_failed",
            Counter::ActiveOpensFull => "active_opens_full",
            Counter::RequestsFull => "requests_full",
            Counter::QueuedFull => "queued_full",
            Counter::ConnectCallsFull => "connect_calls_full",
            Counter::AcceptCallsFull => "accept_calls_full",
            Counter::DropsUntold => "drops_untold",
            Counter::DropsForwarded => "drops_forwarded",
            Counter::ListenersFull => "listeners_full",
        }
    }
}

/// Slots per CPU: two cache lines, so that no two CPUs write to one line.
pub const SLOTS: usize = 16;

/// The counters of one CPU.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuCounters {
    /// Indexed by [`Counter`]; slots without a name stay 0.
    pub slots: [u64; SLOTS],
}

crate::pod!(CpuCounters);

const _: () = assert!(size_of::<CpuCounters>() == 128);
const _: () = assert!(Counter::ALL.len() <= SLOTS);

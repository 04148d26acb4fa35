//! What the two sides say to each other: events, the facts they share, counters, filters and the
//! offsets of kernel fields.
//!
//! Everything here is plain data with explicit numbers: `repr(C)`, no padding (zerocopy's derives make
//! padding a compile error, so no uninitialised byte of the kernel's stack can leave it), no `bool`, no
//! enum made from raw bytes. What a newcomer would get wrong: a zero is never a measurement. Times that
//! are unknown are 0 (CLOCK_MONOTONIC never is), and every other field that can be unknown has a bit that
//! says it is known.
#![no_std]

pub mod counter;
pub mod endpoint;
pub mod event;
pub mod filter;
pub mod offsets;
pub mod owner;
pub mod preempt;
pub mod request;
pub mod runtime;
pub mod tcp;

/// Marks a type as safe to hand to aya (maps, globals) when built for userspace.
#[macro_export]
macro_rules! pod {
    ($($name:ty),+ $(,)?) => {
        $(
            #[cfg(feature = "user")]
            // SAFETY: repr(C), only integers and arrays of them, no padding: the IntoBytes derive on the
            // same type proves the last part at compile time.
            unsafe impl aya::Pod for $name {}
        )+
    };
}

//! The kernel's own structures, read through accessors that return `Option`.
//!
//! Only this folder knows about offsets and pointers. What a newcomer would get wrong: a field that this
//! kernel lacks is `None`, decided when the program is loaded, and the verifier removes its reads.

pub mod endpoints;
pub mod preempt;
pub mod read;
pub mod request_sock;
pub mod sk_buff;
pub mod sock;
pub mod subflow;
pub mod task;

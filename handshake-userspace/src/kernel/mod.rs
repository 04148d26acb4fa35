//! Everything that touches the running kernel: its BTF, our programs, which hook is attached how.
//!
//! Only this folder and the kernel side know about offsets. What a newcomer would get wrong: whether a hook
//! works is found by loading **and attaching** it; no version number is ever compared.

mod attach_problem;
mod beginning;
pub mod btf;
mod canary;
pub mod cgroup;
mod counters;
pub mod doctor;
mod drop_reasons;
mod globals;
mod hook_table;
mod host;
mod kernel_calls;
mod listener_owner;
mod loader;
mod log_messages;
mod mib;
mod object;
pub mod offsets;
mod snapshot;
mod sweep;

use std::path::PathBuf;

use aya::Ebpf;
use handshake_common::{event::Attach, filter::Filter};

pub use self::{
    attach_problem::name, canary::CanaryResult, cgroup::Cgroup, counters::KernelCounters,
    host::pid_namespace_warning, loader::start, mib::MibReader, object::BUILT_WITH,
};
pub(crate) use self::{cgroup::Followed, sweep::Sweeper};
use crate::{
    model::{drop_reasons::DropReasons, mib::MibReading},
    source::ring_buffer::RingBufferSource,
};

/// `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachChoice {
    /// The best that works, hook by hook: fentry, else kprobe, else tracepoint.
    #[default]
    Auto,
    /// fentry and fexit only.
    Fentry,
    /// kprobes only.
    Kprobe,
    /// Tracepoints, sock_ops and iterators only.
    Tracepoint,
}

/// What to trace, and how.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Which kinds of hook may be used.
    pub attach: AttachChoice,
    /// What the kernel side leaves out.
    pub filter: Filter,
    /// The cgroups that it asks for.
    pub cgroups: Vec<Cgroup>,
    /// Size of the ring buffer; by default from the number of CPUs.
    pub ring_bytes: Option<u32>,
    /// BTF of the running kernel, where it does not give its own.
    pub btf: Option<PathBuf>,
    /// Whether the first handshakes are our own, to prove what is reported.
    pub canary: bool,
}

/// Programs that are attached and streaming. Dropping it detaches them all.
pub struct LiveTrace {
    /// Where events come from.
    pub source: RingBufferSource,
    /// Loss and work, per CPU.
    pub counters: KernelCounters,
    /// The kernel's own counters, the second account.
    pub mib: MibReader,
    /// As they were when everything was attached, and before anybody was told so.
    pub mib_at_start: Option<MibReading>,
    /// Every hook, and what became of it.
    pub hooks: Vec<HookStatus>,
    /// The kernel's names for why it drops segments.
    pub drop_reasons: DropReasons,
    /// Kernel fields that this kernel lacks, each with the reason.
    pub missing_fields: Vec<(&'static str, String)>,
    /// lockdown=confidentiality: only direct loads.
    pub locked_down: bool,
    /// What came of our own first handshakes.
    pub canary: CanaryResult,
    /// Hooks that are attached and told nothing of those.
    pub silent_hooks: Vec<&'static str>,
    /// Possible CPUs.
    pub cpus: usize,
    /// Size of the ring buffer.
    pub ring_bytes: u32,
    /// Keeps the hooks attached.
    pub(crate) attached: Attached,
}

/// What keeps the hooks attached: they go when it is dropped.
pub(crate) struct Attached {
    pub(crate) sweeper: Sweeper,
    /// The cgroups of the filter, if it has any.
    pub(crate) cgroups: Option<Followed>,
    /// Carries the kernel side's messages while it lives.
    _messages: Option<log_messages::MessagePump>,
    /// Programs and links live as long as this does.
    _programs: Ebpf,
}

/// One hook of the hook table on this kernel.
#[derive(Clone, Debug)]
pub struct HookStatus {
    /// Its name, for instance `syn_sent`.
    pub hook: &'static str,
    /// How it is attached; `None` when it is not.
    pub attached: Option<Attach>,
    /// The kernel functions or tracepoints it is attached to, for instance `tcp_connect`.
    pub symbols: Vec<&'static str>,
    /// What was tried and failed, one sentence each.
    pub tried: Vec<String>,
    /// What is not shown without it.
    pub without_it: &'static str,
    /// What is not shown although it is attached, because of how; empty when nothing.
    pub lacks: String,
}

/// Why tracing could not start. Every message names what is missing and the way out.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A capability is missing: exit code 77.
    #[error("{0}")]
    NoPrivilege(String),
    /// The kernel lacks something that nothing can stand in for: exit code 78.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    /// The program's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::NoPrivilege(_) => 77,
            StartError::Unsupported(_) => 78,
            StartError::Failed(_) => 1,
        }
    }
}

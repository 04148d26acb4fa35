//! Everything that touches the running kernel: its BTF, our programs, which hook is attached how.
//!
//! Only this folder and the kernel side know about offsets. What a newcomer would get wrong: whether a hook
//! works is found by loading **and attaching** it; no version number is ever compared.

pub mod btf;
pub mod offsets;

use std::path::PathBuf;

use handshake_common::{counter::CpuCounters, event::Attach, filter::Filter};

use crate::source::ring_buffer::RingBufferSource;

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
    /// Size of the ring buffer; by default from the number of CPUs.
    pub ring_bytes: Option<u32>,
    /// BTF of the running kernel, where it does not give its own.
    pub btf: Option<PathBuf>,
}

/// Programs that are attached and streaming. Dropping it detaches them all.
pub struct LiveTrace {
    /// Where events come from.
    pub source: RingBufferSource,
    /// Loss and work, per CPU.
    pub counters: KernelCounters,
    /// Every hook, and what became of it.
    pub hooks: Vec<HookStatus>,
}

/// One hook of the hook table on this kernel.
#[derive(Clone, Debug)]
pub struct HookStatus {
    /// Its name, for instance `syn_received`.
    pub hook: &'static str,
    /// How it is attached; `None` when it is not.
    pub attached: Option<Attach>,
    /// The kernel functions or tracepoints it is attached to, for instance `tcp_conn_request`.
    pub symbols: Vec<&'static str>,
    /// What was tried and failed, one sentence each.
    pub tried: Vec<String>,
    /// What is not shown without it.
    pub without_it: &'static str,
}

/// Reads the kernel side's counters without a system call.
pub struct KernelCounters {}

impl KernelCounters {
    /// The counters of every possible CPU, in the order of CPU numbers.
    pub fn read(&self) -> Vec<CpuCounters> {
        Vec::new()
    }

    /// Hits of our programs that the kernel skipped; `None` where the kernel doesn't say (before 5.12).
    pub fn missed_probes(&self) -> Option<u64> {
        None
    }
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

/// Loads and attaches the programs.
pub fn start(_options: &TraceOptions) -> Result<LiveTrace, StartError> {
    Err(StartError::Failed("the kernel side is not built in".to_owned()))
}

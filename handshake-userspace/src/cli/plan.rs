//! The arguments as meant: what to trace, what to show and where to, in the words of the rest of the program.
//!
//! It makes two filters of one: the kernel's, which spares events, and ours, which is complete. What a
//! newcomer would get wrong: a list that the kernel side has no room for is not cut short but left to ours
//! alone, because a kernel filter with half of the ports would hide the other half.

use std::{net::IpAddr, os::unix::ffi::OsStrExt, path::PathBuf, time::Duration};

use handshake_common::{
    filter::{FAMILY_V4, FAMILY_V6, Filter, MAX_ENTRIES, Network, ROLE_CLIENT, ROLE_SERVER},
    owner::COMM_BYTES,
};
use ipnet::IpNet;

use super::typed;
use crate::{
    kernel::{AttachChoice, Cgroup, TraceOptions, cgroup},
    model::process::SafeText,
    pipeline::filter::{Family, RecordFilter, Side, Tail},
};

/// What the user asked for.
#[derive(Debug)]
pub struct Plan {
    /// What to do.
    pub command: Command,
    /// How to trace, for the commands that do.
    pub trace: TraceOptions,
    /// Which records are wanted.
    pub filter: RecordFilter,
    /// `--cgroup` as typed, for `replay`: what it means there, the recording says.
    pub cgroups: Vec<String>,
    /// Which of them are worth a line.
    pub tail: Tail,
    /// End after this time.
    pub duration: Option<Duration>,
    /// End after this many handshake records.
    pub count: Option<u64>,
    /// Where to and in which form.
    pub output: Output,
    /// `-v`: 0, 1 or more.
    pub verbosity: u8,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Show what happens.
    Trace,
    /// Show it and keep the raw events.
    Record(PathBuf),
    /// Show what was kept.
    Replay(PathBuf),
    /// Say what works here.
    Doctor,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// JSON Lines on stdout instead of the tail.
    pub json: bool,
    /// JSON Lines are appended here too.
    pub file: Option<PathBuf>,
    /// Whether to colour.
    pub colour: Colour,
    /// No hints, no summary.
    pub quiet: bool,
}

/// `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR says otherwise.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Plan {
    pub(super) fn new(typed: typed::Arguments) -> Result<Self, String> {
        let command = match typed.command {
            None | Some(typed::Command::Trace) => Command::Trace,
            Some(typed::Command::Record { file }) => Command::Record(file),
            Some(typed::Command::Replay { file }) => Command::Replay(file),
            Some(typed::Command::Doctor) => Command::Doctor,
        };
        let options = typed.options;
        refuse_what_means_nothing(&command, &options)?;
        let mut filter = record_filter(&options);
        let mut kernel = kernel_filter(&filter, options.comm.as_ref().map(|comm| comm.as_bytes()));
        let cgroups = cgroups(&command, &options.cgroup)?;
        if !cgroups.is_empty() {
            // A bit for each; the kernel side says which a thread is in.
            filter.cgroups = Some((1 << cgroups.len()) - 1);
            cgroup::ask_for(&cgroups, &mut kernel);
        }
        let trace = TraceOptions {
            attach: match options.attach {
                None | Some(typed::Attach::Auto) => AttachChoice::Auto,
                Some(typed::Attach::Fentry) => AttachChoice::Fentry,
                Some(typed::Attach::Kprobe) => AttachChoice::Kprobe,
                Some(typed::Attach::Tracepoint) => AttachChoice::Tracepoint,
            },
            filter: kernel,
            cgroups,
            ring_bytes: options.ring_bytes,
            btf: options.btf,
            canary: !options.no_canary,
        };
        Ok(Plan {
            command,
            trace,
            filter,
            cgroups: options.cgroup,
            tail: Tail {
                failed: options.failed,
                slow_ns: options.slow.map(nanoseconds),
                slow_accept_ns: options.slow_accept.map(nanoseconds),
            },
            duration: options.duration,
            count: options.count,
            output: Output {
                json: options.json,
                file: options.output,
                colour: match options.color {
                    typed::Colour::Auto => Colour::Auto,
                    typed::Colour::Always => Colour::Always,
                    typed::Colour::Never => Colour::Never,
                },
                quiet: options.quiet,
            },
            verbosity: options.verbose,
        })
    }
}

/// A duration in nanoseconds; `cli` accepts none that would not fit.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn refuse_what_means_nothing(command: &Command, options: &typed::Options) -> Result<(), String> {
    let tracing = [
        ("--attach", options.attach.is_some()),
        ("--btf", options.btf.is_some()),
        ("--ring-bytes", options.ring_bytes.is_some()),
        ("--no-canary", options.no_canary),
    ];
    let showing = [
        ("--own", options.own),
        ("--pid", options.pid.is_some()),
        ("--comm", options.comm.is_some()),
        ("--uid", options.uid.is_some()),
        ("--cgroup", !options.cgroup.is_empty()),
        ("--port", !options.port.is_empty()),
        ("--remote", !options.remote.is_empty()),
        ("--role", options.role.is_some()),
        ("--netns", !options.netns.is_empty()),
        ("-4", options.v4),
        ("-6", options.v6),
        ("--failed", options.failed),
        ("--slow", options.slow.is_some()),
        ("--slow-accept", options.slow_accept.is_some()),
        ("--duration", options.duration.is_some()),
        ("--count", options.count.is_some()),
        ("--output", options.output.is_some()),
    ];
    let (meaningless, why) = match command {
        Command::Trace | Command::Record(_) => return Ok(()),
        Command::Replay(_) => (&tracing[..], "`replay` reads a recording and no kernel"),
        Command::Doctor => (&showing[..], "`doctor` shows no handshakes"),
    };
    match meaningless.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(format!("{name} means nothing here: {why}")),
        None => Ok(()),
    }
}

fn record_filter(options: &typed::Options) -> RecordFilter {
    RecordFilter {
        ports: options.port.clone(),
        networks: options.remote.clone(),
        netns: options.netns.clone(),
        side: options.role.map(|role| match role {
            typed::Role::Client => Side::Client,
            typed::Role::Server => Side::Server,
        }),
        family: match (options.v4, options.v6) {
            (true, false) => Some(Family::V4),
            (false, true) => Some(Family::V6),
            // Both mean both, as neither does.
            (true, true) | (false, false) => None,
        },
        pid: options.pid,
        uid: options.uid,
        comm: options.comm.as_ref().map(|comm| {
            let kept = kept_by_kernel(comm.as_bytes());
            SafeText::from_kernel_bytes(&kept).as_str().to_owned()
        }),
        // Decided in the kernel: see `Plan::new`.
        cgroups: None,
        own: options.own,
    }
}

/// Where they are on this host; a recording is of another one.
fn cgroups(command: &Command, typed: &[String]) -> Result<Vec<Cgroup>, String> {
    if typed.len() > MAX_ENTRIES {
        return Err(format!(
            "--cgroup can be given {MAX_ENTRIES} times, and is {}: the kernel side has room for no more. A cgroup stands \
             for those below it too, so name one that holds several",
            typed.len()
        ));
    }
    if matches!(command, Command::Replay(_)) {
        return Ok(Vec::new());
    }
    typed
        .iter()
        .map(|text| Cgroup::find(text).map_err(|problem| format!("--cgroup {text}: {problem}")))
        .collect()
}

fn kernel_filter(filter: &RecordFilter, comm: Option<&[u8]>) -> Filter {
    let mut kernel = Filter { own_pid: std::process::id(), ..Filter::NONE };
    kernel.ports = fill(&mut kernel.port, filter.ports.iter().copied());
    kernel.namespaces = fill(&mut kernel.netns, filter.netns.iter().copied());
    kernel.networks = fill(&mut kernel.network, filter.networks.iter().map(kernel_network));
    kernel.roles = match filter.side {
        None => ROLE_CLIENT | ROLE_SERVER,
        Some(Side::Client) => ROLE_CLIENT,
        Some(Side::Server) => ROLE_SERVER,
    };
    kernel.families = match filter.family {
        None => FAMILY_V4 | FAMILY_V6,
        Some(Family::V4) => FAMILY_V4,
        Some(Family::V6) => FAMILY_V6,
    };
    if let Some(pid) = filter.pid {
        (kernel.by_pid, kernel.pid) = (1, pid);
    }
    if let Some(uid) = filter.uid {
        (kernel.by_uid, kernel.uid) = (1, uid);
    }
    if let Some(comm) = comm {
        (kernel.by_comm, kernel.comm) = (1, kept_by_kernel(comm));
    }
    kernel
}

/// Copies a list that fits and gives its length; one that doesn't fit gives 0, which filters nothing.
fn fill<T: Copy>(room: &mut [T; MAX_ENTRIES], values: impl ExactSizeIterator<Item = T>) -> u32 {
    let count = values.len();
    if count > MAX_ENTRIES {
        return 0;
    }
    for (slot, value) in room.iter_mut().zip(values) {
        *slot = value;
    }
    count as u32
}

fn kernel_network(network: &IpNet) -> Network {
    let (address, prefix) = match network.addr() {
        IpAddr::V4(address) => (address.to_ipv6_mapped(), network.prefix_len() + 96),
        IpAddr::V6(address) => (address, network.prefix_len()),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    let halves = |bits: u128| [(bits >> 64) as u64, bits as u64];
    Network { address: halves(address.to_bits() & mask), mask: halves(mask) }
}

/// A command name as `task_struct::comm` keeps it: cut off, and zero-padded.
fn kept_by_kernel(comm: &[u8]) -> [u8; COMM_BYTES] {
    let mut kept = [0; COMM_BYTES];
    for (slot, byte) in kept[..COMM_BYTES - 1].iter_mut().zip(comm) {
        *slot = *byte;
    }
    kept
}

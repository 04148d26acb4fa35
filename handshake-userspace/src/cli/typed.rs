//! The arguments as typed: clap's derive, one field per option, its help text being the manual.
//!
//! Nothing here knows what an option does; `plan` does. What a newcomer would get wrong: doc comments here
//! are read by users, so they say what happens and not how.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::values;

/// Shows every TCP handshake of this host, live: how long each phase took, who made it slow, and why it
/// failed.
#[derive(Debug, Parser)]
#[command(name = "handshake", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) options: Options,
}

const AFTER_HELP: &str = "Exit codes: 0 done, 1 failure, 2 usage, 77 no privilege, 78 kernel unsupported.\n\
    Records go to standard output, everything else to standard error.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show handshakes as they happen (the default).
    Trace,
    /// Trace, and write the raw events to a file that `replay` reads.
    Record {
        /// The recording; it is overwritten.
        file: PathBuf,
    },
    /// Show a recording as if it happened now; needs no privilege.
    Replay {
        /// A recording made by `record`.
        file: PathBuf,
    },
    /// Say hook by hook what works on this kernel, and what is not shown without it.
    Doctor,
}

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Which kinds of hook to use; `auto` takes the best that works, hook by hook.
    #[arg(long, global = true, value_enum, help_heading = "Tracing")]
    pub(super) attach: Option<Attach>,
    /// BTF of the running kernel, where /sys/kernel/btf/vmlinux is missing.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Tracing")]
    pub(super) btf: Option<PathBuf>,
    /// Size of the ring buffer, a power of two, for instance 4MiB. Default: by number of CPUs.
    #[arg(long, global = true, value_name = "SIZE", value_parser = values::ring_bytes, help_heading = "Tracing")]
    pub(super) ring_bytes: Option<u32>,
    /// Don't make the three loopback connections that prove at the start what is reported.
    #[arg(long, global = true, help_heading = "Tracing")]
    pub(super) no_canary: bool,
    /// Show our own connections too.
    #[arg(long, global = true, help_heading = "Tracing")]
    pub(super) own: bool,

    /// Only this process (client: who connected; server: who accepted, else who listens), by its number in the host's
    /// first pid namespace.
    #[arg(short, long, global = true, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Filters")]
    pub(super) pid: Option<u32>,
    /// Only threads called so.
    #[arg(long, global = true, value_name = "NAME", value_parser = values::comm, help_heading = "Filters")]
    pub(super) comm: Option<OsString>,
    /// Only this user id.
    #[arg(long, global = true, help_heading = "Filters")]
    pub(super) uid: Option<u32>,
    /// Only this cgroup (v2) and those below it: a folder such as /sys/fs/cgroup/system.slice, a path as
    /// /proc/PID/cgroup prints it, or a cgroup's id. May be repeated.
    #[arg(long, global = true, value_name = "PATH|ID", help_heading = "Filters")]
    pub(super) cgroup: Vec<String>,
    /// Only these ports, at either end. May be repeated, or a list with commas.
    #[arg(short = 'P', long, global = true, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..), help_heading = "Filters")]
    pub(super) port: Vec<u16>,
    /// Only remote addresses in this network, for instance 10.0.0.0/8 or 2001:db8::1. May be repeated.
    #[arg(long, global = true, value_name = "CIDR", value_delimiter = ',', value_parser = values::network, help_heading = "Filters")]
    pub(super) remote: Vec<IpNet>,
    /// Only this side of handshakes.
    #[arg(long, global = true, value_enum, help_heading = "Filters")]
    pub(super) role: Option<Role>,
    /// Only this network namespace: its inode number, a path such as /proc/1/ns/net, or a name of `ip netns`.
    /// May be repeated.
    #[arg(long, global = true, value_name = "NETNS", value_parser = values::netns, help_heading = "Filters")]
    pub(super) netns: Vec<u32>,
    /// Only IPv4 (mapped addresses too).
    #[arg(short = '4', global = true, help_heading = "Filters")]
    pub(super) v4: bool,
    /// Only IPv6.
    #[arg(short = '6', global = true, help_heading = "Filters")]
    pub(super) v6: bool,

    /// Show only failed handshakes; the summary counts all. Adds up with --slow and --slow-accept.
    #[arg(long, global = true, help_heading = "What to show")]
    pub(super) failed: bool,
    /// Show only established handshakes of this latency or more, for instance 50ms.
    #[arg(long, global = true, value_name = "TIME", value_parser = values::duration, help_heading = "What to show")]
    pub(super) slow: Option<Duration>,
    /// Show only connections that waited this long or longer for accept().
    #[arg(long, global = true, value_name = "TIME", value_parser = values::duration, help_heading = "What to show")]
    pub(super) slow_accept: Option<Duration>,
    /// End after this time, for instance 20s or 5m.
    #[arg(long, global = true, value_name = "TIME", value_parser = values::longer_than_zero, help_heading = "What to show")]
    pub(super) duration: Option<Duration>,
    /// End after this many handshakes were shown.
    #[arg(short = 'n', long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "What to show")]
    pub(super) count: Option<u64>,

    /// Records as JSON Lines on standard output; the summary goes to standard error.
    #[arg(long, global = true, help_heading = "Output")]
    pub(super) json: bool,
    /// Append records as JSON Lines to a file too; SIGHUP reopens it.
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "Output")]
    pub(super) output: Option<PathBuf>,
    /// Colours; NO_COLOR turns `auto` off.
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN", help_heading = "Output")]
    pub(super) color: Colour,
    /// No hints and no summary; with `record`, no records on standard output either.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub(super) quiet: bool,
    /// More of our own log on standard error; twice for debugging. RUST_LOG outweighs it.
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Output")]
    pub(super) verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Attach {
    Auto,
    Fentry,
    Kprobe,
    Tracepoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Client,
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

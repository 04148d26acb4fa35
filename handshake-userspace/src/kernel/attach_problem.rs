//! Why a program could not be put in its place, in one line for a person.
//!
//! What a newcomer would get wrong: aya's load errors carry the verifier's whole log; it goes to the debug log
//! and never into a message.

use aya::programs::ProgramError;
use handshake_common::event::Attach;

use super::hook_table::Place;

/// One program may serve several places; it is loaded for the first.
pub(super) fn unless_loaded(result: Result<(), ProgramError>) -> Result<(), ProgramError> {
    match result {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        other => other,
    }
}

/// Why a program could not be put in its place.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachProblem {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("tracefs is not mounted: `mount -t tracefs tracefs /sys/kernel/tracing`")]
    NoTracefs,
    #[error("tracefs is for root only (mode 0700): run as root, or give this user access to it")]
    TracefsForbidden,
    #[error("{0}")]
    Cgroup(String),
}

/// Whether the kernel said EPERM.
pub(super) fn is_forbidden(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::PermissionDenied
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The mode as the command line and the records name it.
pub fn name(attach: Attach) -> &'static str {
    match attach {
        Attach::Common => "tp_btf",
        Attach::Fentry => "fentry",
        Attach::Kprobe => "kprobe",
        Attach::Tracepoint => "tracepoint",
    }
}

/// The kind of place, for messages.
pub(super) fn kind(place: Place) -> &'static str {
    match place {
        Place::Fentry(_) => "fentry",
        Place::Fexit(_) => "fexit",
        Place::Kprobe(_) => "kprobe",
        Place::Kretprobe(_) => "kretprobe",
        Place::BtfTracepoint(_) => "BTF tracepoint",
        Place::SystemCall(_) => "tracepoint",
        Place::SockOps => "sock_ops",
        Place::SeenBy(_) => "seen by",
    }
}

/// Whether the verifier refused `--cgroup`: before 5.15 no program of ours may ask for the cgroups above a thread's own.
pub(super) fn lacks_cgroups(error: &dyn std::error::Error) -> bool {
    const HELPER: &str = "unknown func bpf_get_current_ancestor_cgroup_id";
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.to_string().contains(HELPER))
}

/// An error with its causes in one line, without a verifier's log: that is what `-v` is for.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    if let Some((first, log)) = text.split_once("Verifier output:") {
        log::debug!("{log}");
        text = first.trim_end_matches(['.', ' ']).to_owned();
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        let next = next.split("Verifier output:").next().unwrap_or_default().trim_end_matches(['.', ' ']);
        if !text.contains(next) {
            text.push_str(": ");
            text.push_str(next);
        }
        cause = error.source();
    }
    text
}

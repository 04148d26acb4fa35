//! Tells the kernel side what it may rely on, and then that it may begin.
//!
//! What a newcomer would get wrong: the order. A program on another CPU that sees the time set must see the rest, so the
//! entry is written twice; and nothing is told between the first hook's attachment and that moment (decisions/0023).

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use handshake_common::{
    event::Attach,
    runtime::{RETURN_BY_SOCKET, RETURN_BY_THREAD, Runtime},
};

use super::HookStatus;
use crate::source::ring_buffer::monotonic_ns;

/// How a hook is attached; `None` when it is not.
pub(super) fn attached(hooks: &[HookStatus], name: &str) -> Option<Attach> {
    hooks.iter().find(|hook| hook.hook == name).and_then(|hook| hook.attached)
}

fn is_probe(attach: Option<Attach>) -> bool {
    matches!(attach, Some(Attach::Fentry | Attach::Kprobe))
}

/// The kind of probe that sees requests begin, where their end is seen too.
pub(super) fn requests_are_seen_by(hooks: &[HookStatus]) -> Option<Attach> {
    let begin = attached(hooks, "request_created").filter(|attach| is_probe(Some(*attach)));
    begin.filter(|_| is_probe(attached(hooks, "request_died")))
}

/// Everything is attached: what works is known, and from here on it is told.
pub(super) fn begin_to_watch(ebpf: &mut Ebpf, hooks: &[HookStatus]) -> Result<(), String> {
    let mut runtime = what_is_seen(hooks);
    for since_ns in [0, monotonic_ns()] {
        runtime.since_ns = since_ns;
        entry(ebpf)?.set(0, runtime, 0).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// From now on the end of a handshake whose beginning no table has is not that of one that was there before us.
pub(super) fn snapshot_is_complete(ebpf: &mut Ebpf) -> Result<(), String> {
    let mut array = entry(ebpf)?;
    let mut runtime = array.get(&0, 0).map_err(|error| error.to_string())?;
    runtime.snapshot_is_complete = 1;
    array.set(0, runtime, 0).map_err(|error| error.to_string())
}

fn what_is_seen(hooks: &[HookStatus]) -> Runtime {
    let attached = |name| attached(hooks, name);
    let syn_is_seen = hooks
        .iter()
        .find(|hook| hook.hook == "syn_sent")
        .is_some_and(|hook| hook.attached.is_some() && !hook.symbols.contains(&"inet_sock_set_state"));
    let sock_ops_is_attached =
        hooks.iter().any(|hook| hook.attached.is_some() && hook.symbols.contains(&"sock_ops"));
    Runtime {
        return_is_seen: match attached("connect_returned") {
            None => 0,
            Some(Attach::Fentry) => RETURN_BY_SOCKET,
            Some(_) => RETURN_BY_THREAD,
        },
        accept_is_seen: u32::from(attached("accepted").is_some() && attached("socket_destroyed").is_some()),
        syn_sent_is_seen: u32::from(is_probe(attached("connect_called"))) | u32::from(syn_is_seen) << 1,
        syn_is_noted: u32::from(sock_ops_is_attached),
        requests_are_seen: u32::from(requests_are_seen_by(hooks).is_some()),
        cookie_is_seen: u32::from(attached("fast_open_answered").is_some()),
        ..Runtime::default()
    }
}

fn entry(ebpf: &mut Ebpf) -> Result<Array<&mut MapData, Runtime>, String> {
    let map = ebpf.map_mut("RUNTIME").ok_or("the object has no map RUNTIME")?;
    Array::try_from(map).map_err(|error| error.to_string())
}

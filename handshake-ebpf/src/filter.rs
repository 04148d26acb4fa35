//! Whether a handshake is wanted, by what the kernel side can know; cheapest question first.
//!
//! Filters are constants to the verifier, so those that are off leave no instruction behind. What a
//! newcomer would get wrong: process filters are asked here for active opens only, in process context. A
//! passive open has no process before accept(), so the daemon judges those.

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated},
};
use handshake_common::{
    endpoint::{AF_INET, AF_INET6, Endpoints, V4_MAPPED},
    filter::{CANARY_PORTS, FAMILY_V4, FAMILY_V6, MAX_ENTRIES},
    owner::COMM_BYTES,
};

use crate::{
    globals::filter,
    maps::{CGROUPS, RUNTIME},
};

/// Whether this role is watched at all, and by now. Hooks are attached one after the other, and of a handshake that
/// passed between two of them one would tell what the next could not join: it would be told twice, or its end never be
/// seen. So all of them begin at one moment, and what was under way then is the snapshot's.
#[inline(always)]
pub fn wants_role(role: u32) -> bool {
    filter!(roles) & role != 0 && watching_since_ns() != 0
}

/// Since when all hooks are attached; 0 while they are not.
#[inline(always)]
pub fn watching_since_ns() -> u64 {
    match RUNTIME.get_ptr(0) {
        // SAFETY: the array's one live entry; aligned u64.
        Some(runtime) => unsafe { (&raw const (*runtime).since_ns).read_volatile() },
        None => 0,
    }
}

/// Whether nothing is filtered by ends or process, so that a socket whose beginning was not seen may be
/// reported from what it says of itself.
#[inline(always)]
pub fn wants_unknown() -> bool {
    filter!(networks) == 0
        && filter!(ports) == 0
        && filter!(by_pid) == 0
        && filter!(by_uid) == 0
        && filter!(by_comm) == 0
        && filter!(cgroups) == 0
}

/// Whether the running thread may be the one that connects. Process context only.
#[inline(always)]
pub fn wants_running_thread() -> bool {
    if filter!(canary[0]) != 0 && is_own() {
        // By its ports it is told from our other sockets later.
        return true;
    }
    if filter!(by_pid) != 0 && (bpf_get_current_pid_tgid() >> 32) as u32 != filter!(pid) {
        return false;
    }
    if filter!(by_uid) != 0 && bpf_get_current_uid_gid() as u32 != filter!(uid) {
        return false;
    }
    if filter!(by_comm) != 0 {
        let Ok(comm) = bpf_get_current_comm() else { return false };
        let mut i = 0;
        while i < COMM_BYTES {
            if comm[i] != filter!(comm[i]) {
                return false;
            }
            // After the terminating zero the kernel leaves what was there before.
            if comm[i] == 0 {
                break;
            }
            i += 1;
        }
    }
    filter!(cgroups) == 0 || cgroups_of_running_thread() != 0
}

/// The wanted cgroups that the running thread is in, or in one below, a bit each. Process context only.
#[inline(always)]
pub fn cgroups_of_running_thread() -> u32 {
    let count = filter!(cgroups);
    if count == 0 {
        return 0;
    }
    let Some(wanted) = CGROUPS.get_ptr(0) else { return 0 };
    let mut bits = 0;
    let mut i = 0;
    while i < MAX_ENTRIES {
        if (i as u32) < count {
            // SAFETY: the array's one live entry, in which the daemon replaces a whole word. Volatile, because it may.
            let id = unsafe { (&raw const (*wanted)[i]).read_volatile() };
            let level = filter!(cgroup_level[i]) as i32;
            // SAFETY: the helper takes a number; it answers 0 for a level below the thread's own, which is no id.
            let ancestor = unsafe { generated::bpf_get_current_ancestor_cgroup_id(level) };
            if id != 0 && ancestor == id {
                bits |= 1 << i;
            }
        }
        i += 1;
    }
    bits
}

/// Whether ends, family and namespace are wanted.
#[inline(always)]
pub fn wants_ends(ends: &Endpoints) -> bool {
    (wants_netns(ends.netns) && wants_family(ends) && wants_port(ends) && wants_network(ends))
        || (is_filtered() && is_canary(ends))
}

/// Whether any of those filters is on; a constant, so that without one nothing is asked of the canary.
#[inline(always)]
fn is_filtered() -> bool {
    filter!(namespaces) != 0
        || filter!(families) != FAMILY_V4 | FAMILY_V6
        || filter!(ports) != 0
        || filter!(networks) != 0
}

/// A handshake that the daemon makes at its start to prove what is reported. The daemon's own filters leave out
/// whoever has such a port later.
#[inline(always)]
fn is_canary(ends: &Endpoints) -> bool {
    let mut i = 0;
    while i < CANARY_PORTS {
        let port = filter!(canary[i]);
        if port != 0 && (port == ends.local_port || port == ends.remote_port) {
            return true;
        }
        i += 1;
    }
    false
}

#[inline(always)]
fn wants_netns(netns: u32) -> bool {
    let count = filter!(namespaces);
    if count == 0 {
        return true;
    }
    let mut i = 0;
    while i < MAX_ENTRIES {
        if (i as u32) < count && filter!(netns[i]) == netns {
            return true;
        }
        i += 1;
    }
    false
}

#[inline(always)]
fn wants_family(ends: &Endpoints) -> bool {
    let families = filter!(families);
    if families == FAMILY_V4 | FAMILY_V6 {
        return true;
    }
    let is_v4 = ends.family == AF_INET || (ends.family == AF_INET6 && ends.flags & V4_MAPPED != 0);
    families & if is_v4 { FAMILY_V4 } else { FAMILY_V6 } != 0
}

#[inline(always)]
fn wants_port(ends: &Endpoints) -> bool {
    let count = filter!(ports);
    if count == 0 {
        return true;
    }
    let mut i = 0;
    while i < MAX_ENTRIES {
        let port = filter!(port[i]);
        if (i as u32) < count && (port == ends.local_port || port == ends.remote_port) {
            return true;
        }
        i += 1;
    }
    false
}

#[inline(always)]
fn wants_network(ends: &Endpoints) -> bool {
    let count = filter!(networks);
    if count == 0 {
        return true;
    }
    let address = u128::from_be_bytes(ends.remote_address);
    let (high, low) = ((address >> 64) as u64, address as u64);
    let mut i = 0;
    while i < MAX_ENTRIES {
        if (i as u32) < count
            && high & filter!(network[i].mask[0]) == filter!(network[i].address[0])
            && low & filter!(network[i].mask[1]) == filter!(network[i].address[1])
        {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether the running thread is the daemon's own. Process context only.
#[inline(always)]
pub fn is_own() -> bool {
    let own = filter!(own_pid);
    own != 0 && own == own_process_id()
}

/// The running process, by its number in the daemon's pid namespace; 0 when it is in another one.
#[inline(always)]
fn own_process_id() -> u32 {
    let inode = filter!(own_pidns_inode);
    if inode == 0 {
        return (bpf_get_current_pid_tgid() >> 32) as u32;
    }
    let device = filter!(own_pidns_device);
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    let size = size_of::<bpf_pidns_info>() as u32;
    // SAFETY: room for `size` bytes; where it fails, the helper leaves zeroes.
    let _ = unsafe { generated::bpf_get_ns_current_pid_tgid(device, inode, &raw mut ids, size) };
    ids.tgid
}

//! Who owns the listeners that were there before us: the socket's inode, looked up among all open files.
//!
//! The answers become events like those of listeners that open later, so a recording holds them and the tracker
//! knows no difference. What a newcomer would get wrong: a listener may be open in many processes (forked
//! workers, socket activation); the lowest id, mostly the one that opened it, stands for all.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use handshake_common::{
    event::{EventHeader, EventKind, listener::Listener, snapshot::SocketSeen},
    owner::{COMM_BYTES, Owner, known},
    tcp::TcpState,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{
    cgroup::{self, Cgroup},
    host::other_pid_namespace,
};

/// An event for each listener in `seen` whose owner is found; which of these cgroups the owner is in goes with it.
pub(super) fn of(seen: &[Bytes], cgroups: &[Cgroup]) -> Vec<Bytes> {
    let listeners: HashMap<u64, (EventHeader, SocketSeen)> =
        seen.iter().filter_map(|bytes| listener_in(bytes)).map(|found| (found.1.inode, found)).collect();
    let own = std::process::id();
    owners(&listeners, cgroups)
        .into_iter()
        .filter_map(|(inode, owner)| {
            let (header, seen) = listeners.get(&inode)?;
            let header = EventHeader {
                kind: EventKind::ListenerOpened as u16,
                size_bytes: EventKind::ListenerOpened.size_bytes() as u16,
                ..*header
            };
            let payload = Listener {
                endpoints: seen.endpoints,
                owner,
                accept_queue_limit: seen.accept_queue_limit,
                own: u32::from(owner.pid == own),
            };
            Some(Bytes::from([header.as_bytes(), payload.as_bytes()].concat()))
        })
        .collect()
}

fn listener_in(bytes: &[u8]) -> Option<(EventHeader, SocketSeen)> {
    let (header, payload) = EventHeader::read_from_prefix(bytes).ok()?;
    let seen = SocketSeen::read_from_bytes(payload).ok()?;
    (seen.state == TcpState::Listen as u8 && seen.inode != 0).then_some((header, seen))
}

/// The first owner of each inode; stops when all are found.
fn owners(listeners: &HashMap<u64, (EventHeader, SocketSeen)>, cgroups: &[Cgroup]) -> HashMap<u64, Owner> {
    let mut found = HashMap::new();
    // In another pid namespace than the first /proc has other numbers, and shows its own processes only.
    if listeners.is_empty() || other_pid_namespace().is_some() {
        return found;
    }
    let mut processes: Vec<(u32, PathBuf)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    processes.sort_unstable();
    for (pid, folder) in processes {
        for file in fs::read_dir(folder.join("fd")).into_iter().flatten().flatten() {
            let Some(inode) = fs::read_link(file.path()).ok().and_then(|target| socket_inode(&target)) else {
                continue;
            };
            if listeners.contains_key(&inode)
                && !found.contains_key(&inode)
                && let Some(in_cgroups) = cgroup::of_process(&folder, cgroups)
            {
                found.insert(inode, owner(pid, &folder, in_cgroups));
            }
        }
        if found.len() == listeners.len() {
            break;
        }
    }
    found
}

/// `socket:[12345]`
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn owner(pid: u32, folder: &Path, in_cgroups: u32) -> Owner {
    let mut comm = [0; COMM_BYTES];
    let name = fs::read(folder.join("comm")).unwrap_or_default();
    // The kernel keeps 15 bytes; /proc ends them with a line break.
    for (to, from) in
        comm.iter_mut().zip(name.strip_suffix(b"\n").unwrap_or(&name).iter().take(COMM_BYTES - 1))
    {
        *to = *from;
    }
    let uid = fs::metadata(folder).map(|metadata| metadata.uid()).unwrap_or_default();
    // Which cgroup it is in, /proc tells as a path and not as an id.
    let known = known::FILLED | known::in_cgroups(in_cgroups);
    Owner { cgroup_id: 0, pid, tid: pid, uid, known, comm }
}

#[cfg(test)]
mod tests {
    use super::socket_inode;
    use std::path::Path;

    #[test]
    fn only_a_socket_has_a_sockets_inode() {
        assert_eq!(socket_inode(Path::new("socket:[4711]")), Some(4711));
        for other in ["pipe:[4711]", "/dev/null", "socket:[]", "socket:[-1]", "socket:[1"] {
            assert_eq!(socket_inode(Path::new(other)), None, "{other}");
        }
    }
}

//! The sockets that were there before us: `iter/tcp`, read once in every network namespace.
//!
//! What a newcomer would get wrong: the iterator walks the namespace of the thread that opens it, and only
//! that one. So a thread of its own enters each namespace that some process or mount holds open.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use aya::{Btf, Ebpf, programs::Iter};
use bytes::Bytes;
use handshake_common::event::{Attach, EventKind};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Cgroup, HookStatus, beginning, listener_owner};
use crate::source::SourceItem;

const WITHOUT_IT: &str = "of handshakes that began before the start, those that fail are not shown and the others not flagged `seen_late`; earlier listeners are not joined to their owners";

/// Reads every namespace; what could not be read is said in the status.
pub fn take(ebpf: &mut Ebpf, btf: &Btf, cgroups: &[Cgroup]) -> (Vec<SourceItem>, HookStatus) {
    let mut status = HookStatus {
        hook: "sockets_before_us",
        attached: None,
        symbols: vec!["iter/tcp"],
        tried: Vec::new(),
        without_it: WITHOUT_IT,
        lacks: String::new(),
    };
    let mut items = Vec::new();
    match load(ebpf, btf) {
        Err(problem) => status.tried.push(format!("iterator on tcp: {problem}")),
        Ok(program) => {
            status.attached = Some(Attach::Tracepoint);
            // A thread that entered another namespace is not used for anything else afterwards.
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut unread = 0;
                    let mut first = None;
                    for (inode, path) in namespaces() {
                        if let Err(problem) = read_namespace(program, &path, &mut items) {
                            unread += 1;
                            first.get_or_insert(format!("network namespace {inode}: {problem}"));
                        }
                    }
                    (unread, first)
                });
                if let Ok((unread, Some(first))) = reader.join() {
                    status.lacks = format!("{unread} network namespaces, which could not be entered");
                    status.tried.push(format!("{unread} network namespaces could not be read; {first}"));
                }
            });
        }
    }
    if status.attached.is_some()
        && status.lacks.is_empty()
        && let Err(problem) = beginning::snapshot_is_complete(ebpf)
    {
        status.tried.push(format!("the kernel side cannot be told of it: {problem}"));
    }
    let owners = listener_owner::of(&items, cgroups);
    (items.into_iter().chain(owners).map(SourceItem::Event).collect(), status)
}

fn load<'a>(ebpf: &'a mut Ebpf, btf: &Btf) -> Result<&'a mut Iter, String> {
    let program = ebpf.program_mut("hs_snapshot").ok_or("the object has no program hs_snapshot")?;
    let program: &mut Iter =
        program.try_into().map_err(|error: aya::programs::ProgramError| error.to_string())?;
    program.load("tcp", btf).map_err(|error| error.to_string())?;
    Ok(program)
}

/// Every namespace that a thread lives in or that is mounted under a name, by inode. A thread may live in
/// another one than its process.
fn namespaces() -> BTreeMap<u64, PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        fs::read_dir(entry.path().join("task")).ok()
    });
    let processes = processes.flatten().flatten().map(|thread| thread.path().join("ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = BTreeMap::new();
    for path in processes.chain(named) {
        if let Ok(metadata) = fs::metadata(&path) {
            found.entry(metadata.ino()).or_insert(path);
        }
    }
    found
}

fn read_namespace(program: &mut Iter, path: &PathBuf, items: &mut Vec<Bytes>) -> Result<(), String> {
    let namespace = File::open(path).map_err(|error| error.to_string())?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| format!("it cannot be entered: {error} (CAP_SYS_ADMIN)"))?;
    let link = program.attach().map_err(|error| error.to_string())?;
    let link = program.take_link(link).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    link.into_file()
        .map_err(|error| error.to_string())?
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    let bytes = Bytes::from(bytes);
    let size = EventKind::SocketSeen.size_bytes();
    items.extend((0..bytes.len() / size).map(|index| bytes.slice(index * size..(index + 1) * size)));
    Ok(())
}

//! Reads the kernel's own counters of TCP in every network namespace.
//!
//! A namespace is read through the /proc folder of a process that lives in it, which needs no privilege beyond
//! seeing that process; one that only a mount keeps (`ip netns`) is entered by a thread of its own. What a newcomer
//! would get wrong: a namespace that neither shows cannot be read, and is not guessed at: it is counted.

mod text;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use handshake_common::filter::Filter;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use self::text::counter;
use super::HookStatus;
use crate::{
    model::mib::{MIB_COUNTERS, MibCounter, MibReading, MibValues, NamespaceMib, NotCompared},
    source::{recording::MAX_NAMESPACES, ring_buffer::monotonic_ns},
};

/// Both files have some kilobytes; more than this is no file of the kernel's.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Processes of a namespace that are asked, should the first have ended meanwhile.
const MAX_PROCESSES: usize = 4;
/// The two files are not read at one moment. If a counter of the first moved meanwhile, they are read again.
const TRIES: u32 = 4;

/// Reads what a run needs.
pub struct MibReader {
    refused: Option<NotCompared>,
    requests_are_seen: bool,
    /// Only these, if any.
    only: Vec<u32>,
}

/// How a namespace can be got at.
#[derive(Default)]
struct Ways {
    processes: Vec<u32>,
    mount: Option<PathBuf>,
}

impl MibReader {
    /// For a run with this filter in the kernel, and these hooks.
    pub(super) fn new(filter: &Filter, hooks: &[HookStatus]) -> Self {
        let rest = Filter { own_pid: 0, namespaces: 0, netns: Filter::NONE.netns, ..*filter };
        MibReader {
            refused: (rest != Filter::NONE).then_some(NotCompared::Filtered),
            requests_are_seen: ["request_died", "final_ack_received"]
                .iter()
                .all(|name| hooks.iter().any(|hook| hook.hook == *name && hook.attached.is_some())),
            only: filter.netns.iter().take(filter.namespaces as usize).copied().collect(),
        }
    }

    /// Every namespace, one after the other.
    pub fn read(&self) -> MibReading {
        let mut reading = MibReading {
            refused: self.refused,
            requests_are_seen: self.requests_are_seen,
            ..MibReading::default()
        };
        if self.refused.is_some() {
            return reading;
        }
        let mut to_enter = Vec::new();
        for (netns, ways) in namespaces() {
            if !self.only.is_empty() && !self.only.contains(&netns) {
                continue;
            }
            if reading.namespaces.len() >= MAX_NAMESPACES {
                reading.unread += 1;
                continue;
            }
            match (ways.processes.iter().find_map(|process| by_process(*process, netns)), ways.mount) {
                (Some(mib), _) => drop(reading.namespaces.insert(netns, mib)),
                (None, Some(mount)) => to_enter.push((netns, mount)),
                // Its processes have ended; most likely it has, too.
                (None, None) => {}
            }
        }
        if !to_enter.is_empty() {
            by_entering(&to_enter, &mut reading);
        }
        reading
    }
}

/// The namespaces that processes live in or that are mounted, by inode number.
fn namespaces() -> BTreeMap<u32, Ways> {
    let mut found: BTreeMap<u32, Ways> = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let Some(netns) = namespace_of(process) else { continue };
        let ways = found.entry(netns).or_default();
        if ways.processes.len() < MAX_PROCESSES {
            ways.processes.push(process);
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (netns, mount) in mounts.lines().filter_map(text::mounted_namespace) {
        found.entry(netns).or_default().mount = Some(mount);
    }
    found
}

fn namespace_of(process: u32) -> Option<u32> {
    let inode = fs::metadata(format!("/proc/{process}/ns/net")).ok()?.ino();
    u32::try_from(inode).ok()
}

fn by_process(process: u32, netns: u32) -> Option<NamespaceMib> {
    let mib = counters_in(Path::new(&format!("/proc/{process}/net"))).ok()?;
    // It may have ended, or gone to another namespace, while we read.
    (namespace_of(process) == Some(netns)).then_some(mib)
}

/// A thread that entered another namespace is not used for anything else afterwards.
fn by_entering(mounts: &[(u32, PathBuf)], reading: &mut MibReading) {
    let ended = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for (netns, mount) in mounts {
                match enter(mount).and_then(|()| counters_in(Path::new("/proc/thread-self/net"))) {
                    Ok(mib) => drop(reading.namespaces.insert(*netns, mib)),
                    Err(error) => {
                        log::debug!("the counters of network namespace {netns}: {error}");
                        reading.unread += 1;
                    }
                }
            }
        });
        reader.join()
    });
    if ended.is_err() {
        log::warn!("the kernel's counters of some network namespaces could not be read");
    }
}

fn enter(mount: &Path) -> io::Result<()> {
    let namespace = File::open(mount)?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn counters_in(folder: &Path) -> io::Result<NamespaceMib> {
    let from_ns = monotonic_ns();
    let mut values: MibValues = [None; MIB_COUNTERS];
    let embryonic =
        || Ok::<_, io::Error>(counter(&text_of(&folder.join("netstat"))?, "TcpExt", "EmbryonicRsts"));
    let mut before = embryonic()?;
    let mut settled = false;
    for _ in 0..TRIES {
        let snmp = text_of(&folder.join("snmp"))?;
        for (of, name) in OF_SNMP {
            values[of as usize] = counter(&snmp, "Tcp", name);
        }
        let after = embryonic()?;
        settled = after == before;
        before = after;
        if settled {
            break;
        }
    }
    values[MibCounter::EmbryonicRsts as usize] = before;
    if !settled {
        // RSTs come so fast that the two files never agree: then these two say nothing together.
        values[MibCounter::EmbryonicRsts as usize] = None;
        values[MibCounter::AttemptFails as usize] = None;
    }
    let to_ns = monotonic_ns();
    values[MibCounter::Identity as usize] = text::routing_socket(&text_of(&folder.join("netlink"))?);
    Ok(NamespaceMib { from_ns, to_ns, values })
}

const OF_SNMP: [(MibCounter, &str); 5] = [
    (MibCounter::ActiveOpens, "ActiveOpens"),
    (MibCounter::PassiveOpens, "PassiveOpens"),
    (MibCounter::AttemptFails, "AttemptFails"),
    (MibCounter::InSegs, "InSegs"),
    (MibCounter::OutSegs, "OutSegs"),
];

fn text_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_by_namespace_alone_can_be_compared() {
        let by_namespace = Filter { own_pid: 7, namespaces: 1, netns: [9; 8], ..Filter::NONE };
        assert_eq!(MibReader::new(&by_namespace, &[]).refused, None);
        assert_eq!(MibReader::new(&by_namespace, &[]).only, [9]);
        for filter in [
            Filter { roles: 1, ..Filter::NONE },
            Filter { families: 1, ..by_namespace },
            Filter { ports: 1, ..Filter::NONE },
            Filter { by_uid: 1, ..Filter::NONE },
        ] {
            assert_eq!(MibReader::new(&filter, &[]).refused, Some(NotCompared::Filtered), "{filter:?}");
        }
    }

    #[test]
    fn our_own_namespace_is_read() {
        let reading = MibReader::new(&Filter::NONE, &[]).read();
        let ours = namespace_of(std::process::id()).and_then(|netns| reading.namespaces.get(&netns).copied());
        let ours = ours.expect("this process lives in a namespace");
        assert!(ours.to_ns >= ours.from_ns, "{ours:?}");
        assert!(ours.values[MibCounter::ActiveOpens as usize].is_some(), "{ours:?}");
        assert!(ours.values[MibCounter::Identity as usize].is_some(), "{ours:?}");
        assert!(!reading.requests_are_seen);
    }
}

//! The cgroups that `--cgroup` names: found at start, told to the kernel side, and followed when they are made anew.
//!
//! The kernel side compares the id of a thread's ancestor at the wanted folder's level, so a cgroup stands for those below
//! it too. What a newcomer would get wrong: an id is not a name. A service that starts anew has the same folder and
//! another id, so a path is looked at again and again, and an id is one cgroup's for ever.

use std::{
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use handshake_common::filter::{Filter, MAX_ENTRIES};

use super::{StartError, host};

/// Inode of the first cgroup namespace (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const FIRST_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

/// A source that is drained without rest need not look each time.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What `--cgroup` takes.
const HINT: &str = "a cgroup is a folder of the cgroup v2 hierarchy, a path as the line `0::/...` of /proc/PID/cgroup has \
     it, or an id (the inode number of its folder)";

/// A wanted cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id when it was found.
    pub id: u64,
    /// Its path below the root of the hierarchy, as /proc/PID/cgroup prints it.
    pub path: PathBuf,
    /// How many steps it is below the root.
    pub level: u32,
    /// As the user named it.
    pub typed: String,
    folder: PathBuf,
    /// Whether the user gave the id, and not a path.
    by_id: bool,
}

impl Cgroup {
    /// The cgroup that the user means, or what is wrong with it and the way out.
    pub fn find(text: &str) -> Result<Self, String> {
        let mount = mount()?;
        let name = text.strip_prefix("0::").unwrap_or(text);
        let found = match name.parse() {
            Ok(id) => Self::by_id(&mount, id),
            Err(_) => Self::by_path(&mount, name),
        };
        found.map(|cgroup| Cgroup { typed: text.to_owned(), ..cgroup })
    }

    fn by_path(mount: &Path, text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(HINT.to_owned());
        }
        let below = Path::new(text);
        let below = below.strip_prefix(mount).unwrap_or(below);
        let typed = mount.join(below.strip_prefix("/").unwrap_or(below));
        let problem = |problem: &dyn std::fmt::Display| format!("{}: {problem}; {HINT}", typed.display());
        let folder = fs::canonicalize(&typed).map_err(|error| problem(&error))?;
        let is_folder = fs::metadata(&folder).is_ok_and(|metadata| metadata.is_dir());
        match folder.strip_prefix(mount) {
            Ok(below) if is_folder => Self::new(mount, below, false).map_err(|error| problem(&error)),
            _ => Err(problem(&"it is no cgroup")),
        }
    }

    fn by_id(mount: &Path, id: u64) -> Result<Self, String> {
        let none = || {
            format!(
                "there is no cgroup with the id {id} below {} (any more); `stat -c %i FOLDER` says a folder's id, and the \
                 line `0::/...` of /proc/PID/cgroup a process's folder. A path stays the same when a service starts anew, \
                 an id does not",
                mount.display()
            )
        };
        let folder = if fs::metadata(mount).is_ok_and(|root| root.ino() == id) {
            mount.to_owned()
        } else {
            folder_of(mount, id).ok_or_else(none)?
        };
        let below = folder.strip_prefix(mount).map_err(|_| none())?;
        Self::new(mount, below, true).ok().filter(|cgroup| cgroup.id == id).ok_or_else(none)
    }

    fn new(mount: &Path, below: &Path, by_id: bool) -> io::Result<Self> {
        let folder = mount.join(below);
        Ok(Cgroup {
            id: fs::metadata(&folder)?.ino(),
            path: Path::new("/").join(below),
            level: u32::try_from(below.components().count()).unwrap_or(u32::MAX),
            typed: String::new(),
            folder,
            by_id,
        })
    }
}

/// The host's whole hierarchy, without symbolic links.
fn mount() -> Result<PathBuf, String> {
    const ELSE: &str = "--pid, --uid, --comm and --netns work without it";
    let (path, _) = host::cgroup_mount().map_err(|problem| {
        format!(
            "cgroups of version 2 are needed: {problem}. `mount -t cgroup2 none /sys/fs/cgroup` mounts them where they are \
             not; a container needs the host's cgroup namespace (`docker run --cgroupns=host`); {ELSE}"
        )
    })?;
    // Paths in /proc would be relative to ours.
    let namespace = fs::metadata("/proc/self/ns/cgroup").map(|metadata| metadata.ino());
    if namespace.is_ok_and(|inode| inode != FIRST_CGROUP_NAMESPACE) {
        return Err(format!(
            "this process is in a cgroup namespace of its own, where paths are not the host's: run it in the host's \
             (`docker run --cgroupns=host`); {ELSE}"
        ));
    }
    fs::canonicalize(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The folder with this inode number.
fn folder_of(root: &Path, inode: u64) -> Option<PathBuf> {
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == inode {
                return Some(entry.path());
            }
            left.push(entry.path());
        }
    }
    None
}

/// How the filter of the kernel side asks for them.
pub fn ask_for(cgroups: &[Cgroup], filter: &mut Filter) {
    for (level, cgroup) in filter.cgroup_level.iter_mut().zip(cgroups) {
        *level = cgroup.level;
    }
    filter.cgroups = cgroups.len().min(MAX_ENTRIES) as u32;
}

/// Which of them the process with this folder under /proc is in, a bit each; `None` when it has gone.
pub(super) fn of_process(folder: &Path, cgroups: &[Cgroup]) -> Option<u32> {
    if cgroups.is_empty() {
        return Some(0);
    }
    Some(in_text(&fs::read_to_string(folder.join("cgroup")).ok()?, cgroups))
}

/// The same, from what /proc/PID/cgroup says.
fn in_text(text: &str, cgroups: &[Cgroup]) -> u32 {
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else { return 0 };
    let path = Path::new(path);
    let is_in = |cgroup: &Cgroup| u32::from(path.starts_with(&cgroup.path));
    cgroups.iter().enumerate().fold(0, |bits, (index, cgroup)| bits | is_in(cgroup) << index)
}

/// Keeps the kernel side's ids those of the folders that the user named.
pub(crate) struct Followed {
    cgroups: Vec<Cgroup>,
    ids: [u64; MAX_ENTRIES],
    map: Array<MapData, [u64; MAX_ENTRIES]>,
    looked: Instant,
}

impl Followed {
    /// Tells the kernel side the ids. `None` when no cgroup is asked for.
    pub(super) fn start(cgroups: &[Cgroup], ebpf: &mut Ebpf) -> Result<Option<Self>, StartError> {
        if cgroups.is_empty() {
            return Ok(None);
        }
        let failed = |problem: String| {
            StartError::Failed(format!("the kernel side cannot be told the cgroups: {problem}"))
        };
        let map = ebpf.take_map("CGROUPS").ok_or_else(|| failed("no map CGROUPS".to_owned()))?;
        let mut map = Array::try_from(map).map_err(|error| failed(error.to_string()))?;
        let mut ids = [0; MAX_ENTRIES];
        for (id, cgroup) in ids.iter_mut().zip(cgroups) {
            *id = cgroup.id;
        }
        map.set(0, ids, 0).map_err(|error| failed(error.to_string()))?;
        Ok(Some(Followed { cgroups: cgroups.to_vec(), ids, map, looked: Instant::now() }))
    }

    /// Looks whether a folder was made anew. Called at each drain, so what connects between the two may be missing.
    pub(crate) fn look_if_due(&mut self) {
        if self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        let mut is_changed = false;
        for (known, cgroup) in self.ids.iter_mut().zip(&self.cgroups) {
            let now = fs::metadata(&cgroup.folder).ok().map(|metadata| metadata.ino());
            match now {
                Some(id) if id == *known => {}
                Some(id) if !cgroup.by_id => {
                    log::info!("cgroup {} was made anew: {id} after {known}", cgroup.path.display());
                    *known = id;
                    is_changed = true;
                }
                // A folder that is gone may come again.
                None if !cgroup.by_id => {}
                _ if *known != 0 => {
                    log::warn!(
                        "the cgroup with the id {known} ({}) is gone for good, so nothing more of it is shown; give its path \
                         to follow it when it is made anew",
                        cgroup.path.display()
                    );
                    *known = 0;
                    is_changed = true;
                }
                _ => {}
            }
        }
        if is_changed && let Err(error) = self.map.set(0, self.ids, 0) {
            log::warn!("the kernel side cannot be told the ids of cgroups made anew: {error}");
        }
    }
}

#[cfg(test)]
mod tests;

//! Reads the kernel side's counters through shared memory: no system call, no capability.
//!
//! What a newcomer would get wrong: probes that the kernel skipped (a program was already running on that
//! CPU) are in none of our counters; the kernel keeps them per program, from 5.12 on, in fdinfo.

use std::{
    ffi::c_void,
    fs::File,
    io::{Read as _, Seek as _},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{Ebpf, maps::Map};
use handshake_common::counter::{CpuCounters, SLOTS};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::StartError;

/// The kernel side's counters, mapped.
pub struct KernelCounters {
    mapping: NonNull<c_void>,
    bytes: usize,
    cpus: usize,
    programs: Vec<ProgramInfo>,
}

/// One program's fdinfo.
struct ProgramInfo {
    name: String,
    file: File,
    /// What it said last: the kernel's word ends with the program.
    missed: AtomicU64,
}

// SAFETY: the mapping is plain shared memory, only read here, and lives until the struct is dropped.
unsafe impl Send for KernelCounters {}
// SAFETY: as above; reads are volatile and of aligned words.
unsafe impl Sync for KernelCounters {}

impl KernelCounters {
    /// Maps the counters of a loaded object.
    pub(super) fn map(ebpf: &Ebpf, cpus: usize) -> Result<Self, StartError> {
        let failed =
            |problem: String| StartError::Failed(format!("the counters cannot be mapped: {problem}"));
        let Some(Map::Array(data)) = ebpf.map("COUNTERS") else {
            return Err(failed("the object has no array COUNTERS".to_owned()));
        };
        let page = rustix::param::page_size();
        let bytes = (cpus * size_of::<CpuCounters>()).next_multiple_of(page);
        let descriptor = data.fd();
        // SAFETY: a fresh read-only shared mapping of a map that is at least this large (the kernel rounds
        // the size of a mappable array up to whole pages); nothing else uses the address.
        let mapping =
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, descriptor, 0) }
                .map_err(|error| failed(error.to_string()))?;
        let mapping = NonNull::new(mapping).ok_or_else(|| failed("null".to_owned()))?;
        Ok(KernelCounters { mapping, bytes, cpus, programs: Vec::new() })
    }

    /// Opens fdinfo of every loaded program, so that reading it later needs nothing but the open file.
    pub(super) fn watch_programs(&mut self, ebpf: &Ebpf) {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        for (name, program) in ebpf.programs() {
            if let Ok(descriptor) = program.fd() {
                let number = descriptor.as_fd().as_raw_fd();
                let opened = File::open(format!("/proc/self/fdinfo/{number}"));
                let missed = AtomicU64::new(UNKNOWN);
                self.programs.extend(opened.map(|file| ProgramInfo { name: name.to_owned(), file, missed }));
            }
        }
    }

    /// The counters of every possible CPU, in the order of CPU numbers.
    pub fn read(&self) -> Vec<CpuCounters> {
        let base = self.mapping.as_ptr().cast::<u64>().cast_const();
        (0..self.cpus)
            .map(|cpu| CpuCounters {
                slots: std::array::from_fn(|slot| {
                    // SAFETY: inside the mapping, aligned; volatile, because the kernel writes meanwhile.
                    unsafe { base.add(cpu * SLOTS + slot).read_volatile() }
                }),
            })
            .collect()
    }

    /// Hits of our programs that the kernel skipped; `None` where the kernel doesn't say (before 5.12).
    pub fn missed_probes(&self) -> Option<u64> {
        let mut missed = None;
        for program in &self.programs {
            if let Some(count) = recursion_misses(&program.file) {
                let before = program.missed.swap(count, Ordering::Relaxed);
                if count != 0 && count != before {
                    log::debug!("the kernel skipped {count} hits of {}", program.name);
                }
            }
            let count = program.missed.load(Ordering::Relaxed);
            if count != UNKNOWN {
                missed = Some(missed.unwrap_or(0) + count);
            }
        }
        missed
    }
}

/// Nothing was said yet.
const UNKNOWN: u64 = u64::MAX;

fn recursion_misses(mut file: &File) -> Option<u64> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}

impl Drop for KernelCounters {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this size and nothing refers to it any more. A failure
        // would leak a page at exit, which nobody can do anything about.
        let _ = unsafe { munmap(self.mapping.as_ptr(), self.bytes) };
    }
}

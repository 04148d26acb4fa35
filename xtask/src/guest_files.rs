//! The files of a VM as one cpio archive in memory, and what a program needs beside itself to run there.
//!
//! The archive is written directly ("newc", the format that the kernel unpacks), so it needs neither root nor
//! the cpio program, and a device node can be in it.
//!
//! What one would get wrong: the kernel takes several archives one after the other, but each has to begin at a
//! multiple of four bytes; and a file lands nowhere when its folder is not in the archive before it.

use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that grows.
#[derive(Default)]
pub struct GuestFiles {
    archive: Vec<u8>,
    present: BTreeSet<String>,
    inode: u32,
}

impl GuestFiles {
    /// Adds a folder and those above it.
    pub fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.present.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(path, FOLDER, &[], (0, 0));
    }

    /// Adds a file with these bytes; what is there already stays.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.add(path, FILE | mode, bytes, (0, 0));
    }

    /// Adds the kernel's console, which it opens for /init before /init could create it.
    pub fn console(&mut self) {
        self.add("dev/console", CHARACTER_DEVICE, &[], (5, 1));
    }

    /// Adds everything below a folder of the host.
    pub fn tree(&mut self, host: &Path, path: &str) -> Result<()> {
        self.folder(path);
        for entry in fs::read_dir(host).with_context(|| format!("cannot read {}", host.display()))? {
            let entry = entry?;
            let below = format!("{path}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.tree(&entry.path(), &below)?;
            } else {
                self.host_file(&entry.path(), &below)?;
            }
        }
        Ok(())
    }

    /// Adds a file of the host under another name, with the libraries it needs when it is a program.
    pub fn host_file(&mut self, host: &Path, path: &str) -> Result<()> {
        let bytes = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
        let mode = fs::metadata(host)?.permissions().mode() & 0o777;
        let is_program = bytes.starts_with(b"\x7fELF");
        self.file(path, mode, &bytes);
        if is_program {
            for library in libraries_of(host) {
                let at = library.to_string_lossy().into_owned();
                if !self.present.contains(at.trim_matches('/')) {
                    let bytes = fs::read(&library).with_context(|| format!("cannot read {at}"))?;
                    self.file(&at, 0o755, &bytes);
                }
            }
        }
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.add(path, LINK, to.as_bytes(), (0, 0));
    }

    fn add(&mut self, path: &str, mode: u32, bytes: &[u8], device: (u32, u32)) {
        let path = path.trim_matches('/');
        if self.present.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(path, mode, bytes, device);
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8], device: (u32, u32)) {
        self.present.insert(path.to_owned());
        self.inode += 1;
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2), name size, checksum
        let header = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0];
        self.archive.extend_from_slice(b"070701");
        for number in header {
            self.archive.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.archive.len().is_multiple_of(4) {
            self.archive.push(0);
        }
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.archive
    }
}

/// The shared libraries of a program, by the names under which the loader looks for them.
fn libraries_of(program: &Path) -> Vec<PathBuf> {
    // ldd fails on static programs, which need nothing.
    let Ok(output) = Command::new("ldd").arg(program).output() else { return Vec::new() };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    paths_in(&said).into_iter().filter(|path| path.exists()).collect()
}

fn paths_in(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_its_folders_first_and_once() {
        let mut files = GuestFiles::default();
        files.file("usr/bin/a", 0o755, b"a");
        files.file("/usr/bin/b", 0o644, b"bb");
        let archive = files.finish();
        let text = String::from_utf8_lossy(&archive);
        let order: Vec<usize> = ["usr\0", "usr/bin\0", "usr/bin/a\0", "usr/bin/b\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).unwrap())
            .collect();
        assert!(order.is_sorted());
        assert_eq!(text.matches("usr/bin\0").count(), 1);
    }

    #[test]
    fn archives_can_follow_each_other() {
        let mut files = GuestFiles::default();
        files.file("x", 0o644, b"odd");
        assert_eq!(files.finish().len() % 4, 0);
    }

    #[test]
    fn the_libraries_are_those_with_a_path() {
        let ldd = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(paths_in(ldd), [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
    }
}

//! Reads a Debian `Packages` file: which kernel image is the newest, where its files lie, what they hash to.
//!
//! What one would get wrong: versions are not strings. `6.12.9` comes before `6.12.107`, so names are compared
//! number by number; and from 7.x on an image is split, the kernel and its modules are packages of their own.

use std::collections::HashMap;

/// One package of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its place below the mirror.
    pub file: String,
    /// The hash of that file, in hexadecimal.
    pub sha256: String,
}

/// All packages of an index by name.
pub struct PackageIndex {
    packages: HashMap<String, Package>,
}

impl PackageIndex {
    /// Reads the text; paragraphs that lack a field are left out.
    pub fn parse(text: &str) -> Self {
        let packages =
            text.split("\n\n").filter_map(package).map(|found| (found.name.clone(), found)).collect();
        Self { packages }
    }

    /// The release name of the newest plain kernel: no cloud, real-time, unsigned or debug image.
    pub fn newest_kernel(&self) -> Option<String> {
        let plain = |name: &&str| {
            name.starts_with(|c: char| c.is_ascii_digit())
                && name.ends_with("-amd64")
                && !["cloud", "-rt-", "unsigned", "dbg"].iter().any(|kind| name.contains(kind))
        };
        let releases = self.packages.keys().filter_map(|name| name.strip_prefix("linux-image-"));
        releases.filter(plain).max_by_key(|release| numbers(release)).map(str::to_owned)
    }

    /// The packages that hold this kernel and its modules.
    pub fn packages_of_kernel(&self, release: &str) -> Vec<&Package> {
        ["linux-image-", "linux-binary-", "linux-modules-"]
            .iter()
            .filter_map(|kind| self.packages.get(&format!("{kind}{release}")))
            .collect()
    }
}

fn package(paragraph: &str) -> Option<Package> {
    let field = |name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(|s| s.trim().to_owned())
    };
    Some(Package { name: field("Package")?, file: field("Filename")?, sha256: field("SHA256")? })
}

fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The first two numbers of a release, which is what people call a kernel.
pub fn short_name(release: &str) -> String {
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "\
Package: linux-image-6.12.9-amd64
Filename: pool/a.deb
SHA256: aa

Package: linux-image-6.12.107+deb13-amd64
Description: the kernel
 with a second line: and a colon
Filename: pool/b.deb
SHA256: bb

Package: linux-image-6.12.108+deb13-cloud-amd64
Filename: pool/c.deb
SHA256: cc

Package: linux-image-6.12.109+deb13-rt-amd64
Filename: pool/d.deb
SHA256: dd

Package: linux-image-6.12.110+deb13-amd64-dbg
Filename: pool/e.deb
SHA256: ee

Package: linux-modules-6.12.107+deb13-amd64
Filename: pool/f.deb
SHA256: ff

Package: linux-image-amd64
Filename: pool/g.deb
SHA256: 00
";

    #[test]
    fn newest_kernel_is_chosen_by_number_and_without_variants() {
        let index = PackageIndex::parse(INDEX);
        assert_eq!(index.newest_kernel().as_deref(), Some("6.12.107+deb13-amd64"));
    }

    #[test]
    fn split_kernels_bring_their_modules() {
        let index = PackageIndex::parse(INDEX);
        let files: Vec<&str> =
            index.packages_of_kernel("6.12.107+deb13-amd64").iter().map(|p| p.file.as_str()).collect();
        assert_eq!(files, ["pool/b.deb", "pool/f.deb"]);
    }

    #[test]
    fn paragraph_without_a_hash_is_left_out() {
        let index = PackageIndex::parse("Package: linux-image-5.10.0-1-amd64\nFilename: pool/x.deb\n");
        assert_eq!(index.newest_kernel(), None);
    }

    #[test]
    fn kernels_are_called_by_two_numbers() {
        assert_eq!(short_name("6.12.107+deb13-amd64"), "6.12");
        assert_eq!(short_name("5.10.0-32-amd64"), "5.10");
    }
}

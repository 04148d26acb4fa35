//! Which kernel modules a VM loads, in which order.
//!
//! Modules are loaded one by one with insmod, so each must come after those it depends on. The dependencies are
//! read from the modules themselves (`depends=` in their .modinfo section), because the packages ship no
//! modules.dep: depmod writes it on the machine where they are installed.
//!
//! What one would get wrong: `libcrc32c` needs a crc32c implementation and doesn't say so (it is a soft
//! dependency); without `crc32c_generic` it cannot be loaded on kernels before 6.14, and nf_tables with it.

use crate::kernels;
use anyhow::{Context as _, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A module as the kernel takes it: not compressed, with its signature.
pub struct Module {
    /// Its name with underscores.
    pub name: String,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}

/// Where the modules of an unpacked kernel lie: `lib/modules/RELEASE`, since the merge of /usr below `usr`.
pub fn folder_of(kernel: &Path) -> Result<PathBuf> {
    let places = ["usr/lib/modules", "lib/modules"].map(|place| kernel.join(place));
    let releases = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    releases
        .map(|entry| entry.path())
        .find(|path| path.join("kernel").is_dir())
        .with_context(|| format!("{} holds no kernel modules", kernel.display()))
}

/// The wanted modules and all that they need, in loading order. A wanted module that the kernel has built in is
/// left out; one that it hasn't at all is left out too, for kernels differ in what is a module.
pub fn in_loading_order(kernel: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let folder = folder_of(kernel)?;
    let mut files = BTreeMap::new();
    collect(&folder.join("kernel"), &mut files)?;
    let built_in = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let built_in: BTreeSet<String> =
        built_in.lines().filter_map(|line| module_name(Path::new(line))).collect();
    let mut loaded: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let order = order(wanted, |name| {
        let Some(file) = files.get(name).filter(|_| !built_in.contains(name)) else { return Ok(None) };
        let bytes = read(file)?;
        let dependencies = dependencies_of(name, &bytes);
        loaded.insert(name.to_owned(), bytes);
        Ok(Some(dependencies))
    })?;
    Ok(order
        .into_iter()
        .filter_map(|name| loaded.remove(&name).map(|bytes| Module { name, bytes }))
        .collect())
}

/// Depth first: what a module needs comes before it. `look` gives a module's dependencies, or nothing for a module
/// that need not or cannot be loaded.
fn order(wanted: &[&str], mut look: impl FnMut(&str) -> Result<Option<Vec<String>>>) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    // A module stands on the stack twice: first to push what it needs, then to be put in order itself.
    let mut stack: Vec<(String, bool)> =
        wanted.iter().rev().map(|name| (name.replace('-', "_"), false)).collect();
    while let Some((name, its_needs_are_done)) = stack.pop() {
        if its_needs_are_done {
            order.push(name);
            continue;
        }
        if !seen.insert(name.clone()) {
            continue;
        }
        if let Some(dependencies) = look(&name)? {
            stack.push((name, true));
            stack.extend(dependencies.into_iter().rev().map(|dependency| (dependency, false)));
        }
    }
    Ok(order)
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("ko") => Ok(bytes),
        Some("xz") => kernels::pipe_through("xz", &["-dc"], &bytes),
        Some("zst") => kernels::pipe_through("zstd", &["-dc"], &bytes),
        Some("gz") => kernels::pipe_through("gzip", &["-dc"], &bytes),
        _ => bail!("{} is compressed in an unknown way", file.display()),
    }
}

fn dependencies_of(name: &str, module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let mut found: Vec<String> = Vec::new();
    if let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) {
        let list = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
        let list = String::from_utf8_lossy(list);
        found.extend(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")));
    }
    if name == "libcrc32c" {
        found.push("crc32c_generic".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(name: &str) -> Result<Option<Vec<String>>> {
        Ok(match name {
            "nft_reject_inet" => Some(vec!["nft_reject".into(), "nf_tables".into()]),
            "nft_reject" => Some(vec!["nf_tables".into()]),
            "nf_tables" => Some(vec!["libcrc32c".into(), "nfnetlink".into()]),
            "libcrc32c" => Some(vec!["crc32c_generic".into()]),
            "crc32c_generic" | "nfnetlink" | "veth" => Some(Vec::new()),
            _ => None,
        })
    }

    #[test]
    fn a_module_comes_after_all_that_it_needs() {
        let order = order(&["nft-reject-inet", "veth", "nf_tables"], modules).unwrap();
        let expected = [
            "crc32c_generic",
            "libcrc32c",
            "nfnetlink",
            "nf_tables",
            "nft_reject",
            "nft_reject_inet",
            "veth",
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn a_module_that_is_built_in_or_absent_is_left_out() {
        assert_eq!(order(&["sch_netem", "veth"], modules).unwrap(), ["veth"]);
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF....license=GPL\0depends=nf-tables,nfnetlink\0name=x\0";
        assert_eq!(dependencies_of("nft_ct", module), ["nf_tables", "nfnetlink"]);
        assert_eq!(dependencies_of("libcrc32c", b"..\0depends=\0"), ["crc32c_generic"]);
    }

    #[test]
    fn compressed_modules_have_names_too() {
        assert_eq!(module_name(Path::new("kernel/net/sch-netem.ko.xz")).as_deref(), Some("sch_netem"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}

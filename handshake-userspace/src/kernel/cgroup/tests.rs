//! Cgroups by path and by id, on folders that need be no cgroups: only the inode numbers and names count.
//!
//! What a newcomer would get wrong: `/a/bc` is not below `/a/b`, though its text begins so.

use super::*;

/// A hierarchy with the cgroup `/a/b`, and a file in it.
fn hierarchy() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let mount = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    fs::write(mount.join("a/cgroup.procs"), "").unwrap();
    (folder, mount)
}

#[test]
fn a_cgroup_is_found_by_either_path_and_by_its_id() {
    let (_folder, mount) = hierarchy();
    let id = fs::metadata(mount.join("a/b")).unwrap().ino();
    let whole = mount.join("a/b");
    for text in ["/a/b", "a/b", "/a/b/", "/a/../a/b", whole.to_str().unwrap()] {
        let cgroup = Cgroup::by_path(&mount, text).expect(text);
        assert_eq!((cgroup.id, cgroup.level, cgroup.path.as_path()), (id, 2, Path::new("/a/b")), "{text}");
    }
    let cgroup = Cgroup::by_id(&mount, id).unwrap();
    assert_eq!((cgroup.id, cgroup.level, cgroup.path.as_path()), (id, 2, Path::new("/a/b")));
    let root = Cgroup::by_path(&mount, "/").unwrap();
    assert_eq!((root.level, root.path.as_path()), (0, Path::new("/")));
    assert_eq!(Cgroup::by_id(&mount, root.id).map(|cgroup| cgroup.level), Ok(0));
}

#[test]
fn what_is_no_cgroup_is_refused_with_what_would_be_one() {
    let (_folder, mount) = hierarchy();
    for text in ["", "/b", "/a/cgroup.procs", "/..", "/a/b/c"] {
        let message = Cgroup::by_path(&mount, text).expect_err(text);
        assert!(message.contains("/proc/PID/cgroup"), "{text}: {message}");
    }
    let message = Cgroup::by_id(&mount, u64::MAX).expect_err("no folder has it");
    assert!(message.contains(&u64::MAX.to_string()) && message.contains("stat -c %i"), "{message}");
}

#[test]
fn a_process_is_in_its_cgroup_and_in_those_above() {
    let (_folder, mount) = hierarchy();
    let wanted = ["/", "/a", "/a/b"].map(|text| Cgroup::by_path(&mount, text).unwrap());
    for (text, bits) in [
        ("0::/\n", 0b001),
        ("0::/a\n", 0b011),
        ("9:pids:/a/b\n0::/a/b/c\n", 0b111),
        ("0::/a/bc\n", 0b011),
        ("0::/ab\n", 0b001),
        ("9:pids:/a/b\n", 0),
        ("", 0),
    ] {
        assert_eq!(in_text(text, &wanted), bits, "{text:?}");
    }
}

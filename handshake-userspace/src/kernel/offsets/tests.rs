//! The resolver against small hand-built kernels, and against every real kernel that is at hand.
//!
//! Real ones are the running kernel and the four of `target/btf` (VM kernels that `cargo xtask` extracts).
//! What a reader would get wrong: the numbers below are checked facts of those kernels, no inputs.

use std::path::{Path, PathBuf};

use handshake_common::offsets::{Offsets, UNAVAILABLE};

use super::{RULES, consequence, resolve};
use crate::kernel::btf::Btf;

#[test]
fn every_field_has_one_rule_in_the_same_order() {
    let fields: Vec<&str> = Offsets::FIELDS.iter().map(|(field, _, _)| *field).collect();
    let rules: Vec<&str> = RULES.iter().map(|rule| rule.field).collect();
    assert_eq!(fields, rules);
    assert!(fields.iter().all(|field| consequence(field) != consequence("no such field")));
}

/// The running kernel's BTF and those of the VM kernels, as far as they are there.
fn real_kernels() -> Vec<(String, Btf)> {
    let vm_kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/btf");
    let running = PathBuf::from("/sys/kernel/btf/vmlinux");
    ["5.10", "6.1", "6.12", "7.2"]
        .iter()
        .map(|kernel| vm_kernels.join(format!("{kernel}.btf")))
        .chain([running])
        .filter_map(|path| match Btf::from_file(&path) {
            Ok(btf) => Some((path.display().to_string(), btf)),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        })
        .collect()
}

#[test]
fn every_field_is_found_in_every_kernel_at_hand() {
    for (kernel, btf) in real_kernels() {
        let resolved = resolve(&btf).unwrap_or_else(|error| panic!("{kernel}: {error}"));
        assert_eq!(resolved.missing, [], "{kernel}");
        let offsets = resolved.offsets;
        assert_eq!((offsets.skc_daddr, offsets.skc_rcv_saddr), (0, 4), "{kernel}");
        assert_eq!((offsets.req_num_retrans, offsets.req_num_timeout), (146, 147), "{kernel}");
        assert_eq!((offsets.skb_cb, offsets.tcp_cb_flags), (40, 12), "{kernel}");
        assert_eq!((offsets.socket_type, offsets.socket_sk), (4, 24), "{kernel}");
        assert_eq!(offsets.req_listener, 96, "{kernel}");
        assert_eq!(offsets.req_child, 200, "{kernel}");
        assert_ne!(offsets.net_ns_inum, UNAVAILABLE, "{kernel}");
    }
}

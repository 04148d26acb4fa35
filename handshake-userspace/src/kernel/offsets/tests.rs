//! The resolver against small hand-built kernels, and against every real kernel that is at hand.
//!
//! Real ones are the running kernel and those of the VM kernels, as far as somebody copied their
//! /sys/kernel/btf/vmlinux to target/btf/5.10.btf and so on; what is not there is named and skipped.
//! What a reader would get wrong: the numbers below are checked facts of those kernels, no inputs.

use std::path::{Path, PathBuf};

use handshake_common::offsets::{Offsets, UNAVAILABLE};

use super::{RULES, RequiredFieldMissing, ResolvedOffsets, consequence, resolve};
use crate::kernel::btf::{Btf, blob::Blob};

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
        // Debian's 5.10 has no MPTCP; nothing else may be missing.
        let missing: Vec<&str> = resolved.missing.iter().map(|(field, _)| *field).collect();
        let of_mptcp = [
            "is_mptcp",
            "mptcp_first",
            "subflow_request_join_bit",
            "subflow_mp_join_bit",
            "subflow_token",
            "treq_is_mptcp",
            "treq_drop_req",
        ];
        assert!(missing.iter().all(|field| of_mptcp.contains(field)), "{kernel}: {missing:?}");
        let offsets = resolved.offsets;
        assert_eq!((offsets.skc_daddr, offsets.skc_rcv_saddr), (0, 4), "{kernel}");
        assert_eq!(offsets.req_num_retrans, 146, "{kernel}");
        assert_eq!((offsets.skb_cb, offsets.tcp_cb_flags), (40, 12), "{kernel}");
        assert_eq!((offsets.socket_file, offsets.socket_sk), (16, 24), "{kernel}");
        assert_eq!(offsets.req_child, 200, "{kernel}");
        assert_ne!(offsets.net_ns_inum, UNAVAILABLE, "{kernel}");
    }
}

/// The smallest kernel that we could trace: only the required fields, with `protocol_bytes` for one of them.
fn bare_kernel(protocol_bytes: u32) -> Blob {
    let mut blob = Blob::new();
    let byte = blob.int("unsigned char", 1);
    let half = blob.int("unsigned short", 2);
    let word = blob.int("unsigned int", 4);
    let inum = blob.structure("ns_common", 4, &[("inum", word, 0, 0)]);
    let net = blob.structure("net", 8, &[("ns", inum, 32, 0)]);
    let net = blob.pointer(net);
    let possible_net = blob.structure("", 8, &[("net", net, 0, 0)]);
    let possible_net = blob.typedef("possible_net_t", possible_net);
    let members = [
        ("skc_daddr", word, 0, 0),
        ("skc_rcv_saddr", word, 32, 0),
        ("skc_dport", half, 96, 0),
        ("skc_num", half, 112, 0),
        ("skc_family", half, 128, 0),
        ("skc_state", byte, 144, 0),
        ("skc_net", possible_net, 384, 0),
    ];
    blob.structure("sock_common", 136, &members);
    let protocol = blob.int("protocol", protocol_bytes);
    blob.structure("sock", 700, &[("sk_protocol", protocol, 4256, 0), ("sk_err", half, 0, 0)]);
    blob
}

fn resolve_blob(blob: &Blob) -> Result<ResolvedOffsets, RequiredFieldMissing> {
    resolve(&Btf::parse(blob.build()).expect("a good blob"))
}

fn reason<'a>(resolved: &'a ResolvedOffsets, wanted: &str) -> Option<&'a str> {
    resolved.missing.iter().find(|(field, _)| *field == wanted).map(|(_, reason)| reason.as_str())
}

#[test]
fn what_is_optional_and_absent_is_unavailable_with_its_reason() {
    let resolved = resolve_blob(&bare_kernel(2)).expect("traceable");
    assert_eq!((resolved.offsets.skc_net, resolved.offsets.net_ns_inum), (48, 4));
    assert_eq!(resolved.offsets.sk_protocol, 532);
    assert_eq!((resolved.offsets.srtt_us, resolved.offsets.sk_err), (UNAVAILABLE, UNAVAILABLE));
    assert_eq!(reason(&resolved, "srtt_us"), Some("this kernel's BTF has no struct `tcp_sock`"));
    let no_v6 = "this kernel's `struct sock_common` has no member `skc_v6_daddr`";
    assert_eq!(reason(&resolved, "skc_v6_daddr"), Some(no_v6));
    assert_eq!(reason(&resolved, "sk_err"), Some("it has 2 bytes here, and we read 4"));
    assert_eq!(reason(&resolved, "skc_daddr"), None);
    let found = RULES.iter().filter(|rule| rule.required).count();
    assert_eq!(resolved.missing.len(), Offsets::FIELDS.len() - found);
}

#[test]
fn a_required_field_of_another_width_is_an_error_that_names_it() {
    let error = resolve_blob(&bare_kernel(1)).expect_err("not traceable");
    assert_eq!(error.field, "sk_protocol");
    assert_eq!(
        error.to_string(),
        "the kernel field `sock.sk_protocol` is not usable: it has 1 byte here, and we read 2; \
         without it TCP is not told from other protocols"
    );
}

#[test]
fn a_struct_that_is_defined_twice_and_differently_is_refused_by_name() {
    let mut blob = bare_kernel(2);
    blob.structure("sock_common", 136, &[("skc_daddr", 3, 32, 0)]);
    let error = resolve_blob(&blob).expect_err("ambiguous");
    assert_eq!(
        error.reason,
        "this kernel's BTF has several structs `sock_common`, and they disagree about `skc_daddr`"
    );
}

#[test]
fn bits_that_moved_are_not_read() {
    let bits = |data_bit: u32, acked_bit, acked_width| {
        let mut blob = bare_kernel(2);
        let members = [
            ("syn_data", 1, 80 + data_bit, 1),
            ("syn_fastopen", 1, 83, 1),
            ("syn_data_acked", 1, acked_bit, acked_width),
        ];
        blob.structure("tcp_sock", 16, &members);
        resolve_blob(&blob).expect("traceable")
    };
    assert_eq!(bits(2, 86, 1).offsets.syn_data, 10);
    for moved in [bits(1, 86, 1), bits(2, 85, 1), bits(2, 86, 2), bits(2, 94, 1)] {
        assert_eq!(moved.offsets.syn_data, UNAVAILABLE);
    }
    let reason_of = bits(2, 94, 1);
    let expected = "`syn_data_acked` is not bit 6 (of width 1) of the byte where we read it";
    assert_eq!(reason(&reason_of, "syn_data"), Some(expected));
}

#[test]
fn a_member_that_became_a_bit_field_is_not_read_as_a_whole() {
    let mut blob = bare_kernel(2);
    blob.structure("tcp_sock", 16, &[("srtt_us", 3, 0, 20)]);
    let resolved = resolve_blob(&blob).expect("traceable");
    assert_eq!(reason(&resolved, "srtt_us"), Some("it is a bit-field here"));
}

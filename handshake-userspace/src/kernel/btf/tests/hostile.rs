//! Hostile BTF: every question to any bytes is answered or refused, soon.
//!
//! What a reader would get wrong: to survive parsing is not enough. Types that contain themselves or double
//! at each level are well-formed blobs, and only a question walks into them.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Blob, Btf, BtfError, parse, small_kernel};

/// Asks everything that can be asked; only panics and endless walks fail.
fn ask_everything(bytes: Vec<u8>) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for container in ["sock_common", "sock", "holder"] {
        for path in ["skc_daddr", "first", "common.skc_daddr", "several.skc_hash.x", "low", "high", "", "."] {
            let _ = btf.member(container, path);
        }
    }
    for name in ["tcp_connect", "inet_csk_accept", "skb_drop_reason", "big", "inet_sock_set_state", ""] {
        let _ = (btf.func_exists(name), btf.func_args(name), btf.typedef_exists(name));
        let _ = (btf.tracepoint_args(name), btf.struct_exists(name), btf.enum_values(name).is_ok());
    }
    let _ = crate::kernel::offsets::resolve(&btf);
}

#[test]
fn a_struct_that_contains_itself_is_refused() {
    let mut blob = Blob::new();
    blob.structure("holder", 4, &[("", 1, 0, 0)]);
    assert!(matches!(parse(&blob).member("holder", "x"), Err(BtfError::TooDeep { .. })));
}

#[test]
fn a_typedef_of_itself_is_refused() {
    let mut blob = Blob::new();
    blob.typedef("loop", 1);
    blob.structure("holder", 4, &[("named", 1, 0, 0), ("", 1, 0, 0)]);
    blob.typedef("btf_trace_loop", 1);
    let btf = parse(&blob);
    assert!(matches!(btf.member("holder", "x"), Err(BtfError::TooDeep { .. })));
    assert!(matches!(btf.member("holder", "named.x"), Err(BtfError::TooDeep { .. })));
    assert_eq!(btf.tracepoint_args("loop"), None);
}

#[test]
fn an_array_of_itself_is_refused() {
    let mut blob = Blob::new();
    blob.array(1, u32::MAX);
    blob.structure("holder", 4, &[("named", 1, 0, 0)]);
    let btf = parse(&blob);
    assert_eq!(btf.member("holder", "named").expect("found").size_bytes, None);
    assert!(matches!(btf.member("holder", "named.x"), Err(BtfError::TooDeep { .. })));
}

#[test]
fn structs_that_double_at_each_level_cost_no_exponential_time() {
    let mut blob = Blob::new();
    let mut below = blob.int("unsigned int", 4);
    for _ in 0..30 {
        below = blob.structure("", 4, &[("", below, 0, 0), ("", below, 0, 0)]);
    }
    blob.structure("holder", 4, &[("", below, 0, 0)]);
    let started = Instant::now();
    assert!(matches!(parse(&blob).member("holder", "x"), Err(BtfError::TooDeep { .. })));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn a_member_beyond_every_offset_is_refused() {
    let mut blob = Blob::new();
    let name = blob.string("deep");
    let inner = blob.raw("inner", 4 << 24 | 1, 4, &[name, 1, u32::MAX]);
    let name = blob.string("far");
    blob.raw("holder", 4 << 24 | 1, 4, &[name, inner, u32::MAX]);
    assert!(matches!(parse(&blob).member("holder", "far.deep"), Err(BtfError::Damaged { .. })));
}

#[test]
fn a_name_without_end_is_not_found_and_costs_little() {
    let mut blob = Blob::new();
    let long = "x".repeat(1 << 20);
    for _ in 0..2 {
        blob.structure(&long, 4, &[]);
    }
    let btf = parse(&blob);
    assert!(!btf.struct_exists(&long));
}

#[test]
fn every_cut_of_a_good_blob_is_refused_or_answered() {
    let good = small_kernel().build();
    for end in 0..good.len() {
        assert!(Btf::parse(&good[..end]).is_err(), "cut at {end}");
    }
    ask_everything(good);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut headed = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        headed.extend(&bytes);
        ask_everything(bytes);
        ask_everything(headed);
    }

    #[test]
    fn damaged_blobs_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = small_kernel().build();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        ask_everything(bytes);
    }

    #[test]
    fn arbitrary_types_never_panic(
        types in proptest::collection::vec((0_u32..21, 0_u32..4, any::<bool>(), 0_u32..12, 0_u32..12), 1..12),
    ) {
        let mut blob = Blob::new();
        blob.string("holder");
        for (kind, length, flag, target, number) in types {
            let trailing = super::super::trailing_bytes(kind as u8, length as usize).unwrap_or(0);
            let tail: Vec<u32> = (0..trailing as u32 / 4).map(|word| (word + number) % 12).collect();
            blob.raw("holder", u32::from(flag) << 31 | kind << 24 | length, target, &tail);
        }
        ask_everything(blob.build());
    }
}

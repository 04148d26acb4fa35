//! The BTF reader on blobs made by hand, on damaged ones, and on the running kernel.
//!
//! What a reader would get wrong: the numbers of the running kernel's test are the few that have been the
//! same in every kernel since 5.10; nothing else of a real kernel may be written down in a test.

mod hostile;

use super::{
    BitField, Btf, BtfError, Member,
    blob::{Blob, small_kernel},
};

fn parse(blob: &Blob) -> Btf {
    Btf::parse(blob.build()).expect("a good blob")
}

fn plain(byte_offset: u32, size: u32) -> Member {
    Member { byte_offset, size_bytes: Some(size), bit_field: None }
}

#[test]
fn a_member_is_found_through_anonymous_structs_and_unions() {
    let btf = parse(&small_kernel());
    assert_eq!(btf.member("sock_common", "skc_daddr").expect("found"), plain(8, 4));
    assert_eq!(btf.member("sock_common", "skc_hash").expect("found"), plain(4, 4));
    assert_eq!(btf.member("sock_common", "first").expect("found"), plain(0, 4));
}

#[test]
fn a_path_goes_through_typedefs_qualifiers_and_arrays() {
    let btf = parse(&small_kernel());
    assert_eq!(btf.member("sock", "common.skc_daddr").expect("found"), plain(16, 4));
    assert_eq!(btf.member("sock", "several.skc_daddr").expect("found"), plain(24, 4));
    assert_eq!(btf.member("sock", "several").expect("found"), plain(16, 36));
}

#[test]
fn a_bit_field_gives_its_byte_its_first_bit_and_its_width() {
    let btf = parse(&small_kernel());
    let bits = |bit, width| Member { bit_field: Some(BitField { bit, width }), ..plain(53, 1) };
    assert_eq!(btf.member("sock", "low").expect("found"), bits(0, 3));
    assert_eq!(btf.member("sock", "high").expect("found"), bits(3, 5));
}

#[test]
fn a_bit_field_of_the_old_form_is_read_from_its_integer() {
    let mut blob = Blob::new();
    let three_bits = blob.raw("unsigned char", 1 << 24, 1, &[2 << 16 | 3]);
    let name = blob.string("old");
    blob.raw("holder", 4 << 24 | 1, 4, &[name, three_bits, 8]);
    let expected = Member { bit_field: Some(BitField { bit: 2, width: 3 }), ..plain(1, 1) };
    assert_eq!(parse(&blob).member("holder", "old").expect("found"), expected);
}

#[test]
fn what_is_not_there_is_named() {
    let btf = parse(&small_kernel());
    let message = |container, path| btf.member(container, path).expect_err("absent").to_string();
    assert_eq!(message("socks", "x"), "this kernel's BTF has no struct `socks`");
    assert_eq!(message("sock", "x"), "this kernel's `struct sock` has no member `x`");
    assert_eq!(message("sock", "low.x"), "this kernel's `struct sock` has no member `low.x`");
    assert_eq!(message("sock", ""), "this kernel's `struct sock` has no member ``");
    assert_eq!(message("sock", "common."), "this kernel's `struct sock` has no member `common.`");
    assert_eq!(message("", "x"), "this kernel's BTF has no struct ``");
    // A typedef is no struct: only the struct's own name finds it.
    assert_eq!(message("sock_common_t", "first"), "this kernel's BTF has no struct `sock_common_t`");
}

#[test]
fn two_structs_of_one_name_are_refused_only_where_they_disagree() {
    let mut blob = Blob::new();
    let word = blob.int("unsigned int", 4);
    let half = blob.int("unsigned short", 2);
    blob.structure("twice", 8, &[("same", word, 0, 0), ("moved", word, 32, 0), ("grown", half, 64, 0)]);
    blob.structure("twice", 8, &[("same", word, 0, 0), ("moved", word, 64, 0), ("grown", word, 64, 0)]);
    blob.structure("sometimes", 8, &[("here", word, 0, 0)]);
    blob.structure("sometimes", 8, &[]);
    let btf = parse(&blob);
    assert_eq!(btf.member("twice", "same").expect("agreed"), plain(0, 4));
    for (container, path) in [("twice", "moved"), ("twice", "grown"), ("sometimes", "here")] {
        let error = btf.member(container, path).expect_err("ambiguous");
        assert!(matches!(&error, BtfError::Ambiguous { name, .. } if name == container), "{error}");
    }
}

#[test]
fn functions_and_tracepoints_give_their_number_of_arguments() {
    let mut blob = small_kernel();
    blob.function("twice", &[1]);
    blob.function("twice", &[1]);
    blob.function("differs", &[1]);
    blob.function("differs", &[1, 1]);
    blob.typedef("btf_trace_no_pointer", 1);
    let btf = parse(&blob);
    assert!(btf.func_exists("tcp_connect") && !btf.func_exists("sock") && btf.struct_exists("sock"));
    assert_eq!(btf.func_args("inet_csk_accept"), Some(4));
    assert_eq!(
        (btf.func_args("twice"), btf.func_args("differs"), btf.func_args("none")),
        (Some(1), None, None)
    );
    assert!(btf.typedef_exists("btf_trace_inet_sock_set_state"));
    assert_eq!(btf.tracepoint_args("inet_sock_set_state"), Some(3));
    assert_eq!((btf.tracepoint_args("no_pointer"), btf.tracepoint_args("none")), (None, None));
}

#[test]
fn enums_give_their_values_in_both_widths() {
    let mut blob = small_kernel();
    blob.enumeration("differs", &[("A", 1)]);
    blob.enumeration("differs", &[("A", 2)]);
    let btf = parse(&blob);
    let values = btf.enum_values("skb_drop_reason").expect("an enum");
    assert_eq!(values, [("NOT_YET", 0), ("NO_SOCKET", 3), ("NEGATIVE", -1)]);
    assert_eq!(btf.enum_values("big").expect("an enum"), [("", 1 << 32 | 7)]);
    assert!(matches!(btf.enum_values("none"), Err(BtfError::Absent { .. })));
    assert!(matches!(btf.enum_values("differs"), Err(BtfError::Ambiguous { .. })));
}

#[test]
fn what_is_no_btf_says_so() {
    let good = small_kernel().build();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Btf::parse(bytes).expect_err("damaged")
    };
    assert!(matches!(Btf::parse([]), Err(BtfError::NoMagic)));
    assert!(matches!(Btf::parse(b"\x7fELF".to_vec()), Err(BtfError::NoMagic)));
    assert!(matches!(Btf::parse([0xeb, 0x9f, 0, 1]), Err(BtfError::BigEndian)));
    assert!(matches!(with(2, 2), BtfError::UnknownVersion { version: 2 }));
    assert!(matches!(with(27 + 4, 0x15), BtfError::UnknownKind { id: 1, kind: 0x15 }));
    assert!(matches!(with(4, 23), BtfError::Damaged { .. }));
    assert!(matches!(with(15, 0xff), BtfError::Damaged { .. }));
    assert!(matches!(with(23, 0xff), BtfError::Damaged { .. }));
    let error = Btf::from_file("/no/such/btf".as_ref()).expect_err("no file").to_string();
    assert!(error.starts_with("cannot read BTF from /no/such/btf: No such file"), "{error}");
    assert!(matches!(Btf::from_file("/dev/zero".as_ref()), Err(BtfError::TooLarge)));
}

#[test]
fn a_later_header_that_is_longer_is_skipped_by_its_length() {
    let good = small_kernel().build();
    let mut longer = good[..24].to_vec();
    longer[4] = 32;
    longer.extend([0xaa; 8]);
    longer.extend(&good[24..]);
    let btf = Btf::parse(longer).expect("a longer header");
    assert_eq!(btf.member("sock_common", "skc_daddr").expect("found"), plain(8, 4));
}

#[test]
fn the_running_kernel_has_what_every_kernel_has() {
    let path = "/sys/kernel/btf/vmlinux";
    let btf = match Btf::from_file(path.as_ref()) {
        Ok(btf) => btf,
        Err(error) if !std::path::Path::new(path).exists() => {
            eprintln!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let fixed = [
        ("skc_daddr", 0, 4),
        ("skc_rcv_saddr", 4, 4),
        ("skc_dport", 12, 2),
        ("skc_num", 14, 2),
        ("skc_family", 16, 2),
        ("skc_state", 18, 1),
        ("skc_net.net", 48, 8),
        ("skc_v6_daddr", 56, 16),
        ("skc_v6_rcv_saddr", 72, 16),
    ];
    for (path, offset, size) in fixed {
        assert_eq!(btf.member("sock_common", path).expect("found"), plain(offset, size), "{path}");
    }
    assert_eq!(btf.func_args("tcp_v4_connect"), Some(3));
    assert_eq!(btf.func_args("tcp_rcv_state_process"), Some(2));
    assert_eq!(btf.tracepoint_args("inet_sock_set_state"), Some(3));
    let states = btf.enum_values("tcp_conntrack_or_none");
    assert!(matches!(states, Err(BtfError::Absent { .. })));
}

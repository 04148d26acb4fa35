//! A file that claims to be a kernel's BTF: every offset is found or named as missing.
//!
//! What a reader would get wrong: types refer to each other by number, so a hostile file can make circles; what
//! follows them has to end.

#![no_main]

use handshake::kernel::{btf::Btf, offsets};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(btf) = Btf::parse(bytes) else { return };
    let _ = offsets::resolve(&btf);
    let _ = btf.enum_values("skb_drop_reason");
    let _ = (btf.func_args("tcp_v4_connect"), btf.tracepoint_args("kfree_skb"));
});

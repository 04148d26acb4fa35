//! The compiled kernel side, embedded by the build script.
//!
//! What a newcomer would get wrong: the object may be empty. A build without a BPF toolchain still makes a
//! program that replays recordings; only tracing then ends in one clear message.

use super::StartError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/handshake.bpf.o"));

/// The toolchain that built the object, or why there is none.
pub const BUILT_WITH: &str = env!("HANDSHAKE_BPF_BUILT_WITH");

/// The object, if the build made one.
pub fn object() -> Result<&'static [u8], StartError> {
    if OBJECT.is_empty() {
        return Err(StartError::Failed(format!(
            "this binary was built without the kernel programs ({BUILT_WITH}); `cargo xtask build` sets up what \
             is missing and builds them in"
        )));
    }
    Ok(OBJECT)
}

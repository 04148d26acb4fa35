//! Turns the object's stand-ins into calls of kernel functions.
//!
//! The loader of aya knows helpers only. A call of a kernel function is the same instruction with another register and,
//! for a number, the function's type in the running kernel's BTF. What a newcomer would get wrong: a kernel without the
//! functions needs the instruction gone, not failing, so it becomes `r0 = 0`, which clobbers less than any call.

use handshake_common::preempt::{DISABLE, ENABLE};
use zerocopy::IntoBytes as _;

use super::btf::Btf;

/// An object that the loader can take: aligned as ELF wants it.
pub(super) struct Object(Vec<u64>);

impl Object {
    /// Its bytes, and at most seven zeroes behind them.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the half of the second byte that names the source register.
const OF_KERNEL_FUNCTION: u8 = 2 << 4;
/// `BPF_ALU64 | BPF_MOV | BPF_K` on register 0, with the value 0.
const NOTHING: u64 = 0xb7;

/// Replaces each stand-in. Both functions are there, or neither is called.
pub(super) fn resolve(object: &[u8], btf: &Btf) -> Object {
    let ids = btf.func_id("bpf_preempt_disable").zip(btf.func_id("bpf_preempt_enable"));
    let mut words = vec![0u64; object.len().div_ceil(size_of::<u64>())];
    words.as_mut_bytes()[..object.len()].copy_from_slice(object);
    let (disable, enable) = (call(0, DISABLE), call(0, ENABLE));
    let (to_disable, to_enable) = match ids {
        Some((disable, enable)) => (call(OF_KERNEL_FUNCTION, disable), call(OF_KERNEL_FUNCTION, enable)),
        None => (NOTHING, NOTHING),
    };
    // Instructions are eight bytes, and sections of them begin at a multiple of that.
    for word in &mut words {
        if *word == disable {
            *word = to_disable;
        } else if *word == enable {
            *word = to_enable;
        }
    }
    Object(words)
}

/// An instruction as the object has it, little-endian.
fn call(registers: u8, number: u32) -> u64 {
    u64::from(number) << 32 | u64::from(registers) << 8 | u64::from(CALL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::blob::Blob;

    fn resolved(btf: &[u8]) -> Vec<u64> {
        let helper = call(0, 5);
        let mut object = [helper, call(0, DISABLE), helper, call(0, ENABLE), 0x95].as_bytes().to_vec();
        object.extend([1, 2, 3]);
        resolve(&object, &Btf::parse(btf).expect("it is BTF")).0
    }

    #[test]
    fn a_kernel_with_both_functions_is_called_by_their_numbers() {
        let mut blob = Blob::new();
        let disable = blob.function("bpf_preempt_disable", &[]);
        let enable = blob.function("bpf_preempt_enable", &[]);
        let words = resolved(&blob.build());
        assert_eq!(words[1], u64::from(disable) << 32 | 0x2085);
        assert_eq!(words[3], u64::from(enable) << 32 | 0x2085);
        assert_eq!(
            (words[0], words[2], words[4], words[5]),
            (call(0, 5), call(0, 5), 0x95, 0x0003_0201),
            "nothing else changes"
        );
    }

    #[test]
    fn a_kernel_with_one_of_them_or_none_calls_nothing() {
        let mut blob = Blob::new();
        blob.function("bpf_preempt_disable", &[]);
        for btf in [Blob::new().build(), blob.build()] {
            let words = resolved(&btf);
            assert_eq!((words[1], words[3]), (0xb7, 0xb7));
        }
    }
}

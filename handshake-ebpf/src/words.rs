//! Zeroes and copies records eight bytes at a time.
//!
//! Left to itself the compiler calls `memset` and `memcpy` here, which on this target are loops over single bytes,
//! in functions of their own: slow where it matters most, and before 6.3 a program that calls a function loses the
//! verifier's precise pruning (accept()'s program took 410,000 instructions to verify on 6.1, of the million that
//! the kernel allows). What a newcomer would get wrong: the accesses are volatile for that one reason, that the
//! optimizer would otherwise turn the loop back into the call.

/// How many words a `T` is; a `T` that is no whole number of aligned words does not compile.
const fn words<T>() -> usize {
    assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8, "not made of aligned words");
    size_of::<T>() / 8
}

/// Zeroes `*to` behind its first `H`.
///
/// # Safety
/// `to` is valid for writes, and zero bytes are a value of what lies behind the `H`.
#[inline(always)]
pub unsafe fn zero_behind<H, T>(to: *mut T) {
    let to = to.cast::<u64>();
    let mut i = const { words::<H>() };
    while i < const { words::<T>() } {
        // SAFETY: within the T that the caller vouches for.
        unsafe { to.add(i).write_volatile(0) };
        i += 1;
    }
}

/// Copies `*from` to `*to`.
///
/// # Safety
/// `from` is valid for reads, `to` for writes, and they don't overlap.
#[inline(always)]
pub unsafe fn copy<T: Copy>(from: *const T, to: *mut T) {
    let (from, to) = (from.cast::<u64>(), to.cast::<u64>());
    let mut i = 0;
    while i < const { words::<T>() } {
        // SAFETY: within the Ts that the caller vouches for.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        i += 1;
    }
}

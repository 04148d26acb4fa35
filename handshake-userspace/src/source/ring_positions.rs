//! How far the ring buffer has been filled, and how far emptied.
//!
//! A program that is preempted between reserving a record and submitting it stops the reader there: what lies behind
//! can't be read yet, and the reader's library says of both, an empty ring and a stopped one, "nothing". What a newcomer
//! would get wrong: such a ring was not drained, and to say that time has passed for its events makes them late.

use std::{
    ffi::c_void,
    io,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The pages that the kernel keeps both positions in (kernel/bpf/ringbuf.c): consumer's first, then producer's.
pub(super) struct RingPositions {
    mapping: NonNull<c_void>,
    page_bytes: usize,
}

// SAFETY: shared memory that is only read here, through atomics, and lives until the struct is dropped.
unsafe impl Send for RingPositions {}
// SAFETY: as above.
unsafe impl Sync for RingPositions {}

impl RingPositions {
    /// Of the ring buffer behind this descriptor.
    pub(super) fn map(ring: BorrowedFd<'_>) -> io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        // SAFETY: a fresh read-only shared mapping of pages that every ring buffer has; nothing else uses the address.
        let mapping = unsafe {
            mmap(std::ptr::null_mut(), 2 * page_bytes, ProtFlags::READ, MapFlags::SHARED, ring, 0)
        }?;
        let mapping = NonNull::new(mapping).ok_or_else(|| io::Error::other("null"))?;
        Ok(RingPositions { mapping, page_bytes })
    }

    /// Bytes that programs have reserved since the beginning.
    pub(super) fn reserved(&self) -> u64 {
        self.word(self.page_bytes)
    }

    /// Whether all that had been reserved up to `reserved` has been read.
    pub(super) fn have_passed(&self, reserved: u64) -> bool {
        self.word(0).wrapping_sub(reserved) as i64 >= 0
    }

    fn word(&self, offset_bytes: usize) -> u64 {
        // SAFETY: inside the mapping, aligned to a page; the kernel and the reader write it atomically.
        unsafe { self.mapping.byte_add(offset_bytes).cast::<AtomicU64>().as_ref() }.load(Ordering::Acquire)
    }
}

impl Drop for RingPositions {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this size and nothing refers to it any more. A failure would leak
        // two pages at exit, which nobody can do anything about.
        let _ = unsafe { munmap(self.mapping.as_ptr(), 2 * self.page_bytes) };
    }
}

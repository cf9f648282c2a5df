//! Large results and batches: aligned, and where the system has them in huge pages, which cost a fresh result a
//! fraction of the page faults of small ones.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::{Mutex, TryLockError};

use crate::error::{Error, Result};

/// Smallest alignment: one cache line.
pub const ALIGNMENT: usize = 64;

/// From this size on memory comes in whole pages of the system, huge ones where it has them.
#[cfg(target_os = "linux")]
const IN_PAGES: usize = 1 << 20;

/// Zeroed memory with one owner, who may lend it to foreign code.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Buffer owns its memory, and gives access to it only through raw pointers.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Asks the system for `bytes` bytes, all 0.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is none.
    pub fn new(bytes: usize) -> Result<Self> {
        let start = match Self::layout(bytes) {
            #[cfg(target_os = "linux")]
            Some(_) if bytes >= IN_PAGES => pages::map(bytes),
            // SAFETY: the layout's size is not 0.
            Some(layout) => NonNull::new(unsafe { alloc_zeroed(layout) }),
            None => None,
        };
        let start = start.ok_or(Error::Memory(bytes))?;
        Ok(Self { start, bytes })
    }

    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// How much memory the system gave for it.
    fn held(&self) -> usize {
        #[cfg(target_os = "linux")]
        if self.bytes >= IN_PAGES {
            return pages::mapped(self.bytes).unwrap_or(self.bytes);
        }
        self.bytes
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The bytes.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the memory is this long, initialised when it was got, and `&mut self` means that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// The start, aligned to [`ALIGNMENT`].
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if self.bytes >= IN_PAGES {
            pages::unmap(self.start, self.bytes);
            return;
        }
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: `new` got this memory with the same layout, and nobody uses it any more.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

/// As many buffers are kept at most: two batches of 512.
const MOST_KEPT: usize = 1024;

/// As many of them are looked at for one that fits.
const LOOKED_AT: usize = 64;

/// Keeps buffers that are not needed any more for those who need one of about that size next: in a loop the result of
/// one turn takes the place of an earlier one, without a page fault. What that costs does not grow with what is kept.
///
/// Never waits: while another thread is at it, or was when this process was forked, buffers come from the system and go
/// back to it.
#[derive(Debug)]
pub struct Recycler {
    kept: Mutex<Kept>,
    most: usize,
}

#[derive(Debug)]
struct Kept {
    /// The latest is the last.
    buffers: VecDeque<Buffer>,
    /// What they hold.
    bytes: usize,
}

impl Kept {
    /// Takes out the latest that fits.
    fn find(&mut self, fits: impl Fn(&Buffer) -> bool) -> Option<Buffer> {
        let back = self.buffers.iter().rev().take(LOOKED_AT).position(fits)?;
        // Near the end: few others move.
        let found = self.buffers.remove(self.buffers.len() - 1 - back)?;
        self.bytes -= found.held();
        Some(found)
    }

    fn add(&mut self, buffer: Buffer, most: usize) {
        self.bytes += buffer.held();
        self.buffers.push_back(buffer);
        while self.bytes > most || self.buffers.len() > MOST_KEPT {
            let Some(oldest) = self.buffers.pop_front() else { return };
            self.bytes -= oldest.held();
        }
    }
}

impl Recycler {
    /// Keeps up to `most` bytes.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { kept: Mutex::new(Kept { buffers: VecDeque::new(), bytes: 0 }), most }
    }

    /// A buffer of at least `bytes` bytes, and of at most a quarter more; its content is unspecified.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is none.
    pub fn take(&self, bytes: usize) -> Result<Buffer> {
        let fits =
            |buffer: &Buffer| (bytes..=bytes.saturating_add(bytes / 4)).contains(&buffer.bytes);
        match self.with_kept(|kept| kept.find(fits)).flatten() {
            Some(buffer) => Ok(buffer),
            None => Buffer::new(bytes),
        }
    }

    /// Takes a buffer back. The oldest are freed where it would be more than can be kept.
    pub fn give_back(&self, buffer: Buffer) {
        if buffer.is_empty() || buffer.held() > self.most {
            return;
        }
        self.with_kept(|kept| kept.add(buffer, self.most));
    }

    fn with_kept<T>(&self, then: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        match self.kept.try_lock() {
            Ok(mut kept) => Some(then(&mut kept)),
            Err(TryLockError::Poisoned(kept)) => Some(then(&mut kept.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(target_os = "linux")]
mod pages {
    use std::ptr::{NonNull, null_mut};

    /// The usual huge page of x86-64 and of arm64 with 4 KiB pages. Where it is another, alignment to it does no harm.
    const HUGE: usize = 2 << 20;
    /// A multiple of the pages of x86-64 and of arm64.
    const PAGE: usize = 64 << 10;

    /// How much is mapped for `bytes`: the last huge page is taken whole if at least half of it is used.
    pub(super) fn mapped(bytes: usize) -> Option<usize> {
        let huge = bytes.checked_next_multiple_of(HUGE)?;
        if huge - bytes <= HUGE / 2 { Some(huge) } else { bytes.checked_next_multiple_of(PAGE) }
    }

    /// Maps memory that starts at a huge page.
    pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
        let length = mapped(bytes)?;
        let room = length.checked_add(HUGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which touches no memory that anyone has.
        let all = unsafe { libc::mmap(null_mut(), room, access, flags, -1, 0) };
        if all == libc::MAP_FAILED {
            return None;
        }
        let all = all.cast::<u8>();
        let before = all.addr().next_multiple_of(HUGE) - all.addr();
        // SAFETY: all three pieces lie in the mapping, end at pages, and the two outer ones were given to nobody.
        unsafe {
            let start = all.add(before);
            if before > 0 {
                libc::munmap(all.cast(), before);
            }
            libc::munmap(start.add(length).cast(), HUGE - before);
            // Advice: a system without huge pages refuses it, and the memory is as good as any.
            libc::madvise(start.cast(), length, libc::MADV_HUGEPAGE);
            NonNull::new(start)
        }
    }

    pub(super) fn unmap(start: NonNull<u8>, bytes: usize) {
        if let Some(length) = mapped(bytes) {
            // SAFETY: `map` made this mapping of this length, and nobody uses it any more.
            unsafe {
                libc::munmap(start.as_ptr().cast(), length);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_page_half_used_is_taken_whole() {
            assert_eq!(mapped(HUGE), Some(HUGE));
            assert_eq!(mapped(HUGE / 2), Some(HUGE));
            assert_eq!(mapped(HUGE + 1), Some(HUGE + PAGE));
            assert_eq!(mapped(HUGE + HUGE / 2), Some(2 * HUGE));
            assert_eq!(mapped(usize::MAX), None);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn zeroed_aligned_and_writable() {
        for bytes in [0, 1, 63, 4096, (1 << 20) - 1, 1 << 20, (3 << 20) + 5, 6 << 20] {
            let buffer = Buffer::new(bytes).unwrap();
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.is_empty(), bytes == 0);
            let alignment =
                if bytes >= 1 << 20 && cfg!(target_os = "linux") { 2 << 20 } else { 64 };
            assert!(buffer.as_ptr().addr().is_multiple_of(alignment));
            // SAFETY: the buffer is this long, initialised and ours alone.
            let values = unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), bytes) };
            assert!(values.iter().all(|&value| value == 0));
            values.fill(7);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        let error = Buffer::new(usize::MAX).unwrap_err().to_string();
        assert_eq!(error, format!("no memory for {} bytes", usize::MAX));
        assert!(Buffer::new(1 << 60).is_err());
    }

    #[test]
    fn buffers_are_used_again() {
        let recycler = Recycler::new(100);
        let first = recycler.take(40).unwrap();
        let address = first.as_ptr();
        recycler.give_back(first);
        assert_ne!(recycler.take(41).unwrap().as_ptr(), address, "too small");
        assert_ne!(recycler.take(30).unwrap().as_ptr(), address, "too large");
        let again = recycler.take(35).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (address, 40));
        // What is too much goes, oldest first.
        recycler.give_back(again);
        recycler.give_back(Buffer::new(50).unwrap());
        recycler.give_back(Buffer::new(101).unwrap());
        assert_eq!(lengths(&recycler), [40, 50]);
        recycler.give_back(Buffer::new(20).unwrap());
        assert_eq!(lengths(&recycler), [50, 20]);
        let busy = recycler.kept.lock().unwrap();
        assert_eq!(recycler.take(20).unwrap().len(), 20);
        recycler.give_back(Buffer::new(10).unwrap());
        assert_eq!(busy.buffers.len(), 2);
    }

    /// Those of the buffers that are kept; their sum is known.
    fn lengths(recycler: &Recycler) -> Vec<usize> {
        let kept = recycler.kept.lock().unwrap();
        assert_eq!(kept.bytes, kept.buffers.iter().map(Buffer::held).sum::<usize>());
        kept.buffers.iter().map(Buffer::len).collect()
    }

    #[test]
    fn many_small_buffers_cost_no_more_than_a_few() {
        let recycler = Recycler::new(1 << 30);
        for _ in 0..50_000 {
            recycler.give_back(Buffer::new(10).unwrap());
        }
        assert_eq!(lengths(&recycler), [10; MOST_KEPT]);
        // One that lies behind as many as are looked at is not found; it goes as the oldest.
        let place = |behind: usize| {
            let recycler = Recycler::new(1 << 30);
            let large = Buffer::new(1000).unwrap();
            let address = large.as_ptr();
            recycler.give_back(large);
            (0..behind).for_each(|_| recycler.give_back(Buffer::new(10).unwrap()));
            let found = recycler.take(900).unwrap().as_ptr() == address;
            assert_eq!(lengths(&recycler).len(), behind + usize::from(!found));
            found
        };
        assert!(place(LOOKED_AT - 1));
        assert!(!place(LOOKED_AT));
    }
}

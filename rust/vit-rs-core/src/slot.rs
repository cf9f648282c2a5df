//! Batch memory: aligned, reused, written by many threads at once, returned when its last owner lets go.
#![allow(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::memory::Buffer;

/// Buffers of one size. A buffer that comes back is kept for the next batch, up to `keep` of them.
#[derive(Debug)]
pub struct Pool {
    free: Mutex<Vec<Arc<Buffer>>>,
    bytes: usize,
    keep: usize,
}

impl Pool {
    /// A pool of buffers of `bytes` bytes, aligned to 64.
    #[must_use]
    pub fn new(bytes: usize, keep: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), bytes, keep })
    }

    /// Bytes of one buffer, and how many are kept.
    #[must_use]
    pub fn memory(&self) -> (usize, usize) {
        (self.bytes, self.keep)
    }

    /// A free buffer, or a new one when all are in use: nothing ever waits for a user to let go of a batch. Its content
    /// is unspecified.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::error::Error::Memory) when there is none.
    pub fn take(self: &Arc<Self>) -> Result<Slot> {
        let reused = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let buffer = match reused {
            Some(buffer) => buffer,
            None => Arc::new(Buffer::new(self.bytes)?),
        };
        Ok(Slot { buffer, pool: Arc::clone(self) })
    }
}

/// One batch's memory. Goes back to its pool when dropped, on whatever thread.
#[derive(Debug)]
pub struct Slot {
    /// Shared with nobody: the pool's list and a Slot have it by turns.
    buffer: Arc<Buffer>,
    pool: Arc<Pool>,
}

impl Slot {
    /// The buffer's length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pool.bytes
    }

    /// Whether the buffer has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pool.bytes == 0
    }

    /// The buffer's start, for an owner that lends the memory to foreign code.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.buffer.as_ptr()
    }

    /// Hands the buffer out in parts of `bytes` bytes, each to one writer.
    #[must_use]
    pub fn split(self, bytes: usize) -> Parts {
        Parts { slot: Arc::new(self), bytes, next: 0 }
    }

    /// Moves part `from` of the parts of `bytes` bytes to place `to`.
    pub fn move_part(&mut self, from: usize, to: usize, bytes: usize) {
        // SAFETY: every byte is initialised, and `&mut self` means that nobody else reaches them.
        let whole = unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.pool.bytes) };
        whole.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
    }
}

/// A buffer that is being written in parts.
#[derive(Debug)]
pub struct Parts {
    slot: Arc<Slot>,
    bytes: usize,
    next: usize,
}

impl Parts {
    /// The next part that no one has yet; None behind the last whole one.
    pub fn hand_out(&mut self) -> Option<Part> {
        let start = self.next.checked_mul(self.bytes)?;
        if start.checked_add(self.bytes)? > self.slot.len() {
            return None;
        }
        self.next += 1;
        Some(Part { slot: Arc::clone(&self.slot), start, bytes: self.bytes })
    }

    /// The whole buffer again, once every part was dropped; None before.
    #[must_use]
    pub fn finish(self) -> Option<Slot> {
        Arc::into_inner(self.slot)
    }
}

/// One part of a buffer, with the sole right to write it.
#[derive(Debug)]
pub struct Part {
    slot: Arc<Slot>,
    start: usize,
    bytes: usize,
}

impl Part {
    /// The part's bytes; their content is unspecified before they are written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range lies inside the buffer and `Parts` hands each one out once, so that no two parts overlap;
        // every byte was initialised when the buffer was made. The Slot itself is reachable only through `finish`,
        // which succeeds after this part is gone.
        unsafe { std::slice::from_raw_parts_mut(self.slot.as_ptr().add(self.start), self.bytes) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.pool.keep {
            free.push(Arc::clone(&self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let pool = Pool::new(100, 1);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        let address = first.as_ptr();
        assert_eq!(address.align_offset(64), 0);
        assert_eq!(first.len(), 100);
        drop(first);
        drop(second);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
        assert_eq!(pool.take().unwrap().as_ptr(), address);
    }

    #[test]
    fn threads_write_disjoint_parts() {
        let mut parts = Pool::new(64 * 100 + 3, 1).take().unwrap().split(64);
        std::thread::scope(|scope| {
            for number in 0..100u8 {
                let mut part = parts.hand_out().unwrap();
                scope.spawn(move || part.bytes_mut().fill(number));
            }
        });
        assert!(parts.hand_out().is_none());
        let mut slot = parts.finish().unwrap();
        slot.move_part(99, 3, 64);
        let mut parts = slot.split(64);
        let mut bytes = |number| {
            let mut part = (0..=number).filter_map(|_| parts.hand_out()).last().unwrap();
            part.bytes_mut().to_vec()
        };
        assert_eq!(bytes(3), [99; 64]);
        assert_eq!(bytes(0), [4; 64]);
    }

    #[test]
    fn a_buffer_is_whole_only_without_parts() {
        let pool = Pool::new(64, 1);
        let mut parts = pool.take().unwrap().split(64);
        let part = parts.hand_out();
        assert!(parts.finish().is_none());
        drop(part);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
    }
}

//! Batch memory: aligned, reused, written by many threads at once, returned when its last owner lets go.
#![allow(unsafe_code)]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::error::Result;
use crate::memory::{Buffer, Recycler};

/// Buffers of one size, that of the largest batch up to now. A buffer that comes back is kept for the next batch, up to
/// `keep` of them; smaller ones are let go, and so is a single one of more than twice that size.
#[derive(Debug)]
pub struct Pool {
    kept: Mutex<Kept>,
    keep: usize,
}

#[derive(Debug)]
struct Kept {
    /// Of each buffer.
    bytes: usize,
    /// Whether the last one was too large to count.
    outsized: bool,
    free: Vec<Buffer>,
}

impl Pool {
    /// A pool of buffers of `bytes` bytes, aligned to 64.
    #[must_use]
    pub fn new(bytes: usize, keep: usize) -> Arc<Self> {
        Arc::new(Self { kept: Mutex::new(Kept { bytes, outsized: false, free: Vec::new() }), keep })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of one buffer, and how many are kept.
    #[must_use]
    pub fn memory(&self) -> (usize, usize) {
        (self.lock().bytes, self.keep)
    }

    /// A free buffer of at least `bytes` bytes, or a new one when all are in use: nothing ever waits for a user to let
    /// go of a batch. Its content is unspecified. All buffers are as large from now on; but one that is more than twice
    /// as large as the usual is the only one, unless the next is too.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::error::Error::Memory) when there is none.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Slot> {
        let (size, only, free) = {
            let mut kept = self.lock();
            let outsized = bytes > kept.bytes.saturating_mul(2);
            let only = !std::mem::replace(&mut kept.outsized, outsized) && outsized;
            let size = kept.bytes.max(bytes);
            (size, only, if size == kept.bytes { kept.free.pop() } else { None })
        };
        if only {
            return Ok(Slot::of(Buffer::new(size)?, Home::System));
        }
        let buffer = match free {
            Some(buffer) => buffer,
            None => Buffer::new(size)?,
        };
        // Once it is sure that there is memory for such batches.
        let mut kept = self.lock();
        if size > kept.bytes {
            kept.bytes = size;
            kept.free.clear();
        }
        drop(kept);
        Ok(Slot::of(buffer, Home::Pool(Arc::clone(self))))
    }

    fn give_back(&self, buffer: Buffer) {
        // Does not wait: in a forked child the lock may be held by a thread that does not exist.
        let mut kept = match self.kept.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(kept)) => kept.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if buffer.len() == kept.bytes && kept.free.len() < self.keep {
            kept.free.push(buffer);
        }
    }
}

/// The memory of a batch, or of one image. Goes back to where it came from when dropped, on whatever thread.
#[derive(Debug)]
pub struct Slot {
    start: NonNull<u8>,
    bytes: usize,
    /// None only while it is dropped or taken apart.
    owner: Option<Owner>,
}

#[derive(Debug)]
enum Owner {
    Ours(Buffer, Home),
    Foreign(Box<dyn Any + Send + Sync>),
}

/// Where a buffer goes that is not needed any more.
#[derive(Debug)]
enum Home {
    Pool(Arc<Pool>),
    Recycler(Arc<Recycler>),
    System,
}

// SAFETY: a Slot owns its memory, directly or through an owner that may be sent itself.
unsafe impl Send for Slot {}
// SAFETY: through `&Slot` nobody but a `Part` reads or writes the memory, and no two parts overlap.
unsafe impl Sync for Slot {}

impl Slot {
    fn of(mut buffer: Buffer, home: Home) -> Self {
        let bytes = buffer.len();
        let start = NonNull::from(buffer.as_mut_slice()).cast();
        Self { start, bytes, owner: Some(Owner::Ours(buffer, home)) }
    }

    /// At least `bytes` bytes from a recycler, to which they return. Their content is unspecified.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::error::Error::Memory) when there are none.
    pub fn recycled(home: &Arc<Recycler>, bytes: usize) -> Result<Self> {
        Ok(Self::of(home.take(bytes)?, Home::Recycler(Arc::clone(home))))
    }

    /// Memory that somebody else owns; `owner` is kept until the slot is dropped.
    ///
    /// # Safety
    /// From `start` on there must be `bytes` initialised bytes that stay where they are as long as `owner` lives, and
    /// that nobody else reads or writes before the slot is dropped or handed over.
    #[must_use]
    pub unsafe fn foreign(
        start: NonNull<u8>,
        bytes: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self { start, bytes, owner: Some(Owner::Foreign(owner)) }
    }

    /// The owner of foreign memory.
    ///
    /// # Errors
    /// The slot itself, where the memory is our own.
    pub fn into_owner(mut self) -> std::result::Result<Box<dyn Any + Send + Sync>, Self> {
        match self.owner.take() {
            Some(Owner::Foreign(owner)) => Ok(owner),
            ours => {
                self.owner = ours;
                Err(self)
            }
        }
    }

    /// The memory's length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The memory's start, for an owner that lends it to foreign code.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: every byte is initialised, and `&mut self` means that nobody else reaches them.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.bytes) }
    }

    /// Hands the buffer out in parts of `bytes` bytes, each to one writer.
    #[must_use]
    pub fn split(self, bytes: usize) -> Parts {
        Parts { slot: Arc::new(self), bytes, next: 0 }
    }

    /// Moves part `from` of the parts of `bytes` bytes to place `to`.
    pub fn move_part(&mut self, from: usize, to: usize, bytes: usize) {
        self.bytes_mut().copy_within(from * bytes..(from + 1) * bytes, to * bytes);
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
        match self.owner.take() {
            Some(Owner::Ours(buffer, Home::Pool(pool))) => pool.give_back(buffer),
            Some(Owner::Ours(buffer, Home::Recycler(recycler))) => recycler.give_back(buffer),
            Some(Owner::Ours(_, Home::System) | Owner::Foreign(_)) | None => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A slot over a vector that somebody looks at when the slot is gone.
    pub(crate) fn lent(bytes: usize) -> (Arc<Vec<u8>>, Slot) {
        let mut vector = vec![0_u8; bytes];
        let start = NonNull::from(vector.as_mut_slice()).cast();
        let owner = Arc::new(vector);
        // SAFETY: the slot keeps the vector, and tests read it when the slot is gone.
        let slot = unsafe { Slot::foreign(start, bytes, Box::new(Arc::clone(&owner))) };
        (owner, slot)
    }

    #[test]
    fn buffers_are_aligned_and_reused() {
        let pool = Pool::new(100, 1);
        let (first, second) = (pool.take(10).unwrap(), pool.take(100).unwrap());
        let address = first.as_ptr();
        assert_eq!(address.align_offset(64), 0);
        assert_eq!(first.len(), 100);
        drop(first);
        drop(second);
        assert_eq!(pool.lock().free.len(), 1);
        assert_eq!(pool.take(100).unwrap().as_ptr(), address);
    }

    #[test]
    fn a_larger_batch_makes_all_larger() {
        let pool = Pool::new(100, 2);
        let small = pool.take(100).unwrap();
        drop(pool.take(100).unwrap());
        let large = pool.take(150).unwrap();
        assert_eq!((large.len(), pool.memory()), (150, (150, 2)));
        assert_eq!(pool.lock().free.len(), 0);
        drop(small);
        drop(large);
        assert_eq!(pool.lock().free.len(), 1);
        assert_eq!(pool.take(100).unwrap().len(), 150);
        // What cannot be had leaves the pool as it is, also the second time.
        assert!(pool.take(usize::MAX).is_err());
        assert!(pool.take(usize::MAX).is_err());
        assert_eq!((pool.memory(), pool.lock().free.len()), ((150, 2), 1));
    }

    #[test]
    fn one_outsized_batch_stays_the_only_one() {
        let pool = Pool::new(100, 2);
        drop(pool.take(100).unwrap());
        for _ in 0..2 {
            assert_eq!(pool.take(201).unwrap().len(), 201);
            assert_eq!((pool.memory(), pool.lock().free.len()), ((100, 2), 1));
            assert_eq!(pool.take(7).unwrap().len(), 100);
        }
        // Two are the rule from now on.
        drop(pool.take(300).unwrap());
        drop(pool.take(250).unwrap());
        assert_eq!((pool.memory(), pool.lock().free.len()), ((250, 2), 1));
    }

    #[test]
    fn a_buffer_that_comes_back_at_a_bad_moment_goes_to_the_system() {
        let pool = Pool::new(100, 2);
        let slot = pool.take(100).unwrap();
        let busy = pool.lock();
        drop(slot);
        assert_eq!(busy.free.len(), 0);
    }

    #[test]
    fn foreign_memory_lives_until_the_last_part_is_gone() {
        let (owner, slot) = lent(128);
        let mut parts = slot.split(64);
        let (mut first, second) = (parts.hand_out().unwrap(), parts.hand_out());
        drop(parts);
        assert_eq!(Arc::strong_count(&owner), 2);
        first.bytes_mut().fill(9);
        drop(second);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(first);
        assert_eq!(Arc::strong_count(&owner), 1);
        assert_eq!((owner[63], owner[64]), (9, 0));
    }

    #[test]
    fn only_foreign_memory_has_an_owner() {
        let slot = Pool::new(64, 1).take(64).unwrap();
        assert_eq!(slot.into_owner().unwrap_err().len(), 64);
        let (owner, slot) = lent(1);
        let given = slot.into_owner().unwrap();
        assert!(Arc::ptr_eq(given.downcast_ref().unwrap(), &owner));
    }

    #[test]
    fn recycled_memory_returns() {
        let home = Arc::new(Recycler::new(1000));
        let mut slot = Slot::recycled(&home, 100).unwrap();
        slot.bytes_mut().fill(1);
        let address = slot.as_ptr();
        drop(slot);
        assert_eq!(Slot::recycled(&home, 90).unwrap().as_ptr(), address);
    }

    #[test]
    fn threads_write_disjoint_parts() {
        let mut parts = Pool::new(64 * 100 + 3, 1).take(6400).unwrap().split(64);
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
        let mut parts = pool.take(64).unwrap().split(64);
        let part = parts.hand_out();
        assert!(parts.finish().is_none());
        drop(part);
        assert_eq!(pool.lock().free.len(), 1);
    }
}

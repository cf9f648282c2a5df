//! Scoped threads for one call: no global pool, which would dead-lock in a forked process.

use std::sync::{Mutex, PoisonError};
use std::thread;

/// Below this many bytes written by each thread, starting it costs more than it brings.
const BYTES_PER_THREAD: usize = 1 << 20;

/// How many of `threads` threads pay for themselves in writing `bytes`; at least 1.
#[must_use]
pub fn useful_threads(threads: usize, bytes: usize) -> usize {
    threads.min(bytes / BYTES_PER_THREAD).max(1)
}

/// Calls `work` on every item, on this thread and up to `threads - 1` more that end before this returns.
///
/// Which thread takes which item is open: `work` must give the same result on any. When the system refuses a thread,
/// the others do its part.
pub fn for_each<T: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) + Sync,
) {
    if threads <= 1 {
        items.for_each(work);
        return;
    }
    let queue = Mutex::new(items);
    let drain = || {
        loop {
            // The lock ends with this statement: work runs without it.
            let item = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = item else { break };
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            if thread::Builder::new().spawn_scoped(scope, drain).is_err() {
                break;
            }
        }
        drain();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_once() {
        for threads in [0, 1, 2, 5] {
            let mut values = vec![0_u8; 1000];
            for_each(threads, values.chunks_mut(7).enumerate(), |(i, chunk)| {
                for value in chunk {
                    *value += 1 + (i % 3) as u8;
                }
            });
            let right = |(i, &value): (usize, &u8)| value == 1 + (i / 7 % 3) as u8;
            assert!(values.iter().enumerate().all(right));
        }
    }

    #[test]
    fn small_work_stays_on_one_thread() {
        assert_eq!(useful_threads(8, 0), 1);
        assert_eq!(useful_threads(8, (2 << 20) - 1), 1);
        assert_eq!(useful_threads(8, 2 << 20), 2);
        assert_eq!(useful_threads(8, 1 << 30), 8);
        assert_eq!(useful_threads(0, 1 << 30), 1);
    }
}

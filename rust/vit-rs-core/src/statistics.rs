//! What an epoch cost: counts, the threads' time, the consumer's waiting, the queue between them.

use std::time::Instant;

/// What threads did. Times are nanoseconds, summed over threads. Each thread counts its own and adds it up when it
/// takes the loader's lock anyway, so counting shares no memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Samples made.
    pub images: u64,
    /// Encoded bytes read.
    pub bytes: u64,
    /// Time spent reading.
    pub read: u64,
    /// Time spent on headers, plans and decoding.
    pub decode: u64,
    /// Time spent on steps on pixels.
    pub augment: u64,
    /// Time spent writing into batches.
    pub emit: u64,
    /// Time spent on samples altogether, from their handing out to their end.
    pub busy: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.bytes += other.bytes;
        self.read += other.read;
        self.decode += other.decode;
        self.augment += other.augment;
        self.emit += other.emit;
        self.busy += other.busy;
    }
}

/// What a loader did in its current or last epoch.
///
/// `wall`, `wait`, `busy` and `ready_time` are of the time from the epoch's start to the consumer's last call that
/// ended, so that they fit each other whenever they are asked for. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The epoch's number.
    pub epoch: u64,
    /// What threads did up to now; batches made ahead are in it.
    pub tally: Tally,
    /// Batches handed over.
    pub batches: u64,
    /// Samples in them.
    pub delivered: u64,
    /// The time that all this took.
    pub wall: u64,
    /// How much of it the consumer waited.
    pub wait: u64,
    /// How much of it threads worked, summed over threads.
    pub busy: u64,
    /// Number of finished batches that waited for the consumer, integrated over it.
    pub ready_time: u64,
    /// Finished batches that wait for the consumer now.
    pub ready: usize,
    /// Skipped or substituted samples, in the epoch's order: what was wrong with each.
    pub failures: Vec<String>,
}

/// The record of the current epoch.
#[derive(Debug)]
pub(crate) struct Record {
    stats: Stats,
    start: Instant,
    /// Since when `ready` has its value, and its integral up to then.
    changed: Instant,
    ready_time: u64,
    ended: bool,
}

impl Default for Record {
    fn default() -> Self {
        Self::new(0, Instant::now())
    }
}

impl Record {
    pub(crate) fn new(epoch: u64, now: Instant) -> Self {
        let stats = Stats { epoch, ..Stats::default() };
        Self { stats, start: now, changed: now, ready_time: 0, ended: false }
    }

    /// Adds what a thread did.
    pub(crate) fn add(&mut self, tally: &Tally) {
        self.stats.tally.add(tally);
    }

    /// The number of batches that wait for the consumer is now `ready`.
    pub(crate) fn queue(&mut self, ready: usize, now: Instant) {
        self.ready_time += self.stats.ready as u64 * nanoseconds(self.changed, now);
        self.changed = now;
        self.stats.ready = ready;
    }

    /// The consumer's call that began at `asked` got a batch of `images` samples; None: an error in its place.
    pub(crate) fn hand_over(
        &mut self,
        images: Option<usize>,
        ready: usize,
        asked: Instant,
        now: Instant,
    ) {
        self.queue(ready, now);
        self.stats.batches += u64::from(images.is_some());
        self.stats.delivered += images.unwrap_or(0) as u64;
        self.stats.wait += nanoseconds(asked, now);
        self.close(now);
    }

    /// The consumer's call returned without a batch.
    pub(crate) fn wait(&mut self, asked: Instant, now: Instant) {
        self.queue(self.stats.ready, now);
        self.stats.wait += nanoseconds(asked, now);
        self.close(now);
    }

    /// The consumer asked behind the last batch; what comes later is not the epoch's time.
    pub(crate) fn end(&mut self, now: Instant) {
        if !self.ended {
            self.ended = true;
            self.queue(0, now);
            self.close(now);
        }
    }

    fn close(&mut self, now: Instant) {
        self.stats.wall = nanoseconds(self.start, now);
        self.stats.busy = self.stats.tally.busy;
        self.stats.ready_time = self.ready_time;
    }

    /// Adds what was wrong with samples.
    pub(crate) fn fail(&mut self, texts: impl Iterator<Item = String>) {
        self.stats.failures.extend(texts);
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats.clone()
    }
}

/// Nanoseconds between two times; they fit 64 bits for 584 years.
pub(crate) fn nanoseconds(start: Instant, end: Instant) -> u64 {
    end.saturating_duration_since(start).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_epoch_adds_up() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut record = Record::new(3, start);
        let tally =
            Tally { images: 4, bytes: 100, read: 1, decode: 2, augment: 3, emit: 4, busy: 11 };
        record.add(&tally);
        record.queue(1, at(10));
        record.queue(2, at(20));
        // Asked at 30, where two batches wait: 10 ms of one, 10 ms of two.
        record.hand_over(Some(4), 1, at(30), at(30));
        record.add(&tally);
        // Half a call passes without a batch, then one comes.
        record.wait(at(40), at(50));
        record.hand_over(Some(3), 0, at(50), at(60));
        record.fail(["a: bad".to_owned()].into_iter());
        record.end(at(100));
        record.end(at(500));
        let stats = record.stats();
        let ms = 1_000_000;
        assert_eq!((stats.epoch, stats.batches, stats.delivered), (3, 2, 7));
        assert_eq!((stats.wall, stats.wait), (100 * ms, 20 * ms));
        assert_eq!(stats.ready_time, (10 + 2 * 10 + 30) * ms);
        assert_eq!((stats.ready, stats.failures.len()), (0, 1));
        assert_eq!((stats.busy, stats.tally.busy, stats.tally.bytes), (22, 22, 200));
    }

    #[test]
    fn an_error_takes_time_and_is_no_batch() {
        let start = Instant::now();
        let mut record = Record::new(0, start);
        record.hand_over(None, 0, start, start + Duration::from_millis(5));
        let stats = record.stats();
        assert_eq!((stats.batches, stats.delivered), (0, 0));
        assert_eq!((stats.wall, stats.wait), (5_000_000, 5_000_000));
    }

    proptest! {
        #[test]
        fn shares_stay_below_one(events in prop::collection::vec((0_u8..4, 0_u64..50, 0_usize..4), 1..40)) {
            let start = Instant::now();
            let (mut record, mut now) = (Record::new(0, start), start);
            for (event, pause, ready) in events {
                let asked = now;
                now += Duration::from_micros(pause);
                match event {
                    0 => record.queue(ready, now),
                    1 => record.hand_over(Some(1), ready, asked, now),
                    2 => record.wait(asked, now),
                    _ => record.end(now),
                }
                let stats = record.stats();
                prop_assert!(stats.wait <= stats.wall);
                prop_assert!(stats.ready_time <= 3 * stats.wall);
                prop_assert!(stats.wall <= nanoseconds(start, now));
            }
        }
    }

    #[test]
    fn what_is_done_behind_the_last_call_is_not_in_the_window() {
        let start = Instant::now();
        let mut record = Record::new(0, start);
        record.add(&Tally { images: 1, busy: 5, ..Tally::default() });
        record.hand_over(Some(1), 0, start, start + Duration::from_millis(1));
        record.add(&Tally { images: 1, busy: 5, ..Tally::default() });
        record.queue(1, start + Duration::from_millis(1));
        record.queue(1, start + Duration::from_millis(9));
        let stats = record.stats();
        assert_eq!((stats.tally.images, stats.tally.busy, stats.busy), (2, 10, 5));
        assert_eq!((stats.wall, stats.ready_time, stats.ready), (1_000_000, 0, 1));
    }
}

//! An epoch: the batches that were pushed, those under way, and what becomes of their failures.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Batch, Images};
use crate::error::{Error, Result};
use crate::memory::Recycler;
use crate::order::Order;
use crate::pipeline::{OnError, Pipeline, Place, Single, View};
use crate::rng::EpochKey;
use crate::slot::{Parts, Pool, Slot};

/// Where batches get their memory.
pub(super) enum Memory {
    /// A pool for each view.
    Fixed(Vec<Arc<Pool>>),
    /// For single images, each of its own size.
    Ragged(Arc<Recycler>),
}

/// A queue of batches: pushed, begun, filled, handed over.
pub(super) struct Epoch {
    pub(super) key: EpochKey,
    /// Nothing is pushed any more.
    pub(super) ended: bool,
    /// Number of the first batch in `filling`, the next for the consumer.
    first: usize,
    /// Batches that were begun: they have their memory, and the source knows of them.
    filling: VecDeque<Filling>,
    /// Number of the first batch with samples that nobody works on; or one before it.
    working: usize,
    pushed: VecDeque<Pushed>,
}

/// Batches of which nobody has heard yet.
struct Pushed {
    order: Order,
    next: usize,
    memory: Option<Vec<Slot>>,
}

/// One sample to do.
pub(super) struct Task {
    /// Its place in the batch.
    pub(super) place: usize,
    pub(super) position: u64,
    pub(super) ticket: u64,
    pub(super) draw: u64,
    /// One for each view.
    pub(super) places: Vec<Place>,
}

/// What came of a sample.
pub(super) struct Done {
    pub(super) place: usize,
    pub(super) label: Option<i64>,
    /// The position of the one that stands in for it.
    pub(super) substitute: Option<u64>,
    /// Its views, where they have memory of their own.
    pub(super) singles: Vec<Single>,
}

/// What became of a sample that could not be had.
pub(super) struct Failure {
    pub(super) place: usize,
    pub(super) error: Error,
    /// Whether another one stands there.
    pub(super) substituted: bool,
}

impl Failure {
    fn is_raised(&self, on_error: OnError) -> bool {
        on_error == OnError::Raise || !self.error.is_bad_sample()
    }
}

impl Epoch {
    pub(super) fn new(key: EpochKey) -> Self {
        let (filling, pushed) = (VecDeque::new(), VecDeque::new());
        Self { key, ended: false, first: 0, filling, working: 0, pushed }
    }

    pub(super) fn push(&mut self, order: Order, memory: Option<Vec<Slot>>) {
        if order.batches() > 0 {
            self.pushed.push_back(Pushed { order, next: 0, memory });
        }
    }

    /// Whether no batch waits for the consumer or is to be made.
    pub(super) fn is_idle(&self) -> bool {
        self.filling.is_empty() && self.pushed.is_empty()
    }

    /// Whether the consumer would have to wait for its next batch.
    pub(super) fn is_unready(&self) -> bool {
        self.filling.front().is_none_or(|filling| filling.unfinished > 0)
    }

    /// Number of finished batches that wait for the consumer.
    pub(super) fn ready(&self) -> usize {
        self.filling.iter().take_while(|filling| filling.unfinished == 0).count()
    }

    /// The next batch for the consumer, if it is finished.
    pub(super) fn take(&mut self) -> Option<Filling> {
        if self.is_unready() {
            return None;
        }
        self.first += 1;
        self.filling.pop_front()
    }

    /// Gets memory for what comes next and tells the source of it: as much as makes `prefetch` batches. A batch that
    /// there is no memory for is over, as one with a bad sample is. Returns whether any is over already.
    pub(super) fn begin(&mut self, pipeline: &Pipeline, memory: &Memory, prefetch: usize) -> bool {
        let mut over = false;
        while self.filling.len() < prefetch {
            let Some(pushed) = self.pushed.front_mut() else { break };
            let samples = pushed.order.batch(pushed.next);
            pushed.next += 1;
            let positions = pushed.order.positions[samples.clone()].to_vec();
            let draws = pushed.order.draws.as_ref().map(|draws| draws[samples].to_vec());
            let given = pushed.memory.take();
            if pushed.next == pushed.order.batches() {
                self.pushed.pop_front();
            }
            let filling = match Room::new(positions.len(), given, pipeline, memory) {
                Ok(room) => Filling::new(room, positions, draws, pipeline),
                Err(error) => Filling::failed(positions, error),
            };
            over |= filling.unfinished == 0;
            self.filling.push_back(filling);
        }
        over
    }

    /// Up to `most` samples of one batch, and its number; None where there is no work.
    ///
    /// # Errors
    /// A batch is larger than its memory: a bug.
    pub(super) fn hand_out(
        &mut self,
        views: usize,
        most: usize,
    ) -> std::result::Result<Option<(usize, Vec<Task>)>, &'static str> {
        self.working = self.working.max(self.first);
        while let Some(filling) = self.filling.get_mut(self.working - self.first) {
            let count = most.min(filling.positions.len() - filling.handed_out);
            if count > 0 {
                let tasks: Option<Vec<_>> = (0..count).map(|_| filling.hand_out(views)).collect();
                let tasks = tasks.ok_or("a batch is larger than its memory")?;
                return Ok(Some((self.working, tasks)));
            }
            self.working += 1;
        }
        Ok(None)
    }

    /// Adds what came of `count` samples of a batch. Returns whether it is finished now, and the consumer's next.
    pub(super) fn settle(
        &mut self,
        batch: usize,
        count: usize,
        done: Vec<Done>,
        failures: Vec<Failure>,
    ) -> (bool, bool) {
        let ahead = batch.wrapping_sub(self.first);
        let Some(filling) = self.filling.get_mut(ahead) else { return (false, false) };
        for Done { place, label, substitute, singles } in done {
            filling.labels[place] = label;
            filling.positions[place] = substitute.unwrap_or(filling.positions[place]);
            if let Room::Ragged(_, images) = &mut filling.room {
                images[place] = singles;
            }
        }
        filling.failures.extend(failures);
        filling.unfinished -= count;
        (filling.unfinished == 0, ahead == 0)
    }
}

/// A batch that threads work on.
pub(super) struct Filling {
    room: Room,
    handed_out: usize,
    unfinished: usize,
    positions: Vec<u64>,
    draws: Option<Vec<u64>>,
    /// What the source calls each sample.
    tickets: Vec<u64>,
    labels: Vec<Option<i64>>,
    failures: Vec<Failure>,
}

enum Room {
    /// The memory of each view.
    Fixed(Vec<Parts>),
    /// The views of each sample, once it is done.
    Ragged(Arc<Recycler>, Vec<Vec<Single>>),
}

impl Room {
    fn new(
        samples: usize,
        given: Option<Vec<Slot>>,
        pipeline: &Pipeline,
        memory: &Memory,
    ) -> Result<Self> {
        Ok(match memory {
            Memory::Ragged(recycler) => {
                let images = (0..samples).map(|_| Vec::new()).collect();
                Self::Ragged(Arc::clone(recycler), images)
            }
            Memory::Fixed(pools) => {
                let bytes = pipeline.views.iter().map(View::bytes);
                let own = pools.iter().zip(bytes.clone());
                let own = own.map(|(pool, bytes)| pool.take(samples * bytes));
                let slots = given.map_or_else(|| own.collect::<Result<_>>(), Ok)?;
                Self::Fixed(slots.into_iter().zip(bytes).map(|(s, bytes)| s.split(bytes)).collect())
            }
        })
    }
}

impl Filling {
    fn new(room: Room, positions: Vec<u64>, draws: Option<Vec<u64>>, pipeline: &Pipeline) -> Self {
        let samples = positions.len();
        Self {
            room,
            handed_out: 0,
            unfinished: samples,
            labels: vec![None; samples],
            tickets: positions.iter().map(|&position| pipeline.announce(position)).collect(),
            positions,
            draws,
            failures: Vec::new(),
        }
    }

    /// A batch of which nothing is to be done, and nothing was announced.
    fn failed(positions: Vec<u64>, error: Error) -> Self {
        Self {
            room: Room::Fixed(Vec::new()),
            handed_out: positions.len(),
            unfinished: 0,
            labels: Vec::new(),
            tickets: Vec::new(),
            positions,
            draws: None,
            failures: vec![Failure { place: 0, error, substituted: false }],
        }
    }

    /// The next sample, with its place in each view.
    fn hand_out(&mut self, views: usize) -> Option<Task> {
        let place = self.handed_out;
        let places = match &mut self.room {
            Room::Fixed(views) => {
                views.iter_mut().map(|parts| parts.hand_out().map(Place::Part)).collect()
            }
            Room::Ragged(home, _) => {
                Some((0..views).map(|_| Place::Own(Arc::clone(home), None)).collect())
            }
        };
        let position = self.positions[place];
        self.handed_out += 1;
        Some(Task {
            place,
            position,
            ticket: self.tickets[place],
            draw: self.draws.as_ref().map_or(position, |draws| draws[place]),
            places: places?,
        })
    }

    /// Number of samples that it hands over; None where it is an error.
    pub(super) fn kept(&self, on_error: OnError) -> Option<usize> {
        let raised = self.failures.iter().any(|failure| failure.is_raised(on_error));
        let lost = self.failures.iter().filter(|failure| !failure.substituted).count();
        (!raised).then(|| self.positions.len() - lost)
    }

    /// Closes the gaps of a batch, or reports them. Returns what was wrong with samples, too.
    pub(super) fn finish(self, pipeline: &Pipeline) -> Result<(Batch, Vec<String>)> {
        let Self { room, mut positions, mut labels, mut failures, .. } = self;
        failures.sort_by_key(|failure| failure.place);
        let mut images = match room {
            Room::Fixed(parts) => {
                let slots: Option<_> = parts.into_iter().map(Parts::finish).collect();
                let held = || Error::Panic("a part of a batch is still held".to_owned());
                Images::Fixed(slots.ok_or_else(held)?)
            }
            Room::Ragged(_, images) => Images::Ragged(images),
        };
        let raised = |failure: &Failure| failure.is_raised(pipeline.on_error);
        if let Some(at) = failures.iter().position(raised) {
            return Err(failures.swap_remove(at).error);
        }
        let lost = failures.iter().filter(|failure| !failure.substituted);
        let mut lost = lost.map(|failure| failure.place).peekable();
        if lost.peek().is_some() {
            let mut kept = 0;
            for place in 0..positions.len() {
                if lost.next_if_eq(&place).is_some() {
                    continue;
                }
                match &mut images {
                    Images::Fixed(slots) => {
                        for (slot, view) in slots.iter_mut().zip(&pipeline.views) {
                            slot.move_part(place, kept, view.bytes());
                        }
                    }
                    Images::Ragged(images) => images.swap(place, kept),
                }
                positions[kept] = positions[place];
                labels[kept] = labels[place];
                kept += 1;
            }
            positions.truncate(kept);
            labels.truncate(kept);
            if let Images::Ragged(images) = &mut images {
                images.truncate(kept);
            }
        }
        let texts = failures.iter().map(|failure| failure.error.to_string()).collect();
        Ok((Batch { images, positions, labels }, texts))
    }
}

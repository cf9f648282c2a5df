//! Batches in order, from a pool of threads: samples are the unit of work, slots the back-pressure.
//!
//! Threads take (batch, position) tasks from one queue and write each sample into its part of the batch's slot. What is
//! in a batch depends on the pipeline and the order asked for, never on which thread did what when.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::pipeline::{Counters, OnError, Pipeline, Tools};
use crate::rng::EpochKey;
use crate::slot::{Part, Parts, Pool, Slot};

/// How many stand-ins are tried before a sample counts as lost.
const SUBSTITUTES: usize = 16;

/// The samples of one epoch, in order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Epoch number, a part of every key.
    pub epoch: u64,
    /// Index of each sample in the source.
    pub indices: Vec<u64>,
    /// Draw number of each sample, where it is not its index.
    pub draws: Option<Vec<u64>>,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
}

impl Order {
    /// Number of batches of at most `batch_size` samples.
    #[must_use]
    pub fn batches(&self, batch_size: usize) -> usize {
        if self.drop_last {
            self.indices.len() / batch_size
        } else {
            self.indices.len().div_ceil(batch_size)
        }
    }
}

/// A finished batch.
#[derive(Debug)]
pub struct Batch {
    /// Its memory; samples lie one after another from the start.
    pub slot: Slot,
    /// Index in the source of each sample that is in it.
    pub indices: Vec<u64>,
}

/// What waiting for a batch came to.
#[derive(Debug)]
pub enum Next {
    /// The next batch in order.
    Batch(Batch),
    /// It is not ready yet.
    Pending,
    /// The epoch is over.
    End,
}

/// What a loader did since it was made. Times are nanoseconds, summed over its threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Samples written into batches.
    pub images: u64,
    /// Encoded bytes read.
    pub bytes: u64,
    /// Time spent reading files.
    pub read: u64,
    /// Time spent on headers, plans and decoding.
    pub decode: u64,
    /// Time spent on steps on pixels.
    pub augment: u64,
    /// Time spent writing into batches.
    pub emit: u64,
    /// Time that the consumer waited.
    pub wait: u64,
    /// Finished batches that wait for the consumer now.
    pub ready: usize,
    /// Skipped or substituted samples: what was wrong with each.
    pub failures: Vec<String>,
}

struct Filling {
    parts: Parts,
    handed_out: usize,
    unfinished: usize,
    indices: Vec<u64>,
    failures: Vec<(usize, Error)>,
}

#[derive(Default)]
struct State {
    /// Grows with each start: work for an abandoned epoch is recognised by it.
    generation: u64,
    order: Option<Arc<Order>>,
    /// First batch in `filling`, the next for the consumer.
    first: usize,
    filling: VecDeque<Filling>,
    failures: Vec<String>,
    closing: bool,
}

impl State {
    /// Forgets the epoch under way; what threads still finish of it is not missed.
    fn abandon(&mut self) {
        self.generation += 1;
        self.order = None;
        self.filling.clear();
    }
}

struct Shared {
    pipeline: Pipeline,
    batch_size: usize,
    prefetch: usize,
    pool: Arc<Pool>,
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
    counters: Counters,
}

/// One sample to do.
struct Task {
    position: usize,
    index: u64,
    draw: u64,
    part: Part,
}

/// Consecutive samples of one batch.
struct Job {
    generation: u64,
    epoch: u64,
    batch: usize,
    tasks: Vec<Task>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A worker's panic is caught outside the lock, and no update of the state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next samples to do; None when the loader closes.
    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            if let Some(job) = self.next_job(&mut state) {
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn next_job(&self, state: &mut State) -> Option<Job> {
        let order = Arc::clone(state.order.as_ref()?);
        if state.filling.back().is_none_or(|last| last.handed_out == last.indices.len()) {
            let batch = state.first + state.filling.len();
            if batch >= order.batches(self.batch_size) || state.filling.len() >= self.prefetch {
                return None;
            }
            let start = batch * self.batch_size;
            let len = (order.indices.len() - start).min(self.batch_size);
            state.filling.push_back(Filling {
                parts: self.pool.take().split(self.pipeline.emit.bytes()),
                handed_out: 0,
                unfinished: len,
                indices: order.indices[start..start + len].to_vec(),
                failures: Vec::new(),
            });
        }
        let batch = state.first + state.filling.len() - 1;
        let filling = state.filling.back_mut()?;
        let mut tasks = Vec::new();
        while tasks.len() < self.pipeline.source.samples_at_a_time()
            && filling.handed_out < filling.indices.len()
        {
            let position = filling.handed_out;
            let place = batch * self.batch_size + position;
            let index = order.indices[place];
            let draw = order.draws.as_ref().map_or(index, |draws| draws[place]);
            tasks.push(Task { position, index, draw, part: filling.parts.hand_out()? });
            filling.handed_out += 1;
        }
        Some(Job { generation: state.generation, epoch: order.epoch, batch, tasks })
    }

    fn run(&self) {
        let mut tools = Tools::default();
        while let Some(job) = self.take() {
            let key = EpochKey::new(self.pipeline.seed, job.epoch);
            let count = job.tasks.len();
            let mut failures = Vec::new();
            let mut substitutes = Vec::new();
            for mut task in job.tasks {
                let outcome =
                    catch_unwind(AssertUnwindSafe(|| self.perform(&mut tools, key, &mut task)));
                match outcome {
                    Ok(Ok(Some((index, error)))) => substitutes.push((task.position, index, error)),
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => failures.push((task.position, error)),
                    Err(panic) => {
                        tools = Tools::default();
                        failures.push((task.position, Error::Panic(panic_text(&*panic))));
                    }
                }
            }
            let mut state = self.lock();
            if state.generation != job.generation {
                continue;
            }
            for (_, _, error) in &substitutes {
                state.failures.push(error.to_string());
            }
            let place = job.batch - state.first;
            let filling = &mut state.filling[place];
            for (position, index, _) in substitutes {
                filling.indices[position] = index;
            }
            filling.failures.extend(failures);
            filling.unfinished -= count;
            if place == 0 && filling.unfinished == 0 {
                self.done.notify_all();
            }
        }
    }

    /// Does one sample, or a stand-in for it: then returns the stand-in's index and what was wrong with the sample.
    fn perform(
        &self,
        tools: &mut Tools,
        key: EpochKey,
        task: &mut Task,
    ) -> Result<Option<(u64, Error)>> {
        let Task { index, draw, part, .. } = task;
        let place = part.bytes_mut();
        let mut sample =
            |index| self.pipeline.sample(tools, key, index, *draw, place, &self.counters);
        let Err(error) = sample(*index) else { return Ok(None) };
        if self.pipeline.on_error == OnError::Substitute && is_bad_sample(&error) {
            let mut stream = key.substitutes(*draw);
            for _ in 0..SUBSTITUTES {
                let other = stream.below(self.pipeline.source.len() as u64);
                if sample(other).is_ok() {
                    return Ok(Some((other, error)));
                }
            }
        }
        Err(error)
    }
}

/// Whether the sample is to blame, not the call.
fn is_bad_sample(error: &Error) -> bool {
    matches!(error, Error::Decode { .. } | Error::Io { .. })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}

/// A pool of threads that makes batches. Threads start with the first batch and live until the loader is closed.
pub struct Loader {
    shared: Arc<Shared>,
    threads: usize,
    workers: Mutex<Workers>,
}

#[derive(Default)]
struct Workers {
    process: u32,
    handles: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Loader {
    /// A loader of batches of at most `batch_size` samples that keeps `prefetch` batches ahead of its consumer.
    ///
    /// # Errors
    /// [`Error::Argument`] for a zero or a batch that memory cannot hold.
    pub fn new(
        pipeline: Pipeline,
        batch_size: usize,
        threads: usize,
        prefetch: usize,
    ) -> Result<Self> {
        if batch_size == 0 || threads == 0 || prefetch == 0 {
            return Err(Error::argument(format!(
                "batch_size, num_threads and prefetch must be at least 1, got {batch_size}, {threads} and {prefetch}"
            )));
        }
        let bytes =
            pipeline.emit.bytes().checked_mul(batch_size).filter(|&b| isize::try_from(b).is_ok());
        let bytes = bytes.ok_or_else(|| {
            Error::argument(format!(
                "{batch_size} images of {} do not fit memory",
                pipeline.emit.size()
            ))
        })?;
        let shared = Arc::new(Shared {
            pool: Pool::new(bytes, prefetch + 2),
            pipeline,
            batch_size,
            prefetch,
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            counters: Counters::default(),
        });
        Ok(Self { shared, threads, workers: Mutex::default() })
    }

    /// The pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.shared.pipeline
    }

    /// Starts an epoch at batch `first`; one that is under way is abandoned.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child, after [`Loader::close`], or when indices and draws differ in number;
    /// [`Error::Panic`] when threads cannot be started.
    pub fn start(&self, order: Order, first: usize) -> Result<()> {
        if order.draws.as_ref().is_some_and(|draws| draws.len() != order.indices.len()) {
            return Err(Error::argument("as many draws as indices are needed"));
        }
        self.spawn()?;
        let mut state = self.shared.lock();
        if state.closing {
            return Err(Error::argument("this loader is closed"));
        }
        state.abandon();
        state.first = first.min(order.batches(self.shared.batch_size));
        state.order = Some(Arc::new(order));
        drop(state);
        self.shared.work.notify_all();
        Ok(())
    }

    fn spawn(&self) -> Result<()> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if !workers.handles.is_empty() {
            return same_process(workers.process, process);
        }
        workers.process = process;
        for number in 0..self.threads {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name(format!("vit-rs-loader-{number}"));
            let handle = thread.spawn(move || shared.run()).map_err(|error| {
                Error::Panic(format!("cannot start loader thread {number}: {error}"))
            })?;
            workers.handles.push(handle);
        }
        Ok(())
    }

    /// Waits for the next batch, at most for `patience`.
    ///
    /// # Errors
    /// The first error in the batch, by position; [`Error::Argument`] in a forked child.
    pub fn next(&self, patience: Duration) -> Result<Next> {
        {
            let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            if !workers.handles.is_empty() {
                same_process(workers.process, std::process::id())?;
            }
        }
        let start = Instant::now();
        let filling = {
            let mut state = self.shared.lock();
            let Some(order) = state.order.clone() else { return Ok(Next::End) };
            if state.first >= order.batches(self.shared.batch_size) || state.closing {
                return Ok(Next::End);
            }
            if state.filling.front().is_none_or(|filling| filling.unfinished > 0) {
                let unready = |state: &mut State| {
                    state.filling.front().is_none_or(|filling| filling.unfinished > 0)
                        && !state.closing
                };
                let wait = self.shared.done.wait_timeout_while(state, patience, unready);
                state = wait.unwrap_or_else(PoisonError::into_inner).0;
                let waited = start.elapsed().as_nanos() as u64;
                self.shared.counters.wait.fetch_add(waited, Ordering::Relaxed);
            }
            match state.filling.pop_front() {
                Some(filling) if filling.unfinished == 0 => {
                    state.first += 1;
                    filling
                }
                Some(filling) => {
                    state.filling.push_front(filling);
                    return Ok(Next::Pending);
                }
                None => return Ok(Next::Pending),
            }
        };
        self.shared.work.notify_all();
        self.finish(filling).map(Next::Batch)
    }

    /// Closes the gaps of a batch, or reports them.
    fn finish(&self, filling: Filling) -> Result<Batch> {
        let Filling { parts, mut indices, mut failures, .. } = filling;
        failures.sort_by_key(|(position, _)| *position);
        let slot = parts.finish();
        let mut slot =
            slot.ok_or_else(|| Error::Panic("a part of a batch is still held".to_owned()))?;
        let skip = self.shared.pipeline.on_error != OnError::Raise;
        if let Some(at) = failures.iter().position(|(_, error)| !skip || !is_bad_sample(error)) {
            return Err(failures.swap_remove(at).1);
        }
        if !failures.is_empty() {
            let bytes = self.shared.pipeline.emit.bytes();
            let mut lost = failures.iter().map(|(position, _)| *position).peekable();
            let mut kept = 0;
            for position in 0..indices.len() {
                if lost.next_if_eq(&position).is_some() {
                    continue;
                }
                slot.move_part(position, kept, bytes);
                indices[kept] = indices[position];
                kept += 1;
            }
            indices.truncate(kept);
            let texts = failures.iter().map(|(_, error)| error.to_string());
            self.shared.lock().failures.extend(texts);
        }
        Ok(Batch { slot, indices })
    }

    /// Counts and times since the loader was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.shared.lock();
        Stats {
            images: read(&counters.images),
            bytes: read(&counters.bytes),
            read: read(&counters.read),
            decode: read(&counters.decode),
            augment: read(&counters.augment),
            emit: read(&counters.emit),
            wait: read(&counters.wait),
            ready: state.filling.iter().take_while(|filling| filling.unfinished == 0).count(),
            failures: state.failures.clone(),
        }
    }

    /// Ends the threads and waits for them: at most for the samples in their hands. Does nothing in a forked child.
    pub fn close(&self) {
        let handles = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            if !workers.handles.is_empty() && workers.process != std::process::id() {
                return;
            }
            std::mem::take(&mut workers.handles)
        };
        self.signal();
        for handle in handles {
            // A worker catches its samples' panics; there is nothing else to learn from it.
            drop(handle.join());
        }
    }

    fn signal(&self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.abandon();
        drop(state);
        self.shared.work.notify_all();
        self.shared.done.notify_all();
    }
}

impl Drop for Loader {
    /// Tells the threads to end; does not wait for them.
    fn drop(&mut self) {
        let workers = self.workers.get_mut().unwrap_or_else(PoisonError::into_inner);
        // In a forked child the lock may be held for ever by a thread that does not exist there.
        if !workers.handles.is_empty() && workers.process == std::process::id() {
            self.signal();
        }
    }
}

fn same_process(made_in: u32, now: u32) -> Result<()> {
    if made_in == now {
        return Ok(());
    }
    Err(Error::argument(format!(
        "this loader's threads live in process {made_in}; a forked child ({now}) must make its own loader"
    )))
}

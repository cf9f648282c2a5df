//! Batches in order, from a pool of threads: samples are the unit of work, slots the back-pressure.
//!
//! Threads take (batch, position) tasks from one queue and write each sample into its part of the batch's slot. What is
//! in a batch depends on the pipeline and the order asked for, never on which thread did what when.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
pub use crate::order::Order;
use crate::pipeline::{OnError, Pipeline, Tools};
use crate::rng::EpochKey;
use crate::slot::{Part, Parts, Pool, Slot};
use crate::statistics::{Record, Stats, Tally, nanoseconds};

/// More batches ahead of its consumer, and more threads, than any machine can use.
const MOST_PREFETCHED: usize = 1 << 16;
const MOST_THREADS: usize = 1 << 12;

/// How many stand-ins are tried before a sample counts as lost.
const SUBSTITUTES: usize = 16;

/// A finished batch.
#[derive(Debug)]
pub struct Batch {
    /// The memory of each view; samples lie one after another from the start.
    pub slots: Vec<Slot>,
    /// Position of each sample that is in it.
    pub positions: Vec<u64>,
    /// Label of each, where the source gives labels with its samples.
    pub labels: Vec<Option<i64>>,
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

struct Filling {
    /// One for each view.
    parts: Vec<Parts>,
    handed_out: usize,
    unfinished: usize,
    positions: Vec<u64>,
    /// What the source calls each of them.
    tickets: Vec<u64>,
    labels: Vec<Option<i64>>,
    failures: Vec<Failure>,
}

impl Filling {
    /// Number of samples that it hands over; None where it is an error.
    fn kept(&self, on_error: OnError) -> Option<usize> {
        let raised = self.failures.iter().any(|failure| failure.is_raised(on_error));
        let lost = self.failures.iter().filter(|failure| !failure.substituted).count();
        (!raised).then(|| self.positions.len() - lost)
    }
}

/// What became of a sample that could not be had.
struct Failure {
    /// Its place in the batch.
    place: usize,
    error: Error,
    /// Whether another one stands there.
    substituted: bool,
}

impl Failure {
    fn is_raised(&self, on_error: OnError) -> bool {
        on_error == OnError::Raise || !self.error.is_bad_sample()
    }
}

#[derive(Default)]
struct State {
    /// Grows with each start: work for an abandoned epoch is recognised by it.
    generation: u64,
    order: Option<Arc<Order>>,
    /// First batch in `filling`, the next for the consumer.
    first: usize,
    filling: VecDeque<Filling>,
    /// Tickets of the batches that follow, announced before anyone works on them.
    announced: VecDeque<Vec<u64>>,
    record: Record,
    closing: bool,
    /// Why no batch can come any more.
    fatal: Option<Error>,
}

impl State {
    /// Forgets the epoch under way; what threads still finish of it is not missed.
    fn abandon(&mut self, pipeline: &Pipeline) {
        self.generation += 1;
        self.order = None;
        self.filling.clear();
        self.announced.clear();
        pipeline.source.abandon();
        self.record.queue(0, Instant::now());
    }

    /// Number of finished batches that wait for the consumer.
    fn ready(&self) -> usize {
        self.filling.iter().take_while(|filling| filling.unfinished == 0).count()
    }
}

struct Shared {
    pipeline: Pipeline,
    batch_size: usize,
    prefetch: usize,
    /// One for each view.
    pools: Vec<Arc<Pool>>,
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

/// One sample to do.
struct Task {
    place: usize,
    position: u64,
    ticket: u64,
    draw: u64,
    /// One for each view.
    parts: Vec<Part>,
}

/// What came of a sample.
#[derive(Default)]
struct Done {
    place: usize,
    label: Option<i64>,
    /// The position of the one that stands in for it.
    substitute: Option<u64>,
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
            match self.next_job(&mut state) {
                Ok(Some(job)) => return Some(job),
                Ok(None) => {}
                Err(error) => self.fail(&mut state, error),
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn next_job(&self, state: &mut State) -> Result<Option<Job>> {
        let Some(order) = state.order.clone() else { return Ok(None) };
        let begun = state.first + state.filling.len();
        let wanted = order.batches(self.batch_size).min(state.first + self.prefetch);
        for batch in begun + state.announced.len()..wanted {
            let positions = order.batch(batch, self.batch_size).iter();
            let tickets = positions.map(|&position| self.pipeline.announce(position)).collect();
            state.announced.push_back(tickets);
        }
        if state.filling.back().is_none_or(|last| last.handed_out == last.positions.len()) {
            let Some(tickets) = state.announced.pop_front() else { return Ok(None) };
            let positions = order.batch(begun, self.batch_size).to_vec();
            state.filling.push_back(Filling {
                parts: self.new_parts()?,
                handed_out: 0,
                unfinished: positions.len(),
                labels: vec![None; positions.len()],
                positions,
                tickets,
                failures: Vec::new(),
            });
        }
        let batch = state.first + state.filling.len() - 1;
        let Some(filling) = state.filling.back_mut() else { return Ok(None) };
        let mut tasks = Vec::new();
        while tasks.len() < self.pipeline.source.samples_at_a_time()
            && filling.handed_out < filling.positions.len()
        {
            let place = filling.handed_out;
            let number = batch * self.batch_size + place;
            let position = order.positions[number];
            let ticket = filling.tickets[place];
            let draw = order.draws.as_ref().map_or(position, |draws| draws[number]);
            let parts: Option<_> = filling.parts.iter_mut().map(Parts::hand_out).collect();
            let parts = parts
                .ok_or_else(|| Error::Panic("a batch is larger than its memory".to_owned()))?;
            tasks.push(Task { place, position, ticket, draw, parts });
            filling.handed_out += 1;
        }
        Ok(Some(Job { generation: state.generation, epoch: order.epoch, batch, tasks }))
    }

    fn new_parts(&self) -> Result<Vec<Parts>> {
        let views = self.pipeline.views.iter().zip(&self.pools);
        views.map(|(view, pool)| Ok(pool.take()?.split(view.emit.bytes()))).collect()
    }

    /// Ends the epoch under way: the consumer is told why, and would wait for ever otherwise.
    fn fail(&self, state: &mut State, error: Error) {
        state.abandon(&self.pipeline);
        state.fatal = Some(error);
        self.done.notify_all();
    }

    /// A thread's life: until the loader closes.
    fn run(&self) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work_off())) {
            self.fail(&mut self.lock(), Error::panic(&*panic));
        }
    }

    fn work_off(&self) {
        let mut tools = Tools::default();
        while let Some(job) = self.take() {
            let start = Instant::now();
            let mut tally = Tally::default();
            let key = EpochKey::new(self.pipeline.seed, job.epoch);
            let count = job.tasks.len();
            let mut failures = Vec::new();
            let mut done = Vec::with_capacity(count);
            for mut task in job.tasks {
                let place = task.place;
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    self.perform(&mut tools, key, &mut task, &mut tally)
                }));
                match outcome {
                    Ok(Ok((sample, error))) => {
                        done.push(sample);
                        let failure = |error| Failure { place, error, substituted: true };
                        failures.extend(error.map(failure));
                    }
                    Ok(Err(error)) => failures.push(Failure { place, error, substituted: false }),
                    Err(panic) => {
                        tools = Tools::default();
                        let error = Error::panic(&*panic);
                        failures.push(Failure { place, error, substituted: false });
                    }
                }
            }
            let mut state = self.lock();
            if state.generation != job.generation {
                continue;
            }
            let now = Instant::now();
            tally.busy = nanoseconds(start, now);
            state.record.add(&tally);
            let ahead = job.batch - state.first;
            let filling = &mut state.filling[ahead];
            for Done { place, label, substitute } in done {
                filling.labels[place] = label;
                filling.positions[place] = substitute.unwrap_or(filling.positions[place]);
            }
            filling.failures.extend(failures);
            filling.unfinished -= count;
            if filling.unfinished == 0 {
                let ready = state.ready();
                state.record.queue(ready, now);
                if ahead == 0 {
                    self.done.notify_all();
                }
            }
        }
    }

    /// Does one sample, or a stand-in for it: then returns what was wrong with the sample, too.
    fn perform(
        &self,
        tools: &mut Tools,
        key: EpochKey,
        task: &mut Task,
        tally: &mut Tally,
    ) -> Result<(Done, Option<Error>)> {
        let Task { place, position, ticket, draw, parts } = task;
        let place = *place;
        let mut sample = |asked| self.pipeline.sample(tools, key, asked, *draw, parts, tally);
        let error = match sample((*position, *ticket)) {
            Ok(label) => return Ok((Done { place, label, substitute: None }, None)),
            Err(error) => error,
        };
        if self.pipeline.on_error == OnError::Substitute && error.is_bad_sample() {
            let mut stream = key.substitutes(*draw);
            for _ in 0..SUBSTITUTES {
                let other = stream.below(self.pipeline.len() as u64);
                match sample((other, self.pipeline.announce(other))) {
                    Ok(label) => {
                        return Ok((Done { place, label, substitute: Some(other) }, Some(error)));
                    }
                    Err(another) if another.is_bad_sample() => {}
                    Err(fault) => return Err(fault),
                }
            }
        }
        Err(error)
    }
}

/// A pool of threads that makes batches. Threads start with the first batch and live until the loader is closed.
pub struct Loader {
    shared: Arc<Shared>,
    threads: usize,
    /// The process that the threads live in; 0 before they start.
    process: AtomicU32,
    workers: Mutex<Vec<JoinHandle<()>>>,
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
        if prefetch > MOST_PREFETCHED || threads > MOST_THREADS {
            return Err(Error::argument(format!(
                "num_threads must be at most {MOST_THREADS} and prefetch at most {MOST_PREFETCHED} batches, \
                 got {threads} and {prefetch}"
            )));
        }
        // A batch never holds more samples than an epoch has: with several ranks some repeat, but none twice in a share.
        let most = batch_size.min(pipeline.len().max(1));
        let mut pipeline = pipeline;
        let mut pools = Vec::with_capacity(pipeline.views.len());
        for view in &mut pipeline.views {
            let bytes = view.emit.bytes().checked_mul(most);
            let bytes = bytes.filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or_else(|| {
                Error::argument(format!(
                    "{batch_size} images of {} do not fit memory",
                    view.emit.size()
                ))
            })?;
            view.emit = view.emit.clone().part_of(bytes);
            pools.push(Pool::new(bytes, prefetch + 2));
        }
        let shared = Arc::new(Shared {
            pools,
            pipeline,
            batch_size,
            prefetch,
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        Ok(Self { shared, threads, process: AtomicU32::new(0), workers: Mutex::default() })
    }

    /// The pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.shared.pipeline
    }

    /// Starts an epoch at batch `first`; one that is under way is abandoned.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child, after [`Loader::close`], when positions and draws differ in number, or when threads
    /// cannot be started.
    pub fn start(&self, order: Order, first: usize) -> Result<()> {
        if order.draws.as_ref().is_some_and(|draws| draws.len() != order.positions.len()) {
            return Err(Error::argument("as many draws as positions are needed"));
        }
        self.check_process()?;
        if self.shared.lock().closing {
            return Err(Error::argument("this loader is closed"));
        }
        self.spawn()?;
        let mut state = self.shared.lock();
        state.abandon(&self.shared.pipeline);
        state.record = Record::new(order.epoch, Instant::now());
        state.fatal = None;
        state.first = first.min(order.batches(self.shared.batch_size));
        state.order = Some(Arc::new(order));
        drop(state);
        self.shared.work.notify_all();
        Ok(())
    }

    fn spawn(&self) -> Result<()> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // They live until the loader closes.
        if !workers.is_empty() {
            return Ok(());
        }
        self.process.store(std::process::id(), Ordering::Relaxed);
        for number in 0..self.threads {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name(format!("vit-rs-loader-{number}"));
            match thread.spawn(move || shared.run()) {
                Ok(handle) => workers.push(handle),
                Err(error) => {
                    self.signal();
                    return Err(Error::argument(format!(
                        "only {number} of num_threads = {} could be started ({error}); ask for fewer",
                        self.threads
                    )));
                }
            }
        }
        Ok(())
    }

    /// Refuses a forked child before any lock is touched: one may be held there by a thread that does not exist.
    fn check_process(&self) -> Result<()> {
        let (made_in, now) = (self.process.load(Ordering::Relaxed), std::process::id());
        if made_in == 0 || made_in == now {
            return Ok(());
        }
        Err(Error::argument(format!(
            "this loader's threads live in process {made_in}; a forked child ({now}) must make its own loader"
        )))
    }

    /// Waits for the next batch, at most for `patience`.
    ///
    /// # Errors
    /// The first error in the batch, by position; [`Error::Argument`] in a forked child.
    pub fn next(&self, patience: Duration) -> Result<Next> {
        self.check_process()?;
        let asked = Instant::now();
        let filling = {
            let mut state = self.shared.lock();
            if let Some(fatal) = state.fatal.take() {
                return Err(fatal);
            }
            let Some(order) = state.order.clone() else { return Ok(Next::End) };
            if state.first >= order.batches(self.shared.batch_size) || state.closing {
                state.record.end(Instant::now());
                return Ok(Next::End);
            }
            if state.filling.front().is_none_or(|filling| filling.unfinished > 0) {
                let unready = |state: &mut State| {
                    state.filling.front().is_none_or(|filling| filling.unfinished > 0)
                        && !state.closing
                        && state.fatal.is_none()
                };
                let wait = self.shared.done.wait_timeout_while(state, patience, unready);
                state = wait.unwrap_or_else(PoisonError::into_inner).0;
            }
            let now = Instant::now();
            if let Some(fatal) = state.fatal.take() {
                return Err(fatal);
            }
            match state.filling.pop_front() {
                Some(filling) if filling.unfinished == 0 => {
                    state.first += 1;
                    let ready = state.ready();
                    let kept = filling.kept(self.shared.pipeline.on_error);
                    state.record.hand_over(kept, ready, asked, now);
                    filling
                }
                unfinished => {
                    if let Some(filling) = unfinished {
                        state.filling.push_front(filling);
                    }
                    state.record.wait(asked, now);
                    return Ok(Next::Pending);
                }
            }
        };
        self.shared.work.notify_all();
        self.finish(filling).map(Next::Batch)
    }

    /// Closes the gaps of a batch, or reports them.
    fn finish(&self, filling: Filling) -> Result<Batch> {
        let Filling { parts, mut positions, mut labels, mut failures, .. } = filling;
        failures.sort_by_key(|failure| failure.place);
        let slots: Option<Vec<_>> = parts.into_iter().map(Parts::finish).collect();
        let mut slots =
            slots.ok_or_else(|| Error::Panic("a part of a batch is still held".to_owned()))?;
        let on_error = self.shared.pipeline.on_error;
        if let Some(at) = failures.iter().position(|failure| failure.is_raised(on_error)) {
            return Err(failures.swap_remove(at).error);
        }
        if !failures.is_empty() {
            let lost = failures.iter().filter(|failure| !failure.substituted);
            let mut lost = lost.map(|failure| failure.place).peekable();
            let mut kept = 0;
            for place in 0..positions.len() {
                if lost.next_if_eq(&place).is_some() {
                    continue;
                }
                for (slot, view) in slots.iter_mut().zip(&self.shared.pipeline.views) {
                    slot.move_part(place, kept, view.emit.bytes());
                }
                positions[kept] = positions[place];
                labels[kept] = labels[place];
                kept += 1;
            }
            positions.truncate(kept);
            labels.truncate(kept);
            let texts = failures.iter().map(|failure| failure.error.to_string());
            self.shared.lock().record.fail(texts);
        }
        Ok(Batch { slots, positions, labels })
    }

    /// What was done in the current or last epoch.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child.
    pub fn stats(&self) -> Result<Stats> {
        self.check_process()?;
        Ok(self.shared.lock().record.stats())
    }

    /// Memory of the batches, view by view: bytes of one, and how many are kept for reuse.
    #[must_use]
    pub fn memory(&self) -> Vec<(usize, usize)> {
        self.shared.pools.iter().map(|pool| pool.memory()).collect()
    }

    /// Tells the threads to end, and waits for the samples in their hands, at most for `patience`. Returns whether all
    /// have ended. Does nothing in a forked child.
    pub fn close(&self, patience: Duration) -> bool {
        if self.check_process().is_err() {
            return true;
        }
        self.signal();
        let deadline = Instant::now() + patience;
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.iter().any(|worker| !worker.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for worker in workers.drain(..) {
            // A worker tells its panics to the consumer; there is nothing else to learn from it.
            drop(worker.join());
        }
        // Once more: a last sample may have opened what the signal closed.
        self.shared.pipeline.source.close();
        true
    }

    fn signal(&self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.abandon(&self.shared.pipeline);
        drop(state);
        self.shared.pipeline.source.close();
        self.shared.work.notify_all();
        self.shared.done.notify_all();
    }
}

impl Drop for Loader {
    /// Tells the threads to end; does not wait for them.
    fn drop(&mut self) {
        if self.check_process().is_ok() {
            self.signal();
        }
    }
}

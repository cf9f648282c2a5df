//! Batches in order, from a pool of threads: samples are the unit of work, slots the back-pressure.
//!
//! An epoch is a queue: its owner pushes batches of whatever size, threads take (batch, position) tasks from it and write
//! each sample into its part of the batch's slot, and the consumer gets the batches in the order of the pushes. What is
//! in a batch depends on the pipeline, the epoch's key and what was pushed, never on which thread did what when.

mod epoch;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::epoch::{Epoch, Memory};
use crate::error::{Error, Result};
use crate::memory::Recycler;
pub use crate::order::Order;
pub use crate::pipeline::Single;
use crate::pipeline::{Form, Pipeline, View};
use crate::rng::EpochKey;
use crate::slot::{Pool, Slot};
use crate::statistics::{Record, Stats};

/// More batches ahead of its consumer, and more threads, than any machine can use.
const MOST_PREFETCHED: usize = 1 << 16;
const MOST_THREADS: usize = 1 << 12;

/// Bytes of single images that are kept for those to come: about two batches of 128 photographs of 500 x 375.
const MOST_RECYCLED: usize = 128 << 20;

/// A finished batch.
#[derive(Debug)]
pub struct Batch {
    /// Its images.
    pub images: Images,
    /// Position of each sample that is in it.
    pub positions: Vec<u64>,
    /// Label of each, where the source gives labels with its samples.
    pub labels: Vec<Option<i64>>,
}

/// The images of a batch.
#[derive(Debug)]
pub enum Images {
    /// The memory of each view; samples lie one after another from the start.
    Fixed(Vec<Slot>),
    /// The views of each sample, each in memory of its own.
    Ragged(Vec<Vec<Single>>),
}

/// What waiting for a batch came to.
#[derive(Debug)]
pub enum Next {
    /// The next batch in order.
    Batch(Batch),
    /// It is not ready yet.
    Pending,
    /// All that was pushed has been handed over, and the epoch has not ended: who waits would wait for ever.
    Idle,
    /// The epoch is over.
    End,
}

#[derive(Default)]
struct State {
    /// Grows with each start: work for an abandoned epoch is recognised by it.
    generation: u64,
    epoch: Option<Epoch>,
    /// Batches of it that the consumer got, or their errors.
    handed_over: u64,
    record: Record,
    closing: bool,
    /// A bug of ours that ended the epoch: each call for a batch tells of it, until the next start.
    fatal: Option<String>,
}

impl State {
    /// Forgets the epoch under way, and returns what is left of it; what threads still finish of it is not missed.
    fn abandon(&mut self, pipeline: &Pipeline) -> Option<Epoch> {
        self.generation += 1;
        pipeline.source.abandon();
        self.record.queue(0, Instant::now());
        self.epoch.take()
    }

    fn check_fatal(&self) -> Result<()> {
        self.fatal.as_ref().map_or(Ok(()), |text| Err(Error::Panic(text.clone())))
    }
}

struct Shared {
    pipeline: Pipeline,
    prefetch: usize,
    memory: Memory,
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of the source under the lock is caught there, and no other update of the state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool of threads that makes batches. Threads start with the first epoch and live until the loader is closed.
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
    /// A loader that keeps `prefetch` batches ahead of its consumer. Memory is made for batches of `batch_size` samples,
    /// and grows with larger ones.
    ///
    /// # Errors
    /// [`Error::Argument`] for a zero, a batch that memory cannot hold, or views of both forms.
    pub fn new(
        mut pipeline: Pipeline,
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
        // An epoch's usual batch has no more samples than there are.
        let usual = batch_size.min(pipeline.len().max(1));
        let mut pools = Vec::with_capacity(pipeline.views.len());
        for view in &mut pipeline.views {
            let bytes = bytes_of(view, usual)?;
            if let Form::Fixed(emit) = &mut view.form {
                *emit = emit.clone().part_of(bytes);
                pools.push(Pool::new(bytes, prefetch + 2));
            }
        }
        let memory = match pools.len() {
            fixed if fixed == pipeline.views.len() => Memory::Fixed(pools),
            0 => Memory::Ragged(Arc::new(Recycler::new(MOST_RECYCLED))),
            _ => return Err(Error::argument("all views must be of fixed sizes, or none")),
        };
        let shared = Arc::new(Shared {
            memory,
            pipeline,
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

    /// Starts an epoch, which has no batches yet; one that is under way is abandoned.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child, after [`Loader::close`], or when threads cannot be started.
    pub fn start(&self, seed: u64, epoch: u64) -> Result<()> {
        self.check_process()?;
        if self.shared.lock().closing {
            return Err(closed());
        }
        self.spawn()?;
        let mut state = self.shared.lock();
        let abandoned = state.abandon(&self.shared.pipeline);
        state.record = Record::new(epoch, Instant::now());
        state.fatal = None;
        state.handed_over = 0;
        state.epoch = Some(Epoch::new(EpochKey::new(seed, epoch)));
        drop(state);
        // Outside the lock: nobody knows what the owners of foreign memory do at its end.
        drop(abandoned);
        Ok(())
    }

    /// Appends batches to the epoch under way. A single one may bring its `memory`, one slot for each view, which is
    /// written instead of our own.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child, after [`Loader::close`], without an epoch under way, when positions and
    /// draws differ in number, for a batch size of 0, for a batch that memory cannot hold, and for memory that is too
    /// small, not aligned to the views' types, or not for this.
    pub fn push(&self, order: Order, memory: Option<Vec<Slot>>) -> Result<()> {
        let Order { positions, draws, batch_size, .. } = &order;
        if draws.as_ref().is_some_and(|draws| draws.len() != positions.len()) {
            return Err(Error::argument("as many draws as positions are needed"));
        }
        if *batch_size == Some(0) {
            return Err(Error::argument("batch_size must be at least 1, got 0"));
        }
        let views = &self.shared.pipeline.views;
        let sizes = views.iter().map(|view| bytes_of(view, order.largest()));
        let sizes = sizes.collect::<Result<Vec<_>>>()?;
        if let Some(memory) = &memory {
            if order.batches() != 1 || matches!(self.shared.memory, Memory::Ragged(_)) {
                return Err(Error::argument("memory is for one batch of views of fixed sizes"));
            }
            check_memory(memory, views, &sizes)?;
        }
        self.check_process()?;
        let mut state = self.shared.lock();
        if state.closing {
            return Err(closed());
        }
        let State { epoch, fatal, .. } = &mut *state;
        match epoch {
            Some(epoch) if !epoch.ended => epoch.push(order, memory),
            // It is the consumer who is told why its epoch is over.
            None if fatal.is_some() => {}
            _ => return Err(Error::argument("batches can be pushed between start and end only")),
        }
        drop(state);
        self.shared.work.notify_all();
        Ok(())
    }

    /// Says that no batch follows in the epoch under way.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child.
    pub fn end(&self) -> Result<()> {
        self.check_process()?;
        if let Some(epoch) = &mut self.shared.lock().epoch {
            epoch.ended = true;
        }
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

    /// Waits for the next batch, at most for `patience`. A batch that is an error, also for want of memory, is over with
    /// it: the next call goes on behind it.
    ///
    /// # Errors
    /// The first error in the batch, by position; [`Error::Memory`] when there was none for it; [`Error::Panic`] from a
    /// bug of ours on; [`Error::Argument`] in a forked child.
    pub fn next(&self, patience: Duration) -> Result<Next> {
        self.check_process()?;
        let asked = Instant::now();
        let mut state = self.shared.lock();
        state.check_fatal()?;
        match &state.epoch {
            Some(epoch) if epoch.is_idle() && !epoch.ended => return Ok(Next::Idle),
            Some(epoch) if !epoch.is_idle() => {}
            _ => {
                state.record.end(Instant::now());
                return Ok(Next::End);
            }
        }
        let unready = |state: &mut State| state.epoch.as_ref().is_some_and(Epoch::is_unready);
        let wait = self.shared.done.wait_timeout_while(state, patience, unready);
        let mut state = wait.unwrap_or_else(PoisonError::into_inner).0;
        state.check_fatal()?;
        let now = Instant::now();
        let State { epoch, handed_over, record, .. } = &mut *state;
        let taken = epoch.as_mut().and_then(|epoch| Some((epoch.take()?, epoch.ready())));
        let Some((filling, ready)) = taken else {
            record.wait(asked, now);
            return Ok(Next::Pending);
        };
        record.hand_over(filling.kept(self.shared.pipeline.on_error), ready, asked, now);
        *handed_over += 1;
        drop(state);
        self.shared.work.notify_all();
        let (batch, failures) = filling.finish(&self.shared.pipeline)?;
        if !failures.is_empty() {
            self.shared.lock().record.fail(failures.into_iter());
        }
        Ok(Next::Batch(batch))
    }

    /// How many batches of the current or last epoch [`Loader::next`] has returned, or returned the error of.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child.
    pub fn handed_over(&self) -> Result<u64> {
        self.check_process()?;
        Ok(self.shared.lock().handed_over)
    }

    /// What was done in the current or last epoch.
    ///
    /// # Errors
    /// [`Error::Argument`] in a forked child.
    pub fn stats(&self) -> Result<Stats> {
        self.check_process()?;
        Ok(self.shared.lock().record.stats())
    }

    /// Memory of the batches, view by view: bytes of one, and how many are kept for reuse. None where images have
    /// memory of their own.
    #[must_use]
    pub fn memory(&self) -> Vec<(usize, usize)> {
        match &self.shared.memory {
            Memory::Fixed(pools) => pools.iter().map(|pool| pool.memory()).collect(),
            Memory::Ragged(_) => Vec::new(),
        }
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
        let abandoned = state.abandon(&self.shared.pipeline);
        drop(state);
        drop(abandoned);
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
        } else if let Ok(workers) = self.workers.get_mut() {
            // Threads of the parent: a handle's end asks the system for what is none of this process's.
            std::mem::forget(std::mem::take(workers));
        }
    }
}

fn closed() -> Error {
    Error::argument("this loader is closed")
}

/// Bytes of `samples` images of a view; 0 where each has memory of its own.
fn bytes_of(view: &View, samples: usize) -> Result<usize> {
    let bytes = view.bytes().checked_mul(samples);
    bytes.filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or_else(|| {
        let size = match &view.form {
            Form::Fixed(emit) => emit.size().to_string(),
            Form::Ragged(_) => "any size".to_owned(),
        };
        Error::argument(format!("{samples} images of {size} do not fit memory"))
    })
}

/// Whether a batch whose views have these sizes can be written there.
fn check_memory(memory: &[Slot], views: &[View], sizes: &[usize]) -> Result<()> {
    if memory.len() != views.len() {
        return Err(Error::argument(format!(
            "memory for {} views is needed, got {}",
            views.len(),
            memory.len()
        )));
    }
    for ((slot, view), &size) in memory.iter().zip(views).zip(sizes) {
        let Form::Fixed(emit) = &view.form else { continue };
        if size == 0 {
            continue;
        }
        if slot.len() < size {
            return Err(Error::argument(format!(
                "a batch needs {size} bytes of memory, got {}",
                slot.len()
            )));
        }
        if !slot.as_ptr().addr().is_multiple_of(emit.dtype().bytes()) {
            return Err(Error::argument(format!(
                "memory must be aligned to its values, {} bytes each",
                emit.dtype().bytes()
            )));
        }
    }
    Ok(())
}

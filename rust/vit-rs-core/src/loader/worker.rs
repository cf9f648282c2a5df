//! A thread's life: take samples, do them, settle.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use super::epoch::{Done, Failure, Task};
use super::{Shared, State};
use crate::error::{Error, Result};
use crate::pipeline::{OnError, Place, Tools};
use crate::rng::EpochKey;
use crate::statistics::{Tally, nanoseconds};

/// How many stand-ins are tried before a sample counts as lost.
const SUBSTITUTES: usize = 16;

/// Consecutive samples of one batch.
struct Job {
    generation: u64,
    key: EpochKey,
    batch: usize,
    tasks: Vec<Task>,
}

impl Shared {
    /// Until the loader closes.
    pub(super) fn run(&self) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work_off())) {
            self.fail(self.lock(), Error::panic_text(&*panic));
        }
    }

    /// The next samples to do; None when the loader closes.
    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            // Caught under the lock: nobody may see the epoch as a panic of the source left it.
            let bug = match catch_unwind(AssertUnwindSafe(|| self.next_job(&mut state))) {
                Ok(Ok(Some(job))) => return Some(job),
                Ok(Ok(None)) => {
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Ok(Err(bug)) => bug.to_owned(),
                Err(panic) => Error::panic_text(&*panic),
            };
            self.fail(state, bug);
            state = self.lock();
        }
    }

    fn next_job(&self, state: &mut State) -> std::result::Result<Option<Job>, &'static str> {
        let State { generation, epoch, record, .. } = state;
        let (generation, Some(epoch)) = (*generation, epoch) else { return Ok(None) };
        if epoch.begin(&self.pipeline, &self.memory, self.prefetch) {
            record.queue(epoch.ready(), Instant::now());
            self.done.notify_all();
        }
        let most = self.pipeline.source.samples_at_a_time();
        let job = epoch.hand_out(self.pipeline.views.len(), most)?;
        Ok(job.map(|(batch, tasks)| Job { generation, key: epoch.key, batch, tasks }))
    }

    /// Ends the epoch under way: the consumer is told why, and would wait for ever otherwise.
    pub(super) fn fail(&self, mut state: MutexGuard<'_, State>, bug: String) {
        let abandoned = state.abandon(&self.pipeline);
        state.fatal = Some(bug);
        drop(state);
        self.done.notify_all();
        // Outside the lock: nobody knows what the owners of foreign memory do at its end.
        drop(abandoned);
    }

    fn work_off(&self) {
        let mut tools = Tools::default();
        while let Some(job) = self.take() {
            let start = Instant::now();
            let mut tally = Tally::default();
            let count = job.tasks.len();
            let mut failures = Vec::new();
            let mut done = Vec::with_capacity(count);
            for mut task in job.tasks {
                let place = task.place;
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    self.perform(&mut tools, job.key, &mut task, &mut tally)
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
            let current = state.generation == job.generation;
            let State { epoch, record, .. } = &mut *state;
            let Some(epoch) = epoch.as_mut().filter(|_| current) else { continue };
            let now = Instant::now();
            tally.busy = nanoseconds(start, now);
            record.add(&tally);
            let (finished, next) = epoch.settle(job.batch, count, done, failures);
            if finished {
                record.queue(epoch.ready(), now);
                if next {
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
        let Task { place, position, ticket, draw, places } = task;
        let mut sample = |asked| self.pipeline.sample(tools, key, asked, *draw, places, tally);
        let (label, substitute, error) = match sample((*position, *ticket)) {
            Ok(label) => (label, None, None),
            Err(error)
                if self.pipeline.on_error == OnError::Substitute && error.is_bad_sample() =>
            {
                let mut stream = key.substitutes(*draw);
                let mut tries = 0..SUBSTITUTES;
                loop {
                    if tries.next().is_none() {
                        return Err(error);
                    }
                    let other = stream.below(self.pipeline.len() as u64);
                    match sample((other, self.pipeline.announce(other))) {
                        Ok(label) => break (label, Some(other), Some(error)),
                        Err(another) if another.is_bad_sample() => {}
                        Err(fault) => return Err(fault),
                    }
                }
            }
            Err(error) => return Err(error),
        };
        let singles = places.drain(..).filter_map(Place::into_single).collect();
        Ok((Done { place: *place, label, substitute, singles }, error))
    }
}

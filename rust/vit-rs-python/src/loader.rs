//! The loader: batches leave as numpy arrays over their slot's memory, without a copy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use vit_rs_core::augment::plan::Plan;
use vit_rs_core::loader::{Batch, Images, Loader as CoreLoader, Next, Order, Single};
use vit_rs_core::pipeline::{Decoding, Form, OnError, Pipeline, View as CoreView};
use vit_rs_core::rng::EpochKey;

use crate::error::{BatchTimeoutError, to_py};
use crate::memory::{self, Memory};
use crate::source::Source;
use crate::transform::View;

/// How long a wait lasts before signals are looked at.
const PATIENCE: Duration = Duration::from_millis(50);

/// A pool of loader threads over one source and transform.
#[pyclass(frozen, module = "vit_rs._core", name = "Loader")]
struct Loader(CoreLoader);

fn on_error(name: &str) -> PyResult<OnError> {
    match name {
        "raise" => Ok(OnError::Raise),
        "skip" => Ok(OnError::Skip),
        "substitute" => Ok(OnError::Substitute),
        _ => Err(PyValueError::new_err(format!(
            "on_error must be 'raise', 'skip' or 'substitute', got '{name}'"
        ))),
    }
}

#[pymethods]
impl Loader {
    #[new]
    #[pyo3(signature = (source, subset, views, *, batch_size, num_threads, prefetch, max_pixels, exif, fast, on_error, ragged=false))]
    fn new(
        source: &Bound<'_, Source>,
        subset: Option<PyReadonlyArray1<'_, u64>>,
        views: Vec<Bound<'_, View>>,
        batch_size: usize,
        num_threads: usize,
        prefetch: usize,
        max_pixels: usize,
        exif: bool,
        fast: bool,
        on_error: &str,
        ragged: bool,
    ) -> PyResult<Self> {
        let source = Arc::clone(&source.get().0);
        let on_error = self::on_error(on_error)?;
        let subset = subset.map(|subset| subset.as_slice().map(<[u64]>::to_vec)).transpose()?;
        let make = || {
            let finished = |view: &Bound<'_, View>| {
                let view = view.get();
                view.spec.check_for(Some(source.channels()))?;
                let form = if ragged {
                    view.output.check(source.channels())?;
                    Form::Ragged(view.output.clone())
                } else {
                    let size = view.spec.output_size(source.size())?;
                    Form::Fixed(view.output.emit(size, source.channels())?)
                };
                Ok(CoreView { spec: view.spec.clone(), form })
            };
            let views = views.iter().map(finished).collect::<Result<_, _>>()?;
            let decoding = Decoding { max_pixels, exif, fast };
            let pipeline = Pipeline { source, subset, views, decoding, on_error };
            CoreLoader::new(pipeline, batch_size, num_threads, prefetch)
        };
        Ok(Self(make().map_err(to_py)?))
    }

    /// The shuffled order of an epoch: u64, (samples,).
    fn permutation<'py>(
        &self,
        py: Python<'py>,
        seed: u64,
        epoch: u64,
    ) -> Bound<'py, PyArray1<u64>> {
        let key = EpochKey::new(seed, epoch);
        PyArray1::from_vec(py, py.detach(|| self.0.pipeline().permutation(key)))
    }

    /// Starts an epoch, which has no batches yet; one under way is abandoned.
    #[pyo3(signature = (*, seed, epoch))]
    fn start(&self, py: Python<'_>, seed: u64, epoch: u64) -> PyResult<()> {
        py.detach(|| self.0.start(seed, epoch)).map_err(to_py)
    }

    /// Appends positions to the epoch, cut into batches of `batch_size`; None = they are one batch. `draws` None = the
    /// positions. `memory`: a writable u8 array for each view, (bytes,), that one batch is written into; nobody else may
    /// read or write it before the batch was handed over or the epoch abandoned and its samples under way done.
    #[pyo3(signature = (positions, draws=None, *, batch_size=None, drop_last=false, memory=None))]
    fn push(
        &self,
        py: Python<'_>,
        positions: PyReadonlyArray1<'_, u64>,
        draws: Option<PyReadonlyArray1<'_, u64>>,
        batch_size: Option<usize>,
        drop_last: bool,
        memory: Option<Vec<Bound<'_, PyArray1<u8>>>>,
    ) -> PyResult<()> {
        let positions = positions.as_slice()?.to_vec();
        let draws = draws.map(|draws| draws.as_slice().map(<[u64]>::to_vec)).transpose()?;
        let memory = memory.map(|arrays| memory::lend(&arrays));
        let (order, memory) =
            (Order { positions, draws, batch_size, drop_last }, memory.transpose()?);
        py.detach(|| self.0.push(order, memory)).map_err(to_py)
    }

    /// Says that no batch follows in this epoch.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.end()).map_err(to_py)
    }

    /// The next batch as (images of each view, positions, labels); None at the epoch's end. Images are an array, or with
    /// `ragged` a list of one for each sample. Labels are None where the source does not give them. Ctrl-C interrupts
    /// the wait; after `timeout` seconds it is a `BatchTimeoutError`, and the batch may be asked for again.
    #[pyo3(signature = (timeout=None))]
    #[allow(clippy::type_complexity)]
    fn next_batch<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
    ) -> PyResult<
        Option<(
            Vec<Bound<'py, PyAny>>,
            Bound<'py, PyArray1<u64>>,
            Option<Bound<'py, PyArray1<i64>>>,
        )>,
    > {
        let mut patience = Patience::new(timeout)?;
        loop {
            let slice = patience.slice()?;
            match py.detach(|| self.0.next(slice)).map_err(to_py)? {
                Next::Pending => py.check_signals()?,
                Next::End => return Ok(None),
                Next::Idle => {
                    return Err(PyRuntimeError::new_err(
                        "there is no batch to wait for: all that were pushed have been handed over, and the epoch has \
                         not ended",
                    ));
                }
                Next::Batch(Batch { images, positions, labels }) => {
                    let images = self.arrays(py, images, positions.len())?;
                    let labels: Option<Vec<i64>> = labels.into_iter().collect();
                    let labels = labels.map(|labels| PyArray1::from_vec(py, labels));
                    return Ok(Some((images, PyArray1::from_vec(py, positions), labels)));
                }
            }
        }
    }

    /// How many batches of the current or last epoch `next_batch` has returned, or raised the error of: what it raises
    /// without counting on is a signal's.
    #[getter]
    fn handed_over(&self) -> PyResult<u64> {
        self.0.handed_over().map_err(to_py)
    }

    /// Counts and times (nanoseconds) of the current or last epoch, as `vit_rs_core::statistics::Stats` has them.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.stats().map_err(to_py)?;
        let dict = PyDict::new(py);
        let counts = [
            ("epoch", stats.epoch),
            ("images", stats.tally.images),
            ("bytes", stats.tally.bytes),
            ("read", stats.tally.read),
            ("decode", stats.tally.decode),
            ("augment", stats.tally.augment),
            ("emit", stats.tally.emit),
            ("batches", stats.batches),
            ("delivered", stats.delivered),
            ("wall", stats.wall),
            ("wait", stats.wait),
            ("busy", stats.busy),
            ("ready_time", stats.ready_time),
            ("ready", stats.ready as u64),
        ];
        for (name, value) in counts {
            dict.set_item(name, value)?;
        }
        dict.set_item("failures", stats.failures)?;
        Ok(dict)
    }

    /// A sample's name and size, and the plan of each view, a line for each step; it is read, and not decoded.
    #[pyo3(signature = (position, draw, *, seed, epoch))]
    #[allow(clippy::type_complexity)]
    fn describe(
        &self,
        py: Python<'_>,
        position: u64,
        draw: u64,
        seed: u64,
        epoch: u64,
    ) -> PyResult<(String, (usize, usize), Vec<Vec<String>>)> {
        let key = EpochKey::new(seed, epoch);
        let plans = py.detach(|| self.0.pipeline().plans(key, position, draw));
        let (name, size, plans) = plans.map_err(to_py)?;
        let lines = |plan: &Plan| {
            let steps = plan.steps.iter().chain(&plan.float_steps);
            steps.map(|step| format!("{step:?}")).collect()
        };
        Ok((name, (size.height, size.width), plans.iter().map(lines).collect()))
    }

    /// Bytes of a batch and number of batches kept for reuse, view by view; empty with `ragged`.
    #[getter]
    fn memory(&self) -> Vec<(usize, usize)> {
        self.0.memory()
    }

    /// Dimensions of one sample in a batch, view by view; empty with `ragged`.
    #[getter]
    fn shapes(&self) -> Vec<Vec<usize>> {
        let shape = |view: &CoreView| match &view.form {
            Form::Fixed(emit) => Some(emit.shape()),
            Form::Ragged(_) => None,
        };
        self.0.pipeline().views.iter().filter_map(shape).collect()
    }

    /// Ends the threads. Ctrl-C interrupts the wait for them; they end by themselves then.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        while !py.detach(|| self.0.close(PATIENCE)) {
            py.check_signals()?;
        }
        Ok(())
    }
}

impl Loader {
    /// The images of a batch of `samples` samples, view by view.
    fn arrays<'py>(
        &self,
        py: Python<'py>,
        images: Images,
        samples: usize,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let views = &self.0.pipeline().views;
        match images {
            Images::Fixed(slots) => {
                let array = |(view, slot): (&CoreView, _)| {
                    let Form::Fixed(emit) = &view.form else { return Ok(py.None().into_bound(py)) };
                    let shape = [&[samples], &emit.shape()[..]].concat();
                    memory::batch(py, slot, emit.dtype(), &shape)
                };
                views.iter().zip(slots).map(array).collect()
            }
            Images::Ragged(images) => {
                let lists: Vec<_> = views.iter().map(|_| PyList::empty(py)).collect();
                for singles in images {
                    for ((single, view), list) in singles.into_iter().zip(views).zip(&lists) {
                        let Form::Ragged(output) = &view.form else { continue };
                        let Single { memory, shape } = single;
                        list.append(Memory::from(memory).into_values(py, output.dtype, &shape)?)?;
                    }
                }
                Ok(lists.into_iter().map(Bound::into_any).collect())
            }
        }
    }
}

/// How long the consumer still waits.
struct Patience {
    seconds: f64,
    deadline: Option<Instant>,
    waited: bool,
}

impl Patience {
    fn new(timeout: Option<f64>) -> PyResult<Self> {
        let Some(seconds) = timeout else {
            return Ok(Self { seconds: f64::INFINITY, deadline: None, waited: false });
        };
        let length = Duration::try_from_secs_f64(seconds).map_err(|_| {
            let text =
                format!("timeout must be a finite number of seconds, at least 0, got {seconds}");
            PyValueError::new_err(text)
        })?;
        Ok(Self { seconds, deadline: Instant::now().checked_add(length), waited: false })
    }

    /// The next wait's length: at least one, whatever the timeout.
    fn slice(&mut self) -> PyResult<Duration> {
        let Some(deadline) = self.deadline else { return Ok(PATIENCE) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && self.waited {
            let text = format!("no batch came within {} seconds", self.seconds);
            return Err(BatchTimeoutError::new_err(text));
        }
        self.waited = true;
        Ok(left.min(PATIENCE))
    }
}

/// Seed number `stream` of a sample for generators that are not ours: 64 bits, a function of (seed, epoch, draw, stream),
/// and none of the numbers that augmentations, orders or substitutes are made from.
#[pyfunction]
fn sample_seed(seed: u64, epoch: u64, draw: u64, stream: u32) -> u64 {
    EpochKey::new(seed, epoch).seed(draw, stream)
}

/// Adds this file's classes and functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Loader>()?;
    module.add("BatchTimeoutError", module.py().get_type::<BatchTimeoutError>())?;
    module.add_function(wrap_pyfunction!(sample_seed, module)?)
}

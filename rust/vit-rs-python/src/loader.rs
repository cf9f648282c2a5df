//! The loader: batches leave as numpy arrays over their slot's memory, without a copy.

use std::sync::Arc;
use std::time::Duration;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use vit_rs_core::augment::plan::Plan;
use vit_rs_core::loader::{Batch, Loader as CoreLoader, Next, Order};
use vit_rs_core::pipeline::{Decoding, OnError, Pipeline, View as CoreView};

use crate::error::to_py;
use crate::memory::Memory;
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
    #[pyo3(signature = (source, subset, views, *, batch_size, num_threads, prefetch, seed, max_pixels, exif, fast, on_error))]
    fn new(
        source: &Bound<'_, Source>,
        subset: Option<PyReadonlyArray1<'_, u64>>,
        views: Vec<Bound<'_, View>>,
        batch_size: usize,
        num_threads: usize,
        prefetch: usize,
        seed: u64,
        max_pixels: usize,
        exif: bool,
        fast: bool,
        on_error: &str,
    ) -> PyResult<Self> {
        let source = Arc::clone(&source.get().0);
        let on_error = self::on_error(on_error)?;
        let subset = subset.map(|subset| subset.as_slice().map(<[u64]>::to_vec)).transpose()?;
        let make = || {
            let finished = |view: &Bound<'_, View>| {
                let view = view.get();
                view.spec.check_for(Some(source.channels()))?;
                let size = view.spec.output_size(source.size())?;
                let emit = view.output.emit(size, source.channels())?;
                Ok(CoreView { spec: view.spec.clone(), emit })
            };
            let views = views.iter().map(finished).collect::<Result<_, _>>()?;
            let decoding = Decoding { max_pixels, exif, fast };
            let pipeline = Pipeline { source, subset, views, seed, decoding, on_error };
            CoreLoader::new(pipeline, batch_size, num_threads, prefetch)
        };
        Ok(Self(make().map_err(to_py)?))
    }

    /// The shuffled order of an epoch: u64, (samples,).
    fn permutation<'py>(&self, py: Python<'py>, epoch: u64) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_vec(py, py.detach(|| self.0.pipeline().permutation(epoch)))
    }

    /// Starts an epoch at a batch; one under way is abandoned.
    #[pyo3(signature = (positions, draws, *, epoch, drop_last, first))]
    fn start(
        &self,
        py: Python<'_>,
        positions: PyReadonlyArray1<'_, u64>,
        draws: Option<PyReadonlyArray1<'_, u64>>,
        epoch: u64,
        drop_last: bool,
        first: usize,
    ) -> PyResult<()> {
        let positions = positions.as_slice()?.to_vec();
        let draws = draws.map(|draws| draws.as_slice().map(<[u64]>::to_vec)).transpose()?;
        let order = Order { epoch, positions, draws, drop_last };
        py.detach(|| self.0.start(order, first)).map_err(to_py)
    }

    /// The next batch as (images of each view, positions, labels); None at the epoch's end. Labels are None where the
    /// source does not give them. Ctrl-C interrupts the wait.
    #[allow(clippy::type_complexity)]
    fn next_batch<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<
        Option<(
            Vec<Bound<'py, PyAny>>,
            Bound<'py, PyArray1<u64>>,
            Option<Bound<'py, PyArray1<i64>>>,
        )>,
    > {
        loop {
            match py.detach(|| self.0.next(PATIENCE)).map_err(to_py)? {
                Next::Pending => py.check_signals()?,
                Next::End => return Ok(None),
                Next::Batch(Batch { slots, positions, labels }) => {
                    let views = self.0.pipeline().views.iter().zip(slots);
                    let wrapped = views.map(|(view, slot)| {
                        let shape = [&[positions.len()], &view.emit.shape()[..]].concat();
                        Memory::from(slot).into_values(py, view.emit.dtype(), &shape)
                    });
                    let images = wrapped.collect::<PyResult<_>>()?;
                    let labels: Option<Vec<i64>> = labels.into_iter().collect();
                    let labels = labels.map(|labels| PyArray1::from_vec(py, labels));
                    return Ok(Some((images, PyArray1::from_vec(py, positions), labels)));
                }
            }
        }
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
    #[allow(clippy::type_complexity)]
    fn describe(
        &self,
        py: Python<'_>,
        epoch: u64,
        position: u64,
        draw: u64,
    ) -> PyResult<(String, (usize, usize), Vec<Vec<String>>)> {
        let plans = py.detach(|| self.0.pipeline().plans(epoch, position, draw));
        let (name, size, plans) = plans.map_err(to_py)?;
        let lines = |plan: &Plan| {
            let steps = plan.steps.iter().chain(&plan.float_steps);
            steps.map(|step| format!("{step:?}")).collect()
        };
        Ok((name, (size.height, size.width), plans.iter().map(lines).collect()))
    }

    /// Bytes of a batch and number of batches kept for reuse, view by view.
    #[getter]
    fn memory(&self) -> Vec<(usize, usize)> {
        self.0.memory()
    }

    /// Dimensions of one sample in a batch, view by view.
    #[getter]
    fn shapes(&self) -> Vec<Vec<usize>> {
        self.0.pipeline().views.iter().map(|view| view.emit.shape()).collect()
    }

    /// Ends the threads. Ctrl-C interrupts the wait for them; they end by themselves then.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        while !py.detach(|| self.0.close(PATIENCE)) {
            py.check_signals()?;
        }
        Ok(())
    }
}

/// Adds this file's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Loader>()
}

//! The loader: batches leave as numpy arrays over their slot's memory, without a copy.

use std::sync::Arc;
use std::time::Duration;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use vit_rs_core::augment::spec::Spec;
use vit_rs_core::emit::{Dtype, Emit, Layout, Values};
use vit_rs_core::image::Size;
use vit_rs_core::loader::{Batch, Loader as CoreLoader, Next, Order};
use vit_rs_core::patchify::Order as PatchOrder;
use vit_rs_core::pipeline::{OnError, Pipeline};
use vit_rs_core::slot::Slot;

use crate::error::to_py;
use crate::memory::Memory;
use crate::source::Source;
use crate::transform::Op;

/// How long a wait lasts before signals are looked at.
const PATIENCE: Duration = Duration::from_millis(50);

/// A pool of loader threads over one source and transform.
#[pyclass(frozen, module = "vit_rs._core", name = "Loader")]
struct Loader(CoreLoader);

fn layout(name: &str, patch: Option<(usize, usize)>) -> PyResult<Layout> {
    let patches = |order| match patch {
        Some((height, width)) => Ok(Layout::Patches { patch: Size::new(height, width), order }),
        None => Err(PyValueError::new_err("a patch layout needs a patch size")),
    };
    match name {
        "NCHW" => Ok(Layout::Nchw),
        "NHWC" => Ok(Layout::Nhwc),
        "pqc" => patches(PatchOrder::Pqc),
        "cpq" => patches(PatchOrder::Cpq),
        _ => Err(PyValueError::new_err(format!(
            "layout must be 'NCHW', 'NHWC' or Patches with order 'pqc' or 'cpq', got '{name}'"
        ))),
    }
}

fn dtype(name: &str) -> PyResult<Dtype> {
    match name {
        "uint8" => Ok(Dtype::U8),
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        "float32" => Ok(Dtype::F32),
        _ => Err(PyValueError::new_err(format!(
            "dtype must be uint8, float16, bfloat16 or float32, got {name}"
        ))),
    }
}

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
    #[pyo3(signature = (source, subset, ops, *, scale, normalize, dtype, layout, patch, batch_size, num_threads, prefetch, seed, max_pixels, on_error))]
    fn new(
        source: &Bound<'_, Source>,
        subset: Option<PyReadonlyArray1<'_, u64>>,
        ops: Vec<Bound<'_, Op>>,
        scale: Option<bool>,
        normalize: Option<(Vec<f32>, Vec<f32>)>,
        dtype: &str,
        layout: &str,
        patch: Option<(usize, usize)>,
        batch_size: usize,
        num_threads: usize,
        prefetch: usize,
        seed: u64,
        max_pixels: usize,
        on_error: &str,
    ) -> PyResult<Self> {
        let source = Arc::clone(&source.get().0);
        let values = match scale {
            None => Values::Raw,
            Some(scale) => Values::Float { scale, normalize },
        };
        let (dtype, layout) = (self::dtype(dtype)?, self::layout(layout, patch)?);
        let on_error = self::on_error(on_error)?;
        let ops = ops.iter().map(|op| op.get().0).collect();
        let subset = subset.map(|subset| subset.as_slice().map(<[u64]>::to_vec)).transpose()?;
        let make = || {
            let spec = Spec::new(ops)?;
            let size = spec.output_size(source.size())?;
            let emit = Emit::new(size, source.channels(), layout, dtype, &values)?;
            let pipeline = Pipeline { source, subset, spec, emit, seed, max_pixels, on_error };
            CoreLoader::new(pipeline, batch_size, num_threads, prefetch)
        };
        Ok(Self(make().map_err(to_py)?))
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

    /// The next batch as (images, positions); None at the epoch's end. Ctrl-C interrupts the wait.
    #[allow(clippy::type_complexity)]
    fn next_batch<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyArray1<u64>>)>> {
        loop {
            match py.detach(|| self.0.next(PATIENCE)).map_err(to_py)? {
                Next::Pending => py.check_signals()?,
                Next::End => return Ok(None),
                Next::Batch(Batch { slot, positions }) => {
                    let images = self.wrap(py, slot, positions.len())?;
                    return Ok(Some((images, PyArray1::from_vec(py, positions))));
                }
            }
        }
    }

    /// Counts and times (nanoseconds) since the loader was made.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.stats().map_err(to_py)?;
        let dict = PyDict::new(py);
        let counts = [
            ("images", stats.images),
            ("bytes", stats.bytes),
            ("read", stats.read),
            ("decode", stats.decode),
            ("augment", stats.augment),
            ("emit", stats.emit),
            ("wait", stats.wait),
            ("ready", stats.ready as u64),
        ];
        for (name, value) in counts {
            dict.set_item(name, value)?;
        }
        dict.set_item("failures", stats.failures)?;
        Ok(dict)
    }

    /// Dimensions of one sample in a batch.
    #[getter]
    fn shape(&self) -> Vec<usize> {
        self.0.pipeline().emit.shape()
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
    fn wrap<'py>(&self, py: Python<'py>, slot: Slot, len: usize) -> PyResult<Bound<'py, PyAny>> {
        let emit = &self.0.pipeline().emit;
        let shape: Vec<usize> = std::iter::once(len).chain(emit.shape()).collect();
        let memory = Memory::from(slot);
        Ok(match emit.dtype() {
            Dtype::U8 => memory.into_array::<u8>(py, &shape)?.into_any(),
            Dtype::F16 | Dtype::Bf16 => memory.into_array::<u16>(py, &shape)?.into_any(),
            Dtype::F32 => memory.into_array::<f32>(py, &shape)?.into_any(),
        })
    }
}

/// Adds this file's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Loader>()
}

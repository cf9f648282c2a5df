//! Erasing and normalising.

use pyo3::prelude::*;
use vit_rs_core::augment::spec::{ErasingValue, Normalize, RandomErasing};

use super::Op;

/// Random rectangles; no `value` stands for random numbers: one for each value, or for each channel.
#[pyfunction]
#[pyo3(signature = (p, scale, ratio, value, *, color, count))]
fn random_erasing(
    p: f64,
    scale: (f64, f64),
    ratio: (f64, f64),
    value: Option<Vec<f32>>,
    color: bool,
    count: (usize, usize),
) -> PyResult<Op> {
    let random = if color { ErasingValue::RandomColor } else { ErasingValue::Random };
    let value = value.map_or(random, ErasingValue::Constant);
    Op::new(RandomErasing { p, scale, ratio, value, count })
}

#[pyfunction]
fn normalize(mean: Vec<f32>, std: Vec<f32>) -> PyResult<Op> {
    Op::new(Normalize { mean, std })
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(random_erasing, module)?)?;
    module.add_function(wrap_pyfunction!(normalize, module)?)
}

//! Erasing and normalising.

use pyo3::prelude::*;
use vit_rs_core::augment::spec::{ErasingValue, Normalize, RandomErasing};

use super::Op;

/// Random rectangles; no `value` stands for random numbers.
#[pyfunction]
#[pyo3(signature = (p, scale, ratio, value))]
fn random_erasing(
    p: f64,
    scale: (f64, f64),
    ratio: (f64, f64),
    value: Option<Vec<f32>>,
) -> PyResult<Op> {
    let value = value.map_or(ErasingValue::Random, ErasingValue::Constant);
    Op::new(RandomErasing { p, scale, ratio, value })
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

//! Operations made of operations.

use pyo3::prelude::*;
use vit_rs_core::augment::spec::{RandomApply, RandomChoice, RandomOrder};

use super::Op;

#[pyfunction]
fn random_apply(ops: Vec<Bound<'_, Op>>, p: f64) -> PyResult<Op> {
    Op::new(RandomApply { ops: Op::list(&ops), p })
}

#[pyfunction]
fn random_choice(chains: Vec<Vec<Bound<'_, Op>>>, weights: Vec<f64>) -> PyResult<Op> {
    Op::new(RandomChoice { chains: chains.iter().map(|ops| Op::list(ops)).collect(), weights })
}

#[pyfunction]
fn random_order(ops: Vec<Bound<'_, Op>>) -> PyResult<Op> {
    Op::new(RandomOrder(Op::list(&ops)))
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(random_apply, module)?)?;
    module.add_function(wrap_pyfunction!(random_choice, module)?)?;
    module.add_function(wrap_pyfunction!(random_order, module)?)
}

//! Automatic augmentation policies.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vit_rs_core::augment::spec;

use super::Op;
use super::affine::look;

#[pyfunction]
fn rand_augment(
    num_ops: usize,
    magnitude: usize,
    num_magnitude_bins: usize,
    interpolation: &str,
    fill: Option<[u8; 3]>,
    v1: bool,
) -> PyResult<Op> {
    let look = look(interpolation, fill)?;
    Op::new(spec::RandAugment { num_ops, magnitude, num_magnitude_bins, look, v1 })
}

#[pyfunction]
fn trivial_augment_wide(
    num_magnitude_bins: usize,
    interpolation: &str,
    fill: Option<[u8; 3]>,
    v1: bool,
) -> PyResult<Op> {
    Op::new(spec::TrivialAugmentWide { num_magnitude_bins, look: look(interpolation, fill)?, v1 })
}

#[pyfunction]
fn auto_augment(
    policy: &str,
    interpolation: &str,
    fill: Option<[u8; 3]>,
    v1: bool,
) -> PyResult<Op> {
    let policy = match policy {
        "imagenet" => spec::Policy::ImageNet,
        "cifar10" => spec::Policy::Cifar10,
        "svhn" => spec::Policy::Svhn,
        _ => {
            return Err(PyValueError::new_err(format!(
                "policy must be 'imagenet', 'cifar10' or 'svhn', got '{policy}'"
            )));
        }
    };
    Op::new(spec::AutoAugment { policy, look: look(interpolation, fill)?, v1 })
}

#[pyfunction]
fn aug_mix(
    severity: usize,
    mixture_width: usize,
    chain_depth: Option<usize>,
    alpha: f64,
    all_ops: bool,
    interpolation: &str,
    fill: Option<[u8; 3]>,
) -> PyResult<Op> {
    let look = look(interpolation, fill)?;
    Op::new(spec::AugMix { severity, mixture_width, chain_depth, alpha, all_ops, look })
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rand_augment, module)?)?;
    module.add_function(wrap_pyfunction!(trivial_augment_wide, module)?)?;
    module.add_function(wrap_pyfunction!(auto_augment, module)?)?;
    module.add_function(wrap_pyfunction!(aug_mix, module)?)
}

//! Automatic augmentation policies.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vit_rs_core::augment::spec::{self, TimmName};

use super::Op;
use super::affine::{look, sampling};

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

/// One of timm's operations; an infinite `magnitude_std` stands for a uniform distribution.
#[pyfunction]
#[pyo3(signature = (name, *, p, magnitude, magnitude_std, magnitude_max, interpolation, fill, translate_const, translate_pct))]
fn timm_op(
    name: &str,
    p: f64,
    magnitude: f64,
    magnitude_std: f64,
    magnitude_max: f64,
    interpolation: Vec<String>,
    fill: [u8; 3],
    translate_const: f64,
    translate_pct: f64,
) -> PyResult<Op> {
    let Some(name) = TimmName::named(name) else {
        let names: Vec<&str> = TimmName::ALL.iter().map(|(name, _)| *name).collect();
        let text = format!("name must be one of {}, got '{name}'", names.join(", "));
        return Err(PyValueError::new_err(text));
    };
    let samplings = interpolation.iter().map(|name| sampling(name)).collect::<PyResult<_>>()?;
    Op::new(spec::TimmOp {
        name,
        p,
        magnitude,
        magnitude_std,
        magnitude_max,
        samplings,
        fill,
        translate_const,
        translate_pct,
    })
}

#[pyfunction]
fn timm_rand_augment(
    ops: Vec<Bound<'_, Op>>,
    num_layers: usize,
    weights: Option<Vec<f64>>,
) -> PyResult<Op> {
    Op::new(spec::TimmRandAugment { ops: Op::list(&ops), num_layers, weights })
}

#[pyfunction]
fn timm_aug_mix(
    ops: Vec<Bound<'_, Op>>,
    alpha: f64,
    width: usize,
    depth: Option<usize>,
) -> PyResult<Op> {
    Op::new(spec::TimmAugMix { ops: Op::list(&ops), alpha, width, depth })
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rand_augment, module)?)?;
    module.add_function(wrap_pyfunction!(trivial_augment_wide, module)?)?;
    module.add_function(wrap_pyfunction!(auto_augment, module)?)?;
    module.add_function(wrap_pyfunction!(aug_mix, module)?)?;
    module.add_function(wrap_pyfunction!(timm_aug_mix, module)?)?;
    module.add_function(wrap_pyfunction!(timm_op, module)?)?;
    module.add_function(wrap_pyfunction!(timm_rand_augment, module)?)
}

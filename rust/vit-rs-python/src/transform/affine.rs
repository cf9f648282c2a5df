//! Turns, shears, scalings and shifts.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vit_rs_core::augment::plan::Sampling;
use vit_rs_core::augment::spec::{Look, RandomAffine, RandomRotation};

use super::Op;

/// A sampling by its name; bicubic is Pillow's alone.
pub(super) fn sampling(interpolation: &str) -> PyResult<Sampling> {
    match interpolation {
        "nearest" => Ok(Sampling::Nearest),
        "bilinear" => Ok(Sampling::Bilinear),
        "bicubic" => Ok(Sampling::Bicubic),
        _ => Err(PyValueError::new_err(format!(
            "interpolation must be 'nearest', 'bilinear' or 'bicubic', got '{interpolation}'"
        ))),
    }
}

/// How affine maps look under torchvision's policies, which read one or four pixels.
pub(super) fn look(interpolation: &str, fill: Option<[u8; 3]>) -> PyResult<Look> {
    match sampling(interpolation)? {
        Sampling::Bicubic => Err(PyValueError::new_err(
            "interpolation must be 'nearest' or 'bilinear', got 'bicubic'",
        )),
        sampling => Ok(Look { sampling, fill }),
    }
}

#[pyfunction]
fn random_rotation(
    degrees: (f64, f64),
    interpolation: &str,
    expand: bool,
    center: Option<(f64, f64)>,
    fill: Option<[u8; 3]>,
) -> PyResult<Op> {
    Op::new(RandomRotation { degrees, expand, center, look: look(interpolation, fill)? })
}

#[pyfunction]
fn random_affine(
    degrees: (f64, f64),
    translate: Option<(f64, f64)>,
    scale: Option<(f64, f64)>,
    shear: Option<[(f64, f64); 2]>,
    interpolation: &str,
    fill: Option<[u8; 3]>,
    center: Option<(f64, f64)>,
) -> PyResult<Op> {
    let look = look(interpolation, fill)?;
    Op::new(RandomAffine { degrees, translate, scale, shear, center, look })
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(random_rotation, module)?)?;
    module.add_function(wrap_pyfunction!(random_affine, module)?)
}

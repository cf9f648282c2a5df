//! Crops, resizes and flips.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vit_rs_core::augment::plan::Border;
use vit_rs_core::augment::spec::{
    CenterCrop, RandomCrop, RandomHorizontalFlip, RandomResizedCrop, RandomVerticalFlip, Resize,
    Target,
};
use vit_rs_core::image::Size;
use vit_rs_core::resample::taps::Filter;

use super::Op;

pub(super) fn filter(name: &str) -> PyResult<Filter> {
    match name {
        "bilinear" => Ok(Filter::Bilinear),
        "bicubic" => Ok(Filter::Bicubic { a: -0.5 }),
        "lanczos" => Ok(Filter::Lanczos3),
        _ => Err(PyValueError::new_err(format!(
            "interpolation must be 'bilinear', 'bicubic' or 'lanczos', got '{name}'"
        ))),
    }
}

pub(super) fn border(name: &str, fill: [u8; 3]) -> PyResult<Border> {
    match name {
        "constant" => Ok(Border::Constant(fill)),
        "edge" => Ok(Border::Edge),
        "reflect" => Ok(Border::Reflect),
        "symmetric" => Ok(Border::Symmetric),
        _ => Err(PyValueError::new_err(format!(
            "padding_mode must be 'constant', 'edge', 'reflect' or 'symmetric', got '{name}'"
        ))),
    }
}

#[pyfunction]
fn random_resized_crop(
    size: (usize, usize),
    scale: (f64, f64),
    ratio: (f64, f64),
    interpolation: &str,
) -> PyResult<Op> {
    let (size, filter) = (Size::new(size.0, size.1), filter(interpolation)?);
    Op::new(RandomResizedCrop { size, scale, ratio, filter })
}

#[pyfunction]
fn resize(size: (usize, usize), interpolation: &str) -> PyResult<Op> {
    let target = Target::Exact(Size::new(size.0, size.1));
    Op::new(Resize { target, filter: filter(interpolation)? })
}

#[pyfunction]
#[pyo3(signature = (side, interpolation, max_size=None))]
fn resize_short_side(side: usize, interpolation: &str, max_size: Option<usize>) -> PyResult<Op> {
    let target = match max_size {
        None => Target::ShortSide(side),
        Some(most) => Target::Within { short: side, most },
    };
    Op::new(Resize { target, filter: filter(interpolation)? })
}

#[pyfunction]
fn resize_long_side(side: usize, interpolation: &str) -> PyResult<Op> {
    Op::new(Resize { target: Target::LongSide(side), filter: filter(interpolation)? })
}

#[pyfunction]
fn center_crop(size: (usize, usize)) -> PyResult<Op> {
    Op::new(CenterCrop(Size::new(size.0, size.1)))
}

#[pyfunction]
fn random_crop(
    size: (usize, usize),
    padding: [usize; 4],
    pad_if_needed: bool,
    fill: [u8; 3],
    padding_mode: &str,
) -> PyResult<Op> {
    let size = Size::new(size.0, size.1);
    Op::new(RandomCrop { size, padding, pad_if_needed, border: border(padding_mode, fill)? })
}

#[pyfunction]
fn random_horizontal_flip(p: f64) -> PyResult<Op> {
    Op::new(RandomHorizontalFlip(p))
}

#[pyfunction]
fn random_vertical_flip(p: f64) -> PyResult<Op> {
    Op::new(RandomVerticalFlip(p))
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(random_resized_crop, module)?)?;
    module.add_function(wrap_pyfunction!(resize, module)?)?;
    module.add_function(wrap_pyfunction!(resize_short_side, module)?)?;
    module.add_function(wrap_pyfunction!(resize_long_side, module)?)?;
    module.add_function(wrap_pyfunction!(center_crop, module)?)?;
    module.add_function(wrap_pyfunction!(random_crop, module)?)?;
    module.add_function(wrap_pyfunction!(random_horizontal_flip, module)?)?;
    module.add_function(wrap_pyfunction!(random_vertical_flip, module)?)
}

//! Resizes and windows that make images fit a size.

use pyo3::prelude::*;
use vit_rs_core::augment::spec::{CropOrPad, ResizeKeepRatio, TrimBorder};
use vit_rs_core::image::Size;

use super::Op;
use super::geometry::{border, filter};

#[pyfunction]
fn resize_keep_ratio(
    size: (usize, usize),
    longest: f64,
    interpolation: &str,
    zoom: (f64, (f64, f64)),
    zoom_by_area: bool,
    stretch: (f64, (f64, f64)),
) -> PyResult<Op> {
    let (size, filter) = (Size::new(size.0, size.1), filter(interpolation)?);
    Op::new(ResizeKeepRatio { size, longest, filter, zoom, zoom_by_area, stretch })
}

#[pyfunction]
fn crop_or_pad(
    size: (usize, usize),
    fill: [u8; 3],
    padding_mode: &str,
    random: bool,
) -> PyResult<Op> {
    let (size, border) = (Size::new(size.0, size.1), border(padding_mode, fill)?);
    Op::new(CropOrPad { size, border, random })
}

#[pyfunction]
fn trim_border(border_size: usize) -> PyResult<Op> {
    Op::new(TrimBorder(border_size))
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(resize_keep_ratio, module)?)?;
    module.add_function(wrap_pyfunction!(crop_or_pad, module)?)?;
    module.add_function(wrap_pyfunction!(trim_border, module)?)
}

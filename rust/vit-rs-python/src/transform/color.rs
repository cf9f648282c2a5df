//! Colours, blur and sharpness.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vit_rs_core::augment::plan::Color;
use vit_rs_core::augment::spec::{ColorJitter, GaussianBlur, Grayscale, RandomColor};
use vit_rs_core::image::Size;

use super::Op;

#[pyfunction]
fn color_jitter(
    brightness: Option<(f64, f64)>,
    contrast: Option<(f64, f64)>,
    saturation: Option<(f64, f64)>,
    hue: Option<(f64, f64)>,
) -> PyResult<Op> {
    Op::new(ColorJitter { brightness, contrast, saturation, hue })
}

#[pyfunction]
fn grayscale() -> PyResult<Op> {
    Op::new(Grayscale)
}

#[pyfunction]
fn random_color(name: &str, p: f64) -> PyResult<Op> {
    let color = match name {
        "grayscale" => Color::Grayscale,
        "invert" => Color::Invert,
        "equalize" => Color::Equalize,
        "autocontrast" => Color::AutoContrast,
        _ => return Err(PyValueError::new_err(format!("no change of colours is named '{name}'"))),
    };
    Op::new(RandomColor { color, p })
}

#[pyfunction]
fn random_posterize(bits: u8, p: f64) -> PyResult<Op> {
    Op::new(RandomColor { color: Color::Posterize(bits), p })
}

#[pyfunction]
fn random_solarize(threshold: f64, p: f64) -> PyResult<Op> {
    if threshold.is_nan() || threshold > 255.0 {
        let text = format!("threshold must be at most 255, got {threshold}");
        return Err(PyValueError::new_err(text));
    }
    Op::new(RandomColor { color: Color::Solarize(threshold), p })
}

#[pyfunction]
fn random_adjust_sharpness(sharpness_factor: f64, p: f64) -> PyResult<Op> {
    Op::new(RandomColor { color: Color::Sharpness(sharpness_factor), p })
}

#[pyfunction]
fn gaussian_blur(kernel_size: (usize, usize), sigma: (f64, f64)) -> PyResult<Op> {
    Op::new(GaussianBlur { kernel: Size::new(kernel_size.0, kernel_size.1), sigma })
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(color_jitter, module)?)?;
    module.add_function(wrap_pyfunction!(gaussian_blur, module)?)?;
    module.add_function(wrap_pyfunction!(grayscale, module)?)?;
    module.add_function(wrap_pyfunction!(random_adjust_sharpness, module)?)?;
    module.add_function(wrap_pyfunction!(random_color, module)?)?;
    module.add_function(wrap_pyfunction!(random_posterize, module)?)?;
    module.add_function(wrap_pyfunction!(random_solarize, module)?)
}

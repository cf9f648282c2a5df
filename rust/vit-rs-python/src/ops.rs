//! Tensor operators. Arrays come as flat bytes with their element type beside them, so that one function serves every
//! dtype of torch, bfloat16 included; Python allocates the results. No array may be written to during a call.

// PyO3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use bytemuck::{Pod, PodCastError};
use half::{bf16, f16};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vit_rs_core::error::Result;
use vit_rs_core::line::{Element, Float, Normalization, Source};
use vit_rs_core::patchify::{Geometry, Layout, Order, patchify_normalized};
use vit_rs_core::resample::f32::resample;
use vit_rs_core::resample::taps::{Axis, Filter, taps};

use crate::error::to_py;

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(patchify, module)?)?;
    module.add_function(wrap_pyfunction!(patchify_converted, module)?)?;
    module.add_function(wrap_pyfunction!(unpatchify, module)?)?;
    module.add_function(wrap_pyfunction!(resample_tokens, module)?)?;
    module.add_function(wrap_pyfunction!(interpolation_matrix, module)?)?;
    Ok(())
}

/// Values of the largest interpolation matrix, 1 GiB.
const MAX_MATRIX: usize = 1 << 27;

/// Batch, channels, height, width.
type Shape = (usize, usize, usize, usize);
/// Height, width.
type Pair = (usize, usize);

/// Cuts images into patches of the same element type, both as bytes.
#[pyfunction]
#[pyo3(signature = (images, patches, *, element_size, shape, patch_size, order, layout, num_threads))]
fn patchify(
    py: Python<'_>,
    images: PyReadonlyArray1<'_, u8>,
    mut patches: PyReadwriteArray1<'_, u8>,
    element_size: usize,
    shape: Shape,
    patch_size: Pair,
    order: &str,
    layout: &str,
    num_threads: usize,
) -> PyResult<()> {
    let geometry = geometry(shape, patch_size, order, layout)?;
    let (images, patches) = (images.as_slice()?, patches.as_slice_mut()?);
    py.detach(|| permute(element_size, images, patches, &Patchify { geometry, num_threads }))
}

/// Puts patches together into images of the same element type, both as bytes.
#[pyfunction]
#[pyo3(signature = (patches, images, *, element_size, shape, patch_size, order, layout, num_threads))]
fn unpatchify(
    py: Python<'_>,
    patches: PyReadonlyArray1<'_, u8>,
    mut images: PyReadwriteArray1<'_, u8>,
    element_size: usize,
    shape: Shape,
    patch_size: Pair,
    order: &str,
    layout: &str,
    num_threads: usize,
) -> PyResult<()> {
    let geometry = geometry(shape, patch_size, order, layout)?;
    let (patches, images) = (patches.as_slice()?, images.as_slice_mut()?);
    py.detach(|| permute(element_size, patches, images, &Unpatchify { geometry, num_threads }))
}

/// Cuts images into patches of another element type or scale, both as bytes; dtypes are torch's names.
#[pyfunction]
#[pyo3(signature = (
    images, patches, *, image_dtype, patch_dtype, mean, std, shape, patch_size, order, layout, num_threads
))]
fn patchify_converted(
    py: Python<'_>,
    images: PyReadonlyArray1<'_, u8>,
    mut patches: PyReadwriteArray1<'_, u8>,
    image_dtype: &str,
    patch_dtype: &str,
    mean: Vec<f32>,
    std: Vec<f32>,
    shape: Shape,
    patch_size: Pair,
    order: &str,
    layout: &str,
    num_threads: usize,
) -> PyResult<()> {
    let geometry = geometry(shape, patch_size, order, layout)?;
    let normalization = Normalization::new(shape.1, &mean, &std).map_err(to_py)?;
    let conversion = Conversion { geometry, normalization, num_threads };
    let (images, patches) = (images.as_slice()?, patches.as_slice_mut()?);
    py.detach(|| match patch_dtype {
        "float32" => conversion.write::<f32>(image_dtype, images, patches),
        "float16" => conversion.write::<f16>(image_dtype, images, patches),
        "bfloat16" => conversion.write::<bf16>(image_dtype, images, patches),
        other => Err(unsupported(other)),
    })
}

/// Resamples the grid of each token table of a batch, all as flat f32.
#[pyfunction]
#[pyo3(signature = (
    source, target, *, batch, prefix, channels, old_size, new_size, interpolation, antialias, align_corners, a, scale,
    num_threads
))]
fn resample_tokens(
    py: Python<'_>,
    source: PyReadonlyArray1<'_, f32>,
    mut target: PyReadwriteArray1<'_, f32>,
    batch: usize,
    prefix: usize,
    channels: usize,
    old_size: Pair,
    new_size: Pair,
    interpolation: &str,
    antialias: bool,
    align_corners: bool,
    a: Option<f64>,
    scale: (Option<f64>, Option<f64>),
    num_threads: usize,
) -> PyResult<()> {
    let filter = filter(interpolation, antialias, a)?;
    let axis = |input, output, scale| {
        taps(&Axis { input, output, filter, antialias, align_corners, scale })
    };
    let (source, target) = (source.as_slice()?, target.as_slice_mut()?);
    py.detach(|| {
        let vertical = axis(old_size.0, new_size.0, scale.0)?;
        let horizontal = axis(old_size.1, new_size.1, scale.1)?;
        resample(source, target, batch, prefix, channels, &vertical, &horizontal, num_threads)
    })
    .map_err(to_py)
}

/// The matrix of a resize of one axis, `output` rows of `input` values, flat.
#[pyfunction]
#[pyo3(signature = (input, output, *, interpolation, antialias, align_corners, a, scale))]
fn interpolation_matrix<'py>(
    py: Python<'py>,
    input: usize,
    output: usize,
    interpolation: &str,
    antialias: bool,
    align_corners: bool,
    a: Option<f64>,
    scale: Option<f64>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let filter = filter(interpolation, antialias, a)?;
    let axis = Axis { input, output, filter, antialias, align_corners, scale };
    if input.saturating_mul(output) > MAX_MATRIX {
        return Err(PyValueError::new_err(format!(
            "a matrix of {output}x{input} values is larger than {MAX_MATRIX}"
        )));
    }
    Ok(taps(&axis).map_err(to_py)?.dense().into_pyarray(py))
}

fn geometry(shape: Shape, patch_size: Pair, order: &str, layout: &str) -> PyResult<Geometry> {
    let order = match order {
        "pqc" => Order::Pqc,
        "cpq" => Order::Cpq,
        other => return Err(choice("order", "'pqc' or 'cpq'", other)),
    };
    let layout = match layout {
        "NCHW" => Layout::Nchw,
        "NHWC" => Layout::Nhwc,
        other => return Err(choice("layout", "'NCHW' or 'NHWC'", other)),
    };
    Geometry::new(shape, patch_size, layout, order).map_err(to_py)
}

/// torch's cubic has another slope with antialiasing, that of Pillow.
fn filter(interpolation: &str, antialias: bool, a: Option<f64>) -> PyResult<Filter> {
    match (interpolation, a) {
        ("bicubic", a) => {
            Ok(Filter::Bicubic { a: a.unwrap_or(if antialias { -0.5 } else { -0.75 }) })
        }
        ("bilinear", None) => Ok(Filter::Bilinear),
        ("bilinear", Some(_)) => {
            Err(PyValueError::new_err("a belongs to bicubic interpolation, got 'bilinear'"))
        }
        (other, _) => Err(choice("interpolation", "'bicubic' or 'bilinear'", other)),
    }
}

fn choice(name: &str, expected: &str, got: &str) -> PyErr {
    PyValueError::new_err(format!("{name} must be {expected}, got '{got}'"))
}

fn unsupported(dtype: &str) -> PyErr {
    PyValueError::new_err(format!("no conversion for dtype {dtype}"))
}

/// Elements of a byte array.
fn cast<T: Pod>(bytes: &[u8]) -> PyResult<&[T]> {
    bytemuck::try_cast_slice(bytes).map_err(not_elements)
}

fn cast_mut<T: Pod>(bytes: &mut [u8]) -> PyResult<&mut [T]> {
    bytemuck::try_cast_slice_mut(bytes).map_err(not_elements)
}

fn not_elements(error: PodCastError) -> PyErr {
    PyValueError::new_err(format!("the array's bytes are no whole, aligned elements: {error}"))
}

/// An operation that moves elements without looking at them.
trait Permutation {
    fn apply<T: Element>(&self, source: &[T], target: &mut [T]) -> Result<()>;
}

struct Patchify {
    geometry: Geometry,
    num_threads: usize,
}

impl Permutation for Patchify {
    fn apply<T: Element>(&self, source: &[T], target: &mut [T]) -> Result<()> {
        vit_rs_core::patchify::patchify(&self.geometry, source, target, self.num_threads)
    }
}

struct Unpatchify {
    geometry: Geometry,
    num_threads: usize,
}

impl Permutation for Unpatchify {
    fn apply<T: Element>(&self, source: &[T], target: &mut [T]) -> Result<()> {
        vit_rs_core::patchify::unpatchify(&self.geometry, source, target, self.num_threads)
    }
}

fn permute(
    element_size: usize,
    source: &[u8],
    target: &mut [u8],
    permutation: &impl Permutation,
) -> PyResult<()> {
    match element_size {
        1 => permutation.apply::<u8>(source, target),
        2 => permutation.apply::<u16>(cast(source)?, cast_mut(target)?),
        4 => permutation.apply::<u32>(cast(source)?, cast_mut(target)?),
        8 => permutation.apply::<u64>(cast(source)?, cast_mut(target)?),
        16 => permutation.apply::<[u64; 2]>(cast(source)?, cast_mut(target)?),
        other => {
            return Err(PyValueError::new_err(format!(
                "elements must be of 1, 2, 4, 8 or 16 bytes, got {other}"
            )));
        }
    }
    .map_err(to_py)
}

struct Conversion {
    geometry: Geometry,
    normalization: Normalization,
    num_threads: usize,
}

impl Conversion {
    fn write<D: Float>(
        &self,
        image_dtype: &str,
        images: &[u8],
        patches: &mut [u8],
    ) -> PyResult<()> {
        let patches = cast_mut::<D>(patches)?;
        match image_dtype {
            "uint8" => self.convert::<u8, D>(images, patches),
            "float32" => self.convert::<f32, D>(images, patches),
            "float16" => self.convert::<f16, D>(images, patches),
            "bfloat16" => self.convert::<bf16, D>(images, patches),
            other => Err(unsupported(other)),
        }
    }

    fn convert<S: Source, D: Float>(&self, images: &[u8], patches: &mut [D]) -> PyResult<()> {
        let Self { geometry, normalization, num_threads } = self;
        patchify_normalized(geometry, normalization, cast::<S>(images)?, patches, *num_threads)
            .map_err(to_py)
    }
}

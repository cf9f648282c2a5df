//! Chains of transforms, as `vit_rs.transforms` lowers them: a file for each family of operations.

mod affine;
mod color;
mod containers;
mod fit;
mod geometry;
mod policy;
mod values;

use std::sync::Arc;

use numpy::{PyReadonlyArray3, PyReadwriteArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vit_rs_core::augment::plan::{Affine, Color, Fill, Kernels, Plan, Sampling, Step};
use vit_rs_core::augment::spec::{Op as CoreOp, Spec};
use vit_rs_core::emit::{Dtype, Layout, Output, Values};
use vit_rs_core::error::Error;
use vit_rs_core::image::{ImageView, Size};
use vit_rs_core::line::Unit;
use vit_rs_core::patchify::Order;
use vit_rs_core::pipeline::Decoding;
use vit_rs_core::rng::EpochKey;
use vit_rs_core::transformer::{Finished, Image, Transformer as CoreTransformer};

use crate::error::to_py;
use crate::memory::Memory;

/// One operation with the user's parameters.
#[pyclass(frozen, module = "vit_rs._core", name = "Op")]
#[derive(Clone)]
pub struct Op(Arc<dyn CoreOp>);

impl Op {
    /// An operation, once its parameters were checked.
    fn new(op: impl CoreOp + 'static) -> PyResult<Self> {
        op.check().map_err(to_py)?;
        Ok(Self(Arc::new(op)))
    }

    fn list(ops: &[Bound<'_, Self>]) -> Vec<Arc<dyn CoreOp>> {
        ops.iter().map(|op| Arc::clone(&op.get().0)).collect()
    }
}

#[pymethods]
impl Op {
    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// What is done to one view of an image, and how it is written.
#[pyclass(frozen, module = "vit_rs._core", name = "View")]
pub struct View {
    pub spec: Spec,
    pub output: Output,
}

#[pymethods]
impl View {
    #[new]
    #[pyo3(signature = (ops, float_ops, *, kernels, tensors_from, unit, normalize, dtype, layout, patch))]
    fn new(
        ops: Vec<Bound<'_, Op>>,
        float_ops: Vec<Bound<'_, Op>>,
        kernels: &str,
        tensors_from: Option<usize>,
        unit: Option<&str>,
        normalize: Option<(Vec<f32>, Vec<f32>)>,
        dtype: &str,
        layout: &str,
        patch: Option<(usize, usize)>,
    ) -> PyResult<Self> {
        let values = match unit {
            None => Values::Raw,
            Some(unit) => Values::Float { unit: self::unit(unit)?, normalize },
        };
        let (kernels, pillow_12) = self::kernels(kernels)?;
        let spec = Spec::new(Op::list(&ops), Op::list(&float_ops), kernels);
        let (layout, dtype) = (self::layout(layout, patch)?, self::dtype(dtype)?);
        let spec = spec.map_err(to_py)?.tensors_from(tensors_from.unwrap_or(ops.len()));
        let spec = if pillow_12 { spec.before_pillow_13() } else { spec };
        Ok(Self { spec, output: Output { layout, dtype, values } })
    }

    /// The plan of one sample, for people: a line for each step.
    fn describe(
        &self,
        size: (usize, usize),
        seed: u64,
        epoch: u64,
        draw: u64,
        view: u16,
    ) -> PyResult<Vec<String>> {
        let plan = self.plan(size, seed, epoch, draw, view)?;
        let steps = plan.steps.iter().chain(&plan.float_steps);
        Ok(steps.map(|step| format!("{step:?}")).collect())
    }

    /// The numbers drawn for one sample, in order, as `numbers` tells each step: on 8-bit pixels, and on floats.
    #[allow(clippy::type_complexity)]
    fn draw_plan(
        &self,
        size: (usize, usize),
        seed: u64,
        epoch: u64,
        draw: u64,
        view: u16,
    ) -> PyResult<(Vec<(&'static str, Vec<f64>)>, Vec<(&'static str, Vec<f64>)>)> {
        let plan = self.plan(size, seed, epoch, draw, view)?;
        let told = |steps: &[Step]| steps.iter().flat_map(tell).collect();
        Ok((told(&plan.steps), told(&plan.float_steps)))
    }
}

impl View {
    fn plan(
        &self,
        size: (usize, usize),
        seed: u64,
        epoch: u64,
        draw: u64,
        view: u16,
    ) -> PyResult<Plan> {
        let key = EpochKey::new(seed, epoch);
        self.spec.plan(Size::new(size.0, size.1), key, draw, view).map_err(to_py)
    }
}

/// A step's name and numbers; those of the chains of a mix stand behind it, each after a `chain`, those of a blend too.
fn tell(step: &Step) -> Vec<(&'static str, Vec<f64>)> {
    let mut told = vec![numbers(step)];
    if let Step::Mix { chains, .. } = step {
        for (weight, steps) in chains {
            told.push(("chain", vec![f64::from(*weight), steps.len() as f64]));
            told.extend(steps.iter().flat_map(tell));
        }
    }
    if let Step::Blend { steps, .. } = step {
        told.extend(steps.iter().flat_map(tell));
    }
    told
}

/// A step's name and its numbers: crop (top, left, height, width), window (the same, may reach outside), resize (height,
/// width), `flip_horizontal` and `flip_vertical` (none), `affine` (the inverse map's six, height, width, and 0 for
/// nearest, 1 for bilinear, 2 for bicubic sampling), `gaussian_blur` (kernel height and width, sigma of both),
/// `box_blur` (sigma), `blend` (weight of the chain, number of its steps), `mix` (weight of the image, number of
/// chains), `erase` (top, left, height, width, the values) or `erase_random` or `erase_color` (without values),
/// `normalize` (means, then as many standard deviations), and the colours' names in lower case (their number, if they have one).
fn numbers(step: &Step) -> (&'static str, Vec<f64>) {
    let whole = |numbers: &[usize]| numbers.iter().map(|&number| number as f64).collect::<Vec<_>>();
    match step {
        Step::Crop(rect) => ("crop", whole(&[rect.top, rect.left, rect.height, rect.width])),
        Step::Window { top, left, size, .. } => {
            ("window", vec![*top as f64, *left as f64, size.height as f64, size.width as f64])
        }
        Step::Resize { size, .. } => ("resize", whole(&[size.height, size.width])),
        Step::FlipHorizontal => ("flip_horizontal", Vec::new()),
        Step::FlipVertical => ("flip_vertical", Vec::new()),
        Step::Affine(Affine { inverse, size, sampling, .. }, _) => {
            let sampling = match sampling {
                Sampling::Nearest => 0.0,
                Sampling::Bilinear => 1.0,
                Sampling::Bicubic => 2.0,
            };
            let others = [size.height as f64, size.width as f64, sampling];
            ("affine", inverse.iter().copied().chain(others).collect())
        }
        Step::Mix { keep, chains } => ("mix", vec![f64::from(*keep), chains.len() as f64]),
        Step::GaussianBlur { kernel, sigma } => {
            let numbers = [kernel.height as f64, kernel.width as f64, sigma.0, sigma.1];
            ("gaussian_blur", numbers.to_vec())
        }
        Step::BoxBlur(sigma) => ("box_blur", vec![*sigma]),
        Step::Blend { share, steps } => ("blend", vec![f64::from(*share), steps.len() as f64]),
        Step::Erase { rect, fill } => {
            let mut numbers = whole(&[rect.top, rect.left, rect.height, rect.width]);
            match fill {
                Fill::Constant(values) => {
                    numbers.extend(values.iter().copied().map(f64::from));
                    ("erase", numbers)
                }
                Fill::Normal(_) => ("erase_random", numbers),
                Fill::NormalColor(_) => ("erase_color", numbers),
            }
        }
        Step::Normalize { mean, std } => {
            ("normalize", mean.iter().chain(std).copied().map(f64::from).collect())
        }
        Step::Color(color, _) => match *color {
            Color::Brightness(factor) => ("brightness", vec![factor]),
            Color::Contrast(factor) => ("contrast", vec![factor]),
            Color::Saturation(factor) => ("saturation", vec![factor]),
            Color::Hue(turn) => ("hue", vec![turn]),
            Color::Grayscale => ("grayscale", Vec::new()),
            Color::Invert => ("invert", Vec::new()),
            Color::Posterize(bits) => ("posterize", vec![f64::from(bits)]),
            Color::Solarize(threshold) => ("solarize", vec![threshold]),
            Color::SolarizeAdd(add) => ("solarize_add", vec![f64::from(add)]),
            Color::Equalize => ("equalize", Vec::new()),
            Color::AutoContrast => ("autocontrast", Vec::new()),
            Color::Sharpness(factor) => ("sharpness", vec![factor]),
        },
    }
}

/// Where the only view is written instead of memory of its own: bytes, and the shape of the values that they are.
type Place<'py> = (PyReadwriteArray1<'py, u8>, Vec<usize>);

/// Views applied to images that come one by one.
#[pyclass(frozen, module = "vit_rs._core", name = "Transformer")]
struct Transformer(CoreTransformer);

#[pymethods]
impl Transformer {
    #[new]
    fn new(views: Vec<Bound<'_, View>>, max_pixels: usize) -> Self {
        let views = views.iter().map(|view| (view.get().spec.clone(), view.get().output.clone()));
        let decoding = Decoding { max_pixels, exif: false, fast: false };
        Self(CoreTransformer::new(views.collect(), decoding))
    }

    /// Decodes and transforms a file's bytes: an array for each view.
    #[pyo3(signature = (data, seed, out=None))]
    fn encoded<'py>(
        &self,
        data: &Bound<'py, PyBytes>,
        seed: u64,
        out: Option<Place<'py>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.run(data.py(), Image::Encoded(data.as_bytes()), seed, out)
    }

    /// Transforms u8 pixels (H, W, C) whose rows are contiguous: an array for each view.
    #[pyo3(signature = (pixels, seed, out=None))]
    fn pixels<'py>(
        &self,
        pixels: PyReadonlyArray3<'py, u8>,
        seed: u64,
        out: Option<Place<'py>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let &[height, width, channels] = pixels.shape() else {
            return Err(PyValueError::new_err("an image has three dimensions"));
        };
        let bytes = pixels.as_slice()?;
        let view = ImageView::new(bytes, Size::new(height, width), channels, width * channels);
        let image = Image::Pixels(view.map_err(to_py)?);
        self.run(pixels.py(), image, seed, out)
    }

    /// Transforms contiguous u8 planes (C, H, W): an array for each view.
    #[pyo3(signature = (planes, seed, out=None))]
    fn planes<'py>(
        &self,
        planes: PyReadonlyArray3<'py, u8>,
        seed: u64,
        out: Option<Place<'py>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let &[channels, height, width] = planes.shape() else {
            return Err(PyValueError::new_err("an image has three dimensions"));
        };
        let size = Size::new(height, width);
        let image = Image::Planes { values: planes.as_slice()?, size, channels };
        self.run(planes.py(), image, seed, out)
    }
}

impl Transformer {
    fn run<'py>(
        &self,
        py: Python<'py>,
        image: Image<'_>,
        seed: u64,
        out: Option<Place<'py>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let key = EpochKey::new(seed, 0);
        if let Some((mut values, shape)) = out {
            let place = values.as_slice_mut()?;
            let take = |view: Finished<'_>| {
                let made = view.emit().shape();
                if made != shape {
                    let text = format!("out has shape {shape:?}, the result has {made:?}");
                    return Err(Error::argument(text));
                }
                view.write(place)
            };
            py.detach(|| self.0.run(image, key, take)).map_err(to_py)?;
            return Ok(Vec::new());
        }
        let mut made = Vec::new();
        let take = |view: Finished<'_>| {
            let emit = view.emit().clone();
            let mut buffer = Memory::buffer(emit.bytes())?;
            let bytes = buffer.as_mut_slice().get_mut(..emit.bytes());
            view.write(bytes.ok_or_else(|| Error::Memory(emit.bytes()))?)?;
            made.push((buffer, emit));
            Ok(())
        };
        py.detach(|| self.0.run(image, key, take)).map_err(to_py)?;
        let arrays = made.into_iter().map(|(buffer, emit)| {
            Memory::from(buffer).into_values(py, emit.dtype(), &emit.shape())
        });
        arrays.collect()
    }
}

fn unit(name: &str) -> PyResult<Unit> {
    match name {
        "one" => Ok(Unit::ONE),
        "multiplied" => Ok(Unit::MULTIPLIED),
        "divided" => Ok(Unit::DIVIDED),
        _ => {
            let text = format!("unit must be 'one', 'multiplied' or 'divided', got '{name}'");
            Err(PyValueError::new_err(text))
        }
    }
}

/// Whose pixels a chain gives, and whether Pillow's are those before version 13.
fn kernels(name: &str) -> PyResult<(Kernels, bool)> {
    match name {
        "torch" => Ok((Kernels::Torch, false)),
        "pillow" => Ok((Kernels::Pillow, false)),
        "pillow12" => Ok((Kernels::Pillow, true)),
        _ => {
            let text = format!("kernels must be 'torch', 'pillow' or 'pillow12', got '{name}'");
            Err(PyValueError::new_err(text))
        }
    }
}

fn layout(name: &str, patch: Option<(usize, usize)>) -> PyResult<Layout> {
    let patches = |order| match patch {
        Some((height, width)) => Ok(Layout::Patches { patch: Size::new(height, width), order }),
        None => Err(PyValueError::new_err("a patch layout needs a patch size")),
    };
    match name {
        "NCHW" => Ok(Layout::Nchw),
        "NHWC" => Ok(Layout::Nhwc),
        "pqc" => patches(Order::Pqc),
        "cpq" => patches(Order::Cpq),
        _ => Err(PyValueError::new_err(format!(
            "layout must be 'NCHW', 'NHWC' or Patches with order 'pqc' or 'cpq', got '{name}'"
        ))),
    }
}

fn dtype(name: &str) -> PyResult<Dtype> {
    match name {
        "uint8" => Ok(Dtype::U8),
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        "float32" => Ok(Dtype::F32),
        _ => Err(PyValueError::new_err(format!(
            "dtype must be uint8, float16, bfloat16 or float32, got {name}"
        ))),
    }
}

/// Adds this folder's functions and classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Op>()?;
    module.add_class::<Transformer>()?;
    module.add_class::<View>()?;
    affine::register(module)?;
    color::register(module)?;
    containers::register(module)?;
    fit::register(module)?;
    geometry::register(module)?;
    policy::register(module)?;
    values::register(module)
}

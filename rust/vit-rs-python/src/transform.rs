//! Operations of a transform chain, as `vit_rs.transforms` lowers them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vit_rs_core::augment::plan::{Border, Step};
use vit_rs_core::augment::spec::{Op as CoreOp, Spec, Target};
use vit_rs_core::image::Size;
use vit_rs_core::resample::taps::Filter;
use vit_rs_core::rng::EpochKey;

use crate::error::to_py;

/// One operation with the user's parameters.
#[pyclass(frozen, module = "vit_rs._core", name = "Op")]
#[derive(Clone)]
pub struct Op(pub CoreOp);

fn filter(name: &str) -> PyResult<Filter> {
    match name {
        "bilinear" => Ok(Filter::Bilinear),
        "bicubic" => Ok(Filter::Bicubic { a: -0.5 }),
        "lanczos" => Ok(Filter::Lanczos3),
        _ => Err(PyValueError::new_err(format!(
            "interpolation must be 'bilinear', 'bicubic' or 'lanczos', got '{name}'"
        ))),
    }
}

fn border(name: &str, fill: [u8; 3]) -> PyResult<Border> {
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

impl Op {
    /// An operation whose numbers were checked.
    fn new(op: CoreOp) -> PyResult<Self> {
        Spec::new(vec![op]).map_err(to_py)?;
        Ok(Self(op))
    }
}

#[pymethods]
impl Op {
    #[staticmethod]
    fn random_resized_crop(
        size: (usize, usize),
        scale: (f64, f64),
        ratio: (f64, f64),
        interpolation: &str,
    ) -> PyResult<Self> {
        let (size, filter) = (Size::new(size.0, size.1), filter(interpolation)?);
        Self::new(CoreOp::RandomResizedCrop { size, scale, ratio, filter })
    }

    #[staticmethod]
    fn resize(size: (usize, usize), interpolation: &str) -> PyResult<Self> {
        let target = Target::Exact(Size::new(size.0, size.1));
        Self::new(CoreOp::Resize { target, filter: filter(interpolation)? })
    }

    #[staticmethod]
    fn resize_short_side(side: usize, interpolation: &str) -> PyResult<Self> {
        let target = Target::ShortSide(side);
        Self::new(CoreOp::Resize { target, filter: filter(interpolation)? })
    }

    #[staticmethod]
    fn center_crop(size: (usize, usize)) -> PyResult<Self> {
        Self::new(CoreOp::CenterCrop(Size::new(size.0, size.1)))
    }

    #[staticmethod]
    fn random_crop(
        size: (usize, usize),
        padding: [usize; 4],
        pad_if_needed: bool,
        fill: [u8; 3],
        padding_mode: &str,
    ) -> PyResult<Self> {
        let size = Size::new(size.0, size.1);
        let border = border(padding_mode, fill)?;
        Self::new(CoreOp::RandomCrop { size, padding, pad_if_needed, border })
    }

    #[staticmethod]
    fn random_horizontal_flip(p: f64) -> PyResult<Self> {
        Self::new(CoreOp::RandomHorizontalFlip(p))
    }

    #[staticmethod]
    fn random_vertical_flip(p: f64) -> PyResult<Self> {
        Self::new(CoreOp::RandomVerticalFlip(p))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// The numbers drawn for one sample, in order: (step, its whole numbers). Steps are crop (top, left, height, width),
/// window (the same, may reach outside), resize (height, width), `flip_horizontal` and `flip_vertical`.
#[pyfunction]
fn draw_plan(
    ops: Vec<Bound<'_, Op>>,
    size: (usize, usize),
    seed: u64,
    epoch: u64,
    draw: u64,
) -> PyResult<Vec<(&'static str, Vec<i64>)>> {
    let ops = ops.iter().map(|op| op.get().0).collect();
    let plan = Spec::new(ops)
        .and_then(|spec| spec.plan(Size::new(size.0, size.1), EpochKey::new(seed, epoch), draw, 0));
    let whole = |numbers: &[usize]| numbers.iter().map(|&number| number as i64).collect();
    let steps = plan.map_err(to_py)?.steps.into_iter().map(|step| match step {
        Step::Crop(rect) => ("crop", whole(&[rect.top, rect.left, rect.height, rect.width])),
        Step::Window { top, left, size, .. } => {
            ("window", vec![top, left, size.height as i64, size.width as i64])
        }
        Step::Resize { size, .. } => ("resize", whole(&[size.height, size.width])),
        Step::FlipHorizontal => ("flip_horizontal", Vec::new()),
        Step::FlipVertical => ("flip_vertical", Vec::new()),
    });
    Ok(steps.collect())
}

/// Adds this file's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Op>()?;
    module.add_function(wrap_pyfunction!(draw_plan, module)?)
}

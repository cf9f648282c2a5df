//! What the user asked for. Names, parameters and distributions are torchvision v2's; the random numbers are ours.
//!
//! An operation is a value with its parameters; drawing it adds steps with all numbers to a plan. Each operation of a
//! view, those inside others too, draws from a stream of its own.

mod affine;
mod color;
mod containers;
mod fit;
mod geometry;
mod policy;
mod values;

use std::fmt::Debug;
use std::sync::Arc;

pub use affine::{Look, RandomAffine, RandomRotation};
pub use color::{ColorJitter, GaussianBlur, Grayscale, RandomColor};
pub use containers::{RandomApply, RandomChoice, RandomOrder};
pub use fit::{CropOrPad, ResizeKeepRatio, TrimBorder};
pub use geometry::{
    CenterCrop, RandomCrop, RandomHorizontalFlip, RandomResizedCrop, RandomVerticalFlip, Resize,
    Target,
};
pub use policy::{
    AugMix, AutoAugment, Policy, RandAugment, TimmAugMix, TimmName, TimmOp, TimmRandAugment,
    TrivialAugmentWide,
};
pub use values::{ErasingValue, Normalize, RandomErasing};

use super::plan::{Border, Color, Kernels, Plan, Step};
use crate::error::{Error, Result};
use crate::image::{Rect, Size};
use crate::resample::taps::Filter;
use crate::resample::u8::Rounding;
use crate::rng::{EpochKey, Stream};

/// The kind of pixels that an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Floats; else 8-bit values.
    pub floats: bool,
    /// How many channels they have, where that is known.
    pub channels: Option<usize>,
}

/// An operation with the user's parameters.
pub trait Op: Debug + Send + Sync {
    /// Looks whether the parameters make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] with the one that does not.
    fn check(&self) -> Result<()>;

    /// Looks whether the parameters, and those of operations inside this one, go with pixels of this kind.
    ///
    /// # Errors
    /// [`Error::Argument`] with the one that does not.
    fn check_for(&self, _: Domain) -> Result<()> {
        Ok(())
    }

    /// Draws this operation's numbers and adds its steps.
    ///
    /// # Errors
    /// [`Error::Sample`] when the image cannot be what the operation needs.
    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()>;

    /// The size of every image after this operation, when all have size `before` (None: any).
    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        before
    }

    /// How many operations this is, those inside it counted too.
    fn count(&self) -> usize {
        1
    }
}

/// A plan in the making.
#[derive(Debug)]
pub struct Drawing {
    key: EpochKey,
    draw: u64,
    view: u16,
    /// Operations that were drawn.
    operations: u16,
    kernels: Kernels,
    /// Whether Pillow is older than version 13.
    pillow_12: bool,
    /// Whether the pixels are floats at this point.
    floats: bool,
    size: Size,
    steps: Vec<Step>,
}

impl Drawing {
    /// The image's size at this point.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Whose pixels the steps are to give.
    #[must_use]
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Whether the pixels are floats at this point, else 8-bit values.
    #[must_use]
    pub fn floats(&self) -> bool {
        self.floats
    }

    /// Draws an operation from the next stream.
    ///
    /// # Errors
    /// What the operation says.
    pub fn run(&mut self, op: &dyn Op) -> Result<()> {
        let mut stream = self.key.stream(self.draw, self.view, self.operations);
        // `Spec::new` counted them.
        self.operations = self.operations.wrapping_add(1);
        op.draw(self, &mut stream)
    }

    /// Adds a step.
    pub fn push(&mut self, step: Step) {
        self.size = step.size_after(self.size);
        self.steps.push(step);
    }

    /// Adds a change of colours.
    pub fn color(&mut self, color: Color) {
        self.push(Step::Color(color, self.kernels));
    }

    /// Adds a crop, unless it keeps the whole image.
    pub fn crop(&mut self, rect: Rect) {
        if rect != self.size.rect() {
            self.push(Step::Crop(rect));
        }
    }

    /// Adds a resize, unless the size is there already.
    pub fn resize(&mut self, size: Size, filter: Filter) {
        if size != self.size {
            let rounding = match self.kernels {
                Kernels::Torch => Rounding::Torch,
                Kernels::Pillow if self.pillow_12 => Rounding::Pillow12,
                Kernels::Pillow => Rounding::Pillow,
            };
            self.push(Step::Resize { size, filter, rounding });
        }
    }

    /// Adds a window; one that lies inside the image is a crop, which the decoder can use.
    pub fn window(&mut self, top: i64, left: i64, size: Size, border: Border) {
        if let (Ok(row), Ok(column)) = (usize::try_from(top), usize::try_from(left)) {
            let rect = Rect { top: row, left: column, height: size.height, width: size.width };
            if rect.is_inside(self.size) {
                return self.crop(rect);
            }
        }
        self.push(Step::Window { top, left, size, border });
    }

    /// Draws what `draw` draws, but into a list of its own: the plan's size and steps stay as they are.
    ///
    /// # Errors
    /// What `draw` says.
    pub fn aside(&mut self, draw: impl FnOnce(&mut Self) -> Result<()>) -> Result<Vec<Step>> {
        let (size, steps) = (self.size, std::mem::take(&mut self.steps));
        let drawn = draw(self);
        self.size = size;
        let aside = std::mem::replace(&mut self.steps, steps);
        drawn.map(|()| aside)
    }
}

/// Operations on 8-bit pixels, and after them those on floats.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    ops: Vec<Arc<dyn Op>>,
    float_ops: Vec<Arc<dyn Op>>,
    /// How many of `ops`, the first ones, give Pillow's pixels; all others give torch's.
    pillow: usize,
    /// Whether that Pillow is older than version 13.
    pillow_12: bool,
}

impl Spec {
    /// A chain that was checked. Operations on floats give torch's pixels whatever `kernels` are.
    ///
    /// # Errors
    /// [`Error::Argument`] for a range or probability that makes no sense.
    pub fn new(
        ops: Vec<Arc<dyn Op>>,
        float_ops: Vec<Arc<dyn Op>>,
        kernels: Kernels,
    ) -> Result<Self> {
        let pillow = if kernels == Kernels::Pillow { ops.len() } else { 0 };
        let spec = Self { ops, float_ops, pillow, pillow_12: false };
        spec.all().try_for_each(Op::check)?;
        spec.check_for(None)?;
        let count = spec.all().map(Op::count).fold(0, usize::saturating_add);
        if count > usize::from(u16::MAX) {
            return Err(Error::argument(format!("{count} operations; 65535 are possible")));
        }
        Ok(spec)
    }

    /// The same chain with the pixels of Pillow before version 13, where it gives Pillow's.
    #[must_use]
    pub fn before_pillow_13(self) -> Self {
        Self { pillow_12: true, ..self }
    }

    /// The same chain on images that become tensors before operation `at`: from there on it gives torch's pixels.
    #[must_use]
    pub fn tensors_from(self, at: usize) -> Self {
        Self { pillow: self.pillow.min(at), ..self }
    }

    /// Looks whether every operation goes with images of so many channels (None: not known yet).
    ///
    /// # Errors
    /// [`Error::Argument`] with the parameter that does not.
    pub fn check_for(&self, channels: Option<usize>) -> Result<()> {
        let check = |ops: &[Arc<dyn Op>], floats| {
            ops.iter().try_for_each(|op| op.check_for(Domain { floats, channels }))
        };
        check(&self.ops, false)?;
        check(&self.float_ops, true)
    }

    fn all(&self) -> impl Iterator<Item = &dyn Op> {
        self.ops.iter().chain(&self.float_ops).map(|op| &**op)
    }

    /// Draws the numbers for view `view` of draw `draw`, an image of size `source`.
    ///
    /// # Errors
    /// [`Error::Sample`] when the image is too small for a crop.
    pub fn plan(&self, source: Size, key: EpochKey, draw: u64, view: u16) -> Result<Plan> {
        let kernels = Kernels::Pillow;
        let steps = Vec::with_capacity(self.ops.len() + 1);
        let (operations, floats, size) = (0, false, source);
        let pillow_12 = self.pillow_12;
        let mut drawing =
            Drawing { key, draw, view, operations, kernels, pillow_12, floats, size, steps };
        let (pillow, torch) = self.ops.split_at(self.pillow.min(self.ops.len()));
        pillow.iter().try_for_each(|op| drawing.run(&**op))?;
        drawing.kernels = Kernels::Torch;
        torch.iter().try_for_each(|op| drawing.run(&**op))?;
        let steps = std::mem::take(&mut drawing.steps);
        drawing.floats = true;
        self.float_ops.iter().try_for_each(|op| drawing.run(&**op))?;
        Ok(Plan { source, steps, float_steps: drawing.steps })
    }

    /// The size that every view has, when all images have size `input` (None: any).
    ///
    /// # Errors
    /// [`Error::Argument`] when it depends on the image: a batch needs one size.
    pub fn output_size(&self, input: Option<Size>) -> Result<Size> {
        self.all().fold(input, |size, op| op.output_size(size)).ok_or_else(|| {
            Error::argument(
                "the transform leaves images at different sizes, and a batch needs one: end it with \
                 RandomResizedCrop, RandomCrop, CenterCrop or Resize((height, width))",
            )
        })
    }
}

fn check_side(size: Size) -> Result<()> {
    let fine = (1..=1 << 16).contains(&size.height) && (1..=1 << 16).contains(&size.width);
    fine.then_some(())
        .ok_or_else(|| Error::argument(format!("size must be 1..=65536 on both sides, got {size}")))
}

/// A range of positive numbers up to `most`.
fn check_range(name: &str, (low, high): (f64, f64), most: f64) -> Result<()> {
    let fine = low.is_finite() && high.is_finite() && 0.0 < low && low <= high && high <= most;
    fine.then_some(()).ok_or_else(|| {
        Error::argument(format!(
            "{name} must be (low, high) with 0 < low <= high{}, got ({low}, {high})",
            if most.is_finite() { format!(" <= {most}") } else { String::new() }
        ))
    })
}

fn check_probability(p: f64) -> Result<()> {
    (0.0..=1.0)
        .contains(&p)
        .then_some(())
        .ok_or_else(|| Error::argument(format!("p must be a probability in 0..=1, got {p}")))
}

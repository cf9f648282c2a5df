//! What the user asked for. Names, parameters and distributions are torchvision v2's; the random numbers are ours.

use super::plan::{Border, Plan, Step};
use crate::error::{Error, Result};
use crate::image::{Rect, Size};
use crate::resample::taps::Filter;
use crate::rng::{EpochKey, Stream};

/// How a resize states its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The shorter side; the other keeps the aspect ratio, cut to a whole number.
    ShortSide(usize),
    /// Height and width.
    Exact(Size),
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// A random part of the image, resized.
    RandomResizedCrop {
        /// Size afterwards.
        size: Size,
        /// Smallest and largest share of the area.
        scale: (f64, f64),
        /// Smallest and largest aspect ratio, width over height; log-uniform.
        ratio: (f64, f64),
        /// Kernel of the resize.
        filter: Filter,
    },
    /// Resize.
    Resize {
        /// The size.
        target: Target,
        /// The kernel.
        filter: Filter,
    },
    /// The middle of the image; zeros where it is smaller.
    CenterCrop(Size),
    /// A random window of the padded image.
    RandomCrop {
        /// The window.
        size: Size,
        /// Pixels added left, top, right, bottom.
        padding: [usize; 4],
        /// Pad images that are still too small, instead of an error.
        pad_if_needed: bool,
        /// What stands in the padding.
        border: Border,
    },
    /// Mirror left and right with this probability.
    RandomHorizontalFlip(f64),
    /// Mirror top and bottom with this probability.
    RandomVerticalFlip(f64),
}

/// A chain of operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    ops: Vec<Op>,
}

impl Spec {
    /// A chain that was checked.
    ///
    /// # Errors
    /// [`Error::Argument`] for a range or probability that makes no sense.
    pub fn new(ops: Vec<Op>) -> Result<Self> {
        for op in &ops {
            op.check()?;
        }
        if ops.len() > usize::from(u16::MAX) {
            return Err(Error::argument(format!("{} operations; 65535 are possible", ops.len())));
        }
        Ok(Self { ops })
    }

    /// Draws the numbers for view `view` of draw `draw`, an image of size `source`.
    ///
    /// # Errors
    /// [`Error::Sample`] when the image is too small for a crop.
    pub fn plan(&self, source: Size, key: EpochKey, draw: u64, view: u16) -> Result<Plan> {
        let mut steps = Vec::with_capacity(self.ops.len() + 1);
        let mut size = source;
        for (number, op) in (0u16..).zip(&self.ops) {
            let before = steps.len();
            op.draw(size, &mut key.stream(draw, view, number), &mut steps)?;
            size = steps[before..].iter().fold(size, |size, step: &Step| step.size_after(size));
        }
        Ok(Plan { source, steps })
    }

    /// The size that every view has, when all images have size `input` (None: any).
    ///
    /// # Errors
    /// [`Error::Argument`] when it depends on the image: a batch needs one size.
    pub fn output_size(&self, input: Option<Size>) -> Result<Size> {
        let mut size = input;
        for op in &self.ops {
            size = match *op {
                Op::RandomResizedCrop { size, .. }
                | Op::CenterCrop(size)
                | Op::RandomCrop { size, .. }
                | Op::Resize { target: Target::Exact(size), .. } => Some(size),
                Op::Resize { target: Target::ShortSide(side), .. } => {
                    size.map(|size| short_side(size, side))
                }
                Op::RandomHorizontalFlip(_) | Op::RandomVerticalFlip(_) => size,
            };
        }
        size.ok_or_else(|| {
            Error::argument(
                "the transform leaves images at different sizes, and a batch needs one: end it with \
                 RandomResizedCrop, RandomCrop, CenterCrop or Resize((height, width))",
            )
        })
    }
}

fn short_side(size: Size, side: usize) -> Size {
    // Integer division is torchvision's int(side * long / short) but for its float rounding, which cannot differ below
    // 2^53.
    if size.width <= size.height {
        Size::new((side * size.height / size.width.max(1)).max(1), side)
    } else {
        Size::new(side, (side * size.width / size.height.max(1)).max(1))
    }
}

/// Python's and torchvision's round: halves to even.
fn round(value: f64) -> i64 {
    value.round_ties_even() as i64
}

impl Op {
    fn check(&self) -> Result<()> {
        let side = |size: Size| {
            let fine = (1..=1 << 16).contains(&size.height) && (1..=1 << 16).contains(&size.width);
            fine.then_some(()).ok_or_else(|| {
                Error::argument(format!("size must be 1..=65536 on both sides, got {size}"))
            })
        };
        let range = |name: &str, (low, high): (f64, f64), most: f64| {
            let fine =
                low.is_finite() && high.is_finite() && 0.0 < low && low <= high && high <= most;
            fine.then_some(()).ok_or_else(|| {
                Error::argument(format!(
                    "{name} must be (low, high) with 0 < low <= high{}, got ({low}, {high})",
                    if most.is_finite() { format!(" <= {most}") } else { String::new() }
                ))
            })
        };
        match *self {
            Self::RandomResizedCrop { size, scale, ratio, .. } => {
                range("scale", scale, 1.0)?;
                range("ratio", ratio, f64::INFINITY)?;
                side(size)
            }
            Self::Resize { target: Target::ShortSide(length), .. } => {
                side(Size::new(length, length))
            }
            Self::Resize { target: Target::Exact(size), .. } | Self::CenterCrop(size) => side(size),
            Self::RandomCrop { size, padding, .. } => {
                match padding.iter().find(|&&p| p > 1 << 16) {
                    Some(pad) => {
                        Err(Error::argument(format!("padding must be at most 65536, got {pad}")))
                    }
                    None => side(size),
                }
            }
            Self::RandomHorizontalFlip(p) | Self::RandomVerticalFlip(p) => {
                (0.0..=1.0).contains(&p).then_some(()).ok_or_else(|| {
                    Error::argument(format!("p must be a probability in 0..=1, got {p}"))
                })
            }
        }
    }

    fn draw(&self, from: Size, stream: &mut Stream, steps: &mut Vec<Step>) -> Result<()> {
        match *self {
            Self::RandomResizedCrop { size, scale, ratio, filter } => {
                let rect = resized_crop(from, scale, ratio, stream);
                push_crop(rect, from, steps);
                push_resize(size, rect.size(), filter, steps);
            }
            Self::Resize { target, filter } => {
                let size = match target {
                    Target::Exact(size) => size,
                    Target::ShortSide(side) => short_side(from, side),
                };
                push_resize(size, from, filter, steps);
            }
            Self::CenterCrop(size) => {
                let anchor = |outer: usize, inner: usize| {
                    let (outer, inner) = (outer as i64, inner as i64);
                    // Padding of the smaller image comes first, its odd pixel last.
                    if inner > outer {
                        -((inner - outer) / 2)
                    } else {
                        round((outer - inner) as f64 / 2.0)
                    }
                };
                let (top, left) =
                    (anchor(from.height, size.height), anchor(from.width, size.width));
                push_window(top, left, size, from, Border::Constant([0; 3]), steps);
            }
            Self::RandomCrop {
                size,
                padding: [left, top, right, bottom],
                pad_if_needed,
                border,
            } => {
                let mut draw =
                    |name: &str, length: usize, crop: usize, before: usize, after: usize| {
                        let padded = length + before + after;
                        let more = crop.saturating_sub(padded);
                        if more > 0 && !pad_if_needed {
                            return Err(Error::sample(format!(
                                "RandomCrop needs {name} {crop}, the padded image has {padded}"
                            )));
                        }
                        let room = padded + 2 * more - crop;
                        Ok(stream.below(room as u64 + 1) as i64 - (before + more) as i64)
                    };
                let top = draw("height", from.height, size.height, top, bottom)?;
                let left = draw("width", from.width, size.width, left, right)?;
                push_window(top, left, size, from, border, steps);
            }
            Self::RandomHorizontalFlip(p) => {
                if stream.chance(p) {
                    steps.push(Step::FlipHorizontal);
                }
            }
            Self::RandomVerticalFlip(p) => {
                if stream.chance(p) {
                    steps.push(Step::FlipVertical);
                }
            }
        }
        Ok(())
    }
}

/// torchvision's `RandomResizedCrop`: ten tries, then the middle of the image at the nearest allowed ratio.
fn resized_crop(from: Size, scale: (f64, f64), ratio: (f64, f64), stream: &mut Stream) -> Rect {
    let (height, width) = (from.height as i64, from.width as i64);
    let area = from.pixels() as f64;
    let (low, high) = (ratio.0.ln(), ratio.1.ln());
    for _ in 0..10 {
        let target = area * stream.uniform(scale.0, scale.1);
        let aspect = stream.uniform(low, high).exp();
        let (w, h) = (round((target * aspect).sqrt()), round((target / aspect).sqrt()));
        if 0 < w && w <= width && 0 < h && h <= height {
            let top = stream.below((height - h) as u64 + 1) as usize;
            let left = stream.below((width - w) as u64 + 1) as usize;
            return Rect { top, left, height: h as usize, width: w as usize };
        }
    }
    let aspect = width as f64 / height as f64;
    let (w, h) = if aspect < ratio.0 {
        (width, round(width as f64 / ratio.0).clamp(1, height))
    } else if aspect > ratio.1 {
        (round(height as f64 * ratio.1).clamp(1, width), height)
    } else {
        (width, height)
    };
    Rect {
        top: ((height - h) / 2) as usize,
        left: ((width - w) / 2) as usize,
        height: h as usize,
        width: w as usize,
    }
}

fn push_crop(rect: Rect, from: Size, steps: &mut Vec<Step>) {
    if rect != from.rect() {
        steps.push(Step::Crop(rect));
    }
}

fn push_resize(size: Size, from: Size, filter: Filter, steps: &mut Vec<Step>) {
    if size != from {
        steps.push(Step::Resize { size, filter });
    }
}

/// A window that lies inside the image is a crop, which the decoder can use.
fn push_window(top: i64, left: i64, size: Size, from: Size, border: Border, steps: &mut Vec<Step>) {
    if let (Ok(row), Ok(column)) = (usize::try_from(top), usize::try_from(left)) {
        let rect = Rect { top: row, left: column, height: size.height, width: size.width };
        if rect.is_inside(from) {
            return push_crop(rect, from, steps);
        }
    }
    steps.push(Step::Window { top, left, size, border });
}

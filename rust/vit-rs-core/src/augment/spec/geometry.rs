//! Crops, resizes and flips.

use super::{Drawing, Op, check_probability, check_range, check_side};
use crate::augment::plan::{Border, Step};
use crate::error::{Error, Result};
use crate::image::{Rect, Size};
use crate::resample::taps::Filter;
use crate::rng::Stream;

/// How a resize states its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The shorter side; the other keeps the aspect ratio, cut to a whole number.
    ShortSide(usize),
    /// The shorter side, but the longer one where that would be over `most`.
    Within {
        /// The shorter side.
        short: usize,
        /// The most that the longer side may have.
        most: usize,
    },
    /// The longer side; the other keeps the aspect ratio, cut to a whole number.
    LongSide(usize),
    /// Height and width.
    Exact(Size),
}

/// A random part of the image, resized.
#[derive(Clone, Copy, Debug)]
pub struct RandomResizedCrop {
    /// Size afterwards.
    pub size: Size,
    /// Smallest and largest share of the area.
    pub scale: (f64, f64),
    /// Smallest and largest aspect ratio, width over height; log-uniform.
    pub ratio: (f64, f64),
    /// Kernel of the resize.
    pub filter: Filter,
}

impl Op for RandomResizedCrop {
    fn check(&self) -> Result<()> {
        check_range("scale", self.scale, 1.0)?;
        check_range("ratio", self.ratio, f64::INFINITY)?;
        check_side(self.size)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let rect = resized_crop(drawing.size(), self.scale, self.ratio, stream);
        drawing.crop(rect);
        drawing.resize(self.size, self.filter);
        Ok(())
    }

    fn output_size(&self, _: Option<Size>) -> Option<Size> {
        Some(self.size)
    }
}

/// Resize.
#[derive(Clone, Copy, Debug)]
pub struct Resize {
    /// The size.
    pub target: Target,
    /// The kernel.
    pub filter: Filter,
}

impl Resize {
    /// The size afterwards; a side may be 0 where the longer one is bounded.
    fn size(&self, from: Size) -> Size {
        // Products and quotients of whole numbers are torchvision's int(side * long / short) but for its float rounding,
        // which cannot differ below 2^53.
        let (short, long) = (from.height.min(from.width), from.height.max(from.width));
        let scaled = |side: usize, by: usize, of: usize| side.saturating_mul(by) / of.max(1);
        let (short, long) = match self.target {
            Target::Exact(size) => return size,
            Target::ShortSide(side) => (side, scaled(side, long, short)),
            Target::LongSide(side) => (scaled(side, short, long), side),
            Target::Within { short: side, most } => match scaled(side, long, short) {
                over if over > most => (scaled(most, side, over), most),
                long => (side, long),
            },
        };
        if from.width <= from.height { Size::new(long, short) } else { Size::new(short, long) }
    }
}

impl Op for Resize {
    fn check(&self) -> Result<()> {
        match self.target {
            Target::Exact(size) => check_side(size),
            Target::ShortSide(side) | Target::LongSide(side) => check_side(Size::new(side, side)),
            Target::Within { short, most } if most <= short => Err(Error::argument(format!(
                "max_size must be greater than size, which is the shorter side, got {most} and {short}"
            ))),
            Target::Within { short, most } => check_side(Size::new(short, most)),
        }
    }

    fn draw(&self, drawing: &mut Drawing, _: &mut Stream) -> Result<()> {
        let (from, size) = (drawing.size(), self.size(drawing.size()));
        if size.pixels() == 0 {
            return Err(Error::sample(format!("Resize leaves {size} of {from}: nothing")));
        }
        drawing.resize(size, self.filter);
        Ok(())
    }

    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        match self.target {
            Target::Exact(size) => Some(size),
            _ => before.map(|before| self.size(before)),
        }
    }
}

/// The middle of the image; zeros where it is smaller.
#[derive(Clone, Copy, Debug)]
pub struct CenterCrop(pub Size);

impl Op for CenterCrop {
    fn check(&self) -> Result<()> {
        check_side(self.0)
    }

    fn draw(&self, drawing: &mut Drawing, _: &mut Stream) -> Result<()> {
        let (from, size) = (drawing.size(), self.0);
        let anchor = |outer: usize, inner: usize| {
            let (outer, inner) = (outer as i64, inner as i64);
            // Padding of the smaller image comes first, its odd pixel last.
            if inner > outer { -((inner - outer) / 2) } else { round((outer - inner) as f64 / 2.0) }
        };
        let (top, left) = (anchor(from.height, size.height), anchor(from.width, size.width));
        drawing.window(top, left, size, Border::Constant([0; 3]));
        Ok(())
    }

    fn output_size(&self, _: Option<Size>) -> Option<Size> {
        Some(self.0)
    }
}

/// A random window of the padded image.
#[derive(Clone, Copy, Debug)]
pub struct RandomCrop {
    /// The window.
    pub size: Size,
    /// Pixels added left, top, right, bottom.
    pub padding: [usize; 4],
    /// Pad images that are still too small, instead of an error.
    pub pad_if_needed: bool,
    /// What stands in the padding.
    pub border: Border,
}

impl Op for RandomCrop {
    fn check(&self) -> Result<()> {
        if let Some(pad) = self.padding.iter().find(|&&pad| pad > 1 << 16) {
            return Err(Error::argument(format!("padding must be at most 65536, got {pad}")));
        }
        check_side(self.size)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let Self { size, padding: [left, top, right, bottom], pad_if_needed, border } = *self;
        let from = drawing.size();
        let mut place = |name: &str, length: usize, crop: usize, before: usize, after: usize| {
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
        let top = place("height", from.height, size.height, top, bottom)?;
        let left = place("width", from.width, size.width, left, right)?;
        drawing.window(top, left, size, border);
        Ok(())
    }

    fn output_size(&self, _: Option<Size>) -> Option<Size> {
        Some(self.size)
    }
}

/// Mirror left and right with this probability.
#[derive(Clone, Copy, Debug)]
pub struct RandomHorizontalFlip(pub f64);

impl Op for RandomHorizontalFlip {
    fn check(&self) -> Result<()> {
        check_probability(self.0)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        if stream.chance(self.0) {
            drawing.push(Step::FlipHorizontal);
        }
        Ok(())
    }
}

/// Mirror top and bottom with this probability.
#[derive(Clone, Copy, Debug)]
pub struct RandomVerticalFlip(pub f64);

impl Op for RandomVerticalFlip {
    fn check(&self) -> Result<()> {
        check_probability(self.0)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        if stream.chance(self.0) {
            drawing.push(Step::FlipVertical);
        }
        Ok(())
    }
}

/// Python's and torchvision's round: halves to even.
fn round(value: f64) -> i64 {
    value.round_ties_even() as i64
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

//! Resizes and windows that make images of any shape fit a size, as in timm's `data.transforms`.

use super::{Drawing, Op, check_probability, check_range, check_side};
use crate::augment::plan::Border;
use crate::error::{Error, Result};
use crate::image::{Rect, Size};
use crate::resample::taps::Filter;
use crate::rng::Stream;

/// Resize with one factor for both sides, which may vary at random.
#[derive(Clone, Copy, Debug)]
pub struct ResizeKeepRatio {
    /// Height and width to fit.
    pub size: Size,
    /// 0: the side that needs the larger factor gets its length; 1: the other one; between: between.
    pub longest: f64,
    /// The kernel.
    pub filter: Filter,
    /// How often, and between which factors, the image becomes larger.
    pub zoom: (f64, (f64, f64)),
    /// The factors are shares of the area that a crop of this size keeps.
    pub zoom_by_area: bool,
    /// How often, and between which factors, width over height changes; log-uniform.
    pub stretch: (f64, (f64, f64)),
}

impl ResizeKeepRatio {
    fn size(&self, from: Size, factors: (f64, f64)) -> Result<Size> {
        let ratio_h = from.height as f64 / self.size.height as f64;
        let ratio_w = from.width as f64 / self.size.width as f64;
        let longest = self.longest;
        let ratio = ratio_h.max(ratio_w) * longest + ratio_h.min(ratio_w) * (1.0 - longest);
        let side = |length: usize, factor: f64| {
            let side = (length as f64 * factor / ratio).round_ties_even();
            if (1.0..=65536.0).contains(&side) {
                return Ok(side as usize);
            }
            let text = "ResizeKeepRatio makes a side of";
            Err(Error::sample(format!(
                "{text} {side} pixels of an image of {from}; 1..=65536 are possible"
            )))
        };
        Ok(Size::new(side(from.height, factors.0)?, side(from.width, factors.1)?))
    }
}

impl Op for ResizeKeepRatio {
    fn check(&self) -> Result<()> {
        check_side(self.size)?;
        if !(0.0..=1.0).contains(&self.longest) {
            let text = format!("longest must be in 0..=1, got {}", self.longest);
            return Err(Error::argument(text));
        }
        check_probability(self.zoom.0)?;
        check_probability(self.stretch.0)?;
        check_range("random_scale_range", self.zoom.1, f64::INFINITY)?;
        check_range("random_aspect_range", self.stretch.1, f64::INFINITY)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let mut factors = (1.0, 1.0);
        if stream.chance(self.zoom.0) {
            let drawn = stream.uniform(self.zoom.1.0, self.zoom.1.1);
            let factor = if self.zoom_by_area { 1.0 / drawn.sqrt() } else { drawn };
            factors = (factor, factor);
        }
        if stream.chance(self.stretch.0) {
            let (low, high) = self.stretch.1;
            let factor = stream.uniform(low.ln(), high.ln()).exp().sqrt();
            factors = (factors.0 / factor, factors.1 * factor);
        }
        drawing.resize(self.size(drawing.size(), factors)?, self.filter);
        Ok(())
    }

    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        let still = self.zoom.0 <= 0.0 && self.stretch.0 <= 0.0;
        before.filter(|_| still).and_then(|before| self.size(before, (1.0, 1.0)).ok())
    }
}

/// A window of this size, in the middle or at a random place; the border where the image is smaller.
#[derive(Clone, Copy, Debug)]
pub struct CropOrPad {
    /// The window.
    pub size: Size,
    /// What stands outside the image.
    pub border: Border,
    /// At a random place, else in the middle.
    pub random: bool,
}

impl Op for CropOrPad {
    fn check(&self) -> Result<()> {
        check_side(self.size)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let from = drawing.size();
        let mut place = |outer: usize, inner: usize| {
            let (room, most) = (outer as i64 - inner as i64, outer.abs_diff(inner) as u64);
            if self.random {
                room.signum() * stream.below(most + 1) as i64
            } else if room < 0 {
                // Padding comes first, its odd pixel last.
                -(-room / 2)
            } else {
                (room as f64 / 2.0).round_ties_even() as i64
            }
        };
        let (top, left) =
            (place(from.height, self.size.height), place(from.width, self.size.width));
        drawing.window(top, left, self.size, self.border);
        Ok(())
    }

    fn output_size(&self, _: Option<Size>) -> Option<Size> {
        Some(self.size)
    }
}

/// Without so many pixels at each edge.
#[derive(Clone, Copy, Debug)]
pub struct TrimBorder(pub usize);

impl TrimBorder {
    fn rect(self, from: Size) -> Option<Rect> {
        let inner =
            |length: usize| length.checked_sub(self.0.checked_mul(2)?).filter(|&length| length > 0);
        let (height, width) = (inner(from.height)?, inner(from.width)?);
        Some(Rect { top: self.0, left: self.0, height, width })
    }
}

impl Op for TrimBorder {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn draw(&self, drawing: &mut Drawing, _: &mut Stream) -> Result<()> {
        let from = drawing.size();
        let rect = self.rect(from).ok_or_else(|| {
            Error::sample(format!(
                "without {} pixels at each edge nothing is left of {from}",
                self.0
            ))
        })?;
        drawing.crop(rect);
        Ok(())
    }

    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        before.and_then(|before| self.rect(before)).map(Rect::size)
    }
}

//! Operations on the values: erasing, normalising.

use super::{Domain, Drawing, Op, check_probability, check_range};
use crate::augment::erase;
use crate::augment::plan::{Fill, Step};
use crate::error::{Error, Result};
use crate::image::{Rect, Size};
use crate::line::Normalization;
use crate::rng::Stream;

/// What a random rectangle is filled with, in the units of the values at that place.
#[derive(Clone, Debug, PartialEq)]
pub enum ErasingValue {
    /// One value for each channel, or one for all; of bytes the whole part.
    Constant(Vec<f32>),
    /// A normally distributed number for each value; of bytes the whole part, modulo 256.
    Random,
    /// A normally distributed number for each channel; of bytes the same.
    RandomColor,
}

/// Random rectangles erased.
#[derive(Clone, Debug)]
pub struct RandomErasing {
    /// How often.
    pub p: f64,
    /// Smallest and largest share of the area.
    pub scale: (f64, f64),
    /// Smallest and largest aspect ratio, height over width; log-uniform.
    pub ratio: (f64, f64),
    /// What stands there afterwards.
    pub value: ErasingValue,
    /// The fewest and the most rectangles, which share the area.
    pub count: (usize, usize),
}

impl Op for RandomErasing {
    fn check(&self) -> Result<()> {
        check_probability(self.p)?;
        let (low, high) = self.scale;
        if !(0.0 <= low && low <= high && high <= 1.0) {
            return Err(Error::argument(format!(
                "scale must be (low, high) with 0 <= low <= high <= 1, got ({low}, {high})"
            )));
        }
        check_range("ratio", self.ratio, f64::INFINITY)?;
        let (fewest, most) = self.count;
        if !(1 <= fewest && fewest <= most && most <= 1024) {
            return Err(Error::argument(format!(
                "count must be (fewest, most) with 1 <= fewest <= most <= 1024, got ({fewest}, {most})"
            )));
        }
        match &self.value {
            ErasingValue::Constant(values) if values.is_empty() => {
                Err(Error::argument("value must have at least one number"))
            }
            ErasingValue::Constant(values) => match values.iter().find(|v| !v.is_finite()) {
                Some(value) => Err(Error::argument(format!("value must be finite, got {value}"))),
                None => Ok(()),
            },
            ErasingValue::Random | ErasingValue::RandomColor => Ok(()),
        }
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        let ErasingValue::Constant(values) = &self.value else { return Ok(()) };
        if let Some(channels) = domain.channels {
            erase::check_channels(values.len(), channels)?;
        }
        match values.iter().find(|&value| !(0.0..256.0).contains(value)) {
            Some(value) if !domain.floats => Err(Error::argument(format!(
                "value of RandomErasing must be in 0..=255 for 8-bit pixels, got {value}: values of other units \
                 belong behind ToDtype"
            ))),
            _ => Ok(()),
        }
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        if !stream.chance(self.p) {
            return Ok(());
        }
        let (fewest, most) = self.count;
        let more = most.saturating_sub(fewest) as u64;
        let count = fewest + if more > 0 { stream.below(more + 1) as usize } else { 0 };
        for _ in 0..count {
            let Some(rect) = erased_rect(drawing.size(), count, self.scale, self.ratio, stream)
            else {
                continue;
            };
            let fill = match &self.value {
                ErasingValue::Constant(values) => Fill::Constant(values.clone()),
                ErasingValue::Random => Fill::Normal(stream.next_u64()),
                ErasingValue::RandomColor => Fill::NormalColor(stream.next_u64()),
            };
            drawing.push(Step::Erase { rect, fill });
        }
        Ok(())
    }
}

/// torchvision's and timm's rectangle: ten tries, then none; it is smaller than the image on both sides, and may be empty.
/// Each of `count` ones has its share of the area.
fn erased_rect(
    size: Size,
    count: usize,
    scale: (f64, f64),
    ratio: (f64, f64),
    stream: &mut Stream,
) -> Option<Rect> {
    let (low, high) = (ratio.0.ln(), ratio.1.ln());
    for _ in 0..10 {
        let share = stream.uniform(scale.0, scale.1) / count as f64;
        let area = size.pixels() as f64 * share;
        let aspect = stream.uniform(low, high).exp();
        let side = |square: f64| square.sqrt().round_ties_even() as usize;
        let (height, width) = (side(area * aspect), side(area / aspect));
        if height < size.height && width < size.width {
            let top = stream.below((size.height - height) as u64 + 1) as usize;
            let left = stream.below((size.width - width) as u64 + 1) as usize;
            return (height > 0 && width > 0).then_some(Rect { top, left, height, width });
        }
    }
    None
}

/// Subtract a mean and divide by a standard deviation: one of each for each channel, or one for all.
#[derive(Clone, Debug)]
pub struct Normalize {
    /// The means, in the units of the values.
    pub mean: Vec<f32>,
    /// The standard deviations.
    pub std: Vec<f32>,
}

impl Op for Normalize {
    fn check(&self) -> Result<()> {
        let channels = self.mean.len().max(self.std.len());
        Normalization::new(channels, &self.mean, &self.std).map(|_| ())
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        if !domain.floats {
            return Err(Error::argument("Normalize needs float values: put ToDtype before it"));
        }
        let channels = domain.channels.unwrap_or(self.mean.len().max(self.std.len()));
        Normalization::new(channels, &self.mean, &self.std).map(|_| ())
    }

    fn draw(&self, drawing: &mut Drawing, _: &mut Stream) -> Result<()> {
        drawing.push(Step::Normalize { mean: self.mean.clone(), std: self.std.clone() });
        Ok(())
    }
}

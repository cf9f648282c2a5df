//! Automatic augmentation policies: some operations of a fixed set at fixed strengths, drawn for each image.
//!
//! Operations, strengths, signs and probabilities are torchvision v2's; strengths are computed in f32 where torchvision
//! computes them so.

mod tables;
mod timm;

use super::affine::Look;
use super::{Drawing, Op};
use crate::augment::plan::{Color, Kernels, Step};
use crate::error::{Error, Result};
use crate::image::Size;
use crate::rng::Stream;

pub use tables::Policy;
use tables::{AUGMIX, AUGMIX_COLOR, Entry, Name, RAND, Range, WIDE};
pub use timm::{TimmAugMix, TimmName, TimmOp, TimmRandAugment};

/// Several operations, one after another, each at the same strength.
#[derive(Clone, Copy, Debug)]
pub struct RandAugment {
    /// How many.
    pub num_ops: usize,
    /// The strength, from 0 to below `num_magnitude_bins`.
    pub magnitude: usize,
    /// How many strengths there are.
    pub num_magnitude_bins: usize,
    /// Sampling and colour of affine maps.
    pub look: Look,
    /// Whether solarize's thresholds are those of torchvision's v1 classes.
    pub v1: bool,
}

impl Op for RandAugment {
    fn check(&self) -> Result<()> {
        check_bins(self.num_magnitude_bins)?;
        if self.num_ops > 1024 {
            return Err(Error::argument(format!("num_ops must be 0..=1024, got {}", self.num_ops)));
        }
        if self.magnitude >= self.num_magnitude_bins {
            return Err(Error::argument(format!(
                "magnitude must be below num_magnitude_bins = {}, got {}",
                self.num_magnitude_bins, self.magnitude
            )));
        }
        Ok(())
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        for _ in 0..self.num_ops {
            let entry = choose(&[RAND], stream).of(self.v1);
            entry.draw(self.num_magnitude_bins, self.magnitude, self.look, drawing, stream);
        }
        Ok(())
    }
}

/// One operation at a random strength.
#[derive(Clone, Copy, Debug)]
pub struct TrivialAugmentWide {
    /// How many strengths there are.
    pub num_magnitude_bins: usize,
    /// Sampling and colour of affine maps.
    pub look: Look,
    /// Whether solarize's thresholds are those of torchvision's v1 classes.
    pub v1: bool,
}

impl Op for TrivialAugmentWide {
    fn check(&self) -> Result<()> {
        check_bins(self.num_magnitude_bins)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let entry = choose(&[WIDE], stream).of(self.v1);
        let bins = self.num_magnitude_bins;
        let bin = if entry.has_strengths() { stream.below(bins as u64) as usize } else { 0 };
        entry.draw(bins, bin, self.look, drawing, stream);
        Ok(())
    }
}

/// One of the pairs of operations that were found for a data set, each with its probability and strength.
#[derive(Clone, Copy, Debug)]
pub struct AutoAugment {
    /// The data set.
    pub policy: Policy,
    /// Sampling and colour of affine maps.
    pub look: Look,
    /// Whether solarize's thresholds are those of torchvision's v1 classes.
    pub v1: bool,
}

impl Op for AutoAugment {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let pairs = self.policy.pairs();
        let chosen = pairs.get(stream.below(pairs.len() as u64) as usize);
        for &(name, probability, bin) in chosen.into_iter().flatten() {
            let mut entries = RAND.iter().chain([&Entry::INVERT]);
            let entry = entries.find(|entry| entry.name == name);
            if let (true, Some(entry)) = (stream.chance(probability), entry) {
                entry.of(self.v1).draw(10, bin, self.look, drawing, stream);
            }
        }
        Ok(())
    }
}

/// The image mixed with chains of operations on it.
#[derive(Clone, Copy, Debug)]
pub struct AugMix {
    /// Operations are at strength 0 to below this one, of 10.
    pub severity: usize,
    /// How many chains.
    pub mixture_width: usize,
    /// How many operations in each; None: 1 to 3, drawn.
    pub chain_depth: Option<usize>,
    /// Parameter of the Dirichlet distributions of the weights.
    pub alpha: f64,
    /// Brightness, colour, contrast and sharpness too.
    pub all_ops: bool,
    /// Sampling and colour of affine maps.
    pub look: Look,
}

impl AugMix {
    const BINS: usize = 10;
}

impl Op for AugMix {
    fn check(&self) -> Result<()> {
        let count = |name: &str, value: usize, most: usize| {
            (1..=most).contains(&value).then_some(()).ok_or_else(|| {
                Error::argument(format!("{name} must be in 1..={most}, got {value}"))
            })
        };
        count("severity", self.severity, Self::BINS)?;
        count("mixture_width", self.mixture_width, 1024)?;
        count("chain_depth", self.chain_depth.unwrap_or(1), 1024)?;
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            let text = format!("alpha must be positive and finite, got {}", self.alpha);
            return Err(Error::argument(text));
        }
        Ok(())
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let entries = [AUGMIX, if self.all_ops { AUGMIX_COLOR } else { &[] }];
        let (mut kept, mut weights) = ([0.0; 2], vec![0.0; self.mixture_width]);
        stream.dirichlet(self.alpha, &mut kept);
        stream.dirichlet(self.alpha, &mut weights);
        let [keep, mixed] = kept.map(|weight| weight as f32);
        // torchvision mixes tensors, made of PIL images too.
        let kernels = std::mem::replace(&mut drawing.kernels, Kernels::Torch);
        let mut chain = |weight: f64| {
            let depth = self.chain_depth.unwrap_or_else(|| 1 + stream.below(3) as usize);
            let steps = drawing.aside(|drawing| {
                for _ in 0..depth {
                    let entry = choose(&entries, stream);
                    let strengths = if entry.has_strengths() { self.severity } else { 0 };
                    let bin = stream.below(strengths as u64) as usize;
                    entry.draw(Self::BINS, bin, self.look, drawing, stream);
                }
                Ok(())
            })?;
            Ok((weight as f32 * mixed, steps))
        };
        let chains: Result<_> = weights.into_iter().map(&mut chain).collect();
        drawing.kernels = kernels;
        drawing.push(Step::Mix { keep, chains: chains? });
        Ok(())
    }
}

fn choose<'a>(entries: &[&'a [Entry]], stream: &mut Stream) -> &'a Entry {
    let count: usize = entries.iter().map(|entries| entries.len()).sum();
    let chosen = stream.below(count as u64) as usize;
    entries.iter().copied().flatten().nth(chosen).unwrap_or(&Entry::IDENTITY)
}

impl Entry {
    /// This operation as one half of torchvision has it.
    fn of(&self, v1: bool) -> &Self {
        if v1 && self.name == Name::Solarize { &Self::SOLARIZE_V1 } else { self }
    }

    fn has_strengths(&self) -> bool {
        self.range != Range::None
    }

    /// Draws the sign and adds the step.
    fn draw(
        &self,
        bins: usize,
        bin: usize,
        look: Look,
        drawing: &mut Drawing,
        stream: &mut Stream,
    ) {
        let mut strength = self.strength(bins, bin, drawing.size());
        let signed = matches!(self.range, Range::Signed(_) | Range::Width(_) | Range::Height(_));
        if signed && stream.chance(0.5) {
            strength = -strength;
        }
        self.add(strength, look, drawing);
    }

    fn strength(&self, bins: usize, bin: usize, size: Size) -> f64 {
        match self.range {
            Range::None => 0.0,
            Range::Signed(most) => linspace(0.0, most, bins, bin),
            Range::Width(share) => linspace(0.0, share * size.width as f64, bins, bin),
            Range::Height(share) => linspace(0.0, share * size.height as f64, bins, bin),
            Range::Bits(most, lost) => {
                let lost = bin as f32 / ((bins - 1) as f64 / lost) as f32;
                f64::from((most as f32 - lost).round_ties_even())
            }
            Range::Threshold => linspace(1.0, 0.0, bins, bin),
            Range::Gray => linspace(255.0, 0.0, bins, bin),
        }
    }

    fn add(&self, strength: f64, look: Look, drawing: &mut Drawing) {
        let color = match self.name {
            Name::Identity => return,
            // A shear keeps the upper left corner.
            Name::ShearX | Name::ShearY => {
                let angle = strength.atan().to_degrees();
                let shear = if self.name == Name::ShearX { [angle, 0.0] } else { [0.0, angle] };
                let corner = Some((0.0, 0.0));
                return drawing.affine(0.0, (0.0, 0.0), 1.0, shear, corner, look);
            }
            Name::TranslateX => {
                return drawing.affine(0.0, (strength.trunc(), 0.0), 1.0, [0.0; 2], None, look);
            }
            Name::TranslateY => {
                return drawing.affine(0.0, (0.0, strength.trunc()), 1.0, [0.0; 2], None, look);
            }
            Name::Rotate => return drawing.rotate(strength, false, None, look),
            Name::Brightness => Color::Brightness(1.0 + strength),
            Name::Color => Color::Saturation(1.0 + strength),
            Name::Contrast => Color::Contrast(1.0 + strength),
            Name::Sharpness => Color::Sharpness(1.0 + strength),
            Name::Posterize => Color::Posterize(strength as u8),
            Name::Solarize if drawing.floats() => Color::Solarize(strength),
            Name::Solarize => {
                let threshold = 255.0 * strength;
                // torch compares in f32.
                let threshold = match drawing.kernels() {
                    Kernels::Torch => f64::from(threshold as f32),
                    Kernels::Pillow => threshold,
                };
                // Values are whole: those from this one on are those from the next whole number on.
                Color::Solarize(threshold.ceil())
            }
            Name::SolarizeFrom if drawing.floats() => Color::Solarize(strength / 255.0),
            Name::SolarizeFrom => Color::Solarize(strength),
            Name::AutoContrast => Color::AutoContrast,
            Name::Equalize => Color::Equalize,
            Name::Invert => Color::Invert,
        };
        drawing.color(color);
    }
}

/// torch's `linspace(start, end, count)[index]`: f32, from the nearer end, one rounding for product and sum.
fn linspace(start: f64, end: f64, count: usize, index: usize) -> f64 {
    let (start, end) = (start as f32, end as f32);
    let step = f64::from((end - start) / (count - 1) as f32);
    let value = if index < count / 2 {
        f64::from(start) + step * index as f64
    } else {
        f64::from(end) - step * (count - 1 - index) as f64
    };
    f64::from(value as f32)
}

fn check_bins(bins: usize) -> Result<()> {
    let fine = (2..=1 << 16).contains(&bins);
    fine.then_some(()).ok_or_else(|| {
        Error::argument(format!("num_magnitude_bins must be in 2..=65536, got {bins}"))
    })
}

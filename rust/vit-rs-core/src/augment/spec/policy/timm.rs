//! timm's operations of automatic augmentation, whose strengths are numbers around a magnitude, and its `RandAugment`.
//!
//! Names, arithmetic of the strengths and probabilities are those of timm 1.0's `auto_augment`. It works on PIL images,
//! so these have Pillow's pixels.

use std::sync::Arc;

use crate::augment::plan::{Color, Kernels, Sampling, Step};
use crate::augment::spec::affine::Look;
use crate::augment::spec::containers::weighted;
use crate::augment::spec::{Domain, Drawing, Op, check_probability};
use crate::error::{Error, Result};
use crate::image::Size;
use crate::rng::Stream;

/// One of timm's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum TimmName {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    PosterizeIncreasing,
    PosterizeOriginal,
    Solarize,
    SolarizeIncreasing,
    SolarizeAdd,
    Color,
    ColorIncreasing,
    Contrast,
    ContrastIncreasing,
    Brightness,
    BrightnessIncreasing,
    Sharpness,
    SharpnessIncreasing,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    TranslateXRel,
    TranslateYRel,
    Desaturate,
    GaussianBlur,
    GaussianBlurRand,
}

impl TimmName {
    /// All of them, as timm spells them.
    pub const ALL: [(&str, Self); 27] = [
        ("AutoContrast", Self::AutoContrast),
        ("Equalize", Self::Equalize),
        ("Invert", Self::Invert),
        ("Rotate", Self::Rotate),
        ("Posterize", Self::Posterize),
        ("PosterizeIncreasing", Self::PosterizeIncreasing),
        ("PosterizeOriginal", Self::PosterizeOriginal),
        ("Solarize", Self::Solarize),
        ("SolarizeIncreasing", Self::SolarizeIncreasing),
        ("SolarizeAdd", Self::SolarizeAdd),
        ("Color", Self::Color),
        ("ColorIncreasing", Self::ColorIncreasing),
        ("Contrast", Self::Contrast),
        ("ContrastIncreasing", Self::ContrastIncreasing),
        ("Brightness", Self::Brightness),
        ("BrightnessIncreasing", Self::BrightnessIncreasing),
        ("Sharpness", Self::Sharpness),
        ("SharpnessIncreasing", Self::SharpnessIncreasing),
        ("ShearX", Self::ShearX),
        ("ShearY", Self::ShearY),
        ("TranslateX", Self::TranslateX),
        ("TranslateY", Self::TranslateY),
        ("TranslateXRel", Self::TranslateXRel),
        ("TranslateYRel", Self::TranslateYRel),
        ("Desaturate", Self::Desaturate),
        ("GaussianBlur", Self::GaussianBlur),
        ("GaussianBlurRand", Self::GaussianBlurRand),
    ];

    /// The operation of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find_map(|&(known, operation)| (known == name).then_some(operation))
    }
}

/// One operation, with a probability, at a strength around a magnitude.
#[derive(Clone, Debug)]
pub struct TimmOp {
    /// The operation.
    pub name: TimmName,
    /// How often.
    pub p: f64,
    /// The magnitude; 10 is what an operation's strengths are made for.
    pub magnitude: f64,
    /// Standard deviation of the normal distribution around the magnitude from which one is drawn for each image;
    /// infinite: uniform from 0 to the magnitude.
    pub magnitude_std: f64,
    /// The largest magnitude; the smallest is 0.
    pub magnitude_max: f64,
    /// How affine maps read pixels, one of these for each image.
    pub samplings: Vec<Sampling>,
    /// What stands outside after affine maps.
    pub fill: [u8; 3],
    /// The shift of `TranslateX` and `TranslateY` at magnitude 10, pixels.
    pub translate_const: f64,
    /// The shift of `TranslateXRel` and `TranslateYRel` at magnitude 10, as a share of width and height.
    pub translate_pct: f64,
}

impl TimmOp {
    fn magnitude(&self, stream: &mut Stream) -> f64 {
        let magnitude = if self.magnitude_std.is_infinite() {
            stream.uniform(0.0, self.magnitude)
        } else if self.magnitude_std > 0.0 {
            let mut normal = [0.0];
            stream.fill_normal(&mut normal);
            self.magnitude + self.magnitude_std * f64::from(normal[0])
        } else {
            self.magnitude
        };
        magnitude.min(self.magnitude_max).max(0.0)
    }

    fn color(&self, level: f64, signed: impl Fn(f64) -> f64) -> Option<Color> {
        let bits = (level * 4.0) as i64;
        let threshold = ((level * 256.0) as i64).min(256);
        let factor = level * 1.8 + 0.1;
        let increasing = || (1.0 + signed(level * 0.9)).max(0.1);
        let posterize = |bits: i64| (bits < 8).then_some(Color::Posterize(bits.max(0) as u8));
        let solarize = |from: i64| (from < 256).then_some(Color::Solarize(from as f64));
        match self.name {
            TimmName::AutoContrast => Some(Color::AutoContrast),
            TimmName::Equalize => Some(Color::Equalize),
            TimmName::Invert => Some(Color::Invert),
            TimmName::Posterize => posterize(bits),
            TimmName::PosterizeIncreasing => posterize(4 - bits),
            TimmName::PosterizeOriginal => posterize(bits + 4),
            TimmName::Solarize => solarize(threshold),
            TimmName::SolarizeIncreasing => solarize(256 - threshold),
            TimmName::SolarizeAdd => {
                Some(Color::SolarizeAdd(((level * 110.0) as i64).min(128) as u8))
            }
            TimmName::Color => Some(Color::Saturation(factor)),
            TimmName::ColorIncreasing => Some(Color::Saturation(increasing())),
            TimmName::Contrast => Some(Color::Contrast(factor)),
            TimmName::ContrastIncreasing => Some(Color::Contrast(increasing())),
            TimmName::Brightness => Some(Color::Brightness(factor)),
            TimmName::BrightnessIncreasing => Some(Color::Brightness(increasing())),
            TimmName::Sharpness => Some(Color::Sharpness(factor)),
            TimmName::SharpnessIncreasing => Some(Color::Sharpness(increasing())),
            TimmName::Desaturate => {
                Some(Color::Saturation(1.0 - (0.5 + 0.5 * level).clamp(0.5, 1.0)))
            }
            TimmName::Rotate
            | TimmName::ShearX
            | TimmName::ShearY
            | TimmName::TranslateX
            | TimmName::TranslateY
            | TimmName::TranslateXRel
            | TimmName::TranslateYRel
            | TimmName::GaussianBlur
            | TimmName::GaussianBlurRand => None,
        }
    }
}

impl Op for TimmOp {
    fn check(&self) -> Result<()> {
        check_probability(self.p)?;
        let finite = |name: &str, value: f64| {
            let text = || Error::argument(format!("{name} must be finite, got {value}"));
            value.is_finite().then_some(()).ok_or_else(text)
        };
        finite("magnitude", self.magnitude)?;
        finite("translate_const", self.translate_const)?;
        finite("translate_pct", self.translate_pct)?;
        let at_least_0 = |name: &str, value: f64| {
            let text = || Error::argument(format!("{name} must be at least 0, got {value}"));
            (value >= 0.0).then_some(()).ok_or_else(text)
        };
        at_least_0("magnitude_std", self.magnitude_std)?;
        at_least_0("magnitude_max", self.magnitude_max)?;
        finite("magnitude_max", self.magnitude_max)?;
        if self.samplings.is_empty() {
            return Err(Error::argument("interpolation needs at least one name"));
        }
        Ok(())
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        let text = || format!("timm's {:?} needs 8-bit pixels: put it before ToDtype", self.name);
        if domain.floats { Err(Error::argument(text())) } else { Ok(()) }
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        if stream.chance(self.p) {
            let kernels = std::mem::replace(&mut drawing.kernels, Kernels::Pillow);
            self.add(drawing, stream);
            drawing.kernels = kernels;
        }
        Ok(())
    }
}

impl TimmOp {
    /// Draws the strength and adds the step.
    fn add(&self, drawing: &mut Drawing, stream: &mut Stream) {
        let level = self.magnitude(stream) / 10.0;
        let negative = stream.chance(0.5);
        let signed = |value: f64| if negative { -value } else { value };
        let chosen = stream.below(self.samplings.len() as u64) as usize;
        let sampling = self.samplings.get(chosen).copied().unwrap_or(Sampling::Bicubic);
        let look = Look { sampling, fill: Some(self.fill) };
        let size = drawing.size();
        let mut map = |inverse: [f64; 6]| drawing.push_affine(inverse, size, look);
        let Size { height, width } = size;
        match self.name {
            TimmName::Rotate => {
                drawing.rotate(signed(level * 30.0), false, None, look);
            }
            TimmName::ShearX => map([1.0, signed(level * 0.3), 0.0, 0.0, 1.0, 0.0]),
            TimmName::ShearY => map([1.0, 0.0, 0.0, signed(level * 0.3), 1.0, 0.0]),
            TimmName::TranslateX => {
                map([1.0, 0.0, signed(level * self.translate_const), 0.0, 1.0, 0.0]);
            }
            TimmName::TranslateY => {
                map([1.0, 0.0, 0.0, 0.0, 1.0, signed(level * self.translate_const)]);
            }
            TimmName::TranslateXRel => {
                let share = signed(level * self.translate_pct);
                map([1.0, 0.0, share * width as f64, 0.0, 1.0, 0.0]);
            }
            TimmName::TranslateYRel => {
                let share = signed(level * self.translate_pct);
                map([1.0, 0.0, 0.0, 0.0, 1.0, share * height as f64]);
            }
            TimmName::GaussianBlur => {
                drawing.push(Step::BoxBlur((0.1 + (2.0 - 0.1) * level).clamp(0.1, 2.0)));
            }
            TimmName::GaussianBlurRand => {
                drawing.push(Step::BoxBlur(stream.uniform(0.1, 2.0 * level.clamp(0.0, 1.0))));
            }
            _ => {
                if let Some(color) = self.color(level, signed) {
                    drawing.color(color);
                }
            }
        }
    }
}

/// Some of these, one after another.
#[derive(Clone, Debug)]
pub struct TimmRandAugment {
    /// The operations.
    pub ops: Vec<Arc<dyn Op>>,
    /// How many of them for each image.
    pub num_layers: usize,
    /// How likely each is, relative to the others, where no operation comes twice; None: all alike, and the same one
    /// may come again.
    pub weights: Option<Vec<f64>>,
}

impl Op for TimmRandAugment {
    fn check(&self) -> Result<()> {
        if self.num_layers > 1024 {
            let text = format!("num_layers must be 0..=1024, got {}", self.num_layers);
            return Err(Error::argument(text));
        }
        if self.ops.is_empty() {
            return Err(Error::argument("RandAugment needs at least one operation"));
        }
        if let Some(weights) = &self.weights {
            let possible = weights.iter().filter(|&&weight| weight > 0.0).count();
            let fine = weights.len() == self.ops.len()
                && weights.iter().all(|&weight| weight >= 0.0)
                && weights.iter().sum::<f64>().is_finite()
                && possible >= self.num_layers;
            if !fine {
                return Err(Error::argument(format!(
                    "each of the {} operations needs a weight of at least 0, and {} of them one above it; got {weights:?}",
                    self.ops.len(),
                    self.num_layers
                )));
            }
        }
        self.ops.iter().try_for_each(|op| op.check())
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        self.ops.iter().try_for_each(|op| op.check_for(domain))
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let mut weights = self.weights.clone();
        for _ in 0..self.num_layers {
            let chosen = match &mut weights {
                None => Some(stream.below(self.ops.len() as u64) as usize),
                Some(weights) => {
                    let chosen = weighted(weights, stream);
                    if let Some(weight) = chosen.and_then(|at| weights.get_mut(at)) {
                        *weight = 0.0;
                    }
                    chosen
                }
            };
            if let Some(op) = chosen.and_then(|at| self.ops.get(at)) {
                drawing.run(&**op)?;
            }
        }
        Ok(())
    }

    fn count(&self) -> usize {
        let most = self.ops.iter().map(|op| op.count()).max().unwrap_or(0);
        self.num_layers.saturating_mul(most).saturating_add(1)
    }
}

/// The image mixed with chains of operations on it.
#[derive(Clone, Debug)]
pub struct TimmAugMix {
    /// The operations.
    pub ops: Vec<Arc<dyn Op>>,
    /// Parameter of the distributions of the weights: Dirichlet of the chains', beta of their sum's.
    pub alpha: f64,
    /// How many chains.
    pub width: usize,
    /// How many operations in each; None: 1 to 3, drawn.
    pub depth: Option<usize>,
}

impl Op for TimmAugMix {
    fn check(&self) -> Result<()> {
        let count = |name: &str, value: usize| {
            let text = || Error::argument(format!("{name} must be in 1..=1024, got {value}"));
            (1..=1024).contains(&value).then_some(()).ok_or_else(text)
        };
        count("width", self.width)?;
        count("depth", self.depth.unwrap_or(1))?;
        if self.ops.is_empty() {
            return Err(Error::argument("AugMix needs at least one operation"));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            let text = format!("alpha must be positive and finite, got {}", self.alpha);
            return Err(Error::argument(text));
        }
        self.ops.iter().try_for_each(|op| op.check())
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        if domain.floats {
            return Err(Error::argument("timm's AugMix needs 8-bit pixels: put it before ToDtype"));
        }
        self.ops.iter().try_for_each(|op| op.check_for(domain))
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let (mut share, mut weights) = ([0.0; 2], vec![0.0; self.width]);
        stream.dirichlet(self.alpha, &mut weights);
        stream.dirichlet(self.alpha, &mut share);
        let mut chain = |weight: f64| {
            let depth = self.depth.unwrap_or_else(|| 1 + stream.below(3) as usize);
            let steps = drawing.aside(|drawing| {
                for _ in 0..depth {
                    if let Some(op) = self.ops.get(stream.below(self.ops.len() as u64) as usize) {
                        drawing.run(&**op)?;
                    }
                }
                Ok(())
            })?;
            Ok((weight as f32, steps))
        };
        let chains: Result<_> = weights.into_iter().map(&mut chain).collect();
        let steps = vec![Step::Mix { keep: 0.0, chains: chains? }];
        drawing.push(Step::Blend { share: share[0] as f32, steps });
        Ok(())
    }

    fn count(&self) -> usize {
        let most = self.ops.iter().map(|op| op.count()).max().unwrap_or(0);
        let drawn = self.width.saturating_mul(self.depth.unwrap_or(3));
        drawn.saturating_mul(most).saturating_add(1)
    }
}

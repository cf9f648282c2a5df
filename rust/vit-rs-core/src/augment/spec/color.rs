//! Colours, blur and sharpness.

use super::{Domain, Drawing, Op, check_probability};
use crate::augment::plan::{Color, Step};
use crate::error::{Error, Result};
use crate::image::Size;
use crate::rng::Stream;

/// The change that a number stands for.
type Change = fn(f64) -> Color;

/// Brightness, contrast, saturation and hue, each by a factor drawn from its range, in an order drawn too.
#[derive(Clone, Copy, Debug, Default)]
pub struct ColorJitter {
    /// Smallest and largest factor; None leaves the brightness alone.
    pub brightness: Option<(f64, f64)>,
    /// The same for the contrast.
    pub contrast: Option<(f64, f64)>,
    /// The same for the saturation.
    pub saturation: Option<(f64, f64)>,
    /// Smallest and largest share of the circle, -0.5 to 0.5.
    pub hue: Option<(f64, f64)>,
}

impl Op for ColorJitter {
    fn check(&self) -> Result<()> {
        check_factors("brightness", self.brightness, (0.0, f64::INFINITY))?;
        check_factors("contrast", self.contrast, (0.0, f64::INFINITY))?;
        check_factors("saturation", self.saturation, (0.0, f64::INFINITY))?;
        check_factors("hue", self.hue, (-0.5, 0.5))
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let Self { brightness, contrast, saturation, hue } = *self;
        let mut kinds: [(Option<(f64, f64)>, Change); 4] = [
            (brightness, Color::Brightness),
            (contrast, Color::Contrast),
            (saturation, Color::Saturation),
            (hue, Color::Hue),
        ];
        stream.shuffle(&mut kinds);
        for (range, color) in kinds {
            if let Some((low, high)) = range {
                drawing.color(color(stream.uniform_f32(low, high)));
            }
        }
        Ok(())
    }
}

/// All channels become the gray.
#[derive(Clone, Copy, Debug)]
pub struct Grayscale;

impl Op for Grayscale {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn draw(&self, drawing: &mut Drawing, _: &mut Stream) -> Result<()> {
        drawing.color(Color::Grayscale);
        Ok(())
    }
}

/// A change of colours without further randomness, with this probability.
#[derive(Clone, Copy, Debug)]
pub struct RandomColor {
    /// The change.
    pub color: Color,
    /// How often.
    pub p: f64,
}

impl Op for RandomColor {
    fn check(&self) -> Result<()> {
        check_color(self.color)?;
        check_probability(self.p)
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        let white = if domain.floats { 1.0 } else { 255.0 };
        match self.color {
            Color::Solarize(threshold) if threshold.is_nan() || threshold > white => {
                let values = if domain.floats { "floats" } else { "8-bit pixels" };
                let text =
                    format!("threshold must be at most {white} for {values}, got {threshold}");
                Err(Error::argument(text))
            }
            _ => Ok(()),
        }
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        if stream.chance(self.p) {
            drawing.color(self.color);
        }
        Ok(())
    }
}

/// A Gaussian blur whose standard deviation is drawn, one for both directions.
#[derive(Clone, Copy, Debug)]
pub struct GaussianBlur {
    /// Height and width of the kernel, odd.
    pub kernel: Size,
    /// Smallest and largest standard deviation, pixels.
    pub sigma: (f64, f64),
}

impl Op for GaussianBlur {
    fn check(&self) -> Result<()> {
        for side in [self.kernel.height, self.kernel.width] {
            if side % 2 == 0 || side > 1 << 16 {
                return Err(Error::argument(format!(
                    "kernel_size must be odd and in 1..=65535, got {side}"
                )));
            }
        }
        super::check_range("sigma", self.sigma, f64::INFINITY)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let sigma = stream.uniform_f32(self.sigma.0, self.sigma.1);
        drawing.push(Step::GaussianBlur { kernel: self.kernel, sigma: (sigma, sigma) });
        Ok(())
    }
}

fn check_factors(name: &str, range: Option<(f64, f64)>, (least, most): (f64, f64)) -> Result<()> {
    let Some((low, high)) = range else { return Ok(()) };
    let fine = low.is_finite() && high.is_finite() && least <= low && low <= high && high <= most;
    fine.then_some(()).ok_or_else(|| {
        Error::argument(format!(
            "{name} must be (low, high) with {least} <= low <= high{}, got ({low}, {high})",
            if most.is_finite() { format!(" <= {most}") } else { String::new() }
        ))
    })
}

fn check_color(color: Color) -> Result<()> {
    match color {
        Color::Posterize(bits) if bits > 8 => {
            Err(Error::argument(format!("bits must be in 0..=8, got {bits}")))
        }
        Color::Sharpness(factor) if !(factor.is_finite() && factor >= 0.0) => {
            let text = format!("sharpness_factor must be finite and at least 0, got {factor}");
            Err(Error::argument(text))
        }
        _ => Ok(()),
    }
}

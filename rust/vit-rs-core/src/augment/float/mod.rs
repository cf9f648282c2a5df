//! Carries out the steps of a plan on floats, for operations that stand behind `ToDtype`.
//!
//! Results are torchvision's on float32 tensors but for the last bits: sums run in another order than there. Colours
//! take 1 for white, as there. Speed comes second: the usual chain needs no float image, see
//! [`Plan::split`](super::plan::Plan::split).

mod affine;
mod blur;
mod color;

use super::plan::Step;
use super::{erase, geometry};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Size};
use crate::line::{Channels, Converter, Normalization, Unit};
use crate::resample::f32::resample;
use crate::resample::taps::{Axis, Filter, taps};
use crate::simd::Level;

/// The memory of a chain of float steps, one per thread.
#[derive(Debug, Default)]
pub struct FloatCanvas {
    buffers: [ImageBuf<f32>; 2],
    /// Draws the chains of a mix; made when the first one comes.
    mixer: Option<Box<Self>>,
}

impl FloatCanvas {
    /// Converts `source` to floats in `unit`, applies `steps`, and returns the result.
    ///
    /// # Errors
    /// [`Error::Argument`] when a crop leaves the image, or a step does not go with the number of channels.
    pub fn apply(
        &mut self,
        source: ImageView<'_>,
        unit: Unit,
        steps: &[Step],
    ) -> Result<ImageView<'_, f32>> {
        let (width, channels) = (source.size().width, source.channels());
        let values = self.buffers[0].reshape(source.size(), channels);
        for (y, row) in values.chunks_exact_mut(width * channels).enumerate() {
            let values = row.iter_mut().zip(source.row(y));
            values.for_each(|(to, &from)| *to = unit.of(from));
        }
        self.carry_out(steps)
    }

    /// Applies `steps` to the first buffer.
    fn carry_out(&mut self, steps: &[Step]) -> Result<ImageView<'_, f32>> {
        let level = Level::best();
        let [front, back] = &mut self.buffers;
        let (mut current, mut next) = (front, back);
        for step in steps {
            let from = current.view()?;
            let (size, channels) = (from.size(), from.channels());
            match step {
                Step::Crop(rect) => geometry::copy(from.crop(*rect)?, next),
                Step::Window { top, left, size, border } => {
                    geometry::window(from, *top, *left, *size, *border, next);
                }
                Step::Resize { size, filter, .. } => resize(from, *size, *filter, next)?,
                Step::FlipHorizontal => geometry::flip_horizontal(from, next),
                Step::FlipVertical => geometry::flip_vertical(from, next),
                Step::GaussianBlur { kernel, sigma } => {
                    blur::blur(from, *kernel, *sigma, level, next);
                }
                Step::Affine(map, _) => {
                    super::affine::check(from.size())?;
                    affine::affine(from, map, next)?;
                }
                Step::Mix { keep, chains } => {
                    let mixer = self.mixer.get_or_insert_default();
                    mix(mixer, from, *keep, chains, next)?;
                }
                Step::BoxBlur(_) | Step::Blend { .. } => {
                    return Err(Error::argument(
                        "Pillow's blur and blend need 8-bit pixels: put them before ToDtype",
                    ));
                }
                // These work where the image is.
                Step::Color(color, _) => {
                    color::apply(*color, current.values_mut(), size, channels, level)?;
                    continue;
                }
                Step::Erase { rect, fill } => {
                    erase::erase(current, size, channels, *rect, fill, |value| value)?;
                    continue;
                }
                Step::Normalize { mean, std } => {
                    normalize(from, mean, std, next)?;
                }
            }
            std::mem::swap(&mut current, &mut next);
        }
        current.view()
    }
}

/// Resizes with antialiasing. Values are not clamped: cubic kernels overshoot, as torch's do on floats.
fn resize(
    source: ImageView<'_, f32>,
    size: Size,
    filter: Filter,
    target: &mut ImageBuf<f32>,
) -> Result<()> {
    let axis = |input, output| Axis::antialiased(input, output, filter);
    let (from, channels) = (source.size(), source.channels());
    let vertical = taps(&axis(from.height, size.height))?;
    let horizontal = taps(&axis(from.width, size.width))?;
    let target = target.reshape(size, channels);
    resample(source.values()?, target, 1, 0, channels, &vertical, &horizontal, 1)
}

fn normalize(
    source: ImageView<'_, f32>,
    mean: &[f32],
    std: &[f32],
    target: &mut ImageBuf<f32>,
) -> Result<()> {
    let (Size { width, .. }, channels) = (source.size(), source.channels());
    let converter = Converter::new(&Normalization::new(channels, mean, std)?, Unit::ONE, width);
    let rows = target.reshape(source.size(), channels).chunks_exact_mut(width * channels);
    for (y, row) in rows.enumerate() {
        let room = &mut Vec::new();
        converter.convert(Level::best(), Channels::Packed, source.row(y), row, room);
    }
    Ok(())
}

/// The weighted sum of an image and of chains of it.
fn mix(
    canvas: &mut FloatCanvas,
    source: ImageView<'_, f32>,
    keep: f32,
    chains: &[(f32, Vec<Step>)],
    target: &mut ImageBuf<f32>,
) -> Result<()> {
    let (size, channels) = (source.size(), source.channels());
    let sums = target.reshape(size, channels);
    sums.iter_mut().zip(source.values()?).for_each(|(sum, value)| *sum = keep * value);
    for (weight, steps) in chains {
        geometry::copy(source, &mut canvas.buffers[0]);
        let chain = canvas.carry_out(steps)?;
        if chain.size() != size {
            return Err(Error::argument(format!(
                "a chain of a mix makes {} of {size}: only steps that keep the size can be mixed",
                chain.size()
            )));
        }
        sums.iter_mut().zip(chain.values()?).for_each(|(sum, value)| *sum += weight * value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::augment::plan::Color;

    #[test]
    fn every_level_gives_the_same_bits() {
        let size = Size::new(13, 21);
        let mut stream = crate::rng::Stream::keyed(1);
        for channels in [1, 3] {
            let values: Vec<f32> =
                (0..size.pixels() * channels).map(|_| stream.uniform(-0.1, 1.1) as f32).collect();
            let image = ImageView::new(&values, size, channels, size.width * channels).unwrap();
            for color in [
                Color::Brightness(1.3),
                Color::Contrast(0.4),
                Color::Saturation(1.7),
                Color::Hue(0.3),
                Color::Grayscale,
                Color::Invert,
                Color::Posterize(3),
                Color::Solarize(0.5),
                Color::Equalize,
                Color::AutoContrast,
                Color::Sharpness(1.9),
            ] {
                let made = Level::all().iter().map(|&level| {
                    let mut values = values.clone();
                    color::apply(color, &mut values, size, channels, level).unwrap();
                    values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                });
                let made: Vec<_> = made.collect();
                assert!(made.iter().all(|bits| *bits == made[0]), "{color:?}");
            }
            let made = Level::all().iter().map(|&level| {
                let mut target = ImageBuf::default();
                blur::blur(image, Size::new(5, 31), (1.1, 6.0), level, &mut target);
                target.values_mut().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            });
            let made: Vec<_> = made.collect();
            assert!(made.iter().all(|bits| *bits == made[0]));
        }
    }
}

//! The weighted sum of an image and of chains of it, and Pillow's blend of two images.

use super::canvas::Canvas;
use super::color::cut;
use super::geometry;
use super::plan::Step;
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView};
use crate::simd::{self, Kernel, Level};

/// The memory of a sum, kept from one image to the next.
#[derive(Debug, Default)]
pub(super) struct Mixer {
    /// Draws the chains.
    canvas: Canvas,
    sums: Vec<f32>,
}

impl Mixer {
    pub(super) fn mix(
        &mut self,
        level: Level,
        source: ImageView<'_>,
        keep: f32,
        chains: &[(f32, Vec<Step>)],
        target: &mut ImageBuf,
    ) -> Result<()> {
        let (size, channels) = (source.size(), source.channels());
        let row = size.width * channels;
        // Every sum is written before it is added to.
        self.sums.resize(size.pixels() * channels, 0.0);
        for (y, sums) in self.sums.chunks_exact_mut(row).enumerate() {
            simd::run(level, Start { weight: keep, pixels: source.row(y), sums });
        }
        for (weight, steps) in chains {
            let chain = chain(&mut self.canvas, source, steps)?;
            for (y, sums) in self.sums.chunks_exact_mut(row).enumerate() {
                simd::run(level, Add { weight: *weight, pixels: chain.row(y), sums });
            }
        }
        let pixels = target.reshape(size, channels);
        simd::run(level, Cut { sums: &self.sums, pixels });
        Ok(())
    }

    pub(super) fn blend(
        &mut self,
        level: Level,
        source: ImageView<'_>,
        share: f32,
        steps: &[Step],
        target: &mut ImageBuf,
    ) -> Result<()> {
        let chain = chain(&mut self.canvas, source, steps)?;
        let rows = geometry::rows_mut(target, source.size(), source.channels());
        for (y, to) in rows.enumerate() {
            simd::run(level, Blend { share, from: source.row(y), other: chain.row(y), to });
        }
        Ok(())
    }
}

/// Applies a chain's steps, which must leave the image's size alone.
fn chain<'a>(
    canvas: &'a mut Canvas,
    source: ImageView<'a>,
    steps: &[Step],
) -> Result<ImageView<'a>> {
    let (size, channels) = (source.size(), source.channels());
    let chain = canvas.apply(source, steps)?;
    if chain.size() == size && chain.channels() == channels {
        return Ok(chain);
    }
    Err(Error::argument(format!(
        "a chain of a mix makes {} of {size}: only steps that keep the size can be mixed",
        chain.size()
    )))
}

/// Between `from` (a share of 0) and `other` (of 1), cut.
struct Blend<'a> {
    share: f32,
    from: &'a [u8],
    other: &'a [u8],
    to: &'a mut [u8],
}

impl Kernel for Blend<'_> {
    #[inline(always)]
    fn run(self) {
        for ((to, &from), &other) in self.to.iter_mut().zip(self.from).zip(self.other) {
            let (from, other) = (f32::from(from), f32::from(other));
            *to = cut(from + self.share * (other - from));
        }
    }
}

struct Start<'a> {
    weight: f32,
    pixels: &'a [u8],
    sums: &'a mut [f32],
}

impl Kernel for Start<'_> {
    #[inline(always)]
    fn run(self) {
        for (sum, &pixel) in self.sums.iter_mut().zip(self.pixels) {
            *sum = self.weight * f32::from(pixel);
        }
    }
}

struct Add<'a> {
    weight: f32,
    pixels: &'a [u8],
    sums: &'a mut [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run(self) {
        for (sum, &pixel) in self.sums.iter_mut().zip(self.pixels) {
            *sum += self.weight * f32::from(pixel);
        }
    }
}

struct Cut<'a> {
    sums: &'a [f32],
    pixels: &'a mut [u8],
}

impl Kernel for Cut<'_> {
    #[inline(always)]
    fn run(self) {
        for (pixel, &sum) in self.pixels.iter_mut().zip(self.sums) {
            // Sums are not negative. Cut off what lies behind the point: a cast of a float to u8 would be slower.
            let near = (sum.min(255.0) + 8_388_608.0).to_bits();
            *pixel = (near - u32::from((near - 0x4B00_0000) as f32 > sum)) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::augment::plan::{Color, Kernels};
    use crate::image::{Rect, Size};

    fn mixed(
        level: Level,
        pixels: &[u8],
        keep: f32,
        chains: &[(f32, Vec<Step>)],
    ) -> Result<Vec<u8>> {
        let source = ImageView::new(pixels, Size::new(1, pixels.len()), 1, pixels.len())?;
        let mut target = ImageBuf::default();
        Mixer::default().mix(level, source, keep, chains, &mut target)?;
        Ok(target.view()?.row(0).to_vec())
    }

    #[test]
    fn sums_are_cut_in_the_order_of_the_chains() {
        let pixels: Vec<u8> = (0..=255).collect();
        let invert = || vec![Step::Color(Color::Invert, Kernels::Torch)];
        for (keep, a, b) in [(0.25, 0.5, 0.25), (0.1, 0.7, 0.2), (1.0, 0.0, 0.0), (0.0, 0.3, 0.7)] {
            let expected: Vec<u8> = pixels
                .iter()
                .map(|&p| (keep * f32::from(p) + a * f32::from(p) + b * f32::from(255 - p)) as u8)
                .collect();
            for &level in Level::all() {
                let chains = [(a, Vec::new()), (b, invert())];
                assert_eq!(mixed(level, &pixels, keep, &chains).unwrap(), expected);
            }
        }
    }

    #[test]
    fn blends_are_cut() {
        let pixels: Vec<u8> = (0..=255).collect();
        let source = ImageView::new(&pixels, Size::new(1, 256), 1, 256).unwrap();
        let steps = [Step::Color(Color::Invert, Kernels::Pillow)];
        for share in [0.0_f32, 0.3, 0.5, 0.999, 1.0] {
            let between = |p: u8| (f32::from(p) + share * (255.0 - 2.0 * f32::from(p))) as u8;
            let expected: Vec<u8> = pixels.iter().map(|&p| between(p)).collect();
            for &level in Level::all() {
                let mut target = ImageBuf::default();
                Mixer::default().blend(level, source, share, &steps, &mut target).unwrap();
                assert_eq!(target.view().unwrap().row(0), expected);
            }
        }
        let crop = Step::Crop(Rect { top: 0, left: 0, height: 1, width: 2 });
        let mut target = ImageBuf::default();
        let error = Mixer::default().blend(Level::best(), source, 0.5, &[crop], &mut target);
        assert!(error.unwrap_err().to_string().contains("makes 1 x 2 of 1 x 256"));
    }

    #[test]
    fn a_chain_of_another_size_is_refused() {
        let crop = Step::Crop(Rect { top: 0, left: 0, height: 1, width: 2 });
        let error = mixed(Level::best(), &[1, 2, 3], 0.5, &[(0.5, vec![crop])]).unwrap_err();
        assert!(error.to_string().contains("a chain of a mix makes 1 x 2 of 1 x 3"), "{error}");
    }
}

//! Both passes: by the kernels of `simd` where there are any, else as the plain loops that those are tested against.

use std::ops::Range;

use super::Rounding;
use super::weights::Weights;
use crate::error::Result;
use crate::resample::taps::Axis;
use crate::simd::{self, HorizontalWeights, Kernel, Level, VerticalWeights};

/// Output bytes that the plain loop sums in registers.
const LANES: usize = 32;

/// Narrows or widens rows of pixels.
#[derive(Debug, Default)]
pub(super) struct Horizontal {
    weights: Weights,
    /// The same for the kernel, which takes three channels.
    for_kernel: HorizontalWeights,
    /// A row with the bytes behind it that the kernel reads.
    longer: Vec<u8>,
}

impl Horizontal {
    pub(super) fn prepare(&mut self, level: Level, axis: Axis, rounding: Rounding) -> Result<()> {
        if self.weights.fill(axis, rounding)? {
            let (weights, precision) = (&self.weights, self.weights.precision());
            self.for_kernel.fill(level, weights.output(), |i| weights.row(i), precision);
        }
        Ok(())
    }

    /// Bytes of a source row that the kernel wants to read.
    pub(super) fn reach(&self) -> usize {
        self.for_kernel.reach()
    }

    /// Makes a row from the pixels that `source` begins with. What stands behind them is not used, but spares a copy.
    pub(super) fn run(&mut self, level: Level, channels: usize, source: &[u8], target: &mut [u8]) {
        let weights = &self.weights;
        if channels == 3 {
            let (mut from, reach) = (source, self.for_kernel.reach());
            if from.len() < reach {
                self.longer.clear();
                self.longer.extend_from_slice(from);
                self.longer.resize(reach, 0);
                from = &self.longer;
            }
            if simd::convolve_horizontally(level, &self.for_kernel, from, target) {
                return;
            }
        }
        match channels {
            1 => simd::run(level, HorizontalLoop::<1> { weights, source, target }),
            3 => simd::run(level, HorizontalLoop::<3> { weights, source, target }),
            _ => simd::run(level, HorizontalLoop::<4> { weights, source, target }),
        }
    }
}

/// Makes rows from rows below each other.
#[derive(Debug, Default)]
pub(super) struct Vertical {
    weights: Weights,
    for_kernel: VerticalWeights,
}

impl Vertical {
    pub(super) fn prepare(&mut self, level: Level, axis: Axis, rounding: Rounding) -> Result<()> {
        if self.weights.fill(axis, rounding)? {
            let (weights, precision) = (&self.weights, self.weights.precision());
            self.for_kernel.fill(level, weights.output(), |i| weights.row(i).1, precision);
        }
        Ok(())
    }

    /// The rows that output row `y` is made of.
    pub(super) fn rows(&self, y: usize) -> Range<usize> {
        let (first, weights) = self.weights.row(y);
        first..first + weights.len()
    }

    /// The most rows that an output row is made of.
    pub(super) fn most_rows(&self) -> usize {
        self.weights.rows().map(|(_, row)| row.len()).max().unwrap_or(0)
    }

    /// Makes output row `y` from the rows in `source`, `stride` bytes apart, the first of which is that of
    /// [`Vertical::rows`].
    pub(super) fn run(
        &self,
        level: Level,
        y: usize,
        source: &[u8],
        stride: usize,
        target: &mut [u8],
    ) {
        if simd::convolve_vertically(level, &self.for_kernel, y, (source, stride), target) {
            return;
        }
        let (weights, precision) = (self.weights.row(y).1, self.weights.precision());
        simd::run(level, VerticalLoop { weights, precision, source, stride, target });
    }
}

/// One row of pixels of `C` channels. Sums wrap, as those of the kernels do; with the weights of the filters they stay
/// far from it.
struct HorizontalLoop<'a, const C: usize> {
    weights: &'a Weights,
    source: &'a [u8],
    target: &'a mut [u8],
}

impl<const C: usize> Kernel for HorizontalLoop<'_, C> {
    #[inline(always)]
    fn run(self) {
        let precision = self.weights.precision();
        let pixels = self.source.as_chunks::<C>().0;
        let targets = self.target.as_chunks_mut::<C>().0;
        for ((first, weights), target) in self.weights.rows().zip(targets) {
            let mut sums = [half(precision); C];
            for (pixel, &weight) in pixels[first..].iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(value)));
                }
            }
            *target = sums.map(|sum| rounded(sum, precision));
        }
    }
}

/// One row of the result.
struct VerticalLoop<'a> {
    weights: &'a [i32],
    precision: u32,
    source: &'a [u8],
    stride: usize,
    target: &'a mut [u8],
}

impl Kernel for VerticalLoop<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { weights, precision, source, stride, target } = self;
        let (blocks, rest) = target.as_chunks_mut::<LANES>();
        let done = blocks.len() * LANES;
        for (i, block) in blocks.iter_mut().enumerate() {
            let mut sums = [half(precision); LANES];
            for (k, &weight) in weights.iter().enumerate() {
                let row = &source[k * stride + i * LANES..][..LANES];
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(value)));
                }
            }
            *block = sums.map(|sum| rounded(sum, precision));
        }
        for (x, target) in rest.iter_mut().enumerate() {
            let mut sum = half(precision);
            for (k, &weight) in weights.iter().enumerate() {
                let value = source[k * stride + done + x];
                sum = sum.wrapping_add(weight.wrapping_mul(i32::from(value)));
            }
            *target = rounded(sum, precision);
        }
    }
}

/// What makes the shift round to nearest.
#[inline(always)]
fn half(precision: u32) -> i32 {
    (1 << precision) >> 1
}

#[inline(always)]
fn rounded(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

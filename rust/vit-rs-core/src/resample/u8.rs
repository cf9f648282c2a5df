//! Photographs: antialiased resize of 8-bit images, bit-equal to torch's `F.interpolate(antialias=True)` on uint8.
//!
//! As there, weights are rounded to 16-bit fixed point with as many fractional bits as the largest weight allows, the
//! horizontal pass comes first, and its result is rounded to 8 bits before the vertical pass.

use super::taps::{Axis, Filter, Taps, taps};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Size};

/// Fixed-point rows of one axis.
#[derive(Debug, Default)]
struct Weights {
    /// (first sample, first weight, number of weights) of each output sample.
    rows: Vec<(usize, usize, usize)>,
    values: Vec<i16>,
    precision: u32,
}

impl Weights {
    fn fill(&mut self, taps: &Taps) {
        self.rows.clear();
        self.values.clear();
        let largest =
            (0..taps.output()).flat_map(|i| taps.row(i).1).fold(0.0_f64, |a, &b| a.max(b));
        self.precision = 0;
        while self.precision < 22 && (0.5 + largest * f64::from(2u32 << self.precision)) < 32768.0 {
            self.precision += 1;
        }
        let one = f64::from(1u32 << self.precision);
        for i in 0..taps.output() {
            let (first, row) = taps.row(i);
            self.rows.push((first, self.values.len(), row.len()));
            // Round half away from zero, then cut: the rule of the kernels this agrees with.
            self.values.extend(row.iter().map(|w| (w * one + 0.5f64.copysign(*w)) as i16));
        }
    }

    fn rows(&self) -> impl Iterator<Item = (usize, &[i16])> {
        self.rows.iter().map(|&(first, start, count)| (first, &self.values[start..start + count]))
    }
}

/// The memory of a resize, kept from one image to the next.
#[derive(Debug, Default)]
pub struct Resizer {
    horizontal: Weights,
    vertical: Weights,
    middle: ImageBuf,
    sums: Vec<i32>,
}

impl Resizer {
    /// Resizes `source` (1 or 3 channels) to `size` into `target`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty size or another number of channels.
    pub fn resize(
        &mut self,
        source: ImageView<'_>,
        size: Size,
        filter: Filter,
        target: &mut ImageBuf,
    ) -> Result<()> {
        let axis = |input, output| Axis {
            input,
            output,
            filter,
            antialias: true,
            align_corners: false,
            scale: None,
        };
        let channels = source.channels();
        let input = source.size();
        let narrowed = Size::new(input.height, size.width);
        if input.width == size.width && input.height == size.height {
            let out = target.reshape(size, channels);
            for (y, row) in out.chunks_exact_mut(size.width * channels).enumerate() {
                row.copy_from_slice(source.row(y));
            }
            return Ok(());
        }
        if input.width != size.width {
            self.horizontal.fill(&taps(&axis(input.width, size.width))?);
            let only = input.height == size.height;
            let out =
                if only { &mut *target } else { &mut self.middle }.reshape(narrowed, channels);
            match channels {
                1 => horizontal_pass::<1>(source, &self.horizontal, out),
                3 => horizontal_pass::<3>(source, &self.horizontal, out),
                _ => {
                    return Err(Error::argument(format!(
                        "images have 1 or 3 channels, got {channels}"
                    )));
                }
            }
        }
        if input.height != size.height {
            self.vertical.fill(&taps(&axis(input.height, size.height))?);
            let from = if input.width == size.width { source } else { self.middle.view()? };
            vertical_pass(from, &self.vertical, target.reshape(size, channels), &mut self.sums);
        }
        Ok(())
    }
}

fn horizontal_pass<const C: usize>(source: ImageView<'_>, weights: &Weights, out: &mut [u8]) {
    let half = 1 << (weights.precision - 1);
    let out_width = weights.rows.len();
    for (y, out_row) in out.chunks_exact_mut(out_width * C).enumerate() {
        let (pixels, _) = source.row(y).as_chunks::<C>();
        let (targets, _) = out_row.as_chunks_mut::<C>();
        for ((first, row), target) in weights.rows().zip(targets) {
            let mut sums = [half; C];
            for (pixel, &weight) in pixels[first..].iter().zip(row) {
                for c in 0..C {
                    sums[c] += i32::from(weight) * i32::from(pixel[c]);
                }
            }
            *target = sums.map(|sum| (sum >> weights.precision).clamp(0, 255) as u8);
        }
    }
}

fn vertical_pass(source: ImageView<'_>, weights: &Weights, out: &mut [u8], sums: &mut Vec<i32>) {
    let row_bytes = source.size().width * source.channels();
    for ((first, row), out_row) in weights.rows().zip(out.chunks_exact_mut(row_bytes)) {
        sums.clear();
        sums.resize(row_bytes, 1 << (weights.precision - 1));
        for (y, &weight) in (first..).zip(row) {
            for (sum, &value) in sums.iter_mut().zip(source.row(y)) {
                *sum += i32::from(weight) * i32::from(value);
            }
        }
        for (target, sum) in out_row.iter_mut().zip(sums.iter()) {
            *target = (sum >> weights.precision).clamp(0, 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn resized(data: &[u8], from: Size, to: Size, filter: Filter) -> Vec<u8> {
        let view = ImageView::new(data, from, 3, from.width * 3).unwrap();
        let mut out = ImageBuf::default();
        Resizer::default().resize(view, to, filter, &mut out).unwrap();
        let view = out.view().unwrap();
        (0..to.height).flat_map(|y| view.row(y).to_vec()).collect()
    }

    fn filters() -> impl Strategy<Value = Filter> {
        prop_oneof![
            Just(Filter::Bilinear),
            Just(Filter::Bicubic { a: -0.5 }),
            Just(Filter::Lanczos3)
        ]
    }

    proptest! {
        #[test]
        fn constant_stays_constant(h in 1usize..40, w in 1usize..40, oh in 1usize..40, ow in 1usize..40, value: u8, filter in filters()) {
            let out = resized(&vec![value; h * w * 3], Size::new(h, w), Size::new(oh, ow), filter);
            prop_assert!(out.iter().all(|&o| o.abs_diff(value) <= 1));
        }

        #[test]
        fn same_size_is_identity(data in proptest::collection::vec(any::<u8>(), 5 * 7 * 3), filter in filters()) {
            prop_assert_eq!(&resized(&data, Size::new(5, 7), Size::new(5, 7), filter), &data);
        }

        #[test]
        fn mirrored_in_mirrored_out(data in proptest::collection::vec(any::<u8>(), 6 * 9 * 3), ow in 1usize..20, filter in filters()) {
            let mirror = |d: &[u8], w: usize| -> Vec<u8> {
                d.chunks(w * 3).flat_map(|row| row.chunks(3).rev().flatten().copied().collect::<Vec<_>>()).collect()
            };
            let plain = resized(&data, Size::new(6, 9), Size::new(4, ow), filter);
            let other = resized(&mirror(&data, 9), Size::new(6, 9), Size::new(4, ow), filter);
            // Supports are rounded half up, so mirrored taps may differ where an edge lies on a half: one level.
            prop_assert!(plain.iter().zip(mirror(&other, ow)).all(|(a, b)| a.abs_diff(b) <= 1));
        }
    }
}

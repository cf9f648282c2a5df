//! Gaussian blur of floats: rows, then columns, of the image mirrored at its edge pixels, as of 8-bit pixels.

use crate::augment::blur::fill_weights;
use crate::augment::geometry;
use crate::augment::plan::Border;
use crate::image::{ImageBuf, ImageView, Size};
use crate::simd::{self, Kernel, Level};

/// Convolves with a Gaussian of `kernel` taps and standard deviations `sigma` along height and width.
pub(super) fn blur(
    source: ImageView<'_, f32>,
    kernel: Size,
    sigma: (f64, f64),
    level: Level,
    target: &mut ImageBuf<f32>,
) {
    let (size, channels) = (source.size(), source.channels());
    let (mut vertical, mut horizontal) = (Vec::new(), Vec::new());
    fill_weights(&mut vertical, kernel.height, sigma.0);
    fill_weights(&mut horizontal, kernel.width, sigma.1);
    let mirrored =
        |at: i64, length: usize| geometry::inside(at, length, Border::Reflect).unwrap_or(0);
    let line = size.width * channels;
    let mut rows = vec![0.0; size.height * line];
    let radius = horizontal.len() - 1;
    let mut padded = Vec::with_capacity(line + 2 * radius * channels);
    for (y, to) in rows.chunks_exact_mut(line).enumerate() {
        let row = source.row(y);
        padded.clear();
        for x in -(radius as i64)..(size.width + radius) as i64 {
            padded.extend_from_slice(&row[mirrored(x, size.width) * channels..][..channels]);
        }
        for (j, &weight) in horizontal.iter().enumerate() {
            let before = &padded[(radius - j) * channels..][..line];
            let after = &padded[(radius + j) * channels..][..line];
            simd::run(level, AddPair { to, before, after, weight, middle: j == 0 });
        }
    }
    let target = target.reshape(size, channels);
    target.fill(0.0);
    for (y, to) in target.chunks_exact_mut(line).enumerate() {
        for (j, &weight) in vertical.iter().enumerate() {
            let row = |at: i64| &rows[mirrored(at, size.height) * line..][..line];
            let (y, j) = (y as i64, j as i64);
            let (before, after) = (row(y - j), row(y + j));
            simd::run(level, AddPair { to, before, after, weight, middle: j == 0 });
        }
    }
}

/// Adds two samples as far from the middle, weighted; the middle one once.
struct AddPair<'a> {
    to: &'a mut [f32],
    before: &'a [f32],
    after: &'a [f32],
    weight: f32,
    middle: bool,
}

impl Kernel for AddPair<'_> {
    #[inline(always)]
    fn run(self) {
        let values = self.to.iter_mut().zip(self.before).zip(self.after);
        if self.middle {
            values.for_each(|((to, value), _)| *to += self.weight * value);
        } else {
            values.for_each(|((to, before), after)| *to += (before + after) * self.weight);
        }
    }
}

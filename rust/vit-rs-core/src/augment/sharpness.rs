//! Sharpness: a blend with the image smoothed by 3 x 3 weights of 1/13, the middle 5/13.

use super::color::{Blend, blend_of, cut};
use super::geometry;
use super::plan::Kernels;
use crate::image::{ImageBuf, ImageView};
use crate::simd::{self, Kernel, Level};

/// A line's inner values and what stands around them.
struct Sharpen<'a> {
    /// The lines above, of the values, and below.
    rows: [&'a [u8]; 3],
    channels: usize,
    to: &'a mut [u8],
    factor: f32,
    blend: Blend,
}

impl Kernel for Sharpen<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { rows, channels, to, factor, blend } = self;
        match blend {
            Blend::Torch(rest) => {
                let rest = f64::from(rest);
                sharpen(rows, channels, to, |value, smooth| {
                    // One rounding to float32: the sum is exact but for shares below 2^-21.
                    cut((f64::from(smooth - value) * rest + f64::from(value)) as f32)
                });
            }
            Blend::Pillow => {
                sharpen(
                    rows,
                    channels,
                    to,
                    |value, smooth| cut(smooth + factor * (value - smooth)),
                );
            }
        }
    }
}

#[inline(always)]
fn sharpen(rows: [&[u8]; 3], channels: usize, to: &mut [u8], blend: impl Fn(f32, f32) -> u8) {
    let inner = to.len();
    let [above, line, below] = rows.map(|row| {
        [&row[..inner], &row[channels..channels + inner], &row[2 * channels..2 * channels + inner]]
    });
    for i in 0..inner {
        let sum = |[left, middle, right]: [&[u8]; 3]| {
            u16::from(left[i]) + u16::from(middle[i]) + u16::from(right[i])
        };
        let value = line[1][i];
        let sum = sum(above) + sum(line) + sum(below) + 4 * u16::from(value);
        // The nearest whole number to sum / 13, which lies 1/26 or more from a tie: both libraries' sums find it.
        let smooth = (2 * sum + 13) / 26;
        to[i] = blend(f32::from(value), f32::from(smooth));
    }
}

/// Blends an image with its smoothed self. The border stays as it is.
pub(super) fn adjust(
    source: ImageView<'_>,
    factor: f64,
    kernels: Kernels,
    level: Level,
    target: &mut ImageBuf,
) {
    let (size, channels) = (source.size(), source.channels());
    let blend = blend_of(factor, kernels);
    for (y, to) in geometry::rows_mut(target, size, channels).enumerate() {
        to.copy_from_slice(source.row(y));
        if y == 0 || y + 1 == size.height || size.width < 3 {
            continue;
        }
        let rows = [source.row(y - 1), source.row(y), source.row(y + 1)];
        let inner = channels..(size.width - 1) * channels;
        let to = &mut to[inner];
        simd::run(level, Sharpen { rows, channels, to, factor: factor as f32, blend });
    }
}

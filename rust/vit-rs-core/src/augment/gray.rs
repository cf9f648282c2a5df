//! Gray values of colours: grayscale, saturation, and the mean that contrast turns about.

use super::color::{Blend, Scratch, by_planes, cut};
use super::geometry;
use super::plan::Kernels;
use crate::image::{ImageBuf, ImageView};
use crate::line;
use crate::simd::{self, Kernel};

/// Whose gray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gray {
    /// 0.2989 R + 0.587 G + 0.114 B in float32, cut.
    Torch,
    /// 0.299 R + 0.587 G + 0.114 B in 16 bits of fixed point, rounded.
    Pillow,
}

impl Gray {
    pub(super) fn of(kernels: Kernels) -> Self {
        match kernels {
            Kernels::Torch => Self::Torch,
            Kernels::Pillow => Self::Pillow,
        }
    }

    /// The gray of a colour.
    #[inline(always)]
    fn value(self, r: u8, g: u8, b: u8) -> u8 {
        let (r, g, b) = (u32::from(r), u32::from(g), u32::from(b));
        match self {
            // 22 bits give what torch's roundings give but for three of the 2^24 colours, where torch's end below the
            // whole number that the exact sum is. A test looks at all.
            Self::Torch => {
                let gray = (r * 1_253_678 + g * 2_462_057 + b * 478_151) >> 22;
                let colour = r << 16 | g << 8 | b;
                let below = |other: u32| u32::from(colour == other);
                (gray - below(0xfa_09_e4) - below(0xfa_0d_92) - below(0xfa_2f_c7)) as u8
            }
            Self::Pillow => ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8,
        }
    }
}

/// Writes the gray of three planes.
struct ToGray<'a> {
    gray: Gray,
    planes: [&'a [u8]; 3],
    to: &'a mut [u8],
}

impl Kernel for ToGray<'_> {
    #[inline(always)]
    fn run(self) {
        // One loop for each: the choice stands outside.
        match self.gray {
            Gray::Torch => to_gray(Gray::Torch, self.planes, self.to),
            Gray::Pillow => to_gray(Gray::Pillow, self.planes, self.to),
        }
    }
}

#[inline(always)]
fn to_gray(gray: Gray, [r, g, b]: [&[u8]; 3], to: &mut [u8]) {
    for (((&r, &g), &b), to) in r.iter().zip(g).zip(b).zip(to) {
        *to = gray.value(r, g, b);
    }
}

struct Sum<'a> {
    values: &'a [u8],
    sum: &'a mut u64,
}

impl Kernel for Sum<'_> {
    #[inline(always)]
    fn run(self) {
        // Pieces whose sums fit 32 bits.
        for piece in self.values.chunks(1 << 16) {
            *self.sum += u64::from(piece.iter().map(|&value| u32::from(value)).sum::<u32>());
        }
    }
}

/// The sum of an image's gray values; those of one channel are its own.
pub(super) fn sum(source: ImageView<'_>, gray: Gray, scratch: &mut Scratch) -> u64 {
    let (level, size) = (scratch.level, source.size());
    let Scratch { planes, line, .. } = scratch;
    let mut sum = 0;
    if source.channels() == 1 {
        for y in 0..size.height {
            simd::run(level, Sum { values: source.row(y), sum: &mut sum });
        }
        return sum;
    }
    planes.resize(3 * size.width, 0);
    line.resize(size.width, 0);
    for y in 0..size.height {
        line::deinterleave(level, 3, source.row(y), planes);
        let (r, rest) = planes.split_at(size.width);
        let (g, b) = rest.split_at(size.width);
        simd::run(level, ToGray { gray, planes: [r, g, b], to: line });
        simd::run(level, Sum { values: line, sum: &mut sum });
    }
    sum
}

/// Writes each colour's gray to all three channels.
pub(super) fn grayscale(
    source: ImageView<'_>,
    gray: Gray,
    scratch: &mut Scratch,
    target: &mut ImageBuf,
) {
    let (level, size) = (scratch.level, source.size());
    let Scratch { planes, line, .. } = scratch;
    planes.resize(3 * size.width, 0);
    line.resize(size.width, 0);
    for (y, to) in geometry::rows_mut(target, size, 3).enumerate() {
        line::deinterleave(level, 3, source.row(y), planes);
        let (r, rest) = planes.split_at(size.width);
        let (g, b) = rest.split_at(size.width);
        simd::run(level, ToGray { gray, planes: [r, g, b], to: line });
        line::interleave(level, 3, |_| line, to);
    }
}

/// Blends colours with their gray.
struct Saturate<'a> {
    planes: [&'a mut [u8]; 3],
    factor: f32,
    blend: Blend,
}

impl Kernel for Saturate<'_> {
    #[inline(always)]
    fn run(self) {
        let factor = self.factor;
        match self.blend {
            Blend::Torch(rest) => {
                let rest = f64::from(rest);
                saturate(self.planes, Gray::Torch, |value, gray| {
                    // One rounding to float32: the product and, but for shares below 2^-21, the sum are exact.
                    cut((f64::from(gray) * rest + f64::from(value * factor)) as f32)
                });
            }
            Blend::Pillow => {
                saturate(self.planes, Gray::Pillow, |value, gray| {
                    cut(gray + factor * (value - gray))
                });
            }
        }
    }
}

#[inline(always)]
fn saturate([r, g, b]: [&mut [u8]; 3], gray: Gray, blend: impl Fn(f32, f32) -> u8) {
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let gray = f32::from(gray.value(*r, *g, *b));
        *r = blend(f32::from(*r), gray);
        *g = blend(f32::from(*g), gray);
        *b = blend(f32::from(*b), gray);
    }
}

/// Blends each colour with its gray.
pub(super) fn saturation(
    source: ImageView<'_>,
    factor: f32,
    blend: Blend,
    scratch: &mut Scratch,
    target: &mut ImageBuf,
) {
    let level = scratch.level;
    by_planes(source, scratch, target, |planes| {
        simd::run(level, Saturate { planes, factor, blend });
    });
}

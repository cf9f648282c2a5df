//! Colours of 8-bit images: torchvision's results on uint8 tensors, or Pillow's, bit for bit.
//!
//! What depends on one value alone is a plain operation on bytes, or a table of 256 that is made with the library's own
//! arithmetic. torch computes a x b + c with one rounding on the CPUs that its wheels are made for; here that is
//! written out, so that every CPU gives the same bits.

use super::geometry;
use super::gray::{self, Gray};
use super::histogram;
use super::hue;
use super::plan::{Color, Kernels};
use super::sharpness;
use crate::image::{ImageBuf, ImageView};
use crate::line;
use crate::simd::{self, Kernel, Level};

/// A value for each value.
pub(super) type Table = [u8; 256];

/// Memory of the colour kernels, and the instruction set that they use.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) level: Level,
    /// A line's channels, one after the other.
    pub(super) planes: Vec<u8>,
    /// A line of values that the planes become.
    pub(super) line: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { level: Level::best(), planes: Vec::new(), line: Vec::new() }
    }
}

/// Writes `source` (1 or 3 channels) with other colours to `target`.
pub(super) fn apply(
    source: ImageView<'_>,
    color: Color,
    kernels: Kernels,
    scratch: &mut Scratch,
    target: &mut ImageBuf,
) {
    let colourful = source.channels() == 3;
    let level = scratch.level;
    match color {
        Color::Brightness(factor) => {
            let factor = factor as f32;
            map(source, level, target, move |value| cut(f32::from(value) * factor));
        }
        Color::Contrast(factor) => contrast(source, factor, kernels, scratch, target),
        Color::Saturation(factor) if colourful => {
            gray::saturation(source, factor as f32, blend_of(factor, kernels), scratch, target);
        }
        Color::Hue(turn) if colourful => hue::turn(source, turn, kernels, scratch, target),
        Color::Grayscale if colourful => {
            gray::grayscale(source, Gray::of(kernels), scratch, target);
        }
        Color::Saturation(_) | Color::Hue(_) | Color::Grayscale => geometry::copy(source, target),
        Color::Invert => map(source, level, target, |value| !value),
        Color::Posterize(bits) => {
            let mask = 0xff_u8.checked_shl(8_u32.saturating_sub(u32::from(bits))).unwrap_or(0);
            map(source, level, target, move |value| value & mask);
        }
        Color::Solarize(threshold) => {
            // Whole values from the threshold on are those from the next whole number on.
            let threshold = threshold.ceil() as u8;
            let solarized = move |value: u8| if value >= threshold { !value } else { value };
            map(source, level, target, solarized);
        }
        Color::SolarizeAdd(add) => {
            let dark = move |value: u8| if value < 128 { value.saturating_add(add) } else { value };
            map(source, level, target, dark);
        }
        Color::Equalize => look_up(source, &histogram::equalize(source), target),
        Color::AutoContrast => {
            look_up(source, &histogram::autocontrast(source, kernels, level), target);
        }
        Color::Sharpness(factor) => sharpness::adjust(source, factor, kernels, level, target),
    }
}

/// How an image is blended with another one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Blend {
    /// image x `factor`, rounded, plus other x this share, rounded once.
    Torch(f32),
    /// other + `factor` x (image - other), each step rounded.
    Pillow,
}

pub(super) fn blend_of(factor: f64, kernels: Kernels) -> Blend {
    match kernels {
        Kernels::Torch => Blend::Torch((1.0 - factor) as f32),
        Kernels::Pillow => Blend::Pillow,
    }
}

/// 2^23 and 2^52: numbers from which on float32 and float64 have no fractions.
const WHOLE: f32 = 8_388_608.0;
const WHOLE_WIDE: f64 = 4_503_599_627_370_496.0;

/// The nearest whole number, ties to even, of a value that is known to round to 0..=255.
#[inline(always)]
pub(super) fn round(value: f32) -> u8 {
    (value + WHOLE).to_bits() as u8
}

/// The integer part of a value in 0..256.
///
/// Rust's own conversion is several times slower in a loop: it looks for values outside the integer's range.
#[inline(always)]
pub(super) fn floor(value: f32) -> u8 {
    let near = (value + WHOLE) - WHOLE;
    let below = if near > value { near - 1.0 } else { near };
    round(below)
}

/// The integer part of a value in 0..256, in twice the precision.
#[inline(always)]
pub(super) fn floor_wide(value: f64) -> u8 {
    let near = (value + WHOLE_WIDE) - WHOLE_WIDE;
    let below = if near > value { near - 1.0 } else { near };
    (below + WHOLE_WIDE).to_bits() as u8
}

/// The integer part of a value that is first brought to 0..=255.
#[inline(always)]
pub(super) fn cut(value: f32) -> u8 {
    // Written so that each is one instruction; a NaN becomes 0.
    let value = if value > 0.0 { value } else { 0.0 };
    floor(if value < 255.0 { value } else { 255.0 })
}

fn contrast(
    source: ImageView<'_>,
    factor: f64,
    kernels: Kernels,
    scratch: &mut Scratch,
    target: &mut ImageBuf,
) {
    let sum = gray::sum(source, Gray::of(kernels), scratch);
    let pixels = source.size().pixels();
    let ratio = factor as f32;
    match blend_of(factor, kernels) {
        Blend::Torch(rest) => {
            // torch adds in float32, which is exact up to 65,793 pixels.
            let mean = sum as f32 / pixels as f32;
            let value = |i: usize| cut(mean.mul_add(rest, i as f32 * ratio));
            look_up(source, &[std::array::from_fn(value)], target);
        }
        Blend::Pillow => {
            let mean = (sum as f64 / pixels as f64 + 0.5).floor() as f32;
            let value = move |value| cut(mean + ratio * (f32::from(value) - mean));
            map(source, scratch.level, target, value);
        }
    }
}

struct Map<'a, F> {
    from: &'a [u8],
    to: &'a mut [u8],
    value: F,
}

impl<F: Fn(u8) -> u8> Kernel for Map<'_, F> {
    #[inline(always)]
    fn run(self) {
        self.to.iter_mut().zip(self.from).for_each(|(to, &from)| *to = (self.value)(from));
    }
}

fn map(
    source: ImageView<'_>,
    level: Level,
    target: &mut ImageBuf,
    value: impl Fn(u8) -> u8 + Copy,
) {
    for (y, to) in geometry::rows_mut(target, source.size(), source.channels()).enumerate() {
        simd::run(level, Map { from: source.row(y), to, value });
    }
}

/// Writes the values that stand in the tables: one for all channels, or one for each.
fn look_up(source: ImageView<'_>, tables: &[Table], target: &mut ImageBuf) {
    for (y, to) in geometry::rows_mut(target, source.size(), source.channels()).enumerate() {
        let from = source.row(y);
        match tables {
            [table] => {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = table[usize::from(from)]);
            }
            [r, g, b] => {
                let pixels = from.as_chunks::<3>().0;
                for (to, from) in to.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                    let [x, y, z] = from.map(usize::from);
                    *to = [r[x], g[y], b[z]];
                }
            }
            _ => to.copy_from_slice(from),
        }
    }
}

/// Lets `change` change each line's three planes, and writes them to `target`.
pub(super) fn by_planes(
    source: ImageView<'_>,
    scratch: &mut Scratch,
    target: &mut ImageBuf,
    mut change: impl FnMut([&mut [u8]; 3]),
) {
    let (level, size) = (scratch.level, source.size());
    let planes = &mut scratch.planes;
    planes.resize(3 * size.width, 0);
    for (y, to) in geometry::rows_mut(target, size, 3).enumerate() {
        line::deinterleave(level, 3, source.row(y), planes);
        let (r, rest) = planes.split_at_mut(size.width);
        let (g, b) = rest.split_at_mut(size.width);
        change([&mut *r, &mut *g, &mut *b]);
        let planes = [&*r, &*g, &*b];
        line::interleave(level, 3, |c| planes[c], to);
    }
}

#[cfg(test)]
mod tests;

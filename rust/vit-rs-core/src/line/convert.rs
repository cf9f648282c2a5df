//! What becomes of values on their way: (value x unit - mean) / std in f32, each step rounded, as torchvision does.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Element;
use crate::error::{Error, Result};
use crate::simd::{self, Kernel, Level};

/// The unit of 8-bit values where they become floats. Values that are floats already keep theirs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    high: f32,
    low: f32,
}

impl Unit {
    /// One: they stay as they are.
    pub const ONE: Self = Self { high: 1.0, low: 0.0 };
    /// They are multiplied by 1/255, which was rounded: torchvision v2's `ToDtype(scale=True)`.
    pub const MULTIPLIED: Self = Self { high: 1.0 / 255.0, low: 0.0 };
    /// They are divided by 255: torchvision v1's `ToTensor`. Half of the bytes become another float than multiplied ones.
    ///
    /// No division is needed: a byte times the upper 16 bits of 1/255 is exact, and what the rest adds rounds to the
    /// quotient's nearest float, for each byte.
    pub const DIVIDED: Self = {
        let high = f32::from_bits((1.0_f32 / 255.0).to_bits() & 0xffff_ff00);
        Self { high, low: (1.0 / 255.0 - high as f64) as f32 }
    };

    /// A value in this unit.
    #[must_use]
    #[inline(always)]
    pub fn of(self, value: u8) -> f32 {
        let value = f32::from(value);
        value * self.high + value * self.low
    }
}

/// A value to convert from.
pub trait Source: Element {
    /// The value as a float.
    #[doc(hidden)]
    fn float(self, unit: Unit) -> f32;
    /// Writes each value of a line, converted.
    #[doc(hidden)]
    fn convert(level: Level, source: &[Self], target: &mut [f32], by: Affine<'_>);
}

/// A value to convert to: a float.
pub trait Float: Element {
    /// Lets `write` write f32 values and rounds them to `target`, to the nearest, ties to even. `room` is memory.
    #[doc(hidden)]
    fn round(
        level: Level,
        target: &mut [Self],
        room: &mut Vec<f32>,
        write: impl FnOnce(&mut [f32]),
    );
}

/// Unit, mean and standard deviation for the values of a line.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    unit: Unit,
    by: MeanStd<'a>,
}

#[derive(Clone, Copy, Debug)]
enum MeanStd<'a> {
    /// The same for all values.
    Uniform(f32, f32),
    /// One of each for each value.
    Each(&'a [f32], &'a [f32]),
}

struct Uniform<'a, S> {
    source: &'a [S],
    target: &'a mut [f32],
    unit: Unit,
    mean: f32,
    std: f32,
}

impl<S: Source> Kernel for Uniform<'_, S> {
    #[inline(always)]
    fn run(self) {
        let Self { unit, mean, std, .. } = self;
        for (to, &from) in self.target.iter_mut().zip(self.source) {
            *to = (from.float(unit) - mean) / std;
        }
    }
}

struct Each<'a, S> {
    source: &'a [S],
    target: &'a mut [f32],
    unit: Unit,
    means: &'a [f32],
    stds: &'a [f32],
}

impl<S: Source> Kernel for Each<'_, S> {
    #[inline(always)]
    fn run(self) {
        let unit = self.unit;
        let by = self.means.iter().zip(self.stds);
        for ((to, &from), (mean, std)) in self.target.iter_mut().zip(self.source).zip(by) {
            *to = (from.float(unit) - mean) / std;
        }
    }
}

/// One kernel for each kind, and all up to it inlined: a line of 224 values takes so short that a kernel waits for an
/// enum on its way through memory.
#[inline(always)]
fn run<S: Source>(level: Level, source: &[S], target: &mut [f32], by: Affine<'_>) {
    let unit = by.unit;
    match by.by {
        MeanStd::Uniform(mean, std) => {
            simd::run(level, Uniform { source, target, unit, mean, std });
        }
        MeanStd::Each(means, stds) => {
            simd::run(level, Each { source, target, unit, means, stds });
        }
    }
}

impl Source for u8 {
    #[inline(always)]
    fn float(self, unit: Unit) -> f32 {
        unit.of(self)
    }

    #[inline(always)]
    fn convert(level: Level, source: &[Self], target: &mut [f32], by: Affine<'_>) {
        run(level, source, target, by);
    }
}

impl Source for f32 {
    #[inline(always)]
    fn float(self, _: Unit) -> f32 {
        self
    }

    #[inline(always)]
    fn convert(level: Level, source: &[Self], target: &mut [f32], by: Affine<'_>) {
        run(level, source, target, by);
    }
}

impl Source for f16 {
    #[inline(always)]
    fn float(self, _: Unit) -> f32 {
        self.to_f32()
    }

    fn convert(level: Level, source: &[Self], target: &mut [f32], by: Affine<'_>) {
        in_pieces(level, source, target, by);
    }
}

impl Source for bf16 {
    #[inline(always)]
    fn float(self, _: Unit) -> f32 {
        self.to_f32()
    }

    fn convert(level: Level, source: &[Self], target: &mut [f32], by: Affine<'_>) {
        in_pieces(level, source, target, by);
    }
}

/// Widens to f32 on the stack, then converts.
fn in_pieces<S>(level: Level, source: &[S], target: &mut [f32], by: Affine<'_>)
where
    [S]: HalfFloatSliceExt,
{
    const PIECE: usize = 256;
    let mut wide = [0.0; PIECE];
    for (i, (source, target)) in source.chunks(PIECE).zip(target.chunks_mut(PIECE)).enumerate() {
        let wide = &mut wide[..source.len()];
        source.convert_to_f32_slice(wide);
        let from = i * PIECE;
        let by = match by.by {
            MeanStd::Uniform(..) => by,
            MeanStd::Each(means, stds) => {
                Affine { by: MeanStd::Each(&means[from..], &stds[from..]), ..by }
            }
        };
        run(level, wide, target, by);
    }
}

impl Float for f32 {
    fn round(_: Level, target: &mut [Self], _: &mut Vec<f32>, write: impl FnOnce(&mut [f32])) {
        write(target);
    }
}

impl Float for f16 {
    fn round(_: Level, target: &mut [Self], room: &mut Vec<f32>, write: impl FnOnce(&mut [f32])) {
        room.resize(target.len(), 0.0);
        write(room);
        target.convert_from_f32_slice(room);
    }
}

impl Float for bf16 {
    fn round(
        level: Level,
        target: &mut [Self],
        room: &mut Vec<f32>,
        write: impl FnOnce(&mut [f32]),
    ) {
        room.resize(target.len(), 0.0);
        write(room);
        simd::run(level, RoundBf16 { source: room, target });
    }
}

struct RoundBf16<'a> {
    source: &'a [f32],
    target: &'a mut [bf16],
}

impl Kernel for RoundBf16<'_> {
    #[inline(always)]
    fn run(self) {
        for (to, from) in self.target.iter_mut().zip(self.source) {
            let bits = from.to_bits();
            let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            *to = bf16::from_bits(if from.is_nan() { quiet } else { nearest } as u16);
        }
    }
}

/// Mean and standard deviation of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    channels: Vec<(f32, f32)>,
}

impl Normalization {
    /// One mean and one std for each of `channels` channels, or one of either for all.
    ///
    /// # Errors
    /// [`Error::Argument`] for another number of values, one that is not finite, or a std of 0.
    pub fn new(channels: usize, mean: &[f32], std: &[f32]) -> Result<Self> {
        for (name, values) in [("mean", mean), ("std", std)] {
            if values.len() != 1 && values.len() != channels {
                return Err(Error::argument(format!(
                    "{name} must have 1 or {channels} values, one for each channel, got {}",
                    values.len()
                )));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::argument(format!(
                    "{name} must be finite as 32-bit floats, got {value}"
                )));
            }
        }
        if std.contains(&0.0) {
            return Err(Error::argument("std must not be 0 as a 32-bit float"));
        }
        let pick = |values: &[f32], c: usize| if values.len() == 1 { values[0] } else { values[c] };
        Ok(Self { channels: (0..channels).map(|c| (pick(mean, c), pick(std, c))).collect() })
    }

    /// The number of channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels.len()
    }
}

/// Which channel the values of a line belong to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Channels {
    /// All to this one.
    One(usize),
    /// To each in turn.
    Packed,
}

/// A normalisation made ready for lines.
#[derive(Clone, Debug)]
pub(crate) struct Converter {
    unit: Unit,
    channels: Vec<(f32, f32)>,
    /// The mean and the std of each value of a packed line.
    packed: (Vec<f32>, Vec<f32>),
}

impl Converter {
    /// For packed lines of up to `width` pixels; `unit` is that of 8-bit values.
    pub(crate) fn new(normalization: &Normalization, unit: Unit, width: usize) -> Self {
        let channels = normalization.channels.clone();
        let packed = channels.iter().copied().cycle().take(width * channels.len()).unzip();
        Self { unit, channels, packed }
    }

    /// Writes a line, converted.
    pub(crate) fn convert<S: Source, D: Float>(
        &self,
        level: Level,
        channels: Channels,
        source: &[S],
        target: &mut [D],
        room: &mut Vec<f32>,
    ) {
        let by = match channels {
            Channels::One(c) => MeanStd::Uniform(self.channels[c].0, self.channels[c].1),
            Channels::Packed => MeanStd::Each(&self.packed.0, &self.packed.1),
        };
        let by = Affine { unit: self.unit, by };
        D::round(level, target, room, |target| S::convert(level, source, target, by));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check<S: Source, D: Float>(
        unit: Unit,
        values: &[S],
        wide: impl Fn(S) -> f32,
        bits: impl Fn(D) -> u32,
        rounded: impl Fn(f32) -> u32,
    ) {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, -0.225]);
        let normalization = Normalization::new(3, &mean, &std).unwrap();
        let converter = Converter::new(&normalization, unit, values.len().div_ceil(3));
        let mut room = Vec::new();
        for &level in Level::all() {
            let mut target = vec![D::zeroed(); values.len()];
            let mut compare = |channels: Channels, channel: &dyn Fn(usize) -> usize| {
                converter.convert(level, channels, values, &mut target, &mut room);
                for (i, (&from, &to)) in values.iter().zip(&target).enumerate() {
                    let c = channel(i);
                    let expected = rounded((wide(from) - mean[c]) / std[c]);
                    assert_eq!(bits(to), expected, "{level:?}, {channels:?}, value {i}");
                }
            };
            compare(Channels::Packed, &|i| i % 3);
            compare(Channels::One(1), &|_| 1);
        }
    }

    #[test]
    fn each_value_is_converted_as_one_by_one() {
        let bytes: Vec<u8> = (0..=255).chain(0..44).collect();
        let floats: Vec<f32> = [0.0, -0.0, f32::INFINITY, f32::MAX, 1e-45, 65504.0, 0.3, -7e4]
            .into_iter()
            .chain((0..600_u32).map(|i| f32::from_bits(i.wrapping_mul(0x0123_4567))))
            .filter(|value| !value.is_nan())
            .collect();
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|v| !v.is_nan()).collect();
        let brains: Vec<bf16> =
            (0..=u16::MAX).map(bf16::from_bits).filter(|v| !v.is_nan()).collect();
        let single = (|to: f32| to.to_bits(), f32::to_bits);
        let half = (|to: f16| to.to_bits().into(), |v: f32| f16::from_f32(v).to_bits().into());
        let brain = (|to: bf16| to.to_bits().into(), |v: f32| bf16::from_f32(v).to_bits().into());
        for unit in [Unit::ONE, Unit::MULTIPLIED, Unit::DIVIDED] {
            let wide = |value: u8| match unit {
                Unit::MULTIPLIED => f32::from(value) * (1.0 / 255.0),
                Unit::DIVIDED => f32::from(value) / 255.0,
                _ => f32::from(value),
            };
            check(unit, &bytes, wide, single.0, single.1);
            check(unit, &bytes, wide, half.0, half.1);
            check(unit, &bytes, wide, brain.0, brain.1);
        }
        // Floats have their unit.
        for unit in [Unit::ONE, Unit::DIVIDED] {
            check(unit, &floats, |v| v, single.0, single.1);
            check(unit, &floats, |v| v, half.0, half.1);
            check(unit, &floats, |v| v, brain.0, brain.1);
            check(unit, &halves, f16::to_f32, brain.0, brain.1);
            check(unit, &brains, bf16::to_f32, half.0, half.1);
        }
    }

    #[test]
    fn nan_stays_nan() {
        let normalization = Normalization::new(1, &[0.0], &[1.0]).unwrap();
        let converter = Converter::new(&normalization, Unit::ONE, 1);
        for &level in Level::all() {
            let mut target = [bf16::ZERO; 2];
            // The second would be rounded to infinity by arithmetic on its bits.
            let values = [f32::NAN, f32::from_bits(0x7f80_0001)];
            converter.convert(level, Channels::One(0), &values, &mut target, &mut Vec::new());
            assert!(target.iter().all(|value| value.is_nan()), "{level:?}");
        }
    }
}

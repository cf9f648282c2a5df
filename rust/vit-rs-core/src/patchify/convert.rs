//! What becomes of an image's values on their way into patches.

use half::{bf16, f16};

use crate::error::{Error, Result};

/// A floating-point value of an image, computed with in f32.
pub trait Float: Copy + Send + Sync {
    /// As f32, exactly.
    fn to_f32(self) -> f32;
    /// Rounded to the nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Float for f16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Float for bf16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Mean and standard deviation of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    /// Mean and std of each channel.
    pub(super) channels: Vec<(f32, f32)>,
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
                return Err(Error::argument(format!("{name} must be finite, got {value}")));
            }
        }
        if std.contains(&0.0) {
            return Err(Error::argument("std must not be 0"));
        }
        let pick = |values: &[f32], c: usize| if values.len() == 1 { values[0] } else { values[c] };
        Ok(Self { channels: (0..channels).map(|c| (pick(mean, c), pick(std, c))).collect() })
    }
}

/// What becomes of a value on its way: a function for each channel.
pub(super) trait Convert<S, D>: Sync {
    /// Whether all channels have the same function.
    const UNIFORM: bool;
    fn channel(&self, channel: usize) -> impl Fn(S) -> D + Copy;
}

/// Values move as they are.
pub(super) struct Copied;

impl<T: Copy> Convert<T, T> for Copied {
    const UNIFORM: bool = true;
    fn channel(&self, _: usize) -> impl Fn(T) -> T + Copy {
        |value| value
    }
}

impl<S: Float, D: Float> Convert<S, D> for Normalization {
    const UNIFORM: bool = false;
    fn channel(&self, channel: usize) -> impl Fn(S) -> D + Copy {
        let (mean, std) = self.channels[channel];
        move |value| D::from_f32((value.to_f32() - mean) / std)
    }
}

/// An 8-bit value has 256 outcomes a channel: each is computed once, and looked up afterwards.
pub(super) struct Tables<D>(Vec<[D; 256]>);

impl<D: Float> Tables<D> {
    /// Times 1/255 as torchvision scales, then minus mean, then over std, each rounded to f32; then rounded to `D`.
    pub(super) fn new(normalization: &Normalization) -> Self {
        let table = |&(mean, std): &(f32, f32)| {
            std::array::from_fn(|value| D::from_f32((value as f32 * (1.0 / 255.0) - mean) / std))
        };
        Self(normalization.channels.iter().map(table).collect())
    }
}

impl<D: Float> Convert<u8, D> for Tables<D> {
    const UNIFORM: bool = false;
    fn channel(&self, channel: usize) -> impl Fn(u8) -> D + Copy {
        let table = &self.0[channel];
        move |value| table[usize::from(value)]
    }
}

//! Weights in fixed point, by either rule.

use super::Rounding;
use crate::error::Result;
use crate::resample::taps::{Axis, Taps};

/// Bits of Pillow's weights behind the point: 32, less 8 for a sample and 2 for sums that leave its range.
const PILLOW_PRECISION: u32 = 32 - 8 - 2;

/// Fixed-point rows of one axis.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// What they were made for.
    axis: Option<(Axis, Rounding)>,
    taps: Taps,
    /// One for each weight of `taps`.
    values: Vec<i32>,
    precision: u32,
}

impl Weights {
    /// Makes the weights of an axis; returns whether others stood here before.
    pub(super) fn fill(&mut self, axis: Axis, rounding: Rounding) -> Result<bool> {
        if self.axis == Some((axis, rounding)) {
            return Ok(false);
        }
        self.axis = None;
        self.taps.fill(&axis)?;
        let weights = self.taps.weights();
        self.precision = match rounding {
            Rounding::Torch => {
                let largest = weights.iter().fold(0.0_f64, |a, &b| a.max(b));
                let fits = |bits: u32| 0.5 + largest * f64::from(1u32 << bits) < 32768.0;
                (0..22).find(|&bits| !fits(bits + 1)).unwrap_or(22)
            }
            Rounding::Pillow | Rounding::Pillow12 => PILLOW_PRECISION,
        };
        let one = f64::from(1u32 << self.precision);
        self.values.clear();
        // Round half away from zero, then cut: the rule of the kernels this agrees with.
        let rounded = weights.iter().map(|weight| weight * one + 0.5f64.copysign(*weight));
        match rounding {
            Rounding::Torch => self.values.extend(rounded.map(|value| i32::from(value as i16))),
            Rounding::Pillow | Rounding::Pillow12 => {
                self.values.extend(rounded.map(|value| value as i32));
            }
        }
        self.axis = Some((axis, rounding));
        Ok(true)
    }

    /// Bits behind the point.
    pub(super) fn precision(&self) -> u32 {
        self.precision
    }

    /// Output samples.
    pub(super) fn output(&self) -> usize {
        self.taps.output()
    }

    /// The first input sample of output sample `i`, and the weights from there on.
    pub(super) fn row(&self, i: usize) -> (usize, &[i32]) {
        (self.taps.row(i).0, &self.values[self.taps.span(i)])
    }

    /// All rows.
    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = (usize, &[i32])> + Clone {
        (0..self.output()).map(|i| self.row(i))
    }
}

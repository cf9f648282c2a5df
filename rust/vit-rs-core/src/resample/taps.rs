//! Which input samples make an output sample, and with what weights, along one axis.
//!
//! Every resize in the field is separable and linear: `out = A_h . grid . A_w^T`. [`taps`] builds the rows of one `A`,
//! sparse and in f64. Geometry and border rules are those of torch's `F.interpolate`, which for `antialias` are
//! Pillow's: the sample positions, supports and filter arguments are computed in the same order of operations, so
//! that fixed-point weights rounded from these rows equal theirs.

use crate::error::{Error, Result};

/// Longest axis, far above any image or grid: what keeps a wrong size from asking for all memory.
pub const MAX_SAMPLES: usize = 1 << 24;

/// The interpolation kernel, in units of input samples when enlarging.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic convolution, support 2. torch takes `a` = -0.75 without and -0.5 with antialiasing, Pillow -0.5.
    Bicubic {
        /// The slope at distance 1.
        a: f64,
    },
    /// Windowed sinc, support 3. Exists with antialiasing only.
    Lanczos3,
}

impl Filter {
    /// Distance beyond which the kernel is zero.
    #[must_use]
    pub fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic { .. } => 2.0,
            Self::Lanczos3 => 3.0,
        }
    }

    /// The kernel's value at distance `x`.
    #[must_use]
    pub fn value(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic { a } => {
                if x < 1.0 {
                    ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
                } else {
                    0.0
                }
            }
            Self::Lanczos3 => {
                if x < 3.0 {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle
}

/// One axis of a resize.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    /// Samples before.
    pub input: usize,
    /// Samples after.
    pub output: usize,
    /// The kernel.
    pub filter: Filter,
    /// Widen the kernel when shrinking, and renormalise it inside the border. Without it, the kernel keeps its width
    /// and samples outside take the border's value.
    pub antialias: bool,
    /// The first and last samples of both sides coincide, instead of the outer edges of the samples.
    pub align_corners: bool,
    /// Input samples per output sample; overrides `input / output` (torch's `1 / scale_factor`).
    pub scale: Option<f64>,
}

impl Axis {
    /// That of an image's resize in torch and Pillow.
    #[must_use]
    pub fn antialiased(input: usize, output: usize, filter: Filter) -> Self {
        Self { input, output, filter, antialias: true, align_corners: false, scale: None }
    }
}

/// The rows of one interpolation matrix: row `i` is a run of weights that starts at input sample `first`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taps {
    input: usize,
    /// First input sample of each row.
    first: Vec<usize>,
    /// Row `i` owns `weights[start[i]..start[i + 1]]`.
    start: Vec<usize>,
    weights: Vec<f64>,
}

impl Taps {
    /// Replaces the rows by those of `axis`, as [`taps`] makes them, in the memory that is there.
    ///
    /// # Errors
    /// As [`taps`]. The rows are then unspecified.
    pub fn fill(&mut self, axis: &Axis) -> Result<()> {
        check(axis)?;
        self.input = axis.input;
        self.first.clear();
        self.start.clear();
        self.start.push(0);
        self.weights.clear();
        match axis.filter {
            _ if !axis.antialias => interpolated(axis, self),
            // One loop for each filter, which knows its kernel.
            Filter::Bilinear => antialiased(axis, self, |x| Filter::Bilinear.value(x))?,
            Filter::Bicubic { a } => antialiased(axis, self, |x| Filter::Bicubic { a }.value(x))?,
            Filter::Lanczos3 => antialiased(axis, self, |x| Filter::Lanczos3.value(x))?,
        }
        Ok(())
    }

    fn push(&mut self, first: usize, weights: &[f64]) {
        self.first.push(first);
        self.weights.extend_from_slice(weights);
        self.start.push(self.weights.len());
    }

    /// The first input sample of output sample `i`, and the weights from there on. They sum to 1.
    ///
    /// # Panics
    /// If `i` is not below [`Taps::output`].
    #[must_use]
    pub fn row(&self, i: usize) -> (usize, &[f64]) {
        (self.first[i], &self.weights[self.span(i)])
    }

    /// The places of row `i`'s weights among all, in order.
    pub(super) fn span(&self, i: usize) -> std::ops::Range<usize> {
        self.start[i]..self.start[i + 1]
    }

    /// The weights of all rows.
    pub(super) fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Samples before.
    #[must_use]
    pub fn input(&self) -> usize {
        self.input
    }

    /// Samples after.
    #[must_use]
    pub fn output(&self) -> usize {
        self.first.len()
    }

    /// The whole matrix, `output` rows of `input` values.
    #[must_use]
    pub fn dense(&self) -> Vec<f64> {
        let mut matrix = vec![0.0; self.output() * self.input];
        for (i, row) in matrix.chunks_exact_mut(self.input).enumerate() {
            let (first, weights) = self.row(i);
            row[first..first + weights.len()].copy_from_slice(weights);
        }
        matrix
    }
}

/// The rows of the interpolation matrix of `axis`.
///
/// ```
/// use vit_rs_core::resample::taps::{Axis, Filter, taps};
/// let axis = Axis {
///     input: 2, output: 4, filter: Filter::Bilinear, antialias: false, align_corners: false, scale: None,
/// };
/// let rows = taps(&axis)?;
/// assert_eq!(rows.row(0), (0, &[1.0, 0.0][..]));
/// assert_eq!(rows.row(1), (0, &[0.75, 0.25][..]));
/// # Ok::<(), vit_rs_core::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Argument`] when a size is 0, a number is not finite, two settings contradict each other, or an output
/// sample lies so far outside that nothing reaches it.
pub fn taps(axis: &Axis) -> Result<Taps> {
    let mut rows = Taps::default();
    rows.fill(axis)?;
    Ok(rows)
}

fn check(axis: &Axis) -> Result<()> {
    let Axis { input, output, filter, antialias, align_corners, scale } = *axis;
    if !(1..=MAX_SAMPLES).contains(&input) || !(1..=MAX_SAMPLES).contains(&output) {
        return Err(Error::argument(format!(
            "cannot resample {input} samples to {output}: both must be 1 to {MAX_SAMPLES}"
        )));
    }
    if let Some(scale) = scale
        && !(scale.is_finite() && scale > 0.0)
    {
        return Err(Error::argument(format!("scale must be finite and above 0, got {scale:?}")));
    }
    if let Filter::Bicubic { a } = filter
        && !a.is_finite()
    {
        return Err(Error::argument(format!("the cubic coefficient a must be finite, got {a:?}")));
    }
    if align_corners && scale.is_some() {
        return Err(Error::argument(
            "align_corners sets the scale itself: give only one of align_corners and scale",
        ));
    }
    if align_corners && antialias {
        return Err(Error::argument("align_corners and antialias exclude each other"));
    }
    if filter == Filter::Lanczos3 && !antialias {
        return Err(Error::argument("the lanczos filter exists with antialias only"));
    }
    Ok(())
}

#[inline(always)]
fn antialiased(axis: &Axis, rows: &mut Taps, kernel: impl Fn(f64) -> f64) -> Result<()> {
    let Axis { input, output, filter, .. } = *axis;
    let scale = axis.scale.unwrap_or(input as f64 / output as f64);
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    let inverse = 1.0 / widening;
    for i in 0..output {
        let center = scale * (i as f64 + 0.5);
        // Float to integer casts truncate, and saturate at 0 where the support begins outside.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(input);
        let start = rows.weights.len();
        let weights = (first..end).map(|j| kernel((j as f64 - center + 0.5) * inverse));
        rows.weights.extend(weights);
        let weights = &mut rows.weights[start..];
        let total: f64 = weights.iter().sum();
        if total == 0.0 {
            return Err(Error::argument(format!(
                "scale {scale:?} puts output sample {i} of {output} outside the {input} input samples"
            )));
        }
        for weight in weights {
            *weight /= total;
        }
        rows.first.push(first);
        rows.start.push(rows.weights.len());
    }
    Ok(())
}

fn interpolated(axis: &Axis, rows: &mut Taps) {
    let Axis { input, output, filter, align_corners, .. } = *axis;
    let scale = match axis.scale {
        Some(scale) => scale,
        None if !align_corners => input as f64 / output as f64,
        None if output > 1 => (input - 1) as f64 / (output - 1) as f64,
        None => 0.0,
    };
    let last = (input - 1) as i64;
    for i in 0..output {
        let source = if align_corners { scale * i as f64 } else { scale * (i as f64 + 0.5) - 0.5 };
        let source = if filter == Filter::Bilinear { source.max(0.0) } else { source };
        let base = (source.floor() as i64).min(last);
        let t = (source - base as f64).clamp(0.0, 1.0);
        let (offset, kernel): (i64, &[f64]) = match filter {
            Filter::Bilinear => (0, &[1.0 - t, t]),
            _ => (
                -1,
                &[
                    filter.value(t + 1.0),
                    filter.value(t),
                    filter.value(1.0 - t),
                    filter.value(2.0 - t),
                ],
            ),
        };
        // A tap outside the border reads the border's sample: its weight is folded into that sample's.
        let first = (base + offset).clamp(0, last);
        let mut folded = [0.0; 4];
        let mut count = 0;
        for (j, weight) in kernel.iter().enumerate() {
            let slot = ((base + offset + j as i64).clamp(0, last) - first) as usize;
            folded[slot] += weight;
            count = count.max(slot + 1);
        }
        rows.push(first as usize, &folded[..count]);
    }
}

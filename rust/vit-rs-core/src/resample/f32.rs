//! Separable resampling of f32 grids whose cells are vectors: position embeddings, patch kernels.
//!
//! Channels are innermost in memory, so every weight is multiplied with a run of channels and the loops vectorise. They
//! are taken in blocks, which keeps the grid between the two passes in the nearest cache. Sums run in the order of the
//! taps, without fused multiply-add: the result does not depend on the CPU or on the number of threads.

use super::taps::Taps;
use crate::error::{Error, Result};
use crate::parallel;
use crate::simd::{self, Kernel, Level, Stream};

/// Channels that go through both passes at once.
const BLOCK: usize = 384;

/// Channels summed in registers.
const LANES: usize = 64;

/// The same for what is left over.
const FEW_LANES: usize = 8;

/// One axis: for each output sample the first input sample and its weights, zeros at either end left out.
struct Rows {
    input: usize,
    rows: Vec<(usize, Vec<f32>)>,
}

impl Rows {
    fn new(taps: &Taps) -> Self {
        let row = |i: usize| {
            let (first, weights) = taps.row(i);
            let weights: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
            let end = weights.iter().rposition(|&weight| weight != 0.0).map_or(0, |last| last + 1);
            let start = weights.iter().position(|&weight| weight != 0.0).unwrap_or(0);
            (first + start, weights[start..end].to_vec())
        };
        Self { input: taps.input(), rows: (0..taps.output()).map(row).collect() }
    }

    fn output(&self) -> usize {
        self.rows.len()
    }

    fn weights(&self) -> usize {
        self.rows.iter().map(|(_, weights)| weights.len()).sum()
    }
}

/// Resamples each grid of a batch of token tables.
///
/// `source` is (batch, prefix + rows x columns, channels), `target` the same with the new rows and columns. The first
/// `prefix` tokens are copied. Takes at most `threads` threads.
///
/// ```
/// use vit_rs_core::resample::f32::resample;
/// use vit_rs_core::resample::taps::{Axis, Filter, taps};
/// let axis = |input, output| Axis {
///     input, output, filter: Filter::Bilinear, antialias: false, align_corners: true, scale: None,
/// };
/// let mut target = [0.0; 3];
/// resample(&[1.0, 3.0], &mut target, 1, 0, 1, &taps(&axis(1, 1))?, &taps(&axis(2, 3))?, 1)?;
/// assert_eq!(target, [1.0, 2.0, 3.0]);
/// # Ok::<(), vit_rs_core::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Argument`] when a slice has another number of values than these sizes give, or there are no channels.
pub fn resample(
    source: &[f32],
    target: &mut [f32],
    batch: usize,
    prefix: usize,
    channels: usize,
    vertical: &Taps,
    horizontal: &Taps,
    threads: usize,
) -> Result<()> {
    let (vertical, horizontal) = (Rows::new(vertical), Rows::new(horizontal));
    let old = table(prefix, vertical.input, horizontal.input, channels)?;
    let new = table(prefix, vertical.output(), horizontal.output(), channels)?;
    let fits = |len: usize, table: usize| batch.checked_mul(table) == Some(len);
    if !fits(source.len(), old) || !fits(target.len(), new) {
        return Err(Error::argument(format!(
            "expected {batch} tables of {old} values to read and of {new} to write, got {} and {} values",
            source.len(),
            target.len()
        )));
    }
    let bytes = size_of_val(target);
    let threads = parallel::useful_threads(threads, size_of_val(source).max(bytes));
    let parts = (threads / batch.max(1)).max(1);
    let rows = vertical.output().div_ceil(parts);
    let row = horizontal.output() * channels;
    let tables = source.chunks_exact(old).zip(target.chunks_exact_mut(new));
    let items = tables.flat_map(|(source, target)| {
        let (source_prefix, source) = source.split_at(prefix * channels);
        let (target_prefix, target) = target.split_at_mut(prefix * channels);
        target_prefix.copy_from_slice(source_prefix);
        target.chunks_mut(rows * row).enumerate().map(move |(part, rows)| (source, part, rows))
    });
    // Both orders cost the same on square grids, where the first needs less room between the passes.
    let second_pass_vertical = vertical.weights() * horizontal.output();
    let second_pass_horizontal = horizontal.weights() * vertical.output();
    let vertical_first = vertical.weights() * horizontal.input + second_pass_horizontal
        <= horizontal.weights() * vertical.input + second_pass_vertical;
    let level = Level::best();
    parallel::for_each(threads, items, |(source, part, target)| {
        let count = target.len() / row;
        let vertical = &vertical.rows[part * rows..][..count];
        let horizontal = &horizontal;
        let stream = &Stream::for_result(bytes);
        let passes =
            Passes { source, target, channels, vertical, horizontal, vertical_first, stream };
        simd::run(level, passes);
    });
    Ok(())
}

/// Values of one table.
fn table(prefix: usize, rows: usize, columns: usize, channels: usize) -> Result<usize> {
    let tokens = rows.checked_mul(columns).and_then(|cells| cells.checked_add(prefix));
    match tokens.and_then(|tokens| tokens.checked_mul(channels)) {
        Some(values) if values > 0 => Ok(values),
        _ => Err(Error::argument(format!(
            "cannot resample tables of {prefix} + {rows}x{columns} tokens of {channels} channels"
        ))),
    }
}

/// Both passes for some rows of a table.
struct Passes<'a> {
    source: &'a [f32],
    target: &'a mut [f32],
    channels: usize,
    /// What the rows of `target` are made of.
    vertical: &'a [(usize, Vec<f32>)],
    horizontal: &'a Rows,
    vertical_first: bool,
    stream: &'a Stream,
}

impl Kernel for Passes<'_> {
    #[inline(always)]
    fn run(self) {
        if self.vertical_first {
            self.vertical_then_horizontal();
        } else {
            self.horizontal_then_vertical();
        }
    }
}

impl Passes<'_> {
    /// Between the passes stands one row.
    #[inline(always)]
    fn vertical_then_horizontal(self) {
        let Self { source, target, channels, vertical, horizontal, stream, .. } = self;
        let mut finish = Finish { stream, sums: [0.0; BLOCK] };
        let stride = horizontal.input * channels;
        let mut between = vec![0.0; horizontal.input * BLOCK.min(channels)];
        for start in (0..channels).step_by(BLOCK) {
            let block = BLOCK.min(channels - start);
            let rows = target.chunks_exact_mut(horizontal.output() * channels);
            for (row, (first, weights)) in rows.zip(vertical) {
                let cells = between.chunks_exact_mut(block).take(horizontal.input);
                for (column, cell) in cells.enumerate() {
                    let source = &source[first * stride + column * channels + start..];
                    weighted_sum(cell, source, stride, weights);
                }
                let cells = row.chunks_exact_mut(channels);
                for (cell, (first, weights)) in cells.zip(&horizontal.rows) {
                    let between = &between[first * block..];
                    finish.write(&mut cell[start..][..block], between, block, weights);
                }
            }
        }
    }

    /// Between the passes stand all the rows that are needed.
    #[inline(always)]
    fn horizontal_then_vertical(self) {
        let Self { source, target, channels, vertical, horizontal, stream, .. } = self;
        let mut finish = Finish { stream, sums: [0.0; BLOCK] };
        let begin = vertical.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = vertical.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        let stride = horizontal.input * channels;
        let mut between = vec![0.0; (end - begin) * horizontal.output() * BLOCK.min(channels)];
        for start in (0..channels).step_by(BLOCK) {
            let block = BLOCK.min(channels - start);
            let width = horizontal.output() * block;
            for (row, cells) in between.chunks_exact_mut(width).take(end - begin).enumerate() {
                let line = &source[(begin + row) * stride..][..stride];
                for (cell, (first, weights)) in cells.chunks_exact_mut(block).zip(&horizontal.rows)
                {
                    weighted_sum(cell, &line[first * channels + start..], channels, weights);
                }
            }
            let rows = target.chunks_exact_mut(horizontal.output() * channels);
            for (row, (first, weights)) in rows.zip(vertical) {
                let between = &between[(first - begin) * width..];
                for (column, cell) in row.chunks_exact_mut(channels).enumerate() {
                    let between = &between[column * block..];
                    finish.write(&mut cell[start..][..block], between, width, weights);
                }
            }
        }
    }
}

/// Writes cells of the result, past the caches where the result is that large and its cells are whole cache lines.
struct Finish<'a> {
    stream: &'a Stream,
    sums: [f32; BLOCK],
}

impl Finish<'_> {
    #[inline(always)]
    fn write(&mut self, target: &mut [f32], source: &[f32], stride: usize, weights: &[f32]) {
        if !self.stream.takes(target) {
            weighted_sum(target, source, stride, weights);
            return;
        }
        let sums = &mut self.sums[..target.len()];
        weighted_sum(sums, source, stride, weights);
        self.stream.copy(bytemuck::cast_slice(sums), bytemuck::cast_slice_mut(target));
    }
}

/// `target[x] = sum over k of weights[k] * source[k * stride + x]`.
#[inline(always)]
fn weighted_sum(target: &mut [f32], source: &[f32], stride: usize, weights: &[f32]) {
    let (many, target) = target.as_chunks_mut::<LANES>();
    summed_in_registers(many, source, stride, weights);
    let done = many.len() * LANES;
    let (few, rest) = target.as_chunks_mut::<FEW_LANES>();
    summed_in_registers(few, &source[done..], stride, weights);
    let done = done + few.len() * FEW_LANES;
    for (x, target) in rest.iter_mut().enumerate() {
        *target = 0.0;
        for (k, weight) in weights.iter().enumerate() {
            *target += weight * source[k * stride + done + x];
        }
    }
}

#[inline(always)]
fn summed_in_registers<const N: usize>(
    target: &mut [[f32; N]],
    source: &[f32],
    stride: usize,
    weights: &[f32],
) {
    for (i, target) in target.iter_mut().enumerate() {
        let mut sum = [0.0; N];
        for (k, weight) in weights.iter().enumerate() {
            let values = &source[k * stride + i * N..][..N];
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += weight * value;
            }
        }
        *target = sum;
    }
}

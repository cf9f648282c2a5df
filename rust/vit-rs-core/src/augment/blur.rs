//! Gaussian blur: torchvision's weights, along the rows and then along the columns, in float32.

use super::color::round;
use super::geometry;
use super::plan::Border;
use crate::image::{ImageBuf, ImageView, Size};
use crate::simd::{self, Kernel, Level};

/// Values that are summed at once: what registers hold.
const BLOCK: usize = 32;

/// Memory of a blur, kept from one image to the next.
#[derive(Debug, Default)]
pub(super) struct Blur {
    weights: [Vec<f32>; 2],
    /// A line with its borders.
    line: Vec<f32>,
    /// The image blurred along its rows, and its borders above and below.
    rows: Vec<f32>,
}

/// The weights from the middle outwards of a kernel of `length` samples, which add up to 1 with their mirror images.
///
/// Those below 2^-30 of the middle one are left out: together they are less than float32 resolves.
pub(super) fn fill_weights(weights: &mut Vec<f32>, length: usize, sigma: f64) {
    let value = |at: usize| (-0.5 * (at as f64 / sigma).powi(2)).exp();
    let radius = length / 2;
    let sum = 1.0 + 2.0 * (1..=radius).map(value).sum::<f64>();
    let others = (1..=radius).map(value).take_while(|&weight| weight >= 2.0_f64.powi(-30));
    weights.clear();
    weights.push((1.0 / sum) as f32);
    weights.extend(others.map(|weight| (weight / sum) as f32));
}

/// out[i] = sum of weights\[j\] x (from\[middle + i - j step\] + from\[middle + i + j step\]).
#[inline(always)]
fn convolve<const N: usize>(from: &[f32], middle: usize, step: usize, weights: &[f32]) -> [f32; N] {
    let mut sums = [0.0; N];
    let Some((first, rest)) = weights.split_first() else { return sums };
    let at = |start: usize| from[start..].first_chunk::<N>();
    if let Some(values) = at(middle) {
        for i in 0..N {
            sums[i] = values[i] * first;
        }
    }
    for (j, weight) in (1..).zip(rest) {
        if let (Some(before), Some(after)) = (at(middle - j * step), at(middle + j * step)) {
            for i in 0..N {
                sums[i] += (before[i] + after[i]) * weight;
            }
        }
    }
    sums
}

/// Blurs a line whose borders stand around it.
struct AlongRow<'a> {
    line: &'a [f32],
    channels: usize,
    weights: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for AlongRow<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { line, channels, weights, to } = self;
        let first = (weights.len() - 1) * channels;
        let (blocks, rest) = to.as_chunks_mut::<BLOCK>();
        let done = blocks.len() * BLOCK;
        for (at, block) in (first..).step_by(BLOCK).zip(blocks) {
            *block = convolve::<BLOCK>(line, at, channels, weights);
        }
        for (at, to) in (first + done..).zip(rest) {
            [*to] = convolve::<1>(line, at, channels, weights);
        }
    }
}

/// Blurs a strip of columns.
struct AlongColumns<'a> {
    rows: &'a [f32],
    length: usize,
    weights: &'a [f32],
    to: &'a mut [u8],
}

impl Kernel for AlongColumns<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { rows, length, weights, to } = self;
        let radius = weights.len() - 1;
        let mut column = 0;
        // A strip at a time: its lines stay in the nearest cache.
        while column + BLOCK <= length {
            for (y, to) in to.chunks_exact_mut(length).enumerate() {
                let middle = (y + radius) * length + column;
                let sums = convolve::<BLOCK>(rows, middle, length, weights);
                for (to, &sum) in to[column..column + BLOCK].iter_mut().zip(&sums) {
                    *to = round(sum);
                }
            }
            column += BLOCK;
        }
        for (y, to) in to.chunks_exact_mut(length).enumerate() {
            for (at, to) in (column..).zip(&mut to[column..]) {
                let [sum] = convolve::<1>(rows, (y + radius) * length + at, length, weights);
                *to = round(sum);
            }
        }
    }
}

struct Widen<'a> {
    from: &'a [u8],
    to: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    #[inline(always)]
    fn run(self) {
        self.to.iter_mut().zip(self.from).for_each(|(to, &from)| *to = f32::from(from));
    }
}

impl Blur {
    /// Blurs `source` with a kernel of odd height and width; sigma along height and width, positive.
    ///
    /// Borders are mirrored at the edge pixels, again and again where the kernel is larger than the image.
    pub(super) fn apply(
        &mut self,
        source: ImageView<'_>,
        kernel: Size,
        sigma: (f64, f64),
        level: Level,
        target: &mut ImageBuf,
    ) {
        let (size, channels) = (source.size(), source.channels());
        let Self { weights: [vertical, horizontal], line, rows } = self;
        fill_weights(vertical, kernel.height, sigma.0);
        fill_weights(horizontal, kernel.width, sigma.1);
        let (above, left) = (vertical.len() - 1, horizontal.len() - 1);
        let mirrored = |at: usize, border: usize, length: usize| {
            geometry::inside(at as i64 - border as i64, length, Border::Reflect).unwrap_or(0)
        };
        let length = size.width * channels;
        line.resize(length + 2 * left * channels, 0.0);
        rows.resize((size.height + 2 * above) * length, 0.0);
        for (y, to) in rows.chunks_exact_mut(length).skip(above).take(size.height).enumerate() {
            let inner = left * channels..left * channels + length;
            simd::run(level, Widen { from: source.row(y), to: &mut line[inner] });
            for x in (0..left).chain(left + size.width..2 * left + size.width) {
                let from = left + mirrored(x, left, size.width);
                line.copy_within(from * channels..(from + 1) * channels, x * channels);
            }
            simd::run(level, AlongRow { line, channels, weights: horizontal, to });
        }
        for y in (0..above).chain(above + size.height..2 * above + size.height) {
            let from = above + mirrored(y, above, size.height);
            rows.copy_within(from * length..(from + 1) * length, y * length);
        }
        let to = target.reshape(size, channels);
        simd::run(level, AlongColumns { rows, length, weights: vertical, to });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn blurred(
        data: &[u8],
        size: Size,
        channels: usize,
        kernel: Size,
        sigma: (f64, f64),
    ) -> Vec<u8> {
        let source = ImageView::new(data, size, channels, size.width * channels).unwrap();
        let mut blur = Blur::default();
        let mut results = Level::all().iter().map(|&level| {
            let mut target = ImageBuf::default();
            blur.apply(source, kernel, sigma, level, &mut target);
            let view = target.view().unwrap();
            (0..size.height).flat_map(|y| view.row(y).to_vec()).collect::<Vec<u8>>()
        });
        let first = results.next().unwrap();
        assert!(results.all(|other| other == first), "levels differ");
        first
    }

    /// Where numpy's "reflect" reads, one fold at a time.
    fn reflect(mut at: i64, length: usize) -> usize {
        let last = length as i64 - 1;
        while !(0..=last).contains(&at) {
            at = if last == 0 {
                0
            } else if at < 0 {
                -at
            } else {
                2 * last - at
            };
        }
        at as usize
    }

    /// The two-dimensional sum in f64.
    fn exact(
        data: &[u8],
        size: Size,
        channels: usize,
        kernel: Size,
        sigma: (f64, f64),
    ) -> Vec<f64> {
        let weights = |length: usize, sigma: f64| {
            let values: Vec<f64> = (0..length)
                .map(|i| (-0.5 * ((i as f64 - (length / 2) as f64) / sigma).powi(2)).exp())
                .collect();
            let sum: f64 = values.iter().sum();
            values.into_iter().map(|value| value / sum).collect::<Vec<_>>()
        };
        let (rows, columns) = (weights(kernel.height, sigma.0), weights(kernel.width, sigma.1));
        let mut out = Vec::new();
        for i in 0..size.pixels() * channels {
            let (y, x, c) = (i / channels / size.width, i / channels % size.width, i % channels);
            let mut sum = 0.0;
            for (j, row) in rows.iter().enumerate() {
                let y = reflect((y + j) as i64 - (kernel.height / 2) as i64, size.height);
                for (k, column) in columns.iter().enumerate() {
                    let x = reflect((x + k) as i64 - (kernel.width / 2) as i64, size.width);
                    sum += row * column * f64::from(data[(y * size.width + x) * channels + c]);
                }
            }
            out.push(sum);
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn rounds_the_exact_sum(
            height in 1_usize..20, width in 1_usize..45, gray: bool, seed: u64,
            radii in (0_usize..13, 0_usize..13), sigma in (0.05..6.0, 0.05..6.0),
        ) {
            let channels = if gray { 1 } else { 3 };
            let mut random = crate::rng::EpochKey::new(seed, 0).stream(0, 0, 0);
            let data: Vec<u8> = (0..height * width * channels).map(|_| random.next_u32() as u8).collect();
            let (size, kernel) = (Size::new(height, width), Size::new(2 * radii.0 + 1, 2 * radii.1 + 1));
            let exact = exact(&data, size, channels, kernel, sigma);
            for (got, exact) in blurred(&data, size, channels, kernel, sigma).iter().zip(exact) {
                // Two float32 sums of at most 25 products below 255: an error below 2e-4.
                prop_assert!((f64::from(*got) - exact).abs() <= 0.5 + 2e-4, "{} {}", got, exact);
            }
        }

        #[test]
        fn constant_stays_constant(value: u8, radius in 0_usize..40, sigma in 0.01..50.0) {
            let kernel = Size::new(2 * radius + 1, 2 * radius + 1);
            let out = blurred(&[value; 12 * 15 * 3], Size::new(12, 15), 3, kernel, (sigma, sigma));
            prop_assert!(out.iter().all(|&out| out == value));
        }
    }

    #[test]
    fn no_sigma_panics() {
        let data: Vec<u8> = (0..75).collect();
        for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
            blurred(&data, Size::new(5, 5), 3, Size::new(5, 5), (sigma, sigma));
        }
        assert_eq!(blurred(&data, Size::new(5, 5), 3, Size::new(9, 9), (1e-300, 0.0)), data);
    }
}

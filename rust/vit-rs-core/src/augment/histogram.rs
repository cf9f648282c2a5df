//! Tables from an image's own values: autocontrast and equalize.

use super::color::{Table, cut};
use super::plan::Kernels;
use crate::image::ImageView;
use crate::simd::{self, Kernel, Level};

const IDENTITY: Table = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = i as u8;
        i += 1;
    }
    table
};

/// Values whose place tells the channel: a multiple of 3, and of what a register holds.
const BLOCK: usize = 96;

/// The smallest and the largest value at each place of the blocks.
struct Extremes<'a> {
    row: &'a [u8],
    low: &'a mut [u8; BLOCK],
    high: &'a mut [u8; BLOCK],
}

impl Kernel for Extremes<'_> {
    #[inline(always)]
    fn run(self) {
        let (mut low, mut high) = (*self.low, *self.high);
        let (blocks, rest) = self.row.as_chunks::<BLOCK>();
        for block in blocks {
            for i in 0..BLOCK {
                low[i] = low[i].min(block[i]);
                high[i] = high[i].max(block[i]);
            }
        }
        for (i, &value) in rest.iter().enumerate() {
            low[i] = low[i].min(value);
            high[i] = high[i].max(value);
        }
        (*self.low, *self.high) = (low, high);
    }
}

/// Each channel's smallest and largest value.
fn extremes(source: ImageView<'_>, level: Level) -> Vec<(u8, u8)> {
    let channels = source.channels();
    let (mut low, mut high) = ([255; BLOCK], [0; BLOCK]);
    for y in 0..source.size().height {
        simd::run(level, Extremes { row: source.row(y), low: &mut low, high: &mut high });
    }
    let of = |c| {
        let low = low.iter().skip(c).step_by(channels).copied().min().unwrap_or(0);
        (low, high.iter().skip(c).step_by(channels).copied().max().unwrap_or(0))
    };
    (0..channels).map(of).collect()
}

/// For each channel the table that spreads its range over 0 to 255.
pub(super) fn autocontrast(source: ImageView<'_>, kernels: Kernels, level: Level) -> Vec<Table> {
    let spread = |(low, high): (u8, u8)| {
        if low >= high {
            return IDENTITY;
        }
        match kernels {
            Kernels::Torch => {
                let scale = f32::from(high - low) * (1.0 / 255.0);
                std::array::from_fn(|i| cut((i as f32 - f32::from(low)) / scale))
            }
            Kernels::Pillow => {
                let scale = 255.0 / f64::from(high - low);
                let offset = -f64::from(low) * scale;
                std::array::from_fn(|i| (i as f64 * scale + offset).clamp(0.0, 255.0) as u8)
            }
        }
    };
    extremes(source, level).into_iter().map(spread).collect()
}

/// How often each value occurs in each channel.
fn histograms(source: ImageView<'_>) -> Vec<[usize; 256]> {
    let channels = source.channels();
    // Neighbours are often equal: two sets of counters need not wait for each other.
    let mut counts = vec![[[0_u32; 256]; 2]; channels];
    for y in 0..source.size().height {
        let row = source.row(y);
        match counts.as_mut_slice() {
            [r, g, b] => {
                let (pairs, rest) = row.as_chunks::<6>();
                for pair in pairs {
                    let [a, b0, c, d, e, f] = pair.map(usize::from);
                    r[0][a] += 1;
                    g[0][b0] += 1;
                    b[0][c] += 1;
                    r[1][d] += 1;
                    g[1][e] += 1;
                    b[1][f] += 1;
                }
                for (counts, &value) in [r, g, b].into_iter().zip(rest) {
                    counts[0][usize::from(value)] += 1;
                }
            }
            channels => {
                for (i, &value) in row.iter().enumerate() {
                    let of = i % channels.len();
                    channels[of][i / channels.len() % 2][usize::from(value)] += 1;
                }
            }
        }
    }
    let total = |[a, b]: [[u32; 256]; 2]| std::array::from_fn(|i| a[i] as usize + b[i] as usize);
    counts.into_iter().map(total).collect()
}

/// For each channel the table that makes its histogram flat: Pillow's, which torchvision agrees with.
pub(super) fn equalize(source: ImageView<'_>) -> Vec<Table> {
    let flatten = |histogram: [usize; 256]| {
        let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        let step = (histogram.iter().sum::<usize>() - last) / 255;
        if step == 0 {
            return IDENTITY;
        }
        let mut below = step / 2;
        histogram.map(|count| {
            let value = (below / step).min(255) as u8;
            below += count;
            value
        })
    };
    histograms(source).into_iter().map(flatten).collect()
}

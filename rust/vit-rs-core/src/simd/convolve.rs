//! Weighted sums of 8-bit pixels in fixed point: both passes of a resize, for which compilers find no good code.
//!
//! Two samples and their two weights, 16 bits each, make one step (`pmaddwd`). Weights of more bits are two numbers of
//! 16 bits, summed apart. All sums wrap at 32 bits: equal bits to the plain loops, whatever the weights.

// Other architectures have the plain loops only.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::{Level, Set};

/// Channels of the pixels that the horizontal kernel takes.
const CHANNELS: usize = 3;

/// Output pixels that the horizontal kernel makes at once.
const GROUP: usize = 8;

/// Pixels that are read at once for an output pixel.
const READ: usize = 4;

/// Bytes that this takes: pixels of three channels do not fill them.
const READ_BYTES: usize = 16;

/// Output bytes that the vertical kernel makes at once.
const BLOCK: usize = 32;

/// Weights of two output pixels for two samples of each: the first pixel's in the first half, once for each channel.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
struct Pairs([[i16; 2]; 8]);

/// The weights of a row of pixels, in the order in which the horizontal kernel takes them.
#[derive(Debug, Default)]
pub(crate) struct HorizontalWeights {
    precision: u32,
    output: usize,
    /// Where the first pixel of each output pixel begins in its row, in bytes; whole groups of them.
    starts: Vec<[u32; GROUP]>,
    /// Steps of two samples for each output pixel.
    steps: usize,
    /// Numbers of 16 bits for each weight, the low one first.
    parts: usize,
    /// By group, pair of pixels (0 and 4, 1 and 5, ...), step and part.
    weights: Vec<Pairs>,
    /// Bytes that are read from a row.
    reach: usize,
}

impl HorizontalWeights {
    /// Replaces the weights: `row` gives, for each of `output` pixels, the first pixel and the weights from there on.
    pub(crate) fn fill<'a>(
        &mut self,
        level: Level,
        output: usize,
        row: impl Fn(usize) -> (usize, &'a [i32]),
        precision: u32,
    ) {
        self.starts.clear();
        self.weights.clear();
        self.reach = 0;
        if !has_kernels(level) || output < GROUP {
            return;
        }
        self.precision = precision;
        self.output = output;
        self.steps = (0..output).map(|i| row(i).1.len().div_ceil(2)).fold(1, usize::max);
        self.parts = parts((0..output).flat_map(|i| row(i).1));
        let steps = self.steps * self.parts;
        let groups = output.div_ceil(GROUP);
        self.weights.resize(groups * GROUP / 2 * steps, Pairs::default());
        for (group, room) in self.weights.chunks_exact_mut(GROUP / 2 * steps).enumerate() {
            // The last group may overlap the one before.
            let begin = (group * GROUP).min(output - GROUP);
            let mut starts = [0; GROUP];
            for (i, start) in starts.iter_mut().enumerate() {
                let (first, weights) = row(begin + i);
                *start = (first * CHANNELS) as u32;
                let (pair, half) = (i % (GROUP / 2), i / (GROUP / 2) * 4);
                let room = room[pair * steps..][..steps].chunks_exact_mut(self.parts);
                for (parts, weights) in room.zip(weights.chunks(2)) {
                    let (first, second) = (weights[0], weights.get(1).copied().unwrap_or(0));
                    let pair = [split(first), split(second)];
                    for (part, pairs) in parts.iter_mut().enumerate() {
                        pairs.0[half..][..4].fill(pair.map(|weight| weight[part]));
                    }
                }
            }
            self.starts.push(starts);
        }
        let last = self.starts.iter().flatten().max().copied().unwrap_or(0) as usize;
        let reads = self.steps.div_ceil(READ / 2);
        self.reach = last + (reads - 1) * READ * CHANNELS + READ_BYTES;
    }

    /// Bytes that a row of pixels must have: more than its pixels. What lies behind them has no weight.
    pub(crate) fn reach(&self) -> usize {
        self.reach
    }
}

/// The weights of rows below each other, in the order in which the vertical kernel takes them.
#[derive(Debug, Default)]
pub(crate) struct VerticalWeights {
    precision: u32,
    parts: usize,
    /// Where the weights of each output row begin, and how many rows it is made of.
    rows: Vec<(usize, usize)>,
    /// By output row, step of two rows and part.
    weights: Vec<[i16; 2]>,
}

impl VerticalWeights {
    /// Replaces the weights: `row` gives, for each of `output` rows, the weights of the rows that it is made of.
    pub(crate) fn fill<'a>(
        &mut self,
        level: Level,
        output: usize,
        row: impl Fn(usize) -> &'a [i32],
        precision: u32,
    ) {
        self.weights.clear();
        self.rows.clear();
        if !has_kernels(level) {
            return;
        }
        self.precision = precision;
        self.parts = parts((0..output).flat_map(&row));
        for weights in (0..output).map(row) {
            self.rows.push((self.weights.len(), weights.len()));
            for weights in weights.chunks(2) {
                let (first, second) = (weights[0], weights.get(1).copied().unwrap_or(0));
                let pair = [split(first), split(second)];
                let parts = (0..self.parts).map(|part| pair.map(|weight| weight[part]));
                self.weights.extend(parts);
            }
        }
    }
}

fn has_kernels(level: Level) -> bool {
    level.0 != Set::Baseline
}

/// Whether all weights are numbers of 16 bits (1) or some are not (2).
fn parts<'a>(mut weights: impl Iterator<Item = &'a i32>) -> usize {
    if weights.all(|&weight| i16::try_from(weight).is_ok()) { 1 } else { 2 }
}

/// A weight as `low + (high << 16)`.
fn split(weight: i32) -> [i16; 2] {
    let low = weight as i16;
    [low, (weight.wrapping_sub(i32::from(low)) >> 16) as i16]
}

/// Makes a row of pixels of three channels from one that has [`HorizontalWeights::reach`] bytes.
///
/// Returns whether it did: not at every level, and not rows of fewer pixels than a group.
pub(crate) fn convolve_horizontally(
    level: Level,
    weights: &HorizontalWeights,
    source: &[u8],
    target: &mut [u8],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level.0 == Set::Avx2
        && !weights.starts.is_empty()
        && source.len() >= weights.reach
        && target.len() == weights.output * CHANNELS
    {
        // SAFETY: this level exists only where the CPU has AVX2, and the lengths were asked for.
        unsafe {
            match (weights.parts, weights.steps) {
                (1, 1) => avx2::horizontal::<1, 1>(weights, source, target),
                (1, 2) => avx2::horizontal::<1, 2>(weights, source, target),
                (1, 3) => avx2::horizontal::<1, 3>(weights, source, target),
                (1, _) => avx2::horizontal::<1, 0>(weights, source, target),
                (_, 1) => avx2::horizontal::<2, 1>(weights, source, target),
                (_, 2) => avx2::horizontal::<2, 2>(weights, source, target),
                (_, 3) => avx2::horizontal::<2, 3>(weights, source, target),
                (_, _) => avx2::horizontal::<2, 0>(weights, source, target),
            }
        }
        return true;
    }
    let _ = (level, weights, source, target);
    false
}

/// Makes output row `row` from the rows below each other in `source`, `stride` bytes apart.
///
/// Returns whether it did: not at every level, and not rows shorter than a block.
pub(crate) fn convolve_vertically(
    level: Level,
    weights: &VerticalWeights,
    row: usize,
    (source, stride): (&[u8], usize),
    target: &mut [u8],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let (Set::Avx2, Some(&(start, rows))) = (level.0, weights.rows.get(row)) {
        let needed = rows.saturating_sub(1).checked_mul(stride);
        let needed = needed.and_then(|last| last.checked_add(target.len()));
        if target.len() >= BLOCK && needed.is_some_and(|needed| needed <= source.len()) {
            let pairs = &weights.weights[start..][..rows.div_ceil(2) * weights.parts];
            // SAFETY: this level exists only where the CPU has AVX2, and the lengths were asked for.
            unsafe {
                let precision = weights.precision;
                match weights.parts {
                    1 => avx2::vertical::<1>(pairs, rows, precision, source, stride, target),
                    _ => avx2::vertical::<2>(pairs, rows, precision, source, stride, target),
                }
            }
            return true;
        }
    }
    let _ = (level, weights, row, source, stride, target);
    false
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm_storel_epi64, _mm_storeu_si128, _mm256_add_epi32, _mm256_broadcastsi128_si256,
        _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_loadu2_m128i,
        _mm256_madd_epi16, _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permutevar8x32_epi32,
        _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8,
        _mm256_slli_epi32, _mm256_srav_epi32, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
    };

    use super::{BLOCK, CHANNELS, GROUP, HorizontalWeights, READ};

    /// From four pixels of three channels, for the first and for the last two: their channels side by side, with room
    /// for 16 bits each; the fourth channel is zero.
    const SIDE_BY_SIDE: [[i8; 16]; 2] = [
        [0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1],
        [6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1],
    ];

    /// Four pixels of four channels without the fourth.
    const PACKED: [i8; 16] = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15];

    #[target_feature(enable = "avx2")]
    fn both_halves(bytes: [i8; 16]) -> __m256i {
        _mm256_broadcastsi128_si256(bytemuck::cast(bytes))
    }

    /// # Safety
    /// Each source has at least `weights.reach` bytes, each target `weights.output` pixels. `PARTS` is `weights.parts`,
    /// `STEPS` is `weights.steps` or 0.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn horizontal<const PARTS: usize, const STEPS: usize>(
        weights: &HorizontalWeights,
        source: &[u8],
        target: &mut [u8],
    ) {
        let steps = if STEPS == 0 { weights.steps } else { STEPS };
        let half = _mm256_set1_epi32((1 << weights.precision) >> 1);
        let precision = _mm256_set1_epi32(weights.precision as i32);
        let [first_two, last_two] = SIDE_BY_SIDE.map(|bytes| both_halves(bytes));
        let packed = both_halves(PACKED);
        let order = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
        let mut at = weights.weights.as_ptr().cast::<__m256i>();
        for (group, starts) in weights.starts.iter().enumerate() {
            let mut sums = [half; GROUP / 2];
            for (pair, sum) in sums.iter_mut().enumerate() {
                let mut high = _mm256_setzero_si256();
                let (a, b) = (starts[pair] as usize, starts[pair + GROUP / 2] as usize);
                // SAFETY: `reach` ends behind the last of these reads.
                let read = |offset: usize| unsafe {
                    let start = source.as_ptr().add(offset);
                    _mm256_loadu2_m128i(start.add(b).cast(), start.add(a).cast())
                };
                let mut step = |pixels: __m256i, channels: __m256i| {
                    // SAFETY: there are `PARTS` for each step of each pair of each group.
                    let [low_weights, high_weights] = unsafe {
                        let both = [at.read(), at.add(PARTS - 1).read()];
                        at = at.add(PARTS);
                        both
                    };
                    let samples = _mm256_shuffle_epi8(pixels, channels);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(samples, low_weights));
                    if PARTS == 2 {
                        high = _mm256_add_epi32(high, _mm256_madd_epi16(samples, high_weights));
                    }
                };
                let mut offset = 0;
                for _ in 0..steps / 2 {
                    let pixels = read(offset);
                    step(pixels, first_two);
                    step(pixels, last_two);
                    offset += READ * CHANNELS;
                }
                if steps % 2 == 1 {
                    step(read(offset), first_two);
                }
                if PARTS == 2 {
                    *sum = _mm256_add_epi32(*sum, _mm256_slli_epi32::<16>(high));
                }
                *sum = _mm256_srav_epi32(*sum, precision);
            }
            let [a, b, c, d] = sums;
            let words = [_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)];
            let bytes = _mm256_packus_epi16(words[0], words[1]);
            let bytes = _mm256_shuffle_epi8(bytes, packed);
            let bytes = _mm256_permutevar8x32_epi32(bytes, order);
            // The last group may overlap the one before.
            let start = (group * GROUP * CHANNELS).min(target.len() - GROUP * CHANNELS);
            // SAFETY: the bytes of a group; a target that is shorter has none.
            unsafe {
                let target = target.as_mut_ptr().add(start);
                _mm_storeu_si128(target.cast(), _mm256_castsi256_si128(bytes));
                _mm_storel_epi64(target.add(16).cast(), _mm256_extracti128_si256::<1>(bytes));
            }
        }
    }

    /// # Safety
    /// `source` has `rows` rows, `stride` bytes apart, the last with the length of the target, which is at least
    /// `BLOCK`. `pairs` are `PARTS` for every two rows.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn vertical<const PARTS: usize>(
        pairs: &[[i16; 2]],
        rows: usize,
        precision: u32,
        source: &[u8],
        stride: usize,
        target: &mut [u8],
    ) {
        let mut x = 0;
        while x < target.len() {
            // The last block may overlap the one before.
            x = x.min(target.len() - BLOCK);
            let half = _mm256_set1_epi32((1 << precision) >> 1);
            let mut low = [half; 4];
            let mut high = [_mm256_setzero_si256(); 4];
            for (step, pair) in pairs.chunks_exact(PARTS).enumerate() {
                let first = 2 * step;
                // A row without a partner has a weight of zero for it.
                let second = (first + 1).min(rows - 1);
                // SAFETY: both are rows of `source`, which have the block.
                let (a, b) = unsafe {
                    let start = source.as_ptr().add(x);
                    (
                        _mm256_loadu_si256(start.add(first * stride).cast()),
                        _mm256_loadu_si256(start.add(second * stride).cast()),
                    )
                };
                let zero = _mm256_setzero_si256();
                let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                let samples = [
                    _mm256_unpacklo_epi8(ab, zero),
                    _mm256_unpackhi_epi8(ab, zero),
                    _mm256_unpacklo_epi8(cd, zero),
                    _mm256_unpackhi_epi8(cd, zero),
                ];
                let weights = |part: usize| _mm256_set1_epi32(bytemuck::cast(pair[part]));
                for (sum, samples) in low.iter_mut().zip(samples) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(samples, weights(0)));
                }
                if PARTS == 2 {
                    for (sum, samples) in high.iter_mut().zip(samples) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(samples, weights(1)));
                    }
                }
            }
            let precision = _mm256_set1_epi32(precision as i32);
            let mut sums = low;
            for (sum, high) in sums.iter_mut().zip(high) {
                if PARTS == 2 {
                    *sum = _mm256_add_epi32(*sum, _mm256_slli_epi32::<16>(high));
                }
                *sum = _mm256_srav_epi32(*sum, precision);
            }
            let [a, b, c, d] = sums;
            let words = [_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)];
            let bytes: [u8; BLOCK] = bytemuck::cast(_mm256_packus_epi16(words[0], words[1]));
            target[x..x + BLOCK].copy_from_slice(&bytes);
            x += BLOCK;
        }
    }
}

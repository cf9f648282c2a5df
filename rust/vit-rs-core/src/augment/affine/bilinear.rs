//! Bilinear sampling.

use std::slice::ChunksExactMut;

use super::{Grid, Lines, WHOLE, resized, span};
use crate::augment::plan::{Affine, Kernels};
use crate::image::{ImageView, Size};
use crate::line::interleave;
use crate::simd::{self, Kernel, Level};

/// Pixels whose sums are found at once.
pub(super) const BLOCK: usize = 8;

pub(super) fn draw<const C: usize>(
    level: Level,
    source: ImageView<'_>,
    kernels: Kernels,
    map: &Affine,
    fill: [u8; C],
    lines: &mut Lines,
    target: ChunksExactMut<'_, u8>,
) {
    let grid = || Grid::new(source.size(), map);
    match (kernels, map.fill) {
        (Kernels::Torch, None) => {
            let Lines { single, columns, rows, pairs, planes, .. } = lines;
            let rule = Torch::<false, C> { grid: grid(), fill: [0.0; C] };
            draw_rows(level, source, &rule, fill, single, [columns, rows], pairs, planes, target);
        }
        (Kernels::Torch, Some(_)) => {
            let Lines { single, columns, rows, pairs, planes, .. } = lines;
            let rule = Torch::<true, C> { grid: grid(), fill: fill.map(f32::from) };
            draw_rows(level, source, &rule, fill, single, [columns, rows], pairs, planes, target);
        }
        (Kernels::Pillow, _) => {
            let Lines { double, columns, rows, pairs, planes, .. } = lines;
            let rule = Pillow(map.inverse);
            draw_rows(level, source, &rule, fill, double, [columns, rows], pairs, planes, target);
        }
    }
}

/// A float of either width.
pub(super) trait Real: Copy + Default + PartialOrd + std::ops::Sub<Output = Self> {
    fn of(value: usize) -> Self;
    fn from_whole(value: i32) -> Self;
    /// What lies before the point of a number that is neither negative nor above 2^22; a cast is slower.
    fn whole(self) -> i32;
}

impl Real for f32 {
    #[inline(always)]
    fn of(value: usize) -> Self {
        value as Self
    }

    #[inline(always)]
    fn from_whole(value: i32) -> Self {
        value as Self
    }

    #[inline(always)]
    fn whole(self) -> i32 {
        let near = (self + WHOLE).to_bits() as i32 - WHOLE.to_bits() as i32;
        near - i32::from(near as Self > self)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(value: usize) -> Self {
        value as Self
    }

    #[inline(always)]
    fn from_whole(value: i32) -> Self {
        value.into()
    }

    #[inline(always)]
    fn whole(self) -> i32 {
        let near = (self + 6_755_399_441_055_744.0).to_bits() as i32;
        near - i32::from(Self::from(near) > self)
    }
}

/// A library's arithmetic.
trait Rule<const C: usize> {
    type Real: Real;
    /// Coordinate of the first pixel's centre.
    const CENTRE: Self::Real;

    /// Writes the coordinates of row `y`.
    fn locate(&self, level: Level, y: usize, lines: [&mut [Self::Real]; 2]);

    /// The weighted sum of the upper left, upper right, lower left and lower right pixel.
    fn sum(&self, channel: usize, taps: [u8; 4], right: Self::Real, down: Self::Real) -> u8;

    /// A pixel not all of whose four neighbours lie inside; None where all lie outside.
    fn border(&self, source: ImageView<'_>, x: Self::Real, y: Self::Real) -> Option<[u8; C]>;
}

fn draw_rows<const C: usize, R: Rule<C>>(
    level: Level,
    source: ImageView<'_>,
    rule: &R,
    fill: [u8; C],
    coordinates: &mut [Vec<R::Real>; 2],
    [columns, rows]: [&mut Vec<i32>; 2],
    pairs: &mut [Vec<u64>; 2],
    planes: &mut [Vec<u8>; 3],
    target: ChunksExactMut<'_, u8>,
) {
    let Size { height, width } = source.size();
    for (y, row) in target.enumerate() {
        let to = row.as_chunks_mut::<C>().0;
        // Blocks may reach over the end.
        let padded = to.len() + BLOCK;
        let [x_line, y_line] = coordinates.each_mut().map(|line| resized(line, padded));
        rule.locate(level, y, [x_line, y_line]);
        let inside = |place: R::Real, length: usize| {
            let place = place - R::CENTRE;
            place >= R::Real::of(0) && place < R::Real::of(length - 1)
        };
        let (start, end) =
            span(to.len(), |x| inside(x_line[x], width) && inside(y_line[x], height));
        for x in (0..start).chain(end..to.len()) {
            to[x] = rule.border(source, x_line[x], y_line[x]).unwrap_or(fill);
        }
        if start == end {
            continue;
        }
        let (columns, rows) = (resized(columns, padded), resized(rows, padded));
        for (line, to, length) in [(&*x_line, &mut *columns, width), (y_line, rows, height)] {
            let most = R::Real::of(length - 2);
            simd::run(level, Whole { line, centre: R::CENTRE, most, to });
        }
        let padded = (end - start).next_multiple_of(BLOCK);
        let range = start..start + padded;
        let [columns, rows] = [&columns[range.clone()], &rows[range.clone()]];
        gather::<C>(source, columns, rows, pairs.each_mut().map(|line| resized(line, padded)));
        let pairs = pairs.each_ref().map(|line| &line[..padded]);
        let coordinates = [&x_line[range.clone()], &y_line[range]];
        let views = planes.each_mut().map(|plane| resized(plane, padded));
        simd::run(level, Sums { rule, coordinates, columns, rows, pairs, planes: views });
        let to = &mut to[start..end];
        let length = to.len();
        interleave(level, C, |c| &planes[c][..length], to.as_flattened_mut());
    }
}

/// The pixel left of or above each coordinate, so far inside that its neighbour is inside too.
struct Whole<'a, R> {
    line: &'a [R],
    centre: R,
    most: R,
    to: &'a mut [i32],
}

impl<R: Real> Kernel for Whole<'_, R> {
    #[inline(always)]
    fn run(self) {
        for (&place, to) in self.line.iter().zip(self.to) {
            let place = place - self.centre;
            // Not a number becomes 0 too.
            let place = if place > R::of(0) { place } else { R::of(0) };
            *to = (if place < self.most { place } else { self.most }).whole();
        }
    }
}

/// The upper and the lower two of four pixels, channel after channel: in lines of their own, so that they are long written
/// when they are read in blocks.
fn gather<const C: usize>(
    source: ImageView<'_>,
    columns: &[i32],
    rows: &[i32],
    [upper, lower]: [&mut [u64]; 2],
) {
    let (bytes, stride) = source.bytes();
    let places = columns.iter().zip(rows).zip(upper.iter_mut().zip(lower));
    for ((&column, &row), (upper, lower)) in places {
        let place = row as usize * stride + column as usize * C;
        (*upper, *lower) = (pair::<C>(bytes, place), pair::<C>(bytes, place + stride));
    }
}

#[inline(always)]
fn pair<const C: usize>(bytes: &[u8], place: usize) -> u64 {
    match bytes.get(place..place.wrapping_add(8)).and_then(<[u8]>::first_chunk) {
        Some(&pair) => u64::from_le_bytes(pair),
        // The last ones of the image.
        None => last(bytes.get(place..).unwrap_or_default()),
    }
}

#[cold]
fn last(rest: &[u8]) -> u64 {
    rest.iter().rev().fold(0, |pair, &byte| pair << 8 | u64::from(byte))
}

struct Sums<'a, const C: usize, R: Rule<C>> {
    rule: &'a R,
    coordinates: [&'a [R::Real]; 2],
    columns: &'a [i32],
    rows: &'a [i32],
    pairs: [&'a [u64]; 2],
    planes: [&'a mut [u8]; 3],
}

impl<const C: usize, R: Rule<C>> Kernel for Sums<'_, C, R> {
    #[inline(always)]
    fn run(self) {
        let [xs, ys] = self.coordinates.map(|line| line.as_chunks::<BLOCK>().0);
        let columns = self.columns.as_chunks::<BLOCK>().0;
        let rows = self.rows.as_chunks::<BLOCK>().0;
        let [upper, lower] = self.pairs.map(|line| line.as_chunks::<BLOCK>().0);
        let [a, b, c] = self.planes.map(|plane| plane.as_chunks_mut::<BLOCK>().0);
        let blocks = xs.iter().zip(ys).zip(columns.iter().zip(rows)).zip(upper.iter().zip(lower));
        let planes = a.iter_mut().zip(b).zip(c);
        for ((((xs, ys), (columns, rows)), (upper, lower)), ((a, b), c)) in blocks.zip(planes) {
            let mut taps = [[0u32; BLOCK]; 4];
            for j in 0..BLOCK {
                taps[0][j] = upper[j] as u32;
                taps[1][j] = (upper[j] >> (8 * C)) as u32;
                taps[2][j] = lower[j] as u32;
                taps[3][j] = (lower[j] >> (8 * C)) as u32;
            }
            let mut sums = [[0u8; BLOCK]; C];
            for j in 0..BLOCK {
                let right = xs[j] - R::CENTRE - R::Real::from_whole(columns[j]);
                let down = ys[j] - R::CENTRE - R::Real::from_whole(rows[j]);
                for (channel, sums) in sums.iter_mut().enumerate() {
                    let taps = [0, 1, 2, 3].map(|tap: usize| (taps[tap][j] >> (8 * channel)) as u8);
                    sums[j] = self.rule.sum(channel, taps, right, down);
                }
            }
            for (plane, sums) in [a, b, c].into_iter().zip(sums) {
                *plane = sums;
            }
        }
    }
}

/// torch's `grid_sample` in f32 with zeros outside; if `FILLED`, torchvision's blend with the colour after it.
struct Torch<const FILLED: bool, const C: usize> {
    grid: Grid,
    fill: [f32; C],
}

impl<const FILLED: bool, const C: usize> Torch<FILLED, C> {
    /// `inside` is 1 for the pixels that exist.
    #[inline(always)]
    fn blend(&self, c: usize, taps: [u8; 4], inside: [f32; 4], right: f32, down: f32) -> u8 {
        let (left, up) = (1.0 - right, 1.0 - down);
        let weights = [left * up, right * up, left * down, right * down];
        let sum = |[a, b, c, d]: [f32; 4]| {
            a * weights[0] + b * weights[1] + c * weights[2] + d * weights[3]
        };
        let mut value = sum(taps.map(f32::from));
        if FILLED {
            value = (value - self.fill[c]) * sum(inside) + self.fill[c];
        }
        (value + WHOLE).to_bits() as u8
    }
}

impl<const FILLED: bool, const C: usize> Rule<C> for Torch<FILLED, C> {
    type Real = f32;
    const CENTRE: f32 = 0.0;

    fn locate(&self, level: Level, y: usize, lines: [&mut [f32]; 2]) {
        self.grid.locate(level, y, lines);
    }

    #[inline(always)]
    fn sum(&self, channel: usize, taps: [u8; 4], right: f32, down: f32) -> u8 {
        self.blend(channel, taps, [1.0; 4], right, down)
    }

    fn border(&self, source: ImageView<'_>, x: f32, y: f32) -> Option<[u8; C]> {
        let Size { height, width } = source.size();
        if !(x > -1.0 && x < width as f32 && y > -1.0 && y < height as f32) {
            return None;
        }
        let (column, row) = (x.floor(), y.floor());
        let pixel = |column: i64, row: i64| {
            let (column, row) = (usize::try_from(column).ok()?, usize::try_from(row).ok()?);
            (column < width && row < height).then(|| source.row(row)[column * C..].first_chunk())?
        };
        let corners = [(0, 0), (1, 0), (0, 1), (1, 1)];
        let taps = corners.map(|(i, j)| pixel(column as i64 + i, row as i64 + j));
        let inside = taps.map(|tap| if tap.is_some() { 1.0 } else { 0.0 });
        Some(std::array::from_fn(|channel| {
            let taps = taps.map(|tap: Option<&[u8; C]>| tap.map_or(0, |tap| tap[channel]));
            self.blend(channel, taps, inside, x - column, y - row)
        }))
    }
}

/// Pillow's `BILINEAR` in f64, which repeats the image's border and cuts the result.
struct Pillow([f64; 6]);

impl<const C: usize> Rule<C> for Pillow {
    type Real = f64;
    const CENTRE: f64 = 0.5;

    fn locate(&self, level: Level, y: usize, [x_line, y_line]: [&mut [f64]; 2]) {
        let [a, b, c, d, e, f] = self.0;
        for (line, [a, b, c]) in [(x_line, [a, b, c]), (y_line, [d, e, f])] {
            simd::run(level, Place { line, column: a, row: b * (y as f64 + 0.5), constant: c });
        }
    }

    #[inline(always)]
    fn sum(&self, _: usize, taps: [u8; 4], right: f64, down: f64) -> u8 {
        let between = |a: f64, b: f64, share: f64| a + (b - a) * share;
        let [a, b, c, d] = taps.map(f64::from);
        between(between(a, b, right), between(c, d, right), down).whole() as u8
    }

    fn border(&self, source: ImageView<'_>, x: f64, y: f64) -> Option<[u8; C]> {
        let Size { height, width } = source.size();
        if !(x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64) {
            return None;
        }
        let (x, y) = (x - 0.5, y - 0.5);
        let (column, row) = (x.floor(), y.floor());
        let pixel = |column: f64, row: f64| -> &[u8] {
            let column = (column.max(0.0) as usize).min(width - 1);
            &source.row((row.max(0.0) as usize).min(height - 1))[column * C..]
        };
        let corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)];
        let taps = corners.map(|(i, j)| pixel(column + i, row + j));
        Some(std::array::from_fn(|channel| {
            let taps = taps.map(|tap| tap[channel]);
            Rule::<C>::sum(self, channel, taps, x - column, y - row)
        }))
    }
}

/// Pillow's coordinates: (0, 0) is the corner of the first pixel.
pub(super) struct Place<'a> {
    pub(super) line: &'a mut [f64],
    pub(super) column: f64,
    pub(super) row: f64,
    pub(super) constant: f64,
}

impl Kernel for Place<'_> {
    #[inline(always)]
    fn run(self) {
        for (x, to) in (0i32..).zip(self.line) {
            *to = self.column * (f64::from(x) + 0.5) + self.row + self.constant;
        }
    }
}

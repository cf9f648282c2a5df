//! Bicubic sampling, Pillow's alone: cubics through four pixels a side (Keys' kernel with a = -1) in f64, columns first,
//! the image's border repeated, the result cut.
//!
//! Where a row of the result lies in one row of the source, as after a shear or a shift along x, the second cubic is
//! the value itself; the same holds for columns. Those maps need four pixels instead of sixteen.

use std::slice::ChunksExactMut;

use super::bilinear::{BLOCK, Place, Real};
use super::{Lines, resized, span};
use crate::augment::plan::Affine;
use crate::image::{ImageView, Size};
use crate::line::interleave;
use crate::simd::{self, Kernel, Level};

pub(super) fn draw<const C: usize>(
    level: Level,
    source: ImageView<'_>,
    map: &Affine,
    fill: [u8; C],
    lines: &mut Lines,
    target: ChunksExactMut<'_, u8>,
) {
    let Size { height, width } = source.size();
    let Lines { double, columns, rows, taps, planes, .. } = lines;
    let [a, b, c, d, e, f] = map.inverse;
    for (y, row) in target.enumerate() {
        let to = row.as_chunks_mut::<C>().0;
        // Blocks may reach over the end.
        let padded = to.len() + BLOCK;
        let [x_line, y_line] = double.each_mut().map(|line| resized(line, padded));
        for (line, [column, row, constant]) in [(&mut *x_line, [a, b, c]), (y_line, [d, e, f])] {
            let row = row * (y as f64 + 0.5);
            simd::run(level, Place { line, column, row, constant });
        }
        let (x_line, y_line) = (&*x_line, &*y_line);
        let need = Need::of(map, y);
        let inside = |place: f64, length: usize, before: f64, after: f64| {
            let place = place - 0.5;
            place >= before && place < length as f64 - after
        };
        let reach = |lone: bool| if lone { (0.0, 0.0) } else { (1.0, 2.0) };
        let (across, down) = (reach(need == Need::Column), reach(need == Need::Row));
        let (start, end) = span(to.len(), |x| {
            inside(x_line[x], width, across.0, across.1)
                && inside(y_line[x], height, down.0, down.1)
        });
        for x in (0..start).chain(end..to.len()) {
            to[x] = border(source, x_line[x], y_line[x]).unwrap_or(fill);
        }
        if start == end {
            continue;
        }
        let padded = (end - start).next_multiple_of(BLOCK);
        let coordinates = [x_line, y_line].map(|line| &line[start..start + padded]);
        let (columns, rows) = (resized(columns, padded), resized(rows, padded));
        for (line, to, length, (before, after)) in [
            (coordinates[0], &mut *columns, width, across),
            (coordinates[1], &mut *rows, height, down),
        ] {
            // What blocks reach over the end stays inside the image.
            let most = (length as f64 - after - 1.0).max(before);
            simd::run(level, Whole { line, least: before, most, to });
        }
        let views = planes.each_mut().map(|plane| resized(plane, padded));
        let [right, down] = coordinates;
        match need {
            Need::Row => {
                let taps = gather::<4, 1, 4, C>(source, columns, rows, taps);
                simd::run(level, Line::<C> { along: right, near: columns, taps, planes: views });
            }
            Need::Column => {
                let taps = gather::<1, 4, 4, C>(source, columns, rows, taps);
                simd::run(level, Line::<C> { along: down, near: rows, taps, planes: views });
            }
            Need::All => {
                let taps = gather::<4, 4, 16, C>(source, columns, rows, taps);
                simd::run(level, Square::<C> { right, down, columns, rows, taps, planes: views });
            }
        }
        let to = &mut to[start..end];
        let length = to.len();
        interleave(level, C, |c| &planes[c][..length], to.as_flattened_mut());
    }
}

/// The pixels around a coordinate that have a part in its value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Four of one row: the coordinate lies in the middle of the row.
    Row,
    /// Four of one column.
    Column,
    /// Sixteen.
    All,
}

impl Need {
    fn of(map: &Affine, y: usize) -> Self {
        let [a, b, c, d, e, f] = map.inverse;
        let middle = |place: f64| (place - 0.5).fract() == 0.0;
        if d == 0.0 && middle(e * (y as f64 + 0.5) + f) {
            Self::Row
        } else if a - 1.0 == 0.0 && b == 0.0 && c.fract() == 0.0 {
            Self::Column
        } else {
            Self::All
        }
    }
}

/// The pixel at or before each coordinate, not before `least` and not behind `most`.
struct Whole<'a> {
    line: &'a [f64],
    least: f64,
    most: f64,
    to: &'a mut [i32],
}

impl Kernel for Whole<'_> {
    #[inline(always)]
    fn run(self) {
        for (&place, to) in self.line.iter().zip(self.to) {
            let place = place - 0.5;
            // Not a number becomes the least too.
            let place = if place > self.least { place } else { self.least };
            *to = (if place < self.most { place } else { self.most }).whole();
        }
    }
}

/// Of each block of places the same tap of all its places, and so on.
type Taps<const COUNT: usize> = [[u32; BLOCK]; COUNT];

/// Writes the `W` x `H` pixels around each place, each as 32 bits of which the low ones are its channels. `W` and `H` are
/// 4, or 1 for the pixel itself; `COUNT` is their product.
fn gather<'a, const W: usize, const H: usize, const COUNT: usize, const C: usize>(
    source: ImageView<'_>,
    columns: &[i32],
    rows: &[i32],
    taps: &'a mut Vec<[u32; BLOCK]>,
) -> &'a [Taps<COUNT>] {
    let (bytes, stride) = source.bytes();
    let (columns, rows) = (columns.as_chunks::<BLOCK>().0, rows.as_chunks::<BLOCK>().0);
    let taps = resized(taps, COUNT * columns.len()).as_chunks_mut::<COUNT>().0;
    let first = |at: i32, taps: usize| at as usize - usize::from(taps == 4);
    for ((columns, rows), taps) in columns.iter().zip(rows).zip(&mut *taps) {
        for j in 0..BLOCK {
            let place = first(rows[j], H) * stride + first(columns[j], W) * C;
            for down in 0..H {
                let rest = bytes.get(place + down * stride..).unwrap_or_default();
                let padded;
                let piece = if let Some(piece) = rest.first_chunk() {
                    piece
                } else {
                    padded = last(rest);
                    &padded
                };
                for across in 0..W {
                    taps[down * W + across][j] = tap(piece, C * across);
                }
            }
        }
    }
    taps
}

#[inline(always)]
fn tap(piece: &[u8; 16], place: usize) -> u32 {
    let bytes = piece.get(place..place + 4).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |&bytes| u32::from_le_bytes(bytes))
}

/// The last bytes of an image.
#[cold]
fn last(rest: &[u8]) -> [u8; 16] {
    let mut piece = [0; 16];
    piece.iter_mut().zip(rest).for_each(|(to, &byte)| *to = byte);
    piece
}

/// A cubic's value at `at` from the second of four values to the third, in Pillow's order.
#[inline(always)]
fn cubic([a, b, c, d]: [f64; 4], at: f64) -> f64 {
    let (p2, p3, p4) = (-a + c, 2.0 * (a - b) + c - d, -a + b - c + d);
    b + at * (p2 + at * (p3 + at * p4))
}

/// The same for one channel of a block of pixels, whose differences are whole.
#[inline(always)]
fn cubics(taps: &Taps<4>, channel: usize, at: &[f64; BLOCK]) -> [f64; BLOCK] {
    let mut parts = [[0i32; BLOCK]; 4];
    for j in 0..BLOCK {
        let value = |tap: usize| (taps[tap][j] >> (8 * channel) & 0xff) as i32;
        let [a, b, c, d] = [value(0), value(1), value(2), value(3)];
        parts[0][j] = b;
        parts[1][j] = c - a;
        parts[2][j] = 2 * (a - b) + c - d;
        parts[3][j] = b - a - c + d;
    }
    let mut values = [0.0; BLOCK];
    for j in 0..BLOCK {
        let part = |power: usize| f64::from(parts[power][j]);
        values[j] = part(0) + at[j] * (part(1) + at[j] * (part(2) + at[j] * part(3)));
    }
    values
}

#[inline(always)]
fn cut(value: f64) -> u8 {
    let value = if value > 0.0 { value } else { 0.0 };
    (if value < 255.0 { value } else { 255.0 }).whole() as u8
}

/// The same for a block, in loops that become vectors.
#[inline(always)]
fn cut_block(values: &[f64; BLOCK], to: &mut [u8; BLOCK]) {
    let mut near = [0i32; BLOCK];
    for (near, &value) in near.iter_mut().zip(values) {
        let value = if value > 0.0 { value } else { 0.0 };
        *near = (if value < 255.0 { value } else { 255.0 }).whole();
    }
    for (to, near) in to.iter_mut().zip(near) {
        *to = near as u8;
    }
}

/// How far each coordinate of a block lies behind the middle of its pixel.
#[inline(always)]
fn behind(places: &[f64; BLOCK], pixels: &[i32; BLOCK]) -> [f64; BLOCK] {
    let mut behind = [0.0; BLOCK];
    for j in 0..BLOCK {
        behind[j] = places[j] - 0.5 - f64::from(pixels[j]);
    }
    behind
}

/// Cubics through four pixels of one row or one column.
struct Line<'a, const C: usize> {
    along: &'a [f64],
    near: &'a [i32],
    taps: &'a [Taps<4>],
    planes: [&'a mut [u8]; 3],
}

impl<const C: usize> Kernel for Line<'_, C> {
    #[inline(always)]
    fn run(self) {
        let places = self.along.as_chunks().0.iter().zip(self.near.as_chunks().0);
        let [r, g, b] = self.planes.map(|plane| plane.as_chunks_mut().0);
        let planes = r.iter_mut().zip(g).zip(b);
        for (((along, near), taps), ((r, g), b)) in places.zip(self.taps).zip(planes) {
            let at = behind(along, near);
            cut_block(&cubics(taps, 0, &at), r);
            if C == 3 {
                cut_block(&cubics(taps, 1, &at), g);
                cut_block(&cubics(taps, 2, &at), b);
            }
        }
    }
}

/// Cubics through four rows' cubics.
struct Square<'a, const C: usize> {
    right: &'a [f64],
    down: &'a [f64],
    columns: &'a [i32],
    rows: &'a [i32],
    taps: &'a [Taps<16>],
    planes: [&'a mut [u8]; 3],
}

impl<const C: usize> Kernel for Square<'_, C> {
    #[inline(always)]
    fn run(self) {
        let across = self.right.as_chunks().0.iter().zip(self.columns.as_chunks().0);
        let down = self.down.as_chunks().0.iter().zip(self.rows.as_chunks().0);
        let [r, g, b] = self.planes.map(|plane| plane.as_chunks_mut().0);
        let planes = r.iter_mut().zip(g).zip(b);
        for (((across, down), taps), ((r, g), b)) in across.zip(down).zip(self.taps).zip(planes) {
            let (right, down) = (behind(across.0, across.1), behind(down.0, down.1));
            square(taps, 0, &right, &down, r);
            if C == 3 {
                square(taps, 1, &right, &down, g);
                square(taps, 2, &right, &down, b);
            }
        }
    }
}

/// One channel of a block of pixels. Written out: loops over rows and channels do not become vectors.
#[inline(always)]
fn square(
    taps: &Taps<16>,
    channel: usize,
    right: &[f64; BLOCK],
    down: &[f64; BLOCK],
    to: &mut [u8; BLOCK],
) {
    let [first, second, third, fourth] = taps.as_chunks::<4>().0 else { return };
    let a = cubics(first, channel, right);
    let b = cubics(second, channel, right);
    let c = cubics(third, channel, right);
    let d = cubics(fourth, channel, right);
    let mut values = [0.0; BLOCK];
    for j in 0..BLOCK {
        values[j] = cubic([a[j], b[j], c[j], d[j]], down[j]);
    }
    cut_block(&values, to);
}

/// A pixel whose neighbours may lie outside; None where it lies outside itself.
fn border<const C: usize>(source: ImageView<'_>, x: f64, y: f64) -> Option<[u8; C]> {
    let Size { height, width } = source.size();
    if !(x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64) {
        return None;
    }
    let (x, y) = (x - 0.5, y - 0.5);
    let (column, row) = (x.floor(), y.floor());
    let clipped = |at: f64, offset: usize, length: usize| {
        ((at + offset as f64 - 1.0).max(0.0) as usize).min(length - 1)
    };
    let columns = [0, 1, 2, 3].map(|offset| clipped(column, offset, width) * C);
    let rows = [0, 1, 2, 3].map(|offset| source.row(clipped(row, offset, height)));
    Some(std::array::from_fn(|c| {
        let cubics =
            rows.map(|row| cubic(columns.map(|column| f64::from(row[column + c])), x - column));
        cut(cubic(cubics, y - row))
    }))
}

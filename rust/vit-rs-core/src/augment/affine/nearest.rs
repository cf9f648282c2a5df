//! Nearest sampling.

use std::slice::ChunksExactMut;

use super::{Grid, Lines, WHOLE, resized, span};
use crate::augment::plan::{Affine, Kernels};
use crate::image::{ImageView, Size};
use crate::simd::{self, Kernel, Level};

pub(super) fn draw<const C: usize>(
    level: Level,
    source: ImageView<'_>,
    kernels: Kernels,
    map: &Affine,
    fill: [u8; C],
    lines: &mut Lines,
    target: ChunksExactMut<'_, u8>,
) {
    let mut walk = match kernels {
        Kernels::Torch => Walk::Torch(Grid::new(source.size(), map)),
        Kernels::Pillow => Walk::pillow(map),
    };
    for (y, row) in target.enumerate() {
        walk.locate(level, y, map.size.width, lines);
        copy(source, &lines.columns, &lines.rows, fill, row.as_chunks_mut().0);
    }
}

/// How the pixels of one row after the other are found.
enum Walk {
    Torch(Grid),
    /// Pillow's, with 16 fractional bits: the row's first pixel, and what a column and a row add; for x and for y.
    Fixed([[i32; 3]; 2]),
    /// Pillow's where that is too small, and where the axes keep their directions.
    Double([[f64; 3]; 2]),
}

impl Walk {
    fn pillow(map: &Affine) -> Self {
        let [a, b, c, d, e, f] = map.inverse;
        let Size { height, width } = map.size;
        let (width, height) = (width as f64, height as f64);
        let corners = [(0.0, 0.0), (width, height), (0.0, height), (width, 0.0)];
        let small = corners.into_iter().all(|(x, y)| {
            (x * a + y * b + c).abs() < 32768.0 && (x * d + y * e + f).abs() < 32768.0
        });
        let axes = [[c + a * 0.5 + b * 0.5, a, b], [f + d * 0.5 + e * 0.5, d, e]];
        if small && !(b == 0.0 && d == 0.0) {
            let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i32;
            Self::Fixed(axes.map(|axis| axis.map(fixed)))
        } else {
            // The order of Pillow's own sum, which differs between its two loops.
            Self::Double([[c + b * 0.5 + a * 0.5, a, b], [f + e * 0.5 + d * 0.5, d, e]])
        }
    }

    fn locate(&mut self, level: Level, y: usize, width: usize, lines: &mut Lines) {
        let places = [&mut lines.columns, &mut lines.rows];
        match self {
            Self::Torch(grid) => {
                let [x_line, y_line] = lines.single.each_mut().map(|line| resized(line, width));
                grid.locate(level, y, [x_line, y_line]);
                let lines = [&*x_line, y_line].into_iter().zip(places);
                for ((line, to), changes) in lines.zip(grid.changes(y)) {
                    if changes {
                        simd::run(level, Round { line, to: resized(to, width) });
                    }
                }
            }
            Self::Fixed(axes) => {
                for (axis, to) in axes.iter_mut().zip(places) {
                    let [start, step, down] = *axis;
                    simd::run(level, Fixed { start, step, to: resized(to, width) });
                    axis[0] = start.wrapping_add(down);
                }
            }
            Self::Double(axes) => {
                for (axis, to) in axes.iter_mut().zip(places) {
                    let [start, step, down] = *axis;
                    // A line that is the same for all rows was found for the first one.
                    if y == 0 || down != 0.0 {
                        let mut place = start;
                        for to in resized(to, width) {
                            *to = if place < 0.0 { -1 } else { place as i32 };
                            place += step;
                        }
                    }
                    axis[0] = start + down;
                }
            }
        }
    }
}

/// Halves to even.
struct Round<'a> {
    line: &'a [f32],
    to: &'a mut [i32],
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run(self) {
        for (&place, to) in self.line.iter().zip(self.to) {
            // Coordinates outside any image need not be right.
            let place = place.clamp(-2.0, 4_194_000.0);
            *to = (place + WHOLE).to_bits() as i32 - WHOLE.to_bits() as i32;
        }
    }
}

struct Fixed<'a> {
    start: i32,
    step: i32,
    to: &'a mut [i32],
}

impl Kernel for Fixed<'_> {
    #[inline(always)]
    fn run(self) {
        for (x, to) in (0i32..).zip(self.to) {
            *to = self.start.wrapping_add(self.step.wrapping_mul(x)) >> 16;
        }
    }
}

/// Writes the pixels that lie at these columns and rows of the source.
fn copy<const C: usize>(
    source: ImageView<'_>,
    columns: &[i32],
    rows: &[i32],
    fill: [u8; C],
    to: &mut [[u8; C]],
) {
    let (bytes, stride) = source.bytes();
    let Size { height, width } = source.size();
    let (columns, rows) = (&columns[..to.len()], &rows[..to.len()]);
    let is_inside = |x| (columns[x] as usize) < width && (rows[x] as usize) < height;
    let (start, end) = span(to.len(), is_inside);
    to[..start].fill(fill);
    to[end..].fill(fill);
    let (to, columns, rows) = (&mut to[start..end], &columns[start..end], &rows[start..end]);
    let offset = |column: i32, row: i32| {
        (row as usize).wrapping_mul(stride).wrapping_add((column as usize).wrapping_mul(C))
    };
    let (&[first, ..], &[row, ..]) = (columns, rows) else { return };
    // A row of a shear or shift along x is a piece of a row.
    let others = columns
        .iter()
        .zip(rows)
        .zip(first..)
        .fold(0, |others, ((&column, &at), next)| others | (column ^ next) | (at ^ row));
    if others == 0 {
        let start = offset(first, row);
        if let Some(piece) = bytes.get(start..start + to.len() * C) {
            to.as_flattened_mut().copy_from_slice(piece);
            return;
        }
    }
    let to = to.as_flattened_mut();
    for (x, (&column, &row)) in columns.iter().zip(rows).enumerate() {
        let (place, at) = (offset(column, row), x * C);
        // Four bytes are faster than three; the fourth is written again by the next pixel.
        match (bytes.get(place..place.wrapping_add(4)), to.get_mut(at..at + 4)) {
            (Some(pixel), Some(to)) if C == 3 => to.copy_from_slice(pixel),
            _ => {
                let pixel = bytes.get(place..place.wrapping_add(C)).unwrap_or(&fill);
                to[at..at + C].copy_from_slice(pixel);
            }
        }
    }
}

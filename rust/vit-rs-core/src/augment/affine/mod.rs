//! Turns, shears, scalings and shifts: every pixel of the result is read where the inverse map says.
//!
//! A row is done at once, in simple loops: where its pixels lie, which of them are inside, and for bilinear sampling the
//! four pixels around each and their weighted sum. Coordinates are rounded as the library does whose pixels are wanted:
//! torch's affine grid and `grid_sample` in f32, Pillow's `Image.transform` in 16-bit fixed point or f64.

mod bicubic;
mod bilinear;
mod nearest;

use super::plan::{Affine, Kernels, Sampling};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Size};
use crate::simd::{self, Kernel, Level};

/// Around this number floats are whole: adding it rounds halves to even, and the low bits are the result.
const WHOLE: f32 = 12_582_912.0;

/// The lines of a row, kept from one image to the next.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Where each pixel of the row is read, in torch's or Pillow's own numbers.
    single: [Vec<f32>; 2],
    double: [Vec<f64>; 2],
    /// The pixel read, or the upper left one of four.
    columns: Vec<i32>,
    rows: Vec<i32>,
    /// The upper and the lower two of four pixels.
    pairs: [Vec<u64>; 2],
    /// Of a block of places one of four or sixteen pixels around each.
    taps: Vec<[u32; bilinear::BLOCK]>,
    planes: [Vec<u8>; 3],
}

/// Longest side of an image that can be mapped: f32 holds its coordinates, and their halves, exactly.
const LONGEST: usize = 1 << 21;

/// Refuses images with sides whose coordinates f32 does not hold.
pub(super) fn check(size: Size) -> Result<()> {
    if size.height.max(size.width) > LONGEST {
        return Err(Error::sample(format!(
            "affine maps need images of at most {LONGEST} pixels a side, got {size}"
        )));
    }
    Ok(())
}

pub(super) fn affine(
    level: Level,
    source: ImageView<'_>,
    kernels: Kernels,
    map: &Affine,
    lines: &mut Lines,
    target: &mut ImageBuf,
) {
    let channels = source.channels();
    let pixels = target.reshape(map.size, channels);
    let rows = pixels.chunks_exact_mut((map.size.width * channels).max(1));
    let fill = map.fill.unwrap_or_default();
    match (map.sampling, channels) {
        (Sampling::Nearest, 3) => nearest::draw(level, source, kernels, map, fill, lines, rows),
        (Sampling::Nearest, _) => {
            nearest::draw(level, source, kernels, map, [fill[0]], lines, rows);
        }
        (Sampling::Bilinear, 3) => bilinear::draw(level, source, kernels, map, fill, lines, rows),
        (Sampling::Bilinear, _) => {
            bilinear::draw(level, source, kernels, map, [fill[0]], lines, rows);
        }
        (Sampling::Bicubic, 3) => bicubic::draw(level, source, map, fill, lines, rows),
        (Sampling::Bicubic, _) => bicubic::draw(level, source, map, [fill[0]], lines, rows),
    }
}

/// The grid of torchvision's `_affine_grid` and the coordinates that torch's `grid_sample` makes of it: (0, 0) is the
/// centre of the first pixel.
pub(super) struct Grid {
    /// For x and for y: factors of the column and of the row, a constant, and half the source's length.
    axes: [([f32; 3], f64); 2],
    /// Column and row of the first pixel, counted from the result's centre.
    first: (f32, f32),
}

impl Grid {
    pub(super) fn new(source: Size, map: &Affine) -> Self {
        let [a, b, c, d, e, f] = map.inverse;
        let (width, height) = (map.size.width as f64, map.size.height as f64);
        let axis = |[x, y, constant]: [f64; 3], length: usize| {
            let half = 0.5 * length as f64;
            let centred = constant + x * (0.5 * width) + y * (0.5 * height) - half;
            ([x, y, centred].map(|value| value as f32 / half as f32), half)
        };
        Self {
            axes: [axis([a, b, c], source.width), axis([d, e, f], source.height)],
            first: ((1.0 - width as f32) * 0.5, (1.0 - height as f32) * 0.5),
        }
    }

    /// Whether row `y` needs a line of its own for each axis: one that is the same for all was found for the first.
    fn changes(&self, y: usize) -> [bool; 2] {
        self.axes.map(|([_, row, _], _)| y == 0 || row != 0.0)
    }

    /// Coordinates of row `y`, where the lines hold those of the row before it.
    pub(super) fn locate(&self, level: Level, y: usize, lines: [&mut [f32]; 2]) {
        let axes = self.axes.iter().zip(self.changes(y));
        for (line, (&([column, row, constant], half), changes)) in lines.into_iter().zip(axes) {
            if !changes {
                continue;
            }
            let row = (y as f32 + self.first.1) * row;
            simd::run(level, Locate { line, first: self.first.0, column, row, constant, half });
        }
    }
}

struct Locate<'a> {
    line: &'a mut [f32],
    first: f32,
    column: f32,
    row: f32,
    constant: f32,
    half: f64,
}

impl Kernel for Locate<'_> {
    #[inline(always)]
    fn run(self) {
        for (x, to) in (0i32..).zip(self.line) {
            // In -1..=1 from border to border.
            let place = (x as f32 + self.first) * self.column + self.row + self.constant;
            // One rounding for product and difference, as torch's kernel is compiled; the product is exact in f64.
            *to = (f64::from(place + 1.0) * self.half - 0.5) as f32;
        }
    }
}

/// The first and the end of the pixels of a row for which `inside` holds; those between have it too, because
/// coordinates only rise or only fall along a row.
fn span(length: usize, inside: impl Fn(usize) -> bool) -> (usize, usize) {
    let start = (0..length).position(&inside).unwrap_or(length);
    let end = (start..length).rposition(inside).map_or(start, |last| start + last + 1);
    (start, end)
}

fn resized<T: Copy + Default>(line: &mut Vec<T>, length: usize) -> &mut [T] {
    if line.len() < length {
        line.resize(length, T::default());
    }
    &mut line[..length]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn drawn(level: Level, source: ImageView<'_>, kernels: Kernels, map: &Affine) -> Vec<u8> {
        let mut target = ImageBuf::default();
        affine(level, source, kernels, map, &mut Lines::default(), &mut target);
        let view = target.view().unwrap();
        (0..map.size.height).flat_map(|y| view.row(y).to_vec()).collect()
    }

    /// What bilinear sampling is, in f64; the value, and how much of it comes from inside.
    fn bilinear(source: ImageView<'_>, x: f64, y: f64, channel: usize) -> (f64, f64) {
        let Size { height, width } = source.size();
        let (left, top) = ((x - 0.5).floor(), (y - 0.5).floor());
        let (mut sum, mut inside) = (0.0, 0.0);
        for (i, j) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
            let (column, row) = (left + i, top + j);
            let weight = (1.0 - (x - 0.5 - column).abs()) * (1.0 - (y - 0.5 - row).abs());
            if column >= 0.0 && column < width as f64 && row >= 0.0 && row < height as f64 {
                let value = source.row(row as usize)[column as usize * source.channels() + channel];
                sum += weight * f64::from(value);
                inside += weight;
            }
        }
        (sum, inside)
    }

    /// Pillow's bicubic sampling, pixel by pixel; None outside.
    fn bicubic(source: ImageView<'_>, x: f64, y: f64, channel: usize) -> Option<u8> {
        let Size { height, width } = source.size();
        if !(x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64) {
            return None;
        }
        let (column, row) = ((x - 0.5).floor(), (y - 0.5).floor());
        let cubic = |v: [f64; 4], d: f64| {
            let (p2, p3, p4) =
                (-v[0] + v[2], 2.0 * (v[0] - v[1]) + v[2] - v[3], -v[0] + v[1] - v[2] + v[3]);
            v[1] + d * (p2 + d * (p3 + d * p4))
        };
        let clip = |at: f64, length: usize| at.clamp(0.0, length as f64 - 1.0) as usize;
        let tap = |i: usize, j: usize| {
            let at = clip(column + i as f64 - 1.0, width) * source.channels() + channel;
            f64::from(source.row(clip(row + j as f64 - 1.0, height))[at])
        };
        let rows = [0, 1, 2, 3].map(|j| cubic([0, 1, 2, 3].map(|i| tap(i, j)), x - 0.5 - column));
        Some(cubic(rows, y - 0.5 - row).clamp(0.0, 255.0) as u8)
    }

    fn maps() -> impl Strategy<Value = [f64; 6]> {
        let number = prop_oneof![-2.0..2.0f64, Just(0.0), Just(1.0), Just(-1.0)];
        let shift = prop_oneof![-30.0..50.0f64, Just(0.0), Just(7.5)];
        (proptest::array::uniform4(number), proptest::array::uniform2(shift))
            .prop_map(|([a, b, d, e], [c, f])| [a, b, c, d, e, f])
    }

    proptest! {
        #[test]
        fn every_level_is_the_plain_formula(
            inverse in maps(),
            sizes in proptest::array::uniform4(1usize..40),
            rgb: bool,
            fill in proptest::option::of(proptest::array::uniform3(any::<u8>())),
            pixels in proptest::collection::vec(any::<u8>(), 40 * 45 * 3),
        ) {
            let [height, width, out_height, out_width] = sizes;
            let channels = if rgb { 3 } else { 1 };
            // Rows further apart than they are long.
            let stride = (width + 5) * channels;
            let source = ImageView::new(&pixels, Size::new(height, width), channels, stride).unwrap();
            let size = Size::new(out_height, out_width);
            for sampling in [Sampling::Nearest, Sampling::Bilinear] {
                for kernels in [Kernels::Torch, Kernels::Pillow] {
                    let map = Affine { inverse, size, sampling, fill };
                    let result = drawn(Level::best(), source, kernels, &map);
                    for &level in Level::all() {
                        prop_assert_eq!(&drawn(level, source, kernels, &map), &result);
                    }
                    for (at, &value) in result.iter().enumerate() {
                        let (pixel, channel) = (at / channels, at % channels);
                        let x = (pixel % out_width) as f64 + 0.5;
                        let y = (pixel / out_width) as f64 + 0.5;
                        let [a, b, c, d, e, f] = inverse;
                        let (x, y) = (a * x + b * y + c, d * x + e * y + f);
                        let outside = fill.map_or(0, |fill| fill[channel]);
                        // Rounding may go either way on a border between two pixels; fixed point is coarser.
                        let near = |place: f64| (place - place.round()).abs() < 2e-3;
                        if sampling == Sampling::Nearest {
                            let is_inside = x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64;
                            let expected = if is_inside {
                                source.row(y as usize)[x as usize * channels + channel]
                            } else {
                                outside
                            };
                            prop_assert!(near(x) || near(y) || value == expected, "{x} {y}");
                        } else if x >= 0.5 && x <= width as f64 - 0.5
                            && y >= 0.5 && y <= height as f64 - 0.5
                        {
                            // Rounded, or cut.
                            let (sum, _) = bilinear(source, x, y, channel);
                            let most = if kernels == Kernels::Torch { 0.51 } else { 1.01 };
                            prop_assert!((f64::from(value) - sum).abs() < most, "{value} {sum} {x} {y}");
                        } else if kernels == Kernels::Torch {
                            let (sum, inside) = bilinear(source, x, y, channel);
                            let expected = fill.map_or(sum, |_| {
                                let outside = f64::from(outside);
                                (sum - outside) * inside + outside
                            });
                            prop_assert!((f64::from(value) - expected).abs() < 0.55, "{value} {expected} {x} {y}");
                        }
                    }
                }
            }
        }

        #[test]
        fn bicubic_is_pillows_formula_at_every_level(
            inverse in maps(),
            sizes in proptest::array::uniform4(1usize..40),
            rgb: bool,
            pixels in proptest::collection::vec(any::<u8>(), 40 * 45 * 3),
        ) {
            let [height, width, out_height, out_width] = sizes;
            let channels = if rgb { 3 } else { 1 };
            let stride = (width + 5) * channels;
            let source = ImageView::new(&pixels, Size::new(height, width), channels, stride).unwrap();
            let (size, sampling) = (Size::new(out_height, out_width), Sampling::Bicubic);
            let map = Affine { inverse, size, sampling, fill: Some([7, 8, 9]) };
            let [a, b, c, d, e, f] = inverse;
            let mut expected = Vec::new();
            for y in 0..out_height {
                for x in 0..out_width {
                    let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
                    let (x, y) = (a * x + b * y + c, d * x + e * y + f);
                    let bicubic = |channel| bicubic(source, x, y, channel);
                    expected.extend((0..channels).map(|c| bicubic(c).unwrap_or(7 + c as u8)));
                }
            }
            for kernels in [Kernels::Torch, Kernels::Pillow] {
                for &level in Level::all() {
                    prop_assert_eq!(&drawn(level, source, kernels, &map), &expected);
                }
            }
        }

        #[test]
        fn no_numbers_panic(
            inverse in proptest::array::uniform6(prop_oneof![
                any::<f64>(), Just(f64::NAN), Just(f64::INFINITY), Just(-1e300), Just(0.0), Just(1e9)
            ]),
            side in 1usize..20,
        ) {
            let pixels = vec![9; side * side * 3];
            let source = ImageView::new(&pixels, Size::new(side, side), 3, side * 3).unwrap();
            for sampling in [Sampling::Nearest, Sampling::Bilinear, Sampling::Bicubic] {
                for kernels in [Kernels::Torch, Kernels::Pillow] {
                    let map = Affine { inverse, size: Size::new(7, 9), sampling, fill: None };
                    drawn(Level::best(), source, kernels, &map);
                }
            }
        }
    }
}

//! Photographs: antialiased resize of 8-bit images, bit-equal to torch's `F.interpolate(antialias=True)` on uint8 or to
//! Pillow's `Image.resize`.
//!
//! As there, the horizontal pass comes first (but see [`Rounding::Pillow`]), and the first pass is rounded to 8 bits
//! before the second.

mod passes;
mod weights;

use super::taps::{Axis, Filter};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Size};
use crate::simd::Level;
use passes::{Horizontal, Vertical};

/// How weights become whole numbers. The results differ by one level here and there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// torch's kernel for uint8: 16 bits, as many of them fractional as the largest weight of the axis allows.
    Torch,
    /// Pillow's `Resample.c`: 22 fractional bits. As in Pillow since version 13, the vertical pass comes first where the
    /// height loses more than twice as many pixels as the width.
    Pillow,
    /// The same as in Pillow before version 13: the vertical pass comes first where the height shrinks and is more than
    /// a hundred times the width.
    Pillow12,
}

/// Rows between the passes that are kept at once, if the vertical weights do not need more. They stay in the caches:
/// measured to pay from about 1000 x 1800 pixels on (1.2 times), and to cost nothing below.
const BAND: usize = 32;

/// The weights and the memory of a resize, kept from one image to the next.
#[derive(Debug)]
pub struct Resizer {
    level: Level,
    horizontal: Horizontal,
    vertical: Vertical,
    /// Rows between the passes.
    between: Vec<u8>,
}

impl Default for Resizer {
    fn default() -> Self {
        Self::at(Level::best())
    }
}

impl Resizer {
    fn at(level: Level) -> Self {
        let (horizontal, vertical) = (Horizontal::default(), Vertical::default());
        Self { level, horizontal, vertical, between: Vec::new() }
    }

    /// Resizes `source` (1, 3 or 4 channels, all alike) to `size` into `target`.
    ///
    /// An axis that keeps its size is left alone. Equal bytes on every CPU.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty size or another number of channels.
    pub fn resize(
        &mut self,
        source: ImageView<'_>,
        size: Size,
        filter: Filter,
        rounding: Rounding,
        target: &mut ImageBuf,
    ) -> Result<()> {
        let (channels, from) = (source.channels(), source.size());
        if !matches!(channels, 1 | 3 | 4) {
            return Err(Error::argument(format!("images have 1, 3 or 4 channels, got {channels}")));
        }
        let axis = |input, output| Axis::antialiased(input, output, filter);
        let (narrowed, flattened) = (size.width != from.width, size.height != from.height);
        if narrowed {
            self.horizontal.prepare(self.level, axis(from.width, size.width), rounding)?;
        }
        if flattened {
            self.vertical.prepare(self.level, axis(from.height, size.height), rounding)?;
        }
        let row = size.width * channels;
        let target = target.reshape(size, channels);
        match (narrowed, flattened) {
            (true, true) if is_vertical_first(rounding, from, size) => {
                self.vertical_first(source, row, target);
            }
            (true, true) => self.horizontal_first(source, row, target),
            (true, false) => {
                for (y, target) in target.chunks_exact_mut(row).enumerate() {
                    self.horizontal.run(self.level, channels, source.from_row(y), target);
                }
            }
            (false, true) => {
                for (y, target) in target.chunks_exact_mut(row).enumerate() {
                    let rows = source.from_row(self.vertical.rows(y).start);
                    self.vertical.run(self.level, y, rows, source.stride(), target);
                }
            }
            (false, false) => {
                for (y, target) in target.chunks_exact_mut(row).enumerate() {
                    target.copy_from_slice(source.row(y));
                }
            }
        }
        Ok(())
    }

    /// A row of the vertical pass becomes a row of the result.
    fn vertical_first(&mut self, source: ImageView<'_>, row: usize, target: &mut [u8]) {
        let channels = source.channels();
        let wide = source.size().width * channels;
        // As long as the horizontal pass can use.
        let length = wide.max(self.horizontal.reach());
        if self.between.len() < length {
            self.between.resize(length, 0);
        }
        for (y, target) in target.chunks_exact_mut(row).enumerate() {
            let rows = source.from_row(self.vertical.rows(y).start);
            let between = &mut self.between[..wide];
            self.vertical.run(self.level, y, rows, source.stride(), between);
            self.horizontal.run(self.level, channels, &self.between, target);
        }
    }

    /// Both passes in turns: a band of rows is made, used, and gives way to the next one.
    fn horizontal_first(&mut self, source: ImageView<'_>, row: usize, target: &mut [u8]) {
        let height = source.size().height;
        let capacity = BAND.max(2 * self.vertical.most_rows()).min(height);
        if self.between.len() < capacity * row {
            self.between.resize(capacity * row, 0);
        }
        let band = &mut self.between[..capacity * row];
        // The rows that the band holds.
        let (mut begin, mut end) = (0, 0);
        for (y, target) in target.chunks_exact_mut(row).enumerate() {
            let rows = self.vertical.rows(y);
            if rows.end > end {
                // Supports overlap, and never go back.
                let first = rows.start.clamp(begin, end);
                band.copy_within((first - begin) * row..(end - begin) * row, 0);
                let kept = end - first;
                let made = (capacity - kept).min(height - end);
                let places = band[kept * row..].chunks_exact_mut(row).take(made);
                for (y, place) in (end..).zip(places) {
                    self.horizontal.run(self.level, source.channels(), source.from_row(y), place);
                }
                (begin, end) = (first, end + made);
            }
            self.vertical.run(self.level, y, &band[(rows.start - begin) * row..], row, target);
        }
    }
}

/// The order of the passes.
fn is_vertical_first(rounding: Rounding, from: Size, to: Size) -> bool {
    let less = |before: usize, after: usize| before as i128 - after as i128;
    let (rows, columns) = (less(from.height, to.height), less(from.width, to.width));
    rows > 0
        && match rounding {
            Rounding::Torch => false,
            Rounding::Pillow => rows > 2 * columns,
            Rounding::Pillow12 => from.height > from.width.saturating_mul(100),
        }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rng::EpochKey;
    use proptest::prelude::*;

    fn resized(data: &[u8], from: Size, to: Size, filter: Filter) -> Vec<u8> {
        let view = ImageView::new(data, from, 3, from.width * 3).unwrap();
        let mut out = ImageBuf::default();
        Resizer::default().resize(view, to, filter, Rounding::Torch, &mut out).unwrap();
        let view = out.view().unwrap();
        (0..to.height).flat_map(|y| view.row(y).to_vec()).collect()
    }

    fn filters() -> impl Strategy<Value = Filter> {
        prop_oneof![
            Just(Filter::Bilinear),
            Just(Filter::Bicubic { a: -0.5 }),
            Just(Filter::Lanczos3)
        ]
    }

    #[test]
    fn what_cannot_be_resized_is_named() {
        let resize = |channels: usize, to: Size| {
            let data = vec![0; 4 * 4 * channels];
            let view = ImageView::new(&data, Size::new(4, 4), channels, 4 * channels).unwrap();
            let (filter, rounding) = (Filter::Bilinear, Rounding::Torch);
            let mut out = ImageBuf::default();
            Resizer::default().resize(view, to, filter, rounding, &mut out).unwrap_err().to_string()
        };
        assert!(resize(2, Size::new(3, 3)).contains("1, 3 or 4 channels, got 2"));
        assert!(resize(3, Size::new(0, 3)).contains("4 samples to 0"));
        assert!(resize(3, Size::new(3, 0)).contains("4 samples to 0"));
    }

    #[test]
    fn nothing_of_the_image_before_is_left() {
        let mut kept = (Resizer::default(), ImageBuf::default());
        let sizes = [(60, 50), (9, 64), (60, 50), (3, 3), (64, 9), (60, 49), (1, 1)];
        for ((h, w), rounding) in
            sizes.into_iter().zip([Rounding::Torch, Rounding::Pillow].into_iter().cycle())
        {
            for (to, filter) in
                [(Size::new(20, 30), Filter::Bilinear), (Size::new(h, 7), Filter::Lanczos3)]
            {
                let (data, stride) = source(Size::new(h, w), 3, 5, true);
                let view = ImageView::new(&data, Size::new(h, w), 3, stride).unwrap();
                let mut fresh = (Resizer::default(), ImageBuf::default());
                for (resizer, out) in [&mut kept, &mut fresh] {
                    resizer.resize(view, to, filter, rounding, out).unwrap();
                }
                for y in 0..to.height {
                    assert_eq!(kept.1.view().unwrap().row(y), fresh.1.view().unwrap().row(y));
                }
            }
        }
    }

    /// An image inside a larger one, which ends where the image does if `tight`.
    fn source(size: Size, channels: usize, seed: u64, tight: bool) -> (Vec<u8>, usize) {
        let stride = size.width * channels + 7;
        let bytes = if tight { stride * size.height - 7 } else { stride * (size.height + 1) };
        let mut stream = EpochKey::new(seed, 0).stream(0, 0, 0);
        // Extremes next to each other make sums leave the range of a byte.
        let value = |random: u32| {
            if random & 0x100 == 0 { random as u8 } else { -i32::from(random & 1 == 0) as u8 }
        };
        ((0..bytes).map(|_| value(stream.next_u32())).collect(), stride)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn levels_and_plain_loops_give_equal_bytes(
            (h, w, oh, ow) in (1usize..70, 1usize..70, 1usize..70, 1usize..70),
            channels in prop_oneof![Just(1usize), Just(3), Just(4)],
            // Weights that leave 16 bits, and sums that leave 32, among them.
            filter in prop_oneof![filters(), Just(Filter::Bicubic { a: -1000.0 })],
            rounding in prop_oneof![
                Just(Rounding::Torch),
                Just(Rounding::Pillow),
                Just(Rounding::Pillow12)
            ],
            seed: u64,
            tight: bool,
        ) {
            let (data, stride) = source(Size::new(h, w), channels, seed, tight);
            let view = ImageView::new(&data, Size::new(h, w), channels, stride).unwrap();
            let mut results = Level::all().iter().map(|&level| {
                let mut out = ImageBuf::default();
                let mut resizer = Resizer::at(level);
                resizer.resize(view, Size::new(oh, ow), filter, rounding, &mut out).unwrap();
                let out = out.view().unwrap();
                (0..oh).flat_map(|y| out.row(y).to_vec()).collect::<Vec<u8>>()
            });
            let first = results.next().unwrap();
            for other in results {
                prop_assert_eq!(&first, &other);
            }
        }
    }

    proptest! {
        #[test]
        fn constant_stays_constant(h in 1usize..40, w in 1usize..40, oh in 1usize..40, ow in 1usize..40, value: u8, filter in filters()) {
            let out = resized(&vec![value; h * w * 3], Size::new(h, w), Size::new(oh, ow), filter);
            prop_assert!(out.iter().all(|&o| o.abs_diff(value) <= 1));
        }

        #[test]
        fn same_size_is_identity(data in proptest::collection::vec(any::<u8>(), 5 * 7 * 3), filter in filters()) {
            prop_assert_eq!(&resized(&data, Size::new(5, 7), Size::new(5, 7), filter), &data);
        }

        #[test]
        fn mirrored_in_mirrored_out(data in proptest::collection::vec(any::<u8>(), 6 * 9 * 3), ow in 1usize..20, filter in filters()) {
            let mirror = |d: &[u8], w: usize| -> Vec<u8> {
                d.chunks(w * 3).flat_map(|row| row.chunks(3).rev().flatten().copied().collect::<Vec<_>>()).collect()
            };
            let plain = resized(&data, Size::new(6, 9), Size::new(4, ow), filter);
            let other = resized(&mirror(&data, 9), Size::new(6, 9), Size::new(4, ow), filter);
            // Supports are rounded half up, so mirrored taps may differ where an edge lies on a half: one level.
            prop_assert!(plain.iter().zip(mirror(&other, ow)).all(|(a, b)| a.abs_diff(b) <= 1));
        }
    }
}

//! Pillow's `ImageFilter.GaussianBlur`: three box blurs along the rows, then three along the columns, in 24 bits of fixed
//! point, each rounded to bytes (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box
//! filtering", SSVM 2011). The image's border is repeated.

use super::geometry;
use crate::image::{ImageBuf, ImageView};
use crate::simd::{self, Kernel, Level};

const PASSES: usize = 3;

/// Memory of a blur, kept from one image to the next.
#[derive(Debug, Default)]
pub(super) struct BoxBlur {
    /// A row with its borders.
    line: Vec<u8>,
    /// The image before a pass along the columns.
    image: Vec<u8>,
    sums: Vec<u32>,
}

/// A box and the two pixels beside it, which count in part.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Pixels of the box to each side of the middle.
    radius: usize,
    /// Weights of the box's pixels and of those beside it, 2^24 for 1.
    inner: u32,
    outer: u32,
}

impl Window {
    /// For a Gaussian of standard deviation `sigma`; None where it changes nothing.
    fn new(sigma: f32) -> Option<Self> {
        // Each step in the precision that Pillow has there.
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
            / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let radius = whole + part;
        if !(radius.is_finite() && radius > 0.0) {
            return None;
        }
        let inner = ((1 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let radius = radius as usize;
        let pixels = (radius as u32).wrapping_mul(2).wrapping_add(1);
        let outer = (1_u32 << 24).wrapping_sub(pixels.wrapping_mul(inner)) / 2;
        Some(Self { radius, inner, outer })
    }
}

impl BoxBlur {
    /// Writes `source`, blurred with standard deviation `sigma` pixels, to `target`.
    pub(super) fn apply(
        &mut self,
        source: ImageView<'_>,
        sigma: f64,
        level: Level,
        target: &mut ImageBuf,
    ) {
        let (size, channels) = (source.size(), source.channels());
        let Some(window) = Window::new(sigma as f32) else {
            return geometry::copy(source, target);
        };
        let length = size.width * channels;
        self.sums.resize(length, 0);
        for (y, to) in geometry::rows_mut(target, size, channels).enumerate() {
            to.copy_from_slice(source.row(y));
            for _ in 0..PASSES {
                self.line.clear();
                let (first, last) = (&to[..channels], &to[length - channels..]);
                (0..=window.radius).for_each(|_| self.line.extend_from_slice(first));
                self.line.extend_from_slice(to);
                (0..=window.radius).for_each(|_| self.line.extend_from_slice(last));
                let line = &self.line;
                let row = |offset: usize| &line[offset * channels..][..length];
                let sums = &mut self.sums;
                blur(level, window, row, sums, to);
            }
        }
        for _ in 0..PASSES {
            self.image.clear();
            self.image.extend_from_slice(target.values_mut());
            let image = &self.image;
            for (y, to) in geometry::rows_mut(target, size, channels).enumerate() {
                let row = |offset: usize| {
                    let y = (y + offset).saturating_sub(window.radius + 1).min(size.height - 1);
                    &image[y * length..][..length]
                };
                blur(level, window, row, &mut self.sums, to);
            }
        }
    }
}

/// Blurs a row: `rows(i)` has what stands i - radius - 1 pixels before or behind each of its values.
fn blur<'a>(
    level: Level,
    window: Window,
    rows: impl Fn(usize) -> &'a [u8],
    sums: &mut [u32],
    to: &mut [u8],
) {
    sums.fill(0);
    let last = 2 * window.radius + 2;
    for offset in 1..last {
        simd::run(level, Add { row: rows(offset), sums });
    }
    simd::run(level, Weigh { window, beside: [rows(0), rows(last)], sums, to });
}

struct Add<'a> {
    row: &'a [u8],
    sums: &'a mut [u32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run(self) {
        for (sum, &value) in self.sums.iter_mut().zip(self.row) {
            *sum += u32::from(value);
        }
    }
}

struct Weigh<'a> {
    window: Window,
    beside: [&'a [u8]; 2],
    sums: &'a [u32],
    to: &'a mut [u8],
}

impl Kernel for Weigh<'_> {
    #[inline(always)]
    fn run(self) {
        let Window { inner, outer, .. } = self.window;
        let [before, behind] = self.beside;
        let values = self.sums.iter().zip(before.iter().zip(behind));
        for (to, (&sum, (&before, &behind))) in self.to.iter_mut().zip(values) {
            let beside = u32::from(before) + u32::from(behind);
            let value = sum.wrapping_mul(inner).wrapping_add(beside.wrapping_mul(outer));
            *to = (value.wrapping_add(1 << 23) >> 24) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::image::Size;

    fn blurred(level: Level, source: ImageView<'_>, sigma: f64) -> Vec<u8> {
        let mut target = ImageBuf::default();
        BoxBlur::default().apply(source, sigma, level, &mut target);
        target.values_mut().to_vec()
    }

    /// One pass over a line, pixel by pixel.
    fn pass(line: &[u8], window: Window) -> Vec<u8> {
        let (radius, last) = (window.radius as i64, line.len() as i64 - 1);
        let at = |place: i64| u64::from(line[place.clamp(0, last) as usize]);
        let value = |x: i64| {
            let inner: u64 = (x - radius..=x + radius).map(at).sum();
            let outer = at(x - radius - 1) + at(x + radius + 1);
            let sum = inner * u64::from(window.inner) + outer * u64::from(window.outer);
            ((sum + (1 << 23)) >> 24) as u8
        };
        (0..=last).map(value).collect()
    }

    fn thrice(line: Vec<u8>, window: Option<Window>) -> Vec<u8> {
        let Some(window) = window else { return line };
        (0..3).fold(line, |line, _| pass(&line, window))
    }

    proptest! {
        #[test]
        fn every_level_is_the_plain_formula(
            height in 1usize..12,
            width in 1usize..40,
            rgb: bool,
            sigma in 0.0..9.0f64,
            pixels in proptest::collection::vec(any::<u8>(), 12 * 40 * 3),
        ) {
            let channels = if rgb { 3 } else { 1 };
            let size = Size::new(height, width);
            let source = ImageView::new(&pixels, size, channels, width * channels).unwrap();
            let mut expected = pixels[..height * width * channels].to_vec();
            let window = Window::new(sigma as f32);
            for c in 0..channels {
                let place = |y: usize, x: usize| (y * width + x) * channels + c;
                for y in 0..height {
                    let mut line: Vec<u8> = (0..width).map(|x| expected[place(y, x)]).collect();
                    line = thrice(line, window);
                    (0..width).for_each(|x| expected[place(y, x)] = line[x]);
                }
                for x in 0..width {
                    let mut line: Vec<u8> = (0..height).map(|y| expected[place(y, x)]).collect();
                    line = thrice(line, window);
                    (0..height).for_each(|y| expected[place(y, x)] = line[y]);
                }
            }
            for &level in Level::all() {
                prop_assert_eq!(&blurred(level, source, sigma), &expected);
            }
        }

        #[test]
        fn one_colour_stays_one(value: u8, sigma in 0.0..9.0f64) {
            let pixels = [value; 6 * 5];
            let source = ImageView::new(&pixels, Size::new(6, 5), 1, 5).unwrap();
            prop_assert_eq!(blurred(Level::best(), source, sigma), pixels);
        }
    }
}

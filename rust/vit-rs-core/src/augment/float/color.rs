//! Colours of floats, 1 for white.

use crate::augment::histogram;
use crate::augment::plan::Color;
use crate::error::{Error, Result};
use crate::image::{ImageView, Size};
use crate::simd::{self, Kernel, Level};

/// Shares of red, green and blue in gray, as torchvision's.
const GRAY: [f32; 3] = [0.2989, 0.587, 0.114];

/// Changes the colours of an image of interleaved channels where it is. Images that are not RGB are gray: turning the
/// hue, saturation and making gray leave them alone.
pub(super) fn apply(
    color: Color,
    values: &mut [f32],
    size: Size,
    channels: usize,
    level: Level,
) -> Result<()> {
    let rgb = channels == 3;
    match color {
        Color::Brightness(factor) => {
            let factor = factor as f32;
            each(level, values, |value| clamp(value * factor));
        }
        Color::Contrast(factor) => {
            let gray = gray_mean(values, rgb);
            let (factor, rest) = (factor as f32, (1.0 - factor) as f32);
            each(level, values, |value| clamp(value * factor + gray * rest));
        }
        Color::Saturation(factor) if rgb => {
            let (factor, rest) = (factor as f32, (1.0 - factor) as f32);
            each_pixel(level, values, |pixel| {
                let gray = gray(pixel) * rest;
                pixel.map(|value| clamp(value * factor + gray))
            });
        }
        Color::Hue(turn) if rgb => {
            let turn = turn as f32;
            each_pixel(level, values, |pixel| turned(pixel, turn));
        }
        Color::Grayscale if rgb => each_pixel(level, values, |pixel| [gray(pixel); 3]),
        Color::Saturation(_) | Color::Hue(_) | Color::Grayscale => {}
        Color::Invert => each(level, values, |value| 1.0 - value),
        Color::Posterize(bits) => {
            let levels = f32::from(1u16 << bits.min(8));
            each(level, values, |value| (value * levels).floor().clamp(0.0, levels - 1.0) / levels);
        }
        Color::Solarize(threshold) => {
            let threshold = threshold as f32;
            each(level, values, |value| if value >= threshold { 1.0 - value } else { value });
        }
        Color::SolarizeAdd(_) => {
            return Err(Error::argument("SolarizeAdd needs 8-bit pixels: put it before ToDtype"));
        }
        Color::Equalize => equalize(values, size, channels)?,
        Color::AutoContrast => autocontrast(values, channels),
        Color::Sharpness(factor) => sharpen(level, values, size, channels, factor),
    }
    Ok(())
}

#[inline(always)]
fn clamp(value: f32) -> f32 {
    value.clamp(0.0, 1.0)
}

#[inline(always)]
fn gray(pixel: [f32; 3]) -> f32 {
    pixel[0] * GRAY[0] + pixel[1] * GRAY[1] + pixel[2] * GRAY[2]
}

fn gray_mean(values: &[f32], rgb: bool) -> f32 {
    let (sum, count) = if rgb {
        let pixels = values.as_chunks::<3>().0;
        (pixels.iter().map(|&pixel| f64::from(gray(pixel))).sum::<f64>(), pixels.len())
    } else {
        (values.iter().map(|&value| f64::from(value)).sum(), values.len())
    };
    (sum / count as f64) as f32
}

/// The pixel with its hue turned by a share of the circle: to HSV and back, as torchvision does it.
#[inline(always)]
fn turned(pixel: [f32; 3], turn: f32) -> [f32; 3] {
    let [r, g, b] = pixel;
    let (low, high) = (r.min(g).min(b), r.max(g).max(b));
    if high <= low {
        // Saturation 0: one channel keeps the value, the others are clamped to 0 to 1.
        let value = clamp(high);
        return pick((modulo_one(turn) * 6.0).floor(), high, value, value, value);
    }
    let range = high - low;
    let saturation = range / high;
    let away = pixel.map(|value| (high - value) / range);
    let hue = if r >= high {
        away[2] - away[1]
    } else if g >= high {
        away[0] + 2.0 - away[2]
    } else {
        away[1] + 4.0 - away[0]
    };
    let hue = fraction(hue * (1.0 / 6.0) + 1.0);
    let hue = modulo_one(hue + turn);
    let six = hue * 6.0;
    let sector = six.floor();
    let f = six - sector;
    let sf = saturation * f;
    let rest = 1.0 - saturation;
    let q = clamp((1.0 - sf) * high);
    let t = clamp((sf + rest) * high);
    let p = clamp(rest * high);
    pick(sector, high, p, q, t)
}

/// The channels of a sixth of the circle.
#[inline(always)]
fn pick(sector: f32, v: f32, p: f32, q: f32, t: f32) -> [f32; 3] {
    match sector as i32 {
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        5 => [v, p, q],
        // A hue that was rounded up to 1 is a hue of 0.
        _ => [v, t, p],
    }
}

/// C's `fmod(x, 1)`.
#[inline(always)]
fn fraction(x: f32) -> f32 {
    x - x.trunc()
}

/// Python's `x % 1`.
#[inline(always)]
fn modulo_one(x: f32) -> f32 {
    let rest = fraction(x);
    if rest < 0.0 { rest + 1.0 } else { rest }
}

fn autocontrast(values: &mut [f32], channels: usize) {
    for c in 0..channels {
        let channel = || values[c..].iter().step_by(channels).copied();
        let low = channel().fold(f32::INFINITY, f32::min);
        let high = channel().fold(f32::NEG_INFINITY, f32::max);
        let (low, range) = if low >= high { (0.0, 1.0) } else { (low, high - low) };
        for value in values[c..].iter_mut().step_by(channels) {
            *value = clamp((*value - low) / range);
        }
    }
}

/// Values are binned to bytes, and bytes are what they become: torchvision's rule for floats.
fn equalize(values: &mut [f32], size: Size, channels: usize) -> Result<()> {
    // Almost 256, so that the last bin is as wide as the others.
    let bytes: Vec<u8> = values.iter().map(|&value| (value * 255.999) as u8).collect();
    let tables =
        histogram::equalize(ImageView::new(&bytes, size, channels, size.width * channels)?);
    let pixels = values.chunks_exact_mut(channels).zip(bytes.chunks_exact(channels));
    for (pixel, bytes) in pixels {
        for ((value, &byte), table) in pixel.iter_mut().zip(bytes).zip(&tables) {
            *value = f32::from(table[usize::from(byte)]) * (1.0 / 255.0);
        }
    }
    Ok(())
}

/// Blends with the mean of 3 x 3 pixels, the middle one counted five times; the border stays as it is.
fn sharpen(level: Level, values: &mut [f32], size: Size, channels: usize, factor: f64) {
    let Size { height, width } = size;
    if height <= 2 || width <= 2 {
        return;
    }
    let rest = (1.0 - factor) as f32;
    let (edge, middle) = ((1.0 / 13.0) as f32, (5.0 / 13.0) as f32);
    let row = width * channels;
    let mut above = values[..row].to_vec();
    for y in 1..height - 1 {
        let (here, below) = values[y * row..].split_at_mut(row);
        let old = here.to_vec();
        for (i, to) in here[channels..row - channels].iter_mut().enumerate() {
            let three = |row: &[f32], weight: f32| {
                row[i] * edge + row[i + channels] * weight + row[i + 2 * channels] * edge
            };
            let smooth = three(&above, edge) + three(&old, middle) + three(below, edge);
            *to += rest * (smooth - *to);
        }
        above = old;
    }
    each(level, values, clamp);
}

fn each(level: Level, values: &mut [f32], change: impl Fn(f32) -> f32) {
    simd::run(level, Each { values, change });
}

fn each_pixel(level: Level, values: &mut [f32], change: impl Fn([f32; 3]) -> [f32; 3]) {
    simd::run(level, EachPixel { values, change });
}

struct Each<'a, F> {
    values: &'a mut [f32],
    change: F,
}

impl<F: Fn(f32) -> f32> Kernel for Each<'_, F> {
    #[inline(always)]
    fn run(self) {
        self.values.iter_mut().for_each(|value| *value = (self.change)(*value));
    }
}

struct EachPixel<'a, F> {
    values: &'a mut [f32],
    change: F,
}

impl<F: Fn([f32; 3]) -> [f32; 3]> Kernel for EachPixel<'_, F> {
    #[inline(always)]
    fn run(self) {
        for pixel in self.values.as_chunks_mut::<3>().0 {
            *pixel = (self.change)(*pixel);
        }
    }
}

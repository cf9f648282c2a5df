//! Hue: colours turned about the circle, through hue, saturation and value.

use super::color::{Scratch, by_planes, floor, floor_wide};
use super::plan::Kernels;
use crate::image::{ImageBuf, ImageView};
use crate::simd::{self, Kernel};

/// Turns the hue by `turn` of the circle, -0.5 to 0.5.
pub(super) fn turn(
    source: ImageView<'_>,
    turn: f64,
    kernels: Kernels,
    scratch: &mut Scratch,
    target: &mut ImageBuf,
) {
    let level = scratch.level;
    by_planes(source, scratch, target, |planes| match kernels {
        Kernels::Torch => simd::run(level, TorchHue { planes, turn: turn as f32 }),
        // Pillow's hue has 8 bits.
        Kernels::Pillow => {
            simd::run(level, PillowHue { planes, turn: (turn * 255.0) as i32 as u8 });
        }
    });
}

/// torchvision's arithmetic in float32, every step rounded as there.
struct TorchHue<'a> {
    planes: [&'a mut [u8]; 3],
    turn: f32,
}

impl Kernel for TorchHue<'_> {
    #[inline(always)]
    fn run(self) {
        let [r, g, b] = self.planes;
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            [*r, *g, *b] = torch_pixel([*r, *g, *b], self.turn);
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn torch_pixel(colour: [u8; 3], turn: f32) -> [u8; 3] {
    let [r, g, b] = colour.map(|value| f32::from(value) * (1.0 / 255.0));
    let high = larger(larger(r, g), b);
    let range = high - smaller(smaller(r, g), b);
    // A range of 0 is gray: the saturation is 0 whatever it is divided by, and the hue does not matter.
    let or_one = |value: f32| if range == 0.0 { 1.0 } else { value };
    let saturation = range / or_one(high);
    let divisor = or_one(range);
    let [rc, gc, bc] = [(high - r) / divisor, (high - g) / divisor, (high - b) / divisor];
    let hue = if r >= high {
        bc - gc
    } else if g >= high {
        (rc + 2.0) - bc
    } else {
        (gc + 4.0) - rc
    };
    let hue = hue * (1.0 / 6.0) + 1.0;
    let hue = if hue >= 1.0 { hue - 1.0 } else { hue };
    let hue = hue + turn;
    let hue = if hue >= 1.0 { hue - 1.0 } else { hue };
    let hue = if hue < 0.0 { hue + 1.0 } else { hue };

    let sixths = hue * 6.0;
    // 6 only where a tiny negative hue was rounded up to the whole circle: red again.
    let above = |limit: f32| if sixths >= limit { 1.0 } else { 0.0 };
    let sector =
        ((above(1.0) + above(2.0)) + (above(3.0) + above(4.0))) + (above(5.0) + above(6.0));
    let part = (sixths - sector) * saturation;
    let pale = 1.0 - saturation;
    let falling = (1.0 - part) * high;
    let rising = (part + pale) * high;
    let lowest = pale * high;
    let pick = |by_sector: [f32; 6]| {
        let mut value = by_sector[0];
        for (at, other) in [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4), (5.0, 5), (6.0, 0)] {
            value = if sixths >= at { by_sector[other] } else { value };
        }
        // 255.999 brings 1.0 to 255 and leaves nothing above.
        floor(value * 255.999)
    };
    [
        pick([high, falling, lowest, lowest, rising, high]),
        pick([rising, high, high, falling, lowest, lowest]),
        pick([lowest, lowest, rising, high, high, falling]),
    ]
}

/// Pillow's arithmetic: hue and saturation of 8 bits in between.
struct PillowHue<'a> {
    planes: [&'a mut [u8]; 3],
    turn: u8,
}

impl Kernel for PillowHue<'_> {
    #[inline(always)]
    fn run(self) {
        let [r, g, b] = self.planes;
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            [*r, *g, *b] = pillow_pixel([*r, *g, *b], self.turn);
        }
    }
}

#[inline(always)]
fn pillow_pixel(colour: [u8; 3], turn: u8) -> [u8; 3] {
    let [r, g, b] = colour;
    let high = r.max(g).max(b);
    let range = high - r.min(g).min(b);
    let gray = range == 0;
    let divisor = if gray { 1.0 } else { f32::from(range) };
    let saturation = f32::from(range) / if gray { 1.0 } else { f32::from(high) };
    let [rc, gc, bc] = colour.map(|value| f64::from(f32::from(high - value) / divisor));
    let hue = if high == r {
        bc - gc
    } else if high == g {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    let hue = f64::from(hue as f32) / 6.0 + 1.0;
    let hue = f64::from(if hue >= 1.0 { hue - 1.0 } else { hue } as f32);
    let hue = if gray { 0 } else { floor_wide(hue * 255.0) };
    let saturation = floor_wide(f64::from(saturation) * 255.0);

    let hue = hue.wrapping_add(turn);
    let sixths = f64::from(hue) * 6.0 / 255.0;
    let sector = floor_wide(sixths);
    let part = f64::from((sixths - f64::from(sector)) as f32);
    let share = (f64::from(saturation) / 255.0) as f32;
    let value = f64::from(high);
    let round = |value: f64| floor_wide(value + 0.5);
    let lowest = round(value * (1.0 - f64::from(share)));
    let falling = round(value * (1.0 - f64::from(share * part as f32)));
    let rising = round(value * (1.0 - f64::from(share) * (1.0 - part)));
    let pick = |by_sector: [u8; 6]| {
        let mut value = by_sector[0];
        for (at, other) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 0)] {
            value = if sector >= at { by_sector[other] } else { value };
        }
        value
    };
    [
        pick([high, falling, lowest, lowest, rising, high]),
        pick([rising, high, high, falling, lowest, lowest]),
        pick([lowest, lowest, rising, high, high, falling]),
    ]
}

//! Every colour against the public function's arithmetic written down pixel by pixel, on every level.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use proptest::prelude::*;

use super::*;
use crate::image::{Rect, Size};

fn applied(source: ImageView<'_>, color: Color, kernels: Kernels, level: Level) -> Vec<u8> {
    let mut scratch = Scratch { level, ..Scratch::default() };
    // A longer line before: memory is reused.
    scratch.planes.resize(3 * 200, 7);
    scratch.line.resize(200, 7);
    let mut target = ImageBuf::default();
    apply(source, color, kernels, &mut scratch, &mut target);
    let view = target.view().unwrap();
    assert_eq!((view.size(), view.channels()), (source.size(), source.channels()));
    (0..view.size().height).flat_map(|y| view.row(y).to_vec()).collect()
}

/// Clamped and cut, as the libraries' casts do.
fn byte(value: f32) -> u8 {
    value.clamp(0.0, 255.0) as u8
}

fn torch_gray([r, g, b]: [u8; 3]) -> u8 {
    let sum = f32::from(g).mul_add(0.587, f32::from(r) * 0.2989);
    f32::from(b).mul_add(0.114, sum) as u8
}

fn pillow_gray([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn gray(pixel: &[u8], kernels: Kernels) -> u8 {
    match (pixel, kernels) {
        (&[r, g, b], Kernels::Torch) => torch_gray([r, g, b]),
        (&[r, g, b], Kernels::Pillow) => pillow_gray([r, g, b]),
        _ => pixel[0],
    }
}

fn blend(value: f32, other: f32, factor: f64, kernels: Kernels) -> u8 {
    let ratio = factor as f32;
    byte(match kernels {
        Kernels::Torch => other.mul_add((1.0 - factor) as f32, value * ratio),
        Kernels::Pillow => other + ratio * (value - other),
    })
}

/// torchvision's `_rgb_to_hsv` and `_hsv_to_rgb`.
fn torch_hue(colour: [u8; 3], turn: f32) -> [u8; 3] {
    let [r, g, b] = colour.map(|v| f32::from(v) * (1.0 / 255.0));
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let (s, divisor) = if max == min { (0.0, 1.0) } else { ((max - min) / max, max - min) };
    let [rc, gc, bc] = [r, g, b].map(|v| (max - v) / divisor);
    let h = if max == r {
        bc - gc
    } else if max == g {
        rc + 2.0 - bc
    } else {
        gc + 4.0 - rc
    };
    let h = (h * (1.0 / 6.0) + 1.0) % 1.0 + turn;
    let h = if h % 1.0 < 0.0 { h % 1.0 + 1.0 } else { h % 1.0 };
    let sector = (h * 6.0).floor();
    let sf = s * (h * 6.0 - sector);
    let (p, q, t) = ((1.0 - s) * max, (1.0 - sf) * max, (sf + (1.0 - s)) * max);
    let turned = match sector as i32 % 6 {
        0 => [max, t, p],
        1 => [q, max, p],
        2 => [p, max, t],
        3 => [p, q, max],
        4 => [t, p, max],
        _ => [max, p, q],
    };
    turned.map(|v| (v * 255.999) as u8)
}

/// Pillow's conversions to HSV of 8 bits and back, in the precisions of its C.
fn pillow_hue(colour: [u8; 3], turn: u8) -> [u8; 3] {
    let [r, g, b] = colour;
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let (mut h, mut s) = (0, 0);
    if max > min {
        let range = f32::from(max - min);
        let [rc, gc, bc] = colour.map(|v| f32::from(max - v) / range);
        let hue = if r == max {
            bc - gc
        } else if g == max {
            (2.0 + f64::from(rc) - f64::from(bc)) as f32
        } else {
            (4.0 + f64::from(gc) - f64::from(rc)) as f32
        };
        let hue = ((f64::from(hue) / 6.0 + 1.0) % 1.0) as f32;
        h = (f64::from(hue) * 255.0) as u8;
        s = (f64::from(range / f32::from(max)) * 255.0) as u8;
    }
    if s == 0 {
        return [max; 3];
    }
    let sixths = f64::from(h.wrapping_add(turn)) * 6.0 / 255.0;
    let f = (sixths - sixths.floor()) as f32;
    let (s, v) = ((f64::from(s) / 255.0) as f32, f64::from(max));
    let p = (v * (1.0 - f64::from(s))).round() as u8;
    let q = (v * (1.0 - f64::from(s * f))).round() as u8;
    let t = (v * (1.0 - f64::from(s) * (1.0 - f64::from(f)))).round() as u8;
    match sixths.floor() as i32 % 6 {
        0 => [max, t, p],
        1 => [q, max, p],
        2 => [p, max, t],
        3 => [p, q, max],
        4 => [t, p, max],
        _ => [max, p, q],
    }
}

/// The neighbours' mean that sharpness blends with; None at the border.
fn smooth(data: &[u8], size: Size, channels: usize, i: usize) -> Option<f32> {
    let (y, x) = (i / channels / size.width, i / channels % size.width);
    if y == 0 || x == 0 || y + 1 >= size.height || x + 1 >= size.width {
        return None;
    }
    let row = size.width * channels;
    let around = [i - row, i, i + row]
        .into_iter()
        .flat_map(|i| [i - channels, i, i + channels])
        .map(|i| f64::from(data[i]))
        .sum::<f64>();
    Some(((around + 4.0 * f64::from(data[i])) / 13.0).round() as f32)
}

fn expected(data: &[u8], size: Size, channels: usize, color: Color, kernels: Kernels) -> Vec<u8> {
    let pixels = data.chunks(channels);
    let each = |value: &dyn Fn(u8) -> u8| data.iter().map(|&v| value(v)).collect::<Vec<_>>();
    let plane = |c: usize| data.iter().skip(c).step_by(channels).copied().collect::<Vec<_>>();
    let by_channel = |value: &dyn Fn(&[u8], u8) -> u8| {
        let planes: Vec<_> = (0..channels).map(plane).collect();
        data.iter().enumerate().map(|(i, &v)| value(&planes[i % channels], v)).collect::<Vec<_>>()
    };
    match color {
        Color::Brightness(factor) => each(&|v| byte(f32::from(v) * factor as f32)),
        Color::Contrast(factor) => {
            let sum: u64 = pixels.map(|pixel| u64::from(gray(pixel, kernels))).sum();
            let mean = match kernels {
                Kernels::Torch => sum as f32 / size.pixels() as f32,
                Kernels::Pillow => (sum as f64 / size.pixels() as f64 + 0.5).floor() as f32,
            };
            each(&|v| blend(f32::from(v), mean, factor, kernels))
        }
        Color::Saturation(_) | Color::Hue(_) | Color::Grayscale if channels == 1 => data.to_vec(),
        Color::Saturation(factor) => pixels
            .flat_map(|pixel| {
                let gray = f32::from(gray(pixel, kernels));
                pixel.iter().map(move |&v| blend(f32::from(v), gray, factor, kernels))
            })
            .collect(),
        Color::Hue(turn) => pixels
            .flat_map(|pixel| {
                let colour = [pixel[0], pixel[1], pixel[2]];
                match kernels {
                    Kernels::Torch => torch_hue(colour, turn as f32),
                    Kernels::Pillow => pillow_hue(colour, (turn * 255.0) as i32 as u8),
                }
            })
            .collect(),
        Color::Grayscale => pixels.flat_map(|pixel| [gray(pixel, kernels); 3]).collect(),
        Color::Invert => each(&|v| 255 - v),
        Color::Posterize(bits) => {
            each(&|v| (v >> (8 - bits).min(7) << (8 - bits).min(7)) * u8::from(bits > 0))
        }
        Color::Solarize(threshold) => each(&|v| if f64::from(v) < threshold { v } else { 255 - v }),
        Color::SolarizeAdd(add) => {
            each(&|v| if v < 128 { (u16::from(v) + u16::from(add)).min(255) as u8 } else { v })
        }
        Color::AutoContrast => by_channel(&|plane, v| {
            let (low, high) = (*plane.iter().min().unwrap(), *plane.iter().max().unwrap());
            match kernels {
                _ if low == high => v,
                Kernels::Torch => {
                    byte((f32::from(v) - f32::from(low)) / (f32::from(high - low) * (1.0 / 255.0)))
                }
                Kernels::Pillow => {
                    let scale = 255.0 / f64::from(high - low);
                    (f64::from(v) * scale - f64::from(low) * scale).clamp(0.0, 255.0) as u8
                }
            }
        }),
        Color::Equalize => by_channel(&|plane, v| {
            let largest = *plane.iter().max().unwrap();
            let step = plane.iter().filter(|&&other| other < largest).count() / 255;
            let below = plane.iter().filter(|&&other| other < v).count();
            (below + step / 2).checked_div(step).map_or(v, |value| value.min(255) as u8)
        }),
        Color::Sharpness(factor) => (0..data.len())
            .map(|i| {
                let value = f32::from(data[i]);
                let Some(smooth) = smooth(data, size, channels, i) else { return data[i] };
                byte(match kernels {
                    Kernels::Torch => (smooth - value).mul_add((1.0 - factor) as f32, value),
                    Kernels::Pillow => smooth + factor as f32 * (value - smooth),
                })
            })
            .collect(),
    }
}

fn colors() -> impl Strategy<Value = Color> {
    let factor = || prop_oneof![0.0..3.0, Just(0.0), Just(0.5), Just(1.0), Just(2.0)];
    prop_oneof![
        factor().prop_map(Color::Brightness),
        factor().prop_map(Color::Contrast),
        factor().prop_map(Color::Saturation),
        factor().prop_map(Color::Sharpness),
        prop_oneof![-0.5..0.5, Just(-0.5), Just(0.0), Just(0.5)].prop_map(Color::Hue),
        Just(Color::Grayscale),
        Just(Color::Invert),
        (0..=8_u8).prop_map(Color::Posterize),
        prop_oneof![0.0..255.0, any::<u8>().prop_map(f64::from)].prop_map(Color::Solarize),
        any::<u8>().prop_map(Color::SolarizeAdd),
        Just(Color::Equalize),
        Just(Color::AutoContrast),
    ]
}

/// Values of an image: noise, a few values only, or nearly gray.
fn values() -> impl Strategy<Value = (usize, Size, Vec<u8>)> {
    let shape = (prop_oneof![Just(1_usize), Just(3)], 1_usize..24, 1_usize..75);
    (shape, any::<u64>(), 0..3_u8, any::<u8>()).prop_map(
        |((channels, height, width), seed, kind, base)| {
            let mut random = crate::rng::EpochKey::new(seed, 0).stream(0, 0, 0);
            let data = (0..height * width * channels).map(|_| match kind {
                0 => random.next_u32() as u8,
                1 => base.saturating_add((random.next_u32() % 3) as u8),
                _ => base ^ u8::from(random.next_u32().is_multiple_of(4)),
            });
            (channels, Size::new(height, width), data.collect())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn every_color_is_its_librarys((channels, size, data) in values(), color in colors(), pillow: bool) {
        let kernels = if pillow { Kernels::Pillow } else { Kernels::Torch };
        let source = ImageView::new(&data, size, channels, size.width * channels).unwrap();
        let expected = expected(&data, size, channels, color, kernels);
        for &level in Level::all() {
            let got = applied(source, color, kernels, level);
            prop_assert_eq!(&got, &expected, "{:?} {:?} {:?}", color, kernels, level);
        }
    }

    #[test]
    fn a_part_of_an_image_is_an_image((channels, size, data) in values(), color in colors()) {
        let whole = ImageView::new(&data, size, channels, size.width * channels).unwrap();
        let (top, left) = (size.height / 3, size.width / 3);
        let rect = Rect { top, left, height: size.height - top, width: (size.width - left).div_ceil(2) };
        let part = whole.crop(rect).unwrap();
        let copied: Vec<u8> = (0..rect.height).flat_map(|y| part.row(y).to_vec()).collect();
        let alone = ImageView::new(&copied, rect.size(), channels, rect.width * channels).unwrap();
        let level = Level::best();
        for kernels in [Kernels::Torch, Kernels::Pillow] {
            prop_assert_eq!(applied(part, color, kernels, level), applied(alone, color, kernels, level));
        }
    }
}

/// All 2^24 colours, a plane of red at a time.
fn all_colors(mut check: impl FnMut(ImageView<'_>)) {
    for r in 0..=255_u8 {
        let plane: Vec<u8> = (0..=u16::MAX).flat_map(|gb| [r, (gb >> 8) as u8, gb as u8]).collect();
        check(ImageView::new(&plane, Size::new(256, 256), 3, 768).unwrap());
    }
}

#[test]
fn torchs_gray_is_exact_for_every_colour() {
    all_colors(|plane| {
        let got = applied(plane, Color::Grayscale, Kernels::Torch, Level::best());
        for y in 0..256 {
            for (got, colour) in
                got[y * 768..].as_chunks::<3>().0.iter().zip(plane.row(y).as_chunks::<3>().0)
            {
                assert_eq!(*got, [torch_gray(*colour); 3], "{colour:?}");
            }
        }
    });
}

#[test]
fn whole_parts() {
    for i in 0..=255_u8 {
        let value = f32::from(i);
        for (next, below) in
            [(value, i), (value.next_up(), i), (value.next_down(), i.saturating_sub(1))]
        {
            assert_eq!(cut(next), below, "{next}");
            if next >= 0.0 {
                assert_eq!(floor_wide(f64::from(next)), below, "{next}");
            }
        }
        assert_eq!(round(value + 0.25), i);
    }
    for (value, expected) in
        [(-1.0, 0), (-0.0, 0), (f32::NAN, 0), (255.5, 255), (1e30, 255), (f32::INFINITY, 255)]
    {
        assert_eq!(cut(value), expected, "{value}");
    }
    assert_eq!((round(0.5), round(1.5), round(254.5)), (0, 2, 254));
}

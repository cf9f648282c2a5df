//! Erasing in a batch: in every layout and type what erasing a plain C x H x W image of f32 gives.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use proptest::prelude::*;
use vit_rs_core::augment::plan::Fill;
use vit_rs_core::emit::{Dtype, Emit, Layout, Values};
use vit_rs_core::image::{ImageView, Rect, Size};
use vit_rs_core::line::Unit;
use vit_rs_core::patchify::Order;
use vit_rs_core::rng::Stream;

/// An image erased value by value, as (c, y, x) -> value.
fn twin(
    image: impl Fn(usize, usize, usize) -> f32,
    channels: usize,
    rect: Rect,
    fill: &Fill,
) -> impl Fn(usize, usize, usize) -> f32 {
    let mut noise = vec![0.0; rect.height * rect.width * channels];
    if let Fill::Normal(key) = fill {
        Stream::keyed(*key).fill_normal(&mut noise);
    }
    if let Fill::NormalColor(key) = fill {
        let mut colour = vec![0.0; channels];
        Stream::keyed(*key).fill_normal(&mut colour);
        noise = colour.repeat(rect.height * rect.width);
    }
    let fill = fill.clone();
    move |c, y, x| {
        let (row, column) = (y.wrapping_sub(rect.top), x.wrapping_sub(rect.left));
        if row >= rect.height || column >= rect.width {
            return image(c, y, x);
        }
        match &fill {
            Fill::Constant(values) if values.len() == 1 => values[0],
            Fill::Constant(values) => values[c],
            Fill::Normal(_) | Fill::NormalColor(_) => {
                noise[(row * rect.width + column) * channels + c]
            }
        }
    }
}

fn place(layout: Layout, size: Size, channels: usize, (c, y, x): (usize, usize, usize)) -> usize {
    match layout {
        Layout::Nchw => (c * size.height + y) * size.width + x,
        Layout::Nhwc => (y * size.width + x) * channels + c,
        Layout::Patches { patch, order } => {
            let number = y / patch.height * (size.width / patch.width) + x / patch.width;
            let (y, x) = (y % patch.height, x % patch.width);
            number * patch.pixels() * channels
                + match order {
                    Order::Pqc => (y * patch.width + x) * channels + c,
                    Order::Cpq => (c * patch.height + y) * patch.width + x,
                }
        }
    }
}

proptest! {
    #[test]
    fn every_layout_and_type(
        channels in prop_oneof![Just(1_usize), Just(3)],
        grid in (1..4_usize, 1..4_usize),
        patch in (1..5_usize, 1..5_usize),
        corners in (0..1000_usize, 0..1000_usize, 0..1000_usize, 0..1000_usize),
        kind in 0..4,
        mirrored: bool,
        key: u64,
    ) {
        let patch = Size::new(patch.0, patch.1);
        let size = Size::new(grid.0 * patch.height, grid.1 * patch.width);
        let (top, left) = (corners.0 % size.height, corners.1 % size.width);
        let height = 1 + corners.2 % (size.height - top);
        let width = 1 + corners.3 % (size.width - left);
        let rect = Rect { top, left, height, width };
        let fill = match kind {
            0 => Fill::Constant(vec![-2.117_904]),
            1 => Fill::Constant((0..channels).map(|c| 0.3 + c as f32).collect()),
            2 => Fill::Normal(key),
            _ => Fill::NormalColor(key),
        };
        let data: Vec<u8> = (0..size.pixels() * channels).map(|i| (i * 37) as u8).collect();
        let image = ImageView::new(&data, size, channels, size.width * channels).unwrap();
        let byte = |c: usize, y: usize, x: usize| {
            data[(y * size.width + if mirrored { size.width - 1 - x } else { x }) * channels + c]
        };
        let floats = |c, y, x| (f32::from(byte(c, y, x)) * (1.0 / 255.0) - 0.5) / 0.25;
        let expected = twin(floats, channels, rect, &fill);
        let expected_bytes = twin(|c, y, x| f32::from(byte(c, y, x)), channels, rect, &fill);
        let patches = |order| Layout::Patches { patch, order };
        for layout in [Layout::Nchw, Layout::Nhwc, patches(Order::Pqc), patches(Order::Cpq)] {
            for dtype in [Dtype::U8, Dtype::F16, Dtype::Bf16, Dtype::F32] {
                let values = match dtype {
                    Dtype::U8 => Values::Raw,
                    _ => Values::Float { unit: Unit::MULTIPLIED, normalize: Some((vec![0.5], vec![0.25])) },
                };
                let emit = Emit::new(size, channels, layout, dtype, &values).unwrap();
                let mut room = vec![0_u64; emit.bytes().div_ceil(8)];
                let bytes = &mut bytemuck::cast_slice_mut(&mut room)[..emit.bytes()];
                emit.write(image, mirrored, bytes).unwrap();
                emit.erase(rect, &fill, bytes).unwrap();
                for y in 0..size.height {
                    for x in 0..size.width {
                        for c in 0..channels {
                            let at = place(layout, size, channels, (c, y, x));
                            let value = expected(c, y, x);
                            match dtype {
                                Dtype::F32 => prop_assert_eq!(
                                    bytemuck::cast_slice::<u8, f32>(bytes)[at].to_bits(), value.to_bits()
                                ),
                                Dtype::F16 => prop_assert_eq!(
                                    bytemuck::cast_slice::<u8, f16>(bytes)[at], f16::from_f32(value)
                                ),
                                Dtype::Bf16 => prop_assert_eq!(
                                    bytemuck::cast_slice::<u8, bf16>(bytes)[at], bf16::from_f32(value)
                                ),
                                // Whole parts, negative ones counted down from 256.
                                Dtype::U8 => prop_assert_eq!(
                                    bytes[at], (expected_bytes(c, y, x).trunc() as i64).rem_euclid(256) as u8
                                ),
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_rectangles_and_fills_are_refused() {
    let emit = Emit::new(Size::new(4, 4), 3, Layout::Nchw, Dtype::U8, &Values::Raw).unwrap();
    let mut bytes = [0; 48];
    let rect = |top, height| Rect { top, left: 0, height, width: 4 };
    let black = Fill::Constant(vec![0.0]);
    assert!(emit.erase(rect(2, 2), &black, &mut bytes).is_ok());
    for (rect, fill, length) in [
        (rect(2, 3), &black, 48),
        (rect(0, 0), &black, 48),
        (rect(usize::MAX, 2), &black, 48),
        (rect(0, 2), &Fill::Constant(vec![0.0; 2]), 48),
        (rect(0, 2), &Fill::Constant(Vec::new()), 48),
        (rect(0, 2), &black, 47),
    ] {
        assert!(emit.erase(rect, fill, &mut bytes[..length]).is_err(), "{rect:?} {fill:?}");
    }
}

#[test]
fn float_images_are_normalised_but_not_scaled() {
    let values = Values::Float { unit: Unit::MULTIPLIED, normalize: Some((vec![0.5], vec![0.25])) };
    let emit = Emit::new(Size::new(1, 2), 1, Layout::Nchw, Dtype::F32, &values).unwrap();
    let image = ImageView::new(&[0.25, 1.0_f32], Size::new(1, 2), 1, 2).unwrap();
    let mut place = [0.0_f32; 2];
    emit.write(image, true, bytemuck::cast_slice_mut(&mut place)).unwrap();
    assert_eq!(place.map(f32::to_bits), [2.0_f32, -1.0].map(f32::to_bits));
    let bytes = Emit::new(Size::new(1, 2), 1, Layout::Nchw, Dtype::U8, &Values::Raw).unwrap();
    assert!(bytes.write(image, false, &mut [0; 2]).is_err());
}

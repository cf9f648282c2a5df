//! Patchify against the formula, value by value, in drawn geometries.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use proptest::prelude::*;
use vit_rs_core::line::{Element, Float, Normalization, Source};
use vit_rs_core::patchify::{Geometry, Layout, Order, patchify, patchify_normalized, unpatchify};

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    channels: usize,
    rows: usize,
    columns: usize,
    patch: (usize, usize),
    layout: Layout,
    order: Order,
    threads: usize,
}

impl Case {
    fn size(&self) -> (usize, usize) {
        (self.rows * self.patch.0, self.columns * self.patch.1)
    }

    fn geometry(&self) -> Geometry {
        let (height, width) = self.size();
        let shape = (self.batch, self.channels, height, width);
        Geometry::new(shape, self.patch, self.layout, self.order).unwrap()
    }

    fn values(&self) -> usize {
        self.geometry().values()
    }

    /// For each place in the patches, the place in the images and the channel.
    fn sources(&self) -> Vec<(usize, usize)> {
        let ((height, width), (p, q), channels) = (self.size(), self.patch, self.channels);
        let mut sources = Vec::new();
        for b in 0..self.batch {
            for patch in 0..self.rows * self.columns {
                for i in 0..p * q * channels {
                    let (y, x, c) = match self.order {
                        Order::Pqc => (i / (q * channels), i / channels % q, i % channels),
                        Order::Cpq => (i / q % p, i % q, i / (p * q)),
                    };
                    let (y, x) = (patch / self.columns * p + y, patch % self.columns * q + x);
                    let place = match self.layout {
                        Layout::Nchw => ((b * channels + c) * height + y) * width + x,
                        Layout::Nhwc => ((b * height + y) * width + x) * channels + c,
                    };
                    sources.push((place, c));
                }
            }
        }
        sources
    }
}

prop_compose! {
    fn cases()(
        batch in 0..3_usize,
        channels in prop_oneof![Just(1), Just(3), 1..9_usize],
        rows in 1..4_usize,
        columns in 1..4_usize,
        patch in (1..18_usize, prop_oneof![1..18_usize, Just(32)]),
        layout in prop_oneof![Just(Layout::Nchw), Just(Layout::Nhwc)],
        order in prop_oneof![Just(Order::Pqc), Just(Order::Cpq)],
        threads in 0..4_usize,
    ) -> Case {
        Case { batch, channels, rows, columns, patch, layout, order, threads }
    }
}

fn permuted<T: Element + PartialEq + std::fmt::Debug>(case: &Case, value: impl Fn(usize) -> T) {
    let images: Vec<T> = (0..case.values()).map(value).collect();
    let mut patches = vec![T::zeroed(); images.len()];
    patchify(&case.geometry(), &images, &mut patches, case.threads).unwrap();
    let expected: Vec<T> = case.sources().iter().map(|&(place, _)| images[place]).collect();
    assert_eq!(patches, expected);
    let mut back = vec![T::zeroed(); images.len()];
    unpatchify(&case.geometry(), &patches, &mut back, case.threads).unwrap();
    assert_eq!(back, images);
}

/// `wide` says what a source value is as f32, in units of 1; `round` rounds as the target does.
fn normalized<S: Source, D: Float + PartialEq + std::fmt::Debug>(
    case: &Case,
    images: &[S],
    wide: impl Fn(S) -> f32,
    round: impl Fn(f32) -> D,
) {
    let mean: Vec<f32> = (0..case.channels).map(|c| 0.1 + 0.2 * c as f32).collect();
    let std: Vec<f32> = (0..case.channels).map(|c| 0.2 + 0.1 * c as f32).collect();
    let normalization = Normalization::new(case.channels, &mean, &std).unwrap();
    let mut patches = vec![round(9.0); images.len()];
    let geometry = case.geometry();
    patchify_normalized(&geometry, &normalization, images, &mut patches, case.threads).unwrap();
    for (patch, (place, c)) in patches.iter().zip(case.sources()) {
        assert_eq!(*patch, round((wide(images[place]) - mean[c]) / std[c]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn every_value_in_its_place(case in cases()) {
        permuted(&case, |i| (i % 251) as u8);
        permuted(&case, |i| i as u16);
        permuted(&case, |i| i as u32);
        permuted(&case, |i| i as u64);
        permuted(&case, |i| [i as u64, 7]);
    }

    #[test]
    fn every_value_converted(case in cases()) {
        let floats: Vec<_> = (0..case.values()).map(|i| (i as f32 * 0.37).sin()).collect();
        let brains: Vec<_> = floats.iter().map(|&value| bf16::from_f32(value)).collect();
        let halves: Vec<_> = floats.iter().map(|&value| f16::from_f32(value)).collect();
        let bytes: Vec<_> = (0..case.values()).map(|i| (i * 7 % 256) as u8).collect();
        let (single, same) = (|value: f32| value, |value: f32| value);
        normalized(&case, &floats, same, single);
        normalized(&case, &floats, same, f16::from_f32);
        normalized(&case, &brains, bf16::to_f32, bf16::from_f32);
        normalized(&case, &brains, bf16::to_f32, single);
        normalized(&case, &halves, f16::to_f32, f16::from_f32);
        let scaled = |value: u8| f32::from(value) * (1.0 / 255.0);
        normalized(&case, &bytes, scaled, single);
        normalized(&case, &bytes, scaled, f16::from_f32);
        normalized(&case, &bytes, scaled, bf16::from_f32);
    }
}

#[test]
fn threads_do_not_matter() {
    // 3 MiB: enough for several threads, for many images and for one.
    for (batch, side) in [(16, 128), (1, 512)] {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            for order in [Order::Pqc, Order::Cpq] {
                let geometry =
                    Geometry::new((batch, 3, side, side), (16, 16), layout, order).unwrap();
                let images: Vec<u32> = (0..geometry.values() as u32).collect();
                let (mut one, mut many) = (vec![0; images.len()], vec![0; images.len()]);
                patchify(&geometry, &images, &mut one, 1).unwrap();
                patchify(&geometry, &images, &mut many, 3).unwrap();
                assert_eq!(one, many);
                let mut back = vec![0; images.len()];
                unpatchify(&geometry, &many, &mut back, 3).unwrap();
                assert_eq!(back, images);
            }
        }
    }
}

/// Results of more than 8 MiB that start at a cache line are written past the caches, those of short runs strip by strip.
#[test]
fn results_past_the_caches() {
    fn check<T: Element + PartialEq + std::fmt::Debug>(patch: usize, value: impl Fn(usize) -> T) {
        let side = 224;
        let batch = (9 << 20) / (3 * side * side * size_of::<T>()) + 1;
        for layout in [Layout::Nchw, Layout::Nhwc] {
            for order in [Order::Pqc, Order::Cpq] {
                let case = Case {
                    batch,
                    channels: 3,
                    rows: side / patch,
                    columns: side / patch,
                    patch: (patch, patch),
                    layout,
                    order,
                    threads: 2,
                };
                let images: Vec<T> = (0..case.values()).map(&value).collect();
                let mut memory = vec![T::zeroed(); images.len() + 64];
                let start = memory.as_ptr().align_offset(64);
                let patches = &mut memory[start..][..images.len()];
                patchify(&case.geometry(), &images, patches, case.threads).unwrap();
                for (patch, (place, _)) in patches.iter().zip(case.sources()) {
                    assert_eq!(*patch, images[place]);
                }
                let patches = patches.to_vec();
                let back = &mut memory[start..][..images.len()];
                unpatchify(&case.geometry(), &patches, back, case.threads).unwrap();
                assert_eq!(back, images);
            }
        }
    }
    for patch in [14, 16] {
        check(patch, |i| (i * 7 % 251) as u8);
        check(patch, |i| (i * 7 % 65521) as u16);
        check(patch, |i| i as u32);
    }
}

fn geometry_error(shape: (usize, usize, usize, usize), patch: (usize, usize)) -> String {
    Geometry::new(shape, patch, Layout::Nchw, Order::Pqc).unwrap_err().to_string()
}

#[test]
fn errors_name_the_numbers() {
    assert_eq!(
        geometry_error((1, 3, 30, 32), (16, 8)),
        "patches of 16x8 do not divide images of 30x32 (height x width)"
    );
    assert_eq!(
        geometry_error((1, 0, 32, 32), (16, 16)),
        "channels, height, width and patch must be at least 1, got 0, 32, 32 and 16x16"
    );
    assert_eq!(
        geometry_error((usize::MAX, 3, 32, 32), (16, 16)),
        format!("a batch of {}x3x32x32 values is too large", usize::MAX)
    );
    let geometry = Geometry::new((1, 2, 4, 4), (2, 2), Layout::Nchw, Order::Pqc).unwrap();
    let error = patchify(&geometry, &[0_u8; 32], &mut [0; 31], 1).unwrap_err().to_string();
    assert_eq!(error, "expected buffers of 32 values, got 32 to read and 31 to write");
    let error = unpatchify(&geometry, &[0_u8; 8], &mut [0; 32], 1).unwrap_err().to_string();
    assert_eq!(error, "expected buffers of 32 values, got 8 to read and 32 to write");
    let three = Normalization::new(3, &[0.5], &[0.5]).unwrap();
    let error = patchify_normalized(&geometry, &three, &[0_u8; 32], &mut [0.0_f32; 32], 1);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the normalisation is of 3 channels, the images have 2"
    );
}

#[test]
fn normalizations_are_checked() {
    let error =
        |mean: &[f32], std: &[f32]| Normalization::new(3, mean, std).unwrap_err().to_string();
    assert_eq!(
        error(&[0.0, 1.0], &[1.0]),
        "mean must have 1 or 3 values, one for each channel, got 2"
    );
    assert_eq!(error(&[0.0], &[]), "std must have 1 or 3 values, one for each channel, got 0");
    assert_eq!(error(&[0.0], &[1.0, 0.0, 1.0]), "std must not be 0 as a 32-bit float");
    assert_eq!(error(&[f32::INFINITY], &[1.0]), "mean must be finite as 32-bit floats, got inf");
}

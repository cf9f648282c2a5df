//! Taps by their properties, and the passes against sums in f64, in drawn sizes.
// Some weights are exact, and are meant to be.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use proptest::prelude::*;
use vit_rs_core::resample::f32::resample;
use vit_rs_core::resample::taps::{Axis, Filter, MAX_SAMPLES, Taps, taps};

const CUBIC: Filter = Filter::Bicubic { a: -0.75 };
const PILLOW_CUBIC: Filter = Filter::Bicubic { a: -0.5 };

fn axis(input: usize, output: usize, filter: Filter, antialias: bool) -> Axis {
    Axis { input, output, filter, antialias, align_corners: false, scale: None }
}

fn axes() -> impl Strategy<Value = Axis> {
    let antialiased =
        prop_oneof![Just(Filter::Bilinear), Just(PILLOW_CUBIC), Just(Filter::Lanczos3)];
    let plain = prop_oneof![Just(Filter::Bilinear), Just(CUBIC)];
    let scale = prop_oneof![Just(None), (0.5..1.0_f64).prop_map(Some)];
    let sizes = || (1..60_usize, 1..60_usize);
    prop_oneof![
        (sizes(), antialiased)
            .prop_map(|((input, output), filter)| axis(input, output, filter, true)),
        (sizes(), plain.clone(), any::<bool>()).prop_map(
            |((input, output), filter, align_corners)| Axis {
                align_corners,
                ..axis(input, output, filter, false)
            }
        ),
        // A scale_factor a little off the sizes, as dino's offset of 0.1 gives.
        (sizes(), plain, scale).prop_map(|((input, output), filter, factor)| Axis {
            scale: factor.map(|factor| factor * input as f64 / output as f64),
            ..axis(input, output, filter, false)
        }),
    ]
}

fn weighted(rows: &Taps, samples: &[f64]) -> Vec<f64> {
    let sum = |i| {
        let (first, weights) = rows.row(i);
        weights.iter().zip(&samples[first..]).map(|(weight, sample)| weight * sample).sum()
    };
    (0..rows.output()).map(sum).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn rows_lie_inside_and_sum_to_one(axis in axes()) {
        let rows = taps(&axis).unwrap();
        prop_assert_eq!((rows.input(), rows.output()), (axis.input, axis.output));
        for i in 0..axis.output {
            let (first, weights) = rows.row(i);
            prop_assert!(!weights.is_empty());
            prop_assert!(first + weights.len() <= axis.input);
            prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        }
    }

    #[test]
    fn mirrored_samples_give_mirrored_results(axis in axes()) {
        // A single aligned sample is the first one.
        prop_assume!(axis.scale.is_none() && !(axis.align_corners && axis.output == 1));
        let rows = taps(&axis).unwrap();
        let samples: Vec<f64> = (0..axis.input).map(|i| (i as f64 * 1.7).sin()).collect();
        let mirrored: Vec<f64> = samples.iter().rev().copied().collect();
        let there = weighted(&rows, &samples);
        let back = weighted(&rows, &mirrored);
        // A support that ends on the half between two samples may take either side: its weight there is about 0.
        for (a, b) in there.iter().zip(back.iter().rev()) {
            prop_assert!((a - b).abs() < 1e-10, "{} {}", a, b);
        }
    }

    #[test]
    fn dense_holds_the_rows(axis in axes()) {
        let rows = taps(&axis).unwrap();
        let dense = rows.dense();
        for (i, line) in dense.chunks_exact(axis.input).enumerate() {
            let (first, weights) = rows.row(i);
            prop_assert_eq!(&line[first..first + weights.len()], weights);
            let outside = line[..first].iter().chain(&line[first + weights.len()..]);
            prop_assert!(outside.copied().all(|weight| weight == 0.0));
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn passes_sum_the_taps(
        vertical in axes(),
        horizontal in axes(),
        batch in 0..3_usize,
        prefix in 0..3_usize,
        channels in prop_oneof![1..5_usize, 30..36_usize, 255..259_usize],
        threads in 1..4_usize,
    ) {
        let (rows, columns) = (vertical.input.min(12), horizontal.input.min(12));
        let (vertical, horizontal) = (
            taps(&Axis { input: rows, output: vertical.output.min(20), ..vertical }),
            taps(&Axis { input: columns, output: horizontal.output.min(20), ..horizontal }),
        );
        // A drawn scale may reach past the smaller axis without antialiasing only, where the border continues.
        let (vertical, horizontal) = (vertical.unwrap(), horizontal.unwrap());
        let (height, width) = (vertical.output(), horizontal.output());
        let old = (prefix + rows * columns) * channels;
        let new = (prefix + height * width) * channels;
        let source: Vec<f32> = (0..batch * old).map(|i| (i as f32 * 0.61).sin()).collect();
        let mut target = vec![f32::NAN; batch * new];
        resample(&source, &mut target, batch, prefix, channels, &vertical, &horizontal, threads)
            .unwrap();
        for (source, target) in source.chunks_exact(old).zip(target.chunks_exact(new)) {
            let (source_prefix, grid) = source.split_at(prefix * channels);
            let (target_prefix, result) = target.split_at(prefix * channels);
            prop_assert_eq!(source_prefix, target_prefix);
            for (i, value) in result.iter().enumerate() {
                let (y, x, c) = (i / channels / width, i / channels % width, i % channels);
                let (top, down) = vertical.row(y);
                let (left, across) = horizontal.row(x);
                let mut sum = 0.0;
                for (k, v) in down.iter().enumerate() {
                    for (l, h) in across.iter().enumerate() {
                        let cell = (top + k) * columns + left + l;
                        sum += v * h * f64::from(grid[cell * channels + c]);
                    }
                }
                prop_assert!((f64::from(*value) - sum).abs() < 2e-6, "{} {}", value, sum);
            }
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let (vertical, horizontal) =
        (taps(&axis(37, 50, PILLOW_CUBIC, true)), taps(&axis(20, 41, CUBIC, false)));
    let (vertical, horizontal) = (vertical.unwrap(), horizontal.unwrap());
    let source: Vec<f32> = (0..37 * 20 * 768).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut one = vec![0.0; 50 * 41 * 768];
    resample(&source, &mut one, 1, 0, 768, &vertical, &horizontal, 1).unwrap();
    for threads in [2, 5] {
        let mut many = vec![0.0; one.len()];
        resample(&source, &mut many, 1, 0, 768, &vertical, &horizontal, threads).unwrap();
        assert_eq!(one, many);
    }
}

#[test]
fn known_rows() {
    // Halving with the triangle: 1/8, 3/8, 3/8, 1/8 inside, renormalised at the border.
    let rows = taps(&axis(6, 3, Filter::Bilinear, true)).unwrap();
    assert_eq!(rows.row(1), (1, &[0.125, 0.375, 0.375, 0.125][..]));
    let (first, weights) = rows.row(0);
    assert_eq!((first, weights.len()), (0, 3));
    assert!((weights[0] - 3.0 / 7.0).abs() < 1e-15 && (weights[2] - 1.0 / 7.0).abs() < 1e-15);
    // Doubling with Keys' cubic: the outermost tap is folded onto the border's sample.
    let rows = taps(&axis(4, 8, CUBIC, false)).unwrap();
    let weight = |x: f64| CUBIC.value(x);
    assert_eq!(rows.row(3), (0, &[weight(1.25), weight(0.25), weight(0.75), weight(1.75)][..]));
    assert_eq!(rows.row(0).0, 0);
    assert_eq!(rows.row(0).1[0], weight(1.75) + weight(0.75) + weight(0.25));
    // Equal sizes leave samples alone.
    let rows = taps(&axis(5, 5, Filter::Lanczos3, true)).unwrap();
    let samples = [1.0, -2.0, 3.0, 0.5, 4.0];
    for (sample, result) in samples.iter().zip(weighted(&rows, &samples)) {
        assert!((sample - result).abs() < 1e-15);
    }
}

#[test]
fn filters_end_at_their_support() {
    for filter in [Filter::Bilinear, CUBIC, PILLOW_CUBIC, Filter::Lanczos3] {
        assert_eq!(filter.value(0.0), 1.0);
        assert_eq!(filter.value(filter.support()), 0.0);
        assert_eq!(filter.value(-filter.support() - 1.0), 0.0);
        assert_eq!(filter.value(0.3), filter.value(-0.3));
    }
}

#[test]
fn errors_name_the_numbers() {
    let error = |axis: Axis| taps(&axis).unwrap_err().to_string();
    let plain = axis(4, 8, CUBIC, false);
    assert_eq!(
        error(Axis { output: 0, ..plain }),
        format!("cannot resample 4 samples to 0: both must be 1 to {MAX_SAMPLES}")
    );
    assert_eq!(
        error(Axis { input: MAX_SAMPLES + 1, ..plain }),
        format!(
            "cannot resample {} samples to 8: both must be 1 to {MAX_SAMPLES}",
            MAX_SAMPLES + 1
        )
    );
    assert_eq!(
        error(Axis { scale: Some(f64::NAN), ..plain }),
        "scale must be finite and above 0, got NaN"
    );
    assert_eq!(
        error(Axis { scale: Some(-1.0), ..plain }),
        "scale must be finite and above 0, got -1.0"
    );
    assert_eq!(
        error(Axis { filter: Filter::Bicubic { a: f64::INFINITY }, ..plain }),
        "the cubic coefficient a must be finite, got inf"
    );
    assert_eq!(
        error(Axis { align_corners: true, scale: Some(1.0), ..plain }),
        "align_corners sets the scale itself: give only one of align_corners and scale"
    );
    assert_eq!(
        error(Axis { align_corners: true, antialias: true, ..plain }),
        "align_corners and antialias exclude each other"
    );
    assert_eq!(
        error(Axis { filter: Filter::Lanczos3, ..plain }),
        "the lanczos filter exists with antialias only"
    );
    assert_eq!(
        error(Axis { antialias: true, scale: Some(3.0), ..plain }),
        "scale 3.0 puts output sample 3 of 8 outside the 4 input samples"
    );
    let one = taps(&axis(1, 1, CUBIC, false)).unwrap();
    let sizes = |source: &[f32], batch, channels| {
        resample(source, &mut [0.0; 2], batch, 1, channels, &one, &one, 1).unwrap_err().to_string()
    };
    assert_eq!(
        sizes(&[0.0; 3], 1, 1),
        "expected 1 tables of 2 values to read and of 2 to write, got 3 and 2 values"
    );
    assert_eq!(sizes(&[], 0, 0), "cannot resample tables of 1 + 1x1 tokens of 0 channels");
}

/// A result that is written past the caches is made of the same bits as its rows one by one, which are not.
#[test]
fn results_past_the_caches() {
    let (input, output, filter) = (9, 75, PILLOW_CUBIC);
    let axis = taps(&axis(input, output, filter, true)).unwrap();
    for channels in [384, 400, 416, 7] {
        let values: Vec<f32> =
            (0..input * input * channels).map(|i| (i as f32 * 0.37).sin()).collect();
        let batch = (9 << 20) / (output * output * channels * size_of::<f32>()) + 1;
        let source = values.repeat(batch);
        let table = output * output * channels;
        let mut memory = vec![f32::NAN; batch * table + 16];
        let start = memory.as_ptr().align_offset(64);
        let target = &mut memory[start..][..batch * table];
        resample(&source, target, batch, 0, channels, &axis, &axis, 2).unwrap();
        let mut alone = vec![f32::NAN; table];
        for part in [0..1, channels - 1..channels] {
            let one: Vec<f32> =
                values.chunks(channels).flat_map(|cell| cell[part.clone()].to_vec()).collect();
            let result = &mut alone[..output * output];
            resample(&one, result, 1, 0, 1, &axis, &axis, 1).unwrap();
            for table in target.chunks(table) {
                let got = table.chunks(channels).flat_map(|cell| cell[part.clone()].to_vec());
                assert!(got.map(f32::to_bits).eq(result.iter().map(|v| v.to_bits())));
            }
        }
    }
}

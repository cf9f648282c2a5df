//! timm's operations: plans that fit whatever the image is, and parameters that make no sense refused.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use vit_rs_core::augment::canvas::Canvas;
use vit_rs_core::augment::plan::{Border, Kernels, Plan, Sampling, Step};
use vit_rs_core::augment::spec::{
    CropOrPad, ErasingValue, Op, RandomErasing, ResizeKeepRatio, Spec, TimmAugMix, TimmName,
    TimmOp, TimmRandAugment, TrimBorder,
};
use vit_rs_core::image::{ImageView, Size};
use vit_rs_core::resample::taps::Filter;
use vit_rs_core::rng::EpochKey;

fn operation(name: TimmName) -> TimmOp {
    TimmOp {
        name,
        p: 1.0,
        magnitude: 9.0,
        magnitude_std: 0.5,
        magnitude_max: 10.0,
        samplings: vec![Sampling::Bilinear, Sampling::Bicubic],
        fill: [1, 2, 3],
        translate_const: 100.0,
        translate_pct: 0.45,
    }
}

fn all() -> Vec<Arc<dyn Op>> {
    TimmName::ALL.iter().map(|&(_, name)| Arc::new(operation(name)) as Arc<dyn Op>).collect()
}

fn spec(op: impl Op + 'static) -> vit_rs_core::error::Result<Spec> {
    Spec::new(vec![Arc::new(op)], Vec::new(), Kernels::Torch)
}

fn plan(op: impl Op + 'static, source: Size, draw: u64) -> Plan {
    spec(op).unwrap().plan(source, EpochKey::new(1, 2), draw, 0).unwrap()
}

proptest! {
    #[test]
    fn operations_leave_the_size_alone(
        at in 0..TimmName::ALL.len(),
        magnitude in -5.0..40.0f64,
        magnitude_std in prop_oneof![Just(0.0), 0.0..9.0f64, Just(f64::INFINITY)],
        magnitude_max in 0.0..40.0f64,
        sides in (1usize..30, 1usize..30),
        rgb: bool,
        pixels in proptest::collection::vec(any::<u8>(), 30 * 30 * 3),
    ) {
        let (_, name) = TimmName::ALL[at];
        let op = TimmOp { magnitude, magnitude_std, magnitude_max, ..operation(name) };
        let size = Size::new(sides.0, sides.1);
        let channels = if rgb { 3 } else { 1 };
        let image = ImageView::new(&pixels, size, channels, size.width * channels).unwrap();
        let plan = plan(op, size, 0);
        prop_assert!(plan.steps.len() <= 1);
        let colours = |step: &Step| match step {
            Step::Affine(_, kernels) | Step::Color(_, kernels) => Some(*kernels),
            _ => None,
        };
        let kernels = plan.steps.iter().filter_map(colours);
        prop_assert!(kernels.into_iter().all(|kernels| kernels == Kernels::Pillow));
        prop_assert_eq!(Canvas::default().apply(image, &plan.steps).unwrap().size(), size);
    }

    #[test]
    fn a_mix_is_a_blend_of_chains(
        width in 1usize..5,
        depth in proptest::option::of(1usize..4),
        alpha in 0.01..9.0f64,
        side in 1usize..20,
        draw: u64,
    ) {
        let size = Size::new(side, side);
        let plan = plan(TimmAugMix { ops: all(), alpha, width, depth }, size, draw);
        let [Step::Blend { share, steps }] = &plan.steps[..] else { panic!("{plan:?}") };
        let [Step::Mix { keep, chains }] = &steps[..] else { panic!("{steps:?}") };
        prop_assert!((0.0..=1.0).contains(share) && *keep == 0.0 && chains.len() == width);
        let sum: f32 = chains.iter().map(|(weight, _)| weight).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5);
        prop_assert!(chains.iter().all(|(_, steps)| steps.len() <= depth.unwrap_or(3)));
        let pixels = vec![200; side * side * 3];
        let image = ImageView::new(&pixels, size, 3, side * 3).unwrap();
        prop_assert_eq!(Canvas::default().apply(image, &plan.steps).unwrap().size(), size);
    }

    #[test]
    fn images_are_made_to_fit(
        sides in (1usize..60, 1usize..60, 1usize..60, 1usize..60),
        longest in 0.0..=1.0f64,
        random: bool,
        draw: u64,
    ) {
        let (from, size) = (Size::new(sides.0, sides.1), Size::new(sides.2, sides.3));
        let window = plan(CropOrPad { size, border: Border::Edge, random }, from, draw);
        prop_assert_eq!(window.output(), size);
        for step in &window.steps {
            // All of the image or all of the window along each side.
            if let &Step::Window { top, left, size, .. } = step {
                for (at, outer, inner) in [(top, from.height, size.height), (left, from.width, size.width)] {
                    let room = outer as i64 - inner as i64;
                    prop_assert!((at.min(room.min(0)) >= room.min(0)) && at <= room.max(0));
                }
            }
        }
        let zoom = (f64::from(u8::from(random)), (0.9, 1.1));
        let filter = Filter::Bilinear;
        let op = ResizeKeepRatio {
            size, longest, filter, zoom, zoom_by_area: true, stretch: (0.0, (1.0, 1.0)),
        };
        let resized = spec(op).unwrap();
        if let Ok(resized) = resized.plan(from, EpochKey::new(1, 2), draw, 0)
            && !random
        {
            let (made, is) = (resized.output(), |a: usize, b: usize| a.abs_diff(b) <= 1);
            let inside = made.height <= size.height + 1 && made.width <= size.width + 1;
            let around = made.height + 1 >= size.height && made.width + 1 >= size.width;
            prop_assert!(longest < 1.0 || inside);
            prop_assert!(longest > 0.0 || around);
            let one = is(made.height, size.height) || is(made.width, size.width);
            prop_assert!((longest > 0.0 && longest < 1.0) || one, "{made} for {size}");
        }
    }

    #[test]
    fn erased_rectangles_share_the_area(most in 1usize..6, draw: u64) {
        let (scale, ratio) = ((0.3, 0.3), (1.0, 1.0));
        let op = RandomErasing { p: 1.0, scale, ratio, value: ErasingValue::RandomColor, count: (1, most) };
        let size = Size::new(100, 100);
        let spec = Spec::new(Vec::new(), vec![Arc::new(op)], Kernels::Torch).unwrap();
        let plan = spec.plan(size, EpochKey::new(1, 2), draw, 0).unwrap();
        let count = plan.float_steps.len();
        prop_assert!((1..=most).contains(&count));
        for step in &plan.float_steps {
            let Step::Erase { rect, .. } = step else { panic!("{step:?}") };
            let side = (3000.0 / count as f64).sqrt();
            prop_assert!(rect.is_inside(size) && (rect.height as f64 - side).abs() <= 0.5);
        }
    }
}

#[test]
fn trimming_stays_inside() {
    let size = |border: usize| spec(TrimBorder(border)).unwrap().output_size(Some(Size::new(9, 7)));
    assert_eq!(size(3).unwrap(), Size::new(3, 1));
    assert_eq!(plan(TrimBorder(3), Size::new(9, 7), 0).output(), Size::new(3, 1));
    for border in [4, usize::MAX] {
        assert!(size(border).is_err());
        let nothing = spec(TrimBorder(border)).unwrap();
        let error = nothing.plan(Size::new(9, 7), EpochKey::new(0, 0), 0, 0).unwrap_err();
        assert!(error.to_string().contains("at each edge nothing is left of 9 x 7"), "{error}");
    }
}

#[test]
fn weighted_operations_come_once() {
    let weights = Some(vec![1.0, 0.0, 2.0]);
    let names = [TimmName::Invert, TimmName::Equalize, TimmName::AutoContrast];
    let ops: Vec<Arc<dyn Op>> =
        names.iter().map(|&name| Arc::new(operation(name)) as Arc<dyn Op>).collect();
    let mut first = 0;
    for draw in 0..400 {
        let policy = TimmRandAugment { ops: ops.clone(), num_layers: 2, weights: weights.clone() };
        let steps = plan(policy, Size::new(4, 4), draw).steps;
        let names: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
        assert!(names.len() == 2 && names[0] != names[1] && !names.concat().contains("Equalize"));
        first += usize::from(names[0].contains("AutoContrast"));
    }
    // Two of three.
    assert!((220..314).contains(&first), "{first}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let op = || operation(TimmName::Rotate);
    let policy = |weights: Option<Vec<f64>>, num_layers: usize| TimmRandAugment {
        ops: all()[..2].to_vec(),
        num_layers,
        weights,
    };
    let mix = |alpha: f64, width: usize| TimmAugMix { ops: all(), alpha, width, depth: None };
    let fit = |longest: f64, stretch: (f64, (f64, f64))| ResizeKeepRatio {
        size: Size::new(4, 4),
        longest,
        filter: Filter::Bilinear,
        zoom: (0.0, (1.0, 1.0)),
        zoom_by_area: false,
        stretch,
    };
    let erase = |count: (usize, usize)| RandomErasing {
        p: 1.0,
        scale: (0.1, 0.2),
        ratio: (1.0, 1.0),
        value: ErasingValue::Random,
        count,
    };
    for (made, text) in [
        (spec(TimmOp { p: 1.5, ..op() }), "p must be a probability"),
        (spec(TimmOp { magnitude: f64::NAN, ..op() }), "magnitude must be finite, got NaN"),
        (spec(TimmOp { magnitude_std: -1.0, ..op() }), "magnitude_std must be at least 0, got -1"),
        (spec(TimmOp { magnitude_max: f64::INFINITY, ..op() }), "magnitude_max must be finite"),
        (spec(TimmOp { translate_const: f64::NAN, ..op() }), "translate_const must be finite"),
        (spec(TimmOp { translate_pct: f64::NAN, ..op() }), "translate_pct must be finite"),
        (spec(TimmOp { samplings: Vec::new(), ..op() }), "interpolation needs at least one name"),
        (spec(policy(None, 2000)), "num_layers must be 0..=1024, got 2000"),
        (spec(policy(Some(vec![1.0]), 1)), "2 operations needs a weight of at least 0, and 1 of"),
        (spec(policy(Some(vec![1.0, 0.0]), 2)), "and 2 of them one above it; got [1.0, 0.0]"),
        (spec(mix(0.0, 3)), "alpha must be positive and finite, got 0"),
        (spec(mix(1.0, 0)), "width must be in 1..=1024, got 0"),
        (spec(fit(1.5, (0.0, (1.0, 1.0)))), "longest must be in 0..=1, got 1.5"),
        (spec(fit(0.5, (0.5, (1.1, 0.9)))), "random_aspect_range must be (low, high)"),
        (spec(erase((2, 1))), "count must be (fewest, most) with 1 <= fewest <= most"),
        (
            spec(CropOrPad { size: Size::new(0, 4), border: Border::Edge, random: true }),
            "size must",
        ),
    ] {
        let error = made.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    for op in [Arc::new(op()) as Arc<dyn Op>, Arc::new(mix(1.0, 3))] {
        let error = Spec::new(Vec::new(), vec![op], Kernels::Pillow).unwrap_err();
        assert!(error.to_string().contains("needs 8-bit pixels: put it before ToDtype"), "{error}");
    }
    let thin = spec(fit(1.0, (0.0, (1.0, 1.0)))).unwrap();
    let error = thin.plan(Size::new(1, 100), EpochKey::new(0, 0), 0, 0).unwrap_err();
    assert!(
        error.to_string().contains("makes a side of 0 pixels of an image of 1 x 100"),
        "{error}"
    );
}

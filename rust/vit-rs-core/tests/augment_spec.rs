//! Properties of drawn plans: whatever the parameters, crops lie inside the image and sizes are those asked for.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::sync::Arc;

use vit_rs_core::augment::plan::{Border, Kernels, Sampling, Step};
use vit_rs_core::augment::spec::{
    AugMix, AutoAugment, CenterCrop, Look, Op, Policy, RandAugment, RandomAffine, RandomApply,
    RandomChoice, RandomCrop, RandomHorizontalFlip, RandomOrder, RandomResizedCrop, RandomRotation,
    RandomVerticalFlip, Resize, Spec, Target, TrivialAugmentWide,
};
use vit_rs_core::error::Error;
use vit_rs_core::image::Size;
use vit_rs_core::resample::taps::Filter;
use vit_rs_core::resample::u8::Rounding;
use vit_rs_core::rng::EpochKey;

fn sizes(most: usize) -> impl Strategy<Value = Size> {
    (1..most, 1..most).prop_map(|(height, width)| Size::new(height, width))
}

fn dynamic(op: impl Op + 'static) -> Arc<dyn Op> {
    Arc::new(op)
}

fn simple() -> impl Strategy<Value = Arc<dyn Op>> {
    let filter = Filter::Bilinear;
    let resized_crop = (sizes(40), 0.01..1.0f64, 0.0..1.0f64, 0.1..3.0f64, 1.0..4.0f64).prop_map(
        move |(size, low, more, ratio, wider)| {
            let scale = (low, low + (1.0 - low) * more);
            dynamic(RandomResizedCrop { size, scale, ratio: (ratio, ratio * wider), filter })
        },
    );
    let border = prop_oneof![
        Just(Border::Constant([1, 2, 3])),
        Just(Border::Edge),
        Just(Border::Reflect),
        Just(Border::Symmetric)
    ];
    let crop = (sizes(60), proptest::array::uniform4(0usize..9), border).prop_map(
        |(size, padding, border)| {
            dynamic(RandomCrop { size, padding, pad_if_needed: true, border })
        },
    );
    let target = prop_oneof![
        sizes(50).prop_map(Target::Exact),
        (1usize..50).prop_map(Target::ShortSide),
        (1usize..50, 1usize..50)
            .prop_map(|(short, more)| Target::Within { short, most: short + more }),
    ];
    prop_oneof![
        resized_crop,
        crop,
        sizes(50).prop_map(|size| dynamic(CenterCrop(size))),
        target.prop_map(move |target| dynamic(Resize { target, filter })),
        (0.0..=1.0f64).prop_map(|p| dynamic(RandomHorizontalFlip(p))),
        (0.0..=1.0f64).prop_map(|p| dynamic(RandomVerticalFlip(p))),
    ]
}

fn policies() -> impl Strategy<Value = Arc<dyn Op>> {
    let look = Look { sampling: Sampling::Nearest, fill: None };
    let (degrees, shear) = ((-200.0, 200.0), Some([(-30.0, 30.0), (0.0, 9.0)]));
    let (translate, scale) = (Some((0.5, 1.0)), Some((0.1, 3.0)));
    let center = proptest::option::of((-9.0..9.0f64, 0.0..70.0f64));
    let turns = (any::<bool>(), center).prop_map(move |(expand, center)| {
        if expand {
            dynamic(RandomRotation { degrees, expand, center, look })
        } else {
            dynamic(RandomAffine { degrees, translate, scale, shear, center, look })
        }
    });
    let mix = (1usize..11, 1usize..4, proptest::option::of(1usize..4), 0.01..9.0f64, any::<bool>())
        .prop_map(move |(severity, mixture_width, chain_depth, alpha, all_ops)| {
            dynamic(AugMix { severity, mixture_width, chain_depth, alpha, all_ops, look })
        });
    let policy = prop_oneof![Just(Policy::ImageNet), Just(Policy::Cifar10), Just(Policy::Svhn)];
    prop_oneof![
        turns,
        mix,
        (policy, any::<bool>()).prop_map(move |(policy, v1)| dynamic(AutoAugment {
            policy,
            look,
            v1
        })),
        (0usize..4, 0usize..9, any::<bool>()).prop_map(move |(num_ops, magnitude, v1)| {
            dynamic(RandAugment { num_ops, magnitude, num_magnitude_bins: 9, look, v1 })
        }),
        (2usize..40, any::<bool>()).prop_map(move |(num_magnitude_bins, v1)| {
            dynamic(TrivialAugmentWide { num_magnitude_bins, look, v1 })
        }),
    ]
}

fn ops() -> impl Strategy<Value = Arc<dyn Op>> {
    let chain = || proptest::collection::vec(simple(), 1..3);
    prop_oneof![
        4 => simple(),
        2 => policies(),
        1 => (chain(), 0.0..=1.0f64).prop_map(|(ops, p)| dynamic(RandomApply { ops, p })),
        1 => (chain(), chain(), 0.0..1.0f64).prop_map(|(one, two, weight)| {
            dynamic(RandomChoice { chains: vec![one, two], weights: vec![weight, 0.1] })
        }),
        1 => chain().prop_map(|ops| dynamic(RandomOrder(ops))),
    ]
}

fn spec(ops: Vec<Arc<dyn Op>>) -> vit_rs_core::error::Result<Spec> {
    Spec::new(ops, Vec::new(), Kernels::Torch)
}

proptest! {
    #[test]
    fn crops_stay_inside_and_sizes_are_kept(
        chain in proptest::collection::vec(ops(), 0..5),
        source in sizes(70),
        seed: u64,
        draw: u64,
    ) {
        let spec = spec(chain).unwrap();
        let key = EpochKey::new(seed, 3);
        let plan = match spec.plan(source, key, draw, 0) {
            // A limit to the longer side leaves nothing of the shorter one, as in torchvision.
            Err(Error::Sample { reason, .. }) if reason.ends_with(": nothing") => return Ok(()),
            plan => plan.unwrap(),
        };
        prop_assert_eq!(&plan, &spec.plan(source, key, draw, 0).unwrap());
        let mut size = source;
        for step in &plan.steps {
            if let Step::Crop(rect) = step {
                prop_assert!(rect.is_inside(size), "{:?} in {}", rect, size);
            }
            size = step.size_after(size);
            prop_assert!(size.height > 0 && size.width > 0);
        }
        prop_assert_eq!(size, plan.output());
        for before in [Some(source), None] {
            if let Ok(fixed) = spec.output_size(before) {
                prop_assert_eq!(size, fixed);
            }
        }
        let region = plan.split().region;
        prop_assert!(region.is_inside(source));
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused(low in -1.0..2.0f64, high in -1.0..2.0f64) {
        let op = RandomResizedCrop {
            size: Size::new(4, 4),
            scale: (low, high),
            ratio: (1.0, 1.0),
            filter: Filter::Bilinear,
        };
        let fine = 0.0 < low && low <= high && high <= 1.0;
        prop_assert_eq!(spec(vec![dynamic(op)]).is_ok(), fine);
    }
}

#[test]
fn a_chain_without_a_fixed_size_is_refused_for_files() {
    let flips = spec(vec![dynamic(RandomHorizontalFlip(0.5))]).unwrap();
    assert!(flips.output_size(None).is_err_and(|e| e.to_string().contains("a batch needs one")));
    assert_eq!(flips.output_size(Some(Size::new(2, 3))).unwrap(), Size::new(2, 3));
}

#[test]
fn operations_on_tensors_give_torchs_pixels() {
    let resize = |side| {
        let target = Target::Exact(Size::new(side, side));
        dynamic(Resize { target, filter: Filter::Bilinear })
    };
    let roundings = |spec: &Spec| {
        let plan = spec.plan(Size::new(9, 9), EpochKey::new(0, 0), 0, 0).unwrap();
        let rounding = |step: &Step| match step {
            Step::Resize { rounding, .. } => *rounding,
            _ => panic!("{step:?}"),
        };
        plan.steps.iter().chain(&plan.float_steps).map(rounding).collect::<Vec<_>>()
    };
    let ops = vec![resize(2), resize(3), resize(4)];
    let spec = Spec::new(ops.clone(), vec![resize(5)], Kernels::Pillow).unwrap();
    let (torch, pillow, older) = (Rounding::Torch, Rounding::Pillow, Rounding::Pillow12);
    assert_eq!(roundings(&spec), [pillow, pillow, pillow, torch]);
    for (at, expected) in [(0, [torch; 3]), (2, [pillow, pillow, torch]), (9, [pillow; 3])] {
        assert_eq!(roundings(&spec.clone().tensors_from(at))[..3], expected);
    }
    let spec = spec.before_pillow_13().tensors_from(1);
    assert_eq!(roundings(&spec), [older, torch, torch, torch]);
    let spec = Spec::new(ops, Vec::new(), Kernels::Torch).unwrap();
    assert_eq!(roundings(&spec.before_pillow_13().tensors_from(2)), [torch; 3]);
}

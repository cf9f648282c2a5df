//! Properties of drawn plans: whatever the parameters, crops lie inside the image and sizes are those asked for.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vit_rs_core::augment::plan::{Border, Step};
use vit_rs_core::augment::spec::{Op, Spec, Target};
use vit_rs_core::image::Size;
use vit_rs_core::resample::taps::Filter;
use vit_rs_core::rng::EpochKey;

fn sizes(most: usize) -> impl Strategy<Value = Size> {
    (1..most, 1..most).prop_map(|(height, width)| Size::new(height, width))
}

fn ops() -> impl Strategy<Value = Op> {
    let filter = Filter::Bilinear;
    let resized_crop = (sizes(40), 0.01..1.0f64, 0.0..1.0f64, 0.1..3.0f64, 1.0..4.0f64).prop_map(
        move |(size, low, more, ratio, wider)| Op::RandomResizedCrop {
            size,
            scale: (low, low + (1.0 - low) * more),
            ratio: (ratio, ratio * wider),
            filter,
        },
    );
    let border = prop_oneof![
        Just(Border::Constant([1, 2, 3])),
        Just(Border::Edge),
        Just(Border::Reflect),
        Just(Border::Symmetric)
    ];
    let crop = (sizes(60), proptest::array::uniform4(0usize..9), border).prop_map(
        |(size, padding, border)| Op::RandomCrop { size, padding, pad_if_needed: true, border },
    );
    prop_oneof![
        resized_crop,
        crop,
        sizes(50).prop_map(Op::CenterCrop),
        sizes(50).prop_map(move |size| Op::Resize { target: Target::Exact(size), filter }),
        (1usize..50).prop_map(move |side| Op::Resize { target: Target::ShortSide(side), filter }),
        (0.0..=1.0f64).prop_map(Op::RandomHorizontalFlip),
        (0.0..=1.0f64).prop_map(Op::RandomVerticalFlip),
    ]
}

proptest! {
    #[test]
    fn crops_stay_inside_and_sizes_are_kept(
        chain in proptest::collection::vec(ops(), 0..5),
        source in sizes(70),
        seed: u64,
        draw: u64,
    ) {
        let spec = Spec::new(chain).unwrap();
        let key = EpochKey::new(seed, 3);
        let plan = spec.plan(source, key, draw, 0).unwrap();
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
        prop_assert_eq!(size, spec.output_size(Some(source)).unwrap());
        if let Ok(fixed) = spec.output_size(None) {
            prop_assert_eq!(size, fixed);
        }
        let (region, _, _) = plan.split();
        prop_assert!(region.is_inside(source));
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused(low in -1.0..2.0f64, high in -1.0..2.0f64) {
        let op = Op::RandomResizedCrop {
            size: Size::new(4, 4),
            scale: (low, high),
            ratio: (1.0, 1.0),
            filter: Filter::Bilinear,
        };
        let fine = 0.0 < low && low <= high && high <= 1.0;
        prop_assert_eq!(Spec::new(vec![op]).is_ok(), fine);
    }
}

#[test]
fn a_chain_without_a_fixed_size_is_refused_for_files() {
    let flips = Spec::new(vec![Op::RandomHorizontalFlip(0.5)]).unwrap();
    assert!(flips.output_size(None).is_err_and(|e| e.to_string().contains("a batch needs one")));
    assert_eq!(flips.output_size(Some(Size::new(2, 3))).unwrap(), Size::new(2, 3));
}

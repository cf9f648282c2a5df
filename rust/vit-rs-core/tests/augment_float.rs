//! Steps on floats beside the same steps on bytes, whose results are those of the floats rounded or cut.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vit_rs_core::augment::canvas::Canvas;
use vit_rs_core::augment::float::FloatCanvas;
use vit_rs_core::augment::plan::{Affine, Border, Color, Fill, Kernels, Sampling, Step};
use vit_rs_core::image::{ImageView, Rect, Size};
use vit_rs_core::line::Unit;
use vit_rs_core::resample::taps::Filter;
use vit_rs_core::resample::u8::Rounding;

/// A step and how far, in levels of 255, its result on bytes may be from that on floats.
fn steps(size: Size) -> impl Strategy<Value = (Step, f32)> {
    let Size { height, width } = size;
    let border = prop_oneof![
        Just(Border::Constant([3, 200, 77])),
        Just(Border::Edge),
        Just(Border::Reflect),
        Just(Border::Symmetric),
    ];
    let rect = (0..height, 0..width).prop_flat_map(move |(top, left)| {
        let sides = (1..=height - top, 1..=width - left);
        sides.prop_map(move |(height, width)| Rect { top, left, height, width })
    });
    let affine = prop::array::uniform6(-1.5..1.5).prop_map(move |mut inverse| {
        inverse[2] *= 9.0;
        inverse[5] *= 9.0;
        let map = Affine { inverse, size, sampling: Sampling::Bilinear, fill: Some([9; 3]) };
        Step::Affine(map, Kernels::Torch)
    });
    let blur = (0..5_usize, 0..5_usize, 0.3..4.0).prop_map(|(height, width, sigma)| {
        let kernel = Size::new(2 * height + 1, 2 * width + 1);
        Step::GaussianBlur { kernel, sigma: (sigma, sigma) }
    });
    let color = prop_oneof![
        (0.0..2.0).prop_map(Color::Brightness),
        (0.0..2.0).prop_map(Color::Contrast),
        (0.0..2.0).prop_map(Color::Saturation),
        (0.0..2.0).prop_map(Color::Sharpness),
        Just(Color::Grayscale),
        Just(Color::Invert),
        Just(Color::AutoContrast),
    ];
    prop_oneof![
        rect.clone().prop_map(|rect| (Step::Crop(rect), 0.0)),
        (-9..9_i64, -9..9_i64, 1..19_usize, 1..19_usize, border).prop_map(
            |(top, left, height, width, border)| {
                (Step::Window { top, left, size: Size::new(height, width), border }, 0.0)
            }
        ),
        Just((Step::FlipHorizontal, 0.0)),
        Just((Step::FlipVertical, 0.0)),
        rect.prop_map(|rect| (Step::Erase { rect, fill: Fill::Constant(vec![31.0]) }, 0.0)),
        // Bytes are rounded between the passes too; cubic kernels overshoot there, and are left out.
        (1..20_usize, 1..20_usize).prop_map(|(height, width)| {
            let (size, filter) = (Size::new(height, width), Filter::Bilinear);
            (Step::Resize { size, filter, rounding: Rounding::Torch }, 1.5)
        }),
        affine.prop_map(|step| (step, 0.501)),
        blur.prop_map(|step| (step, 0.501)),
        // Factors cut the gray and the result to whole numbers.
        color.prop_map(|color| (Step::Color(color, Kernels::Torch), 4.001)),
    ]
}

proptest! {
    #[test]
    fn floats_are_bytes_before_rounding(
        (size, step, bound) in (1..14_usize, 1..14_usize).prop_flat_map(|(height, width)| {
            let size = Size::new(height, width);
            steps(size).prop_map(move |(step, bound)| (size, step, bound))
        }),
        channels in prop_oneof![Just(1_usize), Just(3)],
        seed: u64,
    ) {
        let mut stream = vit_rs_core::rng::Stream::keyed(seed);
        let data: Vec<u8> = (0..size.pixels() * channels).map(|_| stream.next_u32() as u8).collect();
        let image = ImageView::new(&data, size, channels, size.width * channels).unwrap();
        let mut canvas = Canvas::default();
        let bytes = canvas.apply(image, std::slice::from_ref(&step)).unwrap();
        // Colours take 1 for white; everything else takes values as they come.
        let (white, unit) = match step {
            Step::Color(..) => (255.0, Unit::MULTIPLIED),
            _ => (1.0, Unit::ONE),
        };
        let mut floats = FloatCanvas::default();
        let floats = floats.apply(image, unit, std::slice::from_ref(&step)).unwrap();
        prop_assert_eq!((floats.size(), floats.channels()), (bytes.size(), bytes.channels()));
        for y in 0..bytes.size().height {
            for (&byte, &float) in bytes.row(y).iter().zip(floats.row(y)) {
                prop_assert!((f32::from(byte) - float * white).abs() <= bound, "{} {} {:?}", byte, float, step);
            }
        }
    }

    #[test]
    fn chains_of_a_mix_are_weighed(keep in 0.0..1.0_f32, seed: u64) {
        let mut stream = vit_rs_core::rng::Stream::keyed(seed);
        let data: Vec<u8> = (0..48).map(|_| stream.next_u32() as u8).collect();
        let image = ImageView::new(&data, Size::new(4, 4), 3, 12).unwrap();
        let chain = vec![Step::FlipVertical, Step::Color(Color::Invert, Kernels::Torch)];
        let step = Step::Mix { keep, chains: vec![(0.25, chain), (0.5, Vec::new())] };
        let mut canvas = FloatCanvas::default();
        let mixed = canvas.apply(image, Unit::DIVIDED, &[step]).unwrap();
        for y in 0..4 {
            for (x, &value) in mixed.row(y).iter().enumerate() {
                let of = |y: usize| f32::from(image.row(y)[x]) / 255.0;
                let expected = keep * of(y) + 0.25 * (1.0 - of(3 - y)) + 0.5 * of(y);
                prop_assert!((value - expected).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn wrong_steps_are_refused() {
    let image = ImageView::new(&[0; 12], Size::new(2, 2), 3, 6).unwrap();
    let outside = Rect { top: 1, left: 0, height: 2, width: 1 };
    for step in [
        Step::Crop(outside),
        Step::Erase { rect: outside, fill: Fill::Normal(0) },
        Step::Normalize { mean: vec![0.0; 2], std: vec![1.0; 2] },
        Step::BoxBlur(1.0),
        Step::Blend { share: 0.5, steps: Vec::new() },
        Step::Color(Color::SolarizeAdd(9), Kernels::Torch),
        Step::Affine(
            Affine {
                inverse: [1.0, 0.0, 0.5, 0.0, 1.0, 0.0],
                size: Size::new(2, 2),
                sampling: Sampling::Bicubic,
                fill: None,
            },
            Kernels::Pillow,
        ),
        Step::Normalize { mean: vec![0.0], std: vec![0.0] },
        Step::Mix {
            keep: 0.5,
            chains: vec![(0.5, vec![Step::Crop(Rect { top: 0, ..outside }), Step::FlipVertical])],
        },
    ] {
        let mut canvas = FloatCanvas::default();
        let made =
            canvas.apply(image, Unit::ONE, std::slice::from_ref(&step)).map(|view| view.size());
        // The crop of the mix keeps the height only.
        assert!(made.is_err(), "{step:?}");
    }
}

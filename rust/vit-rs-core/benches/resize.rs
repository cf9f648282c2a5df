//! Resizes of photographs, beside `fast_image_resize`: microseconds an image on one thread.
//!
//!     cargo bench -p vit-rs-core --bench resize -- [WORDS OF A CASE]
//!
//! Ours keeps the passes' order and rounding of torch or Pillow; the peer goes vertical first, so that its results are
//! not quite the same. Where one size comes again and again, ours keeps the weights and the peer makes them anew; in the
//! first case both make them each time. Rounds are interleaved; the fastest of each is shown, which other work on the machine disturbs least.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use fast_image_resize as fir;
use vit_rs_core::image::{ImageBuf, ImageView, Size};
use vit_rs_core::resample::taps::Filter;
use vit_rs_core::resample::u8::{Resizer, Rounding};

const ROUNDS: usize = 60;

/// What the decoder leaves: a region of a larger image.
struct Case {
    name: &'static str,
    from: Vec<Size>,
    to: Size,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cases = [
        Case { name: "a new crop each time -> 224", from: crops(), to: Size::new(224, 224) },
        same("100 x 130 -> 224", (100, 130), (224, 224)),
        same("200 x 180 -> 224", (200, 180), (224, 224)),
        same("300 x 330 -> 224", (300, 330), (224, 224)),
        same("400 x 400 -> 224", (400, 400), (224, 224)),
        same("375 x 500 -> 256 x 341", (375, 500), (256, 341)),
        same("1500 x 2000 -> 256 x 341", (1500, 2000), (256, 341)),
    ];
    let filters = [
        ("bilinear", Filter::Bilinear, fir::FilterType::Bilinear),
        ("bicubic", Filter::Bicubic { a: -0.5 }, fir::FilterType::CatmullRom),
        ("lanczos", Filter::Lanczos3, fir::FilterType::Lanczos3),
    ];
    println!(
        "{:30} {:9} {:>8} {:>8} {:>8} {:>14}",
        "us an image", "", "torch", "Pillow", "peer", "torch / peer"
    );
    // cargo adds an option of its own.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    for case in &cases {
        for (name, filter, peer) in filters {
            let title = format!("{} {name}", case.name);
            if !chosen.iter().all(|word| title.contains(word)) {
                continue;
            }
            let [torch, pillow, peer] = measure(case, filter, peer)?;
            println!(
                "{:30} {name:9} {torch:8.1} {pillow:8.1} {peer:8.1} {:14.2}",
                case.name,
                torch / peer
            );
        }
    }
    Ok(())
}

fn same(name: &'static str, from: (usize, usize), to: (usize, usize)) -> Case {
    Case { name, from: vec![Size::new(from.0, from.1)], to: Size::new(to.0, to.1) }
}

/// Sizes as a random resized crop of a 375 x 500 image draws them, spread evenly.
fn crops() -> Vec<Size> {
    let crop = |i: usize| {
        let (area, ratio) =
            (0.08 + 0.92 * (i * 7 % 16) as f64 / 15.0, 0.75 + i as f64 / 15.0 * 0.58);
        let (height, width) =
            ((area * 187_500.0 / ratio).sqrt(), (area * 187_500.0 * ratio).sqrt());
        Size::new((height as usize).clamp(1, 375), (width as usize).clamp(1, 500))
    };
    (0..16).map(crop).collect()
}

fn measure(
    case: &Case,
    filter: Filter,
    peer: fir::FilterType,
) -> Result<[f64; 3], Box<dyn std::error::Error>> {
    let most = |side: fn(&Size) -> usize| case.from.iter().map(side).max().unwrap_or(1);
    let stored = Size::new(most(|size| size.height), most(|size| size.width));
    let stride = stored.width * 3;
    let data: Vec<u8> = (0..stored.height * stride)
        .map(|i| ((i / 3 % 97) * 2 + (i / stride % 61) + i.wrapping_mul(2_654_435_761) % 32) as u8)
        .collect();
    let photograph = fir::images::ImageRef::new(
        stored.width as u32,
        stored.height as u32,
        &data,
        fir::PixelType::U8x3,
    )?;
    let mut resizers = [Resizer::default(), Resizer::default()];
    let mut targets = [ImageBuf::default(), ImageBuf::default()];
    let mut peer_resizer = fir::Resizer::new();
    let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(peer));
    let (width, height) = (case.to.width as u32, case.to.height as u32);
    let mut peer_target = fir::images::Image::new(width, height, fir::PixelType::U8x3);
    let mut best = [f64::INFINITY; 3];
    for _ in 0..ROUNDS {
        for (i, rounding) in [Rounding::Torch, Rounding::Pillow].into_iter().enumerate() {
            let clock = Instant::now();
            for &size in &case.from {
                let view = ImageView::new(&data, size, 3, stride)?;
                resizers[i].resize(view, case.to, filter, rounding, &mut targets[i])?;
            }
            best[i] = best[i].min(clock.elapsed().as_secs_f64());
        }
        let clock = Instant::now();
        for &size in &case.from {
            // A view of its own: the resizer's option for crops lets samples outside weigh in.
            let (width, height) = (size.width as u32, size.height as u32);
            let crop = fir::images::CroppedImage::new(&photograph, 0, 0, width, height)?;
            peer_resizer.resize(&crop, &mut peer_target, &options)?;
        }
        best[2] = best[2].min(clock.elapsed().as_secs_f64());
    }
    let rows = |view: ImageView<'_>| -> Vec<u8> {
        (0..case.to.height).flat_map(|y| view.row(y).to_vec()).collect()
    };
    let [torch, pillow] = [rows(targets[0].view()?), rows(targets[1].view()?)];
    for other in [&pillow[..], peer_target.buffer()] {
        let apart = torch.iter().zip(other).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>();
        let mean = apart / torch.len() as f64;
        assert!(mean < 0.5, "{}, {filter:?}: {mean} levels apart on average", case.name);
    }
    Ok(best.map(|seconds| seconds * 1e6 / case.from.len() as f64))
}

//! What one thread can do at most, which a loader is measured against: JPEG files in memory to normalised crops.
//!
//!     cargo bench -p vit-rs-core --bench loader_limit -- FOLDER [ROUNDS]
//!
//! Every JPEG file below FOLDER, with the crops of `RandomResizedCrop(224)` and a random flip, the same for all three:
//!
//! - `decode`: the crop's region and no more.
//! - `bare`: that, `fast_image_resize` with its own SIMD, and a plain loop that mirrors, scales and takes the channels
//!   apart: what a loop written by hand for this one case would do.
//! - `ours`: that decode, then what the loader runs: the steps of the plan and the last store.
//!
//! All three decode through `vit_rs_core::decode`, which is libjpeg-turbo behind a check of the markers. They take turns,
//! a few files each; shown is the median of the rounds.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fast_image_resize as fir;
use vit_rs_core::augment::canvas::Canvas;
use vit_rs_core::augment::plan::{Kernels, Plan, Split};
use vit_rs_core::augment::spec::{RandomHorizontalFlip, RandomResizedCrop, Spec};
use vit_rs_core::decode::{Decoder, Header, MAX_PIXELS};
use vit_rs_core::emit::{Dtype, Emit, Layout, Values};
use vit_rs_core::image::{ImageView, Size};
use vit_rs_core::line::Unit;
use vit_rs_core::resample::taps::Filter;
use vit_rs_core::rng::EpochKey;

const SIZE: Size = Size::new(224, 224);
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Files that one contender works on before the next has its turn.
const TURN: usize = 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    // cargo adds an option of its own.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let Some(folder) = words.next() else {
        println!("usage: cargo bench -p vit-rs-core --bench loader_limit -- FOLDER [ROUNDS]");
        return Ok(());
    };
    let rounds: u64 = words.next().map_or(Ok(9), |word| word.parse())?;
    let mut files = Vec::new();
    collect(Path::new(&folder), &mut files)?;
    if files.is_empty() {
        return Err(format!("there is no .jpg or .jpeg file below {folder}").into());
    }
    println!("{} files, one thread, {rounds} rounds, median images/s", files.len());
    for (name, filter, peer) in [
        ("bilinear", Filter::Bilinear, fir::FilterType::Bilinear),
        ("bicubic", Filter::Bicubic { a: -0.5 }, fir::FilterType::CatmullRom),
    ] {
        let [decode, bare, ours] = measure(&files, filter, peer, rounds)?;
        println!(
            "{name:9} decode {decode:7.0}   bare {bare:7.0}   ours {ours:7.0}   ours / bare {:.3}",
            ours / bare
        );
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<Vec<u8>>) -> Result<()> {
    let mut paths = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let extension = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
        if path.is_dir() {
            collect(&path, files)?;
        } else if extension.is_some_and(|extension| extension == "jpg" || extension == "jpeg") {
            files.push(std::fs::read(path)?);
        }
    }
    Ok(())
}

/// Images a second of each contender.
fn measure(
    files: &[Vec<u8>],
    filter: Filter,
    peer: fir::FilterType,
    rounds: u64,
) -> Result<[f64; 3]> {
    let (scale, ratio) = ((0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0));
    let crop = RandomResizedCrop { size: SIZE, scale, ratio, filter };
    let ops = vec![Arc::new(crop) as _, Arc::new(RandomHorizontalFlip(0.5)) as _];
    let spec = Spec::new(ops, Vec::new(), Kernels::Torch)?;
    let normalize = Some((MEAN.to_vec(), STD.to_vec()));
    let values = Values::Float { unit: Unit::MULTIPLIED, normalize };
    let emit = Emit::new(SIZE, 3, Layout::Nchw, Dtype::F32, &values)?;
    let mut floats = vec![0_f32; SIZE.pixels() * 3];
    let (mut decoder, mut canvas, mut bare) =
        (Decoder::default(), Canvas::default(), Bare::new(peer));
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..=rounds {
        let mut times = [Duration::ZERO; 3];
        let mut draws = files.iter().zip(0..);
        loop {
            let turn: Vec<_> = draws.by_ref().take(TURN).collect();
            if turn.is_empty() {
                break;
            }
            for (contender, time) in times.iter_mut().enumerate() {
                let clock = Instant::now();
                for &(bytes, draw) in &turn {
                    let header: Header = decoder.header(bytes, MAX_PIXELS)?;
                    let plan: Plan = spec.plan(header.size, EpochKey::new(0, round), draw, 0)?;
                    let Split { region, steps, mirrored, .. } = plan.split();
                    let view = decoder.decode_region(bytes, header, region)?;
                    match contender {
                        0 => {}
                        1 => bare.write(view, mirrored, &mut floats)?,
                        _ => {
                            let view = canvas.apply(view, steps)?;
                            emit.write(view, mirrored, bytemuck::cast_slice_mut(&mut floats))?;
                        }
                    }
                }
                *time += clock.elapsed();
            }
        }
        // The first round warms up.
        if round > 0 {
            for (rates, time) in rates.iter_mut().zip(times) {
                rates.push(files.len() as f64 / time.as_secs_f64());
            }
        }
    }
    Ok(rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
    }))
}

/// The loop without a loader.
struct Bare {
    resizer: fir::Resizer,
    options: fir::ResizeOptions,
    resized: fir::images::Image<'static>,
    padded: Vec<u8>,
}

impl Bare {
    fn new(filter: fir::FilterType) -> Self {
        let (width, height) = (SIZE.width as u32, SIZE.height as u32);
        Self {
            resizer: fir::Resizer::new(),
            options: fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter)),
            resized: fir::images::Image::new(width, height, fir::PixelType::U8x3),
            padded: Vec::new(),
        }
    }

    fn write(&mut self, region: ImageView<'_>, mirrored: bool, floats: &mut [f32]) -> Result<()> {
        let Size { height, width } = region.size();
        // The peer takes whole rows: of the last one, what stands right of the region may be missing.
        let needed = height * region.stride();
        let mut data = region.from_row(0);
        if data.len() < needed {
            self.padded.clear();
            self.padded.extend_from_slice(data);
            self.padded.resize(needed, 0);
            data = &self.padded;
        }
        let stored = (region.stride() / 3) as u32;
        let rows = fir::images::ImageRef::new(
            stored,
            height as u32,
            &data[..needed],
            fir::PixelType::U8x3,
        )?;
        let crop = fir::images::CroppedImage::new(&rows, 0, 0, width as u32, height as u32)?;
        self.resizer.resize(&crop, &mut self.resized, &self.options)?;
        let scales: [f32; 3] = std::array::from_fn(|c| 1.0 / (255.0 * STD[c]));
        let offsets: [f32; 3] = std::array::from_fn(|c| -MEAN[c] / STD[c]);
        let rows = self.resized.buffer().chunks_exact(SIZE.width * 3);
        for (y, row) in rows.enumerate() {
            let pixels = row.as_chunks::<3>().0;
            for (c, plane) in floats.chunks_exact_mut(SIZE.pixels()).enumerate() {
                let line = &mut plane[y * SIZE.width..][..SIZE.width];
                let value = |pixel: &[u8; 3]| f32::from(pixel[c]) * scales[c] + offsets[c];
                if mirrored {
                    line.iter_mut()
                        .zip(pixels.iter().rev())
                        .for_each(|(to, from)| *to = value(from));
                } else {
                    line.iter_mut().zip(pixels).for_each(|(to, from)| *to = value(from));
                }
            }
        }
        Ok(())
    }
}

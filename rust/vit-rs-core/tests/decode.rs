//! The decoders over the fuzz corpus, one small file of every kind: regions at every scale and orientation are parts
//! of the whole, and damaged files end in an image or an error. That the whole is Pillow's is a test in Python.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use vit_rs_core::decode::{Decoder, Format, Header, MAX_PIXELS, Orientation, Scale, jpeg};
use vit_rs_core::image::{ImageBuf, ImageView, Rect, Size};
use vit_rs_core::rng::{EpochKey, Stream};

// The fuzz driver's own text.
#[path = "../../fuzz/src/mutate.rs"]
mod mutate;
#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// The corpus by file name.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/decode");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.len() > 40);
    files
}

fn copied(view: ImageView<'_>) -> (Size, Vec<u8>) {
    let rows = (0..view.size().height).flat_map(|y| view.row(y)).copied();
    (view.size(), rows.collect())
}

/// Rectangles at every edge and corner, of one pixel and of all, and random ones.
fn regions(size: Size, random: &mut Stream) -> Vec<Rect> {
    let Size { height, width } = size;
    let mut regions = vec![size.rect()];
    for top in [0, height - 1] {
        for left in [0, width - 1] {
            regions.push(Rect { top, left, height: 1, width: 1 });
        }
    }
    // Columns and rows beside the borders of blocks.
    for start in [1, 7, 8, 15, 16, 17, 31, 32, 33] {
        regions.push(Rect { top: start, left: start, height: 1, width: 1 });
        regions.push(Rect { top: start, left: start + 16, height: 16, width: 17 });
        regions.push(Rect { top: 0, left: start, height, width: width - start });
    }
    for _ in 0..60 {
        let (top, left) = (mutate::below(random, height), mutate::below(random, width));
        regions.push(Rect {
            top,
            left,
            height: 1 + mutate::below(random, height - top),
            width: 1 + mutate::below(random, width - left),
        });
    }
    regions.retain(|region| region.is_inside(size));
    regions
}

#[test]
fn regions_are_parts_of_the_whole() {
    let mut decoder = Decoder::default();
    let mut whole = ImageBuf::default();
    for (name, bytes) in corpus() {
        let header = decoder.header(&bytes, MAX_PIXELS).unwrap();
        let mut random = EpochKey::new(1, 0).stream(0, 0, 0);
        for scale in Scale::ALL {
            let full = decoder.decode_scaled(&bytes, header, header.size.rect(), scale).unwrap();
            assert_eq!(full.size(), header.supported(scale).size(header.size));
            Orientation::Upright.apply(full, &mut whole).unwrap();
            for region in regions(header.size, &mut random) {
                let part = decoder.decode_scaled(&bytes, header, region, scale).unwrap();
                let place = header.supported(scale).rect(region);
                let expected = whole.view().unwrap().crop(place).unwrap();
                assert_eq!(copied(part), copied(expected), "{name} at {scale:?}: {region:?}");
            }
        }
    }
}

#[test]
fn regions_of_turned_images_are_parts_of_the_turned() {
    let (mut decoder, mut turned, mut part) = <(Decoder, ImageBuf, ImageBuf)>::default();
    for (name, bytes) in corpus().into_iter().filter(|file| file.0.starts_with("turned")) {
        let header = decoder.header(&bytes, MAX_PIXELS).unwrap();
        assert_ne!(header.orientation, Orientation::Upright, "{name}");
        for orientation in Orientation::ALL {
            let view = decoder.decode_region(&bytes, header, header.size.rect()).unwrap();
            orientation.apply(view, &mut turned).unwrap();
            let upright = orientation.oriented_size(header.size);
            for region in regions(upright, &mut EpochKey::new(2, 0).stream(0, 0, 0)) {
                let stored = orientation.stored_rect(region, header.size).unwrap();
                let view = decoder.decode_region(&bytes, header, stored).unwrap();
                orientation.apply(view, &mut part).unwrap();
                let expected = turned.view().unwrap().crop(region).unwrap();
                assert_eq!(copied(part.view().unwrap()), copied(expected), "{name}: {region:?}");
            }
        }
    }
}

#[test]
fn the_corpus_holds_every_kind() {
    let mut decoder = Decoder::default();
    let mut kinds = [0; 6];
    for (_, bytes) in corpus() {
        let Header { format, orientation, .. } = decoder.header(&bytes, MAX_PIXELS).unwrap();
        kinds[0] += u32::from(orientation != Orientation::Upright);
        match format {
            Format::Jpeg(jpeg::Markers { progressive, lossless, components, .. }) => {
                kinds[1] += u32::from(progressive);
                kinds[2] += u32::from(lossless);
                kinds[3] += u32::from(components == 4);
            }
            Format::Png => kinds[4] += 1,
            Format::WebP(_) => kinds[5] += 1,
        }
    }
    assert_eq!(kinds, [3, 8, 1, 3, 14, 5]);
}

#[test]
fn truncated_files_are_found_before_any_pixel() {
    let mut decoder = Decoder::default();
    for (name, bytes) in corpus() {
        for length in 0..bytes.len() {
            let error = decoder.header(&bytes[..length], MAX_PIXELS).unwrap_err().to_string();
            let told = length < 20 || error.contains("truncated");
            assert!(told, "{name}, {length} bytes: {error}");
        }
    }
}

#[test]
fn a_header_of_another_file_is_an_error() {
    let mut decoder = Decoder::default();
    let files = corpus();
    for (_, bytes) in &files {
        let header = decoder.header(bytes, MAX_PIXELS).unwrap();
        let header = Header { size: Size::new(62, 83), ..header };
        for (_, other) in &files {
            // Whatever comes back has the size that was asked for.
            let region = Rect { top: 60, left: 0, height: 2, width: 83 };
            if let Ok(view) = decoder.decode_region(other, header, region) {
                assert_eq!(view.size(), region.size());
            }
        }
    }
}

#[test]
fn damaged_files_end_in_an_image_or_an_error() {
    let seeds: Vec<Vec<u8>> = corpus().into_iter().map(|file| file.1).collect();
    let mut state = targets::State::default();
    for (_, target) in targets::TARGETS {
        for draw in 0..8000 {
            let mut random = EpochKey::new(3, 0).stream(draw, 0, 0);
            let mut file = seeds[draw as usize % seeds.len()].clone();
            let other = mutate::below(&mut random, seeds.len());
            mutate::mutate(&mut file, &seeds[other], &mut random);
            if let Err(text) = target(&mut state, &file, &mut random) {
                panic!("mutant {draw}: {text}");
            }
        }
    }
}

//! What is done with a damaged file, and what must hold whatever it contains.

use vit_rs_core::decode::{Decoder, Header, Orientation, Scale, exif};
use vit_rs_core::image::{ImageBuf, Rect, Size};
use vit_rs_core::rng::Stream;
use vit_rs_core::source::tar::header::Piped;
use vit_rs_core::source::tar::index::{index, index_bytes};

use crate::mutate::below;

/// Larger images are refused: it bounds the time of a run.
pub const MAX_PIXELS: usize = 1 << 20;

/// Decoders that live from file to file, as a loader's do: one file must leave nothing behind for the next.
#[derive(Default)]
pub struct State {
    decoder: Decoder,
    upright: ImageBuf,
}

/// A target: Ok says whether the file was accepted, Err what did not hold.
pub type Target = fn(&mut State, &[u8], &mut Stream) -> Result<bool, String>;

/// All targets by name.
pub const TARGETS: &[(&str, Target)] = &[("decode", decode), ("exif", exif), ("tar", tar)];

/// Header, then a region of the upright or stored image, at some scale.
pub fn decode(state: &mut State, bytes: &[u8], random: &mut Stream) -> Result<bool, String> {
    let State { decoder, upright } = state;
    let header = match decoder.header(bytes, MAX_PIXELS) {
        Ok(header) => header,
        Err(error) => return refused(&error),
    };
    let Header { size, orientation, .. } = header;
    if size.pixels() == 0 || size.pixels() > MAX_PIXELS {
        return Err(format!("a header of {size} was accepted"));
    }
    let scale = Scale::ALL[if random.chance(0.5) { 0 } else { below(random, 4) }];
    let region = region(orientation.oriented_size(size), random);
    let stored = orientation.stored_rect(region, size).map_err(|error| error.to_string())?;
    let expected = header.supported(scale).rect(stored).size();
    let view = match decoder.decode_scaled(bytes, header, stored, scale) {
        Ok(view) => view,
        Err(error) => return refused(&error),
    };
    if view.size() != expected || view.channels() != 3 {
        return Err(format!("{:?} x {} instead of {expected:?}", view.size(), view.channels()));
    }
    orientation.apply(view, upright).map_err(|error| error.to_string())?;
    let turned = upright.view().map_err(|error| error.to_string())?.size();
    if turned != orientation.oriented_size(expected) {
        return Err(format!("{turned} after turning {expected} by {orientation:?}"));
    }
    Ok(true)
}

/// A bare EXIF block: every one has an orientation.
pub fn exif(_: &mut State, bytes: &[u8], _: &mut Stream) -> Result<bool, String> {
    let orientation = exif::orientation(bytes);
    if exif::in_segment(bytes).is_some_and(|other| other != orientation) {
        return Err("the prefix changes the orientation".into());
    }
    Ok(orientation != Orientation::Upright)
}

/// A tar shard, read with and without jumps: samples that lie inside it, or the same error.
pub fn tar(_: &mut State, bytes: &[u8], random: &mut Stream) -> Result<bool, String> {
    let mut bytes = bytes.to_vec();
    if random.chance(0.7) {
        // Most damage would end at a checksum.
        bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar").for_each(seal);
    }
    let field = random.chance(0.8).then_some("label");
    let jumping = index_bytes(&bytes, field);
    let reading = index(Piped(&bytes[..]), field);
    if format!("{jumping:?}") != format!("{reading:?}") {
        return Err(format!("{jumping:?} with jumps, {reading:?} without"));
    }
    let samples = jumping.unwrap_or_default();
    let end =
        |offset: u64, size| offset.checked_add(size).is_some_and(|end| end <= bytes.len() as u64);
    if samples.iter().all(|sample| end(sample.offset, sample.size)) {
        return Ok(!samples.is_empty());
    }
    Err(format!("{samples:?} in {} bytes", bytes.len()))
}

/// Writes the checksum of a tar header.
pub fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An error must be one about the file. Memory is never the reason, since sizes are limited; libwebp says it of broken
/// alpha data too.
fn refused(error: &vit_rs_core::error::Error) -> Result<bool, String> {
    let text = error.to_string();
    let memory = text.to_lowercase().contains("memory") && !text.contains("alpha");
    if !error.is_bad_sample() || memory { Err(text) } else { Ok(false) }
}

fn region(size: Size, random: &mut Stream) -> Rect {
    if random.chance(0.3) {
        return size.rect();
    }
    let (top, left) = (below(random, size.height), below(random, size.width));
    Rect {
        top,
        left,
        height: 1 + below(random, size.height - top),
        width: 1 + below(random, size.width - left),
    }
}

//! What is done with a damaged file, and what must hold whatever it contains.

use vit_rs_core::decode::{Decoder, Header, Orientation, Scale, exif};
use vit_rs_core::image::{ImageBuf, Rect, Size};
use vit_rs_core::rng::Stream;

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
pub const TARGETS: &[(&str, Target)] = &[("decode", decode), ("exif", exif)];

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

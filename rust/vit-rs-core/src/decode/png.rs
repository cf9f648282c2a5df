//! PNG by the `png` crate, to RGB as Pillow's `convert("RGB")` gives it: palettes looked up, gray replicated, alpha
//! dropped, 16-bit colour cut to its upper byte. 16-bit gray without alpha is clipped at 255: that is Pillow's rule
//! too.

use std::io::Cursor;

use png::{BitDepth, ColorType, Transformations};

use super::exif;
use super::orientation::Orientation;
use crate::error::{Error, Result};
use crate::image::{ImageBuf, Size};

/// The bytes that every PNG begins with.
pub const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";

/// Bytes that the `png` crate may allocate beside the pixels: rows, a palette.
const MAX_BYTES: usize = 64 << 20;

fn broken(error: &png::DecodingError) -> Error {
    Error::decode(format!("PNG: {error}"))
}

/// Walks the chunks to the end of the image; returns the size that the first one states, and the orientation.
///
/// # Errors
/// [`Error::Decode`] for a broken or truncated file.
pub fn header(bytes: &[u8]) -> Result<(Size, Orientation)> {
    let truncated = |at: usize| {
        Error::decode(format!(
            "truncated PNG: it ends at byte {} in the chunk at byte {at}",
            bytes.len()
        ))
    };
    let mut at = SIGNATURE.len();
    let (mut size, mut orientation) = (None, None);
    loop {
        let &[l0, l1, l2, l3, ref name @ ..] =
            bytes.get(at..).and_then(<[u8]>::first_chunk::<8>).ok_or_else(|| truncated(at))?;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let start = at + 8;
        // Four bytes of checksum follow, which the decoder looks at.
        let end = start.checked_add(length).and_then(|end| end.checked_add(4));
        let end = end.filter(|&end| end <= bytes.len()).ok_or_else(|| truncated(at))?;
        let chunk = &bytes[start..end - 4];
        match (name, size) {
            (b"IHDR", None) => size = Some(frame(chunk)?),
            (_, None) => return Err(Error::decode("broken PNG: it does not begin with IHDR")),
            (b"eXIf", _) if orientation.is_none() => orientation = Some(exif::orientation(chunk)),
            (b"IEND", Some(size)) => return Ok((size, orientation.unwrap_or_default())),
            _ => {}
        }
        at = end;
    }
}

/// The size in an IHDR chunk.
fn frame(chunk: &[u8]) -> Result<Size> {
    let &[w0, w1, w2, w3, h0, h1, h2, h3, ..] = chunk
        .first_chunk::<13>()
        .ok_or_else(|| Error::decode(format!("broken PNG: {} bytes of IHDR", chunk.len())))?;
    let side = |bytes| u32::from_be_bytes(bytes) as usize;
    let size = Size::new(side([h0, h1, h2, h3]), side([w0, w1, w2, w3]));
    if size.pixels() == 0 {
        return Err(Error::decode(format!("broken PNG: its image is {size}")));
    }
    Ok(size)
}

/// Memory for pixels that are not RGB yet, reused from one image to the next.
#[derive(Debug, Default)]
pub struct Decoder {
    samples: Vec<u8>,
}

impl Decoder {
    /// Decodes the whole image of the given size, that of `bytes`, to RGB.
    ///
    /// # Errors
    /// [`Error::Decode`] for broken or truncated data.
    pub(super) fn decode(&mut self, bytes: &[u8], size: Size, into: &mut ImageBuf) -> Result<()> {
        let limits = png::Limits { bytes: MAX_BYTES };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
        // Compressed text and profiles could be bombs, and are of no use here.
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let info = decoder.read_header_info().map_err(|error| broken(&error))?;
        if size != Size::new(info.height as usize, info.width as usize) {
            return Err(Error::argument("a PNG's header with another file's bytes"));
        }
        let clips = info.bit_depth == BitDepth::Sixteen && info.color_type == ColorType::Grayscale;
        let strip = if clips { Transformations::IDENTITY } else { Transformations::STRIP_16 };
        decoder.set_transformations(Transformations::EXPAND | strip);
        let mut reader = decoder.read_info().map_err(|error| broken(&error))?;
        let (color, depth) = reader.output_color_type();
        let needed = reader
            .output_buffer_size()
            .ok_or_else(|| Error::decode(format!("PNG: {size} pixels do not fit memory")))?;
        let rgb = into.reshape(size, 3);
        let plain = (color, depth) == (ColorType::Rgb, BitDepth::Eight);
        if !plain && self.samples.len() < needed {
            self.samples.resize(needed, 0);
        }
        let target = if plain { &mut *rgb } else { &mut self.samples[..needed] };
        let frame = reader.next_frame(target).map_err(|error| broken(&error))?;
        if size != Size::new(frame.height as usize, frame.width as usize) {
            return Err(Error::decode(format!(
                "broken PNG: an image of {size} whose first frame is {} x {}",
                frame.height, frame.width
            )));
        }
        if !plain {
            to_rgb(color, depth, &self.samples[..needed], rgb)?;
        }
        // The file's end is read as well, so that damage behind the last row is found.
        reader.finish().map_err(|error| broken(&error))
    }
}

/// Samples as the decoder gives them to RGB.
fn to_rgb(color: ColorType, depth: BitDepth, samples: &[u8], rgb: &mut [u8]) -> Result<()> {
    let clip = |high, low| [if high == 0 { low } else { 255 }; 3];
    match (color, depth) {
        (ColorType::Rgba, BitDepth::Eight) => spread(samples, rgb, |[r, g, b, _]| [r, g, b]),
        (ColorType::Grayscale, BitDepth::Eight) => spread(samples, rgb, |[v]| [v; 3]),
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => spread(samples, rgb, |[v, _]| [v; 3]),
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            spread(samples, rgb, |[high, low]| clip(high, low));
        }
        // Gray with one value that is transparent.
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
            spread(samples, rgb, |[high, low, _, _]| clip(high, low));
        }
        _ => return Err(Error::decode(format!("PNG: unexpected {color:?} of {depth:?} bits"))),
    }
    Ok(())
}

fn spread<const FROM: usize>(
    samples: &[u8],
    rgb: &mut [u8],
    convert: impl Fn([u8; FROM]) -> [u8; 3],
) {
    let (from, _) = samples.as_chunks::<FROM>();
    let (to, _) = rgb.as_chunks_mut::<3>();
    for (source, target) in from.iter().zip(to) {
        *target = convert(*source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(chunks: &[u8]) -> String {
        match header(&[SIGNATURE.as_slice(), chunks].concat()) {
            Ok(header) => format!("{header:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn broken_structure_is_told() {
        let start = [0, 0, 0, 13, b'I', b'H', b'D', b'R'];
        let fields = [0, 0, 0, 5, 0, 0, 0, 7, 8, 2, 0, 0, 0];
        let frame = [&start[..], &fields, &[0; 4]].concat();
        let end = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0, 0, 0, 0];
        let whole = [&frame[..], &end].concat();
        assert!(told(&whole).contains("height: 7, width: 5"), "{}", told(&whole));
        assert!(
            told(&whole[..whole.len() - 1])
                .contains("truncated PNG: it ends at byte 44 in the chunk at byte 33")
        );
        assert!(told(&frame).contains("truncated"));
        assert!(told(&end).contains("does not begin with IHDR"));
        let short = [0, 0, 0, 2, b'I', b'H', b'D', b'R', 0, 0, 0, 0, 0, 0];
        assert!(told(&short).contains("2 bytes of IHDR"), "{}", told(&short));
        let endless = [&frame[..], &[0xFF; 4], b"tEXt", &[0; 9]].concat();
        assert!(told(&endless).contains("truncated"));
    }

    #[test]
    fn samples_that_are_not_expected_are_told() {
        let told = to_rgb(ColorType::Indexed, BitDepth::Eight, &[0], &mut [0; 3]);
        assert!(told.is_err_and(|error| error.to_string().contains("unexpected Indexed of Eight")));
    }
}

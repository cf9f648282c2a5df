//! PNG by the `png` crate, to RGB as Pillow's `convert("RGB")` gives it: palettes looked up, gray replicated, alpha
//! dropped. 16-bit samples are cut to their upper byte; Pillow does so for colour, and clips gray at 255.

use std::io::Cursor;

use png::{BitDepth, ColorType, Transformations};

use crate::error::{Error, Result};
use crate::image::{ImageBuf, Size};

fn broken(error: &png::DecodingError) -> Error {
    Error::decode(format!("PNG: {error}"))
}

fn reader(bytes: &[u8]) -> Result<png::Reader<Cursor<&[u8]>>> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.read_info().map_err(|error| broken(&error))
}

/// The size that the header states.
///
/// # Errors
/// [`Error::Decode`] for a broken header.
pub fn size(bytes: &[u8]) -> Result<Size> {
    let info = reader(bytes)?;
    let info = info.info();
    Ok(Size::new(info.height as usize, info.width as usize))
}

/// Decodes the whole image to RGB.
///
/// # Errors
/// [`Error::Decode`] for broken or truncated data.
pub fn decode(bytes: &[u8], into: &mut ImageBuf) -> Result<()> {
    let mut reader = reader(bytes)?;
    let size = Size::new(reader.info().height as usize, reader.info().width as usize);
    let bytes_needed = reader
        .output_buffer_size()
        .ok_or_else(|| Error::decode(format!("PNG: {size} pixels do not fit memory")))?;
    let mut pixels = vec![0; bytes_needed];
    let frame = reader.next_frame(&mut pixels).map_err(|error| broken(&error))?;
    // The file's end is read as well, so that one cut off behind its last row is found.
    reader.finish().map_err(|error| broken(&error))?;
    if frame.bit_depth != BitDepth::Eight {
        return Err(Error::decode(format!("PNG: unexpected bit depth {:?}", frame.bit_depth)));
    }
    let rgb = into.reshape(size, 3);
    match frame.color_type {
        ColorType::Rgb => rgb.copy_from_slice(&pixels[..rgb.len()]),
        ColorType::Rgba => spread::<4>(&pixels, rgb, |p| [p[0], p[1], p[2]]),
        ColorType::Grayscale => spread::<1>(&pixels, rgb, |p| [p[0]; 3]),
        ColorType::GrayscaleAlpha => spread::<2>(&pixels, rgb, |p| [p[0]; 3]),
        ColorType::Indexed => return Err(Error::decode("PNG: palette was not expanded")),
    }
    Ok(())
}

fn spread<const FROM: usize>(
    pixels: &[u8],
    rgb: &mut [u8],
    convert: impl Fn([u8; FROM]) -> [u8; 3],
) {
    let (from, _) = pixels.as_chunks::<FROM>();
    let (to, _) = rgb.as_chunks_mut::<3>();
    for (source, target) in from.iter().zip(to) {
        *target = convert(*source);
    }
}

//! Encoded bytes to pixels. The format is told by content, never by a file's name.

pub mod jpeg;
pub mod png;

use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Rect, Size};

/// Image formats that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JPEG: baseline, extended or progressive, 8 bits; with what its markers tell.
    Jpeg(jpeg::Markers),
    /// PNG.
    Png,
}

/// What an image's first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its format.
    pub format: Format,
    /// Its size as stored.
    pub size: Size,
}

/// Largest number of pixels that is decoded unless the user says otherwise: twice Pillow's warning level, where
/// Pillow refuses too.
pub const MAX_PIXELS: usize = 178_956_970;

/// Decoders and their memory, one per thread.
#[derive(Debug, Default)]
pub struct Decoder {
    jpeg: jpeg::Decoder,
    buffer: ImageBuf,
}

impl Decoder {
    /// Reads format and size, and finds truncated JPEGs by their markers and end.
    ///
    /// # Errors
    /// [`Error::Decode`] for an unknown format, a broken or truncated header, or more than `max_pixels` pixels.
    pub fn header(&mut self, bytes: &[u8], max_pixels: usize) -> Result<Header> {
        let header = sniff(bytes)?;
        if header.size.pixels() > max_pixels {
            return Err(Error::decode(format!(
                "{} = {} pixels are more than max_pixels = {max_pixels}",
                header.size,
                header.size.pixels()
            )));
        }
        Ok(header)
    }

    /// Decodes the pixels inside `region` to RGB; equal, byte for byte, to that part of a full decode.
    ///
    /// # Errors
    /// [`Error::Decode`] for broken data, [`Error::Argument`] for a region outside the image.
    pub fn decode_region(
        &mut self,
        bytes: &[u8],
        header: Header,
        region: Rect,
    ) -> Result<ImageView<'_>> {
        if !region.is_inside(header.size) {
            return Err(Error::argument(format!(
                "{region:?} is not inside an image of {}",
                header.size
            )));
        }
        let inner = match header.format {
            Format::Jpeg(markers) => {
                self.jpeg.decode_region(bytes, markers, region, &mut self.buffer)?
            }
            Format::Png => {
                png::decode(bytes, &mut self.buffer)?;
                region
            }
        };
        self.buffer.view()?.crop(inner)
    }
}

/// The format that the first bytes tell, and the size that its header states.
fn sniff(bytes: &[u8]) -> Result<Header> {
    if bytes.is_empty() {
        return Err(Error::decode("the file is empty"));
    }
    if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        let markers = jpeg::header(bytes)?;
        return Ok(Header { format: Format::Jpeg(markers), size: markers.size });
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Header { format: Format::Png, size: png::size(bytes)? });
    }
    let what = match bytes {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "WebP",
        [b'G', b'I', b'F', b'8', ..] => "GIF",
        [b'B', b'M', ..] => "BMP",
        [b'I', b'I', 0x2A, 0, ..] | [b'M', b'M', 0, 0x2A, ..] => "TIFF",
        _ => "no known image format",
    };
    let shown = &bytes[..bytes.len().min(8)];
    Err(Error::decode(format!("{what} (first bytes {shown:02x?}); JPEG and PNG can be read")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_formats_are_named() {
        let text = |bytes: &[u8]| sniff(bytes).map(|_| ()).map_err(|e| e.to_string());
        assert!(text(b"").is_err_and(|t| t.contains("empty")));
        assert!(text(b"RIFF0000WEBPVP8 ").is_err_and(|t| t.contains("WebP")));
        assert!(text(b"hello").is_err_and(|t| t.contains("68, 65, 6c")));
        assert!(text(&[0xFF, 0xD8]).is_err());
    }
}

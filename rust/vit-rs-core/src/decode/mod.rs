//! Encoded bytes to pixels. The format is told by content, never by a file's name.

pub mod exif;
pub mod jpeg;
pub mod orientation;
pub mod png;
pub mod webp;

pub use orientation::Orientation;

use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Rect, Size};

/// Image formats that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JPEG: baseline, extended, progressive or lossless, 8 bits; with what its markers tell.
    Jpeg(jpeg::Markers),
    /// PNG.
    Png,
    /// WebP: lossy, lossless or animated; with the place of its first frame.
    WebP(webp::Frame),
}

/// What an image's structure tells, before any pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its format.
    pub format: Format,
    /// Its size as stored.
    pub size: Size,
    /// How EXIF says it is to be held; upright when nothing is said. Decoding does not turn it.
    pub orientation: Orientation,
}

impl Header {
    /// The scale at which the image is decoded when `scale` is asked for: JPEGs of blocks can be made smaller.
    #[must_use]
    pub const fn supported(self, scale: Scale) -> Scale {
        match self.format {
            Format::Jpeg(jpeg::Markers { lossless: false, .. }) => scale,
            _ => Scale::Full,
        }
    }
}

/// How much smaller than stored an image is decoded, in both directions: JPEG blocks can be decoded to 8, 4, 2 or 1
/// pixels a side. That is faster, but not what an antialiased resize of the full image gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// As stored.
    #[default]
    Full,
    /// One half.
    Half,
    /// One quarter.
    Quarter,
    /// One eighth.
    Eighth,
}

impl Scale {
    /// All of them, from the largest image to the smallest.
    pub const ALL: [Self; 4] = [Self::Full, Self::Half, Self::Quarter, Self::Eighth];

    /// What sizes are divided by.
    #[must_use]
    pub const fn denominator(self) -> usize {
        match self {
            Self::Full => 1,
            Self::Half => 2,
            Self::Quarter => 4,
            Self::Eighth => 8,
        }
    }

    /// The size at which an image is decoded: rounded up.
    #[must_use]
    pub const fn size(self, full: Size) -> Size {
        let d = self.denominator();
        Size::new(full.height.div_ceil(d), full.width.div_ceil(d))
    }

    /// The pixels of the scaled image that `rect`, a rectangle inside the full one, touches.
    #[must_use]
    pub const fn rect(self, rect: Rect) -> Rect {
        let d = self.denominator();
        let (top, left) = (rect.top / d, rect.left / d);
        Rect {
            top,
            left,
            height: (rect.top + rect.height).div_ceil(d) - top,
            width: (rect.left + rect.width).div_ceil(d) - left,
        }
    }
}

/// Largest number of pixels that is decoded unless the user says otherwise: twice Pillow's warning level, where
/// Pillow refuses too.
pub const MAX_PIXELS: usize = 178_956_970;

/// Decoders and their memory, one per thread.
#[derive(Debug, Default)]
pub struct Decoder {
    jpeg: jpeg::Decoder,
    png: png::Decoder,
    buffer: ImageBuf,
}

impl Decoder {
    /// Reads format, size and orientation, and finds truncated files by their markers or chunks and their end. Nothing
    /// that grows with the image is allocated.
    ///
    /// # Errors
    /// [`Error::Decode`] for an unknown format, a broken or truncated file, or more than `max_pixels` pixels.
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

    /// Decodes the pixels inside `region`, of the image as stored, to RGB; equal, byte for byte, to that part of a
    /// full decode. `header` is the one of `bytes`.
    ///
    /// # Errors
    /// [`Error::Decode`] for broken data, [`Error::Argument`] for a region outside the image.
    pub fn decode_region(
        &mut self,
        bytes: &[u8],
        header: Header,
        region: Rect,
    ) -> Result<ImageView<'_>> {
        self.decode_scaled(bytes, header, region, Scale::Full)
    }

    /// Decodes a smaller image, where the format can: the pixels of the image at `header.supported(scale)` that
    /// `region`, in pixels of the full image as stored, touches (`Scale::rect`); equal to that part of a whole decode
    /// at that scale.
    ///
    /// # Errors
    /// As for [`Self::decode_region`].
    pub fn decode_scaled(
        &mut self,
        bytes: &[u8],
        header: Header,
        region: Rect,
        scale: Scale,
    ) -> Result<ImageView<'_>> {
        let Header { format, size, .. } = header;
        if !region.is_inside(size) {
            return Err(Error::argument(format!("{region:?} is not inside an image of {size}")));
        }
        let scale = header.supported(scale);
        let region = scale.rect(region);
        let inner = match format {
            Format::Jpeg(markers) => {
                self.jpeg.decode_region(bytes, markers, region, scale, &mut self.buffer)?
            }
            Format::Png => {
                self.png.decode(bytes, size, &mut self.buffer)?;
                region
            }
            Format::WebP(frame) => {
                webp::decode_region(bytes, size, frame, region, &mut self.buffer)?
            }
        };
        self.buffer.view()?.crop(inner)
    }
}

/// The format that the first bytes tell, and what its header states.
fn sniff(bytes: &[u8]) -> Result<Header> {
    if bytes.is_empty() {
        return Err(Error::decode("the file is empty"));
    }
    if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        let markers = jpeg::header(bytes)?;
        let jpeg::Markers { size, orientation, .. } = markers;
        return Ok(Header { format: Format::Jpeg(markers), size, orientation });
    }
    if bytes.starts_with(png::SIGNATURE) {
        let (size, orientation) = png::header(bytes)?;
        return Ok(Header { format: Format::Png, size, orientation });
    }
    if let [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] = bytes {
        let (size, frame, orientation) = webp::header(bytes)?;
        return Ok(Header { format: Format::WebP(frame), size, orientation });
    }
    let what = match bytes {
        [b'G', b'I', b'F', b'8', ..] => "GIF",
        [b'B', b'M', ..] => "BMP",
        [b'I', b'I', 0x2A, 0, ..] | [b'M', b'M', 0, 0x2A, ..] => "TIFF",
        _ => "no known image format",
    };
    let shown = &bytes[..bytes.len().min(8)];
    Err(Error::decode(format!("{what} (first bytes {shown:02x?}); JPEG, PNG and WebP can be read")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_formats_are_named() {
        let text = |bytes: &[u8]| sniff(bytes).map(|_| ()).map_err(|e| e.to_string());
        assert!(text(b"").is_err_and(|t| t.contains("empty")));
        assert!(text(b"RIFF0000WEBPVP8 ").is_err_and(|t| t.contains("truncated WebP")));
        assert!(text(b"GIF89a").is_err_and(|t| t.contains("GIF")));
        assert!(text(b"hello").is_err_and(|t| t.contains("68, 65, 6c")));
        assert!(text(&[0xFF, 0xD8]).is_err());
    }
}

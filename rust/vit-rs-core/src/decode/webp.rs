//! WebP by libwebp, to RGB as Pillow's `convert("RGB")` gives it: alpha is dropped, never blended, and of an animation
//! the first frame is shown on its canvas, which is black around it.
#![allow(unsafe_code)]

use libwebp_sys as webp;

use super::exif;
use super::orientation::Orientation;
use crate::error::{Error, Result};
use crate::image::{ImageBuf, Rect, Size};

/// Bytes of a chunk's name and length.
const CHUNK_HEAD: usize = 8;
/// Bytes of an animation frame's place, size and duration, before its image.
const FRAME_HEAD: usize = 16;
/// Bits of an extended file's features.
const HAS_ANIMATION: u8 = 0x02;
const HAS_EXIF: u8 = 0x08;

/// Where the first frame stands: in the file, and on the canvas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    start: usize,
    end: usize,
    place: Rect,
}

/// What a file's chunks tell: canvas, first frame, orientation.
///
/// # Errors
/// [`Error::Decode`] for a broken or truncated file.
pub fn header(bytes: &[u8]) -> Result<(Size, Frame, Orientation)> {
    let file = riff(bytes)?;
    let mut chunks = Chunks { bytes: file, at: 12 };
    let first = chunks.next().ok_or_else(|| Error::decode("broken WebP: no chunk in it"))??;
    let whole = Frame { start: 0, end: file.len(), place: Size::new(0, 0).rect() };
    if first.name != *b"VP8X" {
        let size = frame_size(file)?;
        return Ok((size, Frame { place: size.rect(), ..whole }, Orientation::Upright));
    }
    let &[features, _, _, _, w0, w1, w2, h0, h1, h2] = first
        .payload(file)
        .first_chunk()
        .ok_or_else(|| Error::decode("broken WebP: a VP8X chunk without the canvas"))?;
    let canvas = Size::new(u24([h0, h1, h2]) + 1, u24([w0, w1, w2]) + 1);
    let (mut frame, mut orientation) = (None, Orientation::Upright);
    for chunk in chunks {
        let chunk = chunk?;
        match &chunk.name {
            b"EXIF" if features & HAS_EXIF != 0 => {
                orientation = exif::orientation(chunk.payload(file));
            }
            b"ANMF" if features & HAS_ANIMATION != 0 && frame.is_none() => {
                frame = Some(animation_frame(file, &chunk, canvas)?);
            }
            b"VP8 " | b"VP8L" if features & HAS_ANIMATION == 0 && frame.is_none() => {
                frame = Some(Frame { place: canvas.rect(), ..whole });
            }
            _ => {}
        }
    }
    let frame = frame.ok_or_else(|| Error::decode("broken WebP: no image in it"))?;
    Ok((canvas, frame, orientation))
}

/// The bytes that the file's own length covers; what follows them is none of it.
fn riff(bytes: &[u8]) -> Result<&[u8]> {
    let length =
        bytes.get(4..8).and_then(<[u8]>::first_chunk).map_or(0, |n| u32::from_le_bytes(*n));
    let length = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(CHUNK_HEAD);
    bytes.get(..length).ok_or_else(|| {
        Error::decode(format!(
            "truncated WebP: {} of the {length} bytes that it says it has",
            bytes.len()
        ))
    })
}

struct Chunk {
    name: [u8; 4],
    start: usize,
    end: usize,
}

impl Chunk {
    fn payload<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        &file[self.start..self.end]
    }
}

/// The chunks of a file from an offset on: each a name, a length and so many bytes, filled up to an even number.
struct Chunks<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        let head: &[u8; CHUNK_HEAD] = self.bytes.get(self.at..)?.first_chunk()?;
        let [n0, n1, n2, n3, length @ ..] = *head;
        let start = self.at + CHUNK_HEAD;
        let length = u32::from_le_bytes(length) as usize;
        let end = start.saturating_add(length);
        if end > self.bytes.len() {
            self.at = self.bytes.len();
            return Some(Err(Error::decode(format!(
                "broken WebP: the chunk at byte {} has {length} bytes, more than the file",
                start - CHUNK_HEAD
            ))));
        }
        self.at = end + length % 2;
        Some(Ok(Chunk { name: [n0, n1, n2, n3], start, end }))
    }
}

/// Place and bytes of an animation's frame.
fn animation_frame(file: &[u8], chunk: &Chunk, canvas: Size) -> Result<Frame> {
    let &[x0, x1, x2, y0, y1, y2, w0, w1, w2, h0, h1, h2, ..] = chunk
        .payload(file)
        .first_chunk::<FRAME_HEAD>()
        .ok_or_else(|| Error::decode("broken WebP: an animation's frame without place and size"))?;
    let place = Rect {
        top: u24([y0, y1, y2]) * 2,
        left: u24([x0, x1, x2]) * 2,
        height: u24([h0, h1, h2]) + 1,
        width: u24([w0, w1, w2]) + 1,
    };
    if !place.is_inside(canvas) {
        return Err(Error::decode(format!(
            "broken WebP: its first frame, {place:?}, leaves its canvas of {canvas}"
        )));
    }
    Ok(Frame { start: chunk.start + FRAME_HEAD, end: chunk.end, place })
}

fn u24([low, middle, high]: [u8; 3]) -> usize {
    usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16
}

/// The size that a file's or frame's bitstream states.
fn frame_size(bytes: &[u8]) -> Result<Size> {
    let mut features = std::mem::MaybeUninit::zeroed();
    // SAFETY: pointer and length describe `bytes`; the library writes a whole struct of plain integers, for which the
    // zeros that stand there are valid too.
    let (status, features) = unsafe {
        let status = webp::WebPGetFeatures(bytes.as_ptr(), bytes.len(), features.as_mut_ptr());
        (status, features.assume_init())
    };
    check(status)?;
    Ok(Size::new(features.height.max(0) as usize, features.width.max(0) as usize))
}

fn check(status: webp::VP8StatusCode) -> Result<()> {
    let reason = match status {
        webp::VP8StatusCode::VP8_STATUS_OK => return Ok(()),
        // The library says the same of both.
        webp::VP8StatusCode::VP8_STATUS_OUT_OF_MEMORY => "broken alpha data, or no memory",
        webp::VP8StatusCode::VP8_STATUS_BITSTREAM_ERROR => "the bitstream is broken",
        webp::VP8StatusCode::VP8_STATUS_UNSUPPORTED_FEATURE => "an unsupported feature",
        webp::VP8StatusCode::VP8_STATUS_NOT_ENOUGH_DATA => "the data ends too early",
        _ => "decoding failed",
    };
    Err(Error::decode(format!("libwebp: {reason}")))
}

/// Decodes the columns and rows that `region`, inside the canvas, needs into `into`, and returns where the region lies
/// in it. `frame` is the one of `bytes`.
///
/// # Errors
/// [`Error::Decode`] with libwebp's reason.
pub(super) fn decode_region(
    bytes: &[u8],
    canvas: Size,
    frame: Frame,
    region: Rect,
    into: &mut ImageBuf,
) -> Result<Rect> {
    let data = bytes
        .get(frame.start..frame.end)
        .ok_or_else(|| Error::argument("a WebP's header with another file's bytes"))?;
    let part = surroundings(region, canvas);
    let inner = Rect { top: region.top - part.top, left: region.left - part.left, ..region };
    let stride = part.width * 3;
    let target = into.reshape(part.size(), 3);
    let Some(shown) = intersection(part, frame.place) else {
        target.fill(0);
        return Ok(inner);
    };
    if shown != part {
        target.fill(0);
    }
    let size = frame_size(data)?;
    if size != frame.place.size() {
        return Err(Error::decode(format!(
            "broken WebP: a frame of {} whose bitstream has {size}",
            frame.place.size()
        )));
    }
    let start = (shown.top - part.top) * stride + (shown.left - part.left) * 3;
    let target = &mut target[start..];
    let mut config =
        webp::WebPDecoderConfig::new().map_err(|()| Error::decode("libwebp: another version"))?;
    config.options.use_cropping = i32::from(shown != frame.place);
    config.options.crop_left = (shown.left - frame.place.left) as i32;
    config.options.crop_top = (shown.top - frame.place.top) as i32;
    config.options.crop_width = shown.width as i32;
    config.options.crop_height = shown.height as i32;
    config.output.colorspace = webp::WEBP_CSP_MODE::MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA = webp::WebPRGBABuffer {
        rgba: target.as_mut_ptr(),
        stride: stride as i32,
        size: target.len(),
    };
    // SAFETY: pointer and length describe `data`; the output describes `target`, and the library refuses one that is
    // too small for the rows that it will write; both outlive the call. Memory of its own it frees before it returns.
    check(unsafe { webp::WebPDecode(data.as_ptr(), data.len(), &raw mut config) })?;
    Ok(inner)
}

/// What must be decoded for `region`: from an even row and column on, where chroma samples start, with a pixel more on
/// each side, since chroma upsampling treats the edges of what is decoded as edges of the image.
fn surroundings(region: Rect, size: Size) -> Rect {
    let top = region.top.saturating_sub(1) & !1;
    let left = region.left.saturating_sub(1) & !1;
    let bottom = (region.top + region.height + 1).min(size.height);
    let right = (region.left + region.width + 1).min(size.width);
    Rect { top, left, height: bottom - top, width: right - left }
}

fn intersection(one: Rect, other: Rect) -> Option<Rect> {
    let top = one.top.max(other.top);
    let left = one.left.max(other.left);
    let bottom = (one.top + one.height).min(other.top + other.height);
    let right = (one.left + one.width).min(other.left + other.width);
    (top < bottom && left < right).then(|| Rect {
        top,
        left,
        height: bottom - top,
        width: right - left,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut body = b"WEBP".to_vec();
        for (name, payload) in chunks {
            body.extend([name.as_slice(), &(payload.len() as u32).to_le_bytes(), payload].concat());
            body.resize(body.len().next_multiple_of(2), 0);
        }
        [b"RIFF".as_slice(), &(body.len() as u32).to_le_bytes(), &body].concat()
    }

    fn told(bytes: &[u8]) -> String {
        match header(bytes) {
            Ok(header) => format!("{header:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn broken_structure_is_told() {
        // A canvas of 10 x 20 (height x width), animated.
        let canvas = [HAS_ANIMATION, 0, 0, 0, 19, 0, 0, 9, 0, 0];
        // A frame of 4 x 6 at (2, 16).
        let outside = [8, 0, 0, 1, 0, 0, 5, 0, 0, 3, 0, 0, 0, 0, 0, 0];
        let animated = |frame: &[u8]| told(&file(&[(b"VP8X", &canvas), (b"ANMF", frame)]));
        assert!(
            animated(&outside).contains("leaves its canvas of 10 x 20"),
            "{}",
            animated(&outside)
        );
        assert!(animated(&outside[..15]).contains("without place and size"));
        assert!(told(&file(&[(b"VP8X", &canvas[..9])])).contains("without the canvas"));
        assert!(told(&file(&[(b"VP8X", &canvas)])).contains("no image in it"));
        assert!(told(&file(&[(b"VP8 ", b"nonsense")])).contains("libwebp"));
        let mut long = file(&[(b"VP8X", &canvas), (b"EXIF", b"1234")]);
        long[34] = 5;
        assert!(told(&long).contains("the chunk at byte 30 has 5 bytes"), "{}", told(&long));
    }

    #[test]
    fn a_frame_of_another_size_than_its_chunk_says_is_told() {
        // The signature and dimensions of a lossless image of 1 x 2.
        let image = [b'V', b'P', b'8', b'L', 5, 0, 0, 0, 0x2F, 1, 0, 0, 0, 0];
        let canvas = [HAS_ANIMATION, 0, 0, 0, 19, 0, 0, 9, 0, 0];
        let frame = [&[0, 0, 0, 0, 0, 0, 5, 0, 0, 3, 0, 0, 0, 0, 0, 0][..], &image].concat();
        let bytes = file(&[(b"VP8X", &canvas), (b"ANMF", &frame)]);
        let told = header(&bytes).and_then(|(canvas, frame, _)| {
            let region = Rect { top: 1, left: 1, height: 2, width: 2 };
            decode_region(&bytes, canvas, frame, region, &mut ImageBuf::default())
        });
        let told = told.map_err(|error| error.to_string());
        assert!(
            told.is_err_and(|text| text.contains("a frame of 4 x 6 whose bitstream has 1 x 2"))
        );
    }

    proptest! {
        #[test]
        fn what_is_decoded_surrounds_the_region(
            height in 1usize..50, width in 1usize..50, place in any::<[u16; 4]>(),
        ) {
            let pick = |n: usize, number: u16| usize::from(number) % n;
            let (top, left) = (pick(height, place[0]), pick(width, place[1]));
            let region = Rect {
                top,
                left,
                height: 1 + pick(height - top, place[2]),
                width: 1 + pick(width - left, place[3]),
            };
            let size = Size::new(height, width);
            let part = surroundings(region, size);
            prop_assert!(part.is_inside(size));
            prop_assert_eq!(intersection(part, region), Some(region));
            prop_assert_eq!((part.top % 2, part.left % 2), (0, 0));
            prop_assert!(part.top == 0 || part.top < region.top);
            prop_assert!(part.left == 0 || part.left < region.left);
            prop_assert!(part.top + part.height > top + region.height || part.top + part.height == height);
            prop_assert!(part.left + part.width > left + region.width || part.left + part.width == width);
        }
    }
}

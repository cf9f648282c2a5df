//! JPEG by libjpeg-turbo (accurate integer IDCT, fancy upsampling: what Pillow and torchvision show), through its
//! TurboJPEG interface, which turns every library error into a return value.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use turbojpeg_sys as tj;

use super::Scale;
use super::exif;
use super::orientation::Orientation;
use crate::error::{Error, Result};
use crate::image::{ImageBuf, Rect, Size};

/// Version of the libjpeg-turbo that was built in.
pub const VERSION: &str = env!("VIT_RS_JPEG_VERSION");

/// Whether it was built with SIMD kernels: on x86-64 that takes NASM.
pub const HAS_SIMD: bool = cfg!(jpeg_simd);

/// More scans than any encoder writes.
const MAX_SCANS: usize = 500;

/// The least number of scans that is allowed: an ordinary progressive file has about ten, a carefully optimised one
/// 20.
const MIN_SCANS: usize = 32;

/// Pixels that all scans together may pass over, above `MIN_SCANS`. A scan of a few bytes can say nothing about a huge
/// frame, yet takes the time to walk through it, 0.1 to 0.2 ns a pixel: hundreds of them would keep a decoder busy.
const MAX_SCANNED: usize = 20_000_000_000;

/// Sides of an iMCU are at most 4 blocks of 8 pixels. Regions start at a multiple of it, whatever the subsampling.
const COLUMN_STEP: usize = 32;

/// Of strips with fewer than three chroma columns the library upsamples chroma in another way.
const MIN_COLUMNS: usize = 8;

/// What the markers before the first scan tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Markers {
    /// The frame's size.
    pub size: Size,
    /// Number of components: 1 gray, 3 colour, 4 CMYK or YCCK.
    pub components: u8,
    /// Whether the image comes in several scans of growing detail.
    pub progressive: bool,
    /// Whether its samples are predicted from their neighbours, without blocks.
    pub lossless: bool,
    /// What its EXIF block says; upright without one.
    pub orientation: Orientation,
    oddities: Oddities,
}

/// Values that say nothing about the pixels and are wrong in files of some encoders: where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Oddities {
    /// The major version of JFIF, if it is not 1.
    jfif_version: Option<usize>,
    /// Spectral selection and approximation of a sequential scan, if they are not 0, 63, 0.
    scan_parameters: Option<usize>,
}

impl Oddities {
    /// The file as it should be: libjpeg-turbo tells only its first warning, which shall be about lost pixels.
    fn mended<'a>(self, bytes: &'a [u8], copy: &'a mut Vec<u8>) -> &'a [u8] {
        if self == Self::default() {
            return bytes;
        }
        copy.clear();
        copy.extend_from_slice(bytes);
        if let Some(version) = self.jfif_version.and_then(|at| copy.get_mut(at)) {
            *version = 1;
        }
        if let Some(parameters) = self.scan_parameters.and_then(|at| copy.get_mut(at..at + 3)) {
            parameters.copy_from_slice(&[0, 63, 0]);
        }
        copy
    }
}

/// Walks the markers up to the first scan, and looks for the end-of-image marker behind it.
///
/// # Errors
/// [`Error::Decode`] for a broken or truncated file.
pub fn header(bytes: &[u8]) -> Result<Markers> {
    let truncated = |at: usize| {
        Error::decode(format!(
            "truncated JPEG: it ends at byte {} in the marker at byte {at}",
            bytes.len()
        ))
    };
    let (mut frame, mut orientation, mut oddities) = (None, None, Oddities::default());
    let mut at = 2;
    loop {
        let &[first, mut marker] =
            bytes.get(at..at + 2).and_then(<[u8]>::first_chunk).ok_or_else(|| truncated(at))?;
        if first != 0xFF {
            // Stray bytes between segments are passed over, as libjpeg does.
            at += 1;
            continue;
        }
        // Any number of 0xFF may fill the space before a marker.
        while marker == 0xFF {
            at += 1;
            marker = *bytes.get(at + 1).ok_or_else(|| truncated(at))?;
        }
        at += 2;
        if marker == 0x01 || (0xD0..=0xD8).contains(&marker) {
            continue;
        }
        if marker == 0xD9 {
            return Err(Error::decode("broken JPEG: it ends before its first scan"));
        }
        let length = bytes.get(at..at + 2).ok_or_else(|| truncated(at))?;
        let length = usize::from(length[0]) << 8 | usize::from(length[1]);
        let segment = bytes.get(at + 2..at + length.max(2)).ok_or_else(|| truncated(at))?;
        match marker {
            0xE0 if oddities.jfif_version.is_none() && segment.len() >= 14 => {
                let odd = segment.starts_with(b"JFIF\0") && segment[5] != 1;
                oddities.jfif_version = odd.then_some(at + 2 + 5);
            }
            0xE1 if orientation.is_none() => orientation = exif::in_segment(segment),
            0xC0..=0xCF if ![0xC4, 0xC8, 0xCC].contains(&marker) => {
                let &[precision, h1, h0, w1, w0, components] =
                    segment.first_chunk().ok_or_else(|| truncated(at))?;
                if precision != 8 {
                    return Err(Error::decode(format!(
                        "JPEG with {precision} bits per sample; 8 can be read"
                    )));
                }
                let size = Size::new(
                    usize::from(h1) << 8 | usize::from(h0),
                    usize::from(w1) << 8 | usize::from(w0),
                );
                if size.pixels() == 0 {
                    return Err(Error::decode(format!("broken JPEG: its frame is {size}")));
                }
                frame = Some(Markers {
                    size,
                    components,
                    progressive: [0xC2, 0xC6, 0xCA, 0xCE].contains(&marker),
                    lossless: [0xC3, 0xC7, 0xCB, 0xCF].contains(&marker),
                    orientation: Orientation::Upright,
                    oddities,
                });
            }
            0xDA => {
                let odd = segment.last_chunk().is_some_and(|last| *last != [0_u8, 63, 0]);
                oddities.scan_parameters = odd.then_some(at + 2 + segment.len().saturating_sub(3));
                break;
            }
            _ => {}
        }
        at += length.max(2);
    }
    let markers = frame.ok_or_else(|| Error::decode("broken JPEG: a scan before any frame"))?;
    if !ends(&bytes[at..]) {
        return Err(Error::decode(format!(
            "truncated JPEG: no end-of-image marker in its {} bytes",
            bytes.len()
        )));
    }
    if markers.progressive || markers.lossless {
        oddities.scan_parameters = None;
    }
    Ok(Markers { orientation: orientation.unwrap_or_default(), oddities, ..markers })
}

/// Looks for an end-of-image marker from the end; bytes may follow it (some cameras append data, even whole images).
/// Coded data cannot look like one: in it, a zero follows each 0xFF.
fn ends(scans: &[u8]) -> bool {
    scans.windows(2).rev().any(|pair| pair == [0xFF, 0xD9])
}

/// A TurboJPEG instance, made at the first image; one per thread.
#[derive(Debug, Default)]
pub struct Decoder {
    handle: Option<Handle>,
    inks: Vec<u8>,
    mended: Vec<u8>,
}

#[derive(Debug)]
struct Handle(NonNull<std::ffi::c_void>);

// SAFETY: a TurboJPEG instance has no tie to the thread that made it; it must only not be used by two at once, and
// every use takes `&mut Decoder`.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle came from tj3Init and is destroyed once.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) };
    }
}

impl Handle {
    fn new() -> Result<Self> {
        // SAFETY: no preconditions; null is checked.
        let raw = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let handle =
            Self(NonNull::new(raw).ok_or_else(|| Error::decode("libjpeg-turbo: out of memory"))?);
        // Colour profiles would be copied out of every file.
        handle.set(tj::TJPARAM_TJPARAM_SAVEMARKERS, 0);
        Ok(handle)
    }

    /// Sets one of the library's parameters.
    fn set(&self, parameter: tj::TJPARAM, value: usize) {
        // SAFETY: the handle is valid.
        unsafe { tj::tj3Set(self.0.as_ptr(), parameter as c_int, value as c_int) };
    }

    /// One of the library's parameters, or what the last header told.
    fn get(&self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: the handle is valid.
        unsafe { tj::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    /// Turns a return code into an error, letting harmless warnings pass.
    fn check(&self, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the handle is valid; the text it returns lives until its next call and is copied here.
        let (kind, text) = unsafe {
            let text = CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr()));
            (tj::tj3GetErrorCode(self.0.as_ptr()), text.to_string_lossy().into_owned())
        };
        // Files of some cameras and encoders end with stray bytes; nothing can be lost behind them. The library's other
        // warnings mean lost pixels, or may hide one that does: it tells the first one only.
        let harmless = text.contains("extraneous bytes before marker 0xd9");
        if kind == tj::TJERR_TJERR_WARNING as c_int && harmless {
            return Ok(());
        }
        Err(Error::decode(format!("libjpeg-turbo: {text}")))
    }
}

impl Decoder {
    /// Decodes the columns and rows that `region`, inside the scaled image, needs into `into`, and returns where the
    /// region lies in it. `markers` are those of `bytes`; that the library reads the same size is checked before it
    /// writes.
    ///
    /// The decoded part starts at a whole number of blocks and reaches a pixel beyond the region, since chroma
    /// upsampling treats the edges of what is decoded as edges of the image.
    ///
    /// # Errors
    /// [`Error::Decode`] with libjpeg-turbo's reason.
    pub(super) fn decode_region(
        &mut self,
        bytes: &[u8],
        markers: Markers,
        region: Rect,
        scale: Scale,
        into: &mut ImageBuf,
    ) -> Result<Rect> {
        let decoded = self.decode(bytes, markers, region, scale, into);
        if decoded.is_err() {
            // After an error the library would go on with the broken file's tables: the next image needs a fresh
            // instance.
            self.handle = None;
        }
        decoded
    }

    fn decode(
        &mut self,
        bytes: &[u8],
        markers: Markers,
        region: Rect,
        scale: Scale,
        into: &mut ImageBuf,
    ) -> Result<Rect> {
        let bytes = markers.oddities.mended(bytes, &mut self.mended);
        let handle = match &mut self.handle {
            Some(handle) => handle,
            none => none.insert(Handle::new()?),
        };
        let raw = handle.0.as_ptr();
        // SAFETY: pointer and length describe `bytes`, which outlives the call.
        handle.check(unsafe { tj::tj3DecompressHeader(raw, bytes.as_ptr(), bytes.len() as _) })?;
        // The size was read by our own marker walk and by the library: they must agree before it writes.
        let seen = Size::new(
            handle.get(tj::TJPARAM_TJPARAM_JPEGHEIGHT).max(0) as usize,
            handle.get(tj::TJPARAM_TJPARAM_JPEGWIDTH).max(0) as usize,
        );
        if seen != markers.size {
            return Err(Error::decode(format!(
                "broken JPEG: frames of {} and {seen}",
                markers.size
            )));
        }
        handle.set(tj::TJPARAM_TJPARAM_SCANLIMIT, scan_limit(markers.size));
        let factor = tj::tjscalingfactor { num: 1, denom: scale.denominator() as c_int };
        // SAFETY: the handle is valid.
        handle.check(unsafe { tj::tj3SetScalingFactor(raw, factor) })?;

        // The library cuts regions out of images with one of its named samplings only. Of progressive ones every scan
        // is read anyway, and smoothing of scans that are missing looks beyond any margin.
        let cuts = !markers.progressive
            && !markers.lossless
            && handle.get(tj::TJPARAM_TJPARAM_SUBSAMP) >= 0;
        let size = scale.size(markers.size);
        let whole = size.rect();
        let part = if cuts { surroundings(region, size) } else { whole };
        // The handle keeps the last image's region: for a whole image it is unset by zeros.
        let [x, y, w, h] = if part == whole {
            [0; 4]
        } else {
            [part.left, part.top, part.width, part.height].map(|number| number as c_int)
        };
        // SAFETY: the handle is valid and holds a header.
        handle.check(unsafe { tj::tj3SetCroppingRegion(raw, tj::tjregion { x, y, w, h }) })?;
        let Rect { top, left, .. } = part;
        let part = part.size();

        let (format, channels, target) = if markers.components == 4 {
            let needed = part.pixels() * 4;
            if self.inks.len() < needed {
                self.inks.resize(needed, 0);
            }
            (tj::TJPF_TJPF_CMYK, 4, &mut self.inks[..needed])
        } else {
            (tj::TJPF_TJPF_RGB, 3, into.reshape(part, 3))
        };
        // SAFETY: `target` holds part.height rows of part.width pixels, which is what the size that was checked, the
        // scaling factor and the cropping region make the library write; `bytes` outlives the call.
        handle.check(unsafe {
            tj::tj3Decompress8(
                raw,
                bytes.as_ptr(),
                bytes.len() as _,
                target.as_mut_ptr(),
                (part.width * channels) as c_int,
                format as c_int,
            )
        })?;
        if markers.components == 4 {
            inks_to_rgb(&self.inks[..part.pixels() * 4], into.reshape(part, 3));
        }
        Ok(Rect { top: region.top - top, left: region.left - left, ..region })
    }
}

/// The number of scans that a file with a frame of this size may have.
fn scan_limit(size: Size) -> usize {
    (MAX_SCANNED / size.pixels().max(1)).clamp(MIN_SCANS, MAX_SCANS)
}

/// What must be decoded for `region`: whole blocks on the left, one pixel more on the other sides, and never a narrow
/// strip.
fn surroundings(region: Rect, size: Size) -> Rect {
    let top = region.top.saturating_sub(1);
    let bottom = (region.top + region.height + 1).min(size.height);
    let mut left = region.left.saturating_sub(1) / COLUMN_STEP * COLUMN_STEP;
    let right = (region.left + region.width + 1).max(left + MIN_COLUMNS).min(size.width);
    if right - left < MIN_COLUMNS {
        left = left.saturating_sub(COLUMN_STEP);
    }
    Rect { top, left, height: bottom - top, width: right - left }
}

/// Pillow's conversion: inks are taken as inverted, as Adobe stores them; a colour is white minus black minus its
/// ink's share of what is left.
fn inks_to_rgb(inks: &[u8], rgb: &mut [u8]) {
    let (from, _) = inks.as_chunks::<4>();
    let (to, _) = rgb.as_chunks_mut::<3>();
    for (ink, target) in from.iter().zip(to) {
        let white = u32::from(ink[3]);
        for (channel, value) in target.iter_mut().enumerate() {
            let product = u32::from(255 - ink[channel]) * white + 128;
            *value = white.saturating_sub(((product >> 8) + product) >> 8) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_markers_are_told() {
        let text = |bytes: &[u8]| match header(bytes) {
            Ok(markers) => format!("{markers:?}"),
            Err(error) => error.to_string(),
        };
        assert!(text(&[0xFF, 0xD8, 0xFF]).contains("truncated"));
        assert!(text(&[0xFF, 0xD8, 0x00, 0x00]).contains("truncated"));
        assert!(text(&[0xFF, 0xD8, 0xFF, 0xD9]).contains("before its first scan"));
        assert!(text(&[0xFF, 0xD8, 0xFF, 0xE0, 0x00, 0x10, 0x00]).contains("truncated"));
        assert!(
            text(&[0xFF, 0xD8, 0xFF, 0xDA, 0x00, 0x02, 0xFF, 0xD9]).contains("before any frame")
        );
        let frame = [0xFF, 0xD8, 0xFF, 0xC0, 0, 8, 8, 0, 5, 0, 7, 1, 0xFF, 0xDA, 0, 2];
        assert!(text(&frame).contains("no end-of-image"));
        let whole = [&frame[..], &[1, 2, 3, 0xFF, 0xD9, 0]].concat();
        assert_eq!(
            header(&whole).ok(),
            Some(Markers {
                size: Size::new(5, 7),
                components: 1,
                progressive: false,
                lossless: false,
                orientation: Orientation::Upright,
                oddities: Oddities::default(),
            })
        );
    }

    #[test]
    fn huge_frames_have_few_scans() {
        assert_eq!(scan_limit(Size::new(375, 500)), MAX_SCANS);
        assert_eq!(scan_limit(Size::new(10_000, 10_000)), 200);
        assert_eq!(scan_limit(Size::new(65_500, 65_500)), MIN_SCANS);
    }

    #[test]
    fn inks_follow_pillow() {
        let mut rgb = [0; 3];
        inks_to_rgb(&[255, 127, 0, 255], &mut rgb);
        assert_eq!(rgb, [255, 127, 0]);
        inks_to_rgb(&[10, 20, 30, 0], &mut rgb);
        assert_eq!(rgb, [0, 0, 0]);
    }
}

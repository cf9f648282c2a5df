//! Writes the corpus: small files of every kind that is decoded, what other libraries' encoders seldom write included.
//! The tests of the decoders read them too.

use std::fs;
use std::path::Path;

use libwebp_sys as webp;
use turbojpeg_sys as tj;

use crate::mutate::crc32;
use crate::targets::seal;

const WIDTH: usize = 83;
const HEIGHT: usize = 61;

/// Writes all files under `folder`.
pub fn write(folder: &Path) -> Result<(), String> {
    let mut files = jpegs()?;
    files.extend(pngs()?);
    files.extend(webps()?);
    let blocks = [("little", true, 6), ("big", false, 8), ("upright", true, 1)];
    let blocks = blocks.map(|(name, little, tag)| (format!("{name}.exif"), exif(little, tag)));
    for (target, files) in [("decode", files), ("exif", blocks.into()), ("tar", shards())] {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        for (name, bytes) in files {
            fs::write(folder.join(name), bytes).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

type Files = Vec<(String, Vec<u8>)>;

/// Tar shards of a few samples: short names, GNU's long ones and sizes in base 256, and pax records.
fn shards() -> Files {
    let member = |name: &str, kind: u8, data: &[u8]| {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(if kind == b'x' { b"ustar\x0000" } else { b"ustar  \0" });
        seal(&mut block);
        block.extend_from_slice(data);
        block.resize(block.len().next_multiple_of(512), 0);
        block
    };
    let mut large = member("2.webp", b'0', b"two");
    large[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\0\0\0\0\x03");
    seal(&mut large[..512]);
    let label = |name: &str, text: &str| member(name, b'0', text.as_bytes());
    let plain = [
        member("d/", b'5', b""),
        member("d/0.jpg", b'0', b"zero"),
        label("d/0.cls", "7\n"),
        label("d/1.json", r#"{"label": 3, "of": [1, {"a": null}]}"#),
        member("d/1.png", b'0', &[1; 700]),
    ];
    let extended = [
        member("././@LongLink", b'L', b"a/long/name/of/0.jpg\0"),
        member("cut", b'0', b"zero"),
        label("a/long/name/of/0.cls", "1"),
        member("pax", b'x', b"14 path=1.png\n9 size=3\n"),
        member("cut", b'0', b"one"),
        label("1.cls", "12"),
        large,
        label("2.cls", "0"),
        member("3.link", b'2', b""),
        member("3.sparse", b'S', b"x"),
    ];
    let end = [0; 1024];
    [("plain.tar", plain.concat()), ("extended.tar", extended.concat())]
        .map(|(name, members)| (name.to_owned(), [&members[..], &end].concat()))
        .into()
}

/// Waves of several lengths with sharp edges between: chroma that changes from pixel to pixel, yet compresses well.
fn pixels(channels: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * channels);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            for channel in 0..channels {
                let wave = match channel {
                    0 => x * 3 + y,
                    1 => y * 4 + x * x / 40,
                    2 => (x / 5) * 37 + (y / 7) * 53,
                    _ => 40 + x * 2 + (y / 9) * 11,
                };
                let ridge = (wave % 512).abs_diff(256);
                pixels.push(ridge.min(255) as u8);
            }
        }
    }
    pixels
}

/// TurboJPEG's parameters of a file, beside quality.
type Parameters<'a> = &'a [(tj::TJPARAM, i32)];

fn jpegs() -> Result<Files, String> {
    use tj::{
        TJCS_TJCS_CMYK as CMYK, TJCS_TJCS_RGB as RGB, TJCS_TJCS_YCCK as YCCK,
        TJPARAM_TJPARAM_ARITHMETIC as ARITHMETIC, TJPARAM_TJPARAM_COLORSPACE as SPACE,
        TJPARAM_TJPARAM_LOSSLESS as LOSSLESS, TJPARAM_TJPARAM_PROGRESSIVE as PROGRESSIVE,
        TJPARAM_TJPARAM_RESTARTBLOCKS as RESTART, TJPARAM_TJPARAM_SUBSAMP as SAMPLING,
        TJPF_TJPF_CMYK as FROM_CMYK, TJPF_TJPF_RGB as FROM_RGB,
    };
    let mut files = Vec::new();
    let samplings = [
        ("444", tj::TJSAMP_TJSAMP_444),
        ("422", tj::TJSAMP_TJSAMP_422),
        ("420", tj::TJSAMP_TJSAMP_420),
        ("gray", tj::TJSAMP_TJSAMP_GRAY),
        ("440", tj::TJSAMP_TJSAMP_440),
        ("411", tj::TJSAMP_TJSAMP_411),
        ("441", tj::TJSAMP_TJSAMP_441),
    ];
    for (name, sampling) in samplings {
        files.push((format!("{name}.jpg"), jpeg(3, FROM_RGB, &[(SAMPLING, sampling)])?));
        let progressive = [(SAMPLING, sampling), (PROGRESSIVE, 1)];
        files.push((format!("{name}-progressive.jpg"), jpeg(3, FROM_RGB, &progressive)?));
    }
    let half = tj::TJSAMP_TJSAMP_420;
    let full = tj::TJSAMP_TJSAMP_444;
    let others: &[(&str, usize, tj::TJPF, Parameters)] = &[
        ("restart", 3, FROM_RGB, &[(SAMPLING, half), (RESTART, 3)]),
        ("arithmetic", 3, FROM_RGB, &[(SAMPLING, half), (ARITHMETIC, 1)]),
        (
            "arithmetic-progressive",
            3,
            FROM_RGB,
            &[(SAMPLING, half), (ARITHMETIC, 1), (PROGRESSIVE, 1)],
        ),
        ("rgb", 3, FROM_RGB, &[(SAMPLING, full), (SPACE, RGB as i32)]),
        ("lossless", 3, FROM_RGB, &[(SAMPLING, full), (LOSSLESS, 1)]),
        ("cmyk", 4, FROM_CMYK, &[(SAMPLING, full), (SPACE, CMYK as i32)]),
        ("ycck", 4, FROM_CMYK, &[(SAMPLING, full), (SPACE, YCCK as i32)]),
        ("ycck-420", 4, FROM_CMYK, &[(SAMPLING, half), (SPACE, YCCK as i32)]),
    ];
    for &(name, channels, from, parameters) in others {
        files.push((format!("{name}.jpg"), jpeg(channels, from, parameters)?));
    }
    let mut turned = jpeg(3, FROM_RGB, &[(SAMPLING, half)])?;
    let block = [&b"Exif\0\0"[..], &exif(false, 6)].concat();
    let length = (block.len() as u16 + 2).to_be_bytes();
    turned.splice(2..2, [&[0xFF, 0xE1], &length[..], &block].concat());
    files.push(("turned.jpg".into(), turned));
    Ok(files)
}

fn jpeg(channels: usize, from: tj::TJPF, parameters: Parameters) -> Result<Vec<u8>, String> {
    let pixels = pixels(channels);
    let (mut data, mut len) = (std::ptr::null_mut(), 0);
    // SAFETY: the instance is used here only; the pixels are as many as width, height and format say; the library
    // allocates the file, whose pointer and length are read before it is freed.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as _);
        tj::tj3Set(handle, tj::TJPARAM_TJPARAM_QUALITY as _, 80);
        tj::tj3Set(handle, tj::TJPARAM_TJPARAM_OPTIMIZE as _, 1);
        for &(parameter, value) in parameters {
            tj::tj3Set(handle, parameter as _, value);
        }
        let (width, height) = (WIDTH as _, HEIGHT as _);
        let code = tj::tj3Compress8(
            handle,
            pixels.as_ptr(),
            width,
            0,
            height,
            from,
            &raw mut data,
            &raw mut len,
        );
        let file = if code == 0 {
            Ok(std::slice::from_raw_parts(data, len as usize).to_vec())
        } else {
            Err(std::ffi::CStr::from_ptr(tj::tj3GetErrorStr(handle)).to_string_lossy().into_owned())
        };
        tj::tj3Free(data.cast());
        tj::tj3Destroy(handle);
        file
    }
}

fn pngs() -> Result<Files, String> {
    use png::{BitDepth::*, ColorType::*};
    let mut files = Vec::new();
    let kinds = [
        ("rgb", Rgb, Eight, 3),
        ("rgba", Rgba, Eight, 4),
        ("gray", Grayscale, Eight, 1),
        ("gray-alpha", GrayscaleAlpha, Eight, 2),
        ("gray-16", Grayscale, Sixteen, 2),
        ("gray-alpha-16", GrayscaleAlpha, Sixteen, 4),
        ("rgb-16", Rgb, Sixteen, 6),
        ("rgba-16", Rgba, Sixteen, 8),
    ];
    for (name, color, depth, bytes) in kinds {
        files.push((
            format!("{name}.png"),
            png(color, depth, &pixels(bytes.min(4)).repeat(bytes.div_ceil(4)), None)?,
        ));
    }
    for (name, color, depth, bits) in [
        ("gray-1", Grayscale, One, 1),
        ("gray-2", Grayscale, Two, 2),
        ("gray-4", Grayscale, Four, 4),
    ] {
        files.push((format!("{name}.png"), png(color, depth, &packed(bits), None)?));
    }
    let palette: Vec<u8> = (0..16).flat_map(|i| [i * 16, 255 - i * 9, i * i]).collect();
    files.push(("palette-4.png".into(), png(Indexed, Four, &packed(4), Some((&palette, None)))?));
    let transparent = [255, 0, 7, 255];
    let with = Some((&palette[..], Some(&transparent[..])));
    files.push(("palette-4-transparent.png".into(), png(Indexed, Four, &packed(4), with)?));
    let mut turned = png(Grayscale, Two, &packed(2), None)?;
    let mut chunk = [b"eXIf".as_slice(), &exif(true, 5)].concat();
    let sum = crc32(&chunk);
    chunk.extend(sum.to_be_bytes());
    let length = (chunk.len() as u32 - 8).to_be_bytes();
    // Behind the image data, where some programs write it.
    let end = turned.len() - 12;
    turned.splice(end..end, [&length[..], &chunk].concat());
    files.push(("turned.png".into(), turned));
    Ok(files)
}

/// Rows of samples of `bits` bits.
fn packed(bits: usize) -> Vec<u8> {
    let per_byte = 8 / bits;
    let rows = pixels(1);
    let pack = |samples: &[u8]| {
        let upper = samples.iter().enumerate();
        upper.fold(0, |byte, (place, sample)| {
            byte | (sample >> (8 - bits)) << (8 - bits * (place + 1))
        })
    };
    rows.chunks(WIDTH).flat_map(|row| row.chunks(per_byte).map(pack).collect::<Vec<u8>>()).collect()
}

/// Colours, and opacities where there are any.
type Palette<'a> = Option<(&'a [u8], Option<&'a [u8]>)>;

fn png(
    color: png::ColorType,
    depth: png::BitDepth,
    samples: &[u8],
    palette: Palette,
) -> Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, WIDTH as u32, HEIGHT as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if let Some((colors, opacities)) = palette {
        encoder.set_palette(colors);
        if let Some(opacities) = opacities {
            encoder.set_trns(opacities);
        }
    }
    let needed = HEIGHT * (WIDTH * color.samples() * depth as usize).div_ceil(8);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(&samples[..needed]).map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())?;
    Ok(file)
}

fn webps() -> Result<Files, String> {
    let lossy = webp(3, false)?;
    let lossless = webp(4, true)?;
    let alpha = webp(4, false)?;
    let canvas = |width: usize, height: usize, features: u8| {
        let side = |n: usize| ((n - 1) as u32).to_le_bytes()[..3].to_vec();
        chunk(b"VP8X", &[vec![features, 0, 0, 0], side(width), side(height)].concat())
    };
    let image = &lossy[12..];
    let block = chunk(b"EXIF", &exif(true, 7));
    let turned = riff(&[canvas(WIDTH, HEIGHT, 0x08), image.to_vec(), block].concat());
    // A frame at (6, 4) of a larger canvas, with alpha; its image follows its VP8X chunk.
    let mut frame =
        vec![3, 0, 0, 2, 0, 0, WIDTH as u8 - 1, 0, 0, HEIGHT as u8 - 1, 0, 0, 100, 0, 0, 0];
    frame.extend(&alpha[30..]);
    let frame = chunk(b"ANMF", &frame);
    let animation = chunk(b"ANIM", &[255, 255, 255, 255, 0, 0]);
    let animated = riff(&[canvas(97, 71, 0x12), animation, frame.clone(), frame].concat());
    let files = [
        ("lossy", lossy),
        ("lossless", lossless),
        ("alpha", alpha),
        ("turned", turned),
        ("animated", animated),
    ];
    Ok(files.map(|(name, file)| (format!("{name}.webp"), file)).into())
}

fn webp(channels: usize, lossless: bool) -> Result<Vec<u8>, String> {
    let pixels = pixels(channels);
    let (width, height, stride) = (WIDTH as i32, HEIGHT as i32, (WIDTH * channels) as i32);
    let mut data = std::ptr::null_mut();
    // SAFETY: the pixels are as many as width, height and stride say; the library allocates the file, whose pointer
    // and length are read before it is freed.
    unsafe {
        let start = pixels.as_ptr();
        let len = match (channels, lossless) {
            (3, _) => webp::WebPEncodeRGB(start, width, height, stride, 60.0, &raw mut data),
            (_, false) => webp::WebPEncodeRGBA(start, width, height, stride, 60.0, &raw mut data),
            _ => webp::WebPEncodeLosslessRGBA(start, width, height, stride, &raw mut data),
        };
        if len == 0 {
            return Err("libwebp could not encode".into());
        }
        let file = std::slice::from_raw_parts(data, len).to_vec();
        webp::WebPFree(data.cast());
        Ok(file)
    }
}

fn chunk(name: &[u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut chunk = [name.as_slice(), &(payload.len() as u32).to_le_bytes(), payload].concat();
    chunk.resize(chunk.len().next_multiple_of(2), 0);
    chunk
}

fn riff(chunks: &[u8]) -> Vec<u8> {
    chunk(b"RIFF", &[b"WEBP", chunks].concat())
}

/// An EXIF block with a maker's name and an orientation.
fn exif(little: bool, tag: u16) -> Vec<u8> {
    let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
    let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
    let parts: [&[u8]; 14] = [
        if little { b"II" } else { b"MM" },
        &short(42),
        &long(8),
        &short(2),
        &short(0x010F),
        &short(2),
        &long(4),
        b"abc\0",
        &short(0x0112),
        &short(3),
        &long(1),
        &short(tag),
        &short(0),
        &long(0),
    ];
    parts.concat()
}

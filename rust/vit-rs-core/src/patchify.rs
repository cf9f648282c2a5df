//! Images to patch vectors and back (arXiv 2010.11929, section 3.1), in both in-patch orders of the field.
//!
//! The work is cut into *strips*: one row of patches of one image. In a batch of patches a strip is one run of memory;
//! in images it is a run (NHWC) or one run per channel (NCHW). All loads and stores of a strip stay within a few tens
//! of kilobytes, so both sides are touched once and in cache, and threads share nothing.

mod convert;

use crate::error::{Error, Result};
use crate::parallel;

use convert::{Convert, Copied, Tables};
pub use convert::{Float, Normalization};

/// Order of the values inside a patch vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Row, column, channel: MAE's, and `jax`'s flattened convolution kernel.
    Pqc,
    /// Channel, row, column: that of a flattened `Conv2d` kernel.
    Cpq,
}

/// Order of the dimensions of a batch of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Batch, channels, height, width.
    Nchw,
    /// Batch, height, width, channels.
    Nhwc,
}

/// Sizes of a batch of images and of the patches they are cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    patch_height: usize,
    patch_width: usize,
    layout: Layout,
    order: Order,
}

impl Geometry {
    /// A batch of `shape` (batch, channels, height, width; whatever the layout), cut into `patch` (height, width).
    ///
    /// # Errors
    /// [`Error::Argument`] when a size other than the batch is 0, the patch does not divide the image, or the batch
    /// has more values than memory could hold.
    pub fn new(
        shape: (usize, usize, usize, usize),
        patch: (usize, usize),
        layout: Layout,
        order: Order,
    ) -> Result<Self> {
        let (batch, channels, height, width) = shape;
        let (patch_height, patch_width) = patch;
        if channels == 0 || height == 0 || width == 0 || patch_height == 0 || patch_width == 0 {
            return Err(Error::argument(format!(
                "channels, height, width and patch must be at least 1, got {channels}, {height}, {width} and \
                 {patch_height}x{patch_width}"
            )));
        }
        if !height.is_multiple_of(patch_height) || !width.is_multiple_of(patch_width) {
            return Err(Error::argument(format!(
                "patches of {patch_height}x{patch_width} do not divide images of {height}x{width} (height x width)"
            )));
        }
        let values = [channels, height, width].iter().try_fold(batch, |n, &k| n.checked_mul(k));
        if values.is_none_or(|values| values > isize::MAX as usize) {
            return Err(Error::argument(format!(
                "a batch of {batch}x{channels}x{height}x{width} values is too large"
            )));
        }
        // With one channel all layouts and orders are the same memory: take the one that copies whole runs.
        let (layout, order) =
            if channels == 1 { (Layout::Nchw, Order::Cpq) } else { (layout, order) };
        Ok(Self { batch, channels, height, width, patch_height, patch_width, layout, order })
    }

    /// Values in the batch, the same in images and in patches.
    #[must_use]
    pub fn values(&self) -> usize {
        self.batch * self.image()
    }

    fn image(&self) -> usize {
        self.channels * self.plane()
    }

    fn plane(&self) -> usize {
        self.height * self.width
    }

    /// Values of one row of patches.
    fn strip(&self) -> usize {
        self.patch_height * self.width * self.channels
    }

    /// Values of one patch.
    fn patch(&self) -> usize {
        self.patch_height * self.patch_width * self.channels
    }

    /// Rows of patches in an image.
    fn rows(&self) -> usize {
        self.height / self.patch_height
    }

    fn check<S, D>(&self, source: &[S], target: &[D]) -> Result<()> {
        let values = self.values();
        if source.len() == values && target.len() == values {
            return Ok(());
        }
        Err(Error::argument(format!(
            "expected buffers of {values} values, got {} to read and {} to write",
            source.len(),
            target.len()
        )))
    }
}

/// Cuts `images` into `patches`, (batch, rows x columns, patch values), on at most `threads` threads.
///
/// ```
/// use vit_rs_core::patchify::{Geometry, Layout, Order, patchify};
/// let geometry = Geometry::new((1, 2, 1, 4), (1, 2), Layout::Nchw, Order::Pqc)?;
/// let mut patches = [0; 8];
/// patchify(&geometry, &[0, 1, 2, 3, 10, 11, 12, 13], &mut patches, 1)?;
/// assert_eq!(patches, [0, 10, 1, 11, 2, 12, 3, 13]);
/// # Ok::<(), vit_rs_core::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Argument`] when a slice has another number of values than the geometry.
pub fn patchify<T: Copy + Send + Sync>(
    geometry: &Geometry,
    images: &[T],
    patches: &mut [T],
    threads: usize,
) -> Result<()> {
    convert_to_patches(geometry, &Copied, images, patches, threads)
}

/// [`patchify`] of floats, with (value - mean) / std computed in f32 on the way.
///
/// # Errors
/// As [`patchify`], and for a normalisation of another number of channels.
pub fn patchify_normalized<S: Float, D: Float>(
    geometry: &Geometry,
    normalization: &Normalization,
    images: &[S],
    patches: &mut [D],
    threads: usize,
) -> Result<()> {
    check_channels(geometry, normalization)?;
    convert_to_patches(geometry, normalization, images, patches, threads)
}

/// [`patchify`] of 8-bit images, with (value x 1/255 - mean) / std computed in f32 on the way.
///
/// # Errors
/// As [`patchify_normalized`].
pub fn patchify_bytes<D: Float>(
    geometry: &Geometry,
    normalization: &Normalization,
    images: &[u8],
    patches: &mut [D],
    threads: usize,
) -> Result<()> {
    check_channels(geometry, normalization)?;
    convert_to_patches(geometry, &Tables::new(normalization), images, patches, threads)
}

fn check_channels(geometry: &Geometry, normalization: &Normalization) -> Result<()> {
    if normalization.channels.len() == geometry.channels {
        return Ok(());
    }
    Err(Error::argument(format!(
        "the normalisation is of {} channels, the images have {}",
        normalization.channels.len(),
        geometry.channels
    )))
}

/// Strips are handed out in groups of about this many values, so that taking one costs nothing beside it.
const GROUP: usize = 1 << 16;

fn convert_to_patches<S: Copy + Sync, D: Copy + Send>(
    geometry: &Geometry,
    convert: &impl Convert<S, D>,
    images: &[S],
    patches: &mut [D],
    threads: usize,
) -> Result<()> {
    geometry.check(images, patches)?;
    let threads = parallel::useful_threads(threads, size_of_val(patches));
    let group = (GROUP / geometry.strip()).max(1);
    let groups = patches.chunks_mut(geometry.strip() * group).enumerate();
    parallel::for_each(threads, groups, |(index, patches)| {
        for (i, strip) in patches.chunks_exact_mut(geometry.strip()).enumerate() {
            let (b, row) =
                ((index * group + i) / geometry.rows(), (index * group + i) % geometry.rows());
            let image = &images[b * geometry.image()..][..geometry.image()];
            strip_to_patches(geometry, convert, image, row, strip);
        }
    });
    Ok(())
}

/// Cuts row `row` of the patches of one image, line by line: the long runs are read, the short ones written.
fn strip_to_patches<S: Copy, D: Copy>(
    geometry: &Geometry,
    convert: &impl Convert<S, D>,
    image: &[S],
    row: usize,
    strip: &mut [D],
) {
    let Geometry { channels, width, patch_height, patch_width, .. } = *geometry;
    let (patch, area, run) = (geometry.patch(), patch_height * patch_width, patch_width * channels);
    let columns = width / patch_width;
    let start = |y: usize| (row * patch_height + y) * width;
    let line = |c: usize, y: usize| &image[c * geometry.plane() + start(y)..][..width];
    let pixels = |y: usize| &image[start(y) * channels..][..width * channels];
    match (geometry.layout, geometry.order) {
        (Layout::Nchw, Order::Cpq) => {
            for c in 0..channels {
                let f = convert.channel(c);
                for y in 0..patch_height {
                    let target = &mut strip[c * area + y * patch_width..];
                    deal(line(c, y), patch_width, target, patch, f);
                }
            }
        }
        (Layout::Nchw, Order::Pqc) if channels == 3 => {
            for y in 0..patch_height {
                let lines = [0, 1, 2].map(|c| line(c, y));
                for k in 0..columns {
                    let planes = lines.map(|line| &line[k * patch_width..][..patch_width]);
                    interleave(planes, &mut strip[k * patch + y * run..][..run], convert);
                }
            }
        }
        (Layout::Nchw, Order::Pqc) => {
            for c in 0..channels {
                let f = convert.channel(c);
                for y in 0..patch_height {
                    for k in 0..columns {
                        let values = &line(c, y)[k * patch_width..][..patch_width];
                        spread(channels, values, &mut strip[k * patch + y * run + c..], f);
                    }
                }
            }
        }
        (Layout::Nhwc, Order::Pqc) if uniform(convert) => {
            for y in 0..patch_height {
                deal(pixels(y), run, &mut strip[y * run..], patch, convert.channel(0));
            }
        }
        (Layout::Nhwc, Order::Pqc) => {
            for y in 0..patch_height {
                for k in 0..columns {
                    let target = &mut strip[k * patch + y * run..][..run];
                    packed(channels, &pixels(y)[k * run..][..run], target, convert);
                }
            }
        }
        (Layout::Nhwc, Order::Cpq) => {
            for y in 0..patch_height {
                for k in 0..columns {
                    let pixels = &pixels(y)[k * run..][..run];
                    for c in 0..channels {
                        let first = k * patch + c * area + y * patch_width;
                        let target = &mut strip[first..][..patch_width];
                        strided(channels, c, pixels, target, convert.channel(c));
                    }
                }
            }
        }
    }
}

fn uniform<S, D, C: Convert<S, D>>(_: &C) -> bool {
    C::UNIFORM
}

/// Calls `$f::<N, ..>(..)` for the run lengths that the field's patch sizes lead to, so that their loops are unrolled
/// and free of calls, and with N = 0 for any other.
macro_rules! with_length {
    ($length:expr, $f:ident($($argument:expr),*)) => {
        match $length {
            2 => $f::<2, _, _>($($argument),*),
            4 => $f::<4, _, _>($($argument),*),
            7 => $f::<7, _, _>($($argument),*),
            8 => $f::<8, _, _>($($argument),*),
            14 => $f::<14, _, _>($($argument),*),
            16 => $f::<16, _, _>($($argument),*),
            32 => $f::<32, _, _>($($argument),*),
            42 => $f::<42, _, _>($($argument),*),
            48 => $f::<48, _, _>($($argument),*),
            _ => $f::<0, _, _>($($argument),*),
        }
    };
}

/// A line's runs of `length` values to the starts of the chunks of `step` values.
fn deal<S: Copy, D: Copy>(
    line: &[S],
    length: usize,
    target: &mut [D],
    step: usize,
    f: impl Fn(S) -> D + Copy,
) {
    fn fixed<const N: usize, S: Copy, D: Copy>(
        line: &[S],
        length: usize,
        target: &mut [D],
        step: usize,
        f: impl Fn(S) -> D + Copy,
    ) {
        let length = if N == 0 { length } else { N };
        for k in 0..line.len() / length {
            run(&line[k * length..][..length], &mut target[k * step..][..length], f);
        }
    }
    with_length!(length, fixed(line, length, target, step, f));
}

/// The inverse of [`deal`]: the starts of the chunks of `step` values to a line's runs.
fn collect<T: Copy>(source: &[T], step: usize, line: &mut [T], length: usize) {
    fn fixed<const N: usize, T: Copy, U>(
        source: &[T],
        step: usize,
        line: &mut [T],
        length: usize,
        _: U,
    ) {
        let length = if N == 0 { length } else { N };
        for k in 0..line.len() / length {
            run(&source[k * step..][..length], &mut line[k * length..][..length], |value| value);
        }
    }
    with_length!(length, fixed(source, step, line, length, ()));
}

#[inline]
fn run<S: Copy, D: Copy>(source: &[S], target: &mut [D], f: impl Fn(S) -> D) {
    target.iter_mut().zip(source).for_each(|(to, &from)| *to = f(from));
}

/// A run to every `channels`-th place.
fn spread<S: Copy, D>(channels: usize, source: &[S], target: &mut [D], f: impl Fn(S) -> D) {
    target.iter_mut().step_by(channels).zip(source).for_each(|(to, &from)| *to = f(from));
}

/// Channel `c` of packed pixels to a run.
fn strided<S: Copy, D>(
    channels: usize,
    c: usize,
    pixels: &[S],
    target: &mut [D],
    f: impl Fn(S) -> D,
) {
    // With the stride known, the loop is unrolled without a check for each value.
    if channels == 3 {
        target.iter_mut().zip(pixels.chunks_exact(3)).for_each(|(to, from)| *to = f(from[c]));
    } else {
        let pixels = pixels[c..].iter().step_by(channels);
        target.iter_mut().zip(pixels).for_each(|(to, &from)| *to = f(from));
    }
}

/// Three planes to packed pixels.
fn interleave<S: Copy, D: Copy>(planes: [&[S]; 3], pixels: &mut [D], convert: &impl Convert<S, D>) {
    let [f0, f1, f2] = [convert.channel(0), convert.channel(1), convert.channel(2)];
    let planes = planes[0].iter().zip(planes[1]).zip(planes[2]);
    for (pixel, ((&first, &second), &third)) in pixels.chunks_exact_mut(3).zip(planes) {
        pixel[0] = f0(first);
        pixel[1] = f1(second);
        pixel[2] = f2(third);
    }
}

/// Packed pixels to packed pixels.
fn packed<S: Copy, D>(
    channels: usize,
    source: &[S],
    target: &mut [D],
    convert: &impl Convert<S, D>,
) {
    if channels == 3 {
        let [f0, f1, f2] = [convert.channel(0), convert.channel(1), convert.channel(2)];
        for (to, from) in target.chunks_exact_mut(3).zip(source.chunks_exact(3)) {
            to[0] = f0(from[0]);
            to[1] = f1(from[1]);
            to[2] = f2(from[2]);
        }
    } else {
        for c in 0..channels {
            let f = convert.channel(c);
            let target = target[c..].iter_mut().step_by(channels);
            target.zip(source[c..].iter().step_by(channels)).for_each(|(to, &from)| *to = f(from));
        }
    }
}

/// Puts `patches` together into `images`, on at most `threads` threads: the inverse of [`patchify`].
///
/// # Errors
/// [`Error::Argument`] when a slice has another number of values than the geometry.
pub fn unpatchify<T: Copy + Send + Sync>(
    geometry: &Geometry,
    patches: &[T],
    images: &mut [T],
    threads: usize,
) -> Result<()> {
    geometry.check(patches, images)?;
    let threads = parallel::useful_threads(threads, size_of_val(images));
    let rows = geometry.rows();
    let strip = |index: usize| &patches[index * geometry.strip()..][..geometry.strip()];
    let batch = images.chunks_exact_mut(geometry.image()).enumerate();
    if geometry.batch >= 2 * threads {
        parallel::for_each(threads, batch, |(b, image)| {
            let mut planes = planes(geometry, image);
            for row in 0..rows {
                patches_to_strip(geometry, strip(b * rows + row), row, &mut planes);
            }
        });
    } else {
        let strips = batch.flat_map(|(b, image)| {
            let strips = strips(geometry, image).into_iter().enumerate();
            strips.map(move |(row, pieces)| (b * rows + row, pieces))
        });
        parallel::for_each(threads, strips, |(index, mut pieces)| {
            patches_to_strip(geometry, strip(index), 0, &mut pieces);
        });
    }
    Ok(())
}

/// The runs of memory that an image's strips have one piece of each: its planes, or itself.
fn planes<'a, T>(geometry: &Geometry, image: &'a mut [T]) -> Vec<&'a mut [T]> {
    match geometry.layout {
        Layout::Nchw => image.chunks_exact_mut(geometry.plane()).collect(),
        Layout::Nhwc => vec![image],
    }
}

/// The pieces of each strip of an image.
fn strips<'a, T>(geometry: &Geometry, image: &'a mut [T]) -> Vec<Vec<&'a mut [T]>> {
    let mut strips: Vec<Vec<_>> = (0..geometry.rows()).map(|_| Vec::new()).collect();
    for plane in planes(geometry, image) {
        let piece = plane.len() / geometry.rows();
        for (strip, piece) in strips.iter_mut().zip(plane.chunks_exact_mut(piece)) {
            strip.push(piece);
        }
    }
    strips
}

/// Writes one row of patches into row `row` of the pieces of an image.
fn patches_to_strip<T: Copy>(
    geometry: &Geometry,
    strip: &[T],
    row: usize,
    pieces: &mut [&mut [T]],
) {
    let Geometry { channels, width, patch_height, patch_width, .. } = *geometry;
    let (patch, area, run) = (geometry.patch(), patch_height * patch_width, patch_width * channels);
    let columns = width / patch_width;
    let start = |y: usize| (row * patch_height + y) * width;
    match (geometry.layout, geometry.order) {
        (Layout::Nchw, Order::Cpq) => {
            for (c, plane) in pieces.iter_mut().enumerate() {
                for y in 0..patch_height {
                    let line = &mut plane[start(y)..][..width];
                    collect(&strip[c * area + y * patch_width..], patch, line, patch_width);
                }
            }
        }
        (Layout::Nchw, Order::Pqc) => {
            for y in 0..patch_height {
                for (c, plane) in pieces.iter_mut().enumerate() {
                    let line = &mut plane[start(y)..][..width];
                    for k in 0..columns {
                        let pixels = &strip[k * patch + y * run..][..run];
                        let target = &mut line[k * patch_width..][..patch_width];
                        strided(channels, c, pixels, target, |value| value);
                    }
                }
            }
        }
        (Layout::Nhwc, Order::Pqc) => {
            for y in 0..patch_height {
                let line = &mut pieces[0][start(y) * channels..][..width * channels];
                collect(&strip[y * run..], patch, line, run);
            }
        }
        (Layout::Nhwc, Order::Cpq) => {
            for y in 0..patch_height {
                let line = &mut pieces[0][start(y) * channels..][..width * channels];
                for k in 0..columns {
                    let first = k * patch + y * patch_width;
                    let plane = |c: usize| &strip[first + c * area..][..patch_width];
                    let pixels = &mut line[k * run..][..run];
                    if channels == 3 {
                        interleave([plane(0), plane(1), plane(2)], pixels, &Copied);
                    } else {
                        for c in 0..channels {
                            spread(channels, plane(c), &mut pixels[c..], |value| value);
                        }
                    }
                }
            }
        }
    }
}

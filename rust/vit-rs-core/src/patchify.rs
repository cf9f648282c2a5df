//! Images to patch vectors and back (arXiv 2010.11929, section 3.1), in both in-patch orders of the field.
//!
//! The work is cut into *strips*: one row of patches of one image. In a batch of patches a strip is one run of memory;
//! in images it is a run (NHWC) or one run per channel (NCHW). Both sides of a strip are touched once, line by line,
//! and threads share nothing.

use crate::error::{Error, Result};
use crate::line::{
    Channels, Converter, Element, Float, Normalization, Source, Unit, collect, deal, deinterleave,
    interleave,
};
use crate::parallel;
use crate::simd::{Level, Stream, is_lines};

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
        let values =
            [channels, height, width].iter().try_fold(batch.max(1), |n, &k| n.checked_mul(k));
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

    /// Values of one line of an image, all channels.
    fn line(&self) -> usize {
        self.width * self.channels
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
/// let mut patches = [0_u8; 8];
/// patchify(&geometry, &[0, 1, 2, 3, 10, 11, 12, 13], &mut patches, 1)?;
/// assert_eq!(patches, [0, 10, 1, 11, 2, 12, 3, 13]);
/// # Ok::<(), vit_rs_core::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Argument`] when a slice has another number of values than the geometry.
pub fn patchify<T: Element>(
    geometry: &Geometry,
    images: &[T],
    patches: &mut [T],
    threads: usize,
) -> Result<()> {
    cut(geometry, &Copied, images, patches, threads)
}

/// [`patchify`] with values converted to (value x unit - mean) / std on the way, computed in f32; the unit is 1/255 for
/// 8-bit images, else 1.
///
/// # Errors
/// As [`patchify`], and for a normalisation of another number of channels.
pub fn patchify_normalized<S: Source, D: Float>(
    geometry: &Geometry,
    normalization: &Normalization,
    images: &[S],
    patches: &mut [D],
    threads: usize,
) -> Result<()> {
    if normalization.channels() != geometry.channels {
        return Err(Error::argument(format!(
            "the normalisation is of {} channels, the images have {}",
            normalization.channels(),
            geometry.channels
        )));
    }
    if geometry.values() == 0 {
        return geometry.check(images, patches);
    }
    let converter = Converter::new(normalization, Unit::MULTIPLIED, geometry.width);
    cut(geometry, &converter, images, patches, threads)
}

/// What becomes of a line's values before they are dealt into patches.
trait Step<S, D>: Sync {
    /// The values of `line` as they go into patches; `room` is memory for them.
    fn values<'a>(
        &self,
        level: Level,
        channels: Channels,
        line: &'a [S],
        room: &'a mut Values<D>,
    ) -> &'a [D];

    /// [`Element::interleave_in_runs`], where nothing else becomes of the values.
    fn interleave_in_runs(
        &self,
        _: Level,
        _planes: [&[S]; 3],
        _run: usize,
        _target: &mut [D],
        _step: usize,
    ) -> bool {
        false
    }
}

/// Memory for one line of values, and for what they are rounded from.
struct Values<D> {
    line: Vec<D>,
    wide: Vec<f32>,
}

/// Values move as they are.
struct Copied;

impl<T: Element> Step<T, T> for Copied {
    fn values<'a>(&self, _: Level, _: Channels, line: &'a [T], _: &'a mut Values<T>) -> &'a [T] {
        line
    }

    fn interleave_in_runs(
        &self,
        level: Level,
        planes: [&[T]; 3],
        run: usize,
        target: &mut [T],
        step: usize,
    ) -> bool {
        T::interleave_in_runs(level, planes, run, target, step)
    }
}

impl<S: Source, D: Float> Step<S, D> for Converter {
    fn values<'a>(
        &self,
        level: Level,
        channels: Channels,
        line: &'a [S],
        room: &'a mut Values<D>,
    ) -> &'a [D] {
        room.line.resize(line.len(), D::zeroed());
        self.convert(level, channels, line, &mut room.line, &mut room.wide);
        &room.line
    }
}

/// Strips are handed out in groups of about this many values, so that taking one costs nothing beside it.
const GROUP: usize = 1 << 16;

/// Strips of up to this many bytes fit the nearest cache beside the lines that they are made of.
const NEAR: usize = 24 << 10;

fn cut<S: Element, D: Element>(
    geometry: &Geometry,
    step: &impl Step<S, D>,
    images: &[S],
    patches: &mut [D],
    threads: usize,
) -> Result<()> {
    geometry.check(images, patches)?;
    let bytes = size_of_val(patches);
    let threads = parallel::useful_threads(threads, bytes);
    let group = (GROUP / geometry.strip()).max(1);
    let groups = patches.chunks_mut(geometry.strip() * group).enumerate();
    parallel::for_each(threads, groups, |(index, patches)| {
        let mut cutter = Cutter::new(geometry, step, bytes);
        for (i, strip) in patches.chunks_exact_mut(geometry.strip()).enumerate() {
            let (b, row) =
                ((index * group + i) / geometry.rows(), (index * group + i) % geometry.rows());
            cutter.write(&images[b * geometry.image()..][..geometry.image()], row, strip);
        }
    });
    Ok(())
}

/// Cuts strips, line by line: long runs are read in their order, short ones written.
struct Cutter<'a, S, D, T> {
    geometry: &'a Geometry,
    step: &'a T,
    level: Level,
    /// How runs are written to strips, and how strips that are made in `strip` are written to their place.
    runs: Stream,
    strips: Stream,
    /// Memory for a strip, if it is to be written as one run; a line with its channels in another arrangement.
    strip: Option<Vec<D>>,
    arranged: Vec<S>,
    values: Values<D>,
}

impl<'a, S: Element, D: Element, T: Step<S, D>> Cutter<'a, S, D, T> {
    fn new(geometry: &'a Geometry, step: &'a T, bytes: usize) -> Self {
        let strips = Stream::for_result(bytes);
        let run = match geometry.order {
            Order::Pqc => geometry.patch_width * geometry.channels,
            Order::Cpq => geometry.patch_width,
        };
        // Past the caches go whole lines of them only. Short runs make such lines in a strip close by.
        let bytes = geometry.strip() * size_of::<D>();
        let gathered = strips.past_caches()
            && bytes <= NEAR
            && is_lines(bytes)
            && !is_lines(run * size_of::<D>());
        Self {
            geometry,
            step,
            level: Level::best(),
            runs: Stream::new(strips.past_caches() && !gathered),
            strips,
            strip: gathered.then(|| vec![D::zeroed(); geometry.strip()]),
            arranged: vec![S::zeroed(); geometry.line()],
            values: Values { line: Vec::new(), wide: Vec::new() },
        }
    }

    /// Writes row `row` of the patches of one image to its place.
    fn write(&mut self, image: &[S], row: usize, place: &mut [D]) {
        if let Some(mut strip) = self.strip.take() {
            self.cut(image, row, &mut strip);
            deal(&self.strips, &strip, strip.len(), place, strip.len());
            self.strip = Some(strip);
        } else {
            self.cut(image, row, place);
        }
    }

    /// Cuts row `row` of the patches of one image.
    fn cut(&mut self, image: &[S], row: usize, strip: &mut [D]) {
        let geometry = self.geometry;
        let Geometry { channels, width, patch_height, layout, .. } = *geometry;
        let start = |y: usize| (row * patch_height + y) * width;
        let plane = |c: usize, y: usize| &image[c * geometry.plane() + start(y)..][..width];
        let pixels = |y: usize| &image[start(y) * channels..][..width * channels];
        match (layout, geometry.order) {
            (Layout::Nchw, Order::Cpq) => {
                for c in 0..channels {
                    for y in 0..patch_height {
                        self.channel(c, y, plane(c, y), strip);
                    }
                }
            }
            (Layout::Nchw, Order::Pqc) => {
                let mut line = std::mem::take(&mut self.arranged);
                for y in 0..patch_height {
                    let done = channels == 3 && {
                        let planes = [plane(0, y), plane(1, y), plane(2, y)];
                        let (run, patch) = (geometry.patch_width, geometry.patch());
                        let target = &mut strip[y * run * channels..];
                        self.step.interleave_in_runs(self.level, planes, run, target, patch)
                    };
                    if !done {
                        interleave(self.level, channels, |c| plane(c, y), &mut line);
                        self.pixels(y, &line, strip);
                    }
                }
                self.arranged = line;
            }
            (Layout::Nhwc, Order::Cpq) => {
                let mut planes = std::mem::take(&mut self.arranged);
                for y in 0..patch_height {
                    deinterleave(self.level, channels, pixels(y), &mut planes);
                    for (c, line) in planes.chunks_exact(width).enumerate() {
                        self.channel(c, y, line, strip);
                    }
                }
                self.arranged = planes;
            }
            (Layout::Nhwc, Order::Pqc) => {
                for y in 0..patch_height {
                    self.pixels(y, pixels(y), strip);
                }
            }
        }
    }

    /// Deals one channel of line `y` of a strip into its patches.
    fn channel(&mut self, c: usize, y: usize, line: &[S], strip: &mut [D]) {
        let Geometry { patch_height, patch_width, .. } = *self.geometry;
        let values = self.step.values(self.level, Channels::One(c), line, &mut self.values);
        let target = &mut strip[(c * patch_height + y) * patch_width..];
        deal(&self.runs, values, patch_width, target, self.geometry.patch());
    }

    /// Deals the packed pixels of line `y` of a strip into its patches.
    fn pixels(&mut self, y: usize, line: &[S], strip: &mut [D]) {
        let run = self.geometry.patch_width * self.geometry.channels;
        let values = self.step.values(self.level, Channels::Packed, line, &mut self.values);
        deal(&self.runs, values, run, &mut strip[y * run..], self.geometry.patch());
    }
}

/// Puts `patches` together into `images`, on at most `threads` threads: the inverse of [`patchify`].
///
/// # Errors
/// [`Error::Argument`] when a slice has another number of values than the geometry.
pub fn unpatchify<T: Element>(
    geometry: &Geometry,
    patches: &[T],
    images: &mut [T],
    threads: usize,
) -> Result<()> {
    geometry.check(patches, images)?;
    let bytes = size_of_val(images);
    let threads = parallel::useful_threads(threads, bytes);
    let rows = geometry.rows();
    let strip = |index: usize| &patches[index * geometry.strip()..][..geometry.strip()];
    let batch = images.chunks_exact_mut(geometry.image()).enumerate();
    if threads == 1 || geometry.batch >= 2 * threads {
        parallel::for_each(threads, batch, |(b, image)| {
            let mut planes = planes(geometry, image);
            let mut joiner = Joiner::new(geometry, bytes);
            for row in 0..rows {
                joiner.strip(strip(b * rows + row), row, &mut planes);
            }
        });
    } else {
        let strips = batch.flat_map(|(b, image)| {
            let strips = strips(geometry, image).into_iter().enumerate();
            strips.map(move |(row, pieces)| (b * rows + row, pieces))
        });
        parallel::for_each(threads, strips, |(index, mut pieces)| {
            Joiner::new(geometry, bytes).strip(strip(index), 0, &mut pieces);
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

/// Puts strips together, line by line: short runs are read, long ones written in their order.
struct Joiner<'a, T> {
    geometry: &'a Geometry,
    level: Level,
    stream: Stream,
    /// Lines that are not in their last place yet, with their channels in both arrangements.
    packed: Vec<T>,
    planes: Vec<T>,
}

impl<'a, T: Element> Joiner<'a, T> {
    fn new(geometry: &'a Geometry, bytes: usize) -> Self {
        Self {
            geometry,
            level: Level::best(),
            stream: Stream::for_result(bytes),
            packed: vec![T::zeroed(); geometry.line()],
            planes: vec![T::zeroed(); geometry.line()],
        }
    }

    /// Writes one row of patches into row `row` of the pieces of an image.
    fn strip(&mut self, strip: &[T], row: usize, pieces: &mut [&mut [T]]) {
        let Self { level, stream, packed, planes, .. } = self;
        let cached = Stream::new(false);
        let Geometry { channels, width, patch_height, patch_width, layout, order, .. } =
            *self.geometry;
        let (patch, run) = (self.geometry.patch(), patch_width * channels);
        let channel = |c: usize, y: usize| &strip[(c * patch_height + y) * patch_width..];
        let pixels = |y: usize| &strip[y * run..];
        let start = |y: usize| (row * patch_height + y) * width;
        match (layout, order) {
            (Layout::Nchw, Order::Cpq) => {
                for (c, piece) in pieces.iter_mut().enumerate() {
                    for y in 0..patch_height {
                        let line = &mut piece[start(y)..][..width];
                        collect(stream, channel(c, y), patch, line, patch_width);
                    }
                }
            }
            (Layout::Nchw, Order::Pqc) => {
                for y in 0..patch_height {
                    collect(&cached, pixels(y), patch, packed, run);
                    deinterleave(*level, channels, packed, planes);
                    for (piece, line) in pieces.iter_mut().zip(planes.chunks_exact(width)) {
                        deal(stream, line, width, &mut piece[start(y)..][..width], width);
                    }
                }
            }
            (Layout::Nhwc, Order::Pqc) => {
                for y in 0..patch_height {
                    let line = &mut pieces[0][start(y) * channels..][..width * channels];
                    collect(stream, pixels(y), patch, line, run);
                }
            }
            (Layout::Nhwc, Order::Cpq) => {
                for y in 0..patch_height {
                    for (c, plane) in planes.chunks_exact_mut(width).enumerate() {
                        collect(&cached, channel(c, y), patch, plane, patch_width);
                    }
                    let plane = |c: usize| &planes[c * width..][..width];
                    interleave(*level, channels, plane, packed);
                    let line = &mut pieces[0][start(y) * channels..][..packed.len()];
                    deal(stream, packed, packed.len(), line, packed.len());
                }
            }
        }
    }
}

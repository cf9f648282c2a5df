//! The views of a sample without a loader: images come one by one, and results go to memory of their own.

use std::sync::{Mutex, PoisonError};

use crate::augment::plan::Split;
use crate::augment::spec::Spec;
use crate::emit::{Emit, Output};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Pixels, Size};
use crate::line::interleave;
use crate::pipeline::{Decoding, KEPT, Tools, emit_for, prepare, write};
use crate::rng::EpochKey;
use crate::simd::Level;
use crate::source::Item;

/// An image as its owner holds it.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// A file's bytes.
    Encoded(&'a [u8]),
    /// Pixels, H x W x C.
    Pixels(ImageView<'a>),
    /// Planes, C x H x W.
    Planes {
        /// All values.
        values: &'a [u8],
        /// The planes' size.
        size: Size,
        /// Their number.
        channels: usize,
    },
}

/// What is done to single images. Many threads may use it at once.
#[derive(Debug)]
pub struct Transformer {
    views: Vec<(Spec, Output)>,
    decoding: Decoding,
    /// Those that nobody uses at the moment: at most as many as were in use at once.
    tools: Mutex<Vec<Kit>>,
}

/// What one call needs.
#[derive(Debug, Default)]
struct Kit {
    tools: Tools,
    /// Planes that were interleaved.
    packed: ImageBuf,
    /// What wrote each view the last time.
    emits: Vec<Option<Emit>>,
    /// Pixels of the last image.
    largest: usize,
}

impl Transformer {
    /// The views that are made of each image.
    #[must_use]
    pub fn new(views: Vec<(Spec, Output)>, decoding: Decoding) -> Self {
        Self { views, decoding, tools: Mutex::default() }
    }

    /// Makes the views of one image and gives them to `take`, one by one.
    ///
    /// # Errors
    /// [`Error`] when the image cannot be decoded or does not fit a view, and what `take` says.
    pub fn run(
        &self,
        image: Image<'_>,
        key: EpochKey,
        take: impl FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<()> {
        let kept = || self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kit = kept().pop().unwrap_or_default();
        let made = match image {
            Image::Encoded(bytes) => self.make(&mut kit, Item::Encoded(bytes), key, take),
            Image::Pixels(pixels) => self.make(&mut kit, Item::Pixels(pixels), key, take),
            Image::Planes { values, size, channels } => {
                let mut packed = std::mem::take(&mut kit.packed);
                let made = interleaved(values, size, channels, &mut packed)
                    .and_then(|pixels| self.make(&mut kit, Item::Pixels(pixels), key, take));
                kit.packed = packed;
                made
            }
        };
        if kit.largest <= KEPT {
            kept().push(kit);
        }
        made
    }

    fn make(
        &self,
        kit: &mut Kit,
        item: Item<'_>,
        key: EpochKey,
        mut take: impl FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<()> {
        let Kit { tools: Tools { decoder, canvases, turned, .. }, emits, largest, .. } = kit;
        emits.resize(self.views.len(), None);
        let specs = self.views.iter().map(|(spec, _)| spec);
        let prepared = prepare(decoder, turned, item, self.decoding, specs, key, 0)?;
        *largest = prepared.most_pixels();
        for (((_, output), plan), emit) in self.views.iter().zip(&prepared.plans).zip(emits) {
            let split = plan.split();
            let (source, unit) = (prepared.part(split.region)?, output.values.unit());
            let finished = canvases.apply(source, &split, unit)?;
            let emit = emit_for(emit, output, finished.size(), finished.channels())?;
            take(Finished { emit, pixels: finished, split })?;
        }
        Ok(())
    }
}

/// A view whose pixels are ready, but not written yet.
#[derive(Debug)]
pub struct Finished<'a> {
    emit: &'a Emit,
    pixels: Pixels<'a>,
    split: Split<'a>,
}

impl Finished<'_> {
    /// How it is written.
    #[must_use]
    pub fn emit(&self) -> &Emit {
        self.emit
    }

    /// Writes it to `place`, which has [`Emit::bytes`] bytes, aligned to their type.
    ///
    /// # Errors
    /// [`Error::Argument`] for another place.
    pub fn write(self, place: &mut [u8]) -> Result<()> {
        write(self.emit, self.pixels, &self.split, place)
    }
}

/// Packs planes, C x H x W.
fn interleaved<'a>(
    values: &'a [u8],
    size: Size,
    channels: usize,
    packed: &'a mut ImageBuf,
) -> Result<ImageView<'a>> {
    if channels == 1 {
        return ImageView::new(values, size, 1, size.width);
    }
    if size.pixels() == 0 || size.pixels().checked_mul(channels) != Some(values.len()) {
        return Err(Error::argument(format!(
            "{channels} planes of {size} do not make {} values",
            values.len()
        )));
    }
    let (level, width) = (Level::best(), size.width);
    let rows = packed.reshape(size, channels).chunks_exact_mut(width * channels);
    for (y, row) in rows.enumerate() {
        let plane = |c: usize| &values[(c * size.height + y) * width..][..width];
        interleave(level, channels, plane, row);
    }
    packed.view()
}

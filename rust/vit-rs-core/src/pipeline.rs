//! From a sample's index to its pixels in the batch: read, plan, decode, augment, write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::augment::geometry::Canvas;
use crate::augment::plan::Plan;
use crate::augment::spec::Spec;
use crate::decode::Decoder;
use crate::emit::Emit;
use crate::error::{Error, Result};
use crate::image::Size;
use crate::rng::EpochKey;
use crate::source::{Item, Source};

/// What happens to a sample that cannot be read or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Its batch is an error.
    Raise,
    /// Its batch is shorter.
    Skip,
    /// Another sample, drawn from the sample's own key, stands in its place.
    Substitute,
}

/// From index to pixels in the batch.
pub struct Pipeline {
    /// The samples.
    pub source: Arc<dyn Source>,
    /// Those that are used: index in the source of each position; None = all.
    pub subset: Option<Vec<u64>>,
    /// What is drawn for each.
    pub spec: Spec,
    /// How it is written.
    pub emit: Emit,
    /// First part of every sample's key.
    pub seed: u64,
    /// Larger images are errors.
    pub max_pixels: usize,
    /// What becomes of errors.
    pub on_error: OnError,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("samples", &self.len()).finish_non_exhaustive()
    }
}

/// A thread's decoders and memory.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    decoder: Decoder,
    canvas: Canvas,
    file: Vec<u8>,
}

impl Pipeline {
    /// Number of samples that are used.
    #[must_use]
    pub fn len(&self) -> usize {
        self.subset.as_ref().map_or(self.source.len(), Vec::len)
    }

    /// Whether no sample is used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index in the source of a position.
    fn index(&self, position: u64) -> Result<usize> {
        let place = usize::try_from(position).ok().filter(|&place| place < self.len());
        let index =
            place.map(|place| self.subset.as_ref().map_or(position, |subset| subset[place]));
        let index = index.and_then(|index| usize::try_from(index).ok());
        index.filter(|&index| index < self.source.len()).ok_or_else(|| {
            Error::argument(format!(
                "position {position} does not lead into a source of {} samples",
                self.source.len()
            ))
        })
    }

    /// Reads, decodes, augments and writes one sample.
    pub(crate) fn sample(
        &self,
        tools: &mut Tools,
        key: EpochKey,
        position: u64,
        draw: u64,
        place: &mut [u8],
        stats: &Counters,
    ) -> Result<()> {
        let Tools { decoder, canvas, file } = tools;
        let index = self.index(position)?;
        let mut clock = Instant::now();
        let mut lap = |counter: &AtomicU64| {
            let now = Instant::now();
            counter.fetch_add((now - clock).as_nanos() as u64, Ordering::Relaxed);
            clock = now;
        };
        let mut work = || {
            let item = self.source.item(index, file)?;
            lap(&stats.read);
            let (plan, view);
            let (steps, mirrored) = match item {
                Item::Encoded(bytes) => {
                    stats.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    let header = decoder.header(bytes, self.max_pixels)?;
                    plan = self.plan(header.size, key, draw)?;
                    let (region, steps, mirrored) = plan.split();
                    view = decoder.decode_region(bytes, header, region)?;
                    (steps, mirrored)
                }
                Item::Pixels(pixels) => {
                    plan = self.plan(pixels.size(), key, draw)?;
                    let (region, steps, mirrored) = plan.split();
                    view = pixels.crop(region)?;
                    (steps, mirrored)
                }
            };
            lap(&stats.decode);
            let view = canvas.apply(view, steps)?;
            lap(&stats.augment);
            self.emit.write(view, mirrored, place)?;
            lap(&stats.emit);
            stats.images.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        work().map_err(|error: Error| error.named(self.source.name(index)))
    }

    /// Draws a plan, and refuses one that would make a small file a huge image.
    fn plan(&self, size: Size, key: EpochKey, draw: u64) -> Result<Plan> {
        let plan = self.spec.plan(size, key, draw, 0)?;
        match plan.most_pixels() {
            most if most > self.max_pixels => Err(Error::sample(format!(
                "its transform makes {most} pixels of {size}, more than max_pixels = {}",
                self.max_pixels
            ))),
            _ => Ok(plan),
        }
    }
}

/// What was done so far: samples, bytes, and nanoseconds a stage.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) images: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) decode: AtomicU64,
    pub(crate) augment: AtomicU64,
    pub(crate) emit: AtomicU64,
    pub(crate) wait: AtomicU64,
}

//! From a sample's index to its pixels in the batch: read, plan, decode, augment, write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::augment::geometry::Canvas;
use crate::augment::spec::Spec;
use crate::decode::Decoder;
use crate::emit::Emit;
use crate::error::{Error, Result};
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
        f.debug_struct("Pipeline").field("samples", &self.source.len()).finish_non_exhaustive()
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
    /// Reads, decodes, augments and writes one sample.
    pub(crate) fn sample(
        &self,
        tools: &mut Tools,
        key: EpochKey,
        index: u64,
        draw: u64,
        place: &mut [u8],
        stats: &Counters,
    ) -> Result<()> {
        let Tools { decoder, canvas, file } = tools;
        let index = usize::try_from(index).ok().filter(|&index| index < self.source.len());
        let index = index.ok_or_else(|| {
            Error::argument(format!("an index outside a source of {} samples", self.source.len()))
        })?;
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
                    plan = self.spec.plan(header.size, key, draw, 0)?;
                    let (region, steps, mirrored) = plan.split();
                    view = decoder.decode_region(bytes, header, region)?;
                    (steps, mirrored)
                }
                Item::Pixels(pixels) => {
                    plan = self.spec.plan(pixels.size(), key, draw, 0)?;
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

//! From a sample's index to its pixels in the batch: read, plan, decode, augment, write.

use std::sync::Arc;
use std::time::Instant;

use crate::augment::canvas::Canvas;
use crate::augment::plan::Plan;
use crate::augment::spec::Spec;
use crate::decode::{Decoder, Header};
use crate::emit::Emit;
use crate::error::{Error, Result};
use crate::image::{ImageView, Rect, Size};
use crate::rng::EpochKey;
use crate::slot::Part;
use crate::source::{Fetched, Item, Source};
use crate::statistics::{Tally, nanoseconds};

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

/// One view of a sample.
#[derive(Clone, Debug)]
pub struct View {
    /// What is drawn for it.
    pub spec: Spec,
    /// How it is written.
    pub emit: Emit,
}

/// How files are decoded.
#[derive(Clone, Copy, Debug)]
pub struct Decoding {
    /// Larger images are errors, and so are transforms that make one.
    pub max_pixels: usize,
}

/// From index to pixels in the batch.
pub struct Pipeline {
    /// The samples.
    pub source: Arc<dyn Source>,
    /// Those that are used: index in the source of each position; None = all.
    pub subset: Option<Vec<u64>>,
    /// What is made of each: one batch tensor a view.
    pub views: Vec<View>,
    /// First part of every sample's key.
    pub seed: u64,
    /// How files are decoded.
    pub decoding: Decoding,
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
    pub(crate) decoder: Decoder,
    pub(crate) canvas: Canvas,
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

    /// A shuffled order of all positions: that of this epoch.
    #[must_use]
    pub fn permutation(&self, epoch: u64) -> Vec<u64> {
        let key = EpochKey::new(self.seed, epoch);
        let Some(blocks) = self.source.blocks() else { return key.permutation(self.len()) };
        let Some(subset) = &self.subset else { return key.permutation_of_blocks(&blocks) };
        let block = |&index: &u64| blocks.get(index as usize).copied().unwrap_or_default();
        key.permutation_of_blocks(&subset.iter().map(block).collect::<Vec<_>>())
    }

    /// Says to the source that this sample will be wanted soon; returns the ticket for it.
    pub(crate) fn announce(&self, position: u64) -> u64 {
        // A wrong position is an error when its turn comes.
        self.index(position).map_or(0, |index| self.source.announce(index))
    }

    /// A sample's name and size, and the plan of each view; it is read, and not decoded.
    ///
    /// # Errors
    /// [`Error`] when it cannot be read, or when no plan can be drawn for its size.
    pub fn plans(&self, epoch: u64, position: u64, draw: u64) -> Result<(String, Size, Vec<Plan>)> {
        let index = self.index(position)?;
        let name = self.source.name(index);
        let plans = || {
            let mut file = Vec::new();
            let size = match self.source.item(index, &mut file)? {
                Item::Encoded(bytes) => {
                    Decoder::default().header(bytes, self.decoding.max_pixels)?.size
                }
                Item::Pixels(pixels) => pixels.size(),
            };
            let key = EpochKey::new(self.seed, epoch);
            let plan = |(number, view): (u16, &View)| view.spec.plan(size, key, draw, number);
            Ok((size, (0..).zip(&self.views).map(plan).collect::<Result<Vec<_>>>()?))
        };
        let (size, plans) = plans().map_err(|error: Error| error.named(&name))?;
        Ok((name, size, plans))
    }

    /// Reads, decodes, augments and writes the views of one sample, each into its place. Returns the label, where the
    /// source gives it.
    pub(crate) fn sample(
        &self,
        tools: &mut Tools,
        key: EpochKey,
        (position, ticket): (u64, u64),
        draw: u64,
        places: &mut [Part],
        tally: &mut Tally,
    ) -> Result<Option<i64>> {
        let Tools { decoder, canvas, file } = tools;
        let index = self.index(position)?;
        let mut clock = Instant::now();
        let mut lap = |stage: &mut u64| {
            let now = Instant::now();
            *stage += nanoseconds(clock, now);
            clock = now;
        };
        let work = || {
            let Fetched { item, label } = self.source.fetch(index, ticket, file)?;
            lap(&mut tally.read);
            if let Item::Encoded(bytes) = item {
                tally.bytes += bytes.len() as u64;
            }
            let specs = self.views.iter().map(|view| &view.spec);
            let prepared = prepare(decoder, item, self.decoding, specs, key, draw)?;
            lap(&mut tally.decode);
            for ((view, plan), place) in self.views.iter().zip(&prepared.plans).zip(places) {
                let (region, steps, mirrored) = plan.split();
                let finished = canvas.apply(prepared.part(region)?, plan.kernels, steps)?;
                lap(&mut tally.augment);
                view.emit.write(finished, mirrored, place.bytes_mut())?;
                lap(&mut tally.emit);
            }
            tally.images += 1;
            Ok(label)
        };
        work().map_err(|error: Error| error.named(self.source.name(index)))
    }
}

/// A sample whose size is known.
enum Opened<'a> {
    File(&'a [u8], Header),
    Pixels(ImageView<'a>),
}

/// What the views of one sample are made of.
pub(crate) struct Prepared<'a> {
    /// One for each view.
    pub(crate) plans: Vec<Plan>,
    /// The pixels that they need, and where those lie in the image.
    pixels: ImageView<'a>,
    decoded: Rect,
}

impl<'a> Prepared<'a> {
    /// The pixels that one plan needs.
    pub(crate) fn part(&self, region: Rect) -> Result<ImageView<'a>> {
        let (top, left) = (region.top - self.decoded.top, region.left - self.decoded.left);
        self.pixels.crop(Rect { top, left, ..region })
    }
}

/// Draws a plan for each view, and decodes once what they need together.
pub(crate) fn prepare<'a, 's>(
    decoder: &'a mut Decoder,
    item: Item<'a>,
    decoding: Decoding,
    specs: impl Iterator<Item = &'s Spec>,
    key: EpochKey,
    draw: u64,
) -> Result<Prepared<'a>> {
    let opened = match item {
        Item::Encoded(bytes) => Opened::File(bytes, decoder.header(bytes, decoding.max_pixels)?),
        Item::Pixels(pixels) => Opened::Pixels(pixels),
    };
    let size = match &opened {
        Opened::File(_, header) => header.size,
        Opened::Pixels(pixels) => pixels.size(),
    };
    let plan = |(view, spec): (u16, &Spec)| {
        let plan = spec.plan(size, key, draw, view)?;
        if !plan.float_steps.is_empty() {
            return Err(Error::argument("operations on floats are not possible yet"));
        }
        match plan.most_pixels() {
            // A small file must not become a huge image.
            most if most > decoding.max_pixels => Err(Error::sample(format!(
                "its transform makes {most} pixels of {size}, more than max_pixels = {}",
                decoding.max_pixels
            ))),
            _ => Ok(plan),
        }
    };
    let plans = (0..).zip(specs).map(plan).collect::<Result<Vec<_>>>()?;
    let regions = plans.iter().map(|plan| plan.split().0);
    let decoded = regions.reduce(Rect::around).unwrap_or(size.rect());
    let pixels = match opened {
        Opened::File(bytes, header) => decoder.decode_region(bytes, header, decoded)?,
        Opened::Pixels(pixels) => pixels.crop(decoded)?,
    };
    Ok(Prepared { plans, pixels, decoded })
}

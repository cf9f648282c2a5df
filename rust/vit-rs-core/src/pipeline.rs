//! From a sample's index to its pixels in the batch: read, plan, decode, augment, write.

use std::sync::Arc;
use std::time::Instant;

use crate::augment::canvas::Canvas;
use crate::augment::float::FloatCanvas;
use crate::augment::plan::{Plan, Split, Step};
use crate::augment::spec::Spec;
use crate::decode::{Decoder, Header, Orientation, Scale};
use crate::emit::{Emit, Output};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Pixels, Rect, Size};
use crate::line::Unit;
use crate::memory::Recycler;
use crate::rng::EpochKey;
use crate::slot::{Part, Slot};
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
    pub form: Form,
}

/// How the images of a view are written.
#[derive(Clone, Debug)]
pub enum Form {
    /// All of one size, one after another in their batch's memory.
    Fixed(Emit),
    /// Each of its own size, in memory of its own.
    Ragged(Output),
}

impl Form {
    /// What 8-bit values are multiplied by where they become floats.
    fn unit(&self) -> Unit {
        match self {
            Self::Fixed(emit) => emit.unit(),
            Self::Ragged(output) => output.values.unit(),
        }
    }
}

impl View {
    /// Bytes of one image in the memory of its batch.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Fixed(emit) => emit.bytes(),
            Form::Ragged(_) => 0,
        }
    }
}

/// A finished image in memory of its own.
#[derive(Debug)]
pub struct Single {
    /// The image is at its start.
    pub memory: Slot,
    /// The image's dimensions.
    pub shape: Vec<usize>,
}

/// Where one view of a sample goes.
#[derive(Debug)]
pub(crate) enum Place {
    /// A part of the batch's memory.
    Part(Part),
    /// Memory of its own, from here.
    Own(Arc<Recycler>, Option<Single>),
}

impl Place {
    /// What was written into memory of its own.
    pub(crate) fn into_single(self) -> Option<Single> {
        match self {
            Self::Part(_) => None,
            Self::Own(_, single) => single,
        }
    }

    fn write(
        &mut self,
        form: &Form,
        emit: &mut Option<Emit>,
        finished: Pixels<'_>,
        split: &Split<'_>,
    ) -> Result<()> {
        match (self, form) {
            (Self::Part(part), Form::Fixed(emit)) => write(emit, finished, split, part.bytes_mut()),
            (Self::Own(home, single), Form::Ragged(output)) => {
                let emit = emit_for(emit, output, finished.size(), finished.channels())?;
                let mut memory = Slot::recycled(home, emit.bytes())?;
                let bytes = memory.bytes_mut().get_mut(..emit.bytes());
                write(emit, finished, split, bytes.ok_or(Error::Memory(emit.bytes()))?)?;
                *single = Some(Single { memory, shape: emit.shape() });
                Ok(())
            }
            _ => Err(Error::Panic("a view has the other form's memory".to_owned())),
        }
    }
}

/// How files are decoded.
#[derive(Clone, Copy, Debug)]
pub struct Decoding {
    /// Larger images are errors, and so are transforms that make one.
    pub max_pixels: usize,
    /// Turn images upright as their EXIF orientation says; plans are drawn for the upright image.
    pub exif: bool,
    /// Decode JPEGs at a half, a quarter or an eighth of their size where every view shrinks them at least that much:
    /// not the pixels of a full decode.
    pub fast: bool,
}

impl Decoding {
    /// Learns an item's size.
    fn open<'a>(&self, decoder: &mut Decoder, item: Item<'a>) -> Result<Opened<'a>> {
        let (content, stored, orientation) = match item {
            Item::Pixels(pixels) => (Content::Pixels(pixels), pixels.size(), Orientation::Upright),
            Item::Encoded(bytes) => {
                let header = decoder.header(bytes, self.max_pixels)?;
                let turned = if self.exif { header.orientation } else { Orientation::Upright };
                (Content::File(bytes, header), header.size, turned)
            }
        };
        Ok(Opened { content, frame: Frame { orientation, stored, scale: Scale::Full } })
    }
}

/// From index to pixels in the batch.
pub struct Pipeline {
    /// The samples.
    pub source: Arc<dyn Source>,
    /// Those that are used: index in the source of each position; None = all.
    pub subset: Option<Vec<u64>>,
    /// What is made of each: one batch tensor a view.
    pub views: Vec<View>,
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

/// After an image of more pixels, or a file of more bytes, a thread's memory goes back to the system: it would stay as
/// large for all images that follow.
pub(crate) const KEPT: usize = 16 << 20;

/// A thread's decoders and memory.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    pub(crate) decoder: Decoder,
    pub(crate) canvases: Canvases,
    pub(crate) turned: ImageBuf,
    file: Vec<u8>,
    /// What wrote each view the last time, where sizes differ.
    emits: Vec<Option<Emit>>,
}

/// Memory for the pixels of both kinds.
#[derive(Debug, Default)]
pub(crate) struct Canvases {
    bytes: Canvas,
    floats: FloatCanvas,
}

impl Canvases {
    /// Carries out a plan's steps up to the last store.
    pub(crate) fn apply<'a>(
        &'a mut self,
        source: ImageView<'a>,
        split: &Split<'_>,
        unit: Unit,
    ) -> Result<Pixels<'a>> {
        let bytes = self.bytes.apply(source, split.steps)?;
        if split.float_steps.is_empty() {
            return Ok(bytes.into());
        }
        Ok(self.floats.apply(bytes, unit, split.float_steps)?.into())
    }
}

/// Writes a finished image into its place.
pub(crate) fn write(
    emit: &Emit,
    finished: Pixels<'_>,
    split: &Split<'_>,
    place: &mut [u8],
) -> Result<()> {
    emit.write(finished, split.mirrored, place)?;
    for step in split.erased {
        if let Step::Erase { rect, fill } = step {
            emit.erase(*rect, fill, place)?;
        }
    }
    Ok(())
}

/// The last one again, if it is for such images.
pub(crate) fn emit_for<'a>(
    last: &'a mut Option<Emit>,
    output: &Output,
    size: Size,
    channels: usize,
) -> Result<&'a Emit> {
    if last.as_ref().is_none_or(|emit| emit.size() != size || emit.channels() != channels) {
        *last = None;
    }
    match last {
        Some(emit) => Ok(emit),
        none => Ok(none.insert(output.emit(size, channels)?)),
    }
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
    pub fn permutation(&self, key: EpochKey) -> Vec<u64> {
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
    pub fn plans(
        &self,
        key: EpochKey,
        position: u64,
        draw: u64,
    ) -> Result<(String, Size, Vec<Plan>)> {
        let index = self.index(position)?;
        let name = self.source.name(index);
        let plans = || {
            let mut file = Vec::new();
            let item = self.source.item(index, &mut file)?;
            let size = self.decoding.open(&mut Decoder::default(), item)?.frame.size();
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
        places: &mut [Place],
        tally: &mut Tally,
    ) -> Result<Option<i64>> {
        let index = self.index(position)?;
        let mut largest = 0;
        let mut clock = Instant::now();
        let mut lap = |stage: &mut u64| {
            let now = Instant::now();
            *stage += nanoseconds(clock, now);
            clock = now;
        };
        let Tools { decoder, canvases, turned, file, emits } = &mut *tools;
        emits.resize(self.views.len(), None);
        let work = || {
            let Fetched { item, label } = self.source.fetch(index, ticket, file)?;
            lap(&mut tally.read);
            if let Item::Encoded(bytes) = item {
                tally.bytes += bytes.len() as u64;
                largest = bytes.len();
            }
            let specs = self.views.iter().map(|view| &view.spec);
            let prepared = prepare(decoder, turned, item, self.decoding, specs, key, draw)?;
            largest = largest.max(prepared.most_pixels());
            lap(&mut tally.decode);
            let views = self.views.iter().zip(&prepared.plans).zip(places).zip(emits);
            for (((view, plan), place), emit) in views {
                let split = plan.split();
                let source = prepared.part(split.region)?;
                let finished = canvases.apply(source, &split, view.form.unit())?;
                lap(&mut tally.augment);
                place.write(&view.form, emit, finished, &split)?;
                lap(&mut tally.emit);
            }
            tally.images += 1;
            Ok(label)
        };
        let done = work().map_err(|error: Error| error.named(self.source.name(index)));
        if largest > KEPT {
            *tools = Tools::default();
        }
        done
    }
}

/// How the image that plans speak of, upright and whole, lies in the pixels that were decoded.
#[derive(Clone, Copy, Debug)]
struct Frame {
    orientation: Orientation,
    /// The size as stored.
    stored: Size,
    scale: Scale,
}

impl Frame {
    fn size(&self) -> Size {
        self.orientation.oriented_size(self.stored)
    }

    /// A region's pixels in the image at the scale of decoding, still upright.
    fn rect(&self, region: Rect) -> Result<Rect> {
        let stored = self.scale.rect(self.orientation.stored_rect(region, self.stored)?);
        let upright = self.orientation.oriented_size(self.scale.size(self.stored));
        self.orientation.inverse().stored_rect(stored, upright)
    }
}

/// An item whose frame, at full scale, is known.
struct Opened<'a> {
    content: Content<'a>,
    frame: Frame,
}

enum Content<'a> {
    File(&'a [u8], Header),
    Pixels(ImageView<'a>),
}

/// What the views of one sample are made of.
pub(crate) struct Prepared<'a> {
    /// One for each view.
    pub(crate) plans: Vec<Plan>,
    frame: Frame,
    /// The pixels that the plans need, and where they lie in the frame.
    pixels: ImageView<'a>,
    decoded: Rect,
}

impl<'a> Prepared<'a> {
    /// The most pixels that the image has at any time.
    pub(crate) fn most_pixels(&self) -> usize {
        let steps = self.plans.iter().map(Plan::most_pixels);
        steps.fold(self.pixels.size().pixels(), usize::max)
    }

    /// The pixels that one plan needs.
    pub(crate) fn part(&self, region: Rect) -> Result<ImageView<'a>> {
        let rect = self.frame.rect(region)?;
        let (top, left) = (rect.top - self.decoded.top, rect.left - self.decoded.left);
        self.pixels.crop(Rect { top, left, ..rect })
    }
}

/// The smallest scale at which every view still has as many pixels as it is resized to.
fn smallest_scale(plans: &[Plan]) -> Scale {
    let fits = |plan: &Plan, scale: Scale| {
        let Split { region, steps, .. } = plan.split();
        let d = scale.denominator();
        matches!(steps.first(), Some(Step::Resize { size, .. })
            if region.height / d >= size.height && region.width / d >= size.width)
    };
    let scales = Scale::ALL.into_iter().rev();
    let mut fitting = scales.filter(|&scale| plans.iter().all(|plan| fits(plan, scale)));
    fitting.next().unwrap_or(Scale::Full)
}

/// Draws a plan for each view, and decodes once what they need together.
pub(crate) fn prepare<'a, 's>(
    decoder: &'a mut Decoder,
    turned: &'a mut ImageBuf,
    item: Item<'a>,
    decoding: Decoding,
    specs: impl Iterator<Item = &'s Spec>,
    key: EpochKey,
    draw: u64,
) -> Result<Prepared<'a>> {
    let Opened { content, mut frame } = decoding.open(decoder, item)?;
    let size = frame.size();
    // Pixels in memory are no bomb, whatever their number.
    let limit = match content {
        Content::File(..) => decoding.max_pixels,
        Content::Pixels(_) => decoding.max_pixels.max(size.pixels()),
    };
    let plan = |(view, spec): (u16, &Spec)| {
        let plan = spec.plan(size, key, draw, view)?;
        match plan.most_pixels() {
            // A small file must not become a huge image.
            most if most > limit => Err(Error::sample(format!(
                "its transform makes {most} pixels of {size}, more than max_pixels = {}",
                decoding.max_pixels
            ))),
            _ => Ok(plan),
        }
    };
    let plans = (0..).zip(specs).map(plan).collect::<Result<Vec<_>>>()?;
    let regions = plans.iter().map(|plan| plan.split().region);
    let region = regions.reduce(Rect::around).unwrap_or(size.rect());
    let pixels = match content {
        Content::Pixels(pixels) => pixels.crop(region)?,
        Content::File(bytes, header) => {
            if decoding.fast {
                frame.scale = header.supported(smallest_scale(&plans));
            }
            let stored = frame.orientation.stored_rect(region, frame.stored)?;
            let pixels = decoder.decode_scaled(bytes, header, stored, frame.scale)?;
            if frame.orientation == Orientation::Upright {
                pixels
            } else {
                frame.orientation.apply(pixels, turned)?;
                turned.view()?
            }
        }
    };
    Ok(Prepared { plans, frame, pixels, decoded: frame.rect(region)? })
}

//! The last pass: mirror, normalise, cast and layout in one store into the batch.
//!
//! Floats are computed in torchvision's order of f32 roundings (times 1/255 or over 255, minus mean, over std): equal
//! bits on every CPU, whatever the output type.

use half::{bf16, f16};

use crate::augment::erase::{self, Filler};
use crate::augment::plan::Fill;
use crate::error::{Error, Result};
use crate::image::{ImageView, Pixels, Rect, Size};
use crate::line::{
    Channels, Converter, Element, Float, Normalization, Unit, deal, deinterleave, mirror,
};
use crate::patchify::Order;
use crate::simd::{Level, Stream};

/// Type of the values in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Unsigned 8-bit integer.
    U8,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
}

impl Dtype {
    /// Bytes of one value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Order of the values of one image in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Channel planes: C x H x W.
    Nchw,
    /// Interleaved: H x W x C.
    Nhwc,
    /// Patch vectors in raster order: N x (patch height x patch width x C).
    Patches {
        /// A patch's size.
        patch: Size,
        /// Order inside a patch.
        order: Order,
    },
}

/// What becomes of 8-bit values.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// They stay as they are.
    Raw,
    /// They become floats.
    Float {
        /// Their unit.
        unit: Unit,
        /// Mean and standard deviation, of the values in that unit; one of each for each channel, or one for all.
        normalize: Option<(Vec<f32>, Vec<f32>)>,
    },
}

impl Values {
    /// The unit of 8-bit values where they become floats.
    #[must_use]
    pub const fn unit(&self) -> Unit {
        match self {
            Self::Float { unit, .. } => *unit,
            Self::Raw => Unit::ONE,
        }
    }
}

/// How finished images are written, whatever their size.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Order of the values.
    pub layout: Layout,
    /// Their type.
    pub dtype: Dtype,
    /// What becomes of 8-bit values.
    pub values: Values,
}

impl Output {
    /// Prepares for images of one size.
    ///
    /// # Errors
    /// What [`Emit::new`] says.
    pub fn emit(&self, size: Size, channels: usize) -> Result<Emit> {
        Emit::new(size, channels, self.layout, self.dtype, &self.values)
    }

    /// Whether there are images that can be written so.
    ///
    /// # Errors
    /// What [`Emit::new`] says, beside a patch that does not divide an image.
    pub fn check(&self, channels: usize) -> Result<()> {
        let size = match self.layout {
            Layout::Patches { patch, .. } => patch,
            Layout::Nchw | Layout::Nhwc => Size::new(1, 1),
        };
        self.emit(size, channels).map(drop)
    }
}

/// Writes finished images of one size into batches.
#[derive(Clone, Debug)]
pub struct Emit {
    size: Size,
    channels: usize,
    layout: Layout,
    dtype: Dtype,
    unit: Unit,
    /// None where values stay as they are.
    converter: Option<Converter>,
    /// Of the result that images become a part of.
    result_bytes: usize,
}

impl Emit {
    /// Prepares for images of `size` with `channels` channels.
    ///
    /// # Errors
    /// [`Error::Argument`] for values that do not go with the type, a mean or std of another length, a std of zero, or
    /// a patch that does not divide the image.
    pub fn new(
        size: Size,
        channels: usize,
        layout: Layout,
        dtype: Dtype,
        values: &Values,
    ) -> Result<Self> {
        if let Layout::Patches { patch, .. } = layout {
            let fits = patch.pixels() > 0
                && size.height.is_multiple_of(patch.height)
                && size.width.is_multiple_of(patch.width);
            if !fits {
                return Err(Error::argument(format!(
                    "patches of {patch} do not divide images of {size}"
                )));
            }
        }
        let converter = match (dtype, values) {
            (Dtype::U8, Values::Raw) => None,
            (Dtype::F16 | Dtype::Bf16 | Dtype::F32, Values::Float { unit, normalize }) => {
                let normalization = match normalize {
                    Some((mean, std)) => Normalization::new(channels, mean, std)?,
                    None => Normalization::new(channels, &[0.0], &[1.0])?,
                };
                Some(Converter::new(&normalization, *unit, size.width))
            }
            (Dtype::U8, Values::Float { .. }) => {
                return Err(Error::argument("normalised values do not fit uint8"));
            }
            (_, Values::Raw) => {
                return Err(Error::argument(
                    "a float batch needs ToDtype(..., scale=True) in the transform",
                ));
            }
        };
        let unit = values.unit();
        Ok(Self { size, channels, layout, dtype, unit, converter, result_bytes: 0 })
    }

    /// The same for images that are parts of a result of so many bytes: patches of a large one are written past the
    /// caches, which does not pay for rows of the other layouts.
    #[must_use]
    pub fn part_of(self, bytes: usize) -> Self {
        Self { result_bytes: bytes, ..self }
    }

    /// The unit of 8-bit values, see [`Values::unit`].
    #[must_use]
    pub const fn unit(&self) -> Unit {
        self.unit
    }

    /// The images' size.
    #[must_use]
    pub const fn size(&self) -> Size {
        self.size
    }

    /// The images' channels.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// The values' type.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Dimensions of one image in the batch.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        let Size { height, width } = self.size;
        match self.layout {
            Layout::Nchw => vec![self.channels, height, width],
            Layout::Nhwc => vec![height, width, self.channels],
            Layout::Patches { patch, .. } => {
                vec![height / patch.height * (width / patch.width), patch.pixels() * self.channels]
            }
        }
    }

    /// Bytes of one image in the batch.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.size.pixels() * self.channels * self.dtype.bytes()
    }

    /// Writes one image into its place. Floats have their unit already, and are normalised and cast only.
    ///
    /// # Errors
    /// [`Error::Argument`] when the image or the place have another size, the place is not aligned to its type, or
    /// floats should become bytes.
    pub fn write<'a>(
        &self,
        image: impl Into<Pixels<'a>>,
        mirrored: bool,
        place: &mut [u8],
    ) -> Result<()> {
        let image = image.into();
        if image.size() != self.size
            || image.channels() != self.channels
            || place.len() != self.bytes()
        {
            return Err(Error::argument(format!(
                "the batch takes images of {} x {}, got {} x {}",
                self.size,
                self.channels,
                image.size(),
                image.channels()
            )));
        }
        match (image, self.dtype, &self.converter) {
            (_, Dtype::F32, Some(converter)) => {
                self.floats(image, mirrored, aligned::<f32>(place)?, converter);
            }
            (_, Dtype::F16, Some(converter)) => {
                self.floats(image, mirrored, aligned::<f16>(place)?, converter);
            }
            (_, Dtype::Bf16, Some(converter)) => {
                self.floats(image, mirrored, aligned::<bf16>(place)?, converter);
            }
            (Pixels::Bytes(image), _, _) => {
                self.store(image, mirrored, place, |_, from, to| to.copy_from_slice(from));
            }
            (Pixels::Floats(_), _, _) => {
                return Err(Error::argument("float images do not fit a uint8 batch"));
            }
        }
        Ok(())
    }

    fn floats<D: Float>(
        &self,
        image: Pixels<'_>,
        mirrored: bool,
        place: &mut [D],
        converter: &Converter,
    ) {
        let (level, mut room) = (Level::best(), Vec::new());
        match image {
            Pixels::Bytes(image) => self.store(image, mirrored, place, |channels, from, to| {
                converter.convert(level, channels, from, to, &mut room);
            }),
            Pixels::Floats(image) => self.store(image, mirrored, place, |channels, from, to| {
                converter.convert(level, channels, from, to, &mut room);
            }),
        }
    }

    /// Overwrites a rectangle of an image that was written, in the values' own units.
    ///
    /// # Errors
    /// [`Error::Argument`] when the rectangle leaves the image, the fill has another number of channels, or the place
    /// is not this image's.
    pub fn erase(&self, rect: Rect, fill: &Fill, place: &mut [u8]) -> Result<()> {
        let filler = Filler::new(rect, fill, self.size, self.channels)?;
        if place.len() != self.bytes() {
            return Err(Error::argument(format!(
                "an image of {} bytes in the batch, got a place of {}",
                self.bytes(),
                place.len()
            )));
        }
        match self.dtype {
            Dtype::U8 => self.overwrite(rect, filler, place, |_, from, to: &mut [u8]| {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = erase::byte(from));
            }),
            Dtype::F32 => self.overwrite(rect, filler, aligned::<f32>(place)?, round),
            Dtype::F16 => self.overwrite(rect, filler, aligned::<f16>(place)?, round),
            Dtype::Bf16 => self.overwrite(rect, filler, aligned::<bf16>(place)?, round),
        }
        Ok(())
    }

    /// Writes each row of a rectangle in runs that lie together in the batch.
    fn overwrite<D: Element>(
        &self,
        rect: Rect,
        mut filler: Filler<'_>,
        place: &mut [D],
        cast: impl Fn(Level, &[f32], &mut [D]),
    ) {
        let (Size { height, width }, channels) = (self.size, self.channels);
        let level = Level::best();
        let mut pixels = vec![D::zeroed(); rect.width * channels];
        let mut planes = vec![D::zeroed(); rect.width * channels];
        for inner in 0..rect.height {
            if let Some(row) = filler.next_row(inner) {
                cast(level, row, &mut pixels);
                deinterleave(level, channels, &pixels, &mut planes);
            }
            let plane = |c: usize| &planes[c * rect.width..][..rect.width];
            let y = rect.top + inner;
            match self.layout {
                Layout::Nchw => {
                    for c in 0..channels {
                        let start = (c * height + y) * width + rect.left;
                        place[start..][..rect.width].copy_from_slice(plane(c));
                    }
                }
                Layout::Nhwc => {
                    let start = (y * width + rect.left) * channels;
                    place[start..][..pixels.len()].copy_from_slice(&pixels);
                }
                Layout::Patches { patch, order } => {
                    let vector = patch.pixels() * channels;
                    let strip = y / patch.height * (width / patch.width) * vector;
                    let mut x = rect.left;
                    while x < rect.left + rect.width {
                        // From here to the end of the patch or of the rectangle.
                        let run = (patch.width - x % patch.width).min(rect.left + rect.width - x);
                        let (from, row) = (x - rect.left, y % patch.height);
                        let vector = &mut place[strip + x / patch.width * vector..][..vector];
                        match order {
                            Order::Pqc => {
                                let start = (row * patch.width + x % patch.width) * channels;
                                vector[start..][..run * channels]
                                    .copy_from_slice(&pixels[from * channels..][..run * channels]);
                            }
                            Order::Cpq => {
                                for c in 0..channels {
                                    let start = (c * patch.height + row) * patch.width;
                                    vector[start + x % patch.width..][..run]
                                        .copy_from_slice(&plane(c)[from..][..run]);
                                }
                            }
                        }
                        x += run;
                    }
                }
            }
        }
    }

    /// Line by line: mirrored, taken apart into channels, converted, put into its place.
    fn store<S: Element, D: Element>(
        &self,
        image: ImageView<'_, S>,
        mirrored: bool,
        place: &mut [D],
        mut convert: impl FnMut(Channels, &[S], &mut [D]),
    ) {
        let Size { height, width } = self.size;
        let (channels, level) = (self.channels, Level::best());
        let stream = Stream::for_result(self.result_bytes);
        let mut backwards = vec![S::zeroed(); if mirrored { width * channels } else { 0 }];
        // With one channel all layouts and orders are the same memory: take those that need no rearrangement.
        let layout = match self.layout {
            Layout::Nchw if channels == 1 => Layout::Nhwc,
            Layout::Patches { patch, .. } if channels == 1 => {
                Layout::Patches { patch, order: Order::Pqc }
            }
            layout => layout,
        };
        let apart = matches!(layout, Layout::Nchw | Layout::Patches { order: Order::Cpq, .. });
        let mut planes = vec![S::zeroed(); if apart { width * channels } else { 0 }];
        let mut values = vec![D::zeroed(); width * channels];
        // Runs of a line to the starts of the chunks of `step` values; straight, where it is one run.
        let mut put = |channels: Channels, line: &[S], run: usize, target: &mut [D], step| {
            if run == line.len() {
                convert(channels, line, &mut target[..run]);
            } else {
                let values = &mut values[..line.len()];
                convert(channels, line, values);
                deal(&stream, values, run, target, step);
            }
        };
        for y in 0..height {
            // One line of pixels, packed, or taken apart into planes.
            let mut line = image.row(y);
            if mirrored {
                mirror(level, channels, line, &mut backwards);
                line = &backwards;
            }
            if apart {
                deinterleave(level, channels, line, &mut planes);
                line = &planes;
            }
            let planes = || line.chunks_exact(width).enumerate();
            match layout {
                Layout::Nchw => {
                    for (c, plane) in planes() {
                        let start = (c * height + y) * width;
                        put(Channels::One(c), plane, width, &mut place[start..][..width], width);
                    }
                }
                Layout::Nhwc => {
                    let run = width * channels;
                    put(Channels::Packed, line, run, &mut place[y * run..][..run], run);
                }
                Layout::Patches { patch, order } => {
                    let vector = patch.pixels() * channels;
                    let strip = &mut place[y / patch.height * patch.height * width * channels..];
                    let inner = y % patch.height;
                    match order {
                        Order::Pqc => {
                            let run = patch.width * channels;
                            put(Channels::Packed, line, run, &mut strip[inner * run..], vector);
                        }
                        Order::Cpq => {
                            for (c, plane) in planes() {
                                let start = (c * patch.height + inner) * patch.width;
                                let target = &mut strip[start..];
                                put(Channels::One(c), plane, patch.width, target, vector);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn aligned<D: Element>(place: &mut [u8]) -> Result<&mut [D]> {
    bytemuck::try_cast_slice_mut(place)
        .map_err(|_| Error::argument("a batch buffer is not aligned to its type"))
}

fn round<D: Float>(level: Level, from: &[f32], to: &mut [D]) {
    D::round(level, to, &mut Vec::new(), |to| to.copy_from_slice(from));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn emitted(layout: Layout, mirrored: bool) -> Vec<u8> {
        // Value 10 y + x in channel 0, 100 more in channel 1.
        let data: Vec<u8> =
            (0..2).flat_map(|y| (0..4).flat_map(move |x| [10 * y + x, 100 + 10 * y + x])).collect();
        let image = ImageView::new(&data, Size::new(2, 4), 2, 8).unwrap();
        let emit = Emit::new(Size::new(2, 4), 2, layout, Dtype::U8, &Values::Raw).unwrap();
        let mut place = vec![0; emit.bytes()];
        emit.write(image, mirrored, &mut place).unwrap();
        place
    }

    #[test]
    fn layouts() {
        let planes = [0, 1, 2, 3, 10, 11, 12, 13, 100, 101, 102, 103, 110, 111, 112, 113];
        assert_eq!(emitted(Layout::Nchw, false), planes);
        assert_eq!(emitted(Layout::Nchw, true)[..5], [3, 2, 1, 0, 13]);
        assert_eq!(emitted(Layout::Nhwc, false)[..4], [0, 100, 1, 101]);
        assert_eq!(emitted(Layout::Nhwc, true)[..4], [3, 103, 2, 102]);
        let patch = Size::new(2, 2);
        let pqc = emitted(Layout::Patches { patch, order: Order::Pqc }, false);
        assert_eq!(pqc, [0, 100, 1, 101, 10, 110, 11, 111, 2, 102, 3, 103, 12, 112, 13, 113]);
        let cpq = emitted(Layout::Patches { patch, order: Order::Cpq }, true);
        assert_eq!(cpq, [3, 2, 13, 12, 103, 102, 113, 112, 1, 0, 11, 10, 101, 100, 111, 110]);
    }

    #[test]
    fn float_values() {
        let image = ImageView::new(&[0, 51, 255], Size::new(1, 1), 3, 3).unwrap();
        let values = Values::Float {
            unit: Unit::MULTIPLIED,
            normalize: Some((vec![0.5], vec![0.25, 0.5, 1.0])),
        };
        let emit = Emit::new(Size::new(1, 1), 3, Layout::Nchw, Dtype::F32, &values).unwrap();
        let mut place = [0.0f32; 3];
        emit.write(image, false, bytemuck::cast_slice_mut(&mut place)).unwrap();
        let expected = [-2.0, (51.0 * (1.0 / 255.0) - 0.5) / 0.5, 0.5f32];
        assert_eq!(place.map(f32::to_bits), expected.map(f32::to_bits));
    }

    proptest! {
        #[test]
        fn every_value_in_its_place(
            channels in 1..5_usize,
            rows in 1..4_usize,
            columns in 1..4_usize,
            patch in (1..5_usize, prop_oneof![1..6_usize, Just(16)]),
            mirrored: bool,
            unit in prop_oneof![Just(Unit::ONE), Just(Unit::MULTIPLIED), Just(Unit::DIVIDED)],
            normalized: bool,
            seed: u8,
        ) {
            let patch = Size::new(patch.0, patch.1);
            let size = Size::new(rows * patch.height, columns * patch.width);
            let data: Vec<u8> =
                (0..size.pixels() * channels).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
            let image = ImageView::new(&data, size, channels, size.width * channels).unwrap();
            let normalize = normalized.then(|| (vec![0.4], (0..channels).map(|c| 0.2 + c as f32).collect()));
            let values = Values::Float { unit, normalize: normalize.clone() };
            let value = |y: usize, x: usize, c: usize| {
                let x = if mirrored { size.width - 1 - x } else { x };
                let byte = data[(y * size.width + x) * channels + c];
                let value = match unit {
                    Unit::MULTIPLIED => f32::from(byte) * (1.0 / 255.0),
                    Unit::DIVIDED => f32::from(byte) / 255.0,
                    _ => f32::from(byte),
                };
                normalize.as_ref().map_or(value, |(mean, std)| (value - mean[0]) / std[c])
            };
            let places = |y: usize, x: usize, c: usize, layout: Layout| match layout {
                Layout::Nchw => (c * size.height + y) * size.width + x,
                Layout::Nhwc => (y * size.width + x) * channels + c,
                Layout::Patches { patch, order } => {
                    let number = y / patch.height * columns + x / patch.width;
                    let (y, x) = (y % patch.height, x % patch.width);
                    number * patch.pixels() * channels + match order {
                        Order::Pqc => (y * patch.width + x) * channels + c,
                        Order::Cpq => (c * patch.height + y) * patch.width + x,
                    }
                }
            };
            let patches = |order| Layout::Patches { patch, order };
            for layout in [Layout::Nchw, Layout::Nhwc, patches(Order::Pqc), patches(Order::Cpq)] {
                let mut floats = vec![f32::NAN; data.len()];
                let mut halves = vec![f16::NAN; data.len()];
                let mut brains = vec![bf16::NAN; data.len()];
                let emit = |dtype| Emit::new(size, channels, layout, dtype, &values).unwrap();
                emit(Dtype::F32).write(image, mirrored, bytemuck::cast_slice_mut(&mut floats)).unwrap();
                emit(Dtype::F16).write(image, mirrored, bytemuck::cast_slice_mut(&mut halves)).unwrap();
                emit(Dtype::Bf16).write(image, mirrored, bytemuck::cast_slice_mut(&mut brains)).unwrap();
                let mut bytes = vec![0; data.len()];
                let raw = Emit::new(size, channels, layout, Dtype::U8, &Values::Raw).unwrap();
                raw.write(image, mirrored, &mut bytes).unwrap();
                for y in 0..size.height {
                    for x in 0..size.width {
                        for c in 0..channels {
                            let (place, expected) = (places(y, x, c, layout), value(y, x, c));
                            prop_assert_eq!(floats[place].to_bits(), expected.to_bits());
                            prop_assert_eq!(halves[place].to_bits(), f16::from_f32(expected).to_bits());
                            prop_assert_eq!(brains[place].to_bits(), bf16::from_f32(expected).to_bits());
                            let from = if mirrored { size.width - 1 - x } else { x };
                            prop_assert_eq!(bytes[place], data[(y * size.width + from) * channels + c]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let make =
            |dtype, values: &Values| Emit::new(Size::new(4, 4), 3, Layout::Nchw, dtype, values);
        let normalize = |mean, std| Values::Float { unit: Unit::ONE, normalize: Some((mean, std)) };
        assert!(make(Dtype::F32, &Values::Raw).is_err());
        assert!(make(Dtype::U8, &normalize(vec![0.0], vec![1.0])).is_err());
        assert!(make(Dtype::F32, &normalize(vec![0.0; 2], vec![1.0])).is_err());
        assert!(make(Dtype::F32, &normalize(vec![0.0], vec![0.0])).is_err());
        let patches = Layout::Patches { patch: Size::new(3, 2), order: Order::Pqc };
        assert!(Emit::new(Size::new(4, 4), 3, patches, Dtype::U8, &Values::Raw).is_err());
    }
}

//! Rectangles overwritten with a colour or with noise, in 8-bit images, float images and batches alike.

use std::borrow::Cow;

use super::plan::Fill;
use crate::error::{Error, Result};
use crate::image::{ImageBuf, Rect, Size};
use crate::rng::Stream;

/// Gives the rows of a rectangle's fill, as interleaved floats.
#[derive(Debug)]
pub(crate) struct Filler<'a> {
    row: Vec<f32>,
    source: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    /// One value for each channel, or one for all.
    Constant(Cow<'a, [f32]>),
    Normal(Stream),
}

impl<'a> Filler<'a> {
    /// For a rectangle of an image of `size` with `channels` channels.
    pub(crate) fn new(rect: Rect, fill: &'a Fill, size: Size, channels: usize) -> Result<Self> {
        if !rect.is_inside(size) {
            return Err(Error::argument(format!("{rect:?} is not inside an image of {size}")));
        }
        let source = match fill {
            Fill::Constant(values) => {
                check_channels(values.len(), channels)?;
                Source::Constant(Cow::Borrowed(values))
            }
            Fill::Normal(key) => Source::Normal(Stream::keyed(*key)),
            Fill::NormalColor(key) => {
                let mut colour = vec![0.0; channels];
                Stream::keyed(*key).fill_normal(&mut colour);
                Source::Constant(Cow::Owned(colour))
            }
        };
        Ok(Self { row: vec![0.0; rect.width * channels], source })
    }

    /// The values of row `inner` of the rectangle; None when they are those of the row before.
    pub(crate) fn next_row(&mut self, inner: usize) -> Option<&[f32]> {
        match &mut self.source {
            Source::Constant(_) if inner > 0 => return None,
            Source::Constant(values) => {
                let colour = values.iter().cycle();
                self.row.iter_mut().zip(colour).for_each(|(to, &value)| *to = value);
            }
            Source::Normal(stream) => stream.fill_normal(&mut self.row),
        }
        Some(&self.row)
    }
}

/// Whether a fill of so many values goes with an image.
pub(crate) fn check_channels(values: usize, channels: usize) -> Result<()> {
    if values == 1 || values == channels {
        return Ok(());
    }
    let expected = if channels == 1 { String::new() } else { format!(" or {channels}") };
    Err(Error::argument(format!(
        "value of RandomErasing must have 1{expected} values, one for each channel, got {values}"
    )))
}

/// A fill's value as a byte: cut to a whole number and counted modulo 256, which is what torch makes of floats.
#[inline(always)]
pub(crate) fn byte(value: f32) -> u8 {
    // Noise and checked constants lie far inside 32 bits.
    value as i32 as u8
}

/// Overwrites a rectangle of an image where it is.
pub(super) fn erase<T: Copy + Default>(
    image: &mut ImageBuf<T>,
    size: Size,
    channels: usize,
    rect: Rect,
    fill: &Fill,
    cast: impl Fn(f32) -> T,
) -> Result<()> {
    let mut filler = Filler::new(rect, fill, size, channels)?;
    let mut values = vec![T::default(); rect.width * channels];
    let rows = image.values_mut().chunks_exact_mut(size.width * channels);
    for (inner, row) in rows.skip(rect.top).take(rect.height).enumerate() {
        if let Some(floats) = filler.next_row(inner) {
            values.iter_mut().zip(floats).for_each(|(to, &from)| *to = cast(from));
        }
        row[rect.left * channels..][..values.len()].copy_from_slice(&values);
    }
    Ok(())
}

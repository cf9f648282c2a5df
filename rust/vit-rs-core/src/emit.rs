//! The last pass: mirror, normalise, cast and layout in one store into the batch.
//!
//! An 8-bit value has 256 outcomes a channel, so each is computed once, in torchvision's order of f32 roundings (times
//! 1/255, minus mean, over std), and looked up afterwards: equal bits on every CPU, whatever the output type.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::image::{ImageView, Size};
use crate::patchify::Order;

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
        /// Divide by 255 first.
        scale: bool,
        /// Mean and standard deviation, of the values after scaling; one of each for each channel, or one for all.
        normalize: Option<(Vec<f32>, Vec<f32>)>,
    },
}

#[derive(Clone, Debug)]
enum Table {
    Raw,
    Half(Vec<[u16; 256]>),
    Single(Vec<[f32; 256]>),
}

/// Writes finished images of one size into batches.
#[derive(Clone, Debug)]
pub struct Emit {
    size: Size,
    channels: usize,
    layout: Layout,
    dtype: Dtype,
    table: Table,
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
        let table = match (dtype, values) {
            (Dtype::U8, Values::Raw) => Table::Raw,
            (Dtype::F32, Values::Float { scale, normalize }) => {
                Table::Single(tables(channels, *scale, normalize.as_ref(), |value| value)?)
            }
            (Dtype::F16, Values::Float { scale, normalize }) => {
                Table::Half(tables(channels, *scale, normalize.as_ref(), |v| {
                    f16::from_f32(v).to_bits()
                })?)
            }
            (Dtype::Bf16, Values::Float { scale, normalize }) => {
                Table::Half(tables(channels, *scale, normalize.as_ref(), |v| {
                    bf16::from_f32(v).to_bits()
                })?)
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
        Ok(Self { size, channels, layout, dtype, table })
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

    /// Writes one image into its place.
    ///
    /// # Errors
    /// [`Error::Argument`] when the image or the place have another size, or the place is not aligned to its type.
    pub fn write(&self, image: ImageView<'_>, mirrored: bool, place: &mut [u8]) -> Result<()> {
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
        let unaligned = |_| Error::argument("a batch buffer is not aligned to its type");
        match &self.table {
            Table::Raw => self.store(image, mirrored, place, |_, value| value),
            Table::Half(table) => {
                let place = bytemuck::try_cast_slice_mut(place).map_err(unaligned)?;
                self.store(image, mirrored, place, |c, value| table[c][usize::from(value)]);
            }
            Table::Single(table) => {
                let place = bytemuck::try_cast_slice_mut(place).map_err(unaligned)?;
                self.store(image, mirrored, place, |c, value| table[c][usize::from(value)]);
            }
        }
        Ok(())
    }

    fn store<T: Copy>(
        &self,
        image: ImageView<'_>,
        mirrored: bool,
        place: &mut [T],
        convert: impl Fn(usize, u8) -> T + Copy,
    ) {
        let (width, channels) = (self.size.width, self.channels);
        for y in 0..self.size.height {
            let row = image.row(y);
            match self.layout {
                Layout::Nchw => {
                    for c in 0..channels {
                        let start = (c * self.size.height + y) * width;
                        let plane = &mut place[start..start + width];
                        fill(plane, row[c..].iter().step_by(channels), mirrored, |value| {
                            convert(c, value)
                        });
                    }
                }
                Layout::Nhwc => {
                    let target = &mut place[y * width * channels..][..width * channels];
                    for c in 0..channels {
                        let values = row[c..].iter().step_by(channels);
                        let target = target[c..].iter_mut().step_by(channels);
                        fill(target, values, mirrored, |value| convert(c, value));
                    }
                }
                Layout::Patches { patch, order } => {
                    let across = width / patch.width;
                    let vector = patch.pixels() * channels;
                    let (patch_row, inner_y) = (y / patch.height, y % patch.height);
                    let (column_step, channel_step) = match order {
                        Order::Pqc => (channels, 1),
                        Order::Cpq => (1, patch.pixels()),
                    };
                    for x in 0..width {
                        let from = if mirrored { width - 1 - x } else { x };
                        let inner = (inner_y * patch.width + x % patch.width) * column_step;
                        let start = (patch_row * across + x / patch.width) * vector + inner;
                        for c in 0..channels {
                            place[start + c * channel_step] = convert(c, row[from * channels + c]);
                        }
                    }
                }
            }
        }
    }
}

fn fill<'a, T: 'a>(
    target: impl IntoIterator<Item = &'a mut T>,
    values: impl DoubleEndedIterator<Item = &'a u8>,
    mirrored: bool,
    convert: impl Fn(u8) -> T,
) {
    if mirrored {
        target.into_iter().zip(values.rev()).for_each(|(to, &value)| *to = convert(value));
    } else {
        target.into_iter().zip(values).for_each(|(to, &value)| *to = convert(value));
    }
}

fn tables<T: Copy>(
    channels: usize,
    scale: bool,
    normalize: Option<&(Vec<f32>, Vec<f32>)>,
    cast: impl Fn(f32) -> T,
) -> Result<Vec<[T; 256]>> {
    let parameter = |name: &str, values: &[f32], c: usize| match values {
        [value] => Ok(*value),
        values if values.len() == channels => Ok(values[c]),
        _ => Err(Error::argument(format!(
            "{name} must have 1 or {channels} values, one for each channel, got {}",
            values.len()
        ))),
    };
    (0..channels)
        .map(|c| {
            let normalize = match normalize {
                None => None,
                Some((mean, std)) => {
                    let (mean, std) = (parameter("mean", mean, c)?, parameter("std", std, c)?);
                    if !mean.is_finite() || !std.is_finite() || std == 0.0 {
                        return Err(Error::argument(format!(
                            "mean must be finite and std finite and not 0, got {mean} and {std}"
                        )));
                    }
                    Some((mean, std))
                }
            };
            let mut value = 0.0_f32;
            Ok([(); 256].map(|()| {
                let scaled = if scale { value * (1.0 / 255.0) } else { value };
                value += 1.0;
                cast(normalize.map_or(scaled, |(mean, std)| (scaled - mean) / std))
            }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
        let values =
            Values::Float { scale: true, normalize: Some((vec![0.5], vec![0.25, 0.5, 1.0])) };
        let emit = Emit::new(Size::new(1, 1), 3, Layout::Nchw, Dtype::F32, &values).unwrap();
        let mut place = [0.0f32; 3];
        emit.write(image, false, bytemuck::cast_slice_mut(&mut place)).unwrap();
        let expected = [-2.0, (51.0 * (1.0 / 255.0) - 0.5) / 0.5, 0.5f32];
        assert_eq!(place.map(f32::to_bits), expected.map(f32::to_bits));
    }

    #[test]
    fn contradictions_are_refused() {
        let make =
            |dtype, values: &Values| Emit::new(Size::new(4, 4), 3, Layout::Nchw, dtype, values);
        let normalize = |mean, std| Values::Float { scale: true, normalize: Some((mean, std)) };
        assert!(make(Dtype::F32, &Values::Raw).is_err());
        assert!(make(Dtype::U8, &normalize(vec![0.0], vec![1.0])).is_err());
        assert!(make(Dtype::F32, &normalize(vec![0.0; 2], vec![1.0])).is_err());
        assert!(make(Dtype::F32, &normalize(vec![0.0], vec![0.0])).is_err());
        let patches = Layout::Patches { patch: Size::new(3, 2), order: Order::Pqc };
        assert!(Emit::new(Size::new(4, 4), 3, patches, Dtype::U8, &Values::Raw).is_err());
    }
}

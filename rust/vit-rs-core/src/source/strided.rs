//! Images that are in memory already, in any order of their dimensions: planes, or columns first.

use super::memory::at_a_time;
use super::{Item, Source};
use crate::error::{Error, Result};
use crate::image::{ImageView, Size};
use crate::line::interleave;
use crate::simd::Level;

/// Equal-sized images whose values lie at regular distances; each is packed to H x W x C when it is wanted.
#[derive(Debug)]
pub struct Strided<B> {
    bytes: B,
    /// Place of the first value of the first image.
    origin: usize,
    len: usize,
    size: Size,
    channels: usize,
    /// From one image, row, column and channel to the next, values.
    strides: [isize; 4],
}

impl<B: AsRef<[u8]> + Send + Sync> Strided<B> {
    /// `len` images of `size` with `channels` (1 or 3) channels; `strides` are those of (image, row, column, channel).
    ///
    /// # Errors
    /// [`Error::Argument`] when a value would lie outside `bytes`.
    pub fn new(
        bytes: B,
        origin: usize,
        len: usize,
        size: Size,
        channels: usize,
        strides: [isize; 4],
    ) -> Result<Self> {
        let source = Self { bytes, origin, len, size, channels, strides };
        let inside = || {
            let [images, rows, columns] = [len, size.height, size.width].map(|n| n.checked_sub(1));
            // Without an image there is no value that could lie outside.
            let Some(image) = images else { return Some(()) };
            let last = [image, rows?, columns?, channels.checked_sub(1)?];
            // Distances are linear: the outermost values are at corners.
            for corner in 0..16_usize {
                let at = |k: usize| if corner >> k & 1 == 1 { last[k] } else { 0 };
                let place = source.place([at(0), at(1), at(2), at(3)])?;
                source.bytes.as_ref().get(place)?;
            }
            Some(())
        };
        if ![1, 3].contains(&channels) || size.pixels() == 0 || inside().is_none() {
            return Err(Error::argument(format!(
                "{len} images of {size} x {channels} (channels: 1 or 3), {strides:?} values apart from {origin} on, \
                 do not lie in {} bytes",
                source.bytes.as_ref().len()
            )));
        }
        Ok(source)
    }

    /// Place in `bytes` of a value.
    fn place(&self, index: [usize; 4]) -> Option<usize> {
        index.into_iter().zip(self.strides).try_fold(self.origin, |place, (index, stride)| {
            place.checked_add_signed(isize::try_from(index).ok()?.checked_mul(stride)?)
        })
    }

    /// Writes the packed image.
    fn pack(&self, index: usize, packed: &mut [u8]) -> Option<()> {
        let (bytes, level) = (self.bytes.as_ref(), Level::best());
        let [.., across, _] = self.strides;
        let Size { height, width } = self.size;
        for (y, row) in (0..height).zip(packed.chunks_exact_mut(width * self.channels)) {
            let start = |c: usize| self.place([index, y, 0, c]);
            if across == 1 {
                let line = |c: usize| bytes.get(start(c)?..)?.get(..width);
                let planes = [line(0)?, line(self.channels / 2)?, line(self.channels - 1)?];
                interleave(level, self.channels, |c| planes[c], row);
                continue;
            }
            for c in 0..self.channels {
                let mut place = start(c)?;
                for value in row.iter_mut().skip(c).step_by(self.channels) {
                    *value = *bytes.get(place)?;
                    // Behind the row's last value it may leave the memory, and is not used.
                    place = place.wrapping_add_signed(across);
                }
            }
        }
        Some(())
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Source for Strided<B> {
    fn len(&self) -> usize {
        self.len
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        let row = self.size.width * self.channels;
        buffer.resize(row * self.size.height, 0);
        let packed = if index < self.len { self.pack(index, buffer) } else { None };
        packed.ok_or_else(|| Error::argument(format!("image {index} of {}", self.len)))?;
        Ok(Item::Pixels(ImageView::new(buffer, self.size, self.channels, row)?))
    }

    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn size(&self) -> Option<Size> {
        Some(self.size)
    }

    fn samples_at_a_time(&self) -> usize {
        at_a_time(self.size, self.channels)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn packed<B: AsRef<[u8]> + Send + Sync>(source: &Strided<B>, index: usize) -> Vec<u8> {
        let mut buffer = vec![9; 3];
        match source.item(index, &mut buffer).unwrap() {
            Item::Pixels(pixels) => pixels.values().unwrap().to_vec(),
            Item::Encoded(_) => panic!(),
        }
    }

    proptest! {
        #[test]
        fn any_order_and_direction_of_dimensions_packs_to_the_same(
            len in 1_usize..4,
            height in 1_usize..5,
            width in 1_usize..40,
            gray: bool,
            order in Just([0_usize, 1, 2, 3]).prop_shuffle(),
            backwards in 0_usize..16,
            margin in 0_usize..3,
        ) {
            let channels = if gray { 1 } else { 3 };
            let dims = [len, height, width, channels];
            // Dimensions from the outermost to the innermost in memory.
            let mut strides = [0_isize; 4];
            let mut step = 1_isize;
            for &d in order.iter().rev() {
                strides[d] = step;
                step *= isize::try_from(dims[d]).unwrap();
            }
            let mut origin = margin;
            for d in (0..4).filter(|d| backwards >> d & 1 == 1) {
                origin += (dims[d] - 1) * usize::try_from(strides[d]).unwrap();
                strides[d] = -strides[d];
            }
            let count = dims.iter().product::<usize>() + 2 * margin;
            let bytes: Vec<u8> = (0..count).map(|k| u8::try_from(k * 7 % 251).unwrap()).collect();
            let size = Size::new(height, width);
            let source = Strided::new(&bytes, origin, len, size, channels, strides).unwrap();
            for n in 0..len {
                let mut expected = Vec::new();
                for y in 0..height { for x in 0..width { for c in 0..channels {
                    let index = [n, y, x, c].map(|k| isize::try_from(k).unwrap());
                    let offset: isize = index.iter().zip(strides).map(|(k, s)| k * s).sum();
                    expected.push(bytes[origin.checked_add_signed(offset).unwrap()]);
                }}}
                prop_assert_eq!(packed(&source, n), expected);
            }
            if margin == 0 {
                let short = &bytes[..count - 1];
                prop_assert!(Strided::new(short, origin, len, size, channels, strides).is_err());
            }
        }
    }

    #[test]
    fn what_does_not_lie_in_memory_is_refused() {
        let size = Size::new(2, 2);
        let make =
            |len, channels, strides| Strided::new([0_u8; 24], 0, len, size, channels, strides);
        assert!(make(2, 3, [12, 2, 1, 4]).is_ok() && make(0, 3, [12, 2, 1, 4]).is_ok());
        let error = make(3, 3, [12, 2, 1, 4]).unwrap_err().to_string();
        let expected = "3 images of 2 x 2 x 3 (channels: 1 or 3), [12, 2, 1, 4] values apart from 0 on, do not lie in";
        assert!(error.starts_with(expected), "{error}");
        assert!(make(2, 2, [8, 2, 1, 4]).is_err());
        assert!(make(2, 1, [isize::MAX, 2, 1, 4]).is_err() && make(2, 1, [-4, 2, 1, 4]).is_err());
        assert!(Strided::new([0_u8; 4], 0, 1, Size::new(0, 2), 1, [0; 4]).is_err());
        let source = make(2, 3, [12, 2, 1, 4]).unwrap();
        assert_eq!(source.item(2, &mut Vec::new()).unwrap_err().to_string(), "image 2 of 2");
        assert_eq!((source.len(), source.size(), source.channels()), (2, Some(size), 3));
        assert_eq!((source.name(1), source.samples_at_a_time()), ("image 1".to_owned(), 64));
    }
}

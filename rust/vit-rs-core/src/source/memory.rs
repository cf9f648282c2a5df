//! Images that are in memory already.

use super::{Item, Source};
use crate::error::{Error, Result};
use crate::image::{ImageView, Size};

/// Equal-sized images, one after another, in memory that `B` owns.
#[derive(Debug)]
pub struct Array<B> {
    bytes: B,
    len: usize,
    size: Size,
    channels: usize,
}

impl<B: AsRef<[u8]> + Send + Sync> Array<B> {
    /// `len` images of `size` with `channels` (1 or 3) interleaved channels.
    ///
    /// # Errors
    /// [`Error::Argument`] when that is not what `bytes` holds.
    pub fn new(bytes: B, len: usize, size: Size, channels: usize) -> Result<Self> {
        let expected = size.pixels().checked_mul(channels).and_then(|b| b.checked_mul(len));
        let found = bytes.as_ref().len();
        if ![1, 3].contains(&channels) || size.pixels() == 0 || expected != Some(found) {
            return Err(Error::argument(format!(
                "{len} images of {size} x {channels} (channels: 1 or 3) do not make {found} bytes"
            )));
        }
        Ok(Self { bytes, len, size, channels })
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Source for Array<B> {
    fn len(&self) -> usize {
        self.len
    }

    fn item<'a>(&'a self, index: usize, _buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        let row = self.size.width * self.channels;
        let image = row * self.size.height;
        let bytes = &self.bytes.as_ref()[index * image..(index + 1) * image];
        Ok(Item::Pixels(ImageView::new(bytes, self.size, self.channels, row)?))
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

/// How many images a thread takes at a time: about 64 KB of pixels, enough work to be worth taking a lock.
pub(super) fn at_a_time(size: Size, channels: usize) -> usize {
    (65536 / size.pixels().saturating_mul(channels).max(1)).clamp(1, 64)
}

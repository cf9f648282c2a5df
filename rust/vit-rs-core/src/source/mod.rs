//! Where samples come from: index -> encoded bytes or pixels. Labels stay with the caller.

pub mod folder;
pub mod memory;

use std::path::PathBuf;

use crate::error::Result;
use crate::image::{ImageView, Size};

/// One sample as its source holds it.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// A file's bytes.
    Encoded(&'a [u8]),
    /// Decoded pixels.
    Pixels(ImageView<'a>),
}

/// A set of samples that many threads read at once.
pub trait Source: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample `index`; `buffer` is memory that it may use.
    ///
    /// # Errors
    /// [`crate::error::Error`] when it cannot be read.
    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>>;

    /// A name of sample `index` for messages.
    fn name(&self, index: usize) -> String;

    /// Channels of every sample.
    fn channels(&self) -> usize;

    /// The size that all samples share, where the source knows it.
    fn size(&self) -> Option<Size>;

    /// How many samples a thread takes at a time: more where one costs little.
    fn samples_at_a_time(&self) -> usize {
        1
    }
}

/// A list of image files.
#[derive(Clone, Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
}

impl Files {
    /// These files, read one at a time into memory (never mapped: a file cut short by another process must be an
    /// error, not a crash).
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths }
    }
}

impl Source for Files {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        folder::read(&self.paths[index], buffer)?;
        Ok(Item::Encoded(buffer))
    }

    fn name(&self, index: usize) -> String {
        self.paths[index].display().to_string()
    }

    fn channels(&self) -> usize {
        3
    }

    fn size(&self) -> Option<Size> {
        None
    }
}

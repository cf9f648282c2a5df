//! Where samples come from: index -> encoded bytes or pixels. Labels stay with the caller, unless they come with the
//! sample.

pub mod concat;
pub mod feed;
pub mod folder;
pub mod memory;
pub mod mixed;
pub mod strided;
pub mod table;
pub mod tar;

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

/// A sample, and the label that came with it.
#[derive(Clone, Copy, Debug)]
pub struct Fetched<'a> {
    /// The sample.
    pub item: Item<'a>,
    /// Its label; None where the caller knows the labels.
    pub label: Option<i64>,
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

    /// Says that sample `index` will be fetched soon; returns the ticket to fetch it with. Called in the order of the
    /// batches, ahead of them; for a stand-in for a bad sample, at once.
    fn announce(&self, _index: usize) -> u64 {
        0
    }

    /// Sample `index`, which was announced under `ticket`; `buffer` is memory that it may use.
    ///
    /// # Errors
    /// [`crate::error::Error`] when it cannot be had.
    fn fetch<'a>(
        &'a self,
        index: usize,
        _ticket: u64,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Fetched<'a>> {
        Ok(Fetched { item: self.item(index, buffer)?, label: None })
    }

    /// Forgets what was announced; who waits for it gets an error.
    fn abandon(&self) {}

    /// The same when the loader ends; what is kept for speed may be let go.
    fn close(&self) {}

    /// The block of each sample, where reading is cheap only inside one of them; None = all samples are equally near.
    fn blocks(&self) -> Option<Vec<u32>> {
        None
    }

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

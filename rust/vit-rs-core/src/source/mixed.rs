//! A list of files and of encoded images in memory.

use std::path::PathBuf;

use super::{Item, Source, folder};
use crate::error::Result;
use crate::image::Size;

/// One image of the list.
#[derive(Clone, Debug)]
pub enum Entry<B> {
    /// A file, read when it is wanted.
    Path(PathBuf),
    /// A file's bytes.
    Bytes(B),
}

/// Images that are files or in memory, in any mixture.
#[derive(Clone, Debug)]
pub struct Mixed<B> {
    entries: Vec<Entry<B>>,
}

impl<B: AsRef<[u8]> + Send + Sync> Mixed<B> {
    /// These images.
    #[must_use]
    pub fn new(entries: Vec<Entry<B>>) -> Self {
        Self { entries }
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Source for Mixed<B> {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        Ok(Item::Encoded(match &self.entries[index] {
            Entry::Path(path) => {
                folder::read(path, buffer)?;
                buffer
            }
            Entry::Bytes(bytes) => bytes.as_ref(),
        }))
    }

    fn name(&self, index: usize) -> String {
        match &self.entries[index] {
            Entry::Path(path) => path.display().to_string(),
            Entry::Bytes(_) => format!("image {index}"),
        }
    }

    fn channels(&self) -> usize {
        3
    }

    fn size(&self) -> Option<Size> {
        None
    }
}

//! `WebDataset` shards: tar files of images, each with its label beside it.
//!
//! A plain tar is indexed by its headers and then read at random, so that it shuffles like a folder. A gzipped one can
//! only be read from the front: it is inflated as a whole while its samples are wanted, and its samples stay together in
//! the order of an epoch.

pub mod header;
pub mod index;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::MultiGzDecoder;

use super::{Item, Source};
use crate::error::{Error, Result};
use crate::image::Size;
use crate::parallel;
use header::{Fault, Piped, Seekable};
use index::Sample;

/// Files that are kept open: far below every system's limit for a process, so that ten thousand shards can be read.
const OPEN_FILES: usize = 64;
/// Inflated shards that are kept: the one in use, and the next at its end.
const INFLATED: usize = 2;
/// The most that a gzipped shard may inflate to: a small file must not fill the memory.
const MOST_INFLATED: u64 = 4 << 30;
const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];
/// Bytes of a compressed file that are read at a time.
const CHUNK: usize = 1 << 17;

/// Tar shards that are read by many threads.
#[derive(Debug)]
pub struct Shards {
    tars: Vec<Shard>,
    samples: Vec<Place>,
    files: Recent<File>,
    inflated: Recent<Mutex<Option<Arc<Vec<u8>>>>>,
    /// The process that opened them.
    process: u32,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    gzip: bool,
    /// Where its last image ends.
    end: u64,
}

#[derive(Debug)]
struct Place {
    shard: u32,
    offset: u64,
    size: u64,
    name: Box<str>,
}

impl Shards {
    /// Indexes these shards with up to `threads` threads; returns them and the label of each sample, shard by shard.
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be read; [`Error::Dataset`], which names shard and byte, when one is damaged, lacks
    /// the label of a sample, or when none has a sample. See [`index::index`] for labels.
    pub fn open(
        paths: Vec<PathBuf>,
        label_key: Option<&str>,
        threads: usize,
    ) -> Result<(Self, Vec<i64>)> {
        let mut indexed: Vec<Option<Result<Indexed>>> = Vec::new();
        indexed.resize_with(paths.len(), || None);
        let threads = threads.min(paths.len());
        parallel::for_each(threads, paths.iter().zip(&mut indexed), |(path, place)| {
            *place = Some(index_file(path, label_key));
        });
        let (mut tars, mut samples, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for (path, indexed) in paths.into_iter().zip(indexed.into_iter().flatten()) {
            let (gzip, found) = indexed?;
            let shard =
                u32::try_from(tars.len()).map_err(|_| Error::argument("more than 2^32 shards"))?;
            let mut end = 0;
            for Sample { name, offset, size, label } in found {
                end = end.max(offset + size);
                samples.push(Place { shard, offset, size, name: name.into() });
                labels.push(label);
            }
            if gzip && end > MOST_INFLATED {
                return Err(Error::Dataset(format!(
                    "{}: its images reach to byte {end} of the inflated shard; gzipped shards lie in memory as a whole, \
                     {MOST_INFLATED} bytes at most: make smaller shards, or plain tars",
                    path.display()
                )));
            }
            tars.push(Shard { path, gzip, end });
        }
        if samples.is_empty() {
            return Err(Error::Dataset(format!(
                "{} shards without a sample; images are members whose file name is .{} from its first dot on",
                tars.len(),
                index::IMAGES.join(", .")
            )));
        }
        let (files, inflated) = (Recent::new(OPEN_FILES), Recent::new(INFLATED));
        let process = std::process::id();
        Ok((Self { tars, samples, files, inflated, process }, labels))
    }

    /// Sample `place` of a plain shard.
    fn read(&self, place: &Place, buffer: &mut Vec<u8>) -> Result<()> {
        let shard = &self.tars[place.shard as usize];
        let failed = |source| Error::Io { path: shard.path.clone(), source };
        let open = || File::open(&shard.path);
        let file =
            if self.is_forked() { open().map(Arc::new) } else { self.files.get(place.shard, open) };
        let file = file.map_err(failed)?;
        let size = length(place.size)?;
        if size > buffer.len() {
            buffer.try_reserve_exact(size - buffer.len()).map_err(|_| Error::Memory(size))?;
        }
        buffer.resize(size, 0);
        read_exact_at(&file, buffer, place.offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::decode("the shard is shorter than it was when it was indexed")
            }
            _ => failed(error),
        })
    }

    /// Whether this is a child of the process that opened the shards: a lock may be held there by a thread that does not
    /// exist here, so that what is kept between reads cannot be used.
    fn is_forked(&self) -> bool {
        std::process::id() != self.process
    }

    /// A gzipped shard up to its last image; inflated once for all threads that want it.
    fn inflated(&self, number: u32) -> Result<Arc<Vec<u8>>> {
        let shard = &self.tars[number as usize];
        if self.is_forked() {
            return Self::inflate(shard).map(Arc::new);
        }
        let failed = |source| Error::Io { path: shard.path.clone(), source };
        let cell = self.inflated.get(number, || Ok(Mutex::default())).map_err(failed)?;
        let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = &*cell {
            return Ok(Arc::clone(bytes));
        }
        let bytes = Arc::new(Self::inflate(shard)?);
        *cell = Some(Arc::clone(&bytes));
        Ok(bytes)
    }

    fn inflate(shard: &Shard) -> Result<Vec<u8>> {
        let failed = |source| Error::Io { path: shard.path.clone(), source };
        let size = length(shard.end)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| Error::Memory(size))?;
        let file = File::open(&shard.path).map_err(failed)?;
        let inflating = gunzip(file).take(shard.end).read_to_end(&mut bytes);
        if let Err(error) = inflating {
            let changed =
                Error::decode(format!("the shard was sound when it was indexed: {error}"));
            return Err(if error.raw_os_error().is_some() { failed(error) } else { changed });
        }
        Ok(bytes)
    }
}

impl Source for Shards {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        let place = &self.samples[index];
        if self.tars[place.shard as usize].gzip {
            let shard = self.inflated(place.shard)?;
            let start = length(place.offset)?;
            let bytes = shard.get(start..).and_then(|rest| rest.get(..length(place.size).ok()?));
            let bytes = bytes.ok_or_else(|| {
                Error::decode("the shard is shorter than it was when it was indexed")
            })?;
            buffer.clear();
            buffer.extend_from_slice(bytes);
        } else {
            self.read(place, buffer)?;
        }
        Ok(Item::Encoded(buffer))
    }

    fn blocks(&self) -> Option<Vec<u32>> {
        let any = self.tars.iter().any(|shard| shard.gzip);
        any.then(|| self.samples.iter().map(|place| place.shard).collect())
    }

    fn close(&self) {
        if self.is_forked() {
            return;
        }
        self.files.clear();
        self.inflated.clear();
    }

    fn name(&self, index: usize) -> String {
        let Place { shard, name, .. } = &self.samples[index];
        format!("{}: {name}", self.tars[*shard as usize].path.display())
    }

    fn channels(&self) -> usize {
        3
    }

    fn size(&self) -> Option<Size> {
        None
    }
}

fn length(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::Memory(usize::MAX))
}

fn gunzip(file: File) -> MultiGzDecoder<BufReader<File>> {
    MultiGzDecoder::new(BufReader::with_capacity(CHUNK, file))
}

/// Whether a shard is gzipped, and its samples.
type Indexed = (bool, Vec<Sample>);

/// Indexes a shard; its content tells whether it is gzipped.
fn index_file(path: &Path, label_key: Option<&str>) -> Result<Indexed> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = Vec::new();
    (&mut file).take(2).read_to_end(&mut magic).map_err(failed)?;
    let gzip = magic == GZIP_MAGIC;
    // Both start anew: a Seekable by itself, the other with a file of its own.
    let samples = if gzip {
        index::index(Piped(gunzip(File::open(path).map_err(failed)?)), label_key)
    } else {
        index::index(Seekable::new(file).map_err(failed)?, label_key)
    };
    let samples = samples.map_err(|fault| match fault {
        Fault::Io(source) => failed(source),
        Fault::Bad { offset, reason } => {
            let inflated = if gzip { " of the inflated shard" } else { "" };
            Error::Dataset(format!("{}: byte {offset}{inflated}: {reason}", path.display()))
        }
    })?;
    Ok((gzip, samples))
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        // Moves the file's position too, which nobody here looks at.
        let at = offset + filled as u64;
        match std::os::windows::fs::FileExt::seek_read(file, &mut buffer[filled..], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The things that were used last, by their shard's number.
#[derive(Debug)]
struct Recent<T> {
    most: usize,
    things: Mutex<VecDeque<(u32, Arc<T>)>>,
}

impl<T> Recent<T> {
    fn new(most: usize) -> Self {
        Self { most, things: Mutex::default() }
    }

    /// The thing of this shard, made where it is not kept; that used longest ago is let go for it.
    fn get(&self, shard: u32, make: impl FnOnce() -> io::Result<T>) -> io::Result<Arc<T>> {
        if let Some(kept) = self.put(shard, None) {
            return Ok(kept);
        }
        // Made without the lock: opening a file may take long. Another thread may have been faster.
        let made = Arc::new(make()?);
        Ok(self.put(shard, Some(Arc::clone(&made))).unwrap_or(made))
    }

    /// What is kept for this shard, now as that used last; else `new` is kept.
    fn put(&self, shard: u32, new: Option<Arc<T>>) -> Option<Arc<T>> {
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        let at = things.iter().position(|(number, _)| *number == shard);
        let kept = at.and_then(|at| things.remove(at)).map(|(_, thing)| thing);
        let thing = kept.or(new)?;
        things.push_back((shard, Arc::clone(&thing)));
        if things.len() > self.most {
            things.pop_front();
        }
        Some(thing)
    }

    fn clear(&self) {
        self.things.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

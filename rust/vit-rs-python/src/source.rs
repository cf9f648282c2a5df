//! Sources of samples, what feeds them, folder listings, and decoding of single images.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use numpy::{
    PyArray1, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray4, PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vit_rs_core::decode::{Decoder, MAX_PIXELS, Orientation, Scale};
use vit_rs_core::error::Result;
use vit_rs_core::image::{ImageBuf, Rect, Size};
use vit_rs_core::source::concat::Concat;
use vit_rs_core::source::feed::{Asked, Feed as CoreFeed, Request};
use vit_rs_core::source::memory::Array;
use vit_rs_core::source::mixed::{Entry, Mixed};
use vit_rs_core::source::strided::Strided;
use vit_rs_core::source::table::{Chunk, Table, Values};
use vit_rs_core::source::tar::Shards;
use vit_rs_core::source::{Files, Item, Source as CoreSource, folder};

use crate::error::{FeedError, to_py};
use crate::interrupt::interruptible;

/// How long a wait for a request lasts. Who ends the feed wakes it, so that this is no more than a precaution.
const PATIENCE: Duration = Duration::from_secs(1);

/// Samples that loaders read: files, arrays, tables, shards, what a feed is given, or several of these in a row.
#[pyclass(frozen, module = "vit_rs._core", name = "Source")]
pub struct Source(pub Arc<dyn CoreSource>);

/// The memory of a numpy array that is kept alive.
struct Borrowed {
    start: *const u8,
    len: usize,
    _owner: Py<PyAny>,
}

// SAFETY: the bytes are only read, and `vit_rs.data.ArrayDataset` asks that nobody writes them meanwhile (Arrow's are
// immutable); the owner is only dropped, which pyo3 allows on any thread.
unsafe impl Send for Borrowed {}
// SAFETY: as above.
unsafe impl Sync for Borrowed {}

impl Borrowed {
    fn of(array: &PyReadonlyArray1<'_, u8>) -> PyResult<Self> {
        let bytes = array.as_slice()?;
        let (start, len) = (bytes.as_ptr(), bytes.len());
        Ok(Self { start, len, _owner: array.as_any().clone().unbind() })
    }
}

/// Values of an Arrow column: (validity bits, offsets, whether these have 8 bytes, data, first value).
type ColumnArrays<'py> = (
    Option<PyReadonlyArray1<'py, u8>>,
    PyReadonlyArray1<'py, u8>,
    bool,
    PyReadonlyArray1<'py, u8>,
    usize,
);

fn values((valid, offsets, wide, data, first): ColumnArrays<'_>) -> PyResult<Values<Borrowed>> {
    let valid = valid.as_ref().map(Borrowed::of).transpose()?;
    let (offsets, data) = (Borrowed::of(&offsets)?, Borrowed::of(&data)?);
    Ok(Values { valid, offsets, wide, data, first })
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: start and len describe the array's contiguous bytes, alive as long as its owner.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

#[pymethods]
impl Source {
    /// Image files.
    #[staticmethod]
    fn files(paths: Vec<PathBuf>) -> Self {
        Self(Arc::new(Files::new(paths)))
    }

    /// A contiguous u8 array (N, H, W, C), kept without a copy.
    #[staticmethod]
    fn array(images: PyReadonlyArray4<'_, u8>) -> PyResult<Self> {
        let shape = images.shape().to_vec();
        let bytes = images.as_slice().map_err(|_| {
            PyValueError::new_err(format!("the array of shape {shape:?} must be C-contiguous"))
        })?;
        let (start, len) = (bytes.as_ptr(), bytes.len());
        let owner = images.as_any().clone().unbind();
        let bytes = Borrowed { start, len, _owner: owner };
        let array = Array::new(bytes, shape[0], Size::new(shape[1], shape[2]), shape[3]);
        Ok(Self(Arc::new(array.map_err(to_py)?)))
    }

    /// A u8 array (N, H, W, C) with any strides, kept without a copy; images are packed as they are read.
    #[staticmethod]
    fn strided(images: PyReadonlyArray4<'_, u8>) -> PyResult<Self> {
        let shape = images.shape();
        let strides: [isize; 4] = std::array::from_fn(|k| images.strides()[k]);
        // How many bytes lie before the first value, and from it on.
        let (mut before, mut after) = (0_usize, 0_usize);
        if !shape.contains(&0) {
            after = 1;
            for (&count, stride) in shape.iter().zip(strides) {
                let reach = (count - 1) * stride.unsigned_abs();
                *(if stride < 0 { &mut before } else { &mut after }) += reach;
            }
        }
        let start = images.data().cast_const().wrapping_sub(before);
        let owner = images.as_any().clone().unbind();
        let bytes = Borrowed { start, len: before + after, _owner: owner };
        let size = Size::new(shape[1], shape[2]);
        let made = Strided::new(bytes, before, shape[0], size, shape[3], strides);
        Ok(Self(Arc::new(made.map_err(to_py)?)))
    }

    /// The samples of several sources, one behind the other.
    #[staticmethod]
    fn concat(parts: Vec<Bound<'_, Self>>) -> PyResult<Self> {
        let parts = parts.iter().map(|part| Arc::clone(&part.get().0)).collect();
        Ok(Self(Arc::new(Concat::new(parts).map_err(to_py)?)))
    }

    /// A table that messages call `name`, its paths beginning in `folder`: chunks of (rows, images, paths).
    #[staticmethod]
    fn table(
        name: String,
        folder: PathBuf,
        chunks: Vec<(usize, Option<ColumnArrays<'_>>, Option<ColumnArrays<'_>>)>,
    ) -> PyResult<Self> {
        let chunk = |(rows, images, paths): (_, Option<ColumnArrays<'_>>, Option<_>)| {
            let images = images.map(values).transpose()?;
            Ok(Chunk { rows, images, paths: paths.map(values).transpose()? })
        };
        let chunks = chunks.into_iter().map(chunk).collect::<PyResult<_>>()?;
        Ok(Self(Arc::new(Table::new(name, folder, chunks).map_err(to_py)?)))
    }

    /// Image files (paths) and encoded images (bytes, kept without a copy).
    #[staticmethod]
    fn mixed(entries: Vec<Bound<'_, PyAny>>) -> PyResult<Self> {
        let entry = |entry: &Bound<'_, PyAny>| {
            let Ok(bytes) = entry.cast::<PyBytes>() else {
                return Ok(Entry::Path(entry.extract()?));
            };
            let (start, len) = (bytes.as_bytes().as_ptr(), bytes.as_bytes().len());
            let owner = bytes.as_any().clone().unbind();
            Ok(Entry::Bytes(Borrowed { start, len, _owner: owner }))
        };
        let entries = entries.iter().map(entry).collect::<PyResult<_>>()?;
        Ok(Self(Arc::new(Mixed::new(entries))))
    }

    /// Samples that the owner of this feed pushes into it.
    #[staticmethod]
    fn feed(feed: &Bound<'_, Feed>) -> Self {
        let feed: Arc<CoreFeed> = Arc::clone(&feed.get().0);
        Self(feed)
    }

    /// The encoded bytes of one sample.
    fn encoded<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyBytes>> {
        if index >= self.0.len() {
            let text = format!("sample {index} of {}", self.0.len());
            return Err(PyIndexError::new_err(text));
        }
        let mut buffer = Vec::new();
        let item = py.detach(|| self.0.item(index, &mut buffer));
        match item.map_err(|error| to_py(error.named(self.0.name(index))))? {
            Item::Encoded(bytes) => Ok(PyBytes::new(py, bytes)),
            Item::Pixels(_) => Err(PyValueError::new_err("this source holds pixels")),
        }
    }

    /// A name of one sample for messages.
    fn name(&self, index: usize) -> PyResult<String> {
        let known = index < self.0.len();
        known.then(|| self.0.name(index)).ok_or_else(|| PyIndexError::new_err(index))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}

/// Indexes tar shards: (source, label of each sample).
#[pyfunction]
fn open_shards(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    label_key: Option<String>,
    threads: usize,
) -> PyResult<(Source, Vec<i64>)> {
    let open = move || Shards::open(paths, label_key.as_deref(), threads);
    let (shards, labels) = interruptible(py, open)?.map_err(to_py)?;
    Ok((Source(Arc::new(shards)), labels))
}

/// Requests for samples, and the answers to them. One loader's workers and one Python thread stand at its ends.
#[pyclass(frozen, module = "vit_rs._core", name = "Feed")]
pub struct Feed(Arc<CoreFeed>);

#[pymethods]
impl Feed {
    #[new]
    fn new(len: usize) -> Self {
        Self(Arc::new(CoreFeed::new(len)))
    }

    /// Waits for the next request: (ticket, index); None when the feed is closed.
    fn next_request(&self, py: Python<'_>) -> Option<(u64, usize)> {
        loop {
            match py.detach(|| self.0.next_request(PATIENCE)) {
                Asked::Request(Request { ticket, index }) => return Some((ticket, index)),
                Asked::Nothing => {}
                Asked::Closed => return None,
            }
        }
    }

    /// Answers a request with a file's bytes and a label.
    fn reply(&self, ticket: u64, data: &[u8], label: i64) {
        self.0.reply(ticket, data.to_vec(), label);
    }

    /// Answers a request with the reason why it cannot be fulfilled.
    fn fail(&self, ticket: u64, reason: String, bad_sample: bool) {
        self.0.fail(ticket, reason, bad_sample);
    }

    /// Ends all waiting, for good.
    fn close(&self) {
        self.0.close();
    }
}

/// Lists an image folder: (classes, paths, labels).
#[pyfunction]
fn scan_folder(
    py: Python<'_>,
    root: PathBuf,
    extensions: Vec<String>,
    allow_empty: bool,
    threads: usize,
) -> PyResult<(Vec<String>, Vec<OsString>, Vec<usize>)> {
    let scan = move || folder::scan(&root, &extensions, allow_empty, threads);
    let listing = interruptible(py, scan)?.map_err(to_py)?;
    let paths = listing.paths.into_iter().map(PathBuf::into_os_string).collect();
    Ok((listing.classes, paths, listing.labels))
}

/// Decodes an image, or the region (top, left, height, width) of one, to u8 RGB (H, W, 3). With `exif` it is turned
/// upright and the region is one of the upright image; `scale` 2, 4 or 8 decodes a JPEG that much smaller.
#[pyfunction]
#[pyo3(signature = (data, *, region=None, name=None, max_pixels=MAX_PIXELS, exif=false, scale=1))]
fn decode_image<'py>(
    data: &Bound<'py, PyBytes>,
    region: Option<(usize, usize, usize, usize)>,
    name: Option<PathBuf>,
    max_pixels: usize,
    exif: bool,
    scale: usize,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let known = Scale::ALL.into_iter().find(|known| known.denominator() == scale);
    let scale = known.ok_or_else(|| {
        PyValueError::new_err(format!("scale is {scale}; 1, 2, 4 and 8 are known"))
    })?;
    let region = region.map(|(top, left, height, width)| Rect { top, left, height, width });
    let bytes = data.as_bytes();
    let decoded = data.py().detach(|| decode(bytes, region, max_pixels, exif, scale));
    let named = |error: vit_rs_core::error::Error| match &name {
        Some(name) => error.named(name.display().to_string()),
        None => error,
    };
    let (pixels, size) = decoded.map_err(|error| to_py(named(error)))?;
    PyArray1::from_vec(data.py(), pixels).reshape([size.height, size.width, 3])
}

fn decode(
    bytes: &[u8],
    region: Option<Rect>,
    max_pixels: usize,
    exif: bool,
    scale: Scale,
) -> Result<(Vec<u8>, Size)> {
    let mut decoder = Decoder::default();
    let header = decoder.header(bytes, max_pixels)?;
    let orientation = if exif { header.orientation } else { Orientation::Upright };
    let region = region.unwrap_or(orientation.oriented_size(header.size).rect());
    let region = orientation.stored_rect(region, header.size)?;
    let mut view = decoder.decode_scaled(bytes, header, region, scale)?;
    let mut upright = ImageBuf::default();
    if orientation != Orientation::Upright {
        orientation.apply(view, &mut upright)?;
        view = upright.view()?;
    }
    let mut pixels = Vec::with_capacity(view.size().pixels() * 3);
    for y in 0..view.size().height {
        pixels.extend_from_slice(view.row(y));
    }
    Ok((pixels, view.size()))
}

/// Adds this file's functions and classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("IMAGE_EXTENSIONS", folder::EXTENSIONS.to_vec())?;
    module.add("MAX_PIXELS", MAX_PIXELS)?;
    module.add("FeedError", module.py().get_type::<FeedError>())?;
    module.add_class::<Feed>()?;
    module.add_class::<Source>()?;
    module.add_function(wrap_pyfunction!(scan_folder, module)?)?;
    module.add_function(wrap_pyfunction!(decode_image, module)?)?;
    module.add_function(wrap_pyfunction!(open_shards, module)?)
}

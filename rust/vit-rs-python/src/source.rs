//! Sources of samples, folder listings, and decoding of single images.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyArray1, PyArray3, PyArrayMethods, PyReadonlyArray4, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vit_rs_core::decode::{Decoder, MAX_PIXELS};
use vit_rs_core::image::{Rect, Size};
use vit_rs_core::rng::EpochKey;
use vit_rs_core::source::memory::Array;
use vit_rs_core::source::{Files, Source as CoreSource, folder};

use crate::error::to_py;

/// Samples that loaders read: files or an array in memory.
#[pyclass(frozen, module = "vit_rs._core", name = "Source")]
pub struct Source(pub Arc<dyn CoreSource>);

/// The memory of a numpy array that is kept alive.
struct Borrowed {
    start: *const u8,
    len: usize,
    _owner: Py<PyAny>,
}

// SAFETY: the bytes are only read, and `vit_rs.data.ArrayDataset` asks that nobody writes them meanwhile; the owner is
// only dropped, which pyo3 allows on any thread.
unsafe impl Send for Borrowed {}
// SAFETY: as above.
unsafe impl Sync for Borrowed {}

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

    fn __len__(&self) -> usize {
        self.0.len()
    }
}

/// Lists an image folder: (classes, paths, labels).
#[pyfunction]
fn scan_folder(
    py: Python<'_>,
    root: PathBuf,
    extensions: Vec<String>,
    allow_empty: bool,
) -> PyResult<(Vec<String>, Vec<OsString>, Vec<usize>)> {
    let listing = py.detach(|| folder::scan(&root, &extensions, allow_empty)).map_err(to_py)?;
    let paths = listing.paths.into_iter().map(PathBuf::into_os_string).collect();
    Ok((listing.classes, paths, listing.labels))
}

/// Decodes a JPEG or PNG, or the region (top, left, height, width) of one, to u8 RGB (H, W, 3).
#[pyfunction]
#[pyo3(signature = (data, *, region=None, name=None, max_pixels=MAX_PIXELS))]
fn decode_image<'py>(
    data: &Bound<'py, PyBytes>,
    region: Option<(usize, usize, usize, usize)>,
    name: Option<PathBuf>,
    max_pixels: usize,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let bytes = data.as_bytes();
    let decoded = data.py().detach(|| {
        let mut decoder = Decoder::default();
        let header = decoder.header(bytes, max_pixels)?;
        let region = region.map_or(header.size.rect(), |(top, left, height, width)| Rect {
            top,
            left,
            height,
            width,
        });
        let view = decoder.decode_region(bytes, header, region)?;
        let pixels: Vec<u8> = (0..region.height).flat_map(|y| view.row(y)).copied().collect();
        Ok((pixels, region.size()))
    });
    let named = |error: vit_rs_core::error::Error| match &name {
        Some(name) => error.named(name.display().to_string()),
        None => error,
    };
    let (pixels, size) = decoded.map_err(|error| to_py(named(error)))?;
    PyArray1::from_vec(data.py(), pixels).reshape([size.height, size.width, 3])
}

/// The order of an epoch of `len` samples: u64 (len,).
#[pyfunction]
fn permutation(py: Python<'_>, len: usize, seed: u64, epoch: u64) -> Bound<'_, PyArray1<u64>> {
    PyArray1::from_vec(py, py.detach(|| EpochKey::new(seed, epoch).permutation(len)))
}

/// Adds this file's functions and classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("IMAGE_EXTENSIONS", folder::EXTENSIONS.to_vec())?;
    module.add("MAX_PIXELS", MAX_PIXELS)?;
    module.add_class::<Source>()?;
    module.add_function(wrap_pyfunction!(scan_folder, module)?)?;
    module.add_function(wrap_pyfunction!(decode_image, module)?)?;
    module.add_function(wrap_pyfunction!(permutation, module)?)
}

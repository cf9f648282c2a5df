//! Memory of the engine as numpy arrays, without a copy.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use numpy::ndarray::{ArrayView, IxDyn};
use numpy::{Element, PyArray1, PyArrayDyn, PyArrayMethods, PyReadwriteArray1};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use vit_rs_core::emit::Dtype;
use vit_rs_core::memory::{Buffer, Recycler};
use vit_rs_core::slot::Slot;

use crate::error::to_py;

/// Results that nobody needs any more, for those to come: three of 64 images of 224 x 224 in f32.
static RESULTS: Recycler = Recycler::new(128 << 20);

/// Writable, contiguous u8 arrays that do not overlap as the memory of one batch: each is kept until the batch was handed
/// over or given up. Nobody else may read or write them before.
pub fn lend(arrays: &[Bound<'_, PyArray1<u8>>]) -> PyResult<Vec<Slot>> {
    let wrong = |what| PyValueError::new_err(format!("memory for a batch must be {what}"));
    // All at once: arrays that overlap are refused.
    let lent = arrays.iter().map(PyArrayMethods::try_readwrite);
    let mut lent = lent
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| wrong("writable, and of other bytes for each view"))?;
    let slot = |(lent, array): (&mut PyReadwriteArray1<'_, u8>, &Bound<'_, _>)| {
        let bytes = lent.as_slice_mut().map_err(|_| wrong("C-contiguous"))?;
        let owner: Box<Py<PyArray1<u8>>> = Box::new(array.clone().unbind());
        // SAFETY: these are the array's initialised bytes. They stay as long as it lives, and the caller of
        // `Loader.push` promises that nobody else uses them meanwhile.
        Ok(unsafe { Slot::foreign(NonNull::from(&mut *bytes).cast(), bytes.len(), owner) })
    };
    lent.iter_mut().zip(arrays).map(slot).collect()
}

/// The images of a batch that was written into `slot`; over memory that was lent, its owner is their base.
pub fn batch<'py>(
    py: Python<'py>,
    slot: Slot,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let (start, length) = (slot.as_ptr(), slot.len());
    let slot = match slot.into_owner() {
        Err(slot) => return Memory::from(slot).into_values(py, dtype, shape),
        Ok(owner) => owner,
    };
    let owner = slot.downcast::<Py<PyArray1<u8>>>();
    let owner = owner.map_err(|_| PyRuntimeError::new_err("a batch's memory has another owner"))?;
    // SAFETY: `lend` took start and length from this array, which they live as long as.
    unsafe { values_over(start, length, owner.into_bound(py).into_any(), dtype, shape) }
}

/// What an array lies over: its base object.
#[pyclass(frozen, module = "vit_rs._core", name = "Memory")]
pub struct Memory(Option<Owned>);

enum Owned {
    Batch(Slot),
    Result(Buffer),
}

impl From<Slot> for Memory {
    fn from(slot: Slot) -> Self {
        Self(Some(Owned::Batch(slot)))
    }
}

impl From<Buffer> for Memory {
    /// Memory that [`Memory::buffer`] gave.
    fn from(buffer: Buffer) -> Self {
        Self(Some(Owned::Result(buffer)))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(Owned::Result(buffer)) = self.0.take() {
            RESULTS.give_back(buffer);
        }
    }
}

impl Memory {
    fn start_and_length(&self) -> (*mut u8, usize) {
        match &self.0 {
            Some(Owned::Batch(slot)) => (slot.as_ptr(), slot.len()),
            Some(Owned::Result(buffer)) => (buffer.as_ptr(), buffer.len()),
            None => (std::ptr::dangling_mut(), 0),
        }
    }

    /// At least `size` bytes, which may be where an earlier result was; their content is unspecified.
    ///
    /// # Errors
    /// [`vit_rs_core::error::Error::Memory`] when there are none.
    pub fn buffer(size: usize) -> vit_rs_core::error::Result<Buffer> {
        RESULTS.take(size)
    }

    /// An array of values of this type over the start of this memory, which it owns; u16 stands for f16 and bf16.
    pub fn into_values<'py>(
        self,
        py: Python<'py>,
        dtype: Dtype,
        shape: &[usize],
    ) -> PyResult<Bound<'py, PyAny>> {
        let (start, length) = self.start_and_length();
        let owner = Bound::new(py, self)?.into_any();
        // SAFETY: the memory stays where it is as long as its owner lives, and nothing else refers to it.
        unsafe { values_over(start, length, owner, dtype, shape) }
    }
}

/// An array of values over the start of memory whose owner becomes its base; u16 stands for f16 and bf16.
///
/// # Safety
/// From `start` on there must be `length` initialised bytes as long as `owner` lives, for the array alone.
unsafe fn values_over<'py>(
    start: *mut u8,
    length: usize,
    owner: Bound<'py, PyAny>,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as the caller says.
    Ok(unsafe {
        match dtype {
            Dtype::U8 => array_over::<u8>(start, length, owner, shape)?.into_any(),
            Dtype::F16 | Dtype::Bf16 => array_over::<u16>(start, length, owner, shape)?.into_any(),
            Dtype::F32 => array_over::<f32>(start, length, owner, shape)?.into_any(),
        }
    })
}

/// As `values_over`, for one type.
unsafe fn array_over<'py, T: Element + bytemuck::Pod>(
    start: *mut u8,
    length: usize,
    owner: Bound<'py, PyAny>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let values = shape.iter().try_fold(1_usize, |n, &k| n.checked_mul(k));
    let bytes = values.and_then(|values| values.checked_mul(size_of::<T>()));
    // No values may lie anywhere, in a user's memory too.
    let start = if values == Some(0) { NonNull::<T>::dangling().as_ptr().cast() } else { start };
    if bytes.is_none_or(|bytes| bytes > length) || !start.cast::<T>().is_aligned() {
        return Err(PyRuntimeError::new_err(format!(
            "internal error: {length} bytes hold no array of shape {shape:?}"
        )));
    }
    // SAFETY: the memory is aligned, holds at least this many values, every bit pattern of T is valid, and the array
    // owns the owner of the memory.
    Ok(unsafe {
        let view = ArrayView::from_shape_ptr(IxDyn(shape), start.cast::<T>().cast_const());
        PyArrayDyn::borrow_from_array(&view, owner)
    })
}

/// `size` bytes for a large result, in huge pages where the system has them; its content is unspecified.
#[pyfunction]
fn allocate(py: Python<'_>, size: usize) -> PyResult<Bound<'_, PyAny>> {
    let memory = Memory::from(Memory::buffer(size).map_err(to_py)?);
    memory.into_values(py, Dtype::U8, &[size])
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(allocate, module)?)
}

//! Memory of the engine as numpy arrays, without a copy.
#![allow(unsafe_code)]

use numpy::ndarray::{ArrayView, IxDyn};
use numpy::{Element, PyArrayDyn};
use pyo3::prelude::*;
use vit_rs_core::emit::Dtype;
use vit_rs_core::memory::{ALIGNMENT, Buffer, Recycler};
use vit_rs_core::slot::Slot;

use crate::error::to_py;

/// Results that nobody needs any more, for those to come: three of 64 images of 224 x 224 in f32.
static RESULTS: Recycler = Recycler::new(128 << 20);

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
        Ok(match dtype {
            Dtype::U8 => self.into_array::<u8>(py, shape)?.into_any(),
            Dtype::F16 | Dtype::Bf16 => self.into_array::<u16>(py, shape)?.into_any(),
            Dtype::F32 => self.into_array::<f32>(py, shape)?.into_any(),
        })
    }

    /// An array over the start of this memory, which it owns.
    ///
    /// # Panics
    /// If the array does not fit: a mistake of the caller.
    pub fn into_array<'py, T: Element + bytemuck::Pod>(
        self,
        py: Python<'py>,
        shape: &[usize],
    ) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
        let (start, length) = self.start_and_length();
        let values = shape.iter().try_fold(1_usize, |n, &k| n.checked_mul(k));
        let bytes = values.and_then(|values| values.checked_mul(size_of::<T>()));
        assert!(bytes.is_some_and(|bytes| bytes <= length) && align_of::<T>() <= ALIGNMENT);
        let memory = Bound::new(py, self)?;
        // SAFETY: the memory is aligned, holds at least this many values, every bit pattern of T is valid, and it stays
        // where it is as long as `memory` lives, which the array owns. Nothing else refers to it.
        Ok(unsafe {
            let view = ArrayView::from_shape_ptr(IxDyn(shape), start.cast::<T>().cast_const());
            PyArrayDyn::borrow_from_array(&view, memory.into_any())
        })
    }
}

/// `size` bytes for a large result, in huge pages where the system has them; its content is unspecified.
#[pyfunction]
fn allocate(py: Python<'_>, size: usize) -> PyResult<Bound<'_, PyArrayDyn<u8>>> {
    Memory::from(Memory::buffer(size).map_err(to_py)?).into_array(py, &[size])
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(allocate, module)?)
}

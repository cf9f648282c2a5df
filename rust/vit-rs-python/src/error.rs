//! One map from the engine's errors to Python's exceptions.

use pyo3::exceptions::{PyFileNotFoundError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::{PyErr, import_exception};
use vit_rs_core::error::Error;

import_exception!(vit_rs.exceptions, DecodeError);
import_exception!(vit_rs.exceptions, DatasetError);

/// The Python exception for an engine error.
pub fn to_py(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Argument(_) => PyValueError::new_err(text),
        Error::Decode { .. } => DecodeError::new_err(text),
        Error::Dataset(_) => DatasetError::new_err(text),
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            PyFileNotFoundError::new_err(text)
        }
        Error::Io { .. } => PyOSError::new_err(text),
        _ => PyRuntimeError::new_err(text),
    }
}

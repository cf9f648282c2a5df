//! One map from the engine's errors to Python's exceptions.

use pyo3::exceptions::{
    PyException, PyMemoryError, PyOSError, PyRuntimeError, PyTimeoutError, PyValueError,
};
use pyo3::{PyErr, create_exception, import_exception};
use vit_rs_core::error::Error;

import_exception!(vit_rs.exceptions, DecodeError);
import_exception!(vit_rs.exceptions, DatasetError);
create_exception!(
    vit_rs._core,
    FeedError,
    PyException,
    "A request to a feed failed: (ticket, text). The feed's owner knows the exception."
);

create_exception!(
    vit_rs._core,
    BatchTimeoutError,
    PyTimeoutError,
    "No batch came in time. A signal's handler raises a TimeoutError of its own, which is none of these."
);

/// The Python exception for an engine error.
pub fn to_py(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Argument(_) | Error::Sample { .. } => PyValueError::new_err(text),
        Error::Memory(_) => PyMemoryError::new_err(text),
        Error::Decode { .. } => DecodeError::new_err(text),
        Error::Foreign { ticket, .. } => FeedError::new_err((ticket, text)),
        Error::Dataset(_) => DatasetError::new_err(text),
        // With its number, Python makes it the subclass that it would raise itself, FileNotFoundError for one.
        Error::Io { path, source } => match source.raw_os_error() {
            Some(number) => {
                let reason = source.to_string();
                let reason = reason.split(" (os error").next().unwrap_or_default().to_owned();
                PyOSError::new_err((number, reason, path))
            }
            None => PyOSError::new_err(text),
        },
        _ => PyRuntimeError::new_err(text),
    }
}

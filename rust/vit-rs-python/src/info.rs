//! What this build is, and what it found on this machine.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vit_rs_core::{decode::jpeg, simd};

/// What was built and what it runs on, as a dict; `vit_rs.build_info` documents its keys.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("abi", if cfg!(feature = "abi3") { "abi3" } else { "version-specific" })?;
    info.set_item("arch", std::env::consts::ARCH)?;
    info.set_item("os", std::env::consts::OS)?;
    info.set_item("cpu_features", simd::cpu_features().to_vec())?;
    info.set_item("jpeg_library", format!("libjpeg-turbo {}", jpeg::VERSION))?;
    info.set_item("jpeg_simd", jpeg::HAS_SIMD)?;
    Ok(info)
}

/// Adds this file's functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(build_info, module)?)
}

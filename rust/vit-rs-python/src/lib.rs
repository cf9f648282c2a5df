//! Python binding of vit-rs-core: argument checks, borrowed slices, detached calls, wrapped results.
// pyo3 extracts arguments into owned values; a function that only reads them still receives them so.
#![allow(clippy::needless_pass_by_value)]

use pyo3::prelude::*;

mod error;
mod info;
mod interrupt;
mod loader;
mod memory;
mod ops;
mod source;
mod transform;

/// The compiled half of vit-rs. Private: use `vit_rs.ops`, `vit_rs.data` and `vit_rs.build_info`.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    if cfg!(debug_assertions) {
        PyErr::warn(
            module.py(),
            &module.py().get_type::<pyo3::exceptions::PyRuntimeWarning>(),
            c"this is a debug build of vit_rs: it is many times slower; build with `maturin develop --release`",
            1,
        )?;
    }
    info::register(module)?;
    loader::register(module)?;
    memory::register(module)?;
    ops::register(module)?;
    source::register(module)?;
    transform::register(module)
}

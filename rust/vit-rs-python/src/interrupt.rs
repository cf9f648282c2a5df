//! Long work of the engine that Ctrl-C ends.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// How long a wait lasts before signals are looked at.
const PATIENCE: Duration = Duration::from_millis(50);

/// Does `work` on a thread of its own and waits for it. After Ctrl-C nobody waits any more; the thread ends by itself.
pub fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new().name("vit-rs-work".to_owned());
    // Who waits may be gone by then.
    thread.spawn(move || drop(sender.send(work())))?;
    // The receiver may not be shared between threads, and is not: the wait is on this one.
    let receiver = std::sync::Mutex::new(receiver);
    loop {
        let waited = py.detach(|| {
            let receiver = receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            receiver.recv_timeout(PATIENCE)
        });
        match waited {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err(
                    "internal error in a thread of vit-rs, please report it",
                ));
            }
        }
    }
}

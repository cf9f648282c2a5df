//! The one error type of the engine. Messages say what was wrong, where, and what was expected.

use std::path::PathBuf;

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of its range or contradicts another one.
    #[error("{0}")]
    Argument(String),
    /// Encoded bytes are not a readable image. `name` says which one, where that is known.
    #[error("{}: {reason}", name.as_deref().unwrap_or("image"))]
    Decode {
        /// Path, or another name of the image.
        name: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A data set's layout is not what the source expects (no class folders, a class without images, ...).
    #[error("{0}")]
    Dataset(String),
    /// A worker panicked: a bug in vit-rs. The text is the panic's message.
    #[error("internal error in a loader thread, please report it: {0}")]
    Panic(String),
}

impl Error {
    /// An [`Error::Argument`] with this text.
    pub fn argument(text: impl Into<String>) -> Self {
        Self::Argument(text.into())
    }

    /// An [`Error::Decode`] that does not know its file yet.
    pub fn decode(reason: impl Into<String>) -> Self {
        Self::Decode { name: None, reason: reason.into() }
    }

    /// Names the image in a decode error that had no name.
    #[must_use]
    pub fn named(self, image: impl Into<String>) -> Self {
        match self {
            Self::Decode { name: None, reason } => {
                Self::Decode { name: Some(image.into()), reason }
            }
            other => other,
        }
    }
}

/// Result with the engine's error.
pub type Result<T> = std::result::Result<T, Error>;

//! The one error type of the engine. Messages say what was wrong, where, and what was expected.

use std::any::Any;
use std::path::PathBuf;

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of its range or contradicts another one.
    #[error("{0}")]
    Argument(String),
    /// The system has no memory for so many bytes.
    #[error("no memory for {0} bytes")]
    Memory(usize),
    /// Encoded bytes are not a readable image. `name` says which one, where that is known.
    #[error("{}: {reason}", name.as_deref().unwrap_or("image"))]
    Decode {
        /// Path, or another name of the image.
        name: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
    /// A sample does not fit what is to be done with it. `name` says which one, where that is known.
    #[error("{}: {reason}", name.as_deref().unwrap_or("image"))]
    Sample {
        /// Path, or another name of the sample.
        name: Option<String>,
        /// What does not fit.
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
    /// The owner of a [`crate::source::feed::Feed`] could not give a sample that it was asked for.
    #[error("{name}: {reason}")]
    Foreign {
        /// A name of the sample.
        name: String,
        /// Its words for what went wrong.
        reason: String,
        /// The request, by which it finds what it knows beside those words.
        ticket: u64,
        /// Whether the sample is to blame; else its owner does something wrong.
        bad_sample: bool,
    },
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

    /// An [`Error::Sample`] that does not know its sample yet.
    pub fn sample(reason: impl Into<String>) -> Self {
        Self::Sample { name: None, reason: reason.into() }
    }

    /// An [`Error::Panic`] with the text of a panic that was caught.
    #[must_use]
    pub fn panic(caught: &(dyn Any + Send)) -> Self {
        Self::Panic(Self::panic_text(caught))
    }

    pub(crate) fn panic_text(caught: &(dyn Any + Send)) -> String {
        let text = caught.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| caught.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "panic".to_owned())
    }

    /// Whether one sample is to blame, and another one could take its place.
    #[must_use]
    pub fn is_bad_sample(&self) -> bool {
        match self {
            Self::Decode { .. } | Self::Sample { .. } | Self::Io { .. } => true,
            Self::Foreign { bad_sample, .. } => *bad_sample,
            _ => false,
        }
    }

    /// Names the image in an error about one that had no name.
    #[must_use]
    pub fn named(self, image: impl Into<String>) -> Self {
        match self {
            Self::Decode { name: None, reason } => {
                Self::Decode { name: Some(image.into()), reason }
            }
            Self::Sample { name: None, reason } => {
                Self::Sample { name: Some(image.into()), reason }
            }
            other => other,
        }
    }
}

/// Result with the engine's error.
pub type Result<T> = std::result::Result<T, Error>;

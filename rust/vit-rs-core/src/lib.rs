//! The engine of vit-rs: image decoding, augmentation and batching, patchification and separable resampling.
//!
//! Pure Rust: slices and sizes in, `Result`s out; no Python, no globals, no environment reads.
//! Modules may import only what stands before them in this list, and a test holds that.

pub mod error;
pub mod memory;
pub mod parallel;
pub mod simd;

pub mod image;
pub mod line;
pub mod rng;

pub mod decode;
pub mod patchify;
pub mod resample;

pub mod augment;
pub mod emit;
pub mod source;

pub mod order;
pub mod slot;
pub mod statistics;

pub mod pipeline;

pub mod loader;
pub mod transformer;

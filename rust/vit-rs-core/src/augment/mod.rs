//! Augmentation in three steps: what the user asked for ([`spec`]), the numbers drawn for one view ([`plan`]), and the
//! pixels ([`canvas`], which hands each step to the file of its family). Only drawing a plan uses randomness.

mod affine;
mod blur;
mod box_blur;
pub mod canvas;
mod color;
pub(crate) mod erase;
pub mod float;
mod geometry;
mod gray;
mod histogram;
mod hue;
mod mix;
pub mod plan;
mod sharpness;
pub mod spec;

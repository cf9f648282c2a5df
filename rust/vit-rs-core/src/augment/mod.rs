//! Augmentation in three steps: what the user asked for ([`spec`]), the numbers drawn for one view ([`plan`]), and the
//! pixels ([`canvas`], which hands each step to the file of its family). Only drawing a plan uses randomness.

pub mod canvas;
mod geometry;
pub mod plan;
pub mod spec;

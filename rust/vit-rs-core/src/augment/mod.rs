//! Augmentation in three steps: what the user asked for ([`spec`]), the numbers drawn for one view ([`plan`]), and the
//! pixels ([`geometry`]). Only drawing a plan uses randomness.

pub mod geometry;
pub mod plan;
pub mod spec;

//! Separable linear resampling: one place for the taps, and the passes that apply them.

pub mod f32;
pub mod taps;
pub mod u8;

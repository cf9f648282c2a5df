//! What the CPU can do, found out once, and the few things that need to know.
//!
//! Kernels are plain loops. `run` compiles them for each instruction set that pays and calls the version for a
//! [`Level`]: the operations and their order are the same on all, so the results are equal bits.
#![allow(unsafe_code)]

mod convolve;
mod interleave;
mod stream;

use std::sync::OnceLock;

pub(crate) use convolve::{
    HorizontalWeights, VerticalWeights, convolve_horizontally, convolve_vertically,
};
pub(crate) use interleave::{
    deinterleave_bytes, interleave_bytes, interleave_bytes_in_runs, mirror_pixels,
};
pub(crate) use stream::{Stream, is_lines};

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// What every CPU of the architecture has.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Level {
    /// All that this CPU has, weakest first.
    #[must_use]
    pub fn all() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return &[Self(Set::Baseline), Self(Set::Avx2)];
        }
        &[Self(Set::Baseline)]
    }

    /// The strongest.
    #[must_use]
    pub fn best() -> Self {
        *Self::all().last().unwrap_or(&Self(Set::Baseline))
    }
}

/// A loop that is compiled for every level.
pub(crate) trait Kernel {
    /// The loop, `#[inline(always)]`, as is what it calls within: what is not inlined stays at the baseline.
    fn run(self);
}

/// Runs a kernel's version for `level`.
pub(crate) fn run<K: Kernel>(level: Level, kernel: K) {
    match level.0 {
        Set::Baseline => kernel.run(),
        // SAFETY: this level exists only where the CPU has AVX2.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { run_avx2(kernel) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run();
}

/// The instruction sets that matter here and that this CPU has, weakest first.
#[must_use]
pub fn cpu_features() -> &'static [&'static str] {
    static FEATURES: OnceLock<Vec<&'static str>> = OnceLock::new();
    FEATURES.get_or_init(probe)
}

#[cfg(target_arch = "x86_64")]
fn probe() -> Vec<&'static str> {
    let found = [
        ("sse2", true),
        ("sse4.1", is_x86_feature_detected!("sse4.1")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
    ];
    found.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn probe() -> Vec<&'static str> {
    let found = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
    ];
    found.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn probe() -> Vec<&'static str> {
    Vec::new()
}

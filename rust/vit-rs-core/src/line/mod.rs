//! What is done to one line of an image: channels interleaved and taken apart, values converted, runs dealt out.
//!
//! A line stays in the nearest cache from one step to the next, so that each step can be a simple loop of its own.

mod convert;

use bytemuck::Pod;

pub(crate) use convert::{Channels, Converter};
pub use convert::{Float, Normalization, Source, Unit};

use crate::simd::{self, Kernel, Level, Stream};

/// A value that moves as it is: the bytes of any dtype.
pub trait Element: Pod + Send + Sync {
    /// Writes three planes interleaved, as far as all reach.
    #[doc(hidden)]
    fn interleave(level: Level, planes: [&[Self]; 3], pixels: &mut [Self]) {
        simd::run(level, Interleave { planes, pixels });
    }

    /// Writes three planes interleaved to the runs of `run` pixels at the starts of the chunks of `step` values, if that
    /// is better done at once; returns whether it was.
    #[doc(hidden)]
    fn interleave_in_runs(
        _: Level,
        _planes: [&[Self]; 3],
        _run: usize,
        _target: &mut [Self],
        _step: usize,
    ) -> bool {
        false
    }

    /// Writes pixels of three channels to planes, as far as all reach.
    #[doc(hidden)]
    fn deinterleave(level: Level, pixels: &[Self], planes: [&mut [Self]; 3]) {
        simd::run(level, Deinterleave { pixels, planes });
    }

    /// Writes pixels from the last to the first.
    #[doc(hidden)]
    fn mirror(_: Level, channels: usize, pixels: &[Self], target: &mut [Self]) {
        let places = target.chunks_exact_mut(channels).rev();
        places.zip(pixels.chunks_exact(channels)).for_each(|(to, from)| to.copy_from_slice(from));
    }
}

impl Element for u8 {
    fn interleave(level: Level, planes: [&[Self]; 3], pixels: &mut [Self]) {
        simd::interleave_bytes(level, planes, pixels);
    }

    fn interleave_in_runs(
        level: Level,
        planes: [&[Self]; 3],
        run: usize,
        target: &mut [Self],
        step: usize,
    ) -> bool {
        simd::interleave_bytes_in_runs(level, planes, run, target, step)
    }

    fn deinterleave(level: Level, pixels: &[Self], planes: [&mut [Self]; 3]) {
        simd::deinterleave_bytes(level, pixels, planes);
    }

    fn mirror(level: Level, channels: usize, pixels: &[Self], target: &mut [Self]) {
        match channels {
            1 => simd::run(level, Reverse { values: pixels, target }),
            3 => simd::mirror_pixels(level, pixels, target),
            _ => {
                let places = target.chunks_exact_mut(channels).rev();
                places
                    .zip(pixels.chunks_exact(channels))
                    .for_each(|(to, from)| to.copy_from_slice(from));
            }
        }
    }
}
impl Element for u16 {}
impl Element for u32 {}
impl Element for u64 {}
impl Element for [u64; 2] {}
impl Element for f32 {}
impl Element for half::f16 {}
impl Element for half::bf16 {}

struct Interleave<'a, T> {
    planes: [&'a [T]; 3],
    pixels: &'a mut [T],
}

impl<T: Copy> Kernel for Interleave<'_, T> {
    #[inline(always)]
    fn run(self) {
        let [a, b, c] = self.planes;
        let values = a.iter().zip(b).zip(c);
        for (pixel, ((&a, &b), &c)) in self.pixels.as_chunks_mut::<3>().0.iter_mut().zip(values) {
            *pixel = [a, b, c];
        }
    }
}

struct Deinterleave<'a, T> {
    pixels: &'a [T],
    planes: [&'a mut [T]; 3],
}

impl<T: Copy> Kernel for Deinterleave<'_, T> {
    #[inline(always)]
    fn run(self) {
        let [a, b, c] = self.planes;
        for (pixel, ((a, b), c)) in
            self.pixels.as_chunks::<3>().0.iter().zip(a.iter_mut().zip(b).zip(c))
        {
            (*a, *b, *c) = (pixel[0], pixel[1], pixel[2]);
        }
    }
}

/// Writes planes to packed pixels of as many channels.
pub(crate) fn interleave<'a, T: Element>(
    level: Level,
    channels: usize,
    plane: impl Fn(usize) -> &'a [T],
    pixels: &mut [T],
) {
    if channels == 3 {
        T::interleave(level, [plane(0), plane(1), plane(2)], pixels);
        return;
    }
    for c in 0..channels {
        let places = pixels[c..].iter_mut().step_by(channels);
        places.zip(plane(c)).for_each(|(to, &from)| *to = from);
    }
}

/// Writes packed pixels to planes, one after the other.
pub(crate) fn deinterleave<T: Element>(
    level: Level,
    channels: usize,
    pixels: &[T],
    planes: &mut [T],
) {
    let width = pixels.len() / channels;
    if channels == 3 {
        let (a, rest) = planes.split_at_mut(width);
        let (b, c) = rest.split_at_mut(width);
        T::deinterleave(level, pixels, [a, b, c]);
        return;
    }
    for (c, plane) in planes.chunks_exact_mut(width).enumerate() {
        let values = pixels[c..].iter().step_by(channels);
        plane.iter_mut().zip(values).for_each(|(to, &from)| *to = from);
    }
}

struct Reverse<'a> {
    values: &'a [u8],
    target: &'a mut [u8],
}

impl Kernel for Reverse<'_> {
    #[inline(always)]
    fn run(self) {
        // Eight at a time, as the bytes of a number.
        let (blocks, rest) = self.values.as_chunks::<8>();
        let (first, places) = self.target.as_rchunks_mut::<8>();
        for (to, from) in places.iter_mut().rev().zip(blocks) {
            *to = u64::from_le_bytes(*from).swap_bytes().to_le_bytes();
        }
        first.iter_mut().rev().zip(rest).for_each(|(to, &from)| *to = from);
    }
}

/// Writes the pixels of a line from the last to the first.
pub(crate) fn mirror<T: Element>(level: Level, channels: usize, pixels: &[T], target: &mut [T]) {
    T::mirror(level, channels, pixels, target);
}

/// Writes the runs of `length` values of a line to the starts of the chunks of `step` values.
pub(crate) fn deal<T: Element>(
    stream: &Stream,
    line: &[T],
    length: usize,
    target: &mut [T],
    step: usize,
) {
    let bytes = size_of::<T>();
    let line = (bytemuck::cast_slice(line), length * bytes);
    let target = (bytemuck::cast_slice_mut(target), step * bytes);
    stream.copy_runs(length * bytes, line, target);
}

/// The inverse of [`deal`]: the starts of the chunks of `step` values to the runs of a line.
pub(crate) fn collect<T: Element>(
    stream: &Stream,
    source: &[T],
    step: usize,
    line: &mut [T],
    length: usize,
) {
    let bytes = size_of::<T>();
    let source = (bytemuck::cast_slice(source), step * bytes);
    let line = (bytemuck::cast_slice_mut(line), length * bytes);
    stream.copy_runs(length * bytes, source, line);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Element + PartialEq + std::fmt::Debug>(value: impl Fn(usize) -> T) {
        for (channels, width) in [(1, 5), (2, 9), (3, 1), (3, 31), (3, 100), (4, 17), (7, 3)] {
            let planes: Vec<Vec<T>> =
                (0..channels).map(|c| (0..width).map(|x| value(c * width + x)).collect()).collect();
            let expected: Vec<T> =
                (0..width).flat_map(|x| planes.iter().map(move |p| p[x])).collect();
            for &level in Level::all() {
                let mut pixels = vec![T::zeroed(); channels * width];
                interleave(level, channels, |c| &planes[c], &mut pixels);
                assert_eq!(pixels, expected, "{level:?}, {channels} channels");
                let mut back = vec![T::zeroed(); channels * width];
                deinterleave(level, channels, &pixels, &mut back);
                assert_eq!(back, planes.concat(), "{level:?}, {channels} channels");
            }
        }
    }

    #[test]
    fn channels_together_and_apart() {
        check(|i| i as u8);
        check(|i| i as u16);
        check(|i| i as u32);
        check(|i| i as u64);
        check(|i| [i as u64, 1]);
    }

    #[test]
    fn mirrored() {
        for (channels, width) in [(1, 1), (1, 100), (2, 7), (3, 1), (3, 31), (3, 224), (4, 65)] {
            let pixels: Vec<u8> = (0..channels * width).map(|i| (i * 7) as u8).collect();
            let expected: Vec<u8> = pixels.chunks(channels).rev().flatten().copied().collect();
            for &level in Level::all() {
                let mut target = vec![0; pixels.len()];
                mirror(level, channels, &pixels, &mut target);
                assert_eq!(target, expected, "{level:?}, {channels} channels");
            }
        }
    }

    #[test]
    fn dealt_and_collected() {
        let line: Vec<u16> = (0..12).collect();
        let mut target = [99; 17];
        deal(&Stream::new(false), &line, 4, &mut target, 6);
        assert_eq!(target, [0, 1, 2, 3, 99, 99, 4, 5, 6, 7, 99, 99, 8, 9, 10, 11, 99]);
        let mut back = [0; 12];
        collect(&Stream::new(false), &target, 6, &mut back, 4);
        assert_eq!(back, line[..]);
    }
}

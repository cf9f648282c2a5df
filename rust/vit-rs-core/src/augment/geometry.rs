//! Crops, windows and flips: pixels that only move, whatever their type.

use super::plan::Border;
use crate::image::{ImageBuf, ImageView, Size};
use crate::line::{Element, mirror};
use crate::simd::Level;

pub(super) fn rows_mut<T: Copy + Default>(
    target: &mut ImageBuf<T>,
    size: Size,
    channels: usize,
) -> std::slice::ChunksExactMut<'_, T> {
    target.reshape(size, channels).chunks_exact_mut(size.width * channels)
}

pub(super) fn copy<T: Copy + Default>(source: ImageView<'_, T>, target: &mut ImageBuf<T>) {
    for (y, row) in rows_mut(target, source.size(), source.channels()).enumerate() {
        row.copy_from_slice(source.row(y));
    }
}

pub(super) fn flip_vertical<T: Copy + Default>(source: ImageView<'_, T>, target: &mut ImageBuf<T>) {
    let size = source.size();
    for (y, row) in rows_mut(target, size, source.channels()).enumerate() {
        row.copy_from_slice(source.row(size.height - 1 - y));
    }
}

pub(super) fn flip_horizontal<T: Element + Default>(
    source: ImageView<'_, T>,
    target: &mut ImageBuf<T>,
) {
    let (channels, level) = (source.channels(), Level::best());
    for (y, row) in rows_mut(target, source.size(), channels).enumerate() {
        mirror(level, channels, source.row(y), row);
    }
}

/// Where coordinate `at` of an axis of `len` samples is read; None where a constant stands.
pub(super) fn inside(at: i64, len: usize, border: Border) -> Option<usize> {
    let len = len as i64;
    if (0..len).contains(&at) {
        return Some(at as usize);
    }
    match border {
        Border::Constant(_) => None,
        Border::Edge => Some(at.clamp(0, len - 1) as usize),
        Border::Reflect if len == 1 => Some(0),
        Border::Reflect => {
            let period = 2 * (len - 1);
            let folded = at.rem_euclid(period);
            Some(folded.min(period - folded) as usize)
        }
        Border::Symmetric => {
            let folded = at.rem_euclid(2 * len);
            Some(folded.min(2 * len - 1 - folded) as usize)
        }
    }
}

pub(super) fn window<T: Copy + Default + From<u8>>(
    source: ImageView<'_, T>,
    top: i64,
    left: i64,
    size: Size,
    border: Border,
    target: &mut ImageBuf<T>,
) {
    let channels = source.channels();
    let from = source.size();
    let fill = match border {
        Border::Constant(colour) => colour.map(T::from),
        _ => [T::default(); 3],
    };
    // Columns [start, end) of the window lie inside the image.
    let start = (-left).clamp(0, size.width as i64) as usize;
    let end = (from.width as i64 - left).clamp(start as i64, size.width as i64) as usize;
    for (y, row) in rows_mut(target, size, channels).enumerate() {
        let Some(source_y) = inside(top + y as i64, from.height, border) else {
            row.chunks_exact_mut(channels)
                .for_each(|pixel| pixel.copy_from_slice(&fill[..channels]));
            continue;
        };
        let source_row = source.row(source_y);
        if start < end {
            let first = (left + start as i64) as usize * channels;
            row[start * channels..end * channels]
                .copy_from_slice(&source_row[first..first + (end - start) * channels]);
        }
        for x in (0..start).chain(end..size.width) {
            let pixel = &mut row[x * channels..(x + 1) * channels];
            match inside(left + x as i64, from.width, border) {
                Some(at) => pixel.copy_from_slice(&source_row[at * channels..(at + 1) * channels]),
                None => pixel.copy_from_slice(&fill[..channels]),
            }
        }
    }
}

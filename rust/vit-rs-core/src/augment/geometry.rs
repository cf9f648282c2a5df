//! Carries out the steps of a plan on pixels.

use super::plan::{Border, Step};
use crate::error::Result;
use crate::image::{ImageBuf, ImageView, Size};
use crate::resample::u8::Resizer;

/// The memory of a chain of steps, one per thread.
#[derive(Debug, Default)]
pub struct Canvas {
    resizer: Resizer,
    buffers: [ImageBuf; 2],
}

impl Canvas {
    /// Applies `steps` to `source` and returns the result, which borrows either.
    ///
    /// # Errors
    /// [`crate::error::Error::Argument`] when a crop leaves the image.
    pub fn apply<'a>(&'a mut self, source: ImageView<'a>, steps: &[Step]) -> Result<ImageView<'a>> {
        let [front, back] = &mut self.buffers;
        let (mut current, mut next) = (front, back);
        let mut view = None;
        for step in steps {
            let from = match view {
                None => source,
                Some(()) => current.view()?,
            };
            match *step {
                Step::Crop(rect) => copy(from.crop(rect)?, next),
                Step::Window { top, left, size, border } => {
                    window(from, top, left, size, border, next);
                }
                Step::Resize { size, filter } => self.resizer.resize(from, size, filter, next)?,
                Step::FlipHorizontal => flip_horizontal(from, next),
                Step::FlipVertical => flip_vertical(from, next),
            }
            view = Some(());
            std::mem::swap(&mut current, &mut next);
        }
        match view {
            None => Ok(source),
            Some(()) => current.view(),
        }
    }
}

fn rows_mut(
    target: &mut ImageBuf,
    size: Size,
    channels: usize,
) -> std::slice::ChunksExactMut<'_, u8> {
    target.reshape(size, channels).chunks_exact_mut(size.width * channels)
}

fn copy(source: ImageView<'_>, target: &mut ImageBuf) {
    for (y, row) in rows_mut(target, source.size(), source.channels()).enumerate() {
        row.copy_from_slice(source.row(y));
    }
}

fn flip_vertical(source: ImageView<'_>, target: &mut ImageBuf) {
    let size = source.size();
    for (y, row) in rows_mut(target, size, source.channels()).enumerate() {
        row.copy_from_slice(source.row(size.height - 1 - y));
    }
}

fn flip_horizontal(source: ImageView<'_>, target: &mut ImageBuf) {
    let channels = source.channels();
    for (y, row) in rows_mut(target, source.size(), channels).enumerate() {
        let pixels = source.row(y).chunks_exact(channels).rev();
        for (to, from) in row.chunks_exact_mut(channels).zip(pixels) {
            to.copy_from_slice(from);
        }
    }
}

/// Where coordinate `at` of an axis of `len` samples is read; None where a constant stands.
fn inside(at: i64, len: usize, border: Border) -> Option<usize> {
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

fn window(
    source: ImageView<'_>,
    top: i64,
    left: i64,
    size: Size,
    border: Border,
    target: &mut ImageBuf,
) {
    let channels = source.channels();
    let from = source.size();
    let fill = match border {
        Border::Constant(colour) => colour,
        _ => [0; 3],
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::image::Rect;

    fn gray(data: &[u8]) -> ImageView<'_> {
        ImageView::new(data, Size::new(1, data.len()), 1, data.len()).unwrap()
    }

    fn window_row(left: i64, width: usize, border: Border) -> Vec<u8> {
        let mut canvas = Canvas::default();
        let step = Step::Window { top: 0, left, size: Size::new(1, width), border };
        canvas.apply(gray(&[1, 2, 3]), &[step]).unwrap().row(0).to_vec()
    }

    #[test]
    fn borders_are_numpys() {
        assert_eq!(window_row(-2, 7, Border::Constant([9; 3])), [9, 9, 1, 2, 3, 9, 9]);
        assert_eq!(window_row(-2, 7, Border::Edge), [1, 1, 1, 2, 3, 3, 3]);
        assert_eq!(window_row(-2, 7, Border::Reflect), [3, 2, 1, 2, 3, 2, 1]);
        assert_eq!(window_row(-2, 7, Border::Symmetric), [2, 1, 1, 2, 3, 3, 2]);
        assert_eq!(window_row(5, 2, Border::Constant([7; 3])), [7, 7]);
        assert_eq!(window_row(-9, 2, Border::Constant([7; 3])), [7, 7]);
        assert_eq!(window_row(-9, 19, Border::Symmetric)[9..12], [1, 2, 3]);
    }

    #[test]
    fn chains_alternate_buffers() {
        let data: Vec<u8> = (0..12).collect();
        let image = ImageView::new(&data, Size::new(2, 2), 3, 6).unwrap();
        let mut canvas = Canvas::default();
        let crop = Step::Crop(Rect { top: 0, left: 1, height: 2, width: 1 });
        let view = canvas.apply(image, &[Step::FlipVertical, Step::FlipHorizontal, crop]).unwrap();
        assert_eq!((view.row(0), view.row(1)), (&[6, 7, 8][..], &[0, 1, 2][..]));
        assert_eq!(canvas.apply(image, &[]).unwrap().row(1), &data[6..]);
    }
}

//! Carries out the steps of a plan on 8-bit pixels.

use super::blur::Blur;
use super::box_blur::BoxBlur;
use super::mix::Mixer;
use super::plan::Step;
use super::{affine, color, erase, geometry};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView};
use crate::resample::u8::Resizer;
use crate::simd::Level;

/// The memory of a chain of steps, one per thread.
#[derive(Debug, Default)]
pub struct Canvas {
    resizer: Resizer,
    lines: affine::Lines,
    /// Made when the first mix comes: it has a canvas of its own.
    mixer: Option<Box<Mixer>>,
    colors: color::Scratch,
    blur: Blur,
    box_blur: BoxBlur,
    buffers: [ImageBuf; 2],
}

impl Canvas {
    /// Applies `steps` to `source` and returns the result, which borrows either.
    ///
    /// # Errors
    /// [`crate::error::Error::Argument`] when a crop leaves the image.
    pub fn apply<'a>(&'a mut self, source: ImageView<'a>, steps: &[Step]) -> Result<ImageView<'a>> {
        let level = Level::best();
        let [front, back] = &mut self.buffers;
        let (mut current, mut next) = (front, back);
        let mut view = None;
        for step in steps {
            let from = match view {
                None => source,
                Some(()) => current.view()?,
            };
            match step {
                Step::Crop(rect) => geometry::copy(from.crop(*rect)?, next),
                Step::Window { top, left, size, border } => {
                    geometry::window(from, *top, *left, *size, *border, next);
                }
                Step::Resize { size, filter, rounding } => {
                    self.resizer.resize(from, *size, *filter, *rounding, next)?;
                }
                Step::FlipHorizontal => geometry::flip_horizontal(from, next),
                Step::FlipVertical => geometry::flip_vertical(from, next),
                Step::Erase { rect, fill } => {
                    let (size, channels) = (from.size(), from.channels());
                    let image = if view.is_some() {
                        &mut *current
                    } else {
                        geometry::copy(from, next);
                        view = Some(());
                        std::mem::swap(&mut current, &mut next);
                        &mut *current
                    };
                    erase::erase(image, size, channels, *rect, fill, erase::byte)?;
                    continue;
                }
                Step::Normalize { .. } => {
                    return Err(Error::argument("Normalize needs floats: put ToDtype before it"));
                }
                Step::Affine(map, kernels) => {
                    affine::check(from.size())?;
                    affine::affine(level, from, *kernels, map, &mut self.lines, next);
                }
                Step::Mix { keep, chains } => {
                    let mixer = self.mixer.get_or_insert_default();
                    mixer.mix(level, from, *keep, chains, next)?;
                }
                Step::Blend { share, steps } => {
                    let mixer = self.mixer.get_or_insert_default();
                    mixer.blend(level, from, *share, steps, next)?;
                }
                Step::BoxBlur(sigma) => self.box_blur.apply(from, *sigma, level, next),
                Step::Color(color, kernels) => {
                    color::apply(from, *color, *kernels, &mut self.colors, next);
                }
                Step::GaussianBlur { kernel, sigma } => {
                    self.blur.apply(from, *kernel, *sigma, self.colors.level, next);
                }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::augment::plan::{Border, Fill};
    use crate::image::{Rect, Size};

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
    fn erased_where_it_is() {
        let data: Vec<u8> = (0..12).collect();
        let image = ImageView::new(&data, Size::new(2, 2), 3, 6).unwrap();
        let mut canvas = Canvas::default();
        let rect = Rect { top: 1, left: 0, height: 1, width: 1 };
        let colour = |values: &[f32]| Step::Erase { rect, fill: Fill::Constant(values.to_vec()) };
        for (steps, expected) in [
            (vec![colour(&[90.7])], [90, 90, 90, 9, 10, 11]),
            (vec![Step::FlipHorizontal, colour(&[1.0, 2.0, 3.0])], [1, 2, 3, 6, 7, 8]),
            (vec![colour(&[1.0, 2.0, 3.0]), Step::FlipHorizontal], [9, 10, 11, 1, 2, 3]),
        ] {
            let view = canvas.apply(image, &steps).unwrap();
            assert_eq!(view.row(1), expected, "{steps:?}");
        }
        assert_eq!(data[6], 6);
        let wrong = canvas.apply(image, &[colour(&[1.0, 2.0])]).unwrap_err();
        assert!(wrong.to_string().contains("1 or 3 values, one for each channel, got 2"));
        let outside = Rect { left: 2, ..rect };
        let outside = Step::Erase { rect: outside, fill: Fill::Normal(1) };
        assert!(canvas.apply(image, &[outside]).is_err());
    }

    #[test]
    fn chains_alternate_buffers() {
        let data: Vec<u8> = (0..12).collect();
        let image = ImageView::new(&data, Size::new(2, 2), 3, 6).unwrap();
        let mut canvas = Canvas::default();
        let crop = Step::Crop(Rect { top: 0, left: 1, height: 2, width: 1 });
        let steps = [Step::FlipVertical, Step::FlipHorizontal, crop];
        let view = canvas.apply(image, &steps).unwrap();
        assert_eq!((view.row(0), view.row(1)), (&[6, 7, 8][..], &[0, 1, 2][..]));
        assert_eq!(canvas.apply(image, &[]).unwrap().row(1), &data[6..]);
    }
}

//! A plan: everything that will be done to one view of one image, as numbers. It can be printed, compared, replayed.

use crate::image::{Rect, Size};
use crate::resample::taps::Filter;
use crate::resample::u8::Rounding;

/// Whose pixels the kernels give, where the field's libraries differ in the last bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// torch's and torchvision's, on uint8 tensors.
    #[default]
    Torch,
    /// Pillow's.
    Pillow,
}

/// What stands outside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// One colour; gray images take its first value.
    Constant([u8; 3]),
    /// The nearest edge pixel.
    Edge,
    /// The image mirrored at its edge pixels, which are not repeated.
    Reflect,
    /// The image mirrored at its edges, which repeats the edge pixels.
    Symmetric,
}

/// What an erased rectangle is filled with, in the units of the values at that place.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// One value for each channel, or one for all.
    Constant(Vec<f32>),
    /// A normally distributed number for each value, of the stream with this key.
    Normal(u64),
    /// A normally distributed number for each channel, of the stream with this key.
    NormalColor(u64),
}

/// One operation with all its numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Keep a part that lies inside the image.
    Crop(Rect),
    /// Keep a window that may reach outside the image.
    Window {
        /// First row; negative above the image.
        top: i64,
        /// First column; negative left of the image.
        left: i64,
        /// The window's size.
        size: Size,
        /// What stands outside.
        border: Border,
    },
    /// Resize with antialiasing.
    Resize {
        /// The size afterwards.
        size: Size,
        /// The kernel.
        filter: Filter,
        /// Whose pixels; floats are always torch's.
        rounding: Rounding,
    },
    /// Mirror left and right.
    FlipHorizontal,
    /// Mirror top and bottom.
    FlipVertical,
    /// Turn, shear, scale and shift.
    Affine(Affine, Kernels),
    /// Change colours, pixel by pixel or by the image's histogram.
    Color(Color, Kernels),
    /// Convolve with a Gaussian, the border reflected.
    GaussianBlur {
        /// Height and width of the kernel, odd.
        kernel: Size,
        /// Standard deviation along the height and the width, pixels.
        sigma: (f64, f64),
    },
    /// Blur as Pillow's `ImageFilter.GaussianBlur` of this standard deviation, pixels. Not of floats.
    BoxBlur(f64),
    /// Pillow's `Image.blend` of the image with what a chain makes of it. Not of floats.
    Blend {
        /// Weight of the chain, 0 to 1.
        share: f32,
        /// The chain's steps, which leave the image's size alone.
        steps: Vec<Step>,
    },
    /// Overwrite a part that lies inside the image.
    Erase {
        /// The part.
        rect: Rect,
        /// What stands there afterwards.
        fill: Fill,
    },
    /// Subtract a mean and divide by a standard deviation: one of each for each channel, or one for all. Floats only.
    Normalize {
        /// The means.
        mean: Vec<f32>,
        /// The standard deviations.
        std: Vec<f32>,
    },
    /// The weighted sum of the image and of several chains of it; the sum is cut to 8 bits.
    Mix {
        /// Weight of the image as it is.
        keep: f32,
        /// Weight and steps of each chain, which leave the image's size alone.
        chains: Vec<(f32, Vec<Step>)>,
    },
}

/// A linear map of the plane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Where a point of the result is read: (x, y) at (a x + b y + c, d x + e y + f) for `[a, b, c, d, e, f]`. The point
    /// (0, 0) is the upper left corner of the first pixel, whose centre is (0.5, 0.5).
    pub inverse: [f64; 6],
    /// The size afterwards.
    pub size: Size,
    /// How pixels are read between their centres.
    pub sampling: Sampling,
    /// What stands outside; gray images take the first value; None is black. Where bilinear sampling reaches over the
    /// image's border, torch's kernels blend a colour in after pixels were blended with black, as torchvision does: so
    /// black as a colour makes those pixels darker than None.
    pub fill: Option<[u8; 3]>,
}

/// How a pixel is read between the centres of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// The nearest one.
    Nearest,
    /// Four, weighted by how near they are.
    Bilinear,
    /// Sixteen, by cubics through them: Pillow's pixels, whatever the plan's kernels. Not of floats.
    Bicubic,
}

/// What happens to colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Color {
    /// Blend with black: 0 is black, 1 the image.
    Brightness(f64),
    /// Blend with the mean of its gray: 0 is gray, 1 the image.
    Contrast(f64),
    /// Blend with its gray: 0 is gray, 1 the image.
    Saturation(f64),
    /// Turn the hue by this share of the circle, -0.5 to 0.5.
    Hue(f64),
    /// All channels become the gray.
    Grayscale,
    /// White minus the value.
    Invert,
    /// Keep this many upper bits.
    Posterize(u8),
    /// Invert values from this one on, in the units of the values.
    Solarize(f64),
    /// Add this to values below 128, at most to white. Not of floats.
    SolarizeAdd(u8),
    /// Spread each channel's histogram evenly.
    Equalize,
    /// Spread each channel's range over 0 to 255.
    AutoContrast,
    /// Blend with a smoothed image: 0 is smooth, 1 the image, 2 sharper.
    Sharpness(f64),
}

impl Step {
    /// The size of an image of size `before` after this step.
    #[must_use]
    pub fn size_after(&self, before: Size) -> Size {
        match self {
            Self::Crop(rect) => rect.size(),
            Self::Window { size, .. }
            | Self::Resize { size, .. }
            | Self::Affine(Affine { size, .. }, _) => *size,
            Self::FlipHorizontal
            | Self::FlipVertical
            | Self::Color(..)
            | Self::GaussianBlur { .. }
            | Self::BoxBlur(_)
            | Self::Blend { .. }
            | Self::Erase { .. }
            | Self::Normalize { .. }
            | Self::Mix { .. } => before,
        }
    }
}

/// The steps for one view of an image of size `source`.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The stored image's size.
    pub source: Size,
    /// What is done to 8-bit pixels, in order.
    pub steps: Vec<Step>,
    /// What is done to floats after that.
    pub float_steps: Vec<Step>,
}

impl Plan {
    fn all(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().chain(&self.float_steps)
    }

    /// The view's size.
    #[must_use]
    pub fn output(&self) -> Size {
        self.all().fold(self.source, |size, step| step.size_after(size))
    }

    /// The most pixels that the image has between any two steps.
    #[must_use]
    pub fn most_pixels(&self) -> usize {
        let mut size = self.source;
        let after = self.all().map(|step| {
            size = step.size_after(size);
            size.pixels()
        });
        after.max().unwrap_or(0)
    }

    /// Takes out of the plan what the decoder and the last store do.
    #[must_use]
    pub fn split(&self) -> Split<'_> {
        let mut region = self.source.rect();
        let (mut steps, mut float_steps) = (&self.steps[..], &self.float_steps[..]);
        while let [Step::Crop(rect), rest @ ..] = steps {
            region = Rect { top: region.top + rect.top, left: region.left + rect.left, ..*rect };
            steps = rest;
        }
        let kept = float_steps.iter().rposition(|step| !matches!(step, Step::Erase { .. }));
        let (rest, erased) = float_steps.split_at(kept.map_or(0, |last| last + 1));
        float_steps = rest;
        let mut mirrored = false;
        while let [rest @ .., Step::FlipHorizontal] = float_steps {
            mirrored = !mirrored;
            float_steps = rest;
        }
        while let ([rest @ .., Step::FlipHorizontal], []) = (steps, float_steps) {
            mirrored = !mirrored;
            steps = rest;
        }
        Split { region, steps, float_steps, mirrored, erased }
    }
}

/// A plan in the parts that different stages carry out, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split<'a> {
    /// The part of the stored image to decode.
    pub region: Rect,
    /// What is done to 8-bit pixels.
    pub steps: &'a [Step],
    /// What is done to floats; without any, the pixels stay 8-bit until the last store.
    pub float_steps: &'a [Step],
    /// Whether the last store mirrors left and right.
    pub mirrored: bool,
    /// What is erased in the batch after that; only [`Step::Erase`].
    pub erased: &'a [Step],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_are_decoded_and_flips_are_stored() {
        let crop = |top, left, height, width| Step::Crop(Rect { top, left, height, width });
        let resize = Step::Resize {
            size: Size::new(4, 4),
            filter: Filter::Bilinear,
            rounding: Rounding::Torch,
        };
        let plan = Plan {
            source: Size::new(100, 50),
            float_steps: Vec::new(),
            steps: vec![
                crop(10, 5, 40, 30),
                crop(1, 2, 20, 10),
                resize.clone(),
                Step::FlipHorizontal,
                Step::FlipHorizontal,
                Step::FlipHorizontal,
            ],
        };
        let split = plan.split();
        assert_eq!(split.region, Rect { top: 11, left: 7, height: 20, width: 10 });
        assert_eq!(split.steps, [resize]);
        assert!(split.mirrored);
        assert_eq!(plan.output(), Size::new(4, 4));
    }

    #[test]
    fn last_flips_and_erasing_of_floats_are_left_to_the_store() {
        let flip = Step::FlipHorizontal;
        let rect = Rect { top: 0, left: 0, height: 1, width: 1 };
        let erase = Step::Erase { rect, fill: Fill::Constant(vec![0.5]) };
        let plan = |steps: &[&Step], float_steps: &[&Step]| Plan {
            source: Size::new(4, 4),
            steps: steps.iter().copied().cloned().collect(),
            float_steps: float_steps.iter().copied().cloned().collect(),
        };
        let lengths = |plan: &Plan| {
            let split = plan.split();
            (split.steps.len(), split.float_steps.len(), split.mirrored, split.erased.len())
        };
        assert_eq!(lengths(&plan(&[&flip], &[&erase, &erase])), (0, 0, true, 2));
        assert_eq!(lengths(&plan(&[&erase, &flip], &[])), (1, 0, true, 0));
        assert_eq!(lengths(&plan(&[&flip, &erase], &[])), (2, 0, false, 0));
        assert_eq!(lengths(&plan(&[&flip], &[&flip])), (0, 0, false, 0));
        assert_eq!(lengths(&plan(&[&flip], &[&erase, &flip, &erase])), (1, 1, true, 1));
    }
}

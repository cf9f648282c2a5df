//! A plan: everything that will be done to one view of one image, as numbers. It can be printed, compared, replayed.

use crate::image::{Rect, Size};
use crate::resample::taps::Filter;

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

/// One operation with all its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    },
    /// Mirror left and right.
    FlipHorizontal,
    /// Mirror top and bottom.
    FlipVertical,
}

impl Step {
    /// The size of an image of size `before` after this step.
    #[must_use]
    pub fn size_after(&self, before: Size) -> Size {
        match *self {
            Self::Crop(rect) => rect.size(),
            Self::Window { size, .. } | Self::Resize { size, .. } => size,
            Self::FlipHorizontal | Self::FlipVertical => before,
        }
    }
}

/// The steps for one view of an image of size `source`.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The stored image's size.
    pub source: Size,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The view's size.
    #[must_use]
    pub fn output(&self) -> Size {
        self.steps.iter().fold(self.source, |size, step| step.size_after(size))
    }

    /// The most pixels that the image has between any two steps.
    #[must_use]
    pub fn most_pixels(&self) -> usize {
        let mut size = self.source;
        let after = self.steps.iter().map(|step| {
            size = step.size_after(size);
            size.pixels()
        });
        after.max().unwrap_or(0)
    }

    /// Splits the plan: the part of the stored image to decode, the steps on pixels, and whether the last store
    /// mirrors left and right.
    #[must_use]
    pub fn split(&self) -> (Rect, &[Step], bool) {
        let mut region = self.source.rect();
        let mut steps = &self.steps[..];
        while let [Step::Crop(rect), rest @ ..] = steps {
            region = Rect { top: region.top + rect.top, left: region.left + rect.left, ..*rect };
            steps = rest;
        }
        let mut mirrored = false;
        while let [rest @ .., Step::FlipHorizontal] = steps {
            mirrored = !mirrored;
            steps = rest;
        }
        (region, steps, mirrored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_are_decoded_and_flips_are_stored() {
        let crop = |top, left, height, width| Step::Crop(Rect { top, left, height, width });
        let resize = Step::Resize { size: Size::new(4, 4), filter: Filter::Bilinear };
        let plan = Plan {
            source: Size::new(100, 50),
            steps: vec![
                crop(10, 5, 40, 30),
                crop(1, 2, 20, 10),
                resize,
                Step::FlipHorizontal,
                Step::FlipHorizontal,
                Step::FlipHorizontal,
            ],
        };
        let (region, steps, mirrored) = plan.split();
        assert_eq!(region, Rect { top: 11, left: 7, height: 20, width: 10 });
        assert_eq!(steps, [resize]);
        assert!(mirrored);
        assert_eq!(plan.output(), Size::new(4, 4));
    }
}

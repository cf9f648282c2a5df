//! Images in memory: rows of interleaved channels, height x width x channels. Values are 8-bit unless said otherwise.

use crate::error::{Error, Result};

/// Height and width in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// `height` rows of `width` pixels.
    #[must_use]
    pub const fn new(height: usize, width: usize) -> Self {
        Self { height, width }
    }

    /// The whole image as a rectangle.
    #[must_use]
    pub const fn rect(self) -> Rect {
        Rect { top: 0, left: 0, height: self.height, width: self.width }
    }

    /// Pixels, saturating.
    #[must_use]
    pub const fn pixels(self) -> usize {
        self.height.saturating_mul(self.width)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.height, self.width)
    }
}

/// A rectangle of pixels: `top` and `left` are inside, `top + height` and `left + width` are the first outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Rect {
    /// The rectangle's size.
    #[must_use]
    pub const fn size(self) -> Size {
        Size { height: self.height, width: self.width }
    }

    /// The smallest rectangle that holds this one and another.
    #[must_use]
    pub fn around(self, other: Self) -> Self {
        let (top, left) = (self.top.min(other.top), self.left.min(other.left));
        let bottom = (self.top + self.height).max(other.top + other.height);
        let right = (self.left + self.width).max(other.left + other.width);
        Self { top, left, height: bottom - top, width: right - left }
    }

    /// Whether it is not empty and lies inside an image of this size.
    #[must_use]
    pub fn is_inside(self, size: Size) -> bool {
        self.height > 0
            && self.width > 0
            && self.top.checked_add(self.height).is_some_and(|end| end <= size.height)
            && self.left.checked_add(self.width).is_some_and(|end| end <= size.width)
    }
}

/// A borrowed image whose rows may be further apart than they are long.
#[derive(Clone, Copy, Debug)]
pub struct ImageView<'a, T = u8> {
    data: &'a [T],
    size: Size,
    channels: usize,
    stride: usize,
}

impl<'a, T: Copy> ImageView<'a, T> {
    /// Views `data` as rows of `size.width * channels` values, `stride` values apart.
    ///
    /// # Errors
    /// [`Error::Argument`] when the image is empty, rows overlap, or `data` is too short.
    pub fn new(data: &'a [T], size: Size, channels: usize, stride: usize) -> Result<Self> {
        let row = size.width.checked_mul(channels);
        let needed = size
            .height
            .checked_sub(1)
            .and_then(|rows| rows.checked_mul(stride))
            .and_then(|start| start.checked_add(row?));
        match (row, needed) {
            (Some(row), Some(needed)) if row > 0 && row <= stride && needed <= data.len() => {
                Ok(Self { data, size, channels, stride })
            }
            _ => Err(Error::argument(format!(
                "an image of {size} x {channels} with row stride {stride} does not fit {} values",
                data.len()
            ))),
        }
    }

    /// Height and width.
    #[must_use]
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Interleaved channels.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// All values from the first pixel on, and how many lie from one row to the next.
    pub(crate) const fn bytes(&self) -> (&'a [T], usize) {
        (self.data, self.stride)
    }

    /// Row `y`: `width * channels` values.
    #[must_use]
    pub fn row(&self, y: usize) -> &'a [T] {
        &self.data[y * self.stride..][..self.size.width * self.channels]
    }

    /// The values from row `y` on: its own, and as much of what lies behind them as was viewed.
    #[must_use]
    pub fn from_row(&self, y: usize) -> &'a [T] {
        &self.data[y * self.stride..]
    }

    /// Values from one row to the next.
    #[must_use]
    pub const fn stride(&self) -> usize {
        self.stride
    }

    /// All values in one slice.
    ///
    /// # Errors
    /// [`Error::Argument`] when there are gaps between rows.
    pub fn values(&self) -> Result<&'a [T]> {
        let row = self.size.width * self.channels;
        if self.stride != row {
            return Err(Error::argument(format!(
                "rows of {row} values are {} apart, and should have no gaps",
                self.stride
            )));
        }
        Ok(&self.data[..self.size.height * row])
    }

    /// The part of the image inside `rect`, without a copy.
    ///
    /// # Errors
    /// [`Error::Argument`] when the rectangle is empty or leaves the image.
    pub fn crop(&self, rect: Rect) -> Result<Self> {
        if !rect.is_inside(self.size) {
            return Err(Error::argument(format!(
                "{rect:?} is not inside an image of {}",
                self.size
            )));
        }
        let start = rect.top * self.stride + rect.left * self.channels;
        Self::new(&self.data[start..], rect.size(), self.channels, self.stride)
    }
}

/// An image of either kind that the steps of a plan leave.
#[derive(Clone, Copy, Debug)]
pub enum Pixels<'a> {
    /// 8-bit values.
    Bytes(ImageView<'a>),
    /// Floats.
    Floats(ImageView<'a, f32>),
}

impl Pixels<'_> {
    /// Height and width.
    #[must_use]
    pub const fn size(&self) -> Size {
        match self {
            Self::Bytes(view) => view.size,
            Self::Floats(view) => view.size,
        }
    }

    /// Interleaved channels.
    #[must_use]
    pub const fn channels(&self) -> usize {
        match self {
            Self::Bytes(view) => view.channels,
            Self::Floats(view) => view.channels,
        }
    }
}

impl<'a> From<ImageView<'a>> for Pixels<'a> {
    fn from(view: ImageView<'a>) -> Self {
        Self::Bytes(view)
    }
}

impl<'a> From<ImageView<'a, f32>> for Pixels<'a> {
    fn from(view: ImageView<'a, f32>) -> Self {
        Self::Floats(view)
    }
}

/// An owned image without gaps between rows; its memory is reused from one image to the next.
#[derive(Clone, Debug, Default)]
pub struct ImageBuf<T = u8> {
    data: Vec<T>,
    size: Option<Size>,
    channels: usize,
}

impl<T: Copy + Default> ImageBuf<T> {
    /// Gives the image a new shape and returns its values, whose content is unspecified.
    pub fn reshape(&mut self, size: Size, channels: usize) -> &mut [T] {
        let values = size.pixels().saturating_mul(channels);
        if self.data.len() < values {
            self.data.resize(values, T::default());
        }
        self.size = Some(size);
        self.channels = channels;
        &mut self.data[..values]
    }

    /// The image's values, to change them where they are; none when no shape was given yet.
    pub fn values_mut(&mut self) -> &mut [T] {
        let values = self.size.map_or(0, Size::pixels).saturating_mul(self.channels);
        &mut self.data[..values]
    }

    /// The image, to read.
    ///
    /// # Errors
    /// [`Error::Argument`] when no shape was given yet.
    pub fn view(&self) -> Result<ImageView<'_, T>> {
        let size = self.size.ok_or_else(|| Error::argument("an image buffer without a shape"))?;
        ImageView::new(&self.data, size, self.channels, size.width * self.channels)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn crop_is_a_view() {
        let data: Vec<u8> = (0..24).collect();
        let view = ImageView::new(&data, Size::new(4, 2), 3, 6).unwrap();
        let part = view.crop(Rect { top: 1, left: 1, height: 2, width: 1 }).unwrap();
        assert_eq!(part.row(0), [9, 10, 11]);
        assert_eq!(part.row(1), [15, 16, 17]);
    }

    #[test]
    fn lying_sizes_are_refused() {
        let data = [0u8; 23];
        assert!(ImageView::new(&data, Size::new(4, 2), 3, 6).is_err());
        assert!(ImageView::new(&data, Size::new(usize::MAX, 2), 3, 6).is_err());
        assert!(ImageView::new(&data, Size::new(0, 2), 3, 6).is_err());
        assert!(ImageView::new(&data, Size::new(2, 2), 3, 5).is_err());
        let view = ImageView::new(&data, Size::new(3, 2), 3, 6).unwrap();
        assert!(view.crop(Rect { top: 3, left: 0, height: 1, width: 1 }).is_err());
        assert!(view.crop(Rect { top: 0, left: usize::MAX, height: 1, width: 1 }).is_err());
    }
}

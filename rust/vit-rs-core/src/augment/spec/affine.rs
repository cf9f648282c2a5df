//! Turns, shears, scalings and shifts.

use super::{Drawing, Op, check_range};
use crate::augment::plan::{Affine, Kernels, Sampling, Step};
use crate::error::{Error, Result};
use crate::image::Size;
use crate::rng::Stream;

/// How an affine map reads pixels, and what it puts where there are none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// How pixels are read between their centres.
    pub sampling: Sampling,
    /// The colour outside; None is black, see [`Affine::fill`].
    pub fill: Option<[u8; 3]>,
}

/// Turn by a random angle.
#[derive(Clone, Copy, Debug)]
pub struct RandomRotation {
    /// Smallest and largest angle, counter-clockwise.
    pub degrees: (f64, f64),
    /// Make the result large enough for the whole turned image.
    pub expand: bool,
    /// The point (x, y) that stays, pixels from the upper left corner; None: the image's centre.
    pub center: Option<(f64, f64)>,
    /// Sampling and colour.
    pub look: Look,
}

impl Op for RandomRotation {
    fn check(&self) -> Result<()> {
        check_ordered("degrees", self.degrees)?;
        check_center(self.center)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let angle = stream.uniform_f32(self.degrees.0, self.degrees.1);
        drawing.rotate(angle, self.expand, self.center, self.look);
        Ok(())
    }

    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        if self.expand { None } else { before }
    }
}

/// Turn, shift, scale and shear at random.
#[derive(Clone, Copy, Debug)]
pub struct RandomAffine {
    /// Smallest and largest angle, clockwise.
    pub degrees: (f64, f64),
    /// Largest shift along x and y, as a share of width and height.
    pub translate: Option<(f64, f64)>,
    /// Smallest and largest factor.
    pub scale: Option<(f64, f64)>,
    /// Smallest and largest angle of the shear along x, then along y, degrees.
    pub shear: Option<[(f64, f64); 2]>,
    /// The point (x, y) that turn, scaling and shear keep; None: the image's centre.
    pub center: Option<(f64, f64)>,
    /// Sampling and colour.
    pub look: Look,
}

impl Op for RandomAffine {
    fn check(&self) -> Result<()> {
        check_ordered("degrees", self.degrees)?;
        if let Some((x, y)) = self.translate
            && !((0.0..=1.0).contains(&x) && (0.0..=1.0).contains(&y))
        {
            return Err(Error::argument(format!(
                "translate must be two shares in 0..=1, of width and height, got ({x}, {y})"
            )));
        }
        if let Some(scale) = self.scale {
            check_range("scale", scale, f64::INFINITY)?;
        }
        for range in self.shear.into_iter().flatten() {
            check_ordered("shear", range)?;
        }
        check_center(self.center)
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let Size { height, width } = drawing.size();
        let angle = stream.uniform_f32(self.degrees.0, self.degrees.1);
        let mut shift = |share: f64, length: usize| {
            let most = share * length as f64;
            stream.uniform_f32(-most, most).round_ties_even()
        };
        let translate =
            self.translate.map_or((0.0, 0.0), |(x, y)| (shift(x, width), shift(y, height)));
        let scale = self.scale.map_or(1.0, |(low, high)| stream.uniform_f32(low, high));
        let shear =
            self.shear.map_or([0.0; 2], |ranges| ranges.map(|(a, b)| stream.uniform_f32(a, b)));
        drawing.affine(angle, translate, scale, shear, self.center, self.look);
        Ok(())
    }
}

impl Drawing {
    /// Adds torchvision's `affine`: angle and shear in degrees, the shift in pixels.
    pub(super) fn affine(
        &mut self,
        angle: f64,
        translate: (f64, f64),
        scale: f64,
        shear: [f64; 2],
        center: Option<(f64, f64)>,
        look: Look,
    ) {
        let size = self.size();
        let center = center.unwrap_or((size.width as f64 * 0.5, size.height as f64 * 0.5));
        self.push_affine(inverse(center, angle, translate, scale, shear), size, look);
    }

    /// Adds torchvision's `rotate`, which on PIL images is Pillow's.
    pub(super) fn rotate(
        &mut self,
        angle: f64,
        expand: bool,
        center: Option<(f64, f64)>,
        look: Look,
    ) {
        let size = self.size();
        let (width, height) = (size.width as f64, size.height as f64);
        let angle = angle.rem_euclid(360.0);
        if center.is_none() && angle % 90.0 == 0.0 {
            // Quarter turns only move pixels.
            let look = Look { sampling: Sampling::Nearest, ..look };
            let turned = Size::new(size.width, size.height);
            let upright = expand || size.width == size.height;
            match (angle / 90.0) as u8 {
                0 | 4 => return,
                1 if upright => {
                    return self.push_affine([0.0, -1.0, width, 1.0, 0.0, 0.0], turned, look);
                }
                2 => return self.push_affine([-1.0, 0.0, width, 0.0, -1.0, height], size, look),
                3 if upright => {
                    return self.push_affine([0.0, 1.0, 0.0, -1.0, 0.0, height], turned, look);
                }
                _ => {}
            }
        }
        let center = center.unwrap_or((width * 0.5, height * 0.5));
        let mut map = match self.kernels() {
            Kernels::Torch => inverse(center, -angle, (0.0, 0.0), 1.0, [0.0; 2]),
            Kernels::Pillow => pillow_rotation(center, angle),
        };
        let mut turned = size;
        if expand {
            turned = match self.kernels() {
                Kernels::Torch => torch_extent(size, &map),
                Kernels::Pillow => pillow_extent(size, &map),
            };
            // The centres of both images coincide.
            let (x, y) = (turned.width as f64 - width, turned.height as f64 - height);
            (map[2], map[5]) = apply(&map, -x / 2.0, -y / 2.0);
        }
        self.push_affine(map, turned, look);
    }

    /// Adds a map, unless it is the identity.
    pub(super) fn push_affine(&mut self, inverse: [f64; 6], size: Size, look: Look) {
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        if size != self.size() || inverse.iter().zip(identity).any(|(a, b)| a - b != 0.0) {
            let Look { sampling, fill } = look;
            let map = Affine { inverse, size, sampling, fill };
            self.push(Step::Affine(map, self.kernels()));
        }
    }
}

fn apply([a, b, c, d, e, f]: &[f64; 6], x: f64, y: f64) -> (f64, f64) {
    (a * x + b * y + c, d * x + e * y + f)
}

/// torchvision's `_get_inverse_affine_matrix`.
fn inverse(
    (cx, cy): (f64, f64),
    angle: f64,
    (tx, ty): (f64, f64),
    scale: f64,
    shear: [f64; 2],
) -> [f64; 6] {
    let turn = angle.to_radians();
    let [shear_x, shear_y] = shear.map(f64::to_radians);
    let a = (turn - shear_y).cos() / shear_y.cos();
    let b = -(a * shear_x.tan() + turn.sin());
    let c = (turn - shear_y).sin() / shear_y.cos();
    let d = turn.cos() - c * shear_x.tan();
    let [a, b, c, d] = [d / scale, -b / scale, -c / scale, a / scale];
    let (x, y) = (cx + tx, cy + ty);
    [a, b, cx - a * x - b * y, c, d, cy - c * x - d * y]
}

/// The map of Pillow's `Image.rotate`.
fn pillow_rotation((cx, cy): (f64, f64), angle: f64) -> [f64; 6] {
    // Python's round(value, 15).
    let rounded = |value: f64| format!("{value:.15}").parse().unwrap_or(value);
    let angle = -angle.to_radians();
    let (cos, sin) = (rounded(angle.cos()), rounded(angle.sin()));
    let mut map = [cos, sin, 0.0, rounded(-angle.sin()), cos, 0.0];
    let (x, y) = apply(&map, -cx, -cy);
    (map[2], map[5]) = (x + cx, y + cy);
    map
}

/// The size of the whole turned image, as Pillow finds it.
fn pillow_extent(size: Size, map: &[f64; 6]) -> Size {
    let (w, h) = (size.width as f64, size.height as f64);
    let corners = [(0.0, 0.0), (w, 0.0), (w, h), (0.0, h)].map(|(x, y)| apply(map, x, y));
    let length = |axis: fn(&(f64, f64)) -> f64| {
        let most = corners.iter().map(axis).fold(f64::MIN, f64::max);
        let least = corners.iter().map(axis).fold(f64::MAX, f64::min);
        (most.ceil() - least.floor()).max(1.0) as usize
    };
    Size::new(length(|corner| corner.1), length(|corner| corner.0))
}

/// The same as torchvision finds it: in f32 around the image's centre, and cut to four places.
fn torch_extent(size: Size, map: &[f64; 6]) -> Size {
    let (half_w, half_h) = (0.5 * size.width as f32, 0.5 * size.height as f32);
    let [a, b, c, d, e, f] = *map;
    // The map around the image's centre.
    let (x, y) = (0.5 * size.width as f64, 0.5 * size.height as f64);
    let map = [a, b, a * x + b * y + c - x, d, e, d * x + e * y + f - y].map(|value| value as f32);
    let corners = [(-half_w, -half_h), (-half_w, half_h), (half_w, half_h), (half_w, -half_h)];
    let length = |factors: &[f32], half: f32| {
        let places = corners.map(|(x, y)| x * factors[0] + y * factors[1] + factors[2]);
        let cut = |value: f32| ((value + half) * 1e4).trunc() * 1e-4;
        let most = places.into_iter().fold(f32::MIN, f32::max);
        let least = places.into_iter().fold(f32::MAX, f32::min);
        (cut(most).ceil() - cut(least).floor()).max(1.0) as usize
    };
    Size::new(length(&map[3..], half_h), length(&map[..3], half_w))
}

fn check_ordered(name: &str, (low, high): (f64, f64)) -> Result<()> {
    let fine = low.is_finite() && high.is_finite() && low <= high;
    fine.then_some(()).ok_or_else(|| {
        Error::argument(format!("{name} must be (low, high) with low <= high, got ({low}, {high})"))
    })
}

fn check_center(center: Option<(f64, f64)>) -> Result<()> {
    match center {
        Some((x, y)) if !(x.is_finite() && y.is_finite()) => {
            Err(Error::argument(format!("center must be a point (x, y), got ({x}, {y})")))
        }
        _ => Ok(()),
    }
}

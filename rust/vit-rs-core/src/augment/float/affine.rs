//! Turns, shears, scalings and shifts of floats: torchvision's affine grid and torch's `grid_sample`, zeros outside.

use crate::augment::affine::Grid;
use crate::augment::plan::{Affine, Sampling};
use crate::error::{Error, Result};
use crate::image::{ImageBuf, ImageView, Size};
use crate::simd::Level;

pub(super) fn affine(
    source: ImageView<'_, f32>,
    map: &Affine,
    target: &mut ImageBuf<f32>,
) -> Result<()> {
    if map.sampling == Sampling::Bicubic {
        return Err(Error::argument(
            "bicubic affine maps need 8-bit pixels: put them before ToDtype",
        ));
    }
    let (Size { height, width }, channels) = (source.size(), source.channels());
    let grid = Grid::new(source.size(), map);
    let fill = map.fill.unwrap_or_default().map(f32::from);
    let mut lines = [vec![0.0; map.size.width], vec![0.0; map.size.width]];
    let rows = target.reshape(map.size, channels).chunks_exact_mut(map.size.width * channels);
    // Column `x` of row `y`, both rounded down or to the nearest; none outside.
    let pixel = |x: f32, y: f32| {
        let inside = 0.0 <= x && x < width as f32 && 0.0 <= y && y < height as f32;
        inside.then(|| &source.row(y as usize)[x as usize * channels..][..channels])
    };
    for (y, row) in rows.enumerate() {
        let [columns, lines_down] = lines.each_mut().map(Vec::as_mut_slice);
        grid.locate(Level::best(), y, [columns, lines_down]);
        let places = columns.iter().zip(&*lines_down);
        for (to, (&x, &y)) in row.chunks_exact_mut(channels).zip(places) {
            match map.sampling {
                Sampling::Nearest => {
                    let nearest = pixel(x.round_ties_even(), y.round_ties_even());
                    to.copy_from_slice(nearest.unwrap_or(&fill[..channels]));
                }
                Sampling::Bilinear | Sampling::Bicubic => {
                    let (left, upper) = (x.floor(), y.floor());
                    let (right, lower) = (left + 1.0, upper + 1.0);
                    let taps = [
                        (left, upper, (right - x) * (lower - y)),
                        (right, upper, (x - left) * (lower - y)),
                        (left, lower, (right - x) * (y - upper)),
                        (right, lower, (x - left) * (y - upper)),
                    ];
                    to.fill(0.0);
                    let mut share = 0.0;
                    for (x, y, weight) in taps {
                        if let Some(pixel) = pixel(x, y) {
                            to.iter_mut().zip(pixel).for_each(|(to, value)| *to += weight * value);
                            share += weight;
                        }
                    }
                    if map.fill.is_some() {
                        let fill = to.iter_mut().zip(fill);
                        fill.for_each(|(to, fill)| *to = (*to - fill) * share + fill);
                    }
                }
            }
        }
    }
    Ok(())
}

//! Three planes of bytes to packed pixels and back: the one permutation that compilers do badly.

use super::{Level, Set};

/// Pixels that the shuffles move at once.
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 16;

/// Writes `planes` interleaved to `pixels`, as far as all reach.
pub(crate) fn interleave_bytes(level: Level, planes: [&[u8]; 3], pixels: &mut [u8]) {
    let length = planes.iter().map(|plane| plane.len()).fold(pixels.len() / 3, usize::min);
    let planes = planes.map(|plane| &plane[..length]);
    let done = match level.0 {
        Set::Baseline => 0,
        // SAFETY: this level exists only where the CPU has AVX2.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { avx2::interleave(planes, pixels) },
    };
    let [a, b, c] = planes.map(|plane| &plane[done..]);
    let rest = pixels[3 * done..].as_chunks_mut::<3>().0;
    for (pixel, ((&a, &b), &c)) in rest.iter_mut().zip(a.iter().zip(b).zip(c)) {
        *pixel = [a, b, c];
    }
}

/// Writes `planes` interleaved to runs of `run` pixels, one at the start of each chunk of `step` bytes of `target`.
///
/// Returns whether it did: only where runs are whole blocks of the shuffles is this better than making a line of pixels
/// first.
pub(crate) fn interleave_bytes_in_runs(
    level: Level,
    planes: [&[u8]; 3],
    run: usize,
    target: &mut [u8],
    step: usize,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level == Level(Set::Avx2) && run > 0 && run.is_multiple_of(BLOCK) {
        // SAFETY: this level exists only where the CPU has AVX2.
        unsafe { avx2::interleave_in_runs(planes, run / BLOCK, target, step) };
        return true;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (level, planes, run, target, step);
    false
}

/// Writes `pixels` to `planes`, as far as all reach.
pub(crate) fn deinterleave_bytes(level: Level, pixels: &[u8], planes: [&mut [u8]; 3]) {
    let length = planes.iter().map(|plane| plane.len()).fold(pixels.len() / 3, usize::min);
    let [a, b, c] = planes.map(|plane| &mut plane[..length]);
    let done = match level.0 {
        Set::Baseline => 0,
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { avx2::deinterleave(pixels, [&mut *a, &mut *b, &mut *c]) },
    };
    let rest = pixels[3 * done..].as_chunks::<3>().0;
    let places = a[done..].iter_mut().zip(&mut b[done..]).zip(&mut c[done..]);
    for (pixel, ((a, b), c)) in rest.iter().zip(places) {
        (*a, *b, *c) = (pixel[0], pixel[1], pixel[2]);
    }
}

/// Writes `pixels`, three bytes each, from the last to the first to `target` of the same length.
pub(crate) fn mirror_pixels(level: Level, pixels: &[u8], target: &mut [u8]) {
    let length = pixels.len().min(target.len()) / 3;
    let (pixels, target) = (&pixels[..3 * length], &mut target[..3 * length]);
    let done = match level.0 {
        Set::Baseline => 0,
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { avx2::mirror(pixels, target) },
    };
    let rest = pixels[3 * done..].as_chunks::<3>().0;
    target
        .as_chunks_mut::<3>()
        .0
        .iter_mut()
        .rev()
        .skip(done)
        .zip(rest)
        .for_each(|(to, &p)| *to = p);
}

/// Whole blocks; each function returns how many pixels it has done.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m128i, _mm_or_si128, _mm_shuffle_epi8};

    use super::BLOCK;

    /// For the 16 bytes of each part of the result and each source: which byte of the source goes there, -1 for none.
    type Places = [[[i8; BLOCK]; 3]; 3];

    const INTO_PIXELS: Places = {
        let mut places = [[[-1; BLOCK]; 3]; 3];
        let mut i = 0;
        while i < 3 * BLOCK {
            places[i / BLOCK][i % 3][i % BLOCK] = (i / 3) as i8;
            i += 1;
        }
        places
    };

    const INTO_PLANES: Places = {
        let mut places = [[[-1; BLOCK]; 3]; 3];
        let mut i = 0;
        while i < 3 * BLOCK {
            places[i % 3][i / BLOCK][i / 3] = (i % BLOCK) as i8;
            i += 1;
        }
        places
    };

    const MIRRORED: Places = {
        let mut places = [[[-1; BLOCK]; 3]; 3];
        let mut i = 0;
        while i < 3 * BLOCK {
            let from = 3 * (BLOCK - 1 - i / 3) + i % 3;
            places[i / BLOCK][from / BLOCK][i % BLOCK] = (from % BLOCK) as i8;
            i += 1;
        }
        places
    };

    #[target_feature(enable = "avx2")]
    pub(super) fn mirror(pixels: &[u8], target: &mut [u8]) -> usize {
        let places = MIRRORED.map(|part| part.map(bytemuck::cast));
        let blocks = pixels.as_chunks::<{ 3 * BLOCK }>().0;
        let targets = target.as_rchunks_mut::<{ 3 * BLOCK }>().1;
        for (block, target) in blocks.iter().zip(targets.iter_mut().rev()) {
            if let [x, y, z] = block.as_chunks::<BLOCK>().0 {
                let parts = shuffled([x, y, z], places);
                for (to, part) in target.as_chunks_mut::<BLOCK>().0.iter_mut().zip(parts) {
                    *to = part;
                }
            }
        }
        blocks.len() * BLOCK
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn interleave(planes: [&[u8]; 3], pixels: &mut [u8]) -> usize {
        let places = INTO_PIXELS.map(|part| part.map(bytemuck::cast));
        let [a, b, c] = planes.map(|plane| plane.as_chunks::<BLOCK>().0);
        let blocks = a.iter().zip(b).zip(c).zip(pixels.as_chunks_mut::<{ 3 * BLOCK }>().0);
        for (((a, b), c), target) in blocks {
            let parts = shuffled([a, b, c], places);
            for (to, part) in target.as_chunks_mut::<BLOCK>().0.iter_mut().zip(parts) {
                *to = part;
            }
        }
        a.len() * BLOCK
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn interleave_in_runs(
        planes: [&[u8]; 3],
        blocks: usize,
        target: &mut [u8],
        step: usize,
    ) {
        let places = INTO_PIXELS.map(|part| part.map(bytemuck::cast));
        let [a, b, c] = planes.map(|plane| plane.as_chunks::<BLOCK>().0);
        let mut sources = a.iter().zip(b).zip(c);
        let mut rest = target;
        'runs: while !rest.is_empty() {
            let mut run = &mut *rest;
            for _ in 0..blocks {
                let (Some((target, after)), Some(((a, b), c))) =
                    (run.split_first_chunk_mut::<{ 3 * BLOCK }>(), sources.next())
                else {
                    break 'runs;
                };
                let parts = shuffled([a, b, c], places);
                for (to, part) in target.as_chunks_mut::<BLOCK>().0.iter_mut().zip(parts) {
                    *to = part;
                }
                run = after;
            }
            rest = rest.get_mut(step..).unwrap_or_default();
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn deinterleave(pixels: &[u8], planes: [&mut [u8]; 3]) -> usize {
        let places = INTO_PLANES.map(|part| part.map(bytemuck::cast));
        let [a, b, c] = planes.map(|plane| plane.as_chunks_mut::<BLOCK>().0);
        let done = a.len() * BLOCK;
        let blocks = pixels.as_chunks::<{ 3 * BLOCK }>().0;
        for (block, ((a, b), c)) in blocks.iter().zip(a.iter_mut().zip(b).zip(c)) {
            if let [x, y, z] = block.as_chunks::<BLOCK>().0 {
                [*a, *b, *c] = shuffled([x, y, z], places);
            }
        }
        done
    }

    #[target_feature(enable = "avx2")]
    fn shuffled(sources: [&[u8; BLOCK]; 3], places: [[__m128i; 3]; 3]) -> [[u8; BLOCK]; 3] {
        let [a, b, c] = sources.map(|source| bytemuck::cast::<[u8; BLOCK], __m128i>(*source));
        places.map(|[in_a, in_b, in_c]| {
            let [a, b] = [_mm_shuffle_epi8(a, in_a), _mm_shuffle_epi8(b, in_b)];
            bytemuck::cast(_mm_or_si128(_mm_or_si128(a, b), _mm_shuffle_epi8(c, in_c)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_interleaves() {
        for length in [0, 1, 15, 16, 17, 48, 224, 1000] {
            let plane =
                |start: usize| (start..start + length).map(|i| i as u8).collect::<Vec<u8>>();
            let planes = [plane(0), plane(85), plane(171)];
            let expected: Vec<u8> =
                (0..length).flat_map(|i| planes.each_ref().map(|plane| plane[i])).collect();
            for &level in Level::all() {
                let mut pixels = vec![0; 3 * length];
                interleave_bytes(level, planes.each_ref().map(Vec::as_slice), &mut pixels);
                assert_eq!(pixels, expected, "{level:?}, {length} pixels");
                for run in [8, 16, 48] {
                    let step = 3 * run + 5;
                    let mut runs = vec![0; length / run * step];
                    let planes = planes.each_ref().map(Vec::as_slice);
                    if interleave_bytes_in_runs(level, planes, run, &mut runs, step) {
                        for (got, expected) in runs.chunks(step).zip(expected.chunks(3 * run)) {
                            assert_eq!(got[..3 * run], *expected, "{level:?}, runs of {run}");
                            assert_eq!(got[3 * run..], [0; 5]);
                        }
                    }
                }
                let mut back = [(); 3].map(|()| vec![0; length]);
                deinterleave_bytes(level, &pixels, back.each_mut().map(Vec::as_mut_slice));
                assert_eq!(back, planes, "{level:?}, {length} pixels");
            }
        }
    }
}

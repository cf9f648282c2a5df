//! Runs of bytes from one place to another, past the caches if asked: of a result that they could not hold, a line need
//! not be read before it is overwritten.

use std::marker::PhantomData;

/// One cache line of every CPU that this is for.
const LINE: usize = 64;

/// Results of more bytes than this are taken not to stay in the caches until they are read.
const LARGER_THAN_CACHES: usize = 8 << 20;

/// Copies runs of bytes. What it wrote may be looked at, by this thread or another, after it was dropped, where it was
/// made.
pub(crate) struct Stream {
    past_caches: bool,
    /// The fence is one for the stores of its own thread.
    on_one_thread: PhantomData<*const ()>,
}

/// Whether a length or an address is a whole number of cache lines.
pub(crate) fn is_lines(bytes: usize) -> bool {
    bytes.is_multiple_of(LINE)
}

impl Stream {
    pub(crate) fn new(past_caches: bool) -> Self {
        Self {
            past_caches: past_caches && cfg!(target_arch = "x86_64"),
            on_one_thread: PhantomData,
        }
    }

    /// For writing a result of so many bytes: past the caches if they could not hold it.
    pub(crate) fn for_result(bytes: usize) -> Self {
        Self::new(bytes > LARGER_THAN_CACHES)
    }

    /// Whether it goes past the caches where it can.
    pub(crate) fn past_caches(&self) -> bool {
        self.past_caches
    }

    /// Whether it would write these values past the caches: they have to be whole cache lines.
    pub(crate) fn takes<T>(&self, values: &[T]) -> bool {
        self.past_caches && is_lines(size_of_val(values)) && is_lines(values.as_ptr().addr())
    }

    /// Copies one run.
    pub(crate) fn copy(&self, source: &[u8], target: &mut [u8]) {
        let (length, step) = (source.len(), source.len().max(1));
        self.copy_runs(length, (source, step), (target, step));
    }

    /// Copies the first `length` bytes of each chunk of `step` bytes of `source` to those of each chunk of `target`.
    ///
    /// Only whole, aligned cache lines can go past the caches: runs of another length or place go through them.
    pub(crate) fn copy_runs(
        &self,
        length: usize,
        (source, source_step): (&[u8], usize),
        (target, target_step): (&mut [u8], usize),
    ) {
        let lines = [length, target_step, target.as_ptr().addr()].into_iter().all(is_lines);
        let runs = Runs { length, source, source_step, target, target_step };
        if self.past_caches && lines {
            runs.for_each(store_lines);
            return;
        }
        // The runs of the usual patches, for which copies are a few instructions instead of a call.
        let packed = source_step == length || target_step == length;
        match if packed { length } else { 0 } {
            8 => runs.copy::<8>(),
            14 => runs.copy::<14>(),
            16 => runs.copy::<16>(),
            24 => runs.copy::<24>(),
            28 => runs.copy::<28>(),
            32 => runs.copy::<32>(),
            42 => runs.copy::<42>(),
            48 => runs.copy::<48>(),
            56 => runs.copy::<56>(),
            64 => runs.copy::<64>(),
            84 => runs.copy::<84>(),
            96 => runs.copy::<96>(),
            128 => runs.copy::<128>(),
            168 => runs.copy::<168>(),
            192 => runs.copy::<192>(),
            384 => runs.copy::<384>(),
            _ => runs.for_each(|from, to| to.copy_from_slice(from)),
        }
    }
}

/// Runs to copy: the last one may end its side.
struct Runs<'a> {
    length: usize,
    source: &'a [u8],
    source_step: usize,
    target: &'a mut [u8],
    target_step: usize,
}

impl Runs<'_> {
    fn for_each(self, copy: impl Fn(&[u8], &mut [u8])) {
        let from = self.source.chunks(self.source_step);
        for (from, to) in from.zip(self.target.chunks_mut(self.target_step)) {
            copy(&from[..self.length], &mut to[..self.length]);
        }
    }

    /// The same for runs of a known length.
    fn copy<const N: usize>(self) {
        let Self { source, source_step, target, target_step, .. } = self;
        // All chunks but the last are whole: no question of their length is asked in the loops.
        if source_step == N {
            let runs = source.as_chunks::<N>().0;
            let chunks = target.chunks_exact_mut(target_step);
            let whole = chunks.len();
            for (from, to) in runs.iter().zip(chunks) {
                to.first_chunk_mut::<N>().into_iter().for_each(|to| copy_run(from, to));
            }
            let last = target[whole * target_step..].first_chunk_mut::<N>();
            runs.get(whole).into_iter().zip(last).for_each(|(from, to)| copy_run(from, to));
        } else {
            let runs = target.as_chunks_mut::<N>().0;
            let chunks = source.chunks_exact(source_step);
            let (whole, last) = (chunks.len(), chunks.remainder().first_chunk::<N>());
            for (to, from) in runs.iter_mut().zip(chunks) {
                from.first_chunk::<N>().into_iter().for_each(|from| copy_run(from, to));
            }
            runs.get_mut(whole).into_iter().zip(last).for_each(|(to, from)| copy_run(from, to));
        }
    }
}

/// Block by block, because long arrays are copied by a call.
fn copy_run<const N: usize>(from: &[u8; N], to: &mut [u8; N]) {
    let (blocks, rest) = from.as_chunks::<16>();
    let (places, rest_place) = to.as_chunks_mut::<16>();
    for (to, from) in places.iter_mut().zip(blocks) {
        *to = *from;
    }
    rest_place.copy_from_slice(rest);
}

impl Drop for Stream {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.past_caches {
            // Such stores may overtake others, those that hand the memory on among them.
            // SAFETY: SSE is in every x86-64.
            unsafe {
                std::arch::x86_64::_mm_sfence();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn store_lines(source: &[u8], target: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_stream_si128};

    assert!(target.as_ptr().addr().is_multiple_of(LINE));
    let lines = target.as_chunks_mut::<LINE>().0.iter_mut().zip(source.as_chunks::<LINE>().0);
    for (to, from) in lines {
        for (to, from) in to.as_chunks_mut::<16>().0.iter_mut().zip(from.as_chunks::<16>().0) {
            let block: __m128i = bytemuck::cast(*from);
            // SAFETY: `to` is 16 bytes of this borrow, aligned to 16 because the first line is to 64. SSE2 is in every
            // x86-64. The fence that such a store needs before another thread may look is in `Stream`'s drop.
            unsafe { _mm_stream_si128(to.as_mut_ptr().cast(), block) };
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn store_lines(source: &[u8], target: &mut [u8]) {
    target.copy_from_slice(source);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_any_length_and_place() {
        let source: Vec<u8> = (0..4000).map(|i| (i * 7 % 251) as u8).collect();
        for past_caches in [false, true] {
            for length in (1..66).chain([84, 96, 128, 168, 192, 200, 384, 448]) {
                for (start, step) in [(0, length), (1, length + 3), (16, length), (0, length + 64)]
                {
                    let mut target = vec![0_u8; 4000];
                    let start = target.as_ptr().align_offset(LINE) + start;
                    let (runs, source_step) = (3, length + 5);
                    let from = &source[3..3 + (runs - 1) * source_step + length];
                    let end = start + (runs - 1) * step + length;
                    Stream::new(past_caches).copy_runs(
                        length,
                        (from, source_step),
                        (&mut target[start..end], step),
                    );
                    for (i, &value) in target.iter().enumerate() {
                        let (run, place) =
                            (i.wrapping_sub(start) / step, i.wrapping_sub(start) % step);
                        let written = i >= start && run < runs && place < length;
                        let expected = if written { from[run * source_step + place] } else { 0 };
                        assert_eq!(value, expected, "{past_caches}, {length}, {step}, byte {i}");
                    }
                }
            }
        }
    }
}

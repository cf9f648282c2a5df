//! Randomness without state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
//!
//! A number is a pure function of (seed, epoch, draw, view, operation, position), so that a sample's augmentation
//! does not depend on threads, order of work, restarts or on what other samples or operations drew.

use crate::simd::{self, Kernel, Level};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32 with ten rounds: a block of 128 random bits for a counter and a key.
#[must_use]
#[inline(always)]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let wide = [
            u64::from(MULTIPLIERS[0]) * u64::from(counter[0]),
            u64::from(MULTIPLIERS[1]) * u64::from(counter[2]),
        ];
        counter = [
            (wide[1] >> 32) as u32 ^ counter[1] ^ key[0],
            wide[1] as u32,
            (wide[0] >> 32) as u32 ^ counter[3] ^ key[1],
            wide[0] as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// View number of the streams that do not belong to a view. Its operations are 0: the order of an epoch, 1: substitutes
/// for bad files, 2 and 3: the order of blocks and of the samples in one, 4: seeds of others' generators.
const RESERVED_VIEW: u16 = u16::MAX;

/// The key of one epoch: what (seed, epoch) contribute to every number drawn in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochKey([u32; 2]);

impl EpochKey {
    /// The key of `epoch` under `seed`.
    #[must_use]
    pub fn new(seed: u64, epoch: u64) -> Self {
        let block = philox4x32_10(
            [epoch as u32, (epoch >> 32) as u32, 0, 0],
            [seed as u32, (seed >> 32) as u32],
        );
        Self([block[0], block[1]])
    }

    /// The numbers of operation `operation` on view `view` of draw `draw`.
    #[must_use]
    pub fn stream(self, draw: u64, view: u16, operation: u16) -> Stream {
        let place = u32::from(view) << 16 | u32::from(operation);
        Stream {
            key: self.0,
            counter: [0, place, draw as u32, (draw >> 32) as u32],
            block: [0; 4],
            used: 4,
        }
    }

    /// The numbers from which substitutes for the unreadable sample `draw` are drawn.
    #[must_use]
    pub fn substitutes(self, draw: u64) -> Stream {
        self.stream(draw, RESERVED_VIEW, 1)
    }

    /// Seed number `number` of draw `draw`, for generators that are not ours: no number that a view, an order or a
    /// substitute is made from.
    #[must_use]
    pub fn seed(self, draw: u64, number: u32) -> u64 {
        let mut stream = self.stream(draw, RESERVED_VIEW, 4);
        // Each has a block of its own.
        stream.counter[0] = number;
        stream.next_u64()
    }

    /// A uniformly drawn permutation of `0..len`: the order of this epoch.
    #[must_use]
    pub fn permutation(self, len: usize) -> Vec<u64> {
        let mut order: Vec<u64> = (0..len as u64).collect();
        self.stream(0, RESERVED_VIEW, 0).shuffle(&mut order);
        order
    }

    /// A permutation that leaves samples of one block together: blocks in a uniformly drawn order, and inside each the
    /// positions of its samples. `blocks` is the block of each position.
    #[must_use]
    pub fn permutation_of_blocks(self, blocks: &[u32]) -> Vec<u64> {
        let mut members = std::collections::BTreeMap::<u32, Vec<u64>>::new();
        for (position, &block) in (0..).zip(blocks) {
            members.entry(block).or_default().push(position);
        }
        let mut members: Vec<(u32, Vec<u64>)> = members.into_iter().collect();
        for (block, positions) in &mut members {
            self.stream(u64::from(*block), RESERVED_VIEW, 3).shuffle(positions);
        }
        self.stream(0, RESERVED_VIEW, 2).shuffle(&mut members);
        members.into_iter().flat_map(|(_, positions)| positions).collect()
    }
}

/// A sequence of random numbers.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Stream {
    /// The numbers of one key, which another stream drew with `next_u64`.
    #[must_use]
    pub fn keyed(key: u64) -> Self {
        // The highest place is an operation that no sample has.
        let key = [key as u32, (key >> 32) as u32];
        Self { key, counter: [0, u32::MAX, 0, 0], block: [0; 4], used: 4 }
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32_10(self.counter, self.key);
            // A stream has 2^34 numbers; an operation draws some dozens.
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
    }

    /// Uniform in [0, 1), in steps of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in [low, high], rounded to f32 as torch's `uniform_` draws; numbers that f32 has not, or not in full, stay.
    pub fn uniform_f32(&mut self, low: f64, high: f64) -> f64 {
        let exact = self.uniform(low, high);
        let rounded = exact as f32;
        if rounded.is_normal() { rounded.into() } else { exact }
    }

    /// Uniform in `0..bound`, without bias (Lemire's method); 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let mut wide = u128::from(self.next_u64()) * u128::from(bound);
        let threshold = bound.wrapping_neg() % bound;
        while (wide as u64) < threshold {
            wide = u128::from(self.next_u64()) * u128::from(bound);
        }
        (wide >> 64) as u64
    }

    /// Puts items into a uniformly drawn order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// A normally distributed number of mean 0 and standard deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        // 1 - unit lies in (0, 1]: its logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Writes normally distributed numbers of mean 0 and standard deviation 1, each from 32 random bits.
    pub fn fill_normal(&mut self, target: &mut [f32]) {
        let mut bits = [0; 256];
        for target in target.chunks_mut(bits.len()) {
            let bits = &mut bits[..target.len()];
            self.fill_bits(bits);
            simd::run(Level::best(), Normals { bits, target });
        }
    }

    /// As many calls of `next_u32`, several blocks at once.
    fn fill_bits(&mut self, target: &mut [u32]) {
        let begun = (4 - self.used).min(target.len());
        let (begun, target) = target.split_at_mut(begun);
        begun.fill_with(|| self.next_u32());
        let (blocks, rest) = target.as_chunks_mut::<4>();
        let first = self.counter[0];
        self.counter[0] = first.wrapping_add(blocks.len() as u32);
        let kernel = Blocks { counter: self.counter, first, key: self.key, target: blocks };
        simd::run(Level::best(), kernel);
        rest.fill_with(|| self.next_u32());
    }

    /// The logarithm of a Gamma-distributed number with this shape and scale 1 (Marsaglia and Tsang, "A simple method for
    /// generating gamma variables", ACM TOMS 2000). The number itself may be too small for a float.
    pub fn log_gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            // A number of shape + 1, times a uniform one to the power of 1 / shape.
            return self.log_gamma(shape + 1.0) + (1.0 - self.unit()).ln() / shape;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let root = 1.0 + c * x;
            let cube = root * root * root;
            let log = (1.0 - self.unit()).ln();
            if cube > 0.0 && log < 0.5 * x * x + d - d * cube + d * cube.ln() {
                return (d * cube).ln();
            }
        }
    }

    /// Shares that sum to 1, from the symmetric Dirichlet distribution with parameter `alpha` > 0.
    pub fn dirichlet(&mut self, alpha: f64, shares: &mut [f64]) {
        for share in &mut *shares {
            *share = self.log_gamma(alpha).max(f64::MIN);
        }
        let most = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for share in &mut *shares {
            *share = (*share - most).exp();
        }
        let sum: f64 = shares.iter().sum();
        for share in shares {
            *share /= sum;
        }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }
}

/// Blocks of counters that follow each other.
struct Blocks<'a> {
    counter: [u32; 4],
    first: u32,
    key: [u32; 2],
    target: &'a mut [[u32; 4]],
}

impl Kernel for Blocks<'_> {
    #[inline(always)]
    fn run(self) {
        let [_, b, c, d] = self.counter;
        for (i, block) in self.target.iter_mut().enumerate() {
            *block = philox4x32_10([self.first.wrapping_add(i as u32), b, c, d], self.key);
        }
    }
}

/// The normal distribution's quantiles at uniformly drawn probabilities.
struct Normals<'a> {
    bits: &'a [u32],
    target: &'a mut [f32],
}

impl Kernel for Normals<'_> {
    #[inline(always)]
    fn run(self) {
        for (to, &bits) in self.target.iter_mut().zip(self.bits) {
            *to = normal_quantile((f64::from(bits) + 0.5) * (1.0 / (1u64 << 32) as f64)) as f32;
        }
    }
}

/// The number below which a share `p`, 0 < p < 1, of the normal distribution lies, within 1e-6 of it (Wichura, algorithm
/// AS 241, PPND7).
///
/// Sums, products, quotients and square roots only: equal bits on every CPU, which the system's logarithm and cosine do
/// not promise.
#[inline(always)]
fn normal_quantile(p: f64) -> f64 {
    let q = p - 0.5;
    let r = 0.180_625 - q * q;
    let centre = q
        * (((59.109_374_720 * r + 159.291_132_02) * r + 50.434_271_938) * r + 3.387_132_717_9)
        / (((67.187_563_600 * r + 78.757_757_664) * r + 17.895_169_469) * r + 1.0);
    let r = (-natural_logarithm(if q < 0.0 { p } else { 1.0 - p })).sqrt();
    let near = r - 1.6;
    let near = (((0.170_238_211_03 * near + 1.306_728_481_6) * near + 2.756_815_390_0) * near
        + 1.423_437_277_7)
        / ((0.120_211_329_75 * near + 0.737_001_642_50) * near + 1.0);
    let far = r - 5.0;
    let far = (((0.017_337_203_997 * far + 0.428_682_943_37) * far + 3.081_226_386_0) * far
        + 6.657_905_115_0)
        / ((0.012_258_202_635 * far + 0.241_978_942_25) * far + 1.0);
    let tail = if r <= 5.0 { near } else { far };
    if q.abs() <= 0.425 { centre } else { tail.copysign(q) }
}

/// The natural logarithm of a positive normal number, within 1e-10.
#[inline(always)]
fn natural_logarithm(x: f64) -> f64 {
    // x = mantissa * 2^exponent with the mantissa from sqrt(1/2) to sqrt(2).
    const ROOT: u64 = 0x3fe6_a09e_667f_3bcd;
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits().wrapping_sub(ROOT);
    let exponent = f64::from((bits as i64 >> 52) as i32);
    let mantissa = f64::from_bits((bits & MANTISSA).wrapping_add(ROOT));
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    let series = 1.0
        + z * (1.0 / 3.0
            + z * (1.0 / 5.0 + z * (1.0 / 7.0 + z * (1.0 / 9.0 + z * (1.0 / 11.0 + z / 13.0)))));
    2.0 * s * series + exponent * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors published with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        let vectors = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in vectors {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn streams_differ_in_every_part_of_their_key() {
        let number = |seed, epoch, draw, view, operation| {
            EpochKey::new(seed, epoch).stream(draw, view, operation).next_u64()
        };
        let base = number(1, 2, 3, 4, 5);
        assert_eq!(base, number(1, 2, 3, 4, 5));
        for other in [
            number(0, 2, 3, 4, 5),
            number(1 << 40 | 1, 2, 3, 4, 5),
            number(1, 1, 3, 4, 5),
            number(1, 2, 3 | 1 << 40, 4, 5),
            number(1, 2, 3, 5, 5),
            number(1, 2, 3, 4, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn seeds_are_nobody_elses_numbers() {
        let key = EpochKey::new(1, 2);
        let seeds: Vec<u64> = (0..8).map(|number| key.seed(3, number)).collect();
        let mut others: Vec<u64> = (0..8).map(|number| key.seed(4, number)).collect();
        for operation in 0..8 {
            let streams = [key.stream(3, 0, operation), key.stream(3, RESERVED_VIEW, operation)];
            // The first block of operation 4 is a seed; all others are drawn by somebody else.
            for mut stream in streams.into_iter().filter(|stream| stream.counter[1] as u16 != 4) {
                others.extend((0..8).map(|_| stream.next_u64()));
            }
        }
        let all: std::collections::HashSet<u64> = seeds.iter().chain(&others).copied().collect();
        assert_eq!(all.len(), seeds.len() + others.len());
        assert_eq!(seeds[0], EpochKey::new(1, 2).seed(3, 0));
        assert_ne!(seeds[0], EpochKey::new(2, 2).seed(3, 0));
        assert!(key.seed(u64::MAX, u32::MAX) != key.seed(u64::MAX, 0));
    }

    #[test]
    fn permutation_holds_each_index_once() {
        let mut order = EpochKey::new(7, 1).permutation(1000);
        assert_ne!(order, EpochKey::new(7, 2).permutation(1000));
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1000));
        assert!(EpochKey::new(7, 1).permutation(0).is_empty());
    }

    #[test]
    fn blocks_stay_together() {
        let blocks: Vec<u32> = (0..1000).map(|position| position * 7 / 1000).collect();
        let order = EpochKey::new(7, 1).permutation_of_blocks(&blocks);
        assert_ne!(order, EpochKey::new(7, 2).permutation_of_blocks(&blocks));
        let mut runs: Vec<u32> = order.iter().map(|&position| blocks[position as usize]).collect();
        runs.dedup();
        assert_ne!(runs, [0, 1, 2, 3, 4, 5, 6]);
        let mut sorted = runs.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        let first: Vec<u64> =
            order.iter().copied().filter(|&at| blocks[at as usize] == runs[0]).collect();
        assert!(!first.is_sorted());
        let mut order = order;
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1000));
        assert!(EpochKey::new(7, 1).permutation_of_blocks(&[]).is_empty());
    }

    #[test]
    fn normal_numbers_are_the_distributions_quantiles() {
        // scipy.stats.norm.ppf.
        let known = [
            (1e-9, -5.997_807_015),
            (1e-4, -3.719_016_485),
            (0.05, -1.644_853_627),
            (0.075, -1.439_531_471),
            (0.3, -0.524_400_513),
            (0.5, 0.0),
            (0.97, 1.880_793_608),
            (1.0 - 1e-12, 7.034_487_017),
        ];
        for (p, expected) in known {
            let got: f64 = normal_quantile(p);
            assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{p}: {got}");
        }
        for p in (1..=10_000).map(|i| f64::from(i) * 1e-4) {
            assert!((natural_logarithm(p) - p.ln()).abs() < 1e-10, "{p}");
        }
        let mut whole = [0.0; 1000];
        Stream::keyed(5).fill_normal(&mut whole);
        let mut parts = [0.0; 1000];
        let mut stream = Stream::keyed(5);
        for part in parts.chunks_mut(37) {
            stream.fill_normal(part);
        }
        assert_eq!(whole.map(f32::to_bits), parts.map(f32::to_bits));
        let (mut one, mut many) = (Stream::keyed(5), [0; 70]);
        one.next_u32();
        let mut other = one.clone();
        other.fill_bits(&mut many);
        assert!(many.iter().all(|&bits| bits == one.next_u32()));
        assert_eq!(other.next_u64(), one.next_u64());
        assert_ne!(whole[0].to_bits(), {
            Stream::keyed(6).fill_normal(&mut parts[..1]);
            parts[0].to_bits()
        });
        let bits: Vec<u32> = (0..4000).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).collect();
        let filled = |level| {
            let mut target = vec![0.0; bits.len()];
            simd::run(level, Normals { bits: &bits, target: &mut target });
            target
        };
        assert!(Level::all().iter().all(|&level| filled(level) == filled(Level::all()[0])));
    }

    #[test]
    fn below_is_uniform() {
        let mut stream = EpochKey::new(3, 0).stream(0, 0, 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        // Standard deviation of each count: about 93.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 500), "{counts:?}");
        assert_eq!(stream.below(0), 0);
        assert_eq!(stream.below(1), 0);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&stream.unit())));
    }

    #[test]
    fn gamma_has_its_mean_and_variance() {
        let mut stream = EpochKey::new(5, 0).stream(0, 0, 0);
        for shape in [0.2, 0.7, 1.0, 3.5, 40.0] {
            let count = 40_000;
            let values: Vec<f64> = (0..count).map(|_| stream.log_gamma(shape).exp()).collect();
            let mean = values.iter().sum::<f64>() / f64::from(count);
            let variance =
                values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / f64::from(count);
            // Both are the shape; five standard errors, of which the variance's is sqrt((2 + 6 / shape) / count).
            let error = 5.0 * (shape / f64::from(count)).sqrt();
            assert!((mean - shape).abs() < error, "{shape}: {mean}");
            let error = 5.0 * shape * ((2.0 + 6.0 / shape) / f64::from(count)).sqrt();
            assert!((variance - shape).abs() < error, "{shape}: {variance}");
        }
    }

    #[test]
    fn shares_sum_to_one_whatever_the_parameter() {
        let mut stream = EpochKey::new(5, 1).stream(0, 0, 0);
        for alpha in [f64::MIN_POSITIVE, 1e-300, 1e-5, 0.1, 1.0, 1e9] {
            let mut shares = [0.0; 5];
            stream.dirichlet(alpha, &mut shares);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{alpha}: {shares:?}");
            assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{alpha}: {shares:?}");
        }
    }
}

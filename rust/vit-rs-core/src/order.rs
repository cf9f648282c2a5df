//! Which samples follow, in which order, and where one batch ends.

use std::ops::Range;

/// Samples in order, and how they are cut into batches.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Position of each sample among those that the pipeline uses. One may come several times.
    pub positions: Vec<u64>,
    /// Draw number of each sample, where it is not its position.
    pub draws: Option<Vec<u64>>,
    /// Samples in a batch; None = all are one batch, even if there are none.
    pub batch_size: Option<usize>,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
}

impl Order {
    /// Samples in the largest batch.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.batch_size.unwrap_or(usize::MAX).min(self.positions.len())
    }

    /// Number of batches.
    #[must_use]
    pub fn batches(&self) -> usize {
        match self.batch_size {
            None => 1,
            Some(size) if self.drop_last => self.positions.len().checked_div(size).unwrap_or(0),
            Some(0) => 0,
            Some(size) => self.positions.len().div_ceil(size),
        }
    }

    /// Which samples are in one batch; none behind the last.
    #[must_use]
    pub fn batch(&self, number: usize) -> Range<usize> {
        let size = self.batch_size.unwrap_or(self.positions.len());
        let start = number.saturating_mul(size).min(self.positions.len());
        start..start.saturating_add(size).min(self.positions.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(batch_size: Option<usize>, drop_last: bool, samples: u64) -> Vec<Range<usize>> {
        let positions = (0..samples).collect();
        let order = Order { positions, draws: None, batch_size, drop_last };
        let listed: Vec<_> = (0..order.batches()).map(|number| order.batch(number)).collect();
        assert!(order.batch(listed.len() + 1).is_empty());
        assert!(listed.iter().all(|batch| batch.len() <= order.largest()));
        listed
    }

    #[test]
    fn batches_hold_every_sample_once() {
        assert_eq!(listed(Some(3), false, 7), [0..3, 3..6, 6..7]);
        assert_eq!(listed(Some(3), true, 7), [0..3, 3..6]);
        assert_eq!(listed(Some(usize::MAX), false, 7), vec![0..7; 1]);
        assert!(listed(Some(3), false, 0).is_empty());
    }

    #[test]
    fn without_a_size_all_are_one_batch() {
        assert_eq!(listed(None, false, 7), vec![0..7; 1]);
        assert_eq!(listed(None, true, 0), vec![0..0; 1]);
    }

    #[test]
    fn batches_of_nothing_are_none() {
        assert!(listed(Some(0), false, 7).is_empty() && listed(Some(0), true, 7).is_empty());
    }
}

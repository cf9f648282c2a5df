//! Which samples an epoch has, in which order.

/// The samples of one epoch, in order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Epoch number, a part of every key.
    pub epoch: u64,
    /// Position of each sample among those that the pipeline uses.
    pub positions: Vec<u64>,
    /// Draw number of each sample, where it is not its position.
    pub draws: Option<Vec<u64>>,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
}

impl Order {
    /// Number of batches of at most `batch_size` samples.
    #[must_use]
    pub fn batches(&self, batch_size: usize) -> usize {
        if self.drop_last {
            self.positions.len() / batch_size
        } else {
            self.positions.len().div_ceil(batch_size)
        }
    }

    /// The positions of one batch; none behind the last.
    #[must_use]
    pub fn batch(&self, number: usize, batch_size: usize) -> &[u64] {
        let rest = self.positions.get(number * batch_size..).unwrap_or_default();
        &rest[..batch_size.min(rest.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_position_once() {
        let order =
            |drop_last| Order { epoch: 0, positions: (0..7).collect(), draws: None, drop_last };
        let listed = |order: &Order| -> Vec<Vec<u64>> {
            (0..order.batches(3)).map(|number| order.batch(number, 3).to_vec()).collect()
        };
        assert_eq!(listed(&order(false)), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
        assert_eq!(listed(&order(true)), [[0, 1, 2], [3, 4, 5]]);
        assert!(order(false).batch(3, 3).is_empty());
    }
}

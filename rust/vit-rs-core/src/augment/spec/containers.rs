//! Operations made of operations.

use std::sync::Arc;

use super::{Domain, Drawing, Op, check_probability};
use crate::error::{Error, Result};
use crate::image::Size;
use crate::rng::Stream;

/// All of these with one probability, or none.
#[derive(Clone, Debug)]
pub struct RandomApply {
    /// What is done, in order.
    pub ops: Vec<Arc<dyn Op>>,
    /// How often.
    pub p: f64,
}

impl Op for RandomApply {
    fn check(&self) -> Result<()> {
        check_probability(self.p)?;
        self.ops.iter().try_for_each(|op| op.check())
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        self.ops.iter().try_for_each(|op| op.check_for(domain))
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        if stream.chance(self.p) {
            self.ops.iter().try_for_each(|op| drawing.run(&**op))?;
        }
        Ok(())
    }

    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        let after = self.ops.iter().fold(before, |size, op| op.output_size(size));
        if self.p >= 1.0 { after } else { agreed([before, after].into_iter()) }
    }

    fn count(&self) -> usize {
        1 + self.ops.iter().map(|op| op.count()).sum::<usize>()
    }
}

/// One of several chains.
#[derive(Clone, Debug)]
pub struct RandomChoice {
    /// The chains.
    pub chains: Vec<Vec<Arc<dyn Op>>>,
    /// How likely each is, relative to the others.
    pub weights: Vec<f64>,
}

impl Op for RandomChoice {
    fn check(&self) -> Result<()> {
        let sum: f64 = self.weights.iter().sum();
        let fine = !self.chains.is_empty()
            && self.chains.len() == self.weights.len()
            && self.weights.iter().all(|&weight| weight >= 0.0)
            && sum.is_finite()
            && sum > 0.0;
        if !fine {
            return Err(Error::argument(format!(
                "each of the {} choices needs a probability of at least 0, and one above it; got {:?}",
                self.chains.len(),
                self.weights
            )));
        }
        self.chains.iter().flatten().try_for_each(|op| op.check())
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        self.chains.iter().flatten().try_for_each(|op| op.check_for(domain))
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let chosen = weighted(&self.weights, stream);
        let chain = chosen.and_then(|at| self.chains.get(at));
        chain.into_iter().flatten().try_for_each(|op| drawing.run(&**op))
    }

    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        let after =
            |chain: &Vec<Arc<dyn Op>>| chain.iter().fold(before, |size, op| op.output_size(size));
        agreed(self.chains.iter().map(after))
    }

    fn count(&self) -> usize {
        1 + self.chains.iter().flatten().map(|op| op.count()).sum::<usize>()
    }
}

/// All of these, in an order drawn each time.
#[derive(Clone, Debug)]
pub struct RandomOrder(pub Vec<Arc<dyn Op>>);

impl Op for RandomOrder {
    fn check(&self) -> Result<()> {
        self.0.iter().try_for_each(|op| op.check())
    }

    fn check_for(&self, domain: Domain) -> Result<()> {
        self.0.iter().try_for_each(|op| op.check_for(domain))
    }

    fn draw(&self, drawing: &mut Drawing, stream: &mut Stream) -> Result<()> {
        let mut order: Vec<&Arc<dyn Op>> = self.0.iter().collect();
        stream.shuffle(&mut order);
        order.into_iter().try_for_each(|op| drawing.run(&**op))
    }

    fn output_size(&self, before: Option<Size>) -> Option<Size> {
        // Known only where each operation leaves one size, whatever came before, or leaves the size alone.
        let after = self.0.iter().map(|op| op.output_size(before));
        agreed(after.chain([before]))
    }

    fn count(&self) -> usize {
        1 + self.0.iter().map(|op| op.count()).sum::<usize>()
    }
}

/// The size that all of these are.
fn agreed(mut sizes: impl Iterator<Item = Option<Size>>) -> Option<Size> {
    let first = sizes.next()??;
    sizes.all(|size| size == Some(first)).then_some(first)
}

/// The number of an item, each as likely as its weight; None where all weights are 0.
pub(super) fn weighted(weights: &[f64], stream: &mut Stream) -> Option<usize> {
    let mut left = stream.unit() * weights.iter().sum::<f64>();
    let passed = |&weight: &f64| {
        left -= weight;
        left < 0.0
    };
    // Rounding may leave nothing at the end: the last one that can be chosen stands there.
    let chosen = weights.iter().position(passed);
    chosen.or_else(|| weights.iter().rposition(|&weight| weight > 0.0))
}

//! Which part of the data is for learning, for choosing and for reporting: by group, exactly, from a seed.

use crate::sampling::rng;
use anyhow::{Result, bail};
use rand::seq::SliceRandom;

/// Shares of the groups that become dev and test; the rest is train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// For choosing.
    pub dev: f64,
    /// For reporting.
    pub test: f64,
}

impl Shares {
    /// Shares from 0, together below 1.
    pub fn new(dev: f64, test: f64) -> Result<Self> {
        let share = |share: f64| (0.0..1.0).contains(&share);
        if !share(dev) || !share(test) || dev + test >= 1.0 {
            bail!(
                "--dev-share is {dev} and --test-share is {test}; each has to be from 0 to 1, and both together below \
                 1 so that something is left to train on"
            );
        }
        Ok(Self { dev, test })
    }

    /// The split of each of `groups` groups; a share above 0 gets at least one of them.
    pub fn assign(&self, groups: usize, what: &str, seed: u64) -> Result<Vec<&'static str>> {
        let count = |share: f64| match share {
            0.0 => 0,
            share => ((share * groups as f64).round() as usize).max(1),
        };
        let (dev, test) = (count(self.dev), count(self.test));
        if dev + test >= groups {
            bail!(
                "{groups} {what} cannot be split: {dev} for dev and {test} for test leave none to train on; give more \
                 data or smaller shares"
            );
        }
        let mut order: Vec<usize> = (0..groups).collect();
        order.shuffle(&mut rng(seed, "splits", 0));
        let mut splits = vec!["train"; groups];
        for (place, group) in order.into_iter().take(dev + test).enumerate() {
            splits[group] = if place < dev { "dev" } else { "test" };
        }
        Ok(splits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A split that changes between two imports of one file makes every comparison of two students worthless.
    #[test]
    fn shares_are_exact_and_depend_on_the_seed_alone() {
        let shares = Shares::new(0.1, 0.2).unwrap();
        let splits = shares.assign(50, "queries", 3).unwrap();
        let count = |name: &str| splits.iter().filter(|split| **split == name).count();
        assert_eq!((count("train"), count("dev"), count("test")), (35, 5, 10));
        assert_eq!(splits, shares.assign(50, "queries", 3).unwrap());
        assert_ne!(splits, shares.assign(50, "queries", 4).unwrap());
        assert_eq!(Shares::new(0.0, 0.0).unwrap().assign(2, "queries", 3).unwrap(), ["train", "train"]);
        assert!(
            shares.assign(2, "queries", 3).unwrap_err().to_string().contains("2 queries cannot be split")
        );
        for (dev, test) in [(-0.1, 0.0), (0.5, 0.5), (f64::NAN, 0.0), (0.0, 1.0)] {
            assert!(Shares::new(dev, test).is_err(), "{dev} {test}");
        }
    }
}

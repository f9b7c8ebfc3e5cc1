//! What was found of the ways of gathering on H200s (`benches/results`): the numbers behind a plan's prediction and
//! behind the choice between ways that a trial has timed alone.

use super::ways::GatherWay;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Bytes a second into each rank from all others.
    pub alone: f64,
    /// While products run without pause.
    pub under_products: f64,
    /// Of the products' speed, what is lost meanwhile.
    pub products_lose: f64,
    /// Of a step, what even the slowest rank waits where all gathers could be hidden.
    pub never_hidden: f64,
}

impl GatherWay {
    /// Among so many GPUs of one host: by `bench gather` on two and on four, which more are taken to be like. It holds
    /// where parts of experts stay in place: products lost about twice as much where copy engines copied them, too.
    pub fn measured(self, world_size: usize) -> Measured {
        let (alone, under_products, percent_lost) = match (self, world_size) {
            (GatherWay::Push, ..=2) => (386.7, 385.2, 4.4),
            (GatherWay::Pull, ..=2) => (369.7, 369.1, 5.1),
            (GatherWay::NcclByCopy, ..=2) => (325.2, 149.5, 6.9),
            (GatherWay::Nccl, ..=2) => (272.7, 154.6, 16.0),
            (GatherWay::Push, _) => (383.4, 379.4, 4.4),
            (GatherWay::Pull, _) => (367.7, 365.7, 5.0),
            (GatherWay::NcclByCopy, _) => (362.3, 182.3, 3.9),
            (GatherWay::Nccl, _) => (332.5, 204.9, 17.6),
        };
        // On four, in steps with 16 rows of 2,048 tokens. NCCL's ways were not looked at there: between the others.
        let percent_waited = match self {
            GatherWay::Push => 2.3,
            GatherWay::Pull => 0.2,
            GatherWay::NcclByCopy | GatherWay::Nccl => 1.0,
        };
        Measured {
            alone: 1e9 * alone,
            under_products: 1e9 * under_products,
            products_lose: percent_lost / 100.0,
            never_hidden: percent_waited / 100.0,
        }
    }
}

impl Measured {
    /// What products take longer by, as a share.
    pub fn slowdown(self) -> f64 {
        self.products_lose / (1.0 - self.products_lose)
    }
}

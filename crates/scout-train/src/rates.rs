//! How fast the parts of a step go: the only numbers of the planner that do not follow from shapes. They were taken on H200s at
//! their power limit (`benches/results`), inside whole steps where not said otherwise.

use scout_comm::gpu::GatherWay;
use scout_config::Gather;

use crate::machine::ComputeType;

/// Bytes a second of kernels that are bound by memory.
pub const MEMORY: f64 = 3.9e12;
/// Operations a second of large products in bf16: 670 to 701 by class in runs of 16,384 tokens, 641 on average in those of
/// 4,096. Those of f32 were not timed: three quarters of what the data sheet names.
const PRODUCTS_BF16: f64 = 670e12;
const PRODUCTS_F32: f64 = 50e12;
/// Rows that an expert's product computes in vain, on average: half a tile.
pub const WASTED_ROWS: f64 = 64.0;
/// From the end of one kernel to when the next one is in full swing.
pub const START: f64 = 4.4e-6;
/// What the host takes to queue one unit's use. Small batches wait for it: about 0.25 ms a layer and direction.
pub const QUEUEING: f64 = 62e-6;
/// Between updates: the waits for losses and norm, and a small collective for each.
pub const END_OF_STEP: f64 = 0.5e-3;
/// What kernels that are bound by memory take longer by while the link is busy, as a share: experts of 128 rows each.
const MEMORY_SLOWDOWN: f64 = 0.13;
/// Bytes a second of rows between the ranks, in pieces of some hundred rows, and how long the first is under way.
pub const ROWS: f64 = 300e9;
pub const FIRST_ROW: f64 = 60e-6;
/// What even the slowest rank waits in each layer and direction for rows and results of others to be there: two short waits.
pub const MEETING: f64 = 25e-6;
/// By how much of their mean the shares of a layer's experts differ, as a standard deviation, where a router decides: what
/// makes the 1.036 that was found with random weights on two ranks (0.18), rounded up. Of a trained router it is not known.
const SPREAD_OF_EXPERTS: f64 = 0.2;
/// Bytes a second and rank of NCCL's reduce-scatter and all-gather when nothing else runs.
pub const REDUCE: f64 = 320e9;

/// Attention by cuDNN, whose speed grows with the length of rows: half of `best` where rows are `half_at` tokens long. From
/// 2,048 and 8,192.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRate {
    best: f64,
    half_at: f64,
}

pub const ATTENTION_FORWARD: AttentionRate = AttentionRate { best: 463e12, half_at: 341.0 };
pub const ATTENTION_BACKWARD: AttentionRate = AttentionRate { best: 399e12, half_at: 648.0 };

impl AttentionRate {
    /// Operations a second.
    pub fn at(self, row_length: f64) -> f64 {
        self.best * row_length / (row_length + self.half_at)
    }
}

pub fn products(compute: ComputeType) -> f64 {
    match compute {
        ComputeType::Bf16 => PRODUCTS_BF16,
        ComputeType::F32 => PRODUCTS_F32,
    }
}

/// How many times an even share of a layer's rows is to be expected at the busiest of so many ranks that share its experts: the
/// largest of so many sums of shares that differ by chance.
pub fn busiest_share(num_experts: usize, world_size: usize) -> f64 {
    let (each, ranks) = (num_experts as f64 / world_size as f64, world_size as f64);
    1.0 + SPREAD_OF_EXPERTS * largest_of(ranks) / each.sqrt()
}

/// What is to be expected of the largest of 1 to 16 numbers that are normally distributed, in standard deviations, within 3 %.
fn largest_of(count: f64) -> f64 {
    0.564 * count.log2().powf(0.84)
}

/// What moves units into a rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bytes a second into one rank from all others, while it computes.
    pub under_products: f64,
    /// While it stands still.
    pub alone: f64,
    /// What arithmetic takes longer by while the link is busy, as a share.
    pub slowdown: f64,
    /// And what is bound by memory.
    pub memory_slowdown: f64,
    /// As of the way.
    pub brings_others_alone: bool,
}

impl Link {
    /// Of pushing, or of what NCCL does best. A trial may find that pulling suits a step better, which differs by little.
    pub fn of(gather: Gather, world_size: usize) -> Link {
        let way = match gather {
            Gather::Auto | Gather::Copy => GatherWay::Push,
            Gather::Nccl => GatherWay::NcclByCopy,
        };
        let measured = way.measured(world_size);
        Link {
            under_products: measured.under_products,
            alone: measured.alone,
            slowdown: measured.slowdown(),
            memory_slowdown: MEMORY_SLOWDOWN,
            brings_others_alone: way.brings_others_alone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewer_experts_a_rank_has_the_busier_is_the_busiest_of_them() {
        let shares = [1, 2, 4, 8, 16].map(|ranks| busiest_share(16, ranks));
        assert_eq!(shares[0], 1.0);
        assert!(shares.is_sorted(), "{shares:?}");
        // As was found with random weights on two ranks.
        assert!((shares[1] - 1.036).abs() < 0.005, "{}", shares[1]);
    }

    #[test]
    fn the_largest_of_normal_numbers_is_as_tables_have_it() {
        for (count, expected) in [(2.0, 0.5642), (3.0, 0.8463), (4.0, 1.0294), (8.0, 1.4236), (16.0, 1.7660)] {
            let found: f64 = largest_of(count) / expected;
            assert!((0.97..=1.03).contains(&found), "{count}: {found}");
        }
    }
}

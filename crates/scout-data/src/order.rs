//! Which rows make up an update, on every rank, as a pure function of seed and update number: a run resumes from one
//! integer, and the number of ranks only changes who computes what. Holds no data.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{DataError, Result};

/// Names what a random stream is for, so that no two uses ever share one.
#[derive(Clone, Copy)]
enum Purpose {
    Epoch = 0,
    HoldOut = 1,
    Packing = 2,
}

fn stream(purpose: Purpose, seed: u64, number: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&number.to_le_bytes());
    key[16] = purpose as u8;
    ChaCha8Rng::from_seed(key)
}

/// A uniform number below `bound`, by rejection, so that no value is favoured.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let zone = u64::MAX - u64::MAX % bound;
    loop {
        let value = rng.next_u64();
        if value < zone {
            return value % bound;
        }
    }
}

fn shuffled(mut rng: ChaCha8Rng, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// The order of `count` things in one epoch.
pub fn permutation(seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    shuffled(stream(Purpose::Epoch, seed, epoch), count)
}

/// A fixed order for packing, which is planned once for all epochs.
pub(crate) fn packing_permutation(seed: u64, count: usize) -> Vec<usize> {
    shuffled(stream(Purpose::Packing, seed, 0), count)
}

/// Splits `count` rows into those to train on and those held out, both in ascending order.
///
/// `val_size` below 1 is a share, rounded up to whole rows; from 1 on it is a number of rows. The choice depends on
/// seed, size and `count` alone.
pub fn hold_out(seed: u64, count: usize, val_size: f64) -> Result<(Vec<usize>, Vec<usize>)> {
    let fail = |problem: String| Err(DataError::Setting { key: "val_size", problem });
    if !(val_size.is_finite() && val_size >= 0.0) {
        return fail(format!("is {val_size}, expected a share below 1 or a number of rows"));
    }
    if val_size >= 1.0 && val_size.fract() != 0.0 {
        return fail(format!("is {val_size}, expected a whole number of rows (or a share below 1)"));
    }
    let held = if val_size < 1.0 { (count as f64 * val_size).ceil() as usize } else { val_size as usize };
    if held > 0 && held >= count {
        return fail(format!("holds out {held} of {count} rows, which leaves none to train on"));
    }
    let mut train = shuffled(stream(Purpose::HoldOut, seed, 0), count);
    let mut held_out = train.split_off(count - held);
    train.sort_unstable();
    held_out.sort_unstable();
    Ok((train, held_out))
}

/// The rows of every micro-batch of an update, `[rank][micro-batch]`.
pub type Dealt = Vec<Vec<Vec<usize>>>;

/// Which rows each rank would compute in an update of the padded trainer. The order of micro-batches and rows is part of
/// the answer.
pub trait UpdateOrder {
    fn world(&self) -> usize;
    /// Micro-batches of one rank in one update.
    fn accumulation(&self) -> usize;
    fn updates_per_epoch(&self) -> u64;
    /// Update `update`, which counts from 0 over all epochs.
    fn update(&self, update: u64) -> Dealt;
    /// All updates of an epoch, whose rows are permuted only once for them.
    fn epoch(&self, epoch: u64) -> Box<dyn Iterator<Item = Dealt> + '_>;
}

/// How the rows of an update are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dealing {
    /// Ranks.
    pub world: usize,
    /// Rows in a micro-batch.
    pub batch: usize,
    /// Micro-batches a rank computes in an update.
    pub accumulation: usize,
}

/// Whether rows are permuted anew in every epoch or stay as they stand in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    Seeded(u64),
    Off,
}

/// Rows dealt to micro-batches of equal count.
///
/// Micro-batch m of an epoch takes on rank r the rows `order[(m·world + r)·batch … + batch]`; an update is
/// `accumulation` consecutive m, and the last one of an epoch wraps to the epoch's start. So the set of rows of an
/// update depends only on the product of the three numbers of `Dealing`.
#[derive(Debug, Clone)]
pub struct SampleOrder {
    count: usize,
    dealing: Dealing,
    shuffle: Shuffle,
}

impl SampleOrder {
    pub fn new(count: usize, dealing: Dealing, shuffle: Shuffle) -> Result<SampleOrder> {
        let parts = [
            ("per_device_train_batch_size", dealing.batch),
            ("gradient_accumulation_steps", dealing.accumulation),
            ("world", dealing.world),
            ("dataset", count),
        ];
        match parts.into_iter().find(|(_, number)| *number == 0) {
            None => Ok(SampleOrder { count, dealing, shuffle }),
            Some((key, _)) => Err(DataError::Setting { key, problem: "is 0, expected at least 1".to_string() }),
        }
    }

    /// The order of all rows in one epoch.
    fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        match self.shuffle {
            Shuffle::Seeded(seed) => permutation(seed, epoch, self.count),
            Shuffle::Off => (0..self.count).collect(),
        }
    }

    /// An update of an epoch with that order.
    fn deal(&self, order: &[usize], update: usize) -> Dealt {
        let Dealing { world, batch, accumulation } = self.dealing;
        let first = update * accumulation;
        let micro_batch = |m: usize, rank: usize| {
            let start = (m * world + rank) * batch;
            (start..start + batch).map(|position| order[position % self.count]).collect()
        };
        let of_rank = |rank| (first..first + accumulation).map(|m| micro_batch(m, rank)).collect();
        (0..world).map(of_rank).collect()
    }
}

impl UpdateOrder for SampleOrder {
    fn world(&self) -> usize {
        self.dealing.world
    }

    fn accumulation(&self) -> usize {
        self.dealing.accumulation
    }

    fn updates_per_epoch(&self) -> u64 {
        let micro_batches = self.count.div_ceil(self.dealing.world * self.dealing.batch);
        micro_batches.div_ceil(self.dealing.accumulation) as u64
    }

    fn update(&self, update: u64) -> Dealt {
        let of_epoch = self.updates_per_epoch();
        self.deal(&self.epoch_order(update / of_epoch), (update % of_epoch) as usize)
    }

    fn epoch(&self, epoch: u64) -> Box<dyn Iterator<Item = Dealt> + '_> {
        let order = self.epoch_order(epoch);
        Box::new((0..self.updates_per_epoch() as usize).map(move |update| self.deal(&order, update)))
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;

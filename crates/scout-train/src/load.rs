//! From files to memory: weights into a shard store, an adapter folder into trained state. Which bytes are read is the
//! plan's word; this module only asks the files for them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use scout_checkpoint::{AdapterSettings, LoadedAdapter, ModelFolder, read_adapter};
use scout_comm::Communicator;
use scout_core::{ByteCount, Mesh, ParamSpec, Projection, Rank, UnitSpec};
use scout_device::Account;
use scout_model::lora::{Factor, modules};
use scout_model::{LoraLayout, LoraSettings, ModelConfig};
use scout_shard::{ShardPlan, ShardStore};

use crate::adapter::AdapterState;
use crate::error::Result;
use crate::readers::Readers;
use crate::sums::sum_over_ranks;

/// Reads what `rank` keeps, and nothing else.
pub fn weights(files: &ModelFolder, plan: &ShardPlan, rank: Rank, account: &Account) -> Result<ShardStore> {
    weights_by(files, plan, rank, account, &mut Readers::default())
}

/// The same, where somebody wants to hear of it or to say how many threads read.
pub fn weights_by(
    files: &ModelFolder,
    plan: &ShardPlan,
    rank: Rank,
    account: &Account,
    readers: &mut Readers,
) -> Result<ShardStore> {
    readers.begin(stored_bytes(files, plan, rank)?);
    ShardStore::load(plan, rank, account, &mut |unit, range, out| unit_by(files, unit, range, out, readers))
}

/// Reads a range of a unit's elements by several threads, each of which writes to parts of `out`.
fn unit_by(
    files: &ModelFolder,
    unit: &UnitSpec,
    range: Range<usize>,
    mut out: &mut [f32],
    readers: &mut Readers,
) -> Result<()> {
    let limit = (readers.chunk().0 as usize / size_of::<f32>()).max(1);
    let (mut jobs, mut bytes) = (Vec::new(), ByteCount(0));
    for (param, range) in pieces(unit, range) {
        bytes += files.stored_bytes(&param.name, range.len())?;
        for part in parts(range, limit) {
            let (here, rest) = out.split_at_mut(part.len());
            jobs.push((param, part, here));
            out = rest;
        }
    }
    readers.share_out(bytes, jobs, |jobs| {
        while let Some((param, range, out)) = jobs.next() {
            let bytes = files.stored_bytes(&param.name, range.len())?;
            files.read_f32(&param.name, range, out)?;
            jobs.did(bytes);
        }
        Ok(())
    })
}

/// What a rank read of the weight files, headers not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub bytes: ByteCount,
    pub took: Duration,
}

impl Reading {
    /// One sentence about the reading of all ranks, the same on each of them. Waits until all have read.
    pub fn on_all_ranks(self, comm: &dyn Communicator) -> Result<String> {
        let [bytes, seconds] = sum_over_ranks(comm, [self.bytes.as_f64(), self.took.as_secs_f64()])?;
        let num_ranks = comm.mesh().size() as f64;
        let in_words = |bytes: f64| ByteCount(bytes as u64).to_string();
        // A clock may not notice the reading of a toy.
        let (each, rate) = (in_words(bytes / num_ranks), in_words(bytes / seconds.max(1e-6)));
        Ok(match comm.mesh().size() {
            1 => format!("read {each} of weights at {rate}/s"),
            _ => format!("read {each} of weights a rank, {} in all, at {rate}/s a rank", in_words(bytes)),
        })
    }
}

/// Bytes of what `rank` keeps, as the files store it: reading its weights reads exactly these, beside headers.
pub fn stored_bytes(files: &ModelFolder, plan: &ShardPlan, rank: Rank) -> Result<ByteCount> {
    let mut bytes = ByteCount(0);
    for unit in plan.units() {
        for (param, range) in pieces(&unit.spec, plan.kept(unit.spec.id, rank)) {
            bytes += files.stored_bytes(&param.name, range.len())?;
        }
    }
    Ok(bytes)
}

/// Splits a range of a unit's elements, which may span several parameters, and fills `out` piece by piece.
pub fn each_param(
    unit: &UnitSpec,
    range: Range<usize>,
    mut out: &mut [f32],
    mut fill: impl FnMut(&ParamSpec, Range<usize>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    for (param, range) in pieces(unit, range) {
        let (here, rest) = out.split_at_mut(range.len());
        fill(param, range, here)?;
        out = rest;
    }
    Ok(())
}

/// The parts of single parameters that make up a range of a unit's elements.
pub(crate) fn pieces(unit: &UnitSpec, range: Range<usize>) -> impl Iterator<Item = (&ParamSpec, Range<usize>)> {
    let starts = unit.params.iter().scan(0, |next, param| {
        let before = *next;
        *next += param.num_elements();
        Some(before)
    });
    unit.params.iter().zip(starts).filter_map(move |(param, before)| {
        let (start, end) = (range.start.max(before), range.end.min(before + param.num_elements()));
        (start < end).then(|| (param, start - before..end - before))
    })
}

/// A range in parts of at most `limit`.
pub(crate) fn parts(range: Range<usize>, limit: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(limit).map(move |start| start..range.end.min(start + limit))
}

/// Reads an adapter made for a model of these shapes.
pub fn adapter(folder: &Path, config: &ModelConfig) -> Result<LoadedAdapter> {
    let modules_for = |settings: &AdapterSettings, projections: &BTreeSet<Projection>| {
        modules(config, &lora_settings(settings, projections))
    };
    Ok(read_adapter(folder, &modules_for)?)
}

/// Trained state that starts from a loaded adapter.
pub fn adapter_state(
    loaded: &LoadedAdapter,
    config: &ModelConfig,
    mesh: Mesh,
    account: &Account,
) -> Result<AdapterState> {
    let layout = LoraLayout::new(config, &lora_settings(&loaded.settings, &loaded.projections));
    let mut values = vec![0.0; layout.num_elements()];
    for (index, (a, b)) in loaded.factors.iter().enumerate() {
        values[layout.range(index, Factor::A)].copy_from_slice(a);
        values[layout.range(index, Factor::B)].copy_from_slice(b);
    }
    AdapterState::new(Arc::new(layout), values, mesh, account)
}

pub fn lora_settings(settings: &AdapterSettings, projections: &BTreeSet<Projection>) -> LoraSettings {
    LoraSettings {
        rank: settings.rank,
        alpha: settings.alpha,
        use_rslora: settings.use_rslora,
        projections: projections.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scout_comm::{Job, local_group};

    #[test]
    fn the_reading_of_all_ranks_is_one_sentence() {
        let reading = |kib: u64, seconds| Reading { bytes: ByteCount(kib << 10), took: Duration::from_secs(seconds) };
        let alone = Job::alone(Duration::from_secs(20));
        let said = reading(512, 2).on_all_ranks(&*alone.comm).unwrap();
        assert_eq!(said, "read 512.00 KiB of weights at 256.00 KiB/s");
        let said = std::thread::scope(|scope| {
            let group = local_group(2, Duration::from_secs(20)).into_iter();
            let say = |(kib, comm)| scope.spawn(move || reading(kib, 1).on_all_ranks(&comm).unwrap());
            let ranks: Vec<_> = [512, 256].into_iter().zip(group).map(say).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        let expected = "read 384.00 KiB of weights a rank, 768.00 KiB in all, at 384.00 KiB/s a rank";
        assert_eq!(said, [expected, expected]);
    }
}

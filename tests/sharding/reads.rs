//! What is read of the weight files: every rank reads the bytes it keeps, and headers, and nothing else. Shown by the
//! reader's own count, and by files that hold not a single number outside of a rank's shard.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use scout_checkpoint::{ModelFolder, TensorFile};
use scout_core::{ByteCount, DType, Rank};
use scout_device::Account;
use scout_model::{ModelConfig, NameStyle, UnitPlan};
use scout_shard::{ShardPlan, none_resident};
use scout_tests::fixtures;
use scout_train::load;
use scout_train::verify::{Holding, Status, on_threads, verify_on_rank};

use crate::backends::Backend;
use crate::rig::{Recipe, Toy};

fn plan_of(folder: &Path, world_size: usize) -> ShardPlan {
    let config = ModelConfig::read(&folder.join("config.json")).unwrap();
    let style = NameStyle::of_names(ModelFolder::open(folder).unwrap().names());
    ShardPlan::new(UnitPlan::new(&config, style).units(), world_size, &none_resident, 2)
}

fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_weights = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    paths.filter(is_weights).collect()
}

/// Elements of each parameter that `rank` keeps.
fn kept_of_params(plan: &ShardPlan, rank: Rank) -> Vec<(String, Range<usize>)> {
    let mut kept = Vec::new();
    for unit in plan.units() {
        let range = plan.kept(unit.spec.id, rank);
        let mut start = 0;
        for param in &unit.spec.params {
            let inside = |element: usize| element.clamp(start, start + param.num_elements()) - start;
            kept.push((param.name.clone(), inside(range.start)..inside(range.end)));
            start += param.num_elements();
        }
    }
    kept
}

#[test]
fn every_rank_reads_its_shard_and_headers_and_nothing_else() {
    let [single, half] = [DType::F32, DType::BF16].map(Toy::new);
    let folders = [
        (fixtures().join("tiny-scout"), 4),
        (fixtures().join("tiny-scout-vision"), 4),
        (single.model(), 4),
        (half.model(), 2),
    ];
    for (folder, element_bytes) in folders {
        let files = weight_files(&folder);
        let headers: u64 =
            files.iter().map(|path| 8 + u64::from_le_bytes(fs::read(path).unwrap()[..8].try_into().unwrap())).sum();
        for world_size in 1..=8 {
            let plan = plan_of(&folder, world_size);
            let of_model: usize = plan.units().iter().map(|unit| unit.spec.num_elements()).sum();
            let mut sum = 0;
            for rank in (0..world_size).map(Rank) {
                let files = ModelFolder::open(&folder).unwrap();
                assert_eq!((files.bytes_read(), files.header_bytes_read()), (ByteCount(0), ByteCount(headers)));
                let account = Account::new(None);
                let _store = load::weights(&files, &plan, rank, &account).unwrap();
                let kept: usize = plan.units().iter().map(|unit| plan.kept(unit.spec.id, rank).len()).sum();
                let expected = ByteCount((kept * element_bytes) as u64);
                let what = format!("rank {rank} of {world_size} in {}", folder.display());
                assert_eq!(files.bytes_read(), expected, "{what}");
                assert_eq!(load::stored_bytes(&files, &plan, rank).unwrap(), expected, "{what}");
                assert_eq!(files.header_bytes_read(), ByteCount(headers), "{what}");
                sum += files.bytes_read().0;
            }
            assert_eq!(sum, (of_model * element_bytes) as u64, "{world_size} ranks, {}", folder.display());
        }
        // Nothing of a text model is left out, and nothing but the vision tower of the other.
        let total = ModelFolder::open(&folder).unwrap().total_bytes();
        let of_units = ByteCount((plan_of(&folder, 1).kept_bytes().0 / 4) * element_bytes as u64);
        assert_eq!(total > of_units, folder.ends_with("tiny-scout-vision"), "{total} {of_units}");
    }
}

/// A copy of a model folder in which every byte of weights that `rank` does not keep is part of a NaN.
fn only_for(rank: Rank, plan: &ShardPlan, folder: &Path) -> tempfile::TempDir {
    let target = tempfile::tempdir().unwrap();
    copy(folder, target.path());
    let kept = kept_of_params(plan, rank);
    for path in weight_files(target.path()) {
        let file = TensorFile::open(&path).unwrap();
        let original = fs::read(&path).unwrap();
        let data_start = file.header_bytes_read() as usize;
        let mut bytes = original.clone();
        bytes[data_start..].fill(0xff);
        for entry in file.entries() {
            let Some((_, range)) = kept.iter().find(|(name, _)| *name == entry.name) else { continue };
            let element_bytes = entry.num_bytes() as usize / entry.shape.num_elements();
            let at = |element: usize| data_start + entry.bytes.start as usize + element * element_bytes;
            bytes[at(range.start)..at(range.end)].copy_from_slice(&original[at(range.start)..at(range.end)]);
        }
        fs::write(&path, bytes).unwrap();
    }
    target
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::write(to, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

#[test]
fn ranks_whose_files_hold_nothing_but_their_shards_train_to_the_same_bits() {
    let toy = Toy::new(DType::BF16);
    for world_size in [2, 3, 8] {
        let whole = toy.config(&[]);
        let recipe = Recipe { config: &whole, world_size, num_steps: 2, lookahead: None };
        let plan = plan_of(&toy.model(), world_size);
        let folders: Vec<_> = (0..world_size).map(|rank| only_for(Rank(rank), &plan, &toy.model())).collect();
        let configs: Vec<_> = folders.iter().map(|folder| toy.config_of(folder.path(), &[])).collect();
        let expected = recipe.train_on(Backend::Local);
        for (found, expected) in recipe.train_each(Backend::Local, &configs).iter().zip(&expected) {
            assert_eq!(found.reports, expected.reports, "{world_size} ranks");
            assert!(found.adapter == expected.adapter, "{world_size} ranks");
        }
        // In the files of another rank, a rank finds no number where it looks for its own.
        let account = Account::new(None);
        let of_another = ModelFolder::open(folders[1].path()).unwrap();
        assert!(load::weights(&of_another, &plan, Rank(0), &account).is_err());
    }
}

#[test]
fn recorded_numbers_are_verified_by_ranks_that_could_not_read_more_than_their_shards() {
    let folder = fixtures().join("tiny-scout");
    let plan = plan_of(&folder, 3);
    let folders: Vec<_> = (0..3).map(|rank| only_for(Rank(rank), &plan, &folder)).collect();
    let deadline = std::time::Duration::from_secs(100);
    let verdict = on_threads(3, deadline, |job| {
        verify_on_rank(folders[job.mesh().rank().0].path(), job, (&3.into(), Holding::default()))
    })
    .unwrap();
    let rows = verdict.all_rows();
    let failed: Vec<_> = rows.iter().filter(|row| row.status == Status::Fail).collect();
    assert!(failed.is_empty() && rows.len() > 500, "{} rows, {failed:?}", rows.len());
}

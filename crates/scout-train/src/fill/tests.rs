//! Filling, with plain memory in place of a GPU.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use scout_model::{NameStyle, UnitPlan};
use scout_shard::none_resident;
use tempfile::TempDir;

use super::*;
use crate::error::TrainError;
use crate::synth::{self, SynthRequest, SynthShape};

/// Small, so that a toy has many of them; not a power of two, so that they end in the middle of rows.
const TEST_CHUNK: ByteCount = ByteCount(10_001);

/// Memory of a rank, one run of bytes a unit.
struct Host {
    kept: Mutex<Vec<Vec<u8>>>,
    element_bytes: usize,
    seen: Mutex<Seen>,
    /// The chunk that cannot be sent, counted from 0.
    fails_at: Option<usize>,
}

#[derive(Debug, Default)]
struct Seen {
    num_buffers: usize,
    longest_buffer: usize,
    num_sent: usize,
    on_their_way: usize,
    most_on_their_way: usize,
}

impl Host {
    fn new(plan: &ShardPlan) -> Host {
        let element_bytes = element_bytes(plan.dtype());
        let kept = plan.units().iter().map(|unit| vec![0; unit.shard_len * element_bytes]).collect();
        Host { kept: Mutex::new(kept), element_bytes, seen: Mutex::default(), fails_at: None }
    }
}

impl Sink for Host {
    type Buffer = Vec<u8>;
    type UnderWay = (Vec<u8>, usize, Range<usize>);

    fn buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        let mut seen = self.seen.lock().unwrap();
        seen.num_buffers += 1;
        seen.longest_buffer = seen.longest_buffer.max(bytes);
        Ok(vec![0xff; bytes])
    }

    fn bytes_of<'b>(&self, buffer: &'b mut Vec<u8>) -> &'b mut [u8] {
        buffer
    }

    fn send(&self, buffer: Vec<u8>, chunk: &Chunk) -> Result<Self::UnderWay> {
        let mut seen = self.seen.lock().unwrap();
        if self.fails_at == Some(seen.num_sent) {
            return Err(TrainError::Config { key: "test", problem: "cannot be sent".to_string() });
        }
        seen.num_sent += 1;
        seen.on_their_way += 1;
        seen.most_on_their_way = seen.most_on_their_way.max(seen.on_their_way);
        Ok((buffer, chunk.unit_index, chunk.to.clone()))
    }

    /// Arrives as late as it may: until then nobody may touch the buffer.
    fn wait(&self, (buffer, unit_index, to): Self::UnderWay) -> Result<Vec<u8>> {
        self.seen.lock().unwrap().on_their_way -= 1;
        let to = to.start * self.element_bytes..to.end * self.element_bytes;
        let num_bytes = to.len();
        self.kept.lock().unwrap()[unit_index][to].copy_from_slice(&buffer[..num_bytes]);
        Ok(buffer)
    }
}

fn toy(dtype: DType) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let request = SynthRequest { shape: SynthShape::Tiny, num_layers: Some(1), dtype, seed: 3 };
    synth::write_folder(folder.path(), &request).unwrap();
    folder
}

fn plan(num_ranks: usize, dtype: DType) -> ShardPlan {
    let config = synth::config(SynthShape::Tiny, Some(1));
    let units = UnitPlan::new(&config, NameStyle::Text);
    ShardPlan::new(units.units(), num_ranks, &none_resident, 1).stored_as(dtype)
}

fn readers<'a>(count: usize) -> Readers<'a> {
    Readers::new(count).in_chunks_of(TEST_CHUNK)
}

/// What a rank keeps, padding included, read number by number.
fn expected(files: &ModelFolder, plan: &ShardPlan, rank: Rank) -> Vec<Vec<u8>> {
    let of_unit = |unit: &scout_shard::UnitShard| {
        let mut values = vec![0.0; unit.shard_len];
        let kept = plan.kept(unit.spec.id, rank);
        let out = &mut values[..kept.len()];
        load::each_param(&unit.spec, kept, out, |param, range, out| Ok(files.read_f32(&param.name, range, out)?))
            .unwrap();
        // What is stored in bf16 is not rounded; what is stored in f32 is rounded as the host's own numbers are.
        let bytes_of = |value: f32| match plan.dtype() {
            DType::F32 => value.to_le_bytes().to_vec(),
            _ => bf16_of(value).to_le_bytes().to_vec(),
        };
        values.into_iter().flat_map(bytes_of).collect()
    };
    plan.units().iter().map(of_unit).collect()
}

/// To nearest, ties to even.
fn bf16_of(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[test]
fn every_rank_is_given_exactly_what_it_keeps() {
    for stored in [DType::F32, DType::BF16] {
        let folder = toy(stored);
        for (wanted, num_ranks) in [DType::F32, DType::BF16].into_iter().flat_map(|wanted| [(wanted, 1), (wanted, 3)]) {
            let plan = plan(num_ranks, wanted);
            for (rank, count) in (0..num_ranks).flat_map(|rank| [(Rank(rank), 1), (Rank(rank), 4)]) {
                let files = ModelFolder::open(folder.path()).unwrap();
                let host = Host::new(&plan);
                fill(&files, (&plan, rank), &host, &mut readers(count)).unwrap();
                let what = format!("{stored} as {wanted}, rank {rank} of {num_ranks}, {count} readers");
                assert_eq!(files.bytes_read(), load::stored_bytes(&files, &plan, rank).unwrap(), "{what}");
                assert!(host.kept.into_inner().unwrap() == expected(&files, &plan, rank), "{what}");
            }
        }
    }
}

#[test]
fn readers_have_two_buffers_each_and_use_them_again() {
    let folder = toy(DType::F32);
    let (files, plan) = (ModelFolder::open(folder.path()).unwrap(), plan(1, DType::BF16));
    for count in [1, 3] {
        let host = Host::new(&plan);
        fill(&files, (&plan, Rank(0)), &host, &mut readers(count)).unwrap();
        let seen = host.seen.into_inner().unwrap();
        assert!(seen.num_sent > 20 && seen.on_their_way == 0, "{seen:?}");
        assert!(seen.num_buffers <= BUFFERS * count && seen.most_on_their_way <= BUFFERS * count, "{seen:?}");
        assert!(seen.longest_buffer as u64 <= TEST_CHUNK.0, "{seen:?}");
        if count == 1 {
            assert_eq!((seen.num_buffers, seen.most_on_their_way), (BUFFERS, BUFFERS), "{seen:?}");
        }
    }
}

/// Writes over one number of a tensor.
fn spoil(folder: &Path, name: &str, index: usize, bytes: &[u8]) {
    let files = ModelFolder::open(folder).unwrap();
    let (path, place) = files.place(name, index..index + 1).unwrap();
    assert_eq!(place.end - place.start, bytes.len() as u64);
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, place.start).unwrap();
}

#[test]
fn a_weight_that_is_not_a_number_is_refused_by_the_rank_that_keeps_it() {
    let name = "lm_head.weight";
    for (stored, nan) in [(DType::F32, &f32::NAN.to_le_bytes()[..]), (DType::BF16, &0xff80u16.to_le_bytes()[..])] {
        let folder = toy(stored);
        let last = ModelFolder::open(folder.path()).unwrap().shape(name).unwrap().num_elements() - 1;
        spoil(folder.path(), name, last, nan);
        for wanted in [DType::F32, DType::BF16] {
            let plan = plan(2, wanted);
            let read = |rank| {
                let files = ModelFolder::open(folder.path()).unwrap();
                fill(&files, (&plan, Rank(rank)), &Host::new(&plan), &mut readers(3))
            };
            read(0).unwrap();
            let error = read(1).unwrap_err();
            assert_eq!(error.exit_code().code(), 65, "{error}");
            let (said, place) = (error.with_causes(), format!("at index {last}"));
            assert!(said.contains(name) && said.contains("model.safetensors") && said.contains(&place), "{said}");
        }
    }
}

#[test]
fn a_number_that_bf16_cannot_hold_is_refused() {
    let folder = toy(DType::F32);
    spoil(folder.path(), "lm_head.weight", 5, &f32::MAX.to_le_bytes());
    let files = ModelFolder::open(folder.path()).unwrap();
    let read = |dtype| {
        let plan = plan(1, dtype);
        fill(&files, (&plan, Rank(0)), &Host::new(&plan), &mut readers(2))
    };
    read(DType::F32).unwrap();
    let error = read(DType::BF16).unwrap_err();
    assert!(error.with_causes().contains("lm_head.weight") && error.exit_code().code() == 65, "{error}");
}

#[test]
fn what_fails_in_one_reader_is_what_filling_returns() {
    let folder = toy(DType::BF16);
    let (files, plan) = (ModelFolder::open(folder.path()).unwrap(), plan(1, DType::BF16));
    for count in [1, 4] {
        let host = Host { fails_at: Some(7), ..Host::new(&plan) };
        let error = fill(&files, (&plan, Rank(0)), &host, &mut readers(count)).unwrap_err();
        assert!(error.with_causes().contains("cannot be sent"), "{error}");
    }
}

#[test]
fn a_file_that_shrinks_meanwhile_is_named() {
    let folder = toy(DType::BF16);
    let (files, plan) = (ModelFolder::open(folder.path()).unwrap(), plan(1, DType::BF16));
    let (path, place) = files.place("lm_head.weight", 0..1).unwrap();
    OpenOptions::new().write(true).open(path).unwrap().set_len(place.start).unwrap();
    let error = fill(&files, (&plan, Rank(0)), &Host::new(&plan), &mut readers(4)).unwrap_err();
    assert!(error.with_causes().contains("model.safetensors"), "{}", error.with_causes());
    assert_eq!(error.exit_code().code(), 74);
}

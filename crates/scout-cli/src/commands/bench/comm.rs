//! `bench comm`: collectives between GPUs by NCCL, in the columns of `nccl-tests`, so that numbers can be put side by side.
//! Results lie beside their inputs and are compared, element by element, with what they must be.

use std::path::PathBuf;
use std::sync::Arc;

use scout_comm::{Job, gpu};
use scout_core::{ByteCount, DType, ExitCode};
use scout_device::cuda::{CudaDevice, CudaOptions, DeviceBuffer, Nccl, Settings};
use scout_device::{Device, DeviceError, Tensor};
use scout_train::TrainError;
use serde_json::{Value, json};

use super::{meeting, told};
use crate::commands::machine::must_be_alone;
use crate::commands::output::Output;
use crate::commands::results::results;
use crate::failure::Mistake;
use crate::joined::{INIT_TIMEOUT, Identity, Waits};
use crate::ranks::Seat;
use crate::surroundings::{self, print};

/// As many as `nccl-tests` runs when it is told nothing else.
const WARM_UP: usize = 5;
const TIMED: usize = 20;
/// What a GPU needs beside input and result.
const BESIDE: ByteCount = ByteCount(256 << 20);

#[derive(clap::Args)]
pub struct Comm {
    /// The smallest size, in bytes
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1 << 10..=1 << 34))]
    bytes_min: u64,
    /// Sizes double up to this one, in bytes
    #[arg(long, default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1 << 10..=1 << 34))]
    bytes_max: u64,
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Numbers of all ranks in f32; a size is that of the larger side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Collective {
    AllGather,
    ReduceScatter,
    AllReduce,
}

const COLLECTIVES: [Collective; 3] = [Collective::AllGather, Collective::ReduceScatter, Collective::AllReduce];

/// One line.
struct Measured {
    collective: Collective,
    bytes: u64,
    /// As `nccl-tests` counts: of one rank's part, or of all where there are no parts.
    count: usize,
    /// Of one call, on average over all ranks.
    seconds: f64,
    /// Elements of all ranks that are not what they must be.
    num_wrong: u64,
}

pub fn run(comm: &Comm) -> anyhow::Result<ExitCode> {
    if comm.bytes_max < comm.bytes_min {
        let message = format!("`--bytes-max` {} is less than `--bytes-min` {}", comm.bytes_max, comm.bytes_min);
        return Err(Mistake { message, code: ExitCode::Usage, hint: None }.into());
    }
    let mut sizes = [0; 32];
    sizes[..8].copy_from_slice(&comm.bytes_min.to_le_bytes());
    sizes[8..16].copy_from_slice(&comm.bytes_max.to_le_bytes());
    let identity = Identity { config: sizes, model: [0; 32] };
    let (ranks, joined) = meeting::meet_as(identity, Waits { init_timeout: INIT_TIMEOUT, hang_limit: None })?;
    if joined.job.mesh().size() == 1 {
        return Err(meeting::needs_several_gpus("comm").into());
    }
    joined.work(|job| measure(comm, (&ranks.seat, job)))
}

/// Runs on every rank; the first one tells.
fn measure(arguments: &Comm, (seat, job): (&Seat, &Job)) -> anyhow::Result<ExitCode> {
    let json = Output::of_first_rank(arguments.json.as_ref(), job)?;
    let mesh = job.mesh();
    let working_memory = ByteCount(2 * arguments.bytes_max) + BESIDE;
    let options = CudaOptions { working_memory, ordinal: seat.gpu(), ..surroundings::cuda() };
    let device = CudaDevice::open(&options).map_err(TrainError::from)?;
    must_be_alone(&device, seat, &*job.comm)?;
    let bench = CommBench::new(&device, arguments.bytes_max, job)?;
    let is_first = mesh.is_first();
    if is_first {
        print(&format!("{device:?}, {} ranks, NCCL, f32, sum, out of place", mesh.size()))?;
        print(&heading())?;
    }
    let mut all = Vec::new();
    for collective in COLLECTIVES {
        for bytes in sizes(arguments.bytes_min, arguments.bytes_max) {
            let measured = bench.measure(collective, bytes)?;
            if is_first {
                print(&measured.line(mesh.size()))?;
            }
            all.push(measured);
        }
    }
    let average = all.iter().map(|measured| measured.bus_bandwidth(mesh.size())).sum::<f64>() / all.len() as f64;
    let num_wrong: u64 = all.iter().map(|measured| measured.num_wrong).sum();
    if is_first {
        print(&format!("# average bus bandwidth: {average:.2} GB/s, wrong values: {num_wrong}"))?;
    }
    job.comm.barrier().map_err(TrainError::from)?; // nobody closes what others still use
    bench.nccl.leave();
    if let Some(output) = json {
        let lines: Vec<Value> = all.iter().map(|measured| measured.as_json(mesh.size())).collect();
        let found = json!({ "library": "NCCL", "collectives": lines, "busbw_average": average, "wrong": num_wrong });
        output.write_json(&results("comm", (&Device::Cuda(device.clone()), mesh.size()), found))?;
    }
    Ok(if num_wrong == 0 { ExitCode::Success } else { ExitCode::CheckFailed })
}

/// Each twice the one before.
fn sizes(least: u64, most: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(least), |bytes| bytes.checked_mul(2)).take_while(move |bytes| *bytes <= most)
}

/// Element `index` of what `rank` gives. Sums of a few hundred of them are whole numbers that f32 holds.
fn value(rank: usize, index: usize) -> f32 {
    ((index.wrapping_mul(31) + rank * 17) % 251) as f32
}

struct CommBench<'a> {
    device: &'a Arc<CudaDevice>,
    nccl: Nccl,
    job: &'a Job,
    /// What this rank gives; shorter inputs are its beginnings.
    input: Tensor,
}

impl<'a> CommBench<'a> {
    /// Every rank calls it. Waits until all have come.
    fn new(device: &'a Arc<CudaDevice>, most_bytes: u64, job: &'a Job) -> Result<CommBench<'a>, TrainError> {
        let mesh = job.mesh();
        let nccl = gpu::connect(device, &*job.comm, Settings::default())?;
        let len = (most_bytes / DType::F32.size().0) as usize;
        let bytes: Vec<u8> = (0..len).flat_map(|index| value(mesh.rank().0, index).to_le_bytes()).collect();
        let mut input = device.buffer(DType::F32, [len])?;
        input.write_bytes(&bytes)?;
        Ok(CommBench { device, nccl, job, input: input.into_tensor() })
    }

    fn measure(&self, collective: Collective, bytes: u64) -> Result<Measured, TrainError> {
        let world_size = self.job.mesh().size();
        let part = (bytes / DType::F32.size().0) as usize / world_size;
        let whole = part * world_size;
        let (from, to) = match collective {
            Collective::AllGather => (part, whole),
            Collective::ReduceScatter => (whole, part),
            Collective::AllReduce => (whole, whole),
        };
        let input = self.input.rows(0, from)?;
        let mut result = self.device.buffer(DType::F32, [to])?;
        for _ in 0..WARM_UP {
            self.queue(collective, &input, &mut result)?;
        }
        self.device.finish()?;
        self.job.comm.barrier()?; // nobody times the others' start
        let stream = self.device.compute();
        let begun = stream.record_time()?;
        for _ in 0..TIMED {
            self.queue(collective, &input, &mut result)?;
        }
        let done = stream.record_time()?;
        done.wait(self.device.patience())?;
        let seconds = done.since(&begun)?.as_secs_f64() / TIMED as f64;
        self.nccl.check()?;
        let num_wrong = self.num_wrong(collective, (&result.into_tensor(), part))?;
        let of_all = told::by_rank(self.job, &format!("{seconds} {num_wrong}"))?;
        let numbers = |text: &String| -> (f64, u64) {
            let (seconds, num_wrong) = text.split_once(' ').expect(told::OWN_WORDS);
            (seconds.parse().expect(told::OWN_WORDS), num_wrong.parse().expect(told::OWN_WORDS))
        };
        let (times, wrong): (Vec<f64>, Vec<u64>) = of_all.iter().map(numbers).unzip();
        let seconds = times.iter().sum::<f64>() / world_size as f64;
        let count = if collective == Collective::AllReduce { whole } else { part };
        let bytes = DType::F32.size().0 * whole as u64;
        Ok(Measured { collective, bytes, count, seconds, num_wrong: wrong.iter().sum() })
    }

    fn queue(&self, collective: Collective, input: &Tensor, result: &mut DeviceBuffer) -> Result<(), DeviceError> {
        let stream = self.device.compute();
        match collective {
            Collective::AllGather => self.nccl.all_gather(input, result, stream),
            Collective::ReduceScatter => self.nccl.reduce_scatter(input, result, stream),
            Collective::AllReduce => self.nccl.all_reduce(input, result, stream),
        }
    }

    fn num_wrong(&self, collective: Collective, (result, part): (&Tensor, usize)) -> Result<u64, TrainError> {
        let (rank, world_size) = (self.job.mesh().rank().0, self.job.mesh().size());
        let found = result.to_host()?;
        let is_wrong = |(index, found): (usize, &f32)| *found != collective.expected((rank, world_size), part, index);
        Ok(found.f32s()?.iter().enumerate().filter(|element| is_wrong(*element)).count() as u64)
    }
}

impl Collective {
    fn name(self) -> &'static str {
        match self {
            Collective::AllGather => "all_gather",
            Collective::ReduceScatter => "reduce_scatter",
            Collective::AllReduce => "all_reduce",
        }
    }

    /// Element `index` of the result of `rank`, where each part has `part` elements.
    fn expected(self, (rank, world_size): (usize, usize), part: usize, index: usize) -> f32 {
        let sum = |at: usize| (0..world_size).map(|rank| value(rank, at)).sum();
        match self {
            Collective::AllGather => value(index / part, index % part),
            Collective::ReduceScatter => sum(rank * part + index),
            Collective::AllReduce => sum(index),
        }
    }

    /// What a byte of the size costs on the link of one GPU at least.
    fn bus_factor(self, world_size: usize) -> f64 {
        let remote = (world_size - 1) as f64 / world_size as f64;
        match self {
            Collective::AllGather | Collective::ReduceScatter => remote,
            Collective::AllReduce => 2.0 * remote,
        }
    }
}

fn heading() -> String {
    format!(
        "{:<15} {:>12} {:>12} {:>6} {:>6} {:>10} {:>8} {:>8} {:>7}\n{:<15} {:>12} {:>12} {:>6} {:>6} {:>10} {:>8} {:>8}",
        "# collective",
        "size",
        "count",
        "type",
        "redop",
        "time",
        "algbw",
        "busbw",
        "#wrong",
        "#",
        "(B)",
        "(elements)",
        "",
        "",
        "(us)",
        "(GB/s)",
        "(GB/s)"
    )
}

impl Measured {
    /// Bytes of the size in a second, in GB.
    fn bandwidth(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e9
    }

    fn bus_bandwidth(&self, world_size: usize) -> f64 {
        self.bandwidth() * self.collective.bus_factor(world_size)
    }

    fn operation(&self) -> &'static str {
        if self.collective == Collective::AllGather { "none" } else { "sum" }
    }

    fn line(&self, world_size: usize) -> String {
        format!(
            "{:<15} {:>12} {:>12} {:>6} {:>6} {:>10.2} {:>8.2} {:>8.2} {:>7}",
            self.collective.name(),
            self.bytes,
            self.count,
            "float",
            self.operation(),
            self.seconds * 1e6,
            self.bandwidth(),
            self.bus_bandwidth(world_size),
            self.num_wrong
        )
    }

    fn as_json(&self, world_size: usize) -> Value {
        json!({
            "collective": self.collective.name(), "bytes": self.bytes, "count": self.count, "type": "float",
            "redop": self.operation(), "time_us": self.seconds * 1e6, "algbw": self.bandwidth(),
            "busbw": self.bus_bandwidth(world_size), "wrong": self.num_wrong,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        let line = |collective| Measured { collective, bytes: 8 << 30, count: 1, seconds: 0.02, num_wrong: 0 };
        for (collective, factor) in [
            (Collective::AllGather, 7.0 / 8.0),
            (Collective::ReduceScatter, 7.0 / 8.0),
            (Collective::AllReduce, 14.0 / 8.0),
        ] {
            let measured = line(collective);
            assert!((measured.bandwidth() - 429.4967296).abs() < 1e-6);
            assert!((measured.bus_bandwidth(8) - 429.4967296 * factor).abs() < 1e-6, "{collective:?}");
        }
    }

    #[test]
    fn results_are_what_a_loop_over_ranks_finds() {
        let (world_size, part) = (3, 4);
        let inputs: Vec<Vec<f32>> = (0..world_size).map(|rank| (0..12).map(|at| value(rank, at)).collect()).collect();
        assert_ne!(inputs[0], inputs[1]);
        for rank in 0..world_size {
            let of = |collective: Collective, len: usize| -> Vec<f32> {
                (0..len).map(|index| collective.expected((rank, world_size), part, index)).collect()
            };
            let parts: Vec<f32> = inputs.iter().flat_map(|input| &input[..part]).copied().collect();
            let sums: Vec<f32> = (0..12).map(|at| inputs.iter().map(|input| input[at]).sum()).collect();
            assert_eq!(of(Collective::AllGather, 12), parts);
            assert_eq!(of(Collective::AllReduce, 12), sums);
            assert_eq!(of(Collective::ReduceScatter, part), sums[rank * part..(rank + 1) * part]);
        }
    }

    #[test]
    fn sizes_double_from_the_smallest_to_the_largest() {
        assert_eq!(sizes(1 << 20, 1 << 22).collect::<Vec<_>>(), [1 << 20, 1 << 21, 1 << 22]);
        assert_eq!(sizes(3, 11).collect::<Vec<_>>(), [3, 6]);
    }
}

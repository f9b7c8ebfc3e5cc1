//! `bench gather`: how fast units of the model's width become whole on every GPU, by each way that works here; alone, and
//! under a product that never pauses, with what that costs the product.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scout_comm::gpu::{Arriving, GatherWay, OpenWay, Part, Ranks, Wish};
use scout_comm::{CommError, Job};
use scout_config::RunConfig;
use scout_core::{ByteCount, DType, ExitCode};
use scout_device::cuda::{Arena, CudaDevice, CudaOptions, DeviceBuffer};
use scout_device::{Device, Purpose, Tensor};
use scout_model::UnitPlan;
use scout_shard::{ShardPlan, none_resident};
use scout_train::TrainError;
use scout_train::plan::ModelSource;
use scout_train::step_bench::with_layers;
use serde_json::{Value, json};

use super::contest::{Contest, Products};
use super::seconds::quiet_seconds;
use super::spread::spread;
use super::{meeting, told};
use crate::commands::configuration::{ConfigArguments, load, placing};
use crate::commands::machine::Found;
use crate::commands::output::Output;
use crate::commands::results::results;
use crate::ranks::Seat;
use crate::surroundings::{self, print};

/// For factors and result of the product, and what multiplies them.
const WORKING_MEMORY: ByteCount = ByteCount(2 << 30);

#[derive(clap::Args)]
pub struct Gather {
    #[command(flatten)]
    config: ConfigArguments,
    /// How long each way is timed, alone and again under products
    #[arg(long, default_value = "2", value_parser = quiet_seconds)]
    seconds: Duration,
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One way on all ranks.
struct Line {
    way: String,
    /// Gigabytes a second into each GPU: the least, the median, the most of all ranks.
    alone: [f64; 3],
    under_products: [f64; 3],
    /// Of the product on each GPU: the same three, with no gathers and meanwhile.
    tflops_alone: [f64; 3],
    tflops_meanwhile: [f64; 3],
}

pub fn run(arguments: &Gather) -> anyhow::Result<ExitCode> {
    let loaded = load(&arguments.config)?;
    let config = &loaded.config;
    // All layers have units of the same sizes.
    let source = with_layers(ModelSource::find(config, true)?, 1);
    let (ranks, joined) = meeting::meet(config, &source, true)?;
    if joined.job.mesh().size() == 1 {
        return Err(meeting::needs_several_gpus("gather").into());
    }
    joined.work(|job| placing(&loaded, || measure(arguments, config, &source, (&ranks.seat, job))))
}

/// Runs on every rank; the first one tells.
fn measure(
    arguments: &Gather,
    config: &RunConfig,
    source: &ModelSource,
    (seat, job): (&Seat, &Job),
) -> anyhow::Result<ExitCode> {
    let found = Found::by(config, seat)?;
    if found.describe().is_none() {
        return Err(meeting::needs_several_gpus("gather").into());
    }
    let json = Output::of_first_rank(arguments.json.as_ref(), job)?;
    // No plan is made here, but ranks that share a GPU would measure each other.
    found.must_be_alone(&*job.comm)?;
    let options = CudaOptions { working_memory: WORKING_MEMORY, ordinal: seat.gpu(), ..surroundings::cuda() };
    // Opened before `found` is given up: the driver keeps what it has set up.
    let device = CudaDevice::open(&options).map_err(TrainError::from)?;
    drop(found);
    let ranks = Ranks { device: &device, comm: &*job.comm };
    let is_first = job.mesh().is_first();
    let sizes = Sizes::of_a_layer(source, job.mesh().size());
    if is_first {
        print(&about(&device, &sizes))?;
        print(&heading())?;
    }
    let mut lines = Vec::new();
    for &way in Wish::Auto.ways() {
        let layer = match Layer::new(way, ranks, &sizes) {
            Ok(layer) => layer,
            Err(TrainError::Comm(error @ CommError::NoWay { .. })) => {
                // All ranks found so alike.
                if is_first {
                    print(&format!("{:<22} {error}", way.to_string()))?;
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let line = layer.measure(job, arguments.seconds)?;
        layer.leave(job)?;
        if is_first {
            print(&line.text())?;
        }
        lines.push(line);
    }
    if let Some(output) = json {
        output.write_json(&as_json(&lines, &sizes, &Device::Cuda(device.clone())))?;
    }
    Ok(ExitCode::Success)
}

/// The units of one layer among so many ranks.
struct Sizes {
    /// Elements of each rank's part of each unit, in bf16.
    parts: Vec<usize>,
    /// Which of them steps read where they lie.
    stay: Vec<bool>,
    world_size: usize,
}

impl Sizes {
    fn of_a_layer(source: &ModelSource, world_size: usize) -> Sizes {
        let units = UnitPlan::new(&source.config, source.style);
        let shards = ShardPlan::new(units.units(), world_size, &none_resident, 0).reading_in_place();
        let layer = units.layer(0);
        let units = [layer.attention, layer.shared, layer.gate_up, layer.down];
        let parts = units.map(|id| shards.unit(id).shard_len).to_vec();
        Sizes { parts, stay: units.map(|id| shards.is_read_in_place(id)).to_vec(), world_size }
    }

    /// Bytes of the ring that a unit takes whose parts are so long.
    fn whole(&self, part: usize) -> usize {
        bytes(part * self.world_size).next_multiple_of(Arena::GRAIN)
    }

    fn two_layers(&self) -> usize {
        2 * self.parts.iter().map(|&part| self.whole(part)).sum::<usize>()
    }

    /// What comes from others in one round.
    fn remote(&self) -> ByteCount {
        let own: usize = self.parts.iter().map(|&len| bytes(len)).sum();
        ByteCount((own * (self.world_size - 1)) as u64)
    }
}

fn bytes(len: usize) -> usize {
    (DType::BF16.size() * len as u64).0 as usize
}

/// This rank's parts of the units, room for two whole layers, and one way of gathering them.
struct Layer<'a> {
    device: &'a Arc<CudaDevice>,
    sizes: &'a Sizes,
    parts: Vec<Tensor>,
    opened: OpenWay,
    /// The whole units of the last layer with what readers wait for, held as long as a step holds them.
    held: RefCell<VecDeque<Arriving>>,
    /// Byte of the ring that the next unit begins at: that of its likes of the layer before the last.
    next_place: Cell<usize>,
}

impl<'a> Layer<'a> {
    /// Every rank calls it.
    fn new(way: GatherWay, ranks: Ranks<'a>, sizes: &'a Sizes) -> Result<Layer<'a>, TrainError> {
        let Ranks { device, .. } = ranks;
        let room: usize = sizes.parts.iter().map(|&len| bytes(len).next_multiple_of(Arena::GRAIN)).sum();
        let memory = way.memory(ranks, ByteCount(room as u64), ByteCount(sizes.two_layers() as u64))?;
        let part = |&len: &usize| -> Result<Tensor, TrainError> {
            let block = memory.parts.take(Purpose::Shard, bytes(len))?;
            let mut part = DeviceBuffer::new(device, block, DType::BF16, [len])?;
            part.clear()?;
            Ok(part.into_tensor())
        };
        let parts = sizes.parts.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        // Others are about to fetch what was queued on the stream of arithmetic.
        device.finish()?;
        let opened = OpenWay::open(way, ranks, memory)?;
        Ok(Layer { device, sizes, parts, opened, held: RefCell::default(), next_place: Cell::new(0) })
    }

    /// Queues that every unit becomes whole once.
    fn gather(&self) -> Result<(), TrainError> {
        let mut held = self.held.borrow_mut();
        for (tensor, &stays) in self.parts.iter().zip(&self.sizes.stay) {
            if held.len() == self.parts.len()
                && let Some(oldest) = held.pop_front()
            {
                oldest.wait_on(self.opened.stream())?;
            }
            let place = self.next_place.get();
            let stays = stays && self.opened.way().brings_others_alone();
            held.push_back(self.opened.gather(Part { tensor, stays }, place)?);
            self.next_place.set((place + self.sizes.whole(tensor.num_elements())) % self.sizes.two_layers());
        }
        Ok(())
    }

    fn measure(&self, job: &Job, seconds: Duration) -> Result<Line, TrainError> {
        let gather = || self.gather();
        let contest = Contest { device: self.device, stream: self.opened.stream(), gather: &gather };
        let num_rounds = contest.rounds_in(seconds, job)?;
        let products = Products::new(self.device)?;
        let alone = contest.run(num_rounds, None, job)?;
        let product_alone = products.alone(seconds)?;
        let both = contest.run(num_rounds, Some(&products), job)?;
        let own = [alone.seconds_a_round, both.seconds_a_round, product_alone, both.tflops];
        let text = own.map(|number| number.to_string()).join(" ");
        let told: Vec<Vec<f64>> = told::by_rank(job, &text)?
            .iter()
            .map(|text| text.split(' ').map(|number| number.parse().expect(told::OWN_WORDS)).collect())
            .collect();
        let of_all = |index: usize| told.iter().map(move |numbers| numbers[index]);
        let rate = |seconds: f64| self.sizes.remote().as_f64() / seconds / 1e9;
        Ok(Line {
            way: self.opened.way().to_string(),
            alone: spread(of_all(0).map(rate)),
            under_products: spread(of_all(1).map(rate)),
            tflops_alone: spread(of_all(2)),
            tflops_meanwhile: spread(of_all(3)),
        })
    }

    /// Every rank calls it.
    fn leave(self, job: &Job) -> Result<(), TrainError> {
        Ok(self.opened.leave(&*job.comm)?)
    }
}

fn about(device: &Arc<CudaDevice>, sizes: &Sizes) -> String {
    let Sizes { world_size, .. } = sizes;
    let remote = sizes.remote();
    format!("{device:?}, {world_size} ranks; the units of a layer bring {remote} into each, {}", Products::describe())
}

fn heading() -> String {
    format!(
        "{:<22} {:>23} {:>23} {:>16} {:>16} {:>9}\n{:<22} {:>23} {:>23} {:>16} {:>16} {:>9}",
        "gather by",
        "alone",
        "under products",
        "products alone",
        "meanwhile",
        "slow-down",
        "",
        "GB/s min median max",
        "GB/s min median max",
        "TFLOP/s median",
        "TFLOP/s median",
        "%"
    )
}

impl Line {
    /// What the product loses, in percent, by the medians.
    fn slow_down(&self) -> f64 {
        100.0 * (1.0 - self.tflops_meanwhile[1] / self.tflops_alone[1])
    }

    fn text(&self) -> String {
        let three = |numbers: [f64; 3]| numbers.map(|number| format!("{number:7.1}")).concat();
        format!(
            "{:<22} {:>23} {:>23} {:>16.1} {:>16.1} {:>9.1}",
            self.way,
            three(self.alone),
            three(self.under_products),
            self.tflops_alone[1],
            self.tflops_meanwhile[1],
            self.slow_down()
        )
    }

    fn as_json(&self) -> Value {
        json!({
            "way": self.way, "gb_s_alone": self.alone, "gb_s_under_products": self.under_products,
            "tflops_alone": self.tflops_alone, "tflops_meanwhile": self.tflops_meanwhile,
            "slow_down_percent": self.slow_down(),
        })
    }
}

fn as_json(lines: &[Line], sizes: &Sizes, device: &Device) -> Value {
    let unit_bytes: Vec<usize> = sizes.parts.iter().map(|&len| bytes(len) * sizes.world_size).collect();
    let found = json!({
        "unit_bytes": unit_bytes, "own_part_stays": sizes.stay, "remote_bytes_a_round": sizes.remote().0,
        "product": Products::describe(),
        "ways": lines.iter().map(Line::as_json).collect::<Vec<_>>(),
    });
    results("gather", (device, sizes.world_size), found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_products_lose_is_told_by_the_medians() {
        let line = Line {
            way: "copy engines".to_string(),
            alone: [330.0, 340.0, 345.5],
            under_products: [300.0, 320.0, 330.0],
            tflops_alone: [650.0, 670.0, 700.0],
            tflops_meanwhile: [600.0, 627.0, 640.0],
        };
        assert!((line.slow_down() - 6.417_910).abs() < 1e-5);
        assert!(line.text().contains("  330.0  340.0  345.5 "), "{}", line.text());
        assert!(line.text().ends_with(" 6.4"), "{}", line.text());
    }
}

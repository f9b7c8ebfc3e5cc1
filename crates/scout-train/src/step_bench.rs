//! Steps over made-up tokens with made-up weights: how fast a shape trains, without checkpoint, tokenizer or data.

use std::time::{Duration, Instant};

use scout_comm::Job;
use scout_comm::gpu::GatherWay;
use scout_config::{LrSchedulerType, RunConfig};
use scout_data::{Dealing, Example, ExampleSet, IGNORED, LossReduction, SampleOrder, Shuffle};
use scout_device::{Device, Tensor};
use scout_model::{Batch, ModelConfig, Routes};
use scout_shard::Ring;

use crate::assemble;
use crate::attention_plans::{self, Sizes};
use crate::error::Result;
use crate::machine::{Hardware, Machine};
use crate::plan::{DataCounts, ModelSource, RunPlan};
use crate::prepare::{RunData, row_cost};
use crate::seated::Seated;
use crate::trainer::StepReport;

/// One made-up row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub num_tokens: usize,
    /// How many of its last tokens are learned.
    pub num_learned: usize,
}

/// Who decides where tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// Every expert gets as many as the others.
    Balanced,
    /// The router, whose weights are random too.
    Natural,
    /// One expert of each layer gets all, and the others nothing: as uneven as a router can be.
    One,
}

/// Made-up rows, dealt to ranks, micro-batches and updates as a run that does not pack deals its own: in their order,
/// balanced, the last update of an epoch wrapping to its start.
pub struct Workload {
    config: RunConfig,
    data: RunData,
    routing: Routing,
}

/// One rank of a benchmark.
pub struct StepBench {
    pub plan: RunPlan,
    /// What was found out about ways of gathering, for people.
    pub said: Vec<String>,
    trainer: Seated,
    /// What this rank computes in each update of an epoch; steps take them in turns.
    updates: Vec<Vec<Batch>>,
    next_step: usize,
}

/// What a step did and how long it took the host, which waits for a GPU at its end.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    pub report: StepReport,
    pub time: Duration,
}

/// The same model with fewer layers, or more of them.
pub fn with_layers(source: ModelSource, num_layers: usize) -> ModelSource {
    let rope_layers = source.config.rope_layers.iter().copied().cycle().take(num_layers).collect();
    ModelSource { config: ModelConfig { num_layers, rope_layers, ..source.config }, ..source }
}

impl Workload {
    /// Updates of as many micro-batches as `config` accumulates, each of `batch` rows on each of `world` ranks. The router decides.
    pub fn new(config: &RunConfig, model: &ModelConfig, rows: &[Row], world: usize, batch: usize) -> Result<Workload> {
        let mut config = config.clone();
        config.model.random_weights = true;
        config.train.per_device_train_batch_size = batch;
        // Training goes on for as long as time is taken.
        config.train.lr_scheduler_type = LrSchedulerType::Constant;
        (config.train.num_train_epochs, config.train.max_steps) = (1.0, None);
        (config.data.packing, config.data.neat_packing) = (false, false);
        let examples = made_up(rows, model.vocab_size);
        let accumulation = config.train.gradient_accumulation_steps;
        let dealing = Dealing { world, batch, accumulation };
        let data = RunData {
            order: Box::new(SampleOrder::new(examples.len(), dealing, Shuffle::Off)?),
            held_out: ExampleSet::default(),
            reduction: LossReduction::MicroBatchMean,
            cost: row_cost(model),
            runs: accumulation,
            statistics: *examples.statistics(),
            examples,
        };
        Ok(Workload { config, data, routing: Routing::Natural })
    }

    pub fn routed(self, routing: Routing) -> Workload {
        Workload { routing, ..self }
    }

    /// Of an epoch.
    pub fn num_updates(&self) -> usize {
        self.data.order.updates_per_epoch() as usize
    }

    /// What a run of it needs.
    pub fn plan(&self, source: ModelSource, hardware: impl Into<Hardware>) -> Result<RunPlan> {
        let hardware: Hardware = hardware.into();
        let busiest_share = match self.routing {
            Routing::Natural => None,
            Routing::Balanced => Some(1.0),
            Routing::One => Some(hardware.world_size as f64),
        };
        let counts = DataCounts { busiest_share, ..self.data.counts(&self.config) };
        RunPlan::resolve(&self.config, source, hardware, Some(counts), None)
    }

    /// What `rank` computes in each update of an epoch.
    fn batches(&self, config: &ModelConfig, rank: usize) -> Result<Vec<Vec<Batch>>> {
        let routed = |batch: Batch| {
            let routes = self.routing.of_tokens(config, batch.num_tokens())?;
            Ok(Batch { routes, ..batch })
        };
        let of_update = |update| {
            let (batches, _) = self.data.update(update, rank, config.attention_chunk_size)?;
            batches.into_iter().map(routed).collect()
        };
        (0..self.num_updates()).map(of_update).collect()
    }
}

impl StepBench {
    /// On the machine that was planned for. Every rank calls it.
    pub fn new(workload: Workload, plan: RunPlan, (machine, job): (&Machine, &Job)) -> Result<StepBench> {
        let workload = Workload { data: RunData { runs: plan.runs, ..workload.data }, ..workload };
        let model = &plan.source.config;
        let updates = workload.batches(model, job.mesh().rank().0)?;
        let sizes = || Sizes::of_batches(updates.iter().flatten(), model.attention_chunk_size);
        let of_attention = attention_plans::prepare(machine, model, sizes)?;
        let (trainer, said) = assemble::build_random(&workload.config, &plan, machine, job)?;
        let said = of_attention.into_iter().chain(said).collect();
        Ok(StepBench { plan, said, trainer, updates, next_step: 0 })
    }

    /// What this rank computes in each update of an epoch.
    pub fn updates(&self) -> &[Vec<Batch>] {
        &self.updates
    }

    pub fn step(&mut self) -> Result<Timed> {
        let begun = Instant::now();
        let report = self.queue()?;
        self.finish()?;
        Ok(Timed { report, time: begun.elapsed() })
    }

    /// As [`StepBench::step`], without waiting for the optimizer's work, which a GPU does while the next step begins.
    pub fn queue(&mut self) -> Result<StepReport> {
        let update = self.next_step % self.updates.len();
        let report = self.trainer.step(&self.updates[update], self.next_step)?;
        self.next_step += 1;
        Ok(report)
    }

    /// Waits for all work that is queued.
    pub fn finish(&self) -> Result<()> {
        if let Device::Cuda(gpu) = &self.trainer.device {
            gpu.finish()?;
        }
        Ok(())
    }

    /// How long this rank has stood still for others. Waits for the GPU.
    pub fn waited(&self) -> Result<Duration> {
        self.trainer.waited()
    }

    /// Who moves units between GPUs, where some are sharded.
    pub fn way(&self) -> Option<GatherWay> {
        self.trainer.store.ring().map(Ring::way)
    }

    /// Sharded units that are gathered ahead of the block in use.
    pub fn lookahead(&self) -> usize {
        self.trainer.plan.lookahead()
    }

    /// Every rank calls it when it has done its steps.
    pub fn leave(&mut self) -> Result<()> {
        self.trainer.leave()
    }

    pub fn useful_flops(&self, report: &StepReport) -> f64 {
        self.plan.useful_flops(report.num_tokens, report.attended_pairs)
    }
}

fn made_up(rows: &[Row], vocab_size: usize) -> ExampleSet {
    let token = |index: usize| (index.wrapping_mul(7919) % vocab_size) as u32;
    let (mut examples, mut start) = (ExampleSet::default(), 0);
    for (sample_id, row) in (0..).zip(rows) {
        let ids: Vec<u32> = (start..start + row.num_tokens).map(token).collect();
        let mut labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        labels[..row.num_tokens.saturating_sub(row.num_learned)].fill(IGNORED);
        examples.push(&Example { ids, labels, ..Example::default() }, sample_id);
        start += row.num_tokens;
    }
    examples
}

impl Routing {
    /// Nothing where the router decides.
    fn of_tokens(self, config: &ModelConfig, num_tokens: usize) -> Result<Option<Routes>> {
        let taker: fn(usize, usize) -> usize = match self {
            Routing::Natural => return Ok(None),
            Routing::Balanced => |layer, token| token + layer,
            Routing::One => |layer, _| layer,
        };
        let expert = |layer, token| (taker(layer, token) % config.num_experts) as u32;
        let of_layer =
            |layer| Tensor::from_u32((0..num_tokens).map(|token| expert(layer, token)).collect(), [num_tokens]);
        Ok(Some((0..config.num_layers).map(of_layer).collect::<scout_device::Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{SynthShape, config};

    fn workload(lengths: &[usize], world: usize, batch: usize) -> Workload {
        accumulating(1, lengths, world, batch)
    }

    fn accumulating(accumulation: usize, lengths: &[usize], world: usize, batch: usize) -> Workload {
        let text = format!("random_weights: true\ngradient_accumulation_steps: {accumulation}\n");
        let run = RunConfig::from_text("bench.yaml", &text, &[], &[]).unwrap().config;
        let rows: Vec<Row> = lengths.iter().map(|&num_tokens| Row { num_tokens, num_learned: 3 }).collect();
        Workload::new(&run, &config(SynthShape::Tiny, None), &rows, world, batch).unwrap()
    }

    #[test]
    fn rows_learn_their_last_tokens_and_balanced_experts_get_equal_shares() {
        let model = config(SynthShape::Tiny, None);
        let batches = workload(&[9, 3], 1, 2).routed(Routing::Balanced).batches(&model, 0).unwrap();
        let [batch] = &batches[0][..] else { panic!("{} batches", batches[0].len()) };
        // The first token of a row is predicted by nothing.
        assert_eq!(&*batch.target_rows.u32s().unwrap(), &[5, 6, 7, 9, 10]);
        let ids = batch.ids.u32s().unwrap().to_vec();
        let targets = batch.target_tokens.u32s().unwrap().to_vec();
        assert_eq!(targets[..3], ids[6..9]);
        let routes = batch.routes.as_ref().unwrap();
        assert_eq!(routes.len(), model.num_layers);
        for of_layer in routes {
            let of_layer = of_layer.u32s().unwrap();
            let shares = (0..model.num_experts as u32).map(|expert| of_layer.iter().filter(|&&e| e == expert).count());
            let shares: Vec<usize> = shares.collect();
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
        let routes = Routing::One.of_tokens(&model, 3).unwrap().unwrap();
        let of_layers = [0, 1, 2, 3].map(|expert| [expert; 3]);
        assert_eq!(routes.iter().map(|layer| layer.u32s().unwrap().to_vec()).collect::<Vec<_>>(), of_layers);
        assert!(Routing::Natural.of_tokens(&model, 3).unwrap().is_none());
    }

    #[test]
    fn rows_are_dealt_as_a_padded_trainer_deals_them_and_weigh_what_they_weigh_there() {
        let model = config(SynthShape::Tiny, None);
        // Three rows on two ranks of one row: the second update wraps to the first row.
        let workload = workload(&[8, 9, 10], 2, 1);
        assert_eq!(workload.num_updates(), 2);
        let of_rank = |rank| workload.batches(&model, rank).unwrap();
        let tokens = |batches: &[Vec<Batch>]| -> Vec<usize> {
            batches.iter().map(|update| update.iter().map(Batch::num_tokens).sum()).collect()
        };
        let ranks = [of_rank(0), of_rank(1)];
        assert_eq!(ranks.each_ref().map(|rank| tokens(rank)), [vec![8, 10], vec![9, 8]]);
        // A mean over two micro-batches of the mean over three targets.
        let weights = ranks[0][0][0].target_weights.f32s().unwrap().to_vec();
        assert_eq!(weights, [1.0 / 6.0; 3]);
    }

    #[test]
    fn an_update_has_as_many_micro_batches_as_gradients_are_accumulated_over() {
        let model = config(SynthShape::Tiny, None);
        // Of two rows on each of two ranks, three times: twelve rows an update, of which there are seven.
        let workload = accumulating(3, &[8; 7], 2, 2);
        assert_eq!(workload.num_updates(), 1);
        for rank in 0..2 {
            let batches = workload.batches(&model, rank).unwrap();
            let tokens: Vec<usize> = batches[0].iter().map(Batch::num_tokens).collect();
            assert_eq!(tokens, [16; 3]);
        }
    }

    #[test]
    fn a_run_of_the_alpaca_lengths_has_as_many_updates_as_the_padded_trainer() {
        for (batch, expected) in [(16, 8), (1, 125)] {
            assert_eq!(workload(&[5; 1000], 8, batch).num_updates(), expected);
        }
    }

    #[test]
    fn a_benchmark_step_trains() {
        let source =
            ModelSource { config: config(SynthShape::Tiny, None), style: scout_model::NameStyle::Text, folder: None };
        let source = with_layers(source, 2);
        let workload = workload(&[12], 1, 1);
        let plan = workload.plan(source, 1).unwrap();
        let job = Job::alone(Duration::from_secs(60));
        let mut bench = StepBench::new(workload, plan, (&1.into(), &job)).unwrap();
        let losses: Vec<f64> = (0..3).map(|_| bench.step().unwrap().report.loss).collect();
        assert!(losses[2] < losses[0], "{losses:?}");
    }
}

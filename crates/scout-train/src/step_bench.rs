//! Steps over made-up tokens with made-up weights: how fast a shape trains, without checkpoint, tokenizer or data.

use std::time::{Duration, Instant};

use scout_comm::Job;
use scout_config::RunConfig;
use scout_device::{Device, Tensor};
use scout_model::{Batch, Document, ModelConfig, Routes, Target};

use crate::attention_plans::{self, Sizes};
use crate::error::Result;
use crate::machine::Machine;
use crate::plan::{DataCounts, ModelSource, RunPlan};
use crate::run;
use crate::trainer::{StepReport, Trainer};

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
}

pub struct StepBench {
    pub plan: RunPlan,
    trainer: Trainer,
    /// One for each step; steps take them in turns.
    batches: Vec<Batch>,
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

impl StepBench {
    /// Each entry of `steps` is the rows of one micro-batch.
    pub fn new(
        config: &RunConfig,
        source: ModelSource,
        machine: &Machine,
        steps: &[Vec<Row>],
        routing: Routing,
    ) -> Result<StepBench> {
        machine.must_be_built()?;
        let plan = RunPlan::resolve(config, source, machine, Some(counts(steps)), None)?;
        let batches: Vec<Batch> =
            steps.iter().map(|rows| batch(&plan.source.config, rows, routing)).collect::<Result<_>>()?;
        let sizes = || Sizes::of_batches(&batches, plan.source.config.attention_chunk_size);
        attention_plans::prepare(machine, &plan.source.config, sizes)?;
        let trainer = run::build_random(config, &plan, machine, &Job::alone(Duration::from_secs(600)))?;
        Ok(StepBench { plan, trainer, batches, next_step: 0 })
    }

    /// How many different micro-batches there are.
    pub fn num_batches(&self) -> usize {
        self.batches.len()
    }

    pub fn step(&mut self) -> Result<Timed> {
        let batch = self.next_step % self.batches.len();
        let begun = Instant::now();
        let report = self.trainer.step(std::slice::from_ref(&self.batches[batch]), self.next_step)?;
        // The optimizer's work is queued behind what the step waited for.
        if let Device::Cuda(gpu) = &self.trainer.device {
            gpu.finish()?;
        }
        self.next_step += 1;
        Ok(Timed { report, time: begun.elapsed() })
    }

    pub fn useful_flops(&self, report: &StepReport) -> f64 {
        self.plan.useful_flops(report.num_tokens, report.num_attended_pairs)
    }
}

fn counts(steps: &[Vec<Row>]) -> DataCounts {
    let most = |of: fn(&[Row]) -> usize| steps.iter().map(|rows| of(rows)).max().unwrap_or(0);
    DataCounts {
        num_rows: steps.iter().map(Vec::len).sum(),
        updates_per_epoch: steps.len(),
        most_tokens: most(|rows| rows.iter().map(|row| row.num_tokens).sum()),
        longest_row: most(|rows| rows.iter().map(|row| row.num_tokens).max().unwrap_or(0)),
        most_rows: most(<[Row]>::len),
    }
}

fn batch(config: &ModelConfig, rows: &[Row], routing: Routing) -> Result<Batch> {
    let token = |index: usize| (index.wrapping_mul(7919) % config.vocab_size) as u32;
    let (mut documents, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for (sample_id, row) in (0..).zip(rows) {
        documents.push(Document { sample_id, tokens: (start..start + row.num_tokens).map(token).collect() });
        let first = row.num_tokens - row.num_learned.min(row.num_tokens.saturating_sub(1));
        targets.extend((start + first..start + row.num_tokens).map(|learned| (learned as u32 - 1, token(learned))));
        start += row.num_tokens;
    }
    let weight = 1.0 / targets.len().max(1) as f32;
    let targets: Vec<Target> = targets.into_iter().map(|(row, token)| Target { row, token, weight }).collect();
    let batch = Batch::new(&documents, &targets, config.attention_chunk_size)?;
    Ok(match routing {
        Routing::Natural => batch,
        Routing::Balanced => Batch { routes: Some(balanced(config, start)?), ..batch },
    })
}

fn balanced(config: &ModelConfig, num_tokens: usize) -> Result<Routes> {
    let expert = |layer: usize, token: usize| ((token + layer) % config.num_experts) as u32;
    let of_layer = |layer| Ok(Tensor::from_u32((0..num_tokens).map(|t| expert(layer, t)).collect(), [num_tokens])?);
    (0..config.num_layers).map(of_layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{SynthShape, config};

    #[test]
    fn rows_learn_their_last_tokens_and_balanced_experts_get_equal_shares() {
        let model = config(SynthShape::Tiny, None);
        let rows = [Row { num_tokens: 9, num_learned: 3 }, Row { num_tokens: 7, num_learned: 7 }];
        let batch = batch(&model, &rows, Routing::Balanced).unwrap();
        assert_eq!(&*batch.target_rows.u32s().unwrap(), &[5, 6, 7, 9, 10, 11, 12, 13, 14]);
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
    }

    #[test]
    fn a_benchmark_step_trains() {
        let run = scout_config::RunConfig::from_text("bench.yaml", "random_weights: true\n", &[], &[]).unwrap().config;
        let source =
            ModelSource { config: config(SynthShape::Tiny, None), style: scout_model::NameStyle::Text, folder: None };
        let source = with_layers(source, 2);
        let rows = vec![vec![Row { num_tokens: 12, num_learned: 11 }]];
        let mut bench = StepBench::new(&run, source, &1.into(), &rows, Routing::Natural).unwrap();
        let losses: Vec<f64> = (0..3).map(|_| bench.step().unwrap().report.loss).collect();
        assert!(losses[2] < losses[0], "{losses:?}");
    }
}

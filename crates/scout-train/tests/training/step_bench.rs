//! A benchmark of steps over rows as long as a run's own plans and computes what that run plans and computes.

use scout_config::RunConfig;
use scout_model::{Batch, ModelConfig, NameStyle};
use scout_train::machine::{ComputeType, Hardware, Kind, Room};
use scout_train::plan::{ModelSource, RunPlan};
use scout_train::prepare::prepare;
use scout_train::step_bench::{Routing, Row, StepBench, Workload};

use crate::bench::{Bench, on_every_rank};

const WORLD: usize = 2;

/// Tokens and rows of each run of each update, on one rank.
type Runs = Vec<Vec<(usize, usize)>>;

fn runs(updates: &[Vec<Batch>]) -> Runs {
    let run = |batch: &Batch| (batch.num_tokens(), batch.documents.borders().len() - 1);
    updates.iter().map(|update| update.iter().map(run).collect()).collect()
}

#[test]
fn a_run_that_accumulates_gradients_and_its_benchmark_compute_the_same_runs() {
    let bench = Bench::new();
    for accumulation in [1, 3] {
        let accumulation = format!("gradient_accumulation_steps={accumulation}");
        let config = bench.config(&[&accumulation, "per_device_train_batch_size=2", "disable_shuffling=true"]);
        let prepared = prepare(&config, WORLD).unwrap();
        let (plan, data) = (&prepared.plan, &prepared.data);
        let rows: Vec<Row> = (0..data.examples.len())
            .map(|row| Row { num_tokens: data.examples.length(row), num_learned: data.examples.targets(row) })
            .collect();
        let model = &plan.source.config;
        let workload = || Workload::new(&config, model, &rows, WORLD, 2).unwrap();
        let planned = workload().plan(plan.source.clone(), WORLD).unwrap();
        assert_eq!((planned.runs, planned.memory), (plan.runs, plan.memory), "{accumulation}");
        let steps = planned.steps.unwrap();
        assert_eq!((steps.num_rows, steps.updates_per_epoch), (rows.len(), plan.steps.unwrap().updates_per_epoch));
        let of_bench = on_every_rank(WORLD, |job| {
            let plan = workload().plan(plan.source.clone(), WORLD).unwrap();
            runs(StepBench::new(workload(), plan, (&WORLD.into(), &job)).unwrap().updates())
        });
        let of_run = |rank: usize| -> Runs {
            let update = |step| data.update(step, rank, model.attention_chunk_size).unwrap().0;
            runs(&(0..steps.updates_per_epoch).map(update).collect::<Vec<_>>())
        };
        assert_eq!(of_bench, [of_run(0), of_run(1)], "{accumulation}");
    }
}

#[test]
fn where_one_expert_gets_all_rows_experts_that_stay_train_to_the_same_bits() {
    let bench = Bench::new();
    for world in [2, 4] {
        let [come, stay] = ["weights=zero3", "weights=expert-resident"].map(|weights| {
            let config = bench.config(&[weights, "lora_target=all", "per_device_train_batch_size=2"]);
            let source = prepare(&config, world).unwrap().plan.source;
            let rows = vec![Row { num_tokens: 9, num_learned: 3 }; 2 * world];
            let of_ranks = on_every_rank(world, |job| {
                let workload = Workload::new(&config, &source.config, &rows, world, 2).unwrap().routed(Routing::One);
                let plan = workload.plan(source.clone(), world).unwrap();
                let mut bench = StepBench::new(workload, plan, (&world.into(), &job)).unwrap();
                let losses: Vec<u64> = (0..3).map(|_| bench.step().unwrap().report.loss.to_bits()).collect();
                bench.leave().unwrap();
                losses
            });
            assert!(of_ranks.iter().all(|losses| *losses == of_ranks[0]), "{world} ranks, {weights}");
            of_ranks[0].clone()
        });
        assert_eq!(come, stay, "{world} ranks");
    }
}

/// Rows of a micro-batch, micro-batches, memory of each GPU in GiB.
#[test]
fn rows_of_one_length_are_planned_on_eight_gpus_as_a_plan_without_data_has_them() {
    let hardware =
        Hardware { world_size: 8, kind: Kind::Gpu, compute: ComputeType::Bf16, room: Room::Unknown, sees_peers: true };
    let source = || ModelSource { config: ModelConfig::scout(), style: NameStyle::Conditional, folder: None };
    for (batch, accumulation, gib) in [(4, 1, 79), (2, 8, 79), (1, 4, 139), (1, 2, 60)] {
        let text = format!(
            "random_weights: true\nlora_target: all\ncutoff_len: 512\nper_device_train_batch_size: {batch}\n\
             gradient_accumulation_steps: {accumulation}\ndevice_memory: {gib}GiB\n"
        );
        let config = RunConfig::from_text("test.yaml", &text, &[], &[]).unwrap().config;
        let planned = RunPlan::resolve(&config, source(), hardware, None, None).unwrap();
        let rows = vec![Row { num_tokens: 512, num_learned: 511 }; batch * accumulation * 8];
        let workload = Workload::new(&config, &planned.source.config, &rows, 8, batch).unwrap();
        let found = workload.plan(source(), hardware).unwrap();
        assert_eq!(workload.num_updates(), 1);
        assert_eq!(found.way, planned.way, "{text}");
        assert_eq!(found.way.time.unwrap().num_tokens, batch * accumulation * 512);
    }
}

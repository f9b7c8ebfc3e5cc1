//! Numbers of the plan against numbers worked out by hand: steps, warm-up, what is kept in a given memory.

use scout_config::RunConfig;
use scout_core::{ByteCount, ExitCode};
use scout_data::{Dealing, SampleOrder, Shuffle, UpdateOrder};
use scout_device::cuda::Choice;
use scout_model::{Keep, Keeping, NameStyle};
use scout_train::learning_rate::{Decay, LearningRate};
use scout_train::machine::{ComputeType, Hardware, Kind, Room};
use scout_train::memory::LargestBatch;
use scout_train::plan::{DataCounts, ModelSource, RunPlan};
use scout_train::prepare::prepare;
use scout_train::runs::Largest;
use scout_train::synth::{self, SynthShape};
use scout_train::{Result, TrainError};

use crate::bench::Bench;

fn config(overrides: &[&str]) -> RunConfig {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    RunConfig::from_text("test.yaml", "random_weights: true\n", &overrides, &[]).unwrap().config
}

fn source() -> ModelSource {
    ModelSource { config: synth::config(SynthShape::Tiny, None), style: NameStyle::Text, folder: None }
}

fn resolve(config: &RunConfig, hardware: impl Into<Hardware>, data: Option<DataCounts>) -> Result<RunPlan> {
    RunPlan::resolve(config, source(), hardware, data, None)
}

/// Rows of equal length.
fn counts(num_rows: usize, updates_per_epoch: usize, most_tokens: usize) -> DataCounts {
    let trained = Largest::of_alike(LargestBatch::of([most_tokens]), 1);
    DataCounts { num_rows, updates_per_epoch, trained, scored: Largest::default(), busiest_share: None }
}

/// Rows, ranks, overrides → updates an epoch, updates in all, warm-up.
#[test]
fn updates_and_warm_up_follow_from_rows_ranks_and_keys() {
    const BATCH_16: &str = "per_device_train_batch_size=16";
    const BATCH_1: &str = "per_device_train_batch_size=1";
    const BATCH_4: &str = "per_device_train_batch_size=4";
    const NO_ACCUMULATION: &str = "gradient_accumulation_steps=1";
    for (rows, ranks, overrides, expected) in [
        // The job of a thousand rows on eight ranks, three epochs.
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "num_train_epochs=3"][..], (8, 24, 0)),
        (1000, 8, &[BATCH_1, NO_ACCUMULATION, "num_train_epochs=3"], (125, 375, 0)),
        // ceil(ceil(1000/128)/3) = 3.
        (1000, 8, &[BATCH_16, "gradient_accumulation_steps=3", "num_train_epochs=2"], (3, 6, 0)),
        // More than one epoch's rows in one update: it wraps.
        (3, 2, &[BATCH_16, "gradient_accumulation_steps=8", "num_train_epochs=5"], (1, 5, 0)),
        (10, 1, &[BATCH_4, NO_ACCUMULATION, "num_train_epochs=1"], (3, 3, 0)),
        (12, 1, &[BATCH_4, NO_ACCUMULATION, "num_train_epochs=1"], (3, 3, 0)),
        (13, 1, &[BATCH_4, NO_ACCUMULATION, "num_train_epochs=1"], (4, 4, 0)),
        // Parts of epochs: 8 · 0.3 = 2.4, 8 · 1.5 = 12, 3 · 0.01 = 0.03.
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "num_train_epochs=0.3"], (8, 3, 0)),
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "num_train_epochs=1.5"], (8, 12, 0)),
        (10, 1, &[BATCH_4, NO_ACCUMULATION, "num_train_epochs=0.01"], (3, 1, 0)),
        // max_steps wins, in both directions.
        (10, 1, &[BATCH_4, NO_ACCUMULATION, "num_train_epochs=1", "max_steps=1"], (3, 1, 0)),
        (10, 1, &[BATCH_4, NO_ACCUMULATION, "num_train_epochs=1", "max_steps=100"], (3, 100, 0)),
        (10, 1, &[BATCH_4, NO_ACCUMULATION, "num_train_epochs=2", "max_steps=-1"], (3, 6, 0)),
        // Warm-up by share, rounded up: 24 · 0.03 = 0.72, 24 · 0.1 = 2.4, 24 · 0.5 = 12, 24 · 1.
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "num_train_epochs=3", "warmup_ratio=0.03"], (8, 24, 1)),
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "num_train_epochs=3", "warmup_ratio=0.1"], (8, 24, 3)),
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "num_train_epochs=3", "warmup_ratio=0.5"], (8, 24, 12)),
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "max_steps=10", "warmup_ratio=0.25"], (8, 10, 3)),
        // Steps win over the share.
        (1000, 8, &[BATCH_16, NO_ACCUMULATION, "warmup_ratio=0.5", "warmup_steps=7", "max_steps=24"], (8, 24, 7)),
    ] {
        let config = config(overrides);
        let dealing = Dealing {
            world: ranks,
            batch: config.train.per_device_train_batch_size,
            accumulation: config.train.gradient_accumulation_steps,
        };
        let order = SampleOrder::new(rows, dealing, Shuffle::Seeded(1)).unwrap();
        let updates_per_epoch = order.updates_per_epoch() as usize;
        let data = counts(rows, updates_per_epoch, 64);
        let steps = resolve(&config, ranks, Some(data)).unwrap().steps.unwrap();
        let found = (steps.updates_per_epoch, steps.total_steps, steps.warmup_steps);
        assert_eq!(found, expected, "{rows} rows, {ranks} ranks, {overrides:?}");
        assert_eq!(steps.num_rows, rows);
    }
}

#[test]
fn real_data_gives_the_same_count_and_no_data_gives_none() {
    let bench = Bench::new();
    for (overrides, world_size, expected) in [
        // 96 rows; 30; 30 without 7 held out.
        (&["num_train_epochs=2"][..], 1, (96, 24, 48)),
        (&["max_samples=30", "num_train_epochs=1"], 2, (30, 4, 4)),
        (&["max_samples=30", "val_size=7", "eval_strategy=epoch", "gradient_accumulation_steps=2"], 2, (23, 2, 2)),
    ] {
        let steps = prepare(&bench.config(overrides), world_size).unwrap().plan.steps.unwrap();
        assert_eq!((steps.num_rows, steps.updates_per_epoch, steps.total_steps), expected, "{overrides:?}");
    }
    assert_eq!(resolve(&config(&[]), 1, None).unwrap().steps, None);
}

#[test]
fn the_recipe_reaches_the_optimizer_as_written() {
    let data = Some(counts(40, 10, 64));
    let plan = |overrides: &[&str]| resolve(&config(overrides), 1, data).unwrap().settings;
    let common = ["learning_rate=3.0e-4", "num_train_epochs=2", "warmup_ratio=0.2"];
    for (name, decay) in
        [("linear", Decay::Linear), ("cosine", Decay::Cosine), ("constant_with_warmup", Decay::Constant)]
    {
        let scheduler = format!("lr_scheduler_type={name}");
        let found = plan(&[common[0], common[1], common[2], &scheduler]).learning_rate;
        assert_eq!(found, LearningRate { peak: 3e-4, warmup_steps: 4, total_steps: 20, decay }, "{name}");
    }
    let found = plan(&["adam_beta1=0.8", "adam_beta2=0.95", "adam_epsilon=1.0e-7", "weight_decay=0.1"]).optimizer;
    assert_eq!((found.beta1, found.beta2, found.epsilon, found.weight_decay), (0.8, 0.95, 1e-7, 0.1));
    assert_eq!(plan(&["max_grad_norm=0.5"]).optimizer.max_grad_norm, Some(0.5));
    assert_eq!(plan(&["max_grad_norm=0"]).optimizer.max_grad_norm, None, "0 clips nothing");
    let found = plan(&["lora_dropout=0.25", "lora_target=all", "seed=99"]);
    assert_eq!((found.lora_dropout, found.seed), (0.25, 99));
}

#[test]
fn less_memory_keeps_less_and_too_little_is_refused() {
    const TOKENS: usize = 5000;
    let data = Some(counts(40, 10, TOKENS));
    for world_size in [1, 4] {
        let with_memory = |memory: Option<ByteCount>| {
            let mut config = config(&[]);
            config.device.device_memory = memory;
            resolve(&config, world_size, data)
        };
        let free = with_memory(None).unwrap();
        assert_eq!(free.settings.keep, Keep::Everything.into());
        let keeps: Vec<Keeping> = free.ways.iter().map(|way| way.keep).collect();
        assert_eq!(keeps, [Keep::Everything, Keep::AllButGateUp, Keep::InputOnly].map(Keeping::from));
        let [most, some, least] = [0, 1, 2].map(|way| free.ways[way].memory.total());
        assert!(most > some && some > least, "{most} {some} {least}");
        for (memory, expected) in [
            (most, Keep::Everything),
            (ByteCount(most.0 - 1), Keep::AllButGateUp),
            (some, Keep::AllButGateUp),
            (ByteCount(some.0 - 1), Keep::InputOnly),
            (least, Keep::InputOnly),
        ] {
            let plan = with_memory(Some(memory)).unwrap();
            assert_eq!(plan.settings.keep, expected.into(), "{memory} on {world_size}");
            assert!(plan.memory.total() <= memory);
            assert_eq!(plan.memory.budget, Some(memory));
        }
        let error = with_memory(Some(ByteCount(least.0 - 1))).unwrap_err();
        let TrainError::DoesNotFit { needed, least: way, .. } = &error else { panic!("{error}") };
        assert_eq!((*needed, way.tokens, way.runs, way.keep), (least, TOKENS, 1, Keep::InputOnly), "{error}");
        assert_eq!(error.exit_code(), ExitCode::DeviceUnavailable);
        assert_eq!(error.exit_code().code(), 69);
        let hint = error.hint().unwrap();
        for key in ["per_device_train_batch_size", "cutoff_len", "raise `device_memory`"] {
            assert!(hint.contains(key), "{key}: {hint}");
        }
    }
}

#[test]
fn a_plan_in_little_memory_trains_to_the_same_bits() {
    let bench = Bench::new();
    let train = |keep: Option<Keep>| {
        let mut config = bench.config(&["max_steps=3"]);
        let free = prepare(&config, 1).unwrap();
        if let Some(keep) = keep {
            let way = free.plan.ways.into_iter().find(|way| way.keep == keep.into()).unwrap();
            config.device.device_memory = Some(way.memory.total());
            assert_eq!(prepare(&config, 1).unwrap().plan.settings.keep, keep.into());
        }
        crate::bench::train(&config, 3)
    };
    let free = train(None);
    for keep in [Keep::AllButGateUp, Keep::InputOnly] {
        let found = train(Some(keep));
        assert_eq!(found.reports, free.reports, "{keep:?}");
        assert!(crate::bench::bits(&found.adapter) == crate::bench::bits(&free.adapter), "{keep:?}");
    }
}

/// A GPU that is not here, of so much memory.
fn gpu(world_size: usize, compute: ComputeType, room: Room) -> Hardware {
    Hardware { world_size, kind: Kind::Gpu, compute, room, sees_peers: true }
}

#[test]
fn a_gpu_is_planned_in_its_own_element_type_and_memory() {
    let data = Some(counts(40, 10, 5000));
    let on_host = resolve(&config(&[]), 1, data).unwrap().memory;
    let unknown = resolve(&config(&[]), gpu(1, ComputeType::Bf16, Room::Unknown), data).unwrap();
    assert_eq!((unknown.settings.keep, unknown.memory.budget), (Keep::Everything.into(), None));
    assert_eq!(2 * unknown.memory.shard.0, on_host.shard.0, "two bytes a weight");
    // Adapter, gradient, two moments, and the adapter rounded.
    assert_eq!(unknown.memory.trained.0, 18 * unknown.num_trained() as u64);
    assert!(unknown.memory.workspace > on_host.workspace && unknown.memory.activations.kept < on_host.activations.kept);
    let in_f32 = resolve(&config(&[]), gpu(1, ComputeType::F32, Room::Unknown), data).unwrap().memory;
    assert_eq!((in_f32.shard, in_f32.trained), (on_host.shard, on_host.trained));
    assert_eq!(in_f32.activations.kept, on_host.activations.kept);

    // The same algorithms in every run need no memory for trials; a fixed order of sums needs some.
    assert_eq!(unknown.choice, Choice::Timed);
    let fixed = resolve(&config(&["deterministic=true"]), gpu(1, ComputeType::Bf16, Room::Unknown), data).unwrap();
    assert_eq!((fixed.choice, fixed.memory.activations), (Choice::First, unknown.memory.activations));
    assert_ne!(fixed.memory.workspace, unknown.memory.workspace);

    // Of what is written and what was found the less is planned with, and it is known where that is not what was written.
    let all = unknown.memory.total();
    let short = ByteCount(all.0 - 1);
    for (written, found, expected, more_than_free) in [
        (None, short, short, None),
        (Some(all), short, short, Some(all)),
        (Some(short), all, short, None),
        (Some(all), all, all, None),
    ] {
        let mut config = config(&[]);
        config.device.device_memory = written;
        let plan = resolve(&config, gpu(1, ComputeType::Bf16, Room::ForAll(found)), data).unwrap();
        let keep = if expected == all { Keep::Everything } else { Keep::AllButGateUp };
        assert_eq!((plan.memory.budget, plan.settings.keep), (Some(expected), keep.into()), "{written:?} of {found}");
        assert_eq!(plan.more_than_free, more_than_free, "{written:?} of {found}");
    }
}

#[test]
fn several_gpus_are_planned_with_shards_and_gathered_units() {
    let plan = |world_size| resolve(&config(&[]), gpu(world_size, ComputeType::Bf16, Room::Unknown), None).unwrap();
    let (one, eight) = (plan(1).memory, plan(8).memory);
    assert!(eight.shard.0 >= one.shard.0 / 8 && eight.shard.0 < one.shard.0 / 7, "{eight:?}");
    assert_eq!((one.gathered, eight.activations), (ByteCount(0), one.activations));
    assert!(eight.gathered.0 > 0 && eight.gathered < one.shard);
    let full = resolve(&config(&["finetuning_type=full"]), gpu(1, ComputeType::Bf16, Room::Unknown), None).unwrap_err();
    assert!(matches!(full, TrainError::Config { key: "finetuning_type", .. }), "{full}");
}

#[test]
fn a_model_that_is_not_there_is_a_missing_input_unless_its_shape_is_known_and_suffices() {
    let named = |name: &str| config(&[&format!("model_name_or_path=/nowhere/{name}"), "random_weights=false"]);
    let scout = named("Llama-4-Scout-17B-16E-Instruct");
    assert_eq!(ModelSource::find(&scout, true).unwrap().config, scout_model::ModelConfig::scout());
    for (config, shape_suffices) in [(&scout, false), (&named("Llama-4-Maverick-17B-128E"), true)] {
        let error = ModelSource::find(config, shape_suffices).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::MissingInput, "{error}");
        assert!(error.to_string().contains("/nowhere/"), "{error}");
        assert!(error.hint().unwrap().contains("hf download"), "{error}");
    }
    // A name as hosts of models have it can be the folder too, so that the configuration stays as it is.
    let name = "meta-llama/Llama-4-Maverick-17B-128E";
    let error = ModelSource::find(&config(&[&format!("model_name_or_path={name}")]), false).unwrap_err();
    assert!(error.hint().unwrap().ends_with(&format!("hf download {name} --local-dir {name}")), "{error}");
}

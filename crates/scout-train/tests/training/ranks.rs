//! Several ranks, as threads: dealing rows to more ranks changes only the order of sums, and whole runs go on together.
//! That sharding changes nothing is tested for all backends, in `tests/sharding`.

use scout_core::{ByteCount, ExitCode};
use scout_model::Keep;
use scout_telemetry::Progress;
use scout_train::plan::ModelSource;
use scout_train::prepare::{plan_model, prepare};
use scout_train::ways::Experts;
use scout_train::{assemble, identity, run};

use crate::bench::{Bench, assert_all_near, assert_near, bits, on_every_rank, train, train_on_ranks};

const STEPS: usize = 4;

fn recipe(bench: &Bench, world_size: usize, more: &[&str]) -> scout_config::RunConfig {
    // The product of ranks and rows is the same for all, and with it the rows of every update.
    let batch = format!("per_device_train_batch_size={}", 8 / world_size);
    let overrides: Vec<&str> =
        [batch.as_str(), "adam_epsilon=1.0e-3"].into_iter().chain(more.iter().copied()).collect();
    bench.config(&overrides)
}

#[test]
fn ranks_that_read_other_data_are_told_before_they_train() {
    let bench = Bench::new();
    let plan = |more: &[&str], world_size| {
        let config = bench.config(more);
        plan_model(&config, ModelSource::find(&config, false).unwrap(), world_size).unwrap()
    };
    // Fewer rows; and as many of the same lengths, of which other tokens are learned.
    for other in ["max_samples=30", "train_on_prompt=true"] {
        let told = on_every_rank(3, |job| {
            let more: &[&str] = if job.mesh().rank().0 == 1 { &[other] } else { &[] };
            let error = identity::must_plan_alike(&plan(more, 3), &*job.comm).unwrap_err();
            (error.exit_code(), error.to_string())
        });
        for (code, sentence) in told {
            assert_eq!(code, ExitCode::BadData, "{other}");
            assert!(sentence.contains("rank 1 has read"), "{other}: {sentence}");
        }
    }
    let alike = on_every_rank(2, |job| identity::must_plan_alike(&plan(&[], 2), &*job.comm).is_ok());
    assert_eq!(alike, [true, true]);
}

#[test]
fn dealing_rows_to_more_ranks_changes_only_the_order_of_sums() {
    let bench = Bench::new();
    for more in [&[][..], &["gradient_accumulation_steps=2", "lora_target=all", "lora_dropout=0.2"]] {
        let alone = train(&recipe(&bench, 1, more), STEPS);
        for world_size in [2, 4] {
            for trained in train_on_ranks(&recipe(&bench, world_size, more), world_size, STEPS) {
                for (found, expected) in trained.reports.iter().zip(&alone.reports) {
                    assert_near("loss beside one rank", found.loss, expected.loss, 1e-5);
                    assert_near("norm beside one rank", found.grad_norm, expected.grad_norm, 1e-5);
                    assert_eq!(found.num_tokens, expected.num_tokens);
                }
                assert_all_near("adapter beside one rank", &trained.adapter, &alone.adapter, 1e-5);
            }
        }
    }
}

#[test]
fn ranks_keep_less_the_more_there_are() {
    let bench = Bench::new();
    let shards: Vec<ByteCount> =
        [1, 2, 4, 8].map(|world_size| prepare(&bench.config(&[]), world_size).unwrap().plan.memory.shard).into();
    for (index, pair) in shards.windows(2).enumerate() {
        let share = pair[1].as_f64() / pair[0].as_f64();
        // Units are padded to equal parts, which costs a few elements.
        assert!((0.5..0.501).contains(&share), "{index}: {pair:?}");
    }
}

#[test]
fn a_rank_without_rows_of_its_own_walks_along() {
    let bench = Bench::new();
    // Held-out rows: five in batches of two for four ranks leave one rank with half a batch and one with none.
    let overrides = ["val_size=5", "eval_strategy=steps", "eval_steps=1", "per_device_train_batch_size=2"];
    let config = bench.config(&overrides);
    let losses = on_every_rank(4, |job| {
        let prepared = prepare(&config, 4).unwrap();
        let rank = job.mesh().rank().0;
        let chunk_size = prepared.plan.source.config.attention_chunk_size;
        let batches = prepared.data.evaluation(2, 4, rank, chunk_size).unwrap();
        let tokens: usize = batches.iter().map(scout_model::Batch::num_tokens).sum();
        let trainer = assemble::build(&config, &prepared, &job).unwrap();
        (tokens, batches.len(), trainer.evaluate(&batches).unwrap())
    });
    assert!(losses[3].0 == 0 && losses[0].0 > losses[2].0 && losses[2].0 > 0, "{losses:?}");
    for (_, num_batches, loss) in &losses {
        assert_eq!((*num_batches, loss.to_bits()), (1, losses[0].2.to_bits()));
    }
}

#[test]
fn whole_runs_on_ranks_agree_and_only_the_first_writes() {
    let bench = Bench::new();
    let run_with = |weights: &str| {
        let output = bench.path(weights);
        let config =
            bench.config(&["max_steps=3", &format!("weights={weights}"), &format!("output_dir={}", output.display())]);
        let outcomes = on_every_rank(2, |job| {
            run::run(&config, prepare(&config, 2).unwrap(), &job, &mut Progress::silent()).unwrap().losses
        });
        assert_eq!(bits(&outcomes[0]), bits(&outcomes[1]));
        let log = std::fs::read_to_string(output.join("trainer_log.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 3, "one line a step, not one a step and rank");
        (bits(&outcomes[0]), std::fs::read(output.join("adapter_model.safetensors")).unwrap())
    };
    let [sharded, resident] = ["zero3", "resident"].map(run_with);
    assert_eq!(sharded.0, resident.0);
    assert!(sharded.1 == resident.1, "adapter files differ");
}

#[test]
fn rows_that_go_to_experts_of_other_ranks_train_to_the_same_bits() {
    let bench = Bench::new();
    // Held-out rows leave one of four ranks without any, and memory decides what is made again.
    let common = [
        "lora_target=all",
        "max_steps=3",
        "val_size=5",
        "eval_strategy=steps",
        "eval_steps=1",
        "per_device_train_batch_size=2",
    ];
    // Adapters of experts have their gradients from other ranks, and sum them in another order.
    for (world_size, memory) in [(2, None), (4, None), (4, Some(Keep::AllButGateUp)), (4, Some(Keep::InputOnly))] {
        let [gathered, travelling] = ["zero3", "expert-resident"].map(|weights| {
            let output = bench.path(&format!("{weights}-{world_size}-{memory:?}"));
            let own = [format!("weights={weights}"), format!("output_dir={}", output.display())];
            let overrides: Vec<&str> = common.into_iter().chain(own.iter().map(String::as_str)).collect();
            let mut config = bench.config(&overrides);
            if let Some(keep) = memory {
                let ways = prepare(&config, world_size).unwrap().plan.ways;
                let way = ways.iter().find(|way| way.keep == keep.into()).unwrap();
                config.device.device_memory = Some(way.memory.total());
            }
            let outcomes = on_every_rank(world_size, |job| {
                let prepared = prepare(&config, world_size).unwrap();
                assert_eq!(prepared.plan.way.keep, memory.unwrap_or(Keep::Everything).into());
                assert_eq!(prepared.plan.way.experts == Experts::Stay, weights == "expert-resident");
                let whole = run::run(&config, prepared, &job, &mut Progress::silent()).unwrap();
                bits(&whole.losses)
            });
            assert!(outcomes.iter().all(|losses| *losses == outcomes[0]));
            let log = std::fs::read_to_string(output.join("trainer_log.jsonl")).unwrap();
            let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
            let busiest = first["busiest_experts"].as_f64();
            assert_eq!(busiest.is_some_and(|busiest| busiest > 1.0), weights == "expert-resident", "{busiest:?}");
            let results = std::fs::read_to_string(output.join("eval_results.json")).unwrap();
            let loss = results.lines().find(|line| line.contains("eval_loss")).unwrap().to_string();
            (outcomes[0].clone(), loss, std::fs::read(output.join("adapter_model.safetensors")).unwrap())
        });
        assert!(gathered == travelling, "{world_size} ranks, {memory:?}: {:?} {:?}", gathered.0, travelling.0);
    }
}

#[test]
fn what_there_is_no_room_to_keep_of_rows_that_came_is_made_again_to_the_same_bits() {
    let bench = Bench::new();
    let config = bench.config(&["weights=expert-resident", "lora_target=all+experts", "per_device_train_batch_size=2"]);
    let prepared = prepare(&config, 4).unwrap();
    let planned = prepared.plan.settings.most_kept_rows;
    assert_eq!(prepared.plan.way.experts, Experts::Stay);
    let train = |most_kept_rows| {
        on_every_rank(4, |job| {
            let mut trainer = assemble::build(&config, &prepared, &job).unwrap();
            trainer.settings.most_kept_rows = most_kept_rows;
            let (rank, chunk_size) = (job.mesh().rank().0, prepared.plan.source.config.attention_chunk_size);
            let step = |step| {
                let (batches, _) = prepared.data.update(step, rank, chunk_size).unwrap();
                let report = trainer.step(&batches, step).unwrap();
                (report.loss.to_bits(), report.grad_norm.to_bits())
            };
            (0..STEPS).map(step).collect::<Vec<_>>()
        })
    };
    let all_kept = train(usize::MAX);
    for most_kept_rows in [0, planned / 4, planned / 2, planned] {
        assert_eq!(train(most_kept_rows), all_kept, "{most_kept_rows} of {planned}");
    }
}

#[test]
fn experts_stay_with_their_ranks_only_where_rows_can_go_to_them() {
    let bench = Bench::new();
    for (world_size, more, expected) in
        [(3, &[][..], "which 3 ranks cannot share equally"), (2, &["finetuning_type=full"], "weights that are trained")]
    {
        let config = bench.config(&[&["weights=expert-resident"], more].concat());
        let error = prepare(&config, world_size).err().unwrap();
        assert_eq!(error.exit_code(), ExitCode::BadConfig);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

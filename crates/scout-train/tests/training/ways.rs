//! The planner's predictions against measured steps, and what it chooses for Scout on eight GPUs of different memory.

use scout_config::RunConfig;
use scout_core::{ByteCount, ExitCode, UnitId};
use scout_model::{Keep, Keeping, LayerUnits, ModelConfig, NameStyle};
use scout_train::assemble;
use scout_train::machine::{ComputeType, Hardware, Kind, Room};
use scout_train::memory::LargestBatch;
use scout_train::plan::{DataCounts, ModelSource, RunPlan};
use scout_train::prepare::prepare;
use scout_train::runs::Largest;
use scout_train::step_bench::with_layers;
use scout_train::ways::{Experts, Resident, Way};
use scout_train::{Result, TrainError};

use crate::bench::{Bench, adapter_of, assert_all_near, assert_near, on_every_rank};

fn config(overrides: &[&str]) -> RunConfig {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    let text = "random_weights: true\nweights: zero3\nlora_target: all\ngradient_accumulation_steps: 1\n";
    RunConfig::from_text("test.yaml", text, &overrides, &[]).unwrap().config
}

fn scout() -> ModelSource {
    ModelSource { config: ModelConfig::scout(), style: NameStyle::Conditional, folder: None }
}

fn gpus(world_size: usize) -> Hardware {
    Hardware { world_size, kind: Kind::Gpu, compute: ComputeType::Bf16, room: Room::Unknown, sees_peers: true }
}

fn on_eight(overrides: &[&str]) -> Result<RunPlan> {
    RunPlan::resolve(&config(overrides), scout(), gpus(8), None, None)
}

fn with(rows: usize, gib: u64, more: &[&str]) -> RunPlan {
    let (rows, memory) = (format!("per_device_train_batch_size={rows}"), format!("device_memory={gib}GiB"));
    on_eight(&[&["cutoff_len=2048", &rows, &memory], more].concat()).unwrap()
}

fn seconds(plan: &RunPlan) -> f64 {
    plan.way.time.unwrap().seconds
}

fn tokens_per_second(plan: &RunPlan) -> f64 {
    plan.way.time.unwrap().tokens_per_second()
}

#[test]
fn measured_steps_are_predicted_within_seven_percent() {
    // One H200, everything resident: layers, rows, tokens in all, longest row, what is kept, seconds.
    for (layers, rows, tokens, longest, keep, measured) in [
        (4, 8, 16_384, 2048, Keep::Everything, 0.2617),
        (4, 16, 32_768, 2048, Keep::Everything, 0.5169),
        (4, 2, 4096, 2048, Keep::Everything, 0.0676),
        (24, 1, 2048, 2048, Keep::Everything, 0.1571),
        (4, 16, 2740, 1200, Keep::Everything, 0.0469),
        (4, 4, 32_768, 8192, Keep::Everything, 0.5788),
        (12, 8, 16_384, 2048, Keep::Everything, 0.5592),
        (24, 8, 16_384, 2048, Keep::AllButGateUp, 1.2702),
    ] {
        let source = with_layers(scout(), layers);
        let batch = LargestBatch { num_rows: rows, num_tokens: tokens, longest_row: longest };
        let trained = Largest::of_alike(batch, 1);
        let data = DataCounts {
            num_rows: rows,
            updates_per_epoch: 1,
            trained,
            scored: Largest::default(),
            busiest_share: None,
        };
        let plan = RunPlan::resolve(&config(&[]), source, gpus(1), Some(data), None).unwrap();
        let way = plan.ways.iter().find(|way| way.keep == keep.into()).unwrap();
        let predicted = way.time.unwrap().seconds;
        let ratio = predicted / measured;
        assert!((0.93..=1.07).contains(&ratio), "{layers} layers, {rows} rows: {predicted} s, measured {measured} s");
    }
}

#[test]
fn measured_steps_of_several_gpus_are_predicted_within_seven_percent() {
    let mut side_by_side = Vec::new();
    // Of so many of 48 layers gate and up are computed again.
    let again = |num_layers: usize| Keeping::mixed(Keep::AllButGateUp, 48 - num_layers, 48);
    // H200, rows of 2,048 tokens: GPUs, layers, rows, memory, layers that each keeps whole, runs, what is kept, seconds.
    for (world_size, layers, rows, gib, resident, runs, keep, measured) in [
        (2, 12, 8, 139, "0", 1, Keep::Everything.into(), 0.5838),
        (2, 24, 16, 80, "0", 6, Keep::Everything.into(), 2.3238),
        (2, 48, 4, 139, "2", 2, Keep::Everything.into(), 1.1566),
        // Side by side: what is computed again costs more than the two layers that it makes room for. Both with the ring larger
        // than it is now: in less memory the plan holds the same (10 layers with both ends).
        (2, 48, 1, 136, "10", 1, Keep::AllButGateUp.into(), 0.4702),
        (2, 48, 1, 137, "12", 1, Keep::InputOnly.into(), 0.4833),
        (2, 48, 1, 139, "11", 1, again(30), 0.4467),
        (2, 48, 16, 139, "0", 6, again(6), 4.6343),
        (4, 12, 8, 139, "0", 1, Keep::Everything.into(), 0.5948),
        (4, 48, 16, 139, "4", 3, Keep::Everything.into(), 4.1842),
        (4, 48, 16, 80, "0", 4, Keep::AllButGateUp.into(), 5.3178),
        (4, 48, 4, 139, "11", 1, Keep::Everything.into(), 1.0600),
        (4, 48, 1, 139, "23", 1, Keep::AllButGateUp.into(), 0.4669),
    ] {
        let overrides = [
            "cutoff_len=2048".to_string(),
            format!("per_device_train_batch_size={rows}"),
            format!("device_memory={gib}GiB"),
            format!("resident_layers={resident}"),
        ];
        let config = config(&overrides.each_ref().map(String::as_str));
        let plan = RunPlan::resolve(&config, with_layers(scout(), layers), gpus(world_size), None, None).unwrap();
        let like_it = |way: &&Way| (way.runs, way.keep) == (runs, keep);
        let way = plan.ways.iter().find(like_it).unwrap_or_else(|| panic!("{runs} runs: {:?}", plan.ways));
        let predicted = way.time.unwrap().seconds;
        let ratio = predicted / measured;
        assert!(
            (0.93..=1.07).contains(&ratio),
            "{world_size} GPUs, {layers} layers, {rows} rows: {predicted} s, measured {measured} s, {way:?}"
        );
        if (world_size, layers, rows) == (2, 48, 1) && keep.num_more == 0 {
            side_by_side.push(predicted);
        }
    }
    assert!(matches!(side_by_side[..], [less, more] if less < more), "{side_by_side:?}");
}

#[test]
fn runs_of_the_program_that_must_agree_deal_an_update_alike_whatever_link_and_memory_are() {
    let alike = ["deterministic=true", "gradient_accumulation_steps=2"];
    for more in [&["gather=copy"][..], &["gather=nccl"], &["weights=resident", "resident_layers=auto"]] {
        for (rows, gib) in [(4, 80), (4, 137)] {
            let memory = format!("device_memory={gib}GiB");
            let rows = format!("per_device_train_batch_size={rows}");
            let keys = [&["cutoff_len=2048", &memory, &rows][..], &alike, more].concat();
            let source = with_layers(scout(), 12);
            let plan = RunPlan::resolve(&config(&keys), source, gpus(2), None, None).unwrap();
            assert_eq!(plan.runs, 2, "{more:?} {gib} GiB");
        }
    }
    assert_ne!(with(16, 137, &[]).runs, 1, "else nothing was shown");
}

#[test]
fn scout_on_eight_gpus_fits_and_is_as_fast_as_its_arithmetic_allows() {
    for (gib, rows, least, most) in [
        // Products at the rate that one sustains alone (668 TFLOP/s) would make 9,800 tokens a second.
        (137, 16, 7500.0, 9800.0),
        (137, 8, 7500.0, 9800.0),
        (80, 16, 6000.0, 9800.0),
        // The link alone takes a second for a pass forward and back, less what is resident.
        (137, 1, 2000.0, 7000.0),
        (80, 1, 1500.0, 5000.0),
    ] {
        let plan = with(rows, gib, &[]);
        let Way { memory, resident, .. } = plan.way;
        assert!(memory.total().0 <= gib << 30 && memory.libraries.0 > 0, "{memory:?}");
        let speed = tokens_per_second(&plan);
        assert!((least..most).contains(&speed), "{gib} GiB, {rows} rows: {speed} tokens/s, {:?}", plan.way);
        // What is printed is what runs.
        assert_eq!((plan.settings.keep, plan.runs, plan.memory), (plan.way.keep, plan.way.runs, memory));
        assert_eq!((plan.shards.kept_bytes(), plan.shards.lookahead()), (memory.shard, plan.way.lookahead));
        let peak = plan.shards.gathered_peak(&plan.schedules.train);
        assert!(memory.gathered >= peak && memory.gathered.0 < peak.0 + peak.0 / 4, "{} of {peak}", memory.gathered);
        assert!(plan.ways.len() >= 3 && plan.ways[0] == plan.way, "{:?}", plan.ways);
        assert!(resident.num_layers < 48);
    }
    // A small batch needs less for itself, which layers take.
    assert!(with(1, 137, &[]).way.resident.num_layers > with(16, 137, &[]).way.resident.num_layers);
    assert_eq!(
        with(16, 137, &[]).way.keep,
        Keep::Everything.into(),
        "runs of fewer tokens cost less than computing again"
    );
    assert!(with(16, 137, &[]).runs > 1);
    let error = on_eight(&["cutoff_len=2048", "per_device_train_batch_size=8", "device_memory=30GiB"]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::DeviceUnavailable);
}

#[test]
fn more_memory_is_never_slower() {
    for rows in [1, 16] {
        let times: Vec<f64> = (44..=140).step_by(12).map(|gib| seconds(&with(rows, gib, &[]))).collect();
        assert!(times.is_sorted_by(|less, more| less >= more), "{rows} rows: {times:?}");
        assert!(times[0] > 1.2 * times[times.len() - 1], "{rows} rows: {times:?}");
    }
}

#[test]
fn what_is_written_about_residency_is_obeyed() {
    let free = with(4, 137, &[]);
    for count in [0, 1, 7] {
        let plan = with(4, 137, &[&format!("resident_layers={count}")]);
        assert_eq!(plan.way.resident.num_layers, count);
        assert!(plan.ways.iter().all(|way| way.resident.num_layers == count));
        assert!(seconds(&plan) >= seconds(&free));
        for unit in [|layer: LayerUnits| layer.gate_up, |layer: LayerUnits| layer.down] {
            let is_whole = |layer: &usize| {
                let unit = plan.shards.unit(unit(plan.units.layer(*layer)));
                unit.shard_len == unit.spec.num_elements()
            };
            assert_eq!((0..48).filter(is_whole).count(), count);
        }
    }
    let error = on_eight(&["resident_layers=49"]).unwrap_err();
    assert!(matches!(error, TrainError::Config { key: "resident_layers", .. }), "{error}");
    // Where memory is unknown nothing is held on a guess.
    let unknown = on_eight(&[]).unwrap();
    assert_eq!((unknown.way.resident, unknown.runs), (Resident::NOTHING, 1));
    let whole = on_eight(&["weights=resident"]).unwrap();
    assert_eq!((whole.way.resident, whole.memory.gathered.0), (Resident::everything(48), 0));
}

#[test]
fn what_does_not_fit_is_told_with_the_key_that_helps() {
    let never =
        ["per_device_train_batch_size", "cutoff_len", "resident_layers", "weights: resident", "device_memory", "ranks"];
    let refused = |overrides: &[&str], helps: &[&str]| {
        let config = config(&[&["cutoff_len=2048", "per_device_train_batch_size=4"], overrides].concat());
        let hardware = Hardware { room: Room::ForAll(ByteCount(79 << 30)), ..gpus(8) };
        let error = RunPlan::resolve(&config, scout(), hardware, None, None).unwrap_err();
        let hint = error.hint().unwrap();
        for key in never {
            assert_eq!(hint.contains(key), helps.contains(&key), "{overrides:?}, {key}: {error}\n{hint}");
        }
        let TrainError::DoesNotFit { least, .. } = error else { panic!("{error}") };
        least
    };
    // However small the batch, so many layers do not fit.
    let least = refused(&["resident_layers=48"], &["resident_layers"]);
    assert_eq!((least.resident_layers, least.runs, least.tokens), (48, 4, 2048));
    assert_eq!(refused(&["weights=resident"], &["weights: resident"]).resident_layers, 48);
    // Rows can be dealt to runs of one row each already: only shorter ones need less.
    assert_eq!(refused(&["cutoff_len=262144"], &["cutoff_len"]).resident_layers, 0);
    // Runs of the program that must agree take micro-batches as they are dealt, where fewer rows help too.
    let fixed = ["deterministic=true", "per_device_train_batch_size=64"];
    assert_eq!(refused(&fixed, &["per_device_train_batch_size", "cutoff_len"]).tokens, 64 * 2048);
    // No batch is small enough for a rank's part of the weights.
    assert_eq!(refused(&["device_memory=28GiB"], &["device_memory", "ranks"]).tokens, 2048);
    // More than is free helps nobody.
    refused(&["device_memory=90GiB", "resident_layers=48"], &["resident_layers"]);
}

#[test]
fn the_slower_link_is_felt_where_little_hides_it() {
    let [copy, nccl] = ["copy", "nccl"].map(|gather| with(1, 80, &[&format!("gather={gather}")]).way.time.unwrap());
    assert!(nccl.seconds > copy.seconds && nccl.exposed > copy.exposed, "{nccl:?} {copy:?}");
    // An update of two micro-batches takes twice as long, but for what happens once.
    let [one, two] = [1, 2].map(|n| seconds(&with(8, 137, &[&format!("gradient_accumulation_steps={n}")])));
    assert!(two > 1.9 * one && two < 2.0 * one, "{one} {two}");
}

#[test]
fn micro_batches_that_gather_the_whole_model_are_merged() {
    let accumulated = |count: usize, more: &[&str]| {
        let count = format!("gradient_accumulation_steps={count}");
        with(1, 137, &[&[count.as_str()], more].concat())
    };
    let plan = accumulated(8, &[]);
    let as_dealt = plan.ways.iter().filter(|way| way.runs == 8).map(|way| way.time.unwrap().seconds);
    let as_dealt = as_dealt.min_by(f64::total_cmp).expect("what merging gains is shown");
    assert!(plan.runs < 8 && seconds(&plan) < 0.8 * as_dealt, "{as_dealt} {:?}", plan.way);
    assert!(as_dealt < 8.0 * seconds(&accumulated(1, &[])), "only the first run begins with an idle link");
    assert_eq!(plan.way.time.unwrap().num_tokens, 8 * 2048);
    // As good as rows that were dealt as one micro-batch from the beginning.
    let whole = with(8, 137, &[]);
    assert_eq!((plan.way, plan.shards.kept_bytes()), (whole.way, whole.shards.kept_bytes()));
    // What is written about residency holds here as well.
    assert!(accumulated(8, &["resident_layers=2"]).ways.iter().all(|way| way.resident.num_layers == 2));
}

#[test]
fn where_nothing_is_gathered_only_a_gpu_merges_and_only_to_be_faster() {
    let plan = |hardware: Hardware, overrides: &[&str]| {
        let shared = ["cutoff_len=128", "per_device_train_batch_size=1", "gradient_accumulation_steps=4"];
        let source = with_layers(scout(), 4);
        RunPlan::resolve(&config(&[&shared, overrides].concat()), source, hardware, None, None).unwrap()
    };
    let memory = "device_memory=137GiB";
    let merged = plan(gpus(1), &[memory]);
    let as_dealt = merged.ways.iter().find(|way| way.runs == 4).expect("what merging gains is shown");
    assert!(merged.runs < 4 && seconds(&merged) < as_dealt.time.unwrap().seconds, "{:?}", merged.ways);
    assert!(merged.ways.iter().all(|way| way.runs <= 4));
    for (hardware, overrides) in [
        (gpus(1), &[][..]),
        (gpus(1), &[memory, "deterministic=true"]),
        (1.into(), &["device_memory=1000GiB"]),
        (8.into(), &["device_memory=1000GiB"]),
    ] {
        let plan = plan(hardware, overrides);
        let keeps: Vec<(usize, Keeping)> = plan.ways.iter().map(|way| (way.runs, way.keep)).collect();
        let expected = [Keep::Everything, Keep::AllButGateUp, Keep::InputOnly].map(|keep| (4, Keeping::from(keep)));
        assert_eq!((plan.runs, &keeps[..]), (4, &expected[..]), "{overrides:?}");
    }
}

#[test]
fn merged_micro_batches_are_the_same_update() {
    let bench = Bench::new();
    let train = |overrides: &[&str], runs: usize| {
        let shared = ["per_device_train_batch_size=2", "gradient_accumulation_steps=4", "adam_epsilon=1.0e-3"];
        let config = bench.config(&[&shared, overrides].concat());
        let (mut prepared, mut trainer) = crate::bench::trainer(&config);
        assert_eq!(prepared.data.runs, 4, "the host takes micro-batches as they are dealt");
        prepared.data.runs = runs;
        let chunk_size = prepared.plan.source.config.attention_chunk_size;
        let step = |step| {
            let (batches, counts) = prepared.data.update(step, 0, chunk_size).unwrap();
            assert_eq!((batches.len(), counts.micro_batches), (runs, 4));
            trainer.step(&batches, step).unwrap()
        };
        let reports: Vec<_> = (0..3).map(step).collect();
        (reports, adapter_of(&trainer))
    };
    for overrides in [
        // Dropout's masks belong to rows, wherever these are computed.
        &["loss_reduction=token", "lora_target=all", "lora_dropout=0.2"][..],
        &["loss_reduction=micro_batch_mean"],
    ] {
        let (as_dealt, adapter) = train(overrides, 4);
        for runs in [1, 2] {
            let (found, merged) = train(overrides, runs);
            let what = format!("{overrides:?} in {runs} runs");
            for (found, expected) in found.iter().zip(&as_dealt) {
                assert_eq!(found.num_tokens, expected.num_tokens, "{what}");
                assert_near(&what, found.loss, expected.loss, 1e-5);
                assert_near(&what, found.grad_norm, expected.grad_norm, 1e-5);
            }
            assert_all_near(&what, &merged, &adapter, 1e-5);
        }
    }
}

#[test]
fn resident_layers_lie_evenly_among_the_others() {
    for num_layers in [1, 2, 5, 48] {
        for count in 0..=num_layers {
            let resident = Resident { num_layers: count, ..Resident::NOTHING };
            let whole: Vec<usize> = (0..num_layers).filter(|layer| resident.has_layer(*layer, num_layers)).collect();
            assert_eq!(whole.len(), count);
            let gaps: Vec<usize> = whole.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (least, most) = (gaps.iter().min().copied(), gaps.iter().max().copied());
            assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1, "{count} of {num_layers}: {whole:?}");
            assert_eq!(whole.first(), (count > 0).then_some(&0));
        }
    }
}

#[test]
fn beside_whole_layers_lie_downs_of_others_evenly_and_not_at_the_first() {
    let plan = on_eight(&[]).unwrap();
    for (num_layers, num_downs) in [(0, 1), (0, 3), (27, 1), (27, 2), (27, 3), (46, 2), (47, 1)] {
        let resident = Resident { num_layers, num_downs, ..Resident::NOTHING };
        let units = resident.units(&plan.units, 48, Experts::Come);
        let of = |unit: fn(LayerUnits) -> UnitId| -> Vec<usize> {
            (0..48).filter(|layer| units[unit(plan.units.layer(*layer)).0]).collect()
        };
        let (whole, downs) = (of(|layer| layer.gate_up), of(|layer| layer.down));
        assert_eq!((whole.len(), downs.len()), (num_layers, num_layers + num_downs));
        assert_eq!((&whole, &whole), (&of(|layer| layer.attention), &of(|layer| layer.shared)));
        assert!(whole.iter().all(|layer| downs.contains(layer)));
        let others: Vec<usize> = (0..48).filter(|layer| !whole.contains(layer)).collect();
        let nth: Vec<usize> = (0..others.len()).filter(|nth| downs.contains(&others[*nth])).collect();
        let gaps = nth.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.into_iter().all(|gap| gap.abs_diff(others.len() / num_downs) <= 1), "{nth:?}");
        assert!(nth[0] > 0 || nth.len() == others.len() || num_downs > 2, "{nth:?} of {}", others.len());
    }
}

#[test]
fn layers_that_keep_more_than_others_use_the_time_in_which_the_link_is_busy() {
    // On the way back arithmetic takes longer than gathers, on the way there it waits for them.
    let plan = with(1, 139, &[]);
    let [all_again, none_again] = [Keep::AllButGateUp, Keep::Everything].map(|keep| {
        let way = plan.ways.iter().find(|way| way.keep == keep.into()).unwrap();
        way.time.unwrap().seconds
    });
    assert!(plan.way.keep.num_more > 0, "{:?}", plan.way);
    assert!(seconds(&plan) < 0.99 * all_again.min(none_again), "{} {all_again} {none_again}", seconds(&plan));
    assert_eq!(plan.settings.keep, plan.way.keep);
}

#[test]
fn a_micro_batch_in_runs_is_the_same_update() {
    let bench = Bench::new();
    // Two ranks, and a last update that wraps; one run more than rows leaves one empty on every rank.
    for reduction in ["token", "micro_batch_mean"] {
        let config = bench.config(&["max_samples=11", &format!("loss_reduction={reduction}")]);
        let train = |runs| {
            on_every_rank(2, |job| {
                let mut prepared = prepare(&config, 2).unwrap();
                prepared.data.runs = runs;
                let mut trainer = assemble::build(&config, &prepared, &job).unwrap();
                let step = |step| {
                    let chunk_size = prepared.plan.source.config.attention_chunk_size;
                    let (batches, _) = prepared.data.update(step, job.mesh().rank().0, chunk_size).unwrap();
                    assert_eq!(batches.len(), runs);
                    trainer.step(&batches, step).unwrap()
                };
                (0..4).map(step).collect::<Vec<_>>()
            })
            .remove(0)
        };
        let whole = train(1);
        for runs in [2, 3, 5] {
            for (found, expected) in train(runs).iter().zip(&whole) {
                assert_eq!(found.num_tokens, expected.num_tokens);
                let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
                let is_near = near(found.loss, expected.loss) && near(found.grad_norm, expected.grad_norm);
                assert!(is_near, "{reduction}, {runs} runs: {found:?}, whole {expected:?}");
            }
        }
    }
}

/// What a run with such keys does where experts may stay with their ranks.
fn on_gpus(world_size: usize, more: &[&str]) -> RunPlan {
    let keys = [&["cutoff_len=2048", "device_memory=139GiB", "weights=auto"], more].concat();
    RunPlan::resolve(&config(&keys), scout(), gpus(world_size), None, None).unwrap()
}

/// The same where the busiest rank's experts are known to get so many times an even share of all rows, each 2,048 tokens long.
fn on_gpus_with_busiest(world_size: usize, num_rows: usize, busiest_share: Option<f64>) -> RunPlan {
    let batch = LargestBatch { num_rows, num_tokens: 2048 * num_rows, longest_row: 2048 };
    let (trained, scored) = (Largest::of_alike(batch, 1), Largest::default());
    let data = DataCounts { num_rows: num_rows * world_size, updates_per_epoch: 1, trained, scored, busiest_share };
    let rows = format!("per_device_train_batch_size={num_rows}");
    let config = config(&["cutoff_len=2048", "device_memory=139GiB", "weights=auto", &rows]);
    RunPlan::resolve(&config, scout(), gpus(world_size), Some(data), None).unwrap()
}

#[test]
fn steps_of_two_gpus_whose_experts_stay_are_predicted_within_seven_percent() {
    // Routing balanced, and by the router of random weights.
    for (rows, busiest, runs, measured) in
        [(1, Some(1.0), 1, 0.2833), (4, Some(1.0), 2, 1.0599), (16, Some(1.0), 8, 4.2170), (1, None, 1, 0.3041)]
    {
        let plan = on_gpus_with_busiest(2, rows, busiest);
        assert_eq!((plan.way.experts, plan.runs), (Experts::Stay, runs), "{rows} rows");
        let ratio = seconds(&plan) / measured;
        assert!((0.93..=1.07).contains(&ratio), "{rows} rows: {} s, measured {measured} s", seconds(&plan));
    }
}

#[test]
fn experts_stay_where_that_is_faster_and_nothing_else_changes() {
    for (more, expected) in [
        (&[][..], Experts::Stay),
        (&["weights=expert-resident"], Experts::Stay),
        (&["weights=expert-resident", "deterministic=true"], Experts::Stay),
        (&["weights=expert-resident", "lora_target=all+experts"], Experts::Stay),
        (&["weights=zero3"], Experts::Come),
        (&["gather=nccl"], Experts::Come),
        // How much memory is found may not decide it.
        (&["deterministic=true"], Experts::Come),
    ] {
        let one_row = [&["per_device_train_batch_size=1", "gradient_accumulation_steps=1"], more].concat();
        assert_eq!(on_gpus(8, &one_row).way.experts, expected, "{more:?}");
    }
    // How many layers are to be whole is written, and with `expert-resident` it is all of them but experts.
    let written = on_gpus(8, &["resident_layers=7"]);
    assert_eq!((written.way.experts, written.way.resident.num_layers), (Experts::Come, 7));
    let all_but = on_gpus(8, &["resident_layers=7", "weights=expert-resident"]);
    assert_eq!((all_but.way.experts, all_but.way.resident.num_layers), (Experts::Stay, 7));
    // Three ranks cannot share sixteen experts, and rows do not travel between GPUs that see nothing of each other.
    let blind = Hardware { sees_peers: false, ..gpus(8) };
    for (hardware, problem) in [(gpus(3), "which 3 ranks cannot share equally"), (blind, "shown each other's memory")] {
        let plan = |weights| {
            let keys = ["cutoff_len=2048", "device_memory=139GiB", weights];
            RunPlan::resolve(&config(&keys), scout(), hardware, None, None)
        };
        assert_eq!(plan("weights=auto").unwrap().way.experts, Experts::Come);
        let error = plan("weights=expert-resident").unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::BadConfig);
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn experts_come_where_too_many_rows_for_one_rank_would_cost_more_than_gathers() {
    // Eight ranks wait in each layer for the busiest of them. What gathers expose depends on how much there is to compute.
    for (num_rows, busiest, expected) in [
        (16, Some(1.0), Experts::Stay),
        (16, None, Experts::Come),
        (1, None, Experts::Stay),
        (1, Some(2.0), Experts::Stay),
        (1, Some(8.0), Experts::Come),
    ] {
        let plan = on_gpus_with_busiest(8, num_rows, busiest);
        assert_eq!(plan.way.experts, expected, "{num_rows} rows, {busiest:?}");
    }
    let times = [Some(1.0), None, Some(2.0)].map(|busiest| seconds(&on_gpus_with_busiest(8, 1, busiest)));
    assert!(times.is_sorted() && times[0] < times[2], "{times:?}");
}

#[test]
fn where_rows_of_all_ranks_find_no_room_it_is_said_that_they_need_not_come() {
    // All of eight long rows may be for one of the ranks.
    let plan = |weights| {
        let keys = ["cutoff_len=65536", "per_device_train_batch_size=1", "device_memory=110GiB", weights];
        RunPlan::resolve(&config(&keys), scout(), gpus(8), None, None)
    };
    assert_eq!(["weights=zero3", "weights=auto"].map(|weights| plan(weights).unwrap().way.experts), [Experts::Come; 2]);
    let error = plan("weights=expert-resident").unwrap_err();
    assert!(error.hint().unwrap().contains("leave `weights: expert-resident` out"), "{error}");
}

#[test]
fn where_gathered_experts_find_no_room_it_is_said_that_they_may_stay() {
    // Few rows take less room than one unit that is gathered.
    let refused = |memory: &str, weights: &str| {
        let keys = ["cutoff_len=128", "per_device_train_batch_size=1", memory, weights];
        RunPlan::resolve(&config(&keys), scout(), gpus(2), None, None).unwrap_err()
    };
    let TrainError::DoesNotFit { needed, .. } = refused("device_memory=1GiB", "weights=expert-resident") else {
        panic!("a model of 108 B parameters found room in 1 GiB")
    };
    let hint = refused(&format!("device_memory={}", needed.0), "weights=zero3").hint().unwrap();
    assert!(hint.contains("set `weights: expert-resident`"), "{hint}");
}

#[test]
fn room_for_rows_grows_with_the_ranks_that_may_send_them_and_what_is_kept_does_not() {
    let plan = |world_size, rows: &str| {
        let rows = format!("per_device_train_batch_size={rows}");
        on_gpus(world_size, &["weights=expert-resident", "gradient_accumulation_steps=1", &rows])
    };
    let [two, eight] = [2, 8].map(|world_size| plan(world_size, "1"));
    // Rows arrive at two places that take turns, and results at one; the rest is counts.
    let rows = 2048 * 5120 * 2;
    for (plan, world_size) in [(&two, 2), (&eight, 8)] {
        let [arriving, expected] = [plan.memory.arriving.0, (2 * world_size + 1) * rows];
        assert!((expected..expected + 4096).contains(&arriving), "{arriving} of {world_size}");
        assert_eq!(plan.settings.most_kept_rows, 48 * 2048 * 5 / 4);
        // Its experts, and all else.
        let all_else = 48 * 2 * (62_919_680 + 125_916_160) + 2 * (1_034_485_760 + 1_034_490_880);
        let experts = 48 * 2 * (1_342_177_280 + 671_088_640) / world_size;
        assert_eq!(plan.memory.shard.0, all_else + experts);
    }
    assert_eq!(two.memory.activations.kept, eight.memory.activations.kept);
    assert!(two.memory.activations.at_work < eight.memory.activations.at_work);
}

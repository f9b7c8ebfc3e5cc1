//! Whole runs that train weights: what lies in the folder afterwards is a model that loads again and scores the same.

use std::path::Path;

use scout_checkpoint::ModelFolder;
use scout_config::RunConfig;
use scout_core::{DType, ExitCode};
use scout_model::{AttendedPairs, ModelConfig};
use scout_telemetry::Progress;
use scout_train::plan::{ModelSource, RunPlan, useful_flops};
use scout_train::prepare::prepare;
use scout_train::run;
use scout_train::synth::{SynthRequest, SynthShape, write_folder};

use crate::bench::{Bench, bits, on_every_rank, run_alone, train_on_ranks, trainer, weights_of};

/// Loss over all rows, and the weights that were loaded.
fn score(config: &RunConfig) -> (f64, Vec<f32>) {
    let (prepared, trainer) = trainer(config);
    let rows = prepared.data.all_rows(4, prepared.plan.source.config.attention_chunk_size).unwrap();
    (trainer.evaluate(&rows).unwrap(), weights_of(&trainer))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_finished_run_is_a_model_with_the_weights_that_were_trained() {
    let bench = Bench::new();
    let base = score(&bench.config(&[])).1;
    for (kind, world_size, weights) in [("full", 1, "zero3"), ("full", 3, "zero3"), ("freeze", 2, "resident")] {
        let output = bench.path(&format!("{kind}-{world_size}"));
        let (kind, weights) = (format!("finetuning_type={kind}"), format!("weights={weights}"));
        let folder = format!("output_dir={}", output.display());
        let config = bench.config(&[&kind, "max_steps=3", "learning_rate=1.0e-3", &weights, &folder]);
        let expected = train_on_ranks(&config, world_size, 3).remove(0).weights;
        on_every_rank(world_size, |job| {
            let prepared = prepare(&config, world_size).unwrap();
            run::run(&config, prepared, &job, &mut Progress::silent()).unwrap();
        });
        let names = names(&output);
        for file in
            ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "trainer_log.jsonl"]
        {
            assert!(names.iter().any(|name| name == file), "{file} in {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with("adapter")), "{names:?}");
        let config_of = |folder: &Path| std::fs::read(folder.join("config.json")).unwrap();
        assert_eq!(config_of(&output), config_of(&bench.path("model")));

        let (_, found) = score(&bench.config(&[&format!("model_name_or_path={}", output.display())]));
        assert!(bits(&found) == bits(&expected), "{kind} on {world_size}: the file holds other weights");
        assert!(bits(&found) != bits(&base), "{kind} on {world_size}: nothing was trained");
    }
}

#[test]
fn going_on_from_the_saved_model_begins_with_the_loss_it_ended_with() {
    let bench = Bench::new();
    let output = bench.path("first");
    let folder = format!("output_dir={}", output.display());
    let first = bench.config(&["finetuning_type=full", "max_steps=2", "learning_rate=1.0e-3", &folder]);
    let (prepared, mut trainer) = trainer(&first);
    for step in 0..2 {
        trainer.step(&prepared.data.update(step, 0, 32).unwrap().0, step).unwrap();
    }
    let at_the_end = trainer.evaluate(&prepared.data.all_rows(4, 32).unwrap()).unwrap();
    run_alone(&first).unwrap();
    let model = format!("model_name_or_path={}", output.display());
    let again = bench.config(&["finetuning_type=full", &model]);
    assert_eq!(score(&again).0.to_bits(), at_the_end.to_bits());
    // And it can be trained on.
    let further = format!("output_dir={}", bench.path("second").display());
    let second = run_alone(&bench.config(&["finetuning_type=full", "max_steps=1", &model, &further])).unwrap();
    assert!(second.losses[0].is_finite());
}

#[test]
fn a_model_is_saved_in_the_element_type_of_its_base() {
    let bench = Bench::new();
    let (base, output) = (bench.path("bf16"), bench.path("out"));
    let request = SynthRequest { shape: SynthShape::Tiny, num_layers: Some(2), dtype: DType::BF16, seed: 5 };
    write_folder(&base, &request).unwrap();
    let (model, folder) =
        (format!("model_name_or_path={}", base.display()), format!("output_dir={}", output.display()));
    run_alone(&bench.config(&["finetuning_type=full", "max_steps=1", &model, &folder])).unwrap();
    let [base, saved] = [&base, &output].map(|folder| ModelFolder::open(folder).unwrap());
    let sorted = |files: &ModelFolder| {
        let mut names: Vec<String> = files.names().map(str::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&saved), sorted(&base));
    for name in base.names() {
        assert_eq!(saved.element_type(name).unwrap().dtype(), Some(DType::BF16), "{name}");
        assert_eq!(saved.shape(name).unwrap(), base.shape(name).unwrap());
    }
}

#[test]
fn a_model_that_sees_keeps_its_eyes() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-scout-vision");
    let bench = Bench::new();
    let output = bench.path("out");
    let (model, folder) =
        (format!("model_name_or_path={}", fixture.display()), format!("output_dir={}", output.display()));
    run_alone(&bench.config(&["finetuning_type=full", "max_steps=1", "lr_scheduler_type=constant", &model, &folder]))
        .unwrap();
    let [base, saved] = [&fixture, &output].map(|folder| ModelFolder::open(folder).unwrap());
    let values = |files: &ModelFolder, name: &str| {
        let mut values = vec![0.0; files.shape(name).unwrap().num_elements()];
        files.read_f32(name, 0..values.len(), &mut values).unwrap();
        bits(&values)
    };
    let mut num_seen = 0;
    for name in base.names() {
        let is_text = name.starts_with("language_model.");
        num_seen += usize::from(!is_text);
        assert_eq!(values(&saved, name) != values(&base, name), is_text, "{name}");
    }
    assert!(num_seen > 10 && saved.names().count() == base.names().count());
}

#[test]
fn an_earlier_result_in_the_folder_gives_way() {
    let bench = Bench::new();
    let output = bench.path("run");
    run_alone(&bench.config(&["max_steps=1"])).unwrap();
    assert!(output.join("adapter_config.json").exists());
    std::fs::write(output.join("model-00001-of-00002.safetensors"), "old").unwrap();
    std::fs::write(output.join("model.safetensors.index.json"), "old").unwrap();
    for _ in 0..2 {
        run_alone(&bench.config(&["finetuning_type=full", "max_steps=1", "overwrite_output_dir=true"])).unwrap();
        assert!(!names(&output).iter().any(|name| name.starts_with("adapter") || name.starts_with("model-")));
        ModelFolder::open(&output).unwrap();
    }
}

#[test]
fn wishes_that_cannot_be_met_are_refused_before_anything_is_read() {
    let bench = Bench::new();
    let refusal = |more: &[&str]| match prepare(&bench.config(more), 1) {
        Ok(_) => panic!("{more:?} was taken"),
        Err(error) => {
            assert_eq!(error.exit_code(), ExitCode::BadConfig);
            error.to_string()
        }
    };
    let folder = format!("output_dir={}", bench.path("model").display());
    let found = refusal(&["finetuning_type=full", "overwrite_output_dir=true", &folder]);
    assert!(found.starts_with("`output_dir`: is the folder of the base model"), "{found}");
    let found = refusal(&["finetuning_type=freeze", "freeze_trainable_layers=0"]);
    assert!(found.contains("leaves nothing to train"), "{found}");
}

#[test]
fn useful_operations_count_the_gradients_that_are_made() {
    let bench = Bench::new();
    let plan = |more: &[&str]| {
        let config = bench.config(more);
        let source = ModelSource { config: ModelConfig::scout(), ..ModelSource::find(&config, false).unwrap() };
        RunPlan::resolve(&config, source, 8, None, None).unwrap()
    };
    let scout = ModelConfig::scout();
    let (tokens, active) = (1000, scout.num_active_matmul_params() as f64 * 1000.0);
    let pairs = AttendedPairs { in_documents: 300_000, in_chunks: 300_000 };
    let attention = useful_flops(&scout, 0, pairs) / 3.5;
    let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
    near(plan(&[]).useful_flops(tokens, pairs), 4.0 * active + 3.5 * attention);
    near(plan(&["finetuning_type=full"]).useful_flops(tokens, pairs), 6.0 * active + 3.5 * attention);
    // Only the head is trained: no block is walked back.
    let head = ["finetuning_type=freeze", "freeze_trainable_layers=0", "freeze_extra_modules=lm_head"];
    let of_head = (scout.vocab_size * scout.hidden_size * tokens) as f64;
    near(plan(&head).useful_flops(tokens, pairs), 2.0 * active + 4.0 * of_head + attention);
    // The last twelve of 48 layers.
    let last = ["finetuning_type=freeze", "freeze_trainable_layers=12"];
    let of_layers = active - of_head;
    let expected = 2.0 * active + 2.0 * of_head + 4.0 * of_layers / 4.0 + attention * (1.0 + 2.5 / 4.0);
    near(plan(&last).useful_flops(tokens, pairs), expected);
    // A row longer than a chunk is seen whole by a quarter of the layers.
    let long = AttendedPairs { in_documents: 1_200_000, in_chunks: 300_000 };
    near(plan(&[]).useful_flops(tokens, long), 4.0 * active + 3.5 * attention * (0.75 + 4.0 * 0.25));
}

#[test]
fn what_is_not_walked_back_is_not_kept() {
    let bench = Bench::new();
    let last = ["finetuning_type=freeze", "freeze_trainable_layers=1"];
    let [full, frozen] =
        [&["finetuning_type=full"][..], &last].map(|more| prepare(&bench.config(more), 2).unwrap().plan);
    assert_eq!(full.schedules.first_backward, 0);
    assert_eq!(frozen.schedules.first_backward, 2 * 3);
    assert!(frozen.memory.activations.kept < full.memory.activations.kept, "{:?} {:?}", frozen.memory, full.memory);
    assert!(frozen.memory.trained < full.memory.trained, "{:?} {:?}", frozen.memory, full.memory);
}

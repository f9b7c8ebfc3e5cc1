//! Whole weights trained for ten steps on the recorded batches, beside what transformers and torch did on them
//! (`tests/fixtures/make_full_training.py`): losses, norms, and the loss of the first batch afterwards.

use std::path::{Path, PathBuf};

use scout_checkpoint::TensorFile;
use scout_config::RunConfig;
use scout_model::{Batch, Document, Target};
use scout_train::learning_rate::{Decay, LearningRate};
use scout_train::optimizer::OptimizerSettings;
use scout_train::prepare::{Prepared, prepare};
use scout_train::{StepReport, StepSettings, assemble};
use serde_json::Value;

use crate::bench::{assert_near, on_every_rank};

const NUM_STEPS: usize = 10;
const IGNORED: i64 = -100;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn recorded() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("full_training.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Rows `rank`, `rank + world`, … of one recorded batch, with padding dropped and every target of all ranks counted alike.
fn batch(step: usize, (rank, world): (usize, usize), chunk_size: usize) -> Batch {
    let file = TensorFile::open(&fixtures().join("tiny-scout/train_batches.safetensors")).unwrap();
    let (shape, ids) = file.read_i64("input_ids").unwrap();
    let (labels, mask) = (file.read_i64("labels").unwrap().1, file.read_i64("attention_mask").unwrap().1);
    let [_, num_rows, len] = *shape.dims() else { panic!("{shape}") };
    let row_of = |values: &[i64], row: usize| values[(step * num_rows + row) * len..][..len].to_vec();
    let targets_of = |row: usize| row_of(&labels, row)[1..].iter().filter(|label| **label != IGNORED).count();
    let weight = 1.0 / (0..num_rows).map(targets_of).sum::<usize>() as f32;
    let (mut documents, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for row in (rank..num_rows).step_by(world) {
        let real = row_of(&mask, row).iter().filter(|&&real| real == 1).count();
        let tokens: Vec<u32> = row_of(&ids, row)[..real].iter().map(|&id| id as u32).collect();
        for (at, &label) in row_of(&labels, row)[..real].iter().enumerate().skip(1) {
            if label != IGNORED {
                targets.push(Target { row: (start + at - 1) as u32, token: label as u32, weight });
            }
        }
        start += real;
        documents.push(Document { sample_id: row as u64, tokens });
    }
    Batch::new(&documents, &targets, chunk_size).unwrap()
}

/// The recipe of the recording, with the weights that `more` chooses.
fn prepared(more: &str, world_size: usize, recorded: &Value) -> (RunConfig, Prepared) {
    let folder = fixtures().join("tiny-scout").display().to_string();
    let text = format!(
        "model_name_or_path: {folder}\ndataset: {folder}/train_data.jsonl\ntemplate: llama4\noutput_dir: unused\n{more}\n"
    );
    let config = RunConfig::from_text("oracle.yaml", &text, &[], &[]).unwrap().config;
    let mut prepared = prepare(&config, world_size).unwrap();
    let number = |key: &str| recorded[key].as_f64().unwrap();
    let betas = numbers(&recorded["betas"]);
    prepared.plan.settings = StepSettings {
        optimizer: OptimizerSettings {
            beta1: betas[0],
            beta2: betas[1],
            epsilon: number("eps"),
            weight_decay: number("weight_decay"),
            max_grad_norm: Some(number("clip")),
        },
        learning_rate: LearningRate {
            peak: number("peak_lr"),
            warmup_steps: number("warmup_steps") as usize,
            total_steps: number("total_steps") as usize,
            decay: Decay::Cosine,
        },
        ..prepared.plan.settings
    };
    (config, prepared)
}

/// Reports of all steps, and the loss of the first batch afterwards.
fn train(more: &str, world_size: usize, recorded: &Value) -> (Vec<StepReport>, f64) {
    let (config, prepared) = prepared(more, world_size, recorded);
    let chunk_size = prepared.plan.source.config.attention_chunk_size;
    let mut outcomes = on_every_rank(world_size, |job| {
        let place = (job.mesh().rank().0, world_size);
        let mut trainer = assemble::build(&config, &prepared, &job).unwrap();
        let step = |step: usize| trainer.step(&[batch(step, place, chunk_size)], step).unwrap();
        let reports: Vec<StepReport> = (0..NUM_STEPS).map(step).collect();
        (reports, trainer.evaluate(&[batch(0, place, chunk_size)]).unwrap())
    });
    outcomes.remove(0)
}

#[test]
fn ten_steps_follow_transformers() {
    let recorded = recorded();
    let runs = [
        ("full", "finetuning_type: full"),
        ("freeze_last", "finetuning_type: freeze\nfreeze_trainable_layers: 1"),
        (
            "freeze_first_attention",
            "finetuning_type: freeze\nfreeze_trainable_layers: -1\nfreeze_trainable_modules: self_attn\n\
             freeze_extra_modules: lm_head,norm",
        ),
    ];
    assert_eq!(recorded["runs"].as_object().unwrap().len(), runs.len());
    for (name, more) in runs {
        let run = &recorded["runs"][name];
        let num_trained = prepared(more, 1, &recorded).1.plan.num_trained();
        assert_eq!(num_trained as u64, run["num_trained"].as_u64().unwrap(), "{name}");
        let [losses, norms, rates] = ["loss", "grad_norm", "lr"].map(|key| numbers(&run[key]));
        let loss_after = run["first_batch_loss_after"].as_f64().unwrap();
        for world_size in [1, 2] {
            let (reports, after) = train(more, world_size, &recorded);
            assert_eq!(losses.len(), reports.len());
            for (step, report) in reports.iter().enumerate() {
                let what = format!("{name}, step {step} on {world_size}");
                assert_near(&format!("{what}: loss"), report.loss, losses[step], 2e-5);
                assert_near(&format!("{what}: norm"), report.grad_norm, norms[step], 1e-4);
                assert!((report.learning_rate - rates[step]).abs() <= 1e-9, "{what}: rate");
            }
            assert_near(&format!("{name} on {world_size}: loss afterwards"), after, loss_after, 2e-5);
        }
    }
}

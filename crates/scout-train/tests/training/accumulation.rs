//! How rows become one loss: the padded trainer's formula, written down here once more over whole logits, against what
//! the trainer reports for any way of cutting an update into micro-batches.

use scout_model::{Batch, Document};
use scout_train::Trainer;
use scout_train::prepare::Prepared;

use crate::bench::{Bench, assert_all_near, assert_near, train, trainer};

/// AdamW divides by the root of the second moment; with a large epsilon noise in a gradient stays noise in the step.
const SMOOTH: &str = "adam_epsilon=1.0e-3";

/// Cross-entropy of every position of a row with the label behind it, as a padded trainer has them: labels of padding
/// and of prompts are −100, and the first column predicts nothing.
struct PaddedRow {
    labels: Vec<i64>,
    losses: Vec<f64>,
}

impl PaddedRow {
    fn new(trainer: &Trainer, prepared: &Prepared, row: usize, padded_len: usize) -> PaddedRow {
        let examples = &prepared.data.examples;
        let tokens = examples.ids(row).to_vec();
        let document = Document { sample_id: examples.sample_id(row), tokens };
        let batch = Batch::new(&[document], &[], prepared.plan.source.config.attention_chunk_size).unwrap();
        let lora = trainer.adapter.weights().unwrap();
        let logits = trainer.logits(&trainer.pass(&batch, &lora, None), &mut scout_model::NoTrace).unwrap();
        let mut labels: Vec<i64> = examples.labels(row).map(|label| label.map_or(-100, i64::from)).collect();
        labels.resize(padded_len, -100);
        let logits = logits.f32s().unwrap();
        let vocab_size = prepared.plan.source.config.vocab_size;
        let mut losses: Vec<f64> =
            logits.chunks(vocab_size).zip(&labels[1..]).map(|(logits, &label)| cross_entropy(logits, label)).collect();
        losses.resize(padded_len - 1, 0.0);
        PaddedRow { labels, losses }
    }
}

fn cross_entropy(logits: &[f32], label: i64) -> f64 {
    let Ok(label) = usize::try_from(label) else { return 0.0 };
    let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, &logit| largest.max(f64::from(logit)));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    sum.ln() + largest - f64::from(logits[label])
}

/// Sum of losses and number of targets of one padded micro-batch.
fn padded_micro_batch(trainer: &Trainer, prepared: &Prepared, rows: &[usize]) -> (f64, usize) {
    let padded_len = rows.iter().map(|&row| prepared.data.examples.length(row)).max().unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for &row in rows {
        let row = PaddedRow::new(trainer, prepared, row, padded_len);
        for (&label, loss) in row.labels[1..].iter().zip(&row.losses) {
            if label != -100 {
                (sum, count) = (sum + loss, count + 1);
            }
        }
    }
    (sum, count)
}

#[test]
fn the_reported_loss_is_the_padded_trainers_in_both_reductions() {
    let bench = Bench::new();
    let recipe = ["per_device_train_batch_size=3", "gradient_accumulation_steps=4"];
    let mut by_reduction = Vec::new();
    for reduction in ["token", "micro_batch_mean"] {
        let config = bench.config(&[recipe[0], recipe[1], &format!("loss_reduction={reduction}")]);
        let (prepared, mut trainer) = trainer(&config);
        for step in 0..2 {
            let dealt = prepared.data.order.update(step as u64).concat();
            let micro_batches: Vec<(f64, usize)> =
                dealt.iter().map(|rows| padded_micro_batch(&trainer, &prepared, rows)).collect();
            let count: usize = micro_batches.iter().map(|(_, count)| count).sum();
            let expected = match reduction {
                "token" => micro_batches.iter().map(|(sum, _)| sum).sum::<f64>() / count as f64,
                _ => micro_batches.iter().map(|(sum, count)| sum / *count as f64).sum::<f64>() / 4.0,
            };
            let chunk_size = prepared.plan.source.config.attention_chunk_size;
            let (batches, counts) = prepared.data.update(step, 0, chunk_size).unwrap();
            assert_eq!((counts.targets, counts.micro_batches, counts.rows), (count, 4, 12));
            let report = trainer.step(&batches, step).unwrap();
            assert_near(&format!("{reduction}, step {step}"), report.loss, expected, 1e-6);
            let tokens: usize = dealt.concat().iter().map(|&row| prepared.data.examples.length(row)).sum();
            assert_eq!(report.num_tokens, tokens);
            by_reduction.push(report.loss);
        }
    }
    // Rows of different lengths: were the two the same number, nothing would tell them apart.
    assert!((by_reduction[0] - by_reduction[2]).abs() > 1e-4, "{by_reduction:?}");
}

#[test]
fn an_update_is_the_same_however_many_micro_batches_it_has() {
    let bench = Bench::new();
    let cut = |batch: usize, accumulation: usize| {
        let config = bench.config(&[
            SMOOTH,
            &format!("per_device_train_batch_size={batch}"),
            &format!("gradient_accumulation_steps={accumulation}"),
        ]);
        train(&config, 5)
    };
    let whole = cut(12, 1);
    for (batch, accumulation) in [(6, 2), (4, 3), (1, 12)] {
        let found = cut(batch, accumulation);
        let what = format!("{accumulation} micro-batches");
        for (found, expected) in found.reports.iter().zip(&whole.reports) {
            assert_near(&format!("{what}: loss"), found.loss, expected.loss, 1e-5);
            assert_near(&format!("{what}: norm"), found.grad_norm, expected.grad_norm, 1e-5);
            assert_eq!(found.num_tokens, expected.num_tokens, "{what}");
            assert_eq!(found.learning_rate, expected.learning_rate, "{what}");
        }
        assert_all_near(&what, &found.adapter, &whole.adapter, 1e-5);
    }
}

#[test]
fn with_means_of_micro_batches_the_cut_changes_loss_and_gradient() {
    let bench = Bench::new();
    let cut = |batch: usize, accumulation: usize, reduction: &str| {
        let config = bench.config(&[
            &format!("per_device_train_batch_size={batch}"),
            &format!("gradient_accumulation_steps={accumulation}"),
            &format!("loss_reduction={reduction}"),
        ]);
        train(&config, 1).reports[0]
    };
    let by_token = cut(12, 1, "token");
    let whole = cut(12, 1, "micro_batch_mean");
    // One micro-batch: the mean of one mean.
    assert_near("loss of one micro-batch", whole.loss, by_token.loss, 1e-6);
    assert_near("norm of one micro-batch", whole.grad_norm, by_token.grad_norm, 1e-6);
    let in_parts = cut(1, 12, "micro_batch_mean");
    assert!((in_parts.loss / by_token.loss - 1.0).abs() > 1e-4, "{} {}", in_parts.loss, by_token.loss);
    assert!((in_parts.grad_norm / by_token.grad_norm - 1.0).abs() > 1e-4);
}

#[test]
fn packing_several_rows_of_tokens_loses_no_row() {
    let bench = Bench::new();
    let config = bench.config(&["packing=true", "per_device_train_batch_size=2"]);
    let (prepared, mut trainer) = trainer(&config);
    let chunk_size = prepared.plan.source.config.attention_chunk_size;
    let mut rows = 0;
    for step in 0..prepared.plan.steps.unwrap().updates_per_epoch {
        let (batches, counts) = prepared.data.update(step, 0, chunk_size).unwrap();
        assert!(batches.iter().all(|batch| batch.num_tokens() <= 2 * 128));
        rows += counts.rows;
        let dealt = prepared.data.order.update(step as u64).concat();
        let (sum, count) = padded_micro_batch(&trainer, &prepared, &dealt.concat());
        let loss = trainer.step(&batches, step).unwrap().loss;
        assert_near(&format!("step {step}"), loss, sum / count as f64, 1e-6);
        if step == 1 {
            break;
        }
    }
    assert!(rows > 4, "{rows} rows in two packs");
}

//! Forward, input gradient, and the gradient of every adapter and every weight of each block against candle's autograd.

use scout_core::{Projection, UnitId};
use scout_device::Tensor;
use scout_model::pass::Dropout;
use scout_model::{Gradients, LoraGradients, LoraSettings, ModelConfig, NoTrace, NoWeights, Pass};

use crate::reference::{Found, Reference};
use crate::rig::{BlockOutcome, ByParam, Collected, Rig, assert_close, bits, lora, small};

/// Ours is f32, the reference f64: the noise of a few dozen additions, an order below what recorded numbers may miss.
const TOLERANCE: f64 = 1e-5;

struct Case {
    name: &'static str,
    config: ModelConfig,
    settings: LoraSettings,
    lengths: &'static [usize],
}

fn case(name: &'static str, config: ModelConfig, lengths: &'static [usize]) -> Case {
    Case { name, config, settings: lora(&Projection::ALL), lengths }
}

fn cases() -> Vec<Case> {
    let rank = |rank| LoraSettings { rank, ..lora(&Projection::ALL) };
    vec![
        case("three documents, chunks that do not divide them", small(), &[13, 1, 7]),
        case("one token", small(), &[1]),
        case("documents of exactly one chunk, and of one token more", small(), &[5, 6]),
        case("as many key heads as heads", ModelConfig { num_kv_heads: 4, ..small() }, &[8, 3]),
        case("five heads on one key head", ModelConfig { num_heads: 5, num_kv_heads: 1, ..small() }, &[9]),
        case("one head", ModelConfig { num_heads: 1, num_kv_heads: 1, head_dim: 2, ..small() }, &[6, 2]),
        case("one expert", ModelConfig { num_experts: 1, ..small() }, &[7, 4]),
        case("more experts than tokens", ModelConfig { num_experts: 9, ..small() }, &[3, 1]),
        case("chunks of one token", ModelConfig { attention_chunk_size: 1, ..small() }, &[4, 5]),
        case("no norm on heads", ModelConfig { use_qk_norm: false, ..small() }, &[11, 6]),
        case("no temperature", ModelConfig { temperature: None, ..small() }, &[11, 6]),
        case("odd widths", ModelConfig { hidden_size: 17, intermediate_size: 9, ..small() }, &[10, 2]),
        Case { settings: rank(1), ..case("rank one", small(), &[9, 5]) },
        Case { settings: rank(40), ..case("a rank above every width", small(), &[6, 3]) },
        Case {
            settings: LoraSettings { use_rslora: true, ..lora(&Projection::ALL) },
            ..case("root-scaled", small(), &[7])
        },
        Case { settings: lora(&[]), ..case("no adapter", small(), &[13, 1, 7]) },
        Case {
            settings: lora(&[Projection::K, Projection::SharedUp, Projection::ExpertsDown]),
            ..case("some adapters", small(), &[13, 1, 7])
        },
    ]
}

fn documents(lengths: &[usize]) -> Vec<(u64, usize)> {
    lengths.iter().enumerate().map(|(index, &len)| (index as u64, len)).collect()
}

fn compare(name: &str, rig: &Rig, ours: &BlockOutcome, theirs: &Found) {
    assert_close(&format!("{name}: y"), &ours.y, &theirs.y, TOLERANCE);
    assert_close(&format!("{name}: dx"), &ours.dx, &theirs.dx, TOLERANCE);
    for (index, module) in rig.layout.modules().iter().enumerate() {
        for factor in [scout_model::lora::Factor::A, scout_model::lora::Factor::B] {
            let range = rig.layout.range(index, factor);
            let what = format!("{name}: {:?} of {:?} of layer {}", factor, module.projection, module.layer_index);
            assert_close(&what, &ours.gradients[range.clone()], &theirs.gradients[range], TOLERANCE);
        }
    }
    compare_weights(name, rig, &ours.weights, &theirs.weights);
}

/// Every weight of the units that took part, and no other, has the gradient that candle found.
fn compare_weights(name: &str, rig: &Rig, ours: &ByParam, theirs: &[Vec<Vec<f64>>]) {
    for (unit, theirs) in rig.units.units().iter().zip(theirs) {
        for (index, (param, theirs)) in unit.params.iter().zip(theirs).enumerate() {
            let what = format!("{name}: {}", param.name);
            match ours.get(&(unit.id, index)) {
                Some(ours) => assert_close(&what, ours, theirs, TOLERANCE),
                None => assert!(theirs.iter().all(|&value| value == 0.0), "{what} has no gradient"),
            }
        }
    }
}

/// Both blocks of both layers, the one that rotates and the one that does not.
fn compare_all_blocks(name: &str, rig: &Rig, pass: &Pass) {
    let x = rig.activations(1, pass.batch);
    let dy = rig.activations(2, pass.batch);
    for layer in 0..rig.config.num_layers {
        let reference = Reference::new(rig, &x);
        let ours = rig.block(rig.block_index(layer, true), &x, &dy, pass);
        compare(&format!("{name}, attention of layer {layer}"), rig, &ours, &reference.attention(layer, pass, &dy));
        let ours = rig.block(rig.block_index(layer, false), &x, &dy, pass);
        compare(&format!("{name}, experts of layer {layer}"), rig, &ours, &reference.experts(layer, pass, &dy));
    }
}

#[test]
fn every_block_agrees_with_candles_autograd() {
    for Case { name, config, settings, lengths } in cases() {
        let rig = Rig::new(config, &settings);
        let batch = rig.batch(&documents(lengths));
        compare_all_blocks(name, &rig, &rig.pass(&batch));
    }
}

#[test]
fn adapters_with_dropout_agree_with_candles_autograd_under_the_same_mask() {
    let projections = [
        Projection::Q,
        Projection::K,
        Projection::V,
        Projection::O,
        Projection::SharedGate,
        Projection::SharedUp,
        Projection::SharedDown,
    ];
    let rig = Rig::new(small(), &lora(&projections));
    let batch = rig.batch(&[(3, 9), (8, 4)]);
    for probability in [0.1, 0.5] {
        let dropout = Some(Dropout { probability, seed: 5, step: 2 });
        compare_all_blocks("dropout", &rig, &Pass { dropout, ..rig.pass(&batch) });
    }
}

#[test]
fn an_expert_without_tokens_has_no_gradient_and_the_others_have_theirs() {
    let rig = Rig::new(small(), &lora(&Projection::ALL));
    let batch = rig.batch(&[(0, 7), (1, 2)]);
    for chosen in [[0u32, 2, 2, 0, 0, 2, 0, 2, 0], [1; 9], [2, 1, 2, 1, 2, 1, 2, 1, 2]] {
        let routes = vec![Tensor::from_u32(chosen.to_vec(), [9]).unwrap(); 2];
        let pass = Pass { routes: Some(&routes), ..rig.pass(&batch) };
        compare_all_blocks(&format!("experts {chosen:?}"), &rig, &pass);
        let dy = rig.activations(2, &batch);
        let outcome = rig.block(rig.block_index(0, false), &rig.activations(1, &batch), &dy, &pass);
        let index = rig.layout.find(0, Projection::ExpertsGateUp).unwrap();
        let gradient = &outcome.gradients[rig.layout.range(index, scout_model::lora::Factor::B)];
        let per_expert = gradient.len() / rig.config.num_experts;
        for (expert, gradient) in gradient.chunks(per_expert).enumerate() {
            let has_tokens = chosen.contains(&(expert as u32));
            assert_eq!(gradient.iter().any(|&value| value != 0.0), has_tokens, "expert {expert} of {chosen:?}");
        }
    }
}

#[test]
fn the_frozen_router_passes_a_gradient_through_the_score() {
    let rig = Rig::new(small(), &lora(&[]));
    let batch = rig.batch(&[(0, 9)]);
    let [x, dy] = [1, 2].map(|seed| rig.activations(seed, &batch));
    let pass = rig.pass(&batch);
    let found = rig.block(rig.block_index(0, false), &x, &dy, &pass).dx;
    // The mistake that leaves every loss right: a comparison that it passed would prove nothing.
    let mut reference = Reference::new(&rig, &x);
    reference.is_score_constant = true;
    let mistaken = reference.experts(0, &pass, &dy).dx;
    let difference = found.iter().zip(&mistaken).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(difference > 0.05, "{difference}");
}

#[test]
fn loss_and_gradient_of_the_head_agree_with_candles_autograd() {
    for (name, vocab_size, lengths) in [
        ("several documents", 48, &[13, 1, 7][..]),
        ("one target", 48, &[2]),
        ("two tokens to choose from", 2, &[9]),
        ("one token to choose from", 1, &[6]),
        ("a large vocabulary", 3001, &[5, 12]),
    ] {
        let rig = Rig::new(ModelConfig { vocab_size, ..small() }, &lora(&[]));
        let batch = rig.batch(&documents(lengths));
        let x = rig.activations(4, &batch);
        let head = &rig.model.head;
        let (mut of_adapters, mut collected) = (LoraGradients::zeros(rig.layout.clone()), rig.collected());
        let mut gradients = Gradients { lora: &mut of_adapters, weights: &mut collected };
        let mut source = rig.source(vec![head.unit]);
        let (loss, dx) = head.loss_and_gradient(&mut source, &x, &batch, &mut gradients, &mut NoTrace).unwrap();
        let theirs = Reference::new(&rig, &x).head(&batch);
        let expected = theirs.y[0];
        assert!((loss.weighted_sum().unwrap() - expected).abs() <= TOLERANCE * expected.abs(), "{name}: {expected}");
        assert_close(&format!("{name}: dx"), &dx.to_f32_vec().unwrap(), &theirs.dx, TOLERANCE);
        assert_eq!(collected.found.len(), 2, "{name}: norm and head");
        compare_weights(name, &rig, &collected.found, &theirs.weights);
        // Where the head is frozen, not a bit of the rest changes.
        let mut frozen = Gradients { lora: &mut of_adapters, weights: &mut NoWeights };
        let mut source = rig.source(vec![head.unit]);
        let again = head.loss_and_gradient(&mut source, &x, &batch, &mut frozen, &mut NoTrace).unwrap();
        assert_eq!(again.0.weighted_sum().unwrap().to_bits(), loss.weighted_sum().unwrap().to_bits(), "{name}");
        assert_eq!(bits(&again.1.to_f32_vec().unwrap()), bits(&dx.to_f32_vec().unwrap()), "{name}");
        let alone = head.loss(&mut rig.source(vec![head.unit]), &x, &batch).unwrap();
        assert_eq!(
            alone.weighted_sum().unwrap().to_bits(),
            loss.weighted_sum().unwrap().to_bits(),
            "{name}: evaluation loses no bit"
        );
        assert_eq!(alone.token_loss.num_elements(), batch.num_targets());
    }
}

#[test]
fn the_gradient_of_the_embedding_agrees_with_candles_autograd() {
    for (vocab_size, lengths) in [(48, &[13, 1, 7][..]), (2, &[9]), (3001, &[5, 12])] {
        let rig = Rig::new(ModelConfig { vocab_size, ..small() }, &lora(&[]));
        let batch = rig.batch(&documents(lengths));
        let dy = rig.activations(2, &batch);
        let (mut of_adapters, mut collected) = (LoraGradients::zeros(rig.layout.clone()), rig.collected());
        let mut gradients = Gradients { lora: &mut of_adapters, weights: &mut collected };
        rig.model.embedding.backward(&dy, &batch, &mut gradients).unwrap();
        let theirs = Reference::new(&rig, &dy).embedding(&batch, &dy);
        assert_eq!(collected.found.len(), 1);
        compare_weights(&format!("vocabulary of {vocab_size}"), &rig, &collected.found, &theirs.weights);
    }
}

#[test]
fn gradients_of_frozen_weights_are_not_made_and_the_others_keep_their_bits() {
    let rig = Rig::new(small(), &lora(&[]));
    let batch = rig.batch(&documents(&[9, 4]));
    let pass = rig.pass(&batch);
    let whole = rig.whole(&pass).weights;
    let num_params: usize = rig.units.units().iter().map(|unit| unit.params.len()).sum();
    assert_eq!(whole.len(), num_params, "every weight of the model has a gradient");
    let [x, dy] = [1, 2].map(|seed| rig.activations(seed, &batch));
    for (index, block) in rig.model.blocks.iter().enumerate() {
        let everything = rig.block(index, &x, &dy, &pass).weights;
        for wanted in everything.keys().copied() {
            let (_, saved) =
                block.forward(&mut rig.source(block.forward_units()), x.clone(), &pass, &mut NoTrace).unwrap();
            let wants = move |unit: UnitId, param: usize| (unit, param) == wanted;
            let mut collected = Collected { wants: &wants, ..rig.collected() };
            let mut of_adapters = LoraGradients::zeros(rig.layout.clone());
            let mut gradients = Gradients { lora: &mut of_adapters, weights: &mut collected };
            let mut source = rig.source(block.backward_units());
            block.backward(&mut source, dy.clone(), saved, &pass, &mut gradients).unwrap();
            let found: Vec<_> = collected.found.into_iter().collect();
            assert!(found.len() == 1 && found[0].0 == wanted);
            assert_eq!(bits(&found[0].1), bits(&everything[&wanted]), "{wanted:?}");
        }
    }
}

//! Recorded numbers against computed ones: one rule for each kind of quantity, one row for each tensor. Nothing is
//! computed here.

use std::collections::BTreeMap;

/// A tensor as it stands in a file or as it was computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub values: Values,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// Tensors by name.
pub type Numbered = BTreeMap<String, Numbers>;

impl Numbers {
    pub fn floats(shape: &[usize], values: Vec<f32>) -> Numbers {
        Numbers { shape: shape.to_vec(), values: Values::Floats(values) }
    }

    pub fn integers(shape: &[usize], values: Vec<i64>) -> Numbers {
        Numbers { shape: shape.to_vec(), values: Values::Integers(values) }
    }

    pub fn scalar(value: f64) -> Numbers {
        Numbers::floats(&[1], vec![value as f32])
    }
}

/// How far two values may be apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// The largest difference, relative to the largest recorded value of the tensor.
    OfLargest(f64),
    /// The largest difference.
    Absolute(f64),
    /// The largest difference relative to the recorded value at its place.
    Relative(f64),
    /// The norm of the difference, relative to that of the recorded values; both must also point in one direction.
    OfNorm(f64),
    /// One less the cosine between the two; their lengths may differ by a tenth.
    Direction(f64),
    /// Share of entries that differ, of those that are not blank on both sides.
    Share(f64),
    Equal,
}

/// In what arithmetic the computed numbers were made. The recorded ones are those of an independent f32 implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Host,
    /// f32 throughout, in other orders of summation than the host's.
    GpuF32,
    /// bf16 weights and activations, with the recorded routing where there is one.
    GpuBf16,
    /// The recorded side computed in bf16 too, and each side routes for itself: both are off, and not in the same places.
    Natural,
}

/// What a quantity is, and with it how near it must come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Hidden states, logits and scores.
    Hidden,
    Gradient,
    Loss,
    GradNorm,
    Frequency,
    /// Counts.
    Whole,
    /// Which expert a token chose.
    Routing,
    TrainingLoss,
    TrainingGradNorm,
    TrainedAdapter,
    LearningRate,
}

impl Kind {
    /// Of a tensor of the recorded files, by its name.
    pub fn of_name(name: &str) -> Kind {
        let last = name.rsplit('.').next().unwrap_or(name);
        match last {
            "loss" | "token_loss" | "accum_loss" | "mean_of_row_means" => Kind::Loss,
            "grad_norm" => Kind::GradNorm,
            "rope_inv_freq" => Kind::Frequency,
            "router_expert" => Kind::Routing,
            "num_target_tokens" => Kind::Whole,
            _ if name.starts_with("grad.") || name.starts_with("grad_of.") => Kind::Gradient,
            _ => Kind::Hidden,
        }
    }

    /// The one table of tolerances. On the host the noise of an independent implementation is about ten times below each
    /// of them. What follows from many losses or gradients is held to their tolerance. Natural folders hold losses,
    /// gradients and routing; what else there is in the last column is never asked for.
    pub fn rule(self, precision: Precision) -> Rule {
        use Rule::{Absolute, Direction, Equal, OfLargest, OfNorm, Relative, Share};
        let [host, gpu_f32, gpu_bf16, natural] = match self {
            Kind::Hidden => [OfLargest(2e-5), OfLargest(1e-4), OfNorm(3e-2), OfNorm(3e-2)],
            Kind::Gradient => [OfLargest(1e-4), OfLargest(1e-3), OfNorm(1e-1), Direction(1e-2)],
            Kind::Loss => [Absolute(2e-5), Absolute(1e-4), OfNorm(3e-2), Absolute(2e-3)],
            Kind::GradNorm => [Relative(1e-5), Relative(1e-3), OfNorm(1e-1), Relative(2e-2)],
            Kind::Frequency => [Relative(1e-6); 4],
            Kind::Whole => [Equal; 4],
            Kind::Routing => [Equal, Equal, Equal, Share(5e-2)],
            Kind::TrainingLoss => [Absolute(1e-4), Absolute(5e-4), OfNorm(3e-2), OfNorm(3e-2)],
            Kind::TrainingGradNorm => [Relative(1e-4), Relative(1e-3), OfNorm(1e-1), OfNorm(1e-1)],
            Kind::TrainedAdapter => [Absolute(2e-5), Absolute(2e-4), OfNorm(1e-1), OfNorm(1e-1)],
            Kind::LearningRate => [Absolute(1e-9); 4],
        };
        match precision {
            Precision::Host => host,
            Precision::GpuF32 => gpu_f32,
            Precision::GpuBf16 => gpu_bf16,
            Precision::Natural => natural,
        }
    }
}

/// Less than this is another direction, however near the norms are.
const LEAST_COSINE: f64 = 0.995;
/// Gradients that point in one direction are this near in length, or one of them was scaled by mistake.
const MOST_STRETCHED: f64 = 1.1;

impl Rule {
    /// The rule for a tensor of the recorded files that was computed on the host, by its name.
    pub fn of_name(name: &str) -> Rule {
        Kind::of_name(name).rule(Precision::Host)
    }

    pub fn tolerance(self) -> f64 {
        match self {
            Rule::OfLargest(tolerance)
            | Rule::Absolute(tolerance)
            | Rule::Relative(tolerance)
            | Rule::OfNorm(tolerance)
            | Rule::Direction(tolerance)
            | Rule::Share(tolerance) => tolerance,
            Rule::Equal => 0.0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Fail,
    /// Promised by a feature that is not built yet; counted, but no failure.
    Later,
}

/// One line of the verdict.
#[derive(Debug, Clone)]
pub struct Row {
    /// Where the quantity comes from: `expected`, `adapter_attn`, `training`.
    pub group: String,
    pub quantity: String,
    pub error: f64,
    pub tolerance: f64,
    pub status: Status,
    /// What is wrong, or why it is put off.
    pub detail: String,
}

impl Row {
    pub fn ok(group: &str, quantity: &str) -> Row {
        Row::new(group, quantity, Status::Ok, String::new())
    }

    pub fn fail(group: &str, quantity: &str, detail: impl Into<String>) -> Row {
        Row { error: f64::INFINITY, ..Row::new(group, quantity, Status::Fail, detail.into()) }
    }

    pub fn later(group: &str, quantity: &str, detail: impl Into<String>) -> Row {
        Row::new(group, quantity, Status::Later, detail.into())
    }

    fn new(group: &str, quantity: &str, status: Status, detail: String) -> Row {
        Row { group: group.to_string(), quantity: quantity.to_string(), error: 0.0, tolerance: 0.0, status, detail }
    }
}

/// Compares what `promised` names, in this order; a name that either side lacks is a failure. `rules` holds the rules
/// that a name alone does not tell.
pub fn compare_all(
    group: &str,
    promised: &[String],
    recorded: &BTreeMap<String, Result<Numbers, String>>,
    computed: &Numbered,
    rules: &BTreeMap<String, Rule>,
) -> Vec<Row> {
    promised
        .iter()
        .map(|name| match (recorded.get(name), computed.get(name)) {
            (None, _) => Row::fail(group, name, "promised by manifest.json, missing in the file"),
            (Some(Err(detail)), _) => Row::fail(group, name, detail),
            (_, None) => Row::fail(group, name, "was not computed"),
            (Some(Ok(recorded)), Some(computed)) => {
                let rule = rules.get(name).copied().unwrap_or_else(|| Rule::of_name(name));
                compare(group, name, rule, recorded, computed)
            }
        })
        .collect()
}

pub fn compare(group: &str, name: &str, rule: Rule, recorded: &Numbers, computed: &Numbers) -> Row {
    match distance(rule, recorded, computed) {
        Err(detail) => Row::fail(group, name, detail),
        Ok(error) => {
            // Written so that an error that is not a number fails.
            let status = if error <= rule.tolerance() { Status::Ok } else { Status::Fail };
            Row { error, tolerance: rule.tolerance(), ..Row::new(group, name, status, String::new()) }
        }
    }
}

/// How far apart the two are, in the measure of `rule`; an error where that cannot be told.
pub fn distance(rule: Rule, recorded: &Numbers, computed: &Numbers) -> Result<f64, String> {
    if recorded.shape != computed.shape {
        return Err(format!("recorded shape {:?}, computed {:?}", recorded.shape, computed.shape));
    }
    match (&recorded.values, &computed.values) {
        (Values::Floats(recorded), Values::Floats(computed)) => float_error(rule, recorded, computed),
        (Values::Integers(recorded), Values::Integers(computed)) => {
            let entries = || recorded.iter().zip(computed).filter(|(a, b)| **a >= 0 || **b >= 0);
            let different = recorded.iter().zip(computed).filter(|(a, b)| a != b).count() as f64;
            Ok(if let Rule::Share(_) = rule { different / entries().count().max(1) as f64 } else { different })
        }
        _ => Err("one side holds whole numbers, the other fractions".to_string()),
    }
}

fn float_error(rule: Rule, recorded: &[f32], computed: &[f32]) -> Result<f64, String> {
    if let Some(index) = recorded.iter().position(|value| !value.is_finite()) {
        return Err(format!("recorded value {index} is {}", recorded[index]));
    }
    if let Some(index) = computed.iter().position(|value| !value.is_finite()) {
        return Err(format!("computed value {index} is {}", computed[index]));
    }
    let pairs = || recorded.iter().zip(computed).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let difference = largest(&mut pairs().map(|(a, b)| (a - b).abs()));
    let num_different = || pairs().filter(|(a, b)| a != b).count() as f64;
    Ok(match rule {
        Rule::Absolute(_) => difference,
        Rule::OfLargest(_) => {
            let scale = largest(&mut pairs().map(|(a, _)| a.abs()));
            if scale > 0.0 { difference / scale } else { difference }
        }
        Rule::Relative(_) => largest(&mut pairs().map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / a.abs() })),
        Rule::OfNorm(_) => {
            let ([recorded_norm, computed_norm], cosine) = norms_and_cosine(recorded, computed);
            if recorded_norm == 0.0 {
                return Ok(computed_norm);
            }
            if cosine.is_nan() || cosine < LEAST_COSINE {
                return Err(format!("points elsewhere than recorded: cosine {cosine:.4}, expected {LEAST_COSINE}"));
            }
            pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt() / recorded_norm
        }
        Rule::Direction(_) if difference == 0.0 => 0.0, // what is zero on both sides has no direction
        Rule::Direction(_) => {
            let ([recorded_norm, computed_norm], cosine) = norms_and_cosine(recorded, computed);
            let stretch = computed_norm / recorded_norm;
            if stretch.max(1.0 / stretch) > MOST_STRETCHED {
                return Err(format!("is {stretch:.3} times as long as recorded, cosine {cosine:.4}"));
            }
            1.0 - cosine
        }
        Rule::Equal => num_different(),
        Rule::Share(_) => num_different() / recorded.len().max(1) as f64,
    })
}

/// Lengths of both, and the cosine of the angle between them: not a number where one of them is zero.
fn norms_and_cosine(recorded: &[f32], computed: &[f32]) -> ([f64; 2], f64) {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norms = [recorded, computed].map(|values| product(values, values).sqrt());
    (norms, product(recorded, computed) / (norms[0] * norms[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(rule: Rule, recorded: &[f32], computed: &[f32]) -> Status {
        let numbers = |values: &[f32]| Numbers::floats(&[values.len()], values.to_vec());
        compare("group", "name", rule, &numbers(recorded), &numbers(computed)).status
    }

    #[test]
    fn rules_pass_what_is_close_and_fail_what_is_not() {
        let [hidden, loss, frequency] =
            [Kind::Hidden, Kind::Loss, Kind::Frequency].map(|kind| kind.rule(Precision::Host));
        let near = Kind::Hidden.rule(Precision::GpuBf16);
        let gradient = Kind::Gradient.rule(Precision::GpuBf16);
        for (rule, recorded, computed, expected) in [
            (near, [3.0, 4.0], [3.0, 4.1], Status::Ok),
            (near, [3.0, 4.0], [3.0, 4.2], Status::Fail),
            (near, [0.0, 0.0], [0.0, 0.0], Status::Ok),
            (near, [0.0, 0.0], [0.0, 0.1], Status::Fail),
            (near, [1.0, 1.0], [0.0, 0.0], Status::Fail),
            (gradient, [1.0, 0.0], [1.05, 0.0], Status::Ok),
            (gradient, [1.0, 0.0], [1.0, 0.09], Status::Ok),
            // As near as the norm asks for, but 5.74 degrees off.
            (gradient, [1.0, 0.0], [0.99, 0.0995], Status::Fail),
            (hidden, [100.0, 0.0], [100.0, 1e-3], Status::Ok),
            (hidden, [1.0, 0.0], [1.0, 1e-3], Status::Fail),
            (hidden, [0.0, 0.0], [0.0, 0.0], Status::Ok),
            (hidden, [0.0, 0.0], [0.0, 1e-3], Status::Fail),
            (loss, [6.9, 7.0], [6.9, 7.00001], Status::Ok),
            (frequency, [1.0, 1e-7], [1.0, 1.1e-7], Status::Fail),
            (frequency, [1.0, 0.0], [1.0, 0.0], Status::Ok),
            (hidden, [1.0, f32::NAN], [1.0, f32::NAN], Status::Fail),
            (loss, [1.0, 2.0], [1.0, f32::NAN], Status::Fail),
            (loss, [1.0, f32::INFINITY], [1.0, f32::INFINITY], Status::Fail),
        ] {
            assert_eq!(status(rule, &recorded, &computed), expected, "{rule:?} {recorded:?} {computed:?}");
        }
    }

    #[test]
    fn natural_folders_are_held_to_directions_losses_and_shares() {
        let [gradient, loss, norm] = [Kind::Gradient, Kind::Loss, Kind::GradNorm].map(|k| k.rule(Precision::Natural));
        for (rule, recorded, computed, expected) in [
            (gradient, [1.0, 0.0], [1.0, 0.14], Status::Ok),
            (gradient, [1.0, 0.0], [1.0, 0.15], Status::Fail),
            (gradient, [1.0, 0.0], [-1.0, 0.0], Status::Fail),
            (gradient, [1.0, 2.0], [1.09, 2.18], Status::Ok),
            (gradient, [1.0, 2.0], [1.2, 2.4], Status::Fail),
            (gradient, [1.0, 2.0], [0.9, 1.8], Status::Fail),
            (gradient, [0.0, 0.0], [0.0, 0.0], Status::Ok),
            (gradient, [0.0, 0.0], [1.0, 0.0], Status::Fail),
            (gradient, [1.0, 0.0], [0.0, 0.0], Status::Fail),
            (loss, [13.0, 13.0], [13.0, 13.0019], Status::Ok),
            (loss, [13.0, 13.0], [13.0, 13.0021], Status::Fail),
            (norm, [1.0, 1.0], [1.0, 1.03], Status::Fail),
        ] {
            assert_eq!(status(rule, &recorded, &computed), expected, "{rule:?} {recorded:?} {computed:?}");
        }
        // Padding is blank on both sides and counts for nothing.
        let routed = |num_elsewhere: usize| {
            let experts = |num| [vec![1; num], vec![2; 40 - num], vec![-1; 60]].concat();
            let [recorded, computed] = [0, num_elsewhere].map(|num| Numbers::integers(&[2, 50], experts(num)));
            let rule = Kind::of_name("layer.3.router_expert").rule(Precision::Natural);
            compare("group", "name", rule, &recorded, &computed)
        };
        assert_eq!((routed(2).status, routed(2).error), (Status::Ok, 0.05));
        assert_eq!(routed(3).status, Status::Fail);
        assert_eq!(Kind::of_name("layer.3.router_expert").rule(Precision::GpuBf16), Rule::Equal);
    }

    #[test]
    fn shapes_kinds_and_missing_names_are_failures() {
        let recorded = [("a".to_string(), Ok(Numbers::scalar(1.0))), ("d".to_string(), Err("cut off".into()))].into();
        let computed: Numbered =
            [("a".to_string(), Numbers::floats(&[1, 1], vec![1.0])), ("b".to_string(), Numbers::scalar(1.0))].into();
        let rows =
            compare_all("group", &["a", "b", "c", "d"].map(String::from), &recorded, &computed, &BTreeMap::new());
        assert!(rows.iter().all(|row| row.status == Status::Fail), "{rows:?}");
        let integers = Numbers::integers(&[1], vec![1]);
        assert_eq!(compare("g", "n", Rule::Equal, &Numbers::scalar(1.0), &integers).status, Status::Fail);
        assert_eq!(compare("g", "n", Rule::Equal, &Numbers::integers(&[1], vec![2]), &integers).status, Status::Fail);
    }
}

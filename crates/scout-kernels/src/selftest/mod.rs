//! Ops on a GPU against their host versions, on inputs that are fresh in every run and memory that begins as
//! not-a-numbers. A library and not a test, because the machine that has a GPU is seldom the one that builds.

mod adapter_rates;
mod adapters;
pub mod alone;
mod attention;
pub mod attention_rates;
mod device;
pub mod experts;
mod large;
pub mod meter;
mod ops;
pub mod rates;
mod token_rates;
mod tokens;
mod training;
mod training_rates;

use std::sync::Arc;

use scout_core::{DType, Shape};
use scout_device::cuda::CudaDevice;
use scout_device::{Device, DeviceError, Tensor};

use crate::{Result, noise};

/// One comparison.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// `op.what`.
    pub name: String,
    pub detail: String,
    /// ‖found − expected‖ / ‖expected‖; infinite when something failed, or is not a number where a number is due.
    pub error: f64,
    pub tolerance: f64,
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        self.error <= self.tolerance
    }
}

type Case = (&'static str, fn(&mut Check) -> Result<()>);

fn cases() -> impl Iterator<Item = &'static Case> {
    let of_ops = ops::CASES
        .iter()
        .chain(experts::CASES)
        .chain(adapters::CASES)
        .chain(tokens::CASES)
        .chain(attention::CASES)
        .chain(training::CASES);
    device::CASES.iter().chain(of_ops).chain(large::CASES)
}

/// Runs every case whose name contains `filter`. A case that fails is an outcome, and the next one runs all the same.
pub fn run(device: &Arc<CudaDevice>, filter: &str, seed: u64) -> Vec<Outcome> {
    device.context().poison_fresh_memory(true);
    let mut outcomes = Vec::new();
    for (name, case) in cases().filter(|(name, _)| name.contains(filter)) {
        let mut check = Check { device, name, seed, outcomes: Vec::new() };
        let outcome = case(&mut check).and_then(|()| device.finish());
        outcomes.append(&mut check.outcomes);
        if let Err(error) = outcome {
            let detail = scout_core::causes::with_causes(&error);
            outcomes.push(Outcome { name: name.to_string(), detail, error: f64::INFINITY, tolerance: 0.0 });
        }
    }
    device.context().poison_fresh_memory(false);
    outcomes
}

/// What a case works with.
struct Check<'a> {
    device: &'a Arc<CudaDevice>,
    name: &'static str,
    seed: u64,
    outcomes: Vec<Outcome>,
}

/// The same values twice: as the host has them, in f32, and on the GPU in the element type under test.
struct Pair {
    host: Tensor,
    gpu: Tensor,
}

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// How far one op may be from its host version: a few roundings of f32, or one of bf16, which is 2⁻⁸ where a result has one
/// element that is just above a power of two, and less than half of that on average.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 4e-3 }
}

impl Check<'_> {
    /// Values from `−scale` to `scale` that no other call gets.
    fn pair(&mut self, dtype: DType, shape: impl Into<Shape>, scale: f32) -> Result<Pair> {
        self.seed += 1;
        let gpu = noise::tensor(self.seed, shape, scale)?.to_device_as(&Device::Cuda(self.device.clone()), dtype)?;
        Ok(Pair { host: gpu.to_host()?, gpu })
    }

    fn next_seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// Compares a result of the GPU with one of the host.
    fn close(&mut self, detail: impl Into<String>, found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<()> {
        let mut detail = detail.into();
        let error = if found.dims() == expected.dims() {
            distance(&found.to_host()?.f32s()?, &expected.to_host()?.f32s()?)
        } else {
            detail.push_str(&format!(": found shape {}, expected {}", found.shape(), expected.shape()));
            f64::INFINITY
        };
        self.outcomes.push(Outcome { name: self.name.to_string(), detail, error, tolerance });
        Ok(())
    }

    /// Notes whether something is as it must be.
    fn holds(&mut self, detail: impl Into<String>, holds: bool) {
        let error = if holds { 0.0 } else { f64::INFINITY };
        self.outcomes.push(Outcome { name: self.name.to_string(), detail: detail.into(), error, tolerance: 0.0 });
    }

    /// Notes whether a call was refused with a message that contains `part`.
    fn refused<T>(&mut self, detail: &str, part: &str, outcome: Result<T>) {
        let message = outcome.err().map(|error: DeviceError| error.to_string());
        let holds = message.as_ref().is_some_and(|message| message.contains(part));
        self.holds(format!("{detail}: {}", message.unwrap_or("was allowed".to_string())), holds);
    }
}

/// ‖a − b‖ / ‖b‖ in f64; infinite for a number that is none on either side.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(b) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    match (difference.is_finite() && norm.is_finite(), norm > 0.0) {
        (false, _) => f64::INFINITY,
        (true, true) => (difference / norm).sqrt(),
        (true, false) => difference.sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_relative_and_never_hides_what_is_not_a_number() {
        for (a, b, expected) in [
            (vec![], vec![], 0.0),
            (vec![3.0, 4.0], vec![3.0, 4.0], 0.0),
            (vec![3.0, 5.0], vec![3.0, 4.0], 0.2),
            (vec![1.0], vec![0.0], 1.0),
            (vec![f32::NAN, 1.0], vec![1.0, 1.0], f64::INFINITY),
            (vec![1.0], vec![f32::NAN], f64::INFINITY),
            (vec![f32::INFINITY], vec![f32::INFINITY], f64::INFINITY),
        ] {
            assert_eq!(distance(&a, &b), expected, "{a:?} {b:?}");
        }
    }

    #[test]
    fn names_of_cases_begin_with_what_they_test() {
        for (name, _) in cases() {
            assert!(name.contains('.') && !name.contains(' '), "{name}");
        }
    }
}

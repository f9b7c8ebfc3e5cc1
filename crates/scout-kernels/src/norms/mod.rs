//! Sums over flat runs of numbers: the square of a norm, and how many numbers are not finite. The run is cut into
//! blocks of a fixed size whose sums are added in order, in f64, so the result is the same for any number of threads,
//! and on every GPU; host and GPU differ in the last bits.

mod cuda;
mod host;
#[cfg(test)]
mod tests;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::Numbers;

use crate::{Result, check};

/// Σ v², within 1e-12 of the exact sum.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    host::sum_of_squares(values)
}

/// How many are infinite or NaN.
pub fn count_not_finite(values: &[f32]) -> u64 {
    host::count_not_finite(values)
}

/// Both of the above.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measure {
    pub sum_of_squares: f64,
    pub num_not_finite: u64,
}

/// A measure that may still be under way from a GPU.
#[derive(Debug)]
pub struct Coming(Source);

#[derive(Debug)]
enum Source {
    Here(Measure),
    /// The bits of the sum and the count, each in two halves.
    UnderWay(Numbers),
}

/// Measures a run of f32 of any shape. On a GPU the work and the copy to the host are queued on the compute stream.
pub fn measure(run: &Tensor) -> Result<Coming> {
    const WHAT: &str = "norm of a run";
    crate::cuda::expect_dtype(WHAT, run, DType::F32)?;
    let source = match check::place(WHAT, &[run])? {
        None => {
            let values = run.f32s()?;
            let (sum_of_squares, num_not_finite) = (sum_of_squares(&values), count_not_finite(&values));
            Source::Here(Measure { sum_of_squares, num_not_finite })
        }
        Some(device) => Source::UnderWay(Numbers::send(device, &cuda::measure(device, run)?)?),
    };
    Ok(Coming(source))
}

impl Coming {
    /// The measure. The first call stops the host until it is there: other work should be queued before.
    pub fn get(&self) -> Result<Measure> {
        match &self.0 {
            Source::Here(measure) => Ok(*measure),
            Source::UnderWay(numbers) => {
                let halves = numbers.get()?;
                let whole = |at: usize| u64::from(halves[at]) | u64::from(halves[at + 1]) << 32;
                Ok(Measure { sum_of_squares: f64::from_bits(whole(0)), num_not_finite: whole(2) })
            }
        }
    }
}

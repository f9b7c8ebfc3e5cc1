//! Parts of a step, run again with nothing beside them: what the GPU does with the same work at the same power limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scout_core::DType;
use scout_device::DeviceError;
use scout_device::cuda::{CudaDevice, Factor, FactorForm, Problem, Product, Reading, Scale, Window};

use super::meter::{mean_reading, runs};
use crate::attention::{self, Segments};
use crate::{Result, noise};

/// Rounds between two events, at least as long as this.
const BETWEEN_EVENTS: Duration = Duration::from_millis(20);

/// A round of work that was repeated without pause.
#[derive(Debug, Clone, Copy)]
pub struct Alone {
    /// Of one round, on average over the second half of all of them: by then the clock is where the power limit holds it.
    pub time: Duration,
    /// Meanwhile; none without NVML.
    pub reading: Option<Reading>,
}

/// These products, one after the other, again and again for `at_least`. Their factors begin at the same addresses, which
/// is no help where they are larger than the cache. All have the types of the first.
pub fn products(device: &Arc<CudaDevice>, products: &[Product], at_least: Duration) -> Result<Alone> {
    let most = |of: fn(&Problem) -> Window| products.iter().map(|product| elements(&of(&product.problem))).max();
    let (Some(first), Some(of_a), Some(of_b), Some(of_c)) = (products.first(), most(a), most(b), most(c)) else {
        let problem = "found none, expected at least one".to_string();
        return Err(DeviceError::Value { what: "products to repeat", problem });
    };
    let Problem { factors, result, .. } = first.problem;
    let x = noise::tensor_on(device, factors, [of_a], 1, 0.05)?;
    let weight = noise::tensor_on(device, factors, [of_b], 2, 0.05)?;
    let mut y = device.zeros(result, [of_c])?;
    repeat(device, at_least, || {
        for Product { problem, adds } in products {
            let x = Factor { tensor: &x, window: a(problem), transposed: problem.a.transposed };
            let weight = Factor { tensor: &weight, window: b(problem), transposed: problem.b.transposed };
            // A sum that begins with half of the last one stays small.
            let scale = if *adds { Scale { alpha: 1.0, beta: 0.5 } } else { Scale::OVERWRITE };
            device.multiply([x, weight], (&mut y, c(problem)), scale)?;
        }
        Ok(())
    })
}

/// Attention forward and backward on packed documents, each again and again for `at_least`.
pub fn attention(
    device: &Arc<CudaDevice>,
    segments: &Segments,
    [query, kv, size]: [usize; 3],
    at_least: Duration,
) -> Result<[Alone; 2]> {
    let num_tokens = segments.num_tokens();
    let tensor = |seed, heads| noise::tensor_on(device, DType::BF16, [num_tokens, heads, size], seed, 1.0);
    let (q, k, v, dcontext) = (tensor(1, query)?, tensor(2, kv)?, tensor(3, kv)?, tensor(4, query)?);
    let scale = 1.0 / (size as f32).sqrt();
    let attended = attention::forward(&q, &k, &v, segments, scale)?;
    let forward = repeat(device, at_least, || attention::forward(&q, &k, &v, segments, scale).map(drop))?;
    let backward =
        repeat(device, at_least, || attention::backward(&dcontext, &q, &k, &v, &attended, segments, scale).map(drop))?;
    Ok([forward, backward])
}

fn repeat(device: &Arc<CudaDevice>, at_least: Duration, mut round: impl FnMut() -> Result<()>) -> Result<Alone> {
    round()?;
    device.finish()?;
    let first = runs(device, 1, &mut round)?.1[0];
    let rounds = (BETWEEN_EVENTS.as_secs_f64() / first.as_secs_f64().max(1e-6)).ceil().clamp(1.0, 4096.0) as u32;
    let gauge = device.gauge().ok();
    let (begun, mut times, mut readings) = (Instant::now(), Vec::new(), Vec::new());
    while begun.elapsed() < at_least || times.len() < 4 {
        // Two runs ahead of the host, so that the GPU never waits.
        let (_, new) = runs(device, 2, || (0..rounds).try_for_each(|_| round()))?;
        times.extend(new);
        readings.extend(gauge.as_ref().and_then(|gauge| gauge.read().ok()));
    }
    let late = times.split_off(times.len() / 2);
    let time = late.iter().sum::<Duration>() / (late.len() as u32 * rounds);
    Ok(Alone { time, reading: mean_reading(&readings[readings.len() / 2..]) })
}

fn a(problem: &Problem) -> Window {
    stored(problem.m, problem.k, problem.a)
}

fn b(problem: &Problem) -> Window {
    stored(problem.k, problem.n, problem.b)
}

fn c(problem: &Problem) -> Window {
    Window { start: 0, rows: problem.m, columns: problem.n, leading: problem.leading }
}

/// A factor as it lies in memory, from the first element.
fn stored(rows: usize, columns: usize, form: FactorForm) -> Window {
    let (rows, columns) = if form.transposed { (columns, rows) } else { (rows, columns) };
    Window { start: 0, rows, columns, leading: form.leading }
}

fn elements(window: &Window) -> usize {
    (window.rows.max(1) - 1) * window.leading + window.columns
}

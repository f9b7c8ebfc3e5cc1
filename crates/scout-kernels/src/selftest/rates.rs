//! How fast matrix products of Scout's shapes are on this GPU. Useful FLOPs only: 2·m·n·k over the time between two events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{CudaDevice, Factor, Reading, Scale, Window};

use crate::{Result, noise};

/// A measured product, or a loop of products over experts.
#[derive(Debug, Clone)]
pub struct Rate {
    pub name: String,
    /// Rows, columns and inner extent of one product, and how many of them run one after the other.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub count: usize,
    /// The median of the runs.
    pub time: Duration,
    pub tflops: f64,
    /// While the last runs were under way; none without NVML.
    pub reading: Option<Reading>,
}

/// A product of the model: `x[m, k]` times a weight, stored `[n, k]` (as attention, shared expert and head are), or
/// `[count, k, n]` (as routed experts are).
struct Shape {
    name: &'static str,
    m: usize,
    n: usize,
    k: usize,
    count: usize,
    transposed: bool,
}

const fn dense(name: &'static str, m: usize, n: usize, k: usize) -> Shape {
    Shape { name, m, n, k, count: 1, transposed: true }
}

const fn experts(name: &'static str, m: usize, n: usize, k: usize, transposed: bool) -> Shape {
    Shape { name, m, n, k, count: 16, transposed }
}

const SHAPES: &[Shape] = &[
    dense("q or o", 32768, 5120, 5120),
    dense("shared gate or up", 32768, 8192, 5120),
    dense("shared gate and up", 16384, 16384, 5120),
    dense("shared down", 32768, 5120, 8192),
    dense("head", 8192, 202_048, 5120),
    experts("experts gate and up, forward", 512, 16384, 5120, false),
    experts("experts gate and up, forward", 1024, 16384, 5120, false),
    experts("experts gate and up, forward", 1536, 16384, 5120, false),
    experts("experts gate and up, forward", 2048, 16384, 5120, false),
    experts("experts down, forward", 1024, 5120, 8192, false),
    experts("experts gate and up, backward", 1024, 5120, 16384, true),
    experts("experts down, backward", 1024, 8192, 5120, true),
];

/// Each shape on random numbers, and one of them without pause for `sustained`.
pub fn products(device: &Arc<CudaDevice>, sustained: Duration, mut each: impl FnMut(&Rate)) -> Result<Vec<Rate>> {
    let mut rates = Vec::new();
    for shape in SHAPES {
        let rate = measure(device, shape, Duration::from_millis(300))?;
        each(&rate);
        rates.push(rate);
    }
    if !sustained.is_zero() {
        let mut rate = measure(device, &dense("shared gate and up, sustained", 16384, 16384, 5120), sustained)?;
        rate.name = format!("{} for {sustained:?}", rate.name);
        each(&rate);
        rates.push(rate);
    }
    Ok(rates)
}

fn measure(device: &Arc<CudaDevice>, shape: &Shape, at_least: Duration) -> Result<Rate> {
    let Shape { m, n, k, count, .. } = *shape;
    let x = noise::tensor_on(device, DType::BF16, [count * m, k], 1, 1.0)?;
    let weight = noise::tensor_on(device, DType::BF16, [count * n, k], 2, 0.02)?;
    let run = |y: &mut _| -> Result<()> {
        for index in 0..count {
            let factors = factors(shape, &x, &weight, index);
            let window = Window { start: index * m * n, ..Window::whole(m, n) };
            device.multiply(factors, (y, window), Scale::OVERWRITE)?;
        }
        Ok(())
    };
    let mut y = device.buffer(DType::BF16, [count * m, n])?;
    run(&mut y)?;
    run(&mut y)?;
    device.finish()?;
    let gauge = device.gauge().ok();
    let (begun, mut times, mut reading) = (Instant::now(), Vec::new(), None);
    while begun.elapsed() < at_least || times.len() < 5 {
        let mut marks = vec![device.compute().record_time()?];
        for _ in 0..10 {
            run(&mut y)?;
            marks.push(device.compute().record_time()?);
        }
        // In the middle of the work that was just queued.
        marks[5].wait(device.patience())?;
        reading = gauge.as_ref().and_then(|gauge| gauge.read().ok());
        marks[10].wait(device.patience())?;
        for pair in marks.windows(2) {
            times.push(pair[1].since(&pair[0])?);
        }
    }
    times.sort();
    let time = times[times.len() / 2];
    let tflops = 2.0 * (m * n * k * count) as f64 / time.as_secs_f64() / 1e12;
    Ok(Rate { name: shape.name.to_string(), m, n, k, count, time, tflops, reading })
}

fn factors<'a>(shape: &Shape, x: &'a Tensor, weight: &'a Tensor, index: usize) -> [Factor<'a>; 2] {
    let Shape { m, n, k, transposed, .. } = *shape;
    let of_weight = if transposed { Window::whole(n, k) } else { Window::whole(k, n) };
    [
        Factor { tensor: x, window: Window { start: index * m * k, ..Window::whole(m, k) }, transposed: false },
        Factor { tensor: weight, window: Window { start: index * n * k, ..of_weight }, transposed },
    ]
}

//! How fast matrix products and kernels of Scout's shapes are on this GPU: useful FLOPs, or bytes that must be moved, over
//! the time between two events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{CudaDevice, Factor, Reading, Scale, Window};

use super::meter::{KernelRate, Meter, median, runs};
use super::{adapter_rates, token_rates, training_rates};
use crate::{Result, noise, rms_norm, swiglu};

/// A measured product, or a loop of products over experts.
#[derive(Debug, Clone)]
pub struct Rate {
    pub name: String,
    /// Rows, columns and inner extent of one product, and how many of them run one after the other.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub count: usize,
    /// The median time, and what it means, of a few runs after a rest.
    pub rested: Duration,
    pub rested_tflops: f64,
    /// The same without pause, when the GPU is as hot as it gets and the power limit holds its clock down.
    pub steady: Duration,
    pub steady_tflops: f64,
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
    // A rest in which the GPU cools down and its clock comes back.
    std::thread::sleep(Duration::from_millis(400));
    let rested = median(runs(device, 6, || run(&mut y))?.1);
    let gauge = device.gauge().ok();
    let (begun, mut times, mut reading) = (Instant::now(), Vec::new(), None);
    while begun.elapsed() < at_least {
        let (marks, new) = runs(device, 10, || run(&mut y))?;
        times.extend(new);
        // Right behind the work: the clock falls and rises more slowly than this.
        reading = gauge.as_ref().and_then(|gauge| gauge.read().ok());
        drop(marks);
    }
    let steady = median(times);
    let tflops = |time: Duration| 2.0 * (m * n * k * count) as f64 / time.as_secs_f64() / 1e12;
    let (rested_tflops, steady_tflops) = (tflops(rested), tflops(steady));
    Ok(Rate { name: shape.name.to_string(), m, n, k, count, rested, rested_tflops, steady, steady_tflops, reading })
}

/// Kernels whose time is that of moving bytes, at 16,384 tokens of the model's widths, in bf16.
pub fn kernels(device: &Arc<CudaDevice>) -> Result<Vec<KernelRate>> {
    const TOKENS: usize = 16384;
    const WIDTH: usize = 5120;
    const INNER: usize = 8192;
    let x = noise::tensor_on(device, DType::BF16, [TOKENS, WIDTH], 1, 1.0)?;
    let dy = noise::tensor_on(device, DType::BF16, [TOKENS, WIDTH], 2, 1.0)?;
    let residual = noise::tensor_on(device, DType::BF16, [TOKENS, WIDTH], 6, 1.0)?;
    let weight = noise::tensor_on(device, DType::BF16, [WIDTH], 3, 1.0)?;
    let gate_up = noise::tensor_on(device, DType::BF16, [TOKENS, 2 * INNER], 4, 4.0)?;
    let dh = noise::tensor_on(device, DType::BF16, [TOKENS, INNER], 5, 1.0)?;
    let inverse_rms = rms_norm::forward(&x, &weight, 1e-5)?.inverse_rms;
    let mut copy = device.buffer(DType::BF16, [TOKENS, 2 * INNER])?;
    let (of_x, of_h) = (x.bytes().0, dh.bytes().0);
    let mut meter = Meter::new(device);
    meter.measure("copy, for comparison", 4 * of_h, &mut || copy.copy_from(0, &gate_up))?;
    meter.measure("rms_norm forward", 2 * of_x, &mut || rms_norm::forward(&x, &weight, 1e-5).map(|_| ()))?;
    meter.measure("rms_norm backward", 3 * of_x, &mut || {
        rms_norm::backward(&dy, &x, &inverse_rms, &weight, None).map(|_| ())
    })?;
    meter.measure("rms_norm backward and residual", 4 * of_x, &mut || {
        rms_norm::backward(&dy, &x, &inverse_rms, &weight, Some(&residual)).map(|_| ())
    })?;
    meter.measure("swiglu forward", 3 * of_h, &mut || swiglu::forward(&gate_up).map(|_| ()))?;
    meter.measure("swiglu backward", 5 * of_h, &mut || swiglu::backward(&dh, &gate_up).map(|_| ()))?;
    let mut both = || swiglu::back_and_forth(&dh, &gate_up).map(|_| ());
    meter.measure("swiglu back and forth", 6 * of_h, &mut both)?;
    let mut rates = meter.rates;
    rates.append(&mut token_rates::kernels(device)?);
    rates.append(&mut adapter_rates::kernels(device)?);
    rates.append(&mut training_rates::kernels(device)?);
    Ok(rates)
}

/// What a call costs the host that queues it: a small kernel, and a small product of a shape seen before.
pub fn host_costs(device: &Arc<CudaDevice>) -> Result<Vec<(&'static str, Duration)>> {
    const CALLS: u32 = 500;
    let x = noise::tensor_on(device, DType::BF16, [64, 128], 1, 1.0)?;
    let mut costs = Vec::new();
    let calls: [(&str, &dyn Fn() -> Result<Tensor>); 2] =
        [("kernel", &|| swiglu::forward(&x)), ("product", &|| crate::matmul::nt(&x, &x))];
    for (name, call) in calls {
        call()?;
        device.finish()?;
        let begun = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        costs.push((name, begun.elapsed() / CALLS));
        device.finish()?;
    }
    Ok(costs)
}

fn factors<'a>(shape: &Shape, x: &'a Tensor, weight: &'a Tensor, index: usize) -> [Factor<'a>; 2] {
    let Shape { m, n, k, transposed, .. } = *shape;
    let of_weight = if transposed { Window::whole(n, k) } else { Window::whole(k, n) };
    [
        Factor { tensor: x, window: Window { start: index * m * k, ..Window::whole(m, k) }, transposed: false },
        Factor { tensor: weight, window: Window { start: index * n * k, ..of_weight }, transposed },
    ]
}

//! Gathers and products that run at the same time on one GPU, each without pause on a stream of its own, and how much each
//! of them gets done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scout_comm::{Job, words};
use scout_core::DType;
use scout_device::cuda::{CudaDevice, DeviceBuffer, Event, Factor, Scale, Stream, Window};
use scout_device::{DeviceError, Tensor};
use scout_kernels::noise;
use scout_train::TrainError;

/// Rows, columns and inner extent of the product.
const EXTENT: usize = 8192;
/// Rounds of gathers, and products, that are queued ahead of the GPU: it must never wait for the host, and the host must
/// not run away.
const ROUNDS_AHEAD: usize = 2;
const PRODUCTS_AHEAD: usize = 16;
/// Between two looks at the GPU.
const A_BLINK: Duration = Duration::from_micros(20);

/// A product in bf16 that is queued again and again.
pub struct Products {
    device: Arc<CudaDevice>,
    a: Tensor,
    b: Tensor,
}

/// Gathers of one way, which every rank of the job queues alike.
pub struct Contest<'a> {
    pub device: &'a Arc<CudaDevice>,
    /// Where `gather` queues.
    pub stream: &'a Arc<Stream>,
    /// Queues one round.
    pub gather: &'a dyn Fn() -> Result<(), TrainError>,
}

/// What was done on this rank.
pub struct Rates {
    pub seconds_a_round: f64,
    /// Of the products meanwhile; 0 without any.
    pub tflops: f64,
}

impl Products {
    pub fn new(device: &Arc<CudaDevice>) -> Result<Products, TrainError> {
        let a = noise::tensor_on(device, DType::BF16, [EXTENT, EXTENT], 1, 1.0)?;
        let b = noise::tensor_on(device, DType::BF16, [EXTENT, EXTENT], 2, 0.02)?;
        Ok(Products { device: device.clone(), a, b })
    }

    pub fn describe() -> String {
        format!("products are {EXTENT}x{EXTENT} by {EXTENT}x{EXTENT} in bf16")
    }

    /// Their TFLOP/s with nothing beside them.
    pub fn alone(&self, at_least: Duration) -> Result<f64, TrainError> {
        let mut run = Run::new(self)?;
        let begun = Instant::now();
        run.fill()?;
        while begun.elapsed() < at_least {
            std::thread::sleep(A_BLINK);
            run.fill()?;
        }
        self.device.finish()?;
        Ok(tflops(&run.times()?))
    }
}

/// Products that are queued, with an event behind each.
struct Run<'a> {
    products: &'a Products,
    result: DeviceBuffer,
    /// The first one stands before the first product.
    marks: Vec<Event>,
    /// How many of the marks are known to be past.
    num_past: usize,
}

impl<'a> Run<'a> {
    /// One product runs before anything is timed: it finds its algorithm.
    fn new(products: &'a Products) -> Result<Run<'a>, TrainError> {
        let result = products.device.buffer(DType::BF16, [EXTENT, EXTENT])?;
        let mut run = Run { products, result, marks: Vec::new(), num_past: 0 };
        run.queue()?;
        products.device.finish()?;
        run.marks.clear();
        Ok(run)
    }

    fn queue(&mut self) -> Result<(), TrainError> {
        let Products { device, a, b } = self.products;
        let window = Window::whole(EXTENT, EXTENT);
        let factor = |tensor| Factor { tensor, window, transposed: false };
        device.multiply([factor(a), factor(b)], (&mut self.result, window), Scale::OVERWRITE)?;
        self.marks.push(device.compute().record_time()?);
        Ok(())
    }

    /// Queues as many as are missing.
    fn fill(&mut self) -> Result<(), TrainError> {
        if self.marks.is_empty() {
            self.marks.push(self.products.device.compute().record_time()?);
        }
        while self.num_past < self.marks.len() && self.marks[self.num_past].is_past()? {
            self.num_past += 1;
        }
        while self.marks.len() - self.num_past < PRODUCTS_AHEAD {
            self.queue()?;
        }
        Ok(())
    }

    /// Of each product. All must be done.
    fn times(&self) -> Result<Vec<Duration>, TrainError> {
        let times = self.marks.windows(2).map(|pair| pair[1].since(&pair[0]));
        Ok(times.collect::<scout_device::Result<_>>()?)
    }
}

impl Contest<'_> {
    /// How many rounds take about so long; the same on all ranks. Every rank calls it.
    pub fn rounds_in(&self, seconds: Duration, job: &Job) -> Result<usize, TrainError> {
        const TRIED: usize = 3;
        (self.gather)()?; // what happens once is not timed
        self.stream.finish(self.device.patience())?;
        let tried = self.run(TRIED, None, job)?;
        let own = (seconds.as_secs_f64() / tried.seconds_a_round).ceil().max(TRIED as f64) as u64;
        Ok(u64::from_le_bytes(words::of_first_rank(&*job.comm, own.to_le_bytes())?) as usize)
    }

    /// So many rounds, and products without pause for as long as they take. Every rank calls it.
    pub fn run(&self, num_rounds: usize, products: Option<&Products>, job: &Job) -> Result<Rates, TrainError> {
        let mut run = products.map(Run::new).transpose()?;
        let mut ahead: VecDeque<Event> = VecDeque::new();
        let (mut num_queued, mut done) = (0, None);
        job.comm.barrier()?; // nobody times the others' start
        let begun = self.stream.record_time()?;
        let mut last_seen = Instant::now();
        while num_queued < num_rounds || !ahead.is_empty() {
            if let Some(run) = &mut run {
                run.fill()?;
            }
            while ahead.front().map(Event::is_past).transpose()?.unwrap_or(false) {
                done = ahead.pop_front();
                last_seen = Instant::now();
            }
            if num_queued < num_rounds && ahead.len() < ROUNDS_AHEAD {
                (self.gather)()?;
                ahead.push_back(self.stream.record_time()?);
                num_queued += 1;
                continue;
            }
            if last_seen.elapsed() > self.device.patience() {
                return Err(DeviceError::Late { waited: self.device.patience() }.into());
            }
            std::thread::sleep(A_BLINK);
        }
        let done = done.expect("there is a round, and all are past");
        self.device.finish()?;
        let time = done.since(&begun)?;
        let tflops = match &run {
            None => 0.0,
            Some(run) => tflops(until(&run.times()?, time.saturating_sub(run.marks[0].since(&begun)?))),
        };
        Ok(Rates { seconds_a_round: time.as_secs_f64() / num_rounds as f64, tflops })
    }
}

/// Those of `times`, one behind the other, that are over at `end`.
fn until(times: &[Duration], end: Duration) -> &[Duration] {
    let ends = times.iter().scan(Duration::ZERO, |now, time| {
        *now += *time;
        Some(*now)
    });
    &times[..ends.take_while(|now| *now <= end).count()]
}

/// Of the second half of products: by then the clock is where the power limit holds it. 0 of none.
fn tflops(times: &[Duration]) -> f64 {
    let late = &times[times.len() / 2..];
    let seconds: f64 = late.iter().map(Duration::as_secs_f64).sum();
    if late.is_empty() { 0.0 } else { late.len() as f64 * 2.0 * (EXTENT as f64).powi(3) / seconds / 1e12 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_products_that_end_while_gathers_run_count() {
        let times = [3, 4, 5, 6].map(Duration::from_millis);
        for (end, expected) in [(0, 0), (3, 1), (11, 2), (12, 3), (99, 4)] {
            assert_eq!(until(&times, Duration::from_millis(end)).len(), expected, "{end} ms");
        }
    }

    #[test]
    fn a_rate_is_that_of_the_later_half() {
        let times = [9000, 9000, 1000, 3000].map(Duration::from_micros);
        let operations = 2.0 * 8192f64.powi(3);
        assert!((tflops(&times) - operations / 2e-3 / 1e12).abs() < 1e-6);
        assert_eq!(tflops(&[]), 0.0);
    }
}

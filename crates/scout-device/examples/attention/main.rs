//! Attention on the GPU of this machine: first against plain loops on the host, then against the clock.
//!
//! `attention [FOLDER]`, where FOLDER has CUDA's libraries if they are in no usual place. Leaves with 1 when a result is
//! off by more than bf16 explains.

mod reference;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use reference::Reference;
use scout_core::{ByteCount, DType};
use scout_device::cuda::attention::{Attended, Documents, QkvGradients};
use scout_device::cuda::dnn::{Attention, DocumentIndex, Heads, SumOrder};
use scout_device::cuda::{CudaDevice, CudaOptions, Pinned, Search};
use scout_device::{Device, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SCOUT: Heads = Heads { query: 40, kv: 8, size: 128 };
/// ‖found − expected‖ / ‖expected‖: factors and results are rounded to bf16, which is 2⁻⁹ each.
const TOLERANCE: f64 = 1e-2;
const ODD: [u32; 16] = [301, 0, 77, 1, 255, 512, 33, 700, 129, 64, 3, 0, 450, 127, 65, 208];
const ALPACA: [u32; 16] = [120, 87, 203, 64, 145, 98, 310, 77, 133, 55, 181, 109, 92, 260, 70, 121];

struct Bench {
    device: Arc<CudaDevice>,
    attention: Attention,
}

/// A batch on the GPU, and on the host the same numbers.
struct Batch {
    borders: Vec<u32>,
    documents: Documents,
    scale: f32,
    host: [Vec<f32>; 4],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dcontext: Tensor,
}

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            println!("{failures} results are off");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u32> {
    let search = Search { cuda_libs: std::env::args_os().nth(1), ..Search::default() };
    let options = CudaOptions { search, working_memory: ByteCount(12 << 30), ..CudaOptions::default() };
    let device = CudaDevice::open(&options)?;
    for library in device.libraries() {
        println!("{} {} {}", library.name, library.version, library.path.display());
    }
    let attention = Attention::new(device.context())?;
    let bench = Bench { device, attention };
    let mut failures = bench.refuse()?;
    bench.device.context().poison_fresh_memory(true);
    for length in [1, 2, 63, 64, 65, 127, 128, 1000] {
        failures += bench.compare(SCOUT, &[length], SumOrder::Any)?;
    }
    for (query, kv, size) in [(40, 8, 128), (5, 1, 128), (8, 8, 128), (8, 2, 64)] {
        for sum_order in [SumOrder::Any, SumOrder::Fixed] {
            failures += bench.compare(Heads { query, kv, size }, &ODD, sum_order)?;
        }
    }
    for length in [8191, 8192] {
        failures += bench.compare(Heads { query: 5, kv: 1, size: 128 }, &[length], SumOrder::Any)?;
    }
    bench.device.context().poison_fresh_memory(false);
    for lengths in [vec![2048; 16], vec![2048; 8], vec![8192; 4], vec![2048], ALPACA.to_vec(), vec![128; 128]] {
        bench.time(&lengths)?;
    }
    Ok(failures)
}

impl Bench {
    fn batch(&self, heads: Heads, lengths: &[u32], sum_order: SumOrder) -> Result<Batch> {
        let mut borders = vec![0];
        for length in lengths {
            borders.push(borders[borders.len() - 1] + length);
        }
        let index = DocumentIndex::new(&borders, heads, sum_order)?;
        let pinned = Pinned::zeros(self.device.context(), size_of_val(index.values()))?;
        let (documents, copying) = Documents::upload(&index, &self.device, pinned)?;
        copying.wait(self.device.patience())?;
        let tokens = index.num_tokens();
        let elements = |heads_here: usize| tokens * heads_here * heads.size;
        // Scores of a standard deviation of two, so that some weights are large.
        let host = [
            numbers(elements(heads.query), 1, 2.0),
            numbers(elements(heads.kv), 2, 1.0),
            numbers(elements(heads.kv), 3, 1.0),
            numbers(elements(heads.query), 4, 1.0),
        ];
        let there = Device::Cuda(self.device.clone());
        let tensor = |values: &Vec<f32>, heads_here: usize| {
            Tensor::from_f32(values.clone(), [tokens, heads_here, heads.size])?.to_device_as(&there, DType::BF16)
        };
        Ok(Batch {
            q: tensor(&host[0], heads.query)?,
            k: tensor(&host[1], heads.kv)?,
            v: tensor(&host[2], heads.kv)?,
            dcontext: tensor(&host[3], heads.query)?,
            scale: 1.0 / (heads.size as f32).sqrt(),
            borders,
            documents,
            host,
        })
    }

    fn forward(&self, batch: &Batch) -> Result<Attended> {
        Ok(self.attention.forward([&batch.q, &batch.k, &batch.v], &batch.documents, batch.scale)?)
    }

    fn backward(&self, batch: &Batch, attended: &Attended) -> Result<QkvGradients> {
        let qkv = [&batch.q, &batch.k, &batch.v];
        Ok(self.attention.backward(&batch.dcontext, qkv, attended, &batch.documents, batch.scale)?)
    }

    /// How many results of a batch are off.
    fn compare(&self, heads: Heads, lengths: &[u32], sum_order: SumOrder) -> Result<u32> {
        let batch = self.batch(heads, lengths, sum_order)?;
        let begun = Instant::now();
        let (shape, num_tokens) = (batch.documents.shape(), batch.documents.num_tokens());
        let scratch = [self.attention.prepare_forward(shape)?, self.attention.prepare_backward(shape, num_tokens)?];
        let prepared = begun.elapsed();
        let steady = self.device.steady_step();
        let attended = self.forward(&batch)?;
        let found = results(&attended, &self.backward(&batch, &attended)?)?;
        let attended = self.forward(&batch)?;
        let again = results(&attended, &self.backward(&batch, &attended)?)?;
        drop(steady);
        let reference = Reference { heads, scale: batch.scale, borders: &batch.borders };
        let [q, k, v, dcontext] = batch.host.each_ref().map(Vec::as_slice);
        let [context, log_sum_exp] = reference.forward([q, k, v]);
        let [dq, dk, dv] = reference.backward(dcontext, [q, k, v], [&context, &log_sum_exp]);
        let expected = [context, log_sum_exp, dq, dk, dv];
        let shape = batch.documents.shape();
        print!("{}/{} heads of {}, ", heads.query, heads.kv, heads.size);
        print!("{} documents of {} tokens, ", lengths.len(), batch.documents.num_tokens());
        print!("{} slots of {}, sums in {sum_order:?} order:", shape.num_slots(), shape.max_length());
        let mut failures = 0;
        for (name, (found, expected)) in ["o", "lse", "dq", "dk", "dv"].iter().zip(found.iter().zip(&expected)) {
            let error = distance(found, expected);
            let is_close = error <= TOLERANCE;
            failures += u32::from(!is_close);
            print!(" {name} {error:.1e}{}", if is_close { "" } else { " OFF" });
        }
        let repeats = found.iter().zip(&again).all(|(a, b)| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()));
        if sum_order == SumOrder::Fixed && !repeats {
            failures += 1;
        }
        println!(", same bits again: {repeats}, scratch {} + {}, plans made in {prepared:.0?}", scratch[0], scratch[1]);
        Ok(failures)
    }

    /// How many calls that must be refused were not.
    fn refuse(&self) -> Result<u32> {
        let batch = self.batch(SCOUT, &[64, 64], SumOrder::Any)?;
        let other = self.batch(SCOUT, &[64, 65], SumOrder::Any)?;
        let qkv = [&batch.q, &batch.k, &batch.v];
        let float = Tensor::zeros_f32([128, 40, 128])?.to_device(&Device::Cuda(self.device.clone()))?;
        let on_host = Tensor::zeros_f32([128, 40, 128])?;
        let refused = [
            self.attention.forward(qkv, &other.documents, 1.0),
            self.attention.forward([&batch.k, &batch.k, &batch.v], &batch.documents, 1.0),
            self.attention.forward([&float, &batch.k, &batch.v], &batch.documents, 1.0),
            self.attention.forward([&on_host, &batch.k, &batch.v], &batch.documents, 1.0),
        ];
        for error in refused.iter().filter_map(|refused| refused.as_ref().err()) {
            println!("refused: {error}");
        }
        Ok(refused.iter().filter(|refused| refused.is_ok()).count() as u32)
    }

    fn time(&self, lengths: &[u32]) -> Result<()> {
        let batch = self.batch(SCOUT, lengths, SumOrder::Any)?;
        let attended = self.forward(&batch)?;
        let (forward, forward_host) = self.median(|| self.forward(&batch).map(drop))?;
        let (backward, backward_host) = self.median(|| self.backward(&batch, &attended).map(drop))?;
        // Half of the square under the diagonal; two products forward, five backward.
        let pairs: f64 = lengths.iter().map(|&length| f64::from(length).powi(2) / 2.0).sum();
        let product = 2.0 * pairs * (SCOUT.query * SCOUT.size) as f64;
        let rate = |products: f64, time: Duration| products * product / time.as_secs_f64() / 1e12;
        println!(
            "{} documents, {} tokens: forward {:.3} ms, {:.0} TFLOP/s (host {forward_host:.0?}); backward {:.3} ms, \
             {:.0} TFLOP/s (host {backward_host:.0?})",
            lengths.len(),
            batch.documents.num_tokens(),
            forward.as_secs_f64() * 1e3,
            rate(2.0, forward),
            backward.as_secs_f64() * 1e3,
            rate(5.0, backward),
        );
        Ok(())
    }

    /// Time on the GPU, and on the host to queue it.
    fn median(&self, mut pass: impl FnMut() -> Result<()>) -> Result<(Duration, Duration)> {
        const RUNS: usize = 25;
        let (mut gpu, mut host) = (Vec::new(), Vec::new());
        for run in 0..RUNS + 5 {
            let start = self.device.compute().record_time()?;
            let begun = Instant::now();
            pass()?;
            let queued = begun.elapsed();
            let end = self.device.compute().record_time()?;
            end.wait(self.device.patience())?;
            if run >= 5 {
                gpu.push(end.since(&start)?);
                host.push(queued);
            }
        }
        gpu.sort();
        host.sort();
        Ok((gpu[RUNS / 2], host[RUNS / 2]))
    }
}

fn results(attended: &Attended, gradient: &QkvGradients) -> Result<[Vec<f32>; 5]> {
    let all = [&attended.context, &attended.log_sum_exp, &gradient.dq, &gradient.dk, &gradient.dv];
    let mut results = [const { Vec::new() }; 5];
    for (result, tensor) in results.iter_mut().zip(all) {
        *result = tensor.to_host()?.to_f32_vec()?;
    }
    Ok(results)
}

/// Numbers that bf16 holds, about normal.
fn numbers(count: usize, seed: u64, deviation: f32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut normal = || (uniform() + uniform() + uniform() + uniform()) * 3f32.sqrt();
    (0..count).map(|_| bf16::from_f32(normal() * deviation).to_f32()).collect()
}

/// ‖found − expected‖ / ‖expected‖, or ‖found‖ where nothing is expected; not a number when a result is not.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let (mut difference, mut whole) = (0f64, 0f64);
    for (&found, &expected) in found.iter().zip(expected) {
        difference += f64::from(found - expected).powi(2);
        whole += f64::from(expected).powi(2);
    }
    if whole == 0.0 { difference.sqrt() } else { (difference / whole).sqrt() }
}

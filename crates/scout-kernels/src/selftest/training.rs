//! The end of a step: the loss of the head, the norm of a gradient, the new parameters.

use std::ops::Range;

use scout_core::DType;
use scout_device::cuda::DeviceBuffer;
use scout_device::{Device, Tensor};

use super::{Case, Check, DTYPES};
use crate::adamw::{self, GpuState, Hyper};
use crate::{Result, cross_entropy, noise, norms};

pub(super) const CASES: &[Case] = &[
    ("cross_entropy.all_forms", cross_entropy_all_forms),
    ("cross_entropy.chunks", cross_entropy_chunks),
    ("cross_entropy.targets", cross_entropy_targets),
    ("cross_entropy.of_logits", cross_entropy_of_logits),
    ("adamw.bits", adamw_bits),
    ("adamw.refusals", adamw_refusals),
    ("norms.measure", norms_measure),
    ("norms.large", norms_large),
];

/// Logits, their gradients and the results are rounded in bf16.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1e-2 }
}

fn targets(check: &mut Check, num_rows: usize, vocabulary: usize) -> Result<[Tensor; 2]> {
    let seed = check.next_seed();
    let targets = (0..num_rows).map(|row| (noise::hash(seed, row as u64) % vocabulary as u64) as u32).collect();
    let host = Tensor::from_u32(targets, [num_rows])?;
    let gpu = host.to_device(&Device::Cuda(check.device.clone()))?;
    Ok([host, gpu])
}

/// `head` asks for the gradient of the head too.
fn compare_losses(
    check: &mut Check,
    dtype: DType,
    [num_rows, width, vocabulary]: [usize; 3],
    head: bool,
) -> Result<()> {
    let what = format!("{dtype} {num_rows}x{width}, {vocabulary} words");
    let x = check.pair(dtype, [num_rows, width], 1.0)?;
    let weight = check.pair(dtype, [vocabulary, width], 1.0)?;
    let weights = check.pair(DType::F32, [num_rows], 1.0)?;
    let [targets, targets_there] = targets(check, num_rows, vocabulary)?;
    let expected = cross_entropy::forward_backward(&x.host, &weight.host, &targets, &weights.host)?;
    let found = cross_entropy::forward_backward(&x.gpu, &weight.gpu, &targets_there, &weights.gpu)?;
    check.close(format!("{what} loss"), &found.token_loss, &expected.token_loss, tolerance(dtype))?;
    check.close(format!("{what} dx"), &found.dx, &expected.dx, tolerance(dtype))?;
    let alone = cross_entropy::forward(&x.gpu, &weight.gpu, &targets_there)?;
    check.close(format!("{what} loss alone"), &alone, &found.token_loss, 0.0)?;
    if head {
        let expected = cross_entropy::forward_backward_of_head(&x.host, &weight.host, &targets, &weights.host)?;
        let of_head = cross_entropy::forward_backward_of_head(&x.gpu, &weight.gpu, &targets_there, &weights.gpu)?;
        check.close(format!("{what} dweight"), &of_head.dweight, &expected.dweight, tolerance(dtype))?;
        check.close(format!("{what} dx of trained head"), &of_head.loss.dx, &found.dx, 0.0)?;
        check.holds(format!("{what} dweight is f32"), of_head.dweight.dtype() == DType::F32);
    }
    Ok(())
}

fn cross_entropy_all_forms(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for shape in [[0, 4, 7], [1, 1, 1], [1, 3, 2], [7, 5, 33], [40, 32, 1000], [130, 64, 4099], [3, 16, 70_001]] {
            compare_losses(check, dtype, shape, true)?;
        }
        compare_losses(check, dtype, [33, 64, 202_048], false)?;
        // Several rows for the same blocks, fewer for the last, and a vocabulary that ends within a vector.
        compare_losses(check, dtype, [1203, 16, 12_301], false)?;
        // More than the shared memory of eight blocks holds.
        compare_losses(check, dtype, [2, 2, 1_000_003], false)?;
    }
    Ok(())
}

/// More rows than the logits of one chunk have.
fn cross_entropy_chunks(check: &mut Check) -> Result<()> {
    compare_losses(check, DType::BF16, [2700, 8, 202_048], true)
}

fn cross_entropy_targets(check: &mut Check) -> Result<()> {
    let device = Device::Cuda(check.device.clone());
    for dtype in DTYPES {
        let (x, weight) = (check.pair(dtype, [3, 8], 1.0)?, check.pair(dtype, [20, 8], 1.0)?);
        let targets = Tensor::from_u32(vec![3, 20, 19], [3])?.to_device(&device)?;
        let losses = cross_entropy::forward(&x.gpu, &weight.gpu, &targets)?.to_host()?.to_f32_vec()?;
        let is_number: Vec<bool> = losses.iter().map(|loss| loss.is_finite()).collect();
        check.holds(format!("{dtype} a target outside gives no number: {losses:?}"), is_number == [true, false, true]);
        let on_host = Tensor::from_u32(vec![0; 3], [3])?;
        let refused = cross_entropy::forward(&x.gpu, &weight.gpu, &on_host);
        check.refused("targets elsewhere", "found memory of", refused);
        let far = Tensor::from_f32(vec![f32::NAN; 8], [1, 8])?.to_device_as(&device, dtype)?;
        let target = Tensor::from_u32(vec![0], [1])?.to_device(&device)?;
        let loss = cross_entropy::forward(&far, &weight.gpu, &target)?.to_host()?.to_f32_vec()?[0];
        check.holds(format!("{dtype} a number that is none reaches the loss"), loss.is_nan());
    }
    Ok(())
}

/// The kernel without the products around it: for tools that watch each access to memory and cannot watch those.
fn cross_entropy_of_logits(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        // Fewer words than threads; more than one round of them; more than the shared memory of eight blocks holds.
        for [num_rows, vocabulary] in [[3, 64], [9, 12_288], [2, 1_048_576]] {
            let logits = check.pair(dtype, [num_rows, vocabulary], 8.0)?;
            let weights = check.pair(DType::F32, [num_rows], 1.0)?;
            let [targets, targets_there] = targets(check, num_rows, vocabulary)?;
            // Only their shapes count.
            let (x, weight) = (check.pair(dtype, [num_rows, 8], 1.0)?, check.pair(dtype, [vocabulary, 8], 1.0)?);
            let [losses, gradient] = of_logits(&logits.host, &targets, &weights.host)?;
            let mut buffer = DeviceBuffer::from_tensor(logits.gpu)?;
            let inputs = [&x.gpu, &weight.gpu, &targets_there];
            let found = cross_entropy::cuda::losses_of(check.device, inputs, &weights.gpu, &mut buffer)?;
            let what = format!("{dtype} {num_rows} rows of {vocabulary} logits");
            check.close(format!("{what} loss"), &found, &losses, tolerance(dtype))?;
            check.close(format!("{what} gradient"), &buffer.into_tensor(), &gradient, tolerance(dtype))?;
        }
    }
    Ok(())
}

/// Losses and weighted gradients of rows of logits, in f64.
fn of_logits(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<[Tensor; 2]> {
    let (values, targets, weights) = (logits.f32s()?, targets.u32s()?, weights.f32s()?);
    let vocabulary = logits.dims()[1];
    let (mut losses, mut gradient) = (Vec::new(), Vec::with_capacity(values.len()));
    for ((row, &target), &weight) in values.chunks(vocabulary).zip(targets.iter()).zip(weights.iter()) {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        losses.push((sum.ln() - f64::from(row[target as usize])) as f32);
        let share = |(word, &logit): (usize, &f32)| {
            let is_target = f64::from(u8::from(word == target as usize));
            (f64::from(weight) * (f64::from(logit).exp() / sum - is_target)) as f32
        };
        gradient.extend(row.iter().enumerate().map(share));
    }
    let num_rows = losses.len();
    Ok([Tensor::from_f32(losses, [num_rows])?, Tensor::from_f32(gradient, [num_rows, vocabulary])?])
}

const HYPER: Hyper = Hyper { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 1 };

/// Parameters, first and second moment on the host, and the same as buffers on the GPU.
struct Run {
    host: [Vec<f32>; 3],
    gpu: [DeviceBuffer; 3],
}

fn run(check: &mut Check, len: usize) -> Result<Run> {
    let parts = [1.0, 0.1, 0.01].map(|scale| check.pair(DType::F32, [len], scale));
    let [p, m, v] = parts;
    let (p, m, v) = (p?, m?, v?);
    // The second moment is a sum of squares.
    let squares: Vec<f32> = v.host.f32s()?.iter().map(|value| value.abs()).collect();
    let v_gpu = Tensor::from_f32(squares.clone(), [len])?.to_device(&Device::Cuda(check.device.clone()))?;
    let buffer = DeviceBuffer::from_tensor;
    Ok(Run {
        host: [p.host.to_f32_vec()?, m.host.to_f32_vec()?, squares],
        gpu: [buffer(p.gpu)?, buffer(m.gpu)?, buffer(v_gpu)?],
    })
}

fn adamw_bits(check: &mut Check) -> Result<()> {
    for (len, range, beta1) in [
        (0, 0..0, 0.9),
        (1, 0..1, 0.9),
        (40_003, 0..40_003, 0.9),
        (40_003, 8..40_000, 0.3),
        (40_003, 7..7, 0.9),
        (40_003, 13..39_999, 0.9),
    ] {
        let what = format!("{len} elements, {range:?}");
        let Run { host: [mut p, mut m, mut v], gpu: [mut p_gpu, mut m_gpu, mut v_gpu] } = run(check, len)?;
        let mut rounded = check.device.buffer(DType::BF16, [len])?;
        for step in 1..=3 {
            let hyper = Hyper { step, beta1, ..HYPER };
            let gradients = check.pair(DType::F32, [len], 1.0)?;
            let Range { start, end } = range.clone();
            let of_range = &gradients.host.f32s()?[start..end];
            adamw::update(&mut p[start..end], of_range, &mut m[start..end], &mut v[start..end], 0.7, &hyper)?;
            let (parameters, first_moment, second_moment) = (&mut p_gpu, &mut m_gpu, &mut v_gpu);
            let rounded = (step == 3).then_some(&mut rounded);
            let state = GpuState { parameters, first_moment, second_moment, rounded };
            adamw::update_on_gpu(state, &gradients.gpu, range.clone(), 0.7, &hyper)?;
        }
        for (name, found, expected) in [("parameters", &p_gpu, &p), ("first", &m_gpu, &m), ("second", &v_gpu, &v)] {
            let expected = Tensor::from_f32(expected.clone(), [len])?;
            check.close(format!("{what} {name}"), &found.view(), &expected, 0.0)?;
        }
        let expected = Tensor::from_f32(p[range.clone()].to_vec(), [range.len()])?;
        let expected = expected.to_device_as(&Device::Cuda(check.device.clone()), DType::BF16)?;
        let found = rounded.view().rows(range.start, range.len())?;
        check.close(format!("{what} rounded"), &found, &expected, 0.0)?;
    }
    Ok(())
}

fn adamw_refusals(check: &mut Check) -> Result<()> {
    let Run { gpu: [mut parameters, mut first_moment, mut second_moment], .. } = run(check, 8)?;
    let mut rounded = check.device.buffer(DType::BF16, [7])?;
    let (eight, seven) = (check.pair(DType::F32, [8], 1.0)?.gpu, check.pair(DType::F32, [7], 1.0)?.gpu);
    let mut update = |gradients: &Tensor, range: Range<usize>, step: u64, with_rounded: bool| {
        let state = GpuState {
            parameters: &mut parameters,
            first_moment: &mut first_moment,
            second_moment: &mut second_moment,
            rounded: with_rounded.then_some(&mut rounded),
        };
        adamw::update_on_gpu(state, gradients, range, 1.0, &Hyper { step, ..HYPER })
    };
    let outcomes = [
        ("a gradient that is shorter", "expected 8 elements", update(&seven, 0..8, 1, false)),
        ("elements behind the end", "expected some of 8", update(&eight, 3..9, 1, false)),
        ("step 0", "steps from 1", update(&eight, 0..8, 0, false)),
        ("a copy that is shorter", "expected 8 elements", update(&eight, 0..8, 1, true)),
    ];
    for (detail, part, outcome) in outcomes {
        check.refused(detail, part, outcome);
    }
    Ok(())
}

fn norms_measure(check: &mut Check) -> Result<()> {
    for len in [0, 1, 3, 4, 16_383, 16_384, 16_385, 1_000_003, 20_000_000] {
        let run = check.pair(DType::F32, [len], 3.0)?;
        let coming = [norms::measure(&run.gpu)?, norms::measure(&run.gpu)?];
        let [found, again] = [coming[0].get()?, coming[1].get()?];
        let expected = norms::measure(&run.host)?.get()?;
        let error = (found.sum_of_squares - expected.sum_of_squares).abs();
        check.holds(format!("{len}: {found:?}, {expected:?}"), error <= 1e-12 * expected.sum_of_squares);
        check.holds(format!("{len}: finite"), found.num_not_finite == 0);
        check.holds(format!("{len}: the same bits again"), found == again);
    }
    let run = check.pair(DType::F32, [50_000], 1.0)?;
    let [aligned, between] = [norms::measure(&run.gpu.rows(4, 40_000)?)?, norms::measure(&run.gpu.rows(5, 40_000)?)?];
    for (coming, start) in [(aligned, 4), (between, 5)] {
        let expected = norms::sum_of_squares(&run.host.f32s()?[start..start + 40_000]);
        let found = coming.get()?.sum_of_squares;
        check.holds(format!("from element {start}"), (found - expected).abs() <= 1e-12 * expected);
    }
    let mut values = vec![1.0; 40_001];
    for (at, value) in [(0, f32::NAN), (5, f32::INFINITY), (16_384, f32::NEG_INFINITY), (40_000, f32::NAN)] {
        values[at] = value;
    }
    let run = Tensor::from_f32(values, [40_001])?.to_device(&Device::Cuda(check.device.clone()))?;
    let found = norms::measure(&run)?.get()?;
    check.holds(format!("not finite: {found:?}"), found.num_not_finite == 4 && !found.sum_of_squares.is_finite());
    let bf16 = check.pair(DType::BF16, [3], 1.0)?.gpu;
    check.refused("bf16", "found element type", norms::measure(&bf16));
    Ok(())
}

/// More elements than 31 bits count: the whole is the sum of its parts.
fn norms_large(check: &mut Check) -> Result<()> {
    const PART: usize = 1 << 30;
    let len = 2 * PART + 5;
    let seed = check.next_seed();
    let run = noise::tensor_on(check.device, DType::F32, [len], seed, 1.0)?;
    let whole = norms::measure(&run)?.get()?.sum_of_squares;
    let mut parts = 0.0;
    for start in (0..len).step_by(PART) {
        parts += norms::measure(&run.rows(start, PART.min(len - start))?)?.get()?.sum_of_squares;
    }
    check.holds(format!("{whole} in one, {parts} in parts"), (whole - parts).abs() <= 1e-12 * parts);
    let mean = whole / len as f64;
    check.holds(format!("mean square {mean}"), (mean - 1.0 / 3.0).abs() < 1e-4);
    Ok(())
}

//! One case for each op: sizes that fill no vector, no warp and no block, and those of the model.

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{DeviceBuffer, Factor, Scale, Window};

use super::{Case, Check, DTYPES, tolerance};
use crate::{Result, grouped_matmul, matmul, noise, rms_norm, swiglu};

pub(super) const CASES: &[Case] = &[
    ("noise.tensor", noise_tensor),
    ("rms_norm.both", rms_norm_both),
    ("rms_norm.between", rms_norm_between),
    ("swiglu.both", swiglu_both),
    ("matmul.all_forms", matmul_all_forms),
    ("matmul.windows", matmul_windows),
    ("matmul.classes", matmul_classes),
    ("grouped_matmul.all_forms", grouped_matmul_all_forms),
];

fn noise_tensor(check: &mut Check) -> Result<()> {
    for len in [0, 1, 1000, 100_003] {
        let seed = check.next_seed();
        let expected = noise::tensor(seed, [len], 0.25)?;
        let found = noise::tensor_on(check.device, DType::F32, [len], seed, 0.25)?;
        check.close(format!("f32 {len}"), &found, &expected, 0.0)?;
    }
    Ok(())
}

fn rms_norm_both(check: &mut Check) -> Result<()> {
    const EPSILON: f32 = 1e-5;
    for dtype in DTYPES {
        for (num_tokens, width) in
            [(0, 8), (1, 2), (3, 7), (40, 63), (5, 1030), (700, 512), (33, 5120), (2, 16392), (1, 131_080)]
        {
            let what = format!("{dtype} {num_tokens}x{width}");
            let x = check.pair(dtype, [num_tokens, width], 2.0)?;
            let weight = check.pair(dtype, [width], 1.0)?;
            let dy = check.pair(dtype, [num_tokens, width], 1.0)?;
            let expected = rms_norm::forward(&x.host, &weight.host, EPSILON)?;
            let found = rms_norm::forward(&x.gpu, &weight.gpu, EPSILON)?;
            check.close(format!("{what} forward"), &found.y, &expected.y, tolerance(dtype))?;
            check.close(format!("{what} inverse rms"), &found.inverse_rms, &expected.inverse_rms, 1e-6)?;
            let (r, r_gpu) = (expected.inverse_rms, found.inverse_rms);
            let expected = rms_norm::backward(&dy.host, &x.host, &r, &weight.host, None)?;
            let found = rms_norm::backward(&dy.gpu, &x.gpu, &r_gpu, &weight.gpu, None)?;
            check.close(format!("{what} backward"), &found, &expected, tolerance(dtype))?;
            let residual = check.pair(dtype, [num_tokens, width], 1.0)?;
            let expected = rms_norm::backward(&dy.host, &x.host, &r, &weight.host, Some(&residual.host))?;
            let found = rms_norm::backward(&dy.gpu, &x.gpu, &r_gpu, &weight.gpu, Some(&residual.gpu))?;
            check.close(format!("{what} backward and residual"), &found, &expected, tolerance(dtype))?;
        }
    }
    Ok(())
}

/// Rows that begin between multiples of 16 bytes: all of them, or those of the residual alone.
fn rms_norm_between(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        let (x, weight) = (check.pair(dtype, [9, 24], 1.0)?, check.pair(dtype, [4, 6], 1.0)?);
        let part = |tensor: &Tensor| tensor.reshape([36, 6])?.rows(1, 30);
        let weight = (weight.host.rows(1, 1)?.reshape([6])?, weight.gpu.rows(1, 1)?.reshape([6])?);
        let expected = rms_norm::forward(&part(&x.host)?, &weight.0, 1e-5)?.y;
        let found = rms_norm::forward(&part(&x.gpu)?, &weight.1, 1e-5)?.y;
        check.close(format!("{dtype} rows of a larger tensor"), &found, &expected, tolerance(dtype))?;

        let (x, weight) = (check.pair(dtype, [30, 8], 1.0)?, check.pair(dtype, [8], 1.0)?);
        let residual = check.pair(dtype, [241], 1.0)?;
        let between = |tensor: &Tensor| tensor.rows(1, 240)?.reshape([30, 8]);
        let backward = |x: &Tensor, weight: &Tensor, residual: &Tensor| {
            let inverse_rms = rms_norm::forward(x, weight, 1e-5)?.inverse_rms;
            rms_norm::backward(x, x, &inverse_rms, weight, Some(&between(residual)?))
        };
        let expected = backward(&x.host, &weight.host, &residual.host)?;
        let found = backward(&x.gpu, &weight.gpu, &residual.gpu)?;
        check.close(format!("{dtype} a residual between"), &found, &expected, tolerance(dtype))?;
    }
    Ok(())
}

fn swiglu_both(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (num_tokens, width) in [(0, 4), (1, 1), (3, 7), (40, 33), (300, 200), (17, 8192)] {
            let what = format!("{dtype} {num_tokens}x{width}");
            // Wide enough that the sigmoid is flat at both ends.
            let gate_up = check.pair(dtype, [num_tokens, 2 * width], 30.0)?;
            let dh = check.pair(dtype, [num_tokens, width], 1.0)?;
            let (found, expected) = (swiglu::forward(&gate_up.gpu)?, swiglu::forward(&gate_up.host)?);
            check.close(format!("{what} forward"), &found, &expected, tolerance(dtype))?;
            let expected = swiglu::backward(&dh.host, &gate_up.host)?;
            let found = swiglu::backward(&dh.gpu, &gate_up.gpu)?;
            check.close(format!("{what} backward"), &found, &expected, tolerance(dtype))?;
            let both = swiglu::back_and_forth(&dh.gpu, &gate_up.gpu)?;
            check.close(format!("{what} back and forth"), &both.d_gate_up, &found, 0.0)?;
            check.close(format!("{what} forth with it"), &both.h, &swiglu::forward(&gate_up.gpu)?, 0.0)?;
        }
        let ends = Tensor::from_f32(vec![-1e4, 1e4, -200.0, 2.0, 3.0, 1.0], [1, 6])?;
        let device = scout_device::Device::Cuda(check.device.clone());
        let found = swiglu::forward(&ends.to_device_as(&device, dtype)?)?;
        let expected = swiglu::forward(&ends.to_device_as(&device, dtype)?.to_host()?)?;
        check.close(format!("{dtype} large gates"), &found, &expected, tolerance(dtype))?;
    }
    Ok(())
}

/// Rows, inner extent, columns.
const PRODUCTS: &[(usize, usize, usize)] = &[
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (1, 1, 1),
    (1, 7, 5),
    (9, 2, 5),
    (2, 513, 3),
    (17, 33, 65),
    (64, 64, 64),
    (129, 70, 4),
    (300, 16, 8),
    (65, 1030, 66),
    (777, 5120, 1024),
];

fn matmul_all_forms(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for &(m, k, n) in PRODUCTS {
            let what = format!("{dtype} {m}x{k}x{n}");
            let (a, b) = (check.pair(dtype, [m, k], 1.0)?, check.pair(dtype, [k, n], 1.0)?);
            check.close(
                format!("{what} nn"),
                &matmul::nn(&a.gpu, &b.gpu)?,
                &matmul::nn(&a.host, &b.host)?,
                tolerance(dtype),
            )?;
            let b = check.pair(dtype, [n, k], 1.0)?;
            check.close(
                format!("{what} nt"),
                &matmul::nt(&a.gpu, &b.gpu)?,
                &matmul::nt(&a.host, &b.host)?,
                tolerance(dtype),
            )?;
            let (a, b) = (check.pair(dtype, [k, m], 1.0)?, check.pair(dtype, [k, n], 1.0)?);
            let found = matmul::tn(&a.gpu, &b.gpu)?;
            // The result is f32: products of bf16 are exact in it.
            check.close(format!("{what} tn"), &found, &matmul::tn(&a.host, &b.host)?, tolerance(DType::F32))?;
            check.holds(format!("{what} tn is f32"), found.dtype() == DType::F32);
        }
    }
    Ok(())
}

/// Columns of wider matrices, a scale, and a sum onto what is there.
fn matmul_windows(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        let (a, b) = (check.pair(dtype, [70, 96], 1.0)?, check.pair(dtype, [48, 80], 1.0)?);
        let c = check.pair(DType::F32, [64, 56], 1.0)?;
        // 40 rows from row 3 and 32 columns from column 8 of `a`; 32 rows and 24 columns of `b`; columns 16 to 40 of `c`.
        let of_a = Window { start: 3 * 96 + 8, rows: 40, columns: 32, leading: 96 };
        let of_b = Window { start: 5 * 80 + 16, rows: 32, columns: 24, leading: 80 };
        let of_c = Window { start: 2 * 56 + 16, rows: 40, columns: 24, leading: 56 };
        let mut expected = c.host.to_f32_vec()?;
        let (a_host, b_host) = (a.host.to_f32_vec()?, b.host.to_f32_vec()?);
        let mut found = DeviceBuffer::from_tensor(c.gpu)?;
        for (scale, seen) in [(Scale { alpha: 0.5, beta: 1.0 }, "added"), (Scale::OVERWRITE, "overwritten")] {
            for row in 0..of_c.rows {
                for column in 0..of_c.columns {
                    let product: f64 = (0..of_a.columns)
                        .map(|inner| {
                            let a = a_host[of_a.start + row * of_a.leading + inner];
                            f64::from(a) * f64::from(b_host[of_b.start + inner * of_b.leading + column])
                        })
                        .sum();
                    let at = of_c.start + row * of_c.leading + column;
                    expected[at] = (f64::from(scale.alpha) * product + f64::from(scale.beta * expected[at])) as f32;
                }
            }
            let factors = [
                Factor { tensor: &a.gpu, window: of_a, transposed: false },
                Factor { tensor: &b.gpu, window: of_b, transposed: false },
            ];
            check.device.multiply(factors, (&mut found, of_c), scale)?;
            let whole = Tensor::from_f32(expected.clone(), [64, 56])?;
            check.close(format!("{dtype} into f32, {seen}"), &found.view(), &whole, tolerance(DType::F32))?;
        }
        let twice = DeviceBuffer::from_tensor(check.pair(dtype, [10, 6], 1.0)?.gpu)?;
        let (mut twice, part) = (twice, check.pair(dtype, [3, 6], 1.0)?);
        twice.copy_from(24, &part.gpu)?;
        check.close(format!("{dtype} copied rows"), &twice.view().rows(4, 3)?, &part.host, 0.0)?;
        check.refused("a copy past the end", "at most 6 elements", twice.copy_from(54, &part.gpu));
        let outside = Window { start: 65 * 96, ..of_a };
        let factors = [
            Factor { tensor: &a.gpu, window: outside, transposed: false },
            Factor { tensor: &b.gpu, window: of_b, transposed: false },
        ];
        let outcome = check.device.multiply(factors, (&mut found, of_c), Scale::ADD);
        check.refused("a window outside of its tensor", "lie inside", outcome);
    }
    Ok(())
}

/// Row counts change with every batch: one trial serves all of a class, and their products are right, those of long ones too,
/// of which others are tried first.
fn matmul_classes(check: &mut Check) -> Result<()> {
    let weight = check.pair(DType::BF16, [320, 256], 1.0)?;
    let mut num_trials = 0;
    for (index, num_rows) in [1920, 1921, 1999, 2007, 2048].into_iter().enumerate() {
        let x = check.pair(DType::BF16, [num_rows, 256], 1.0)?;
        let (found, expected) = (matmul::nt(&x.gpu, &weight.gpu)?, matmul::nt(&x.host, &weight.host)?);
        check.close(format!("{num_rows} rows"), &found, &expected, tolerance(DType::BF16))?;
        let trials = check.device.trials().len();
        // The first number is alone in its class; the others share the next one.
        check.holds(format!("{num_rows} rows: {trials} trials so far"), index < 2 || trials == num_trials);
        num_trials = trials;
    }
    let weight = check.pair(DType::BF16, [4224, 2048], 1.0)?;
    for num_rows in [4096, 4050] {
        let x = check.pair(DType::BF16, [num_rows, 2048], 1.0)?;
        let (found, expected) = (matmul::nt(&x.gpu, &weight.gpu)?, matmul::nt(&x.host, &weight.host)?);
        check.close(format!("{num_rows} long rows"), &found, &expected, tolerance(DType::BF16))?;
    }
    Ok(())
}

fn grouped_matmul_all_forms(check: &mut Check) -> Result<()> {
    const OFFSETS: &[&[u32]] =
        &[&[0], &[0, 0], &[0, 1], &[0, 3, 3, 7], &[0, 0, 5], &[0, 5, 5, 5], &[0, 17, 18, 90, 133], &[0, 300, 700, 777]];
    for dtype in DTYPES {
        for offsets in OFFSETS {
            for (k, n) in [(1, 1), (6, 4), (33, 18), (5, 0), (0, 5), (256, 128)] {
                let num_experts = offsets.len() - 1;
                let num_rows = *offsets.last().unwrap_or(&0) as usize;
                let what = format!("{dtype} {offsets:?} {k}x{n}");
                let b = check.pair(dtype, [num_experts, k, n], 1.0)?;
                let wide = check.pair(dtype, [num_rows, k], 1.0)?;
                let narrow = check.pair(dtype, [num_rows, n], 1.0)?;
                let expected = grouped_matmul::nn(&wide.host, &b.host, offsets)?;
                let found = grouped_matmul::nn(&wide.gpu, &b.gpu, offsets)?;
                check.close(format!("{what} nn"), &found, &expected, tolerance(dtype))?;
                let expected = grouped_matmul::nt(&narrow.host, &b.host, offsets)?;
                let found = grouped_matmul::nt(&narrow.gpu, &b.gpu, offsets)?;
                check.close(format!("{what} nt"), &found, &expected, tolerance(dtype))?;
                let expected = grouped_matmul::tn(&wide.host, &narrow.host, offsets)?;
                let found = grouped_matmul::tn(&wide.gpu, &narrow.gpu, offsets)?;
                check.close(format!("{what} tn"), &found, &expected, tolerance(DType::F32))?;
            }
        }
    }
    Ok(())
}

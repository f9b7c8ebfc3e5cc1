//! What adapters need: products that read and write some columns of wider matrices, products added to what is there, thin
//! products of every rank, an addition, and dropout, whose mask must be the host's bit by bit.

use scout_core::DType;
use scout_device::{Device, Tensor};

use super::{Case, Check, DTYPES, Pair, tolerance};
use crate::lora::{DropoutKey, Side, TokenKeys};
use crate::matmul::Columns;
use crate::{Result, lora, matmul};

pub(super) const CASES: &[Case] = &[
    ("matmul.columns", matmul_columns),
    ("matmul.sums", matmul_sums),
    ("matmul.side_by_side", matmul_side_by_side),
    ("lora.products", lora_products),
    ("lora.product_windows", lora_product_windows),
    ("lora.side_by_side", lora_side_by_side),
    ("lora.sweep", lora_sweep),
    ("lora.sweep_windows", lora_sweep_windows),
    ("lora.sweep_of_stack", lora_sweep_of_stack),
    ("lora.delta", lora_delta),
    ("lora.dropout", lora_dropout),
];

/// As the host and as the GPU see some columns of both.
fn columns(pair: &Pair, start: usize, count: usize) -> (Columns<'_>, Columns<'_>) {
    (Columns { tensor: &pair.host, start, count }, Columns { tensor: &pair.gpu, start, count })
}

fn matmul_columns(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (num_rows, width, start, count, n) in
            [(0, 9, 2, 3, 4), (1, 7, 6, 1, 5), (7, 12, 3, 5, 9), (300, 40, 8, 24, 16), (513, 16384, 8192, 8192, 8)]
        {
            let what = format!("{dtype} {num_rows}x{width} from {start}, {count}");
            let wide = check.pair(dtype, [num_rows, width], 1.0)?;
            let (host, gpu) = columns(&wide, start, count);
            let b = check.pair(dtype, [count, n], 1.0)?;
            let (found, expected) = (matmul::nn(gpu, &b.gpu)?, matmul::nn(host, &b.host)?);
            check.close(format!("{what} nn"), &found, &expected, tolerance(dtype))?;
            let b = check.pair(dtype, [n, count], 1.0)?;
            let (found, expected) = (matmul::nt(gpu, &b.gpu)?, matmul::nt(host, &b.host)?);
            check.close(format!("{what} nt"), &found, &expected, tolerance(dtype))?;
            let b = check.pair(dtype, [num_rows, n], 1.0)?;
            let (found, expected) = (matmul::tn(gpu, &b.gpu)?, matmul::tn(host, &b.host)?);
            check.close(format!("{what} tn"), &found, &expected, tolerance(DType::F32))?;
            // As the gradient of a factor is collected: columns of both, added behind other numbers.
            let (of_b, of_b_gpu) = columns(&b, n / 2, n - n / 2);
            let product = matmul::tn(host, of_b)?.reshape([count * of_b.count])?;
            let mut sums = check.device.zeros(DType::F32, [3 + product.num_elements()])?;
            matmul::add_tn(&mut sums, 3, gpu, of_b_gpu, 0.5)?;
            matmul::add_tn(&mut sums, 3, gpu, of_b_gpu, 0.5)?;
            let found = sums.view().rows(3, product.num_elements())?;
            check.close(format!("{what} collected"), &found, &product, tolerance(DType::F32))?;
        }
    }
    Ok(())
}

fn matmul_sums(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (m, k, n) in [(0, 3, 4), (3, 0, 4), (1, 1, 1), (17, 33, 65), (129, 70, 8), (777, 1024, 5120)] {
            let what = format!("{dtype} {m}x{k}x{n}");
            let (a, sum) = (check.pair(dtype, [m, k], 1.0)?, check.pair(dtype, [m, n], 20.0)?);
            let b = check.pair(dtype, [k, n], 1.0)?;
            let expected = matmul::add_nn(Some(sum.host), &a.host, &b.host)?;
            let found = matmul::add_nn(Some(sum.gpu), &a.gpu, &b.gpu)?;
            check.close(format!("{what} nn"), &found, &expected, tolerance(dtype))?;
            let (b, sum) = (check.pair(dtype, [n, k], 1.0)?, check.pair(dtype, [m, n], 20.0)?);
            let expected = matmul::add_nt(Some(sum.host), &a.host, &b.host)?;
            let found = matmul::add_nt(Some(sum.gpu), &a.gpu, &b.gpu)?;
            check.close(format!("{what} nt"), &found, &expected, tolerance(dtype))?;
        }
    }
    let (a, sum) = (check.pair(DType::BF16, [8, 8], 1.0)?.gpu, check.pair(DType::BF16, [8, 8], 1.0)?.gpu);
    let outcome = matmul::add_nn(Some(sum.clone()), &a, &a);
    check.refused("a sum that others read", "found 1 tensors", outcome);
    let wider = check.pair(DType::F32, [8, 8], 1.0)?.gpu;
    check.refused("a sum of another type", "found element type", matmul::add_nn(Some(wider), &a, &a));
    Ok(())
}

/// Three factors beside each other, of which one reads columns.
fn matmul_side_by_side(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (num_rows, k, widths) in
            [(0, 4, [1, 2, 3]), (1, 3, [1, 1, 1]), (40, 33, [3, 5, 1]), (300, 64, [8, 8, 8]), (130, 5120, [16, 8, 64])]
        {
            let (x, wider) = (check.pair(dtype, [num_rows, k], 1.0)?, check.pair(dtype, [num_rows, 2 * k + 1], 1.0)?);
            let (host, gpu) = columns(&wider, k, k);
            let mut factors = Vec::new();
            for width in widths {
                factors.push(check.pair(dtype, [k, width], 1.0)?);
            }
            let [a, b, c] = &factors[..] else { unreachable!("three widths") };
            let expected =
                matmul::side_by_side_nn(&[((&x.host).into(), &a.host), (host, &b.host), ((&x.host).into(), &c.host)])?;
            let found =
                matmul::side_by_side_nn(&[((&x.gpu).into(), &a.gpu), (gpu, &b.gpu), ((&x.gpu).into(), &c.gpu)])?;
            check.close(format!("{dtype} {num_rows}x{k} to {widths:?}"), &found, &expected, tolerance(dtype))?;
            let a = check.pair(dtype, [widths[0], k], 1.0)?;
            let expected = matmul::side_by_side_nt(&[(host, &a.host), (host, &a.host)])?;
            let found = matmul::side_by_side_nt(&[(gpu, &a.gpu), (gpu, &a.gpu)])?;
            check.close(format!("{dtype} {num_rows}x{k}, transposed"), &found, &expected, tolerance(dtype))?;
        }
    }
    Ok(())
}

/// Rows, columns and ranks: those of each kernel, and those for which there is none.
const THIN: &[(usize, usize, usize)] = &[
    (0, 8, 8),
    (5, 0, 8),
    (1, 1, 1),
    (3, 4, 3),
    (127, 256, 3),
    (129, 290, 5),
    (129, 264, 1),
    (256, 320, 8),
    (257, 256, 16),
    (256, 576, 24),
    (300, 248, 24),
    (300, 272, 23),
    (300, 248, 32),
    (131, 512, 33),
    (131, 520, 48),
    (50, 504, 64),
    (128, 512, 64),
    (40, 96, 65),
    (70, 512, 192),
    (8193, 24, 8),
    (130, 5120, 8),
    (200, 8192, 0),
];

fn lora_products(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for &(num_tokens, count, rank) in THIN {
            let what = format!("{dtype} {num_tokens}x{count}, rank {rank}");
            let narrow = check.pair(dtype, [num_tokens, rank], 1.0)?;
            let (wide, x) = (check.pair(dtype, [count, rank], 1.0)?, check.pair(dtype, [num_tokens, count], 1.0)?);
            let expected = lora::product_nt(&narrow.host, &wide.host, 0.3, None)?;
            let found = lora::product_nt(&narrow.gpu, &wide.gpu, 0.3, None)?;
            check.close(format!("{what} nt"), &found, &expected, tolerance(dtype))?;
            let expected = lora::product_nt(&narrow.host, &wide.host, 0.3, Some(&x.host))?;
            let found = lora::product_nt(&narrow.gpu, &wide.gpu, 0.3, Some(&x.gpu))?;
            check.close(format!("{what} nt and residual"), &found, &expected, tolerance(dtype))?;
            let wide = check.pair(dtype, [rank, count], 1.0)?;
            let expected = lora::product_nn(&narrow.host, &wide.host, 0.3)?;
            let found = lora::product_nn(&narrow.gpu, &wide.gpu, 0.3)?;
            check.close(format!("{what} nn"), &found, &expected, tolerance(dtype))?;
        }
    }
    Ok(())
}

/// The rank's columns of a wider factor, at places that hold pairs and at places that do not; rows of larger tensors.
fn lora_product_windows(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (width, start, rank) in
            [(24, 8, 8), (24, 16, 8), (25, 8, 8), (24, 7, 8), (9, 2, 7), (200, 64, 64), (300, 4, 65)]
        {
            let what = format!("{dtype} {rank} columns from {start} of {width}");
            let (wider, wide) = (check.pair(dtype, [131, width], 1.0)?, check.pair(dtype, [520, rank], 1.0)?);
            let (host, gpu) = columns(&wider, start, rank);
            let expected = lora::product_nt(host, &wide.host, 0.3, None)?;
            check.close(
                format!("{what} nt"),
                &lora::product_nt(gpu, &wide.gpu, 0.3, None)?,
                &expected,
                tolerance(dtype),
            )?;
            let wide = check.pair(dtype, [rank, 264], 1.0)?;
            let expected = lora::product_nn(host, &wide.host, 0.3)?;
            check.close(format!("{what} nn"), &lora::product_nn(gpu, &wide.gpu, 0.3)?, &expected, tolerance(dtype))?;
        }
        let (narrow, wide) = (check.pair(dtype, [60, 5], 1.0)?, check.pair(dtype, [50, 5], 1.0)?);
        let x = check.pair(dtype, [60, 30], 1.0)?;
        let rows = |tensor: &Tensor| tensor.rows(3, 30);
        let expected = lora::product_nt(&rows(&narrow.host)?, &rows(&wide.host)?, 0.3, Some(&rows(&x.host)?))?;
        let found = lora::product_nt(&rows(&narrow.gpu)?, &rows(&wide.gpu)?, 0.3, Some(&rows(&x.gpu)?))?;
        check.close(format!("{dtype} rows of larger tensors"), &found, &expected, tolerance(dtype))?;
    }
    Ok(())
}

fn lora_side_by_side(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (num_tokens, half, rank) in [(0, 8, 4), (1, 1, 1), (33, 7, 3), (257, 264, 8), (130, 8192, 8), (40, 72, 80)]
        {
            let what = format!("{dtype} {num_tokens}x{half}, rank {rank}");
            let narrow = check.pair(dtype, [num_tokens, 2 * rank], 1.0)?;
            let (gate, up) = (check.pair(dtype, [half, rank], 1.0)?, check.pair(dtype, [half, rank], 1.0)?);
            let (first, first_gpu) = columns(&narrow, 0, rank);
            let (second, second_gpu) = columns(&narrow, rank, rank);
            let (first, first_gpu) = (Side::Product(first, &gate.host), Side::Product(first_gpu, &gate.gpu));
            let (second, second_gpu) = (Side::Product(second, &up.host), Side::Product(second_gpu, &up.gpu));
            let zeros = Side::Zeros(half);
            for (name, host, gpu) in [
                ("both", [first, second], [first_gpu, second_gpu]),
                ("the first", [first, zeros], [first_gpu, zeros]),
                ("the second", [zeros, second], [zeros, second_gpu]),
            ] {
                let (found, expected) = (lora::side_by_side(&gpu, 0.3)?, lora::side_by_side(&host, 0.3)?);
                check.close(format!("{what}, {name}"), &found, &expected, tolerance(dtype))?;
            }
        }
    }
    Ok(())
}

/// Rows, columns and ranks of gradients: those of Scout, tiles that are not full, and such as two products read.
const SWEPT: &[(usize, usize, usize)] = &[
    (0, 64, 8),
    (1, 8, 8),
    (15, 1016, 8),
    (33, 1032, 16),
    (200, 1024, 24),
    (97, 2056, 32),
    (130, 5120, 12),
    (130, 5120, 40),
    (40, 33, 8),
    (2100, 5120, 16),
    (5000, 8192, 8),
    (9000, 1032, 24),
    (5000, 2056, 32),
];

/// What one adapter takes out of the gradient of its output, and what lies around its place in the sums.
fn lora_sweep(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for &(num_rows, width, rank) in SWEPT {
            let what = format!("{dtype} {num_rows}x{width}, rank {rank}");
            let (dy, narrow) = (check.pair(dtype, [num_rows, width], 1.0)?, check.pair(dtype, [num_rows, rank], 1.0)?);
            let b = check.pair(dtype, [width, rank], 1.0)?;
            let expected = matmul::nn(&dy.host, &b.host)?;
            let num_elements = rank * width;
            let product = matmul::tn(&dy.host, &narrow.host)?.reshape([num_elements])?;
            let mut sums = check.device.zeros(DType::F32, [3 + num_elements + 5])?;
            for _ in 0..2 {
                let found = lora::outputs_backward((&mut sums, 3), &[(&dy.gpu).into()], &b.gpu, &narrow.gpu, 0.5)?;
                check.close(format!("{what}, gradient of narrow"), &found, &expected, tolerance(dtype))?;
            }
            let all = sums.view();
            let found = all.rows(3, num_elements)?;
            check.close(format!("{what}, gradient of B"), &found, &product, tolerance(DType::F32))?;
            let numbers = all.to_host()?.to_f32_vec()?;
            let mut around = numbers[..3].iter().chain(&numbers[3 + num_elements..]);
            check.holds(format!("{what}, nothing around it"), around.all(|&number| number == 0.0));
        }
    }
    Ok(())
}

/// Columns that begin where no vector could, and rows of larger tensors; what does not fit is refused.
fn lora_sweep_windows(check: &mut Check) -> Result<()> {
    let (wide, narrow) = (check.pair(DType::BF16, [90, 80], 1.0)?, check.pair(DType::BF16, [90, 8], 1.0)?);
    let b = check.pair(DType::BF16, [64, 8], 1.0)?;
    for (what, start, [first, count]) in
        [("from column 4", 4, [0, 90]), ("from column 8", 8, [0, 90]), ("rows 3 to 73", 16, [3, 70])]
    {
        let rows = |tensor: &Tensor| tensor.rows(first, count);
        let (host, gpu) = (rows(&wide.host)?, rows(&wide.gpu)?);
        let (of_host, of_gpu) =
            (Columns { tensor: &host, start, count: 64 }, Columns { tensor: &gpu, start, count: 64 });
        let mut sums = check.device.zeros(DType::F32, [64 * 8])?;
        let found = lora::outputs_backward((&mut sums, 0), &[of_gpu], &b.gpu, &rows(&narrow.gpu)?, 1.0)?;
        let expected = matmul::nn(of_host, &b.host)?;
        check.close(format!("{what}, gradient of narrow"), &found, &expected, tolerance(DType::BF16))?;
        let expected = matmul::tn(of_host, &rows(&narrow.host)?)?.reshape([64 * 8])?;
        check.close(format!("{what}, gradient of B"), &sums.view(), &expected, tolerance(DType::F32))?;
    }
    let (dy, few) = (Columns { tensor: &wide.gpu, start: 0, count: 64 }, narrow.gpu.rows(0, 32)?);
    let f32s = check.pair(DType::F32, [64, 8], 1.0)?.gpu;
    let (b, host, narrow) = (&b.gpu, &b.host, &narrow.gpu);
    for (what, part, start, dys, b, narrow) in [
        ("sums that end too soon", "from 1 on", 1, &[dy][..], b, narrow),
        ("fewer narrow rows", "32 rows", 0, &[dy], b, &few),
        ("more gradients than factors", "[90, 16]", 0, &[dy, dy], b, narrow),
        ("another element type", "found element type", 0, &[dy], &f32s, narrow),
        ("a factor on the host", "the host", 0, &[dy], host, narrow),
    ] {
        let mut sums = check.device.zeros(DType::F32, [64 * 8])?;
        check.refused(what, part, lora::outputs_backward((&mut sums, start), dys, b, narrow, 1.0));
    }
    let mut sums = check.device.zeros(DType::BF16, [64 * 8])?;
    check.refused("sums of bf16", "f32", lora::outputs_backward((&mut sums, 0), &[dy], b, narrow, 1.0));
    Ok(())
}

/// Adapters side by side, as those of q, k and v and those of gate and up, whose gradients are columns of one matrix;
/// in one launch where they can be; the same bits again.
fn lora_sweep_of_stack(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (num_rows, halves, others, rank) in [
            (70, 24, &[][..], 8),
            (300, 8192, &[], 8),
            (1000, 1032, &[2056], 16),
            (700, 1024, &[5120], 8),
            (33, 7, &[5], 3),
            (64, 72, &[72], 64),
            (40, 64, &[8, 8], 8),
            (3000, 1040, &[1032], 32),
        ] {
            let what = format!("{dtype} {num_rows} rows of {halves} twice and {others:?}, rank {rank}");
            let both = check.pair(dtype, [num_rows, 2 * halves], 1.0)?;
            let mut alone = Vec::new();
            for &width in others {
                alone.push(check.pair(dtype, [num_rows, width], 1.0)?);
            }
            let whole = alone.iter().map(|pair| columns(pair, 0, pair.host.dims()[1]));
            let dys: Vec<_> =
                [columns(&both, 0, halves), columns(&both, halves, halves)].into_iter().chain(whole).collect();
            let (of_host, of_gpu): (Vec<_>, Vec<_>) = dys.into_iter().unzip();
            let num_columns = 2 * halves + others.iter().sum::<usize>();
            let b = check.pair(dtype, [num_columns, rank], 1.0)?;
            let narrow = check.pair(dtype, [num_rows, of_host.len() * rank], 1.0)?;
            let expected = lora::outputs(&of_host, &b.host, &narrow.host)?;
            let pairs: Vec<_> = expected.iter().map(|output| (output.dy, &output.b)).collect();
            let dnarrow = matmul::side_by_side_nn(&pairs)?;
            let mut bits = Vec::new();
            for _ in 0..2 {
                let mut sums = check.device.zeros(DType::F32, [7 + num_columns * rank])?;
                check.device.begin_profile();
                let found = lora::outputs_backward((&mut sums, 7), &of_gpu, &b.gpu, &narrow.gpu, 1.0)?;
                let profile = check.device.end_profile()?;
                let sweeps = profile.iter().filter(|share| share.name.starts_with("lora_sweep_") && share.calls == 1);
                let is_swept = dtype == DType::BF16 && of_gpu.len() <= 3 && halves % 8 == 0 && rank <= 32;
                check.holds(format!("{what}, swept as it should"), sweeps.count() == if is_swept { 2 } else { 0 });
                check.close(format!("{what}, gradients of narrow"), &found, &dnarrow, tolerance(dtype))?;
                for output in &expected {
                    let product = matmul::tn(output.dy, output.narrow)?;
                    let (start, count) = (7 + output.first_row * rank, product.num_elements());
                    let detail = format!("{what}, gradient of B from {}", output.first_row);
                    let found = sums.view().rows(start, count)?;
                    check.close(detail, &found, &product.reshape([count])?, tolerance(DType::F32))?;
                }
                bits.push((found.to_host()?.to_f32_vec()?, sums.into_tensor().to_host()?.to_f32_vec()?));
            }
            check.holds(format!("{what}, the same bits again"), bits[0] == bits[1]);
        }
    }
    Ok(())
}

fn lora_delta(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for shape in [[0, 5], [1, 1], [3, 7], [3, 0], [500, 33], [8193, 40], [33, 8192]] {
            let (y, delta) = (check.pair(dtype, shape, 1.0)?, check.pair(dtype, shape, 1.0)?);
            let found = lora::add_delta(y.gpu, &delta.gpu, 0.3)?;
            let expected = lora::add_delta(y.host, &delta.host, 0.3)?;
            check.close(format!("{dtype} {shape:?}"), &found, &expected, tolerance(dtype))?;
        }
        let (y, delta) = (check.pair(dtype, [4, 8], 1.0)?, check.pair(dtype, [4, 8], 1.0)?);
        let outcome = lora::add_delta(y.gpu.clone(), &delta.gpu, 1.0);
        check.refused("adding to memory that others read", "found 1 tensors", outcome);
    }
    Ok(())
}

fn lora_dropout(check: &mut Check) -> Result<()> {
    let key = DropoutKey { seed: 42, step: 7, module: 3 };
    for dtype in DTYPES {
        for (num_tokens, width) in [(0, 8), (1, 1), (1, 8), (3, 7), (257, 33), (8193, 24), (70, 5120)] {
            let samples: Vec<u64> = (0..num_tokens as u64).map(|t| (t / 40) * 0x1_2345_6789_abcd).collect();
            let positions: Vec<u32> = (0..num_tokens as u32).map(|t| t % 40).collect();
            let keys = TokenKeys::new(&samples, &positions)?;
            let there = keys.to_device(&Device::Cuda(check.device.clone()))?;
            let x = check.pair(dtype, [num_tokens, width], 1.0)?;
            for probability in [0.05, 0.5, 0.97] {
                let what = format!("{dtype} {num_tokens}x{width} at {probability}");
                let found = lora::dropout(&x.gpu, &there, key, probability)?;
                let expected = lora::dropout(&x.host, &keys, key, probability)?;
                let gpu = Device::Cuda(check.device.clone());
                // The product is rounded once on both sides: the mask and every bit are the same.
                let expected = expected.to_device_as(&gpu, dtype)?;
                check.close(what, &found, &expected, 0.0)?;
            }
        }
    }
    Ok(())
}

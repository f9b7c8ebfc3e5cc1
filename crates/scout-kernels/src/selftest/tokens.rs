//! Ops that work token by token: positions, routing, the embedding, rows by index.
//! Whole numbers and moves must be equal to the host's, bit by bit.

use scout_core::DType;
use scout_device::{Device, Tensor};

use super::{Case, Check, DTYPES, Pair, tolerance};
use crate::qk_position::{Placed, Position};
use crate::router::Routing;
use crate::{Result, embedding, noise, qk_position, router, rows};

pub(super) const CASES: &[Case] = &[
    ("qk_position.turned", qk_position_turned),
    ("qk_position.tempered", qk_position_tempered),
    ("router.choice", router_choice),
    ("router.refusals", router_outside),
    ("router.moves", router_moves),
    ("embedding.both", embedding_both),
    ("rows.by_index", rows_by_index),
];

/// Rows and columns that fill no vector, no warp and no block, then those of the model.
const ROWS: &[(usize, usize)] = &[(0, 8), (1, 1), (1, 8), (3, 7), (257, 33), (8193, 24), (70, 5120)];

impl Check<'_> {
    fn on_gpu(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.to_device(&Device::Cuda(self.device.clone()))
    }

    /// `len` whole numbers below `limit`, on the host and on the GPU.
    fn indices(&mut self, len: usize, limit: usize) -> Result<Pair> {
        let values = noise::values(self.next_seed(), len);
        let index = |value: f32| (((value + 1.0) / 2.0 * limit as f32) as usize).min(limit.saturating_sub(1)) as u32;
        let host = Tensor::from_u32(values.into_iter().map(index).collect(), [len])?;
        Ok(Pair { gpu: self.on_gpu(&host)?, host })
    }

    fn same_numbers(&mut self, detail: String, found: &Tensor, expected: &Tensor) -> Result<()> {
        let found = found.to_host()?;
        self.holds(detail, found.dims() == expected.dims() && found.u32s()?[..] == expected.u32s()?[..]);
        Ok(())
    }
}

fn frequencies(head_size: usize) -> Result<Tensor> {
    let of_pair = |pair: usize| 500_000f32.powf(-2.0 * pair as f32 / head_size as f32);
    Tensor::from_f32((0..head_size / 2).map(of_pair).collect(), [head_size / 2])
}

fn qk_position_turned(check: &mut Check) -> Result<()> {
    // The last position is one at which an angle must be reduced by more than 2⁵³ units.
    let shapes = [(0, 2, 4), (1, 1, 2), (3, 5, 6), (5, 3, 16), (33, 7, 64), (257, 40, 128), (257, 8, 128), (9, 2, 256)];
    for dtype in DTYPES {
        for (num_tokens, num_heads, size) in shapes {
            let (what, dims) = (format!("{dtype} {num_tokens}x{num_heads}x{size}"), [num_tokens, num_heads, size]);
            let (x, dy) = (check.pair(dtype, dims, 2.0)?, check.pair(dtype, dims, 1.0)?);
            let places = (0..num_tokens as u32).map(|t| if t == 2 { 10_000_000 } else { t * 37 }).collect();
            let at = Tensor::from_u32(places, [num_tokens])?;
            let at = Pair { gpu: check.on_gpu(&at)?, host: at };
            let f = frequencies(size)?;
            let f = Pair { gpu: check.on_gpu(&f)?, host: f };
            for normalises in [false, true] {
                let position = |frequencies: &Tensor| match (normalises, frequencies.clone()) {
                    (true, frequencies) => Position::RotateAndNormalise { frequencies, epsilon: 1e-5 },
                    (false, frequencies) => Position::Rotate { frequencies },
                };
                let (on_gpu, on_host) = (position(&f.gpu), position(&f.host));
                let found = qk_position::forward(&x.gpu, &at.gpu, &on_gpu)?;
                let expected = qk_position::forward(&x.host, &at.host, &on_host)?;
                let what = format!("{what}{}", if normalises { " normalised" } else { "" });
                check.close(format!("{what} forward"), &found.y, &expected.y, tolerance(dtype))?;
                if let (Some(found), Some(expected)) = (&found.inverse_rms, &expected.inverse_rms) {
                    check.close(format!("{what} inverse rms"), found, expected, 1e-6)?;
                }
                // From the same result, rounded as the GPU has it: what is compared is the way back alone.
                let inverse_rms = found.inverse_rms.as_ref().map(Tensor::to_host).transpose()?;
                let expected = Placed { y: found.y.to_host()?, inverse_rms };
                let expected = qk_position::backward(&dy.host, &expected, &at.host, &on_host)?;
                let found = qk_position::backward(&dy.gpu, &found, &at.gpu, &on_gpu)?;
                check.close(format!("{what} backward"), &found, &expected, tolerance(dtype))?;
            }
        }
    }
    Ok(())
}

fn qk_position_tempered(check: &mut Check) -> Result<()> {
    let positions = [0, 1, 8190, 8191, 16383, 131_071, 10_000_000];
    let at = Tensor::from_u32(positions.to_vec(), [positions.len()])?;
    let at = Pair { gpu: check.on_gpu(&at)?, host: at };
    let position = Position::Temperature { attn_scale: 0.1, floor_scale: 8192.0 };
    for dtype in DTYPES {
        for (num_heads, size) in [(1, 1), (3, 5), (40, 128)] {
            let what = format!("{dtype} {num_heads}x{size}");
            let x = check.pair(dtype, [positions.len(), num_heads, size], 1.0)?;
            let found = qk_position::forward(&x.gpu, &at.gpu, &position)?;
            let expected = qk_position::forward(&x.host, &at.host, &position)?;
            check.close(format!("{what} forward"), &found.y, &expected.y, tolerance(dtype))?;
            check.close(format!("{what} factor of 1"), &found.y.rows(0, 3)?, &x.gpu.rows(0, 3)?, 0.0)?;
            let found = qk_position::backward(&x.gpu, &found, &at.gpu, &position)?;
            check.close(format!("{what} backward"), &found, &expected.y, tolerance(dtype))?;
        }
    }
    Ok(())
}

/// Ties, infinities and not-a-numbers among random logits, experts without tokens, and all tokens on one.
fn router_choice(check: &mut Check) -> Result<()> {
    for (num_tokens, num_experts) in
        [(0, 16), (1, 1), (1, 16), (5, 40), (255, 3), (257, 16), (8193, 16), (100_003, 16), (3000, 128)]
    {
        let what = format!("{num_tokens} tokens, {num_experts} experts");
        let mut values = noise::values(check.next_seed(), num_tokens * num_experts);
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 40.0, -200.0];
        for (at, value) in values.iter_mut().enumerate() {
            match at % 97 {
                // Coarse numbers are often equal.
                0..60 => *value = (*value * 4.0).round() * 3.0,
                60..67 if at % 5 == 0 => *value = special[at % 97 - 60],
                _ => {}
            }
        }
        let logits = Tensor::from_f32(values, [num_tokens, num_experts])?;
        let logits = Pair { gpu: check.on_gpu(&logits)?, host: logits };
        let (found, expected) = (router::choose(&logits.gpu)?, router::choose(&logits.host)?);
        same_routing(check, &what, &found, &expected)?;
        let middle = (num_experts / 2) as u32;
        for (name, given) in [
            ("all on one", vec![middle; num_tokens]),
            (
                "on the outer ones",
                (0..num_tokens).map(|t| if t % 3 == 0 { 0 } else { num_experts as u32 - 1 }).collect(),
            ),
        ] {
            let given = Tensor::from_u32(given, [num_tokens])?;
            let expected = router::forced(&logits.host, &given)?;
            let found = router::forced(&logits.gpu, &check.on_gpu(&given)?)?;
            same_routing(check, &format!("{what}, {name}"), &found, &expected)?;
        }
    }
    Ok(())
}

fn same_routing(check: &mut Check, what: &str, found: &Routing, expected: &Routing) -> Result<()> {
    check.same_numbers(format!("{what}: experts"), &found.expert_T, &expected.expert_T)?;
    check.same_numbers(format!("{what}: order"), &found.order_T, &expected.order_T)?;
    check.same_numbers(format!("{what}: positions"), &found.position_T, &expected.position_T)?;
    check.holds(format!("{what}: offsets"), found.offsets()? == expected.offsets()?);
    // A score that is not a number is due where the logit is none, and has no distance.
    let number = |scores: &Tensor| -> Result<(Vec<bool>, Tensor)> {
        let scores = scores.to_host()?.to_f32_vec()?;
        let len = scores.len();
        let finite = scores.iter().map(|&score| if score.is_nan() { 0.0 } else { score }).collect();
        Ok((scores.iter().map(|score| score.is_nan()).collect(), Tensor::from_f32(finite, [len])?))
    };
    let ((found_nan, found), (expected_nan, expected)) = (number(&found.score_T)?, number(&expected.score_T)?);
    check.holds(format!("{what}: scores that are no numbers"), found_nan == expected_nan);
    check.close(format!("{what}: scores"), &found, &expected, 3e-7)
}

fn router_outside(check: &mut Check) -> Result<()> {
    let logits = check.pair(DType::F32, [3, 4], 1.0)?;
    let given = check.on_gpu(&Tensor::from_u32(vec![1, 4, u32::MAX], [3])?)?;
    let routing = router::forced(&logits.gpu, &given)?;
    let scores = routing.score_T.to_host()?.to_f32_vec()?;
    let shown: Vec<bool> = scores.iter().map(|score| score.is_nan()).collect();
    check.holds("experts that do not exist give no number", shown == [false, true, true]);
    check.holds("and are counted with the first", routing.offsets()? == [0, 2, 3, 3, 3]);
    let steady = check.device.steady_step();
    let again = router::forced(&logits.gpu, &given)?;
    check.holds("later routings ask for no memory", again.offsets()? == routing.offsets()?);
    drop(steady);
    let rounded = check.pair(DType::BF16, [3, 4], 1.0)?;
    check.refused("rounded logits", "found element type bf16", router::choose(&rounded.gpu));
    let too_many = check.pair(DType::F32, [1, 2000], 1.0)?;
    check.refused("more experts than fit", "at most 1024 numbers", router::choose(&too_many.gpu));
    check.refused("rows of the host", "found memory of", router::gather(&logits.host, &routing));
    Ok(())
}

fn router_moves(check: &mut Check) -> Result<()> {
    const NUM_EXPERTS: usize = 6;
    for dtype in DTYPES {
        for &(num_tokens, width) in ROWS {
            let dims = [num_tokens, width];
            let (x, weight) = (check.pair(dtype, dims, 1.0)?, check.pair(dtype, [NUM_EXPERTS, width], 1.0)?);
            let scale = 1.0 / (width as f32).sqrt();
            let logits = (router::logits(&x.gpu, &weight.gpu)?, router::logits(&x.host, &weight.host)?);
            check.close(format!("{dtype} {dims:?} logits"), &logits.0, &logits.1, tolerance(DType::F32))?;
            check.holds(format!("{dtype} {dims:?} logits are f32"), logits.0.dtype() == DType::F32);
            // Logits that leave the sigmoid some slope; the same numbers on both sides, so that no choice differs.
            let logits = check.pair(DType::F32, [num_tokens, NUM_EXPERTS], 3.0)?;
            let narrow = check.indices(num_tokens, 2)?;
            let one = Tensor::from_u32(vec![3; num_tokens], [num_tokens])?;
            for (name, on_gpu, on_host) in [
                ("spread", router::choose(&logits.gpu)?, router::choose(&logits.host)?),
                ("narrow", router::forced(&logits.gpu, &narrow.gpu)?, router::forced(&logits.host, &narrow.host)?),
                ("on one", router::forced(&logits.gpu, &check.on_gpu(&one)?)?, router::forced(&logits.host, &one)?),
            ] {
                let what = format!("{dtype} {dims:?} {name}");
                moves(check, &what, (&on_gpu, &on_host), &x, (&weight, scale))?;
            }
        }
    }
    Ok(())
}

fn moves(
    check: &mut Check,
    what: &str,
    (on_gpu, on_host): (&Routing, &Routing),
    x: &Pair,
    (weight, scale): (&Pair, f32),
) -> Result<()> {
    let (dtype, dims) = (x.gpu.dtype(), x.gpu.dims().to_vec());
    let near = tolerance(dtype);
    check.close(format!("{what} gather"), &router::gather(&x.gpu, on_gpu)?, &router::gather(&x.host, on_host)?, 0.0)?;
    let (found, expected) = (router::gather_scaled(&x.gpu, on_gpu)?, router::gather_scaled(&x.host, on_host)?);
    check.close(format!("{what} scaled gather"), &found, &expected, near)?;
    let (routed, shared) = (check.pair(dtype, &dims[..], 1.0)?, check.pair(dtype, &dims[..], 1.0)?);
    let residual = check.pair(dtype, &dims[..], 1.0)?;
    for (name, with) in [("combined", true), ("without residual", false)] {
        let residual = (with.then_some(&residual.gpu), with.then_some(&residual.host));
        let found = router::combine(&routed.gpu, on_gpu, &shared.gpu, residual.0)?;
        let expected = router::combine(&routed.host, on_host, &shared.host, residual.1)?;
        check.close(format!("{what} {name}"), &found, &expected, near)?;
    }
    let du = check.pair(dtype, &dims[..], scale)?;
    let found = router::backward(&du.gpu, &x.gpu, on_gpu, &weight.gpu, &shared.gpu)?;
    let expected = router::backward(&du.host, &x.host, on_host, &weight.host, &shared.host)?;
    check.close(format!("{what} dx"), &found.dx, &expected.dx, near)?;
    check.close(format!("{what} dlogit"), &found.dlogit_T, &expected.dlogit_T, tolerance(DType::F32))?;
    let dlogit = check.pair(DType::F32, &dims[..1], 1.0)?;
    let found = router::weight_gradient(&dlogit.gpu, &x.gpu, on_gpu)?;
    let expected = router::weight_gradient(&dlogit.host, &x.host, on_host)?;
    check.close(format!("{what} gradient of the weight"), &found, &expected, 1e-6)?;
    check.holds(format!("{what} gradient of the weight is f32"), found.dtype() == DType::F32);
    Ok(())
}

fn embedding_both(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        // As many ids as words, few words, one word, and chains longer than a tile.
        for (num_tokens, vocabulary, width) in
            [(0, 5, 8), (1, 1, 1), (9, 4, 17), (700, 5000, 64), (1500, 2, 33), (8193, 1, 8), (3000, 301, 5120)]
        {
            let what = format!("{dtype} {num_tokens} of {vocabulary}x{width}");
            let (weight, ids) = (check.pair(dtype, [vocabulary, width], 1.0)?, check.indices(num_tokens, vocabulary)?);
            let found = embedding::forward(&ids.gpu, &weight.gpu)?;
            check.close(format!("{what} forward"), &found, &embedding::forward(&ids.host, &weight.host)?, 0.0)?;
            let dx = check.pair(dtype, [num_tokens, width], 1.0)?;
            let found = embedding::weight_gradient(&dx.gpu, &ids.gpu, vocabulary)?;
            let expected = embedding::weight_gradient(&dx.host, &ids.host, vocabulary)?;
            // The order of every sum is the host's, so no bit may differ.
            check.close(format!("{what} gradient"), &found, &expected, 0.0)?;
        }
        let weight = check.pair(dtype, [3, 10], 1.0)?;
        let ids = check.on_gpu(&Tensor::from_u32(vec![2, 3, 0, u32::MAX], [4])?)?;
        let found = embedding::forward(&ids, &weight.gpu)?.to_host()?.to_f32_vec()?;
        let shown: Vec<bool> = found.chunks(10).map(|row| row.iter().all(|value| value.is_nan())).collect();
        check.holds(format!("{dtype} ids outside are no numbers"), shown == [false, true, false, true]);
        let dx = check.pair(dtype, [4, 10], 1.0)?;
        let inside = Tensor::from_u32(vec![2, 0], [2])?;
        let rows = Tensor::from_u32(vec![0, 2], [2])?;
        let expected = embedding::weight_gradient(&rows::gather(&dx.host, &rows)?, &inside, 3)?;
        let found = embedding::weight_gradient(&dx.gpu, &ids, 3)?;
        check.close(format!("{dtype} and their gradients go nowhere"), &found, &expected, 0.0)?;
    }
    Ok(())
}

fn rows_by_index(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for &(num_rows, width) in ROWS {
            let what = format!("{dtype} {num_rows}x{width}");
            let x = check.pair(dtype, [num_rows, width], 1.0)?;
            let index = check.indices(if num_rows == 0 { 0 } else { 2 * num_rows + 1 }, num_rows)?;
            let (found, expected) = (rows::gather(&x.gpu, &index.gpu)?, rows::gather(&x.host, &index.host)?);
            check.close(format!("{what} gather"), &found, &expected, 0.0)?;
            // Every third row of a result that is longer, from behind.
            let places: Vec<u32> = (0..num_rows as u32).rev().map(|row| 3 * row).collect();
            let places = Tensor::from_u32(places, [num_rows])?;
            let expected = rows::scatter(&x.host, &places, 3 * num_rows + 5)?;
            let found = rows::scatter(&x.gpu, &check.on_gpu(&places)?, 3 * num_rows + 5)?;
            check.close(format!("{what} scatter"), &found, &expected, 0.0)?;
        }
        let x = check.pair(dtype, [9, 6], 1.0)?;
        let index = check.indices(20, 7)?;
        let found = rows::gather(&x.gpu.rows(1, 7)?, &index.gpu)?;
        let expected = rows::gather(&x.host.rows(1, 7)?, &index.host)?;
        check.close(format!("{dtype} rows of a larger tensor"), &found, &expected, 0.0)?;
        let places = check.on_gpu(&Tensor::from_u32(vec![0, 2, 2, 9, 4], [5])?)?;
        let found = rows::scatter(&x.gpu.rows(0, 5)?, &places, 6)?.to_host()?.to_f32_vec()?;
        let shown: Vec<bool> = found.chunks(6).map(|row| row.iter().all(|value| value.is_nan())).collect();
        check.holds(
            format!("{dtype} a row wanted twice is no number"),
            shown == [false, false, true, false, false, false],
        );
        let zeros = [1, 3, 5].iter().all(|row| found[6 * row..][..6].iter().all(|&value| value == 0.0));
        check.holds(format!("{dtype} rows that nobody wants are zero"), zeros);
    }
    Ok(())
}

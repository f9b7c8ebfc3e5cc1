//! Attention: documents of lengths around those of tiles, many and long ones, heads of all sizes, by cuDNN and by our
//! own kernels.

use scout_core::DType;
use scout_device::Tensor;

use super::{Case, Check, DTYPES, Pair};
use crate::Result;
use crate::attention::{self, Attended, QkvGradients, Segments};

pub(super) const CASES: &[Case] = &[
    ("attention.lengths", lengths),
    ("attention.heads", heads),
    ("attention.long_documents", long_documents),
    ("attention.many_documents", many_documents),
    ("attention.own_kernels", own_kernels),
    ("attention.few_tokens", few_tokens),
    ("attention.layers", layers),
];

const ODD: [u32; 16] = [301, 0, 77, 1, 255, 512, 33, 700, 129, 64, 3, 0, 450, 127, 65, 208];
const NAMES: [&str; 5] = ["context", "log sum exp", "dq", "dk", "dv"];

/// Query heads, key heads, head size.
type Heads = (usize, usize, usize);

/// The factors and the gradient of the result.
struct Inputs {
    segments: Segments,
    scale: f32,
    q: Pair,
    k: Pair,
    v: Pair,
    dcontext: Pair,
}

fn inputs(check: &mut Check, dtype: DType, lengths: &[u32], (query, kv, size): Heads) -> Result<Inputs> {
    let mut borders = vec![0];
    for length in lengths {
        borders.push(borders[borders.len() - 1] + length);
    }
    let segments = Segments::new(borders)?;
    let tokens = segments.num_tokens();
    Ok(Inputs {
        segments,
        // Larger than 1/√d, so that the softmax is far from flat.
        scale: 3.0 / (size as f32).sqrt(),
        q: check.pair(dtype, [tokens, query, size], 1.0)?,
        k: check.pair(dtype, [tokens, kv, size], 1.0)?,
        v: check.pair(dtype, [tokens, kv, size], 1.0)?,
        dcontext: check.pair(dtype, [tokens, query, size], 1.0)?,
    })
}

impl Inputs {
    fn on_gpu(&self) -> Result<(Attended, QkvGradients)> {
        let Inputs { segments, scale, q, k, v, dcontext } = self;
        let attended = attention::forward(&q.gpu, &k.gpu, &v.gpu, segments, *scale)?;
        let gradients = attention::backward(&dcontext.gpu, &q.gpu, &k.gpu, &v.gpu, &attended, segments, *scale)?;
        Ok((attended, gradients))
    }

    /// Whatever cuDNN could do.
    fn by_own_kernels(&self, check: &Check) -> Result<Results> {
        let Inputs { segments, scale, q, k, v, dcontext } = self;
        let (device, qkv) = (check.device, [&q.gpu, &k.gpu, &v.gpu]);
        let attended = attention::forward_by_own_kernels(device, qkv, segments, *scale)?;
        let pass = (segments, *scale);
        let gradients = attention::backward_by_own_kernels(device, &dcontext.gpu, qkv, &attended, pass)?;
        Ok((attended, gradients))
    }

    /// The backward pass begins with what the GPU's forward pass answered: where a softmax has few terms, gradients are
    /// differences in which the rounding of that is all there is to see.
    fn on_host(&self, of_gpu: &Attended) -> Result<(Attended, QkvGradients)> {
        let Inputs { segments, scale, q, k, v, dcontext } = self;
        let attended = attention::forward(&q.host, &k.host, &v.host, segments, *scale)?;
        let saved = Attended { context: of_gpu.context.to_host()?, log_sum_exp: of_gpu.log_sum_exp.to_host()? };
        let gradients = attention::backward(&dcontext.host, &q.host, &k.host, &v.host, &saved, segments, *scale)?;
        Ok((attended, gradients))
    }
}

/// Factors of the second product and both results are rounded in bf16, and on matrix units probabilities are too.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1e-2 }
}

type Results = (Attended, QkvGradients);

/// In the order of `NAMES`.
fn parts((attended, gradients): &Results) -> [Tensor; 5] {
    let QkvGradients { dq, dk, dv } = gradients.clone();
    [attended.context.clone(), attended.log_sum_exp.clone(), dq, dk, dv]
}

fn close(check: &mut Check, what: &str, dtype: DType, [found, expected]: [&Results; 2]) -> Result<()> {
    for (name, (found, expected)) in NAMES.into_iter().zip(parts(found).iter().zip(&parts(expected))) {
        let tolerance = if name == "log sum exp" { 1e-5 } else { tolerance(dtype) };
        check.close(format!("{what} {name}"), found, expected, tolerance)?;
    }
    Ok(())
}

fn compare(check: &mut Check, dtype: DType, lengths: &[u32], heads: Heads) -> Result<()> {
    let inputs = inputs(check, dtype, lengths, heads)?;
    let what = match lengths {
        [length] => format!("{dtype} {length} tokens {heads:?}"),
        _ => format!("{dtype} {} documents {heads:?}", lengths.len()),
    };
    let found = inputs.on_gpu()?;
    let expected = inputs.on_host(&found.0)?;
    close(check, &what, dtype, [&found, &expected])
}

/// One token sees itself alone: its result is its value, whatever the score is.
fn one_token(check: &mut Check, dtype: DType, heads: Heads) -> Result<()> {
    let inputs = inputs(check, dtype, &[1], heads)?;
    let (attended, gradients) = inputs.on_gpu()?;
    let (expected, expected_gradients) = inputs.on_host(&attended)?;
    let what = format!("{dtype} one token {heads:?}");
    check.close(format!("{what} context"), &attended.context, &expected.context, tolerance(dtype))?;
    check.close(format!("{what} log sum exp"), &attended.log_sum_exp, &expected.log_sum_exp, 1e-5)?;
    check.close(format!("{what} dv"), &gradients.dv, &expected_gradients.dv, tolerance(dtype))?;
    let norm =
        |tensor: &Tensor| -> Result<f32> { Ok(tensor.to_host()?.f32s()?.iter().map(|value| value.abs()).sum::<f32>()) };
    for (name, gradient) in [("dq", &gradients.dq), ("dk", &gradients.dk)] {
        let share = f64::from(norm(gradient)? / norm(&inputs.dcontext.gpu)?);
        check.holds(format!("{what} {name} is {share:.1e} of what came in"), share <= tolerance(dtype));
    }
    Ok(())
}

fn lengths(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for heads in [(40, 8, 128), (6, 3, 12)] {
            one_token(check, dtype, heads)?;
        }
        for length in [0, 2, 31, 32, 33, 63, 64, 65, 1000] {
            compare(check, dtype, &[length], (40, 8, 128))?;
            compare(check, dtype, &[length], (6, 3, 12))?;
        }
        compare(check, dtype, &[], (5, 1, 128))?;
    }
    Ok(())
}

fn heads(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (query, kv) in [(40, 8), (5, 1), (8, 8), (6, 3)] {
            for size in [8, 12, 16, 40, 64, 80, 128] {
                compare(check, dtype, &ODD, (query, kv, size))?;
            }
        }
        compare(check, dtype, &ODD, (2, 1, 100))?;
    }
    let wide = inputs(check, DType::F32, &[5], (1, 1, 129))?;
    check.refused("heads of 129", "at most 128", wide.on_gpu());
    Ok(())
}

fn long_documents(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for length in [8191, 8192, 8193] {
            compare(check, dtype, &[length], (5, 1, 128))?;
        }
    }
    Ok(())
}

fn many_documents(check: &mut Check) -> Result<()> {
    let lengths: Vec<u32> = (0..10_000).map(|index| 1 + index * 7 % 5).collect();
    for dtype in DTYPES {
        compare(check, dtype, &lengths, (5, 1, 128))?;
        compare(check, dtype, &lengths, (4, 2, 8))?;
    }
    Ok(())
}

/// What runs where cuDNN is missing or does not take the heads, whole rows of 16 bytes or not, at lengths around those
/// of all tiles.
fn own_kernels(check: &mut Check) -> Result<()> {
    for size in [7, 16, 40, 64, 80, 100, 128] {
        for (query, kv) in [(5, 1), (2, 2)] {
            compare_own(check, &ODD, (query, kv, size))?;
        }
    }
    for length in [2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 192, 193, 255, 256, 257, 2049]
    {
        compare_own(check, &[length], (5, 1, 128))?;
        compare_own(check, &[length, 1, length], (2, 2, 64))?;
    }
    let short: Vec<u32> = (0..3_000).map(|index| 1 + index * 7 % 5).collect();
    compare_own(check, &short, (5, 1, 128))?;
    compare_own(check, &[], (5, 1, 128))?;
    let turned = Inputs { scale: -1.0, ..inputs(check, DType::BF16, &[5], (1, 1, 128))? };
    check.refused("a scale of -1", "expected a positive number", turned.by_own_kernels(check));
    Ok(())
}

/// Every one of our own kernels once or twice, on little: for tools that watch each access to memory.
fn few_tokens(check: &mut Check) -> Result<()> {
    for heads in [(5, 1, 128), (2, 2, 40)] {
        compare_own(check, &[65, 0, 1, 130], heads)?;
        compare(check, DType::F32, &[65, 0, 1, 130], heads)?;
    }
    Ok(())
}

/// Results agree with the host, and come out the same when made again.
fn compare_own(check: &mut Check, lengths: &[u32], heads: Heads) -> Result<()> {
    let inputs = inputs(check, DType::BF16, lengths, heads)?;
    let what = match lengths {
        [length] => format!("{length} tokens {heads:?}"),
        [first, ..] => format!("{} documents, {first} tokens in the first, {heads:?}", lengths.len()),
        [] => format!("no documents {heads:?}"),
    };
    let found = inputs.by_own_kernels(check)?;
    close(check, &what, DType::BF16, [&found, &inputs.on_host(&found.0)?])?;
    let again = inputs.by_own_kernels(check)?;
    for (name, (a, b)) in NAMES.into_iter().zip(parts(&found).iter().zip(&parts(&again))) {
        check.close(format!("{what} {name} again"), b, a, 0.0)?;
    }
    Ok(())
}

/// The second layer of a batch finds on the GPU what the first one sent there.
fn layers(check: &mut Check) -> Result<()> {
    for (dtype, size) in [(DType::BF16, 128), (DType::BF16, 16), (DType::F32, 128)] {
        let inputs = inputs(check, dtype, &ODD, (5, 1, size))?;
        let before = check.device.working_memory().in_use();
        drop(inputs.on_gpu()?);
        let sent = check.device.working_memory().in_use();
        let steady = check.device.steady_step();
        for _ in 0..3 {
            drop(inputs.on_gpu()?);
        }
        drop(steady);
        let after = check.device.working_memory().in_use();
        let what =
            format!("{dtype} heads of {size}: {before:?} before, {sent:?} after one layer, {after:?} after four");
        check.holds(what, before < sent && sent == after);
        drop(inputs);
    }
    Ok(())
}

//! What adapters need beside matrix products: thin products, which are written first so that a large product is added
//! to them while it passes by; what the gradients of outputs bring, in one sweep; an addition; and dropout whose mask
//! is a pure function of names, never of order, rank or device. On a GPU tensors are f32 or bf16; arithmetic is f32 and
//! rounded once.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D input width, R rank, O output width")]

mod cuda;
mod host;
#[cfg(test)]
mod reference;
mod sweep;
#[cfg(test)]
mod tests;

use scout_core::{ByteCount, DType};
use scout_device::cuda::DeviceBuffer;
use scout_device::{Device, DeviceError, Tensor};

use crate::cuda::expect_dtype;
use crate::matmul::{self, Columns};
use crate::{Result, check};

/// `scale · narrow·wideᵀ`, and `residual` beside it if there is one: a new tensor.
pub fn product_nt<'a>(
    narrow_TR: impl Into<Columns<'a>>,
    wide_OR: &'a Tensor,
    scale: f32,
    residual_TO: Option<&Tensor>,
) -> Result<Tensor> {
    product(Product { narrow: narrow_TR.into(), wide: wide_OR, transposed: true, scale }, residual_TO)
}

/// `scale · narrow·wide`: a new tensor.
pub fn product_nn<'a>(narrow_TR: impl Into<Columns<'a>>, wide_RO: &'a Tensor, scale: f32) -> Result<Tensor> {
    product(Product { narrow: narrow_TR.into(), wide: wide_RO, transposed: false, scale }, None)
}

/// What stands in some columns of a row of thin products.
#[derive(Debug, Clone, Copy)]
pub enum Side<'a> {
    /// `scale · narrow·wideᵀ`.
    Product(Columns<'a>, &'a Tensor),
    /// As many columns of zeros.
    Zeros(usize),
}

/// Thin products side by side, as many rows each: a new tensor. Fails where all are zeros.
pub fn side_by_side(sides: &[Side], scale: f32) -> Result<Tensor> {
    const WHAT: &str = "thin products side by side";
    let mut products = Vec::with_capacity(sides.len());
    let mut width = 0;
    for &side in sides {
        width += match side {
            Side::Zeros(count) => count,
            Side::Product(narrow, wide) => {
                let product = Product { narrow, wide, transposed: true, scale };
                let dims = product.dims(WHAT)?;
                products.push((width, product, dims));
                dims[1]
            }
        };
    }
    let Some(&(_, first, [num_rows, _])) = products.first() else {
        return Err(check::refusal(WHAT, "found no product, expected at least one".to_string()));
    };
    if let Some((_, other, _)) = products.iter().find(|(_, _, [found, _])| *found != num_rows) {
        let expected = format!("{num_rows} rows as before");
        return Err(DeviceError::Shape { what: WHAT, found: other.narrow.tensor.shape().clone(), expected });
    }
    let factors: Vec<&Tensor> =
        products.iter().flat_map(|(_, product, _)| [product.narrow.tensor, product.wide]).collect();
    let Some(device) = check::place(WHAT, &factors)? else { return host::side_by_side(sides, num_rows, scale) };
    let mut y = device.buffer(first.narrow.tensor.dtype(), [num_rows, width])?;
    if sides.iter().any(|side| matches!(side, Side::Zeros(_))) {
        y.clear()?;
    }
    for (start, product, _) in products {
        cuda::write(device, (&mut y, start), product, None)?;
    }
    Ok(y.into_tensor())
}

/// The product of a factor with few columns and one with few rows.
#[derive(Debug, Clone, Copy)]
struct Product<'a> {
    narrow: Columns<'a>,
    wide: &'a Tensor,
    /// Whether `wide` is stored with its dimensions exchanged.
    transposed: bool,
    scale: f32,
}

impl Product<'_> {
    /// Rows and columns. Fails unless the factors fit.
    fn dims(&self, what: &'static str) -> Result<[usize; 2]> {
        let (num_rows, rank) = self.narrow.dims(what)?;
        let (found, count) = match (self.wide.dims2(what)?, self.transposed) {
            ((count, rank), true) => (rank, count),
            ((rank, count), false) => (rank, count),
        };
        if found != rank {
            let expected = format!("a rank of {rank}");
            return Err(DeviceError::Shape { what, found: self.wide.shape().clone(), expected });
        }
        Ok([num_rows, count])
    }
}

fn product(product: Product, residual: Option<&Tensor>) -> Result<Tensor> {
    const WHAT: &str = "thin product";
    let dims = product.dims(WHAT)?;
    let narrow = product.narrow.tensor;
    if let Some(residual) = residual {
        residual.expect_dims(WHAT, &dims)?;
        check::place(WHAT, &[narrow, residual])?;
    }
    let Some(device) = check::place(WHAT, &[narrow, product.wide])? else { return host::product(product, residual) };
    let mut y = device.buffer(narrow.dtype(), dims)?;
    cuda::write(device, (&mut y, 0), product, residual)?;
    Ok(y.into_tensor())
}

/// One of the adapters that read one input, on its way back.
#[derive(Debug)]
pub struct Output<'a> {
    /// The gradient of what its projection brought, `[T, O]`.
    pub dy: Columns<'a>,
    /// `[O, R]`.
    pub b: Tensor,
    /// What its factor A made of the input, `[T, R]`.
    pub narrow: Columns<'a>,
    /// Where its rows of B begin.
    pub first_row: usize,
}

/// Adapters one by one, whose factors B lie one under the other, and whose narrow products side by side. Fails unless
/// the shapes fit.
pub fn outputs<'a>(dys: &[Columns<'a>], b_OR: &Tensor, narrow_TR: &'a Tensor) -> Result<Vec<Output<'a>>> {
    const WHAT: &str = "way back through adapters";
    let (_, rank) = b_OR.dims2(WHAT)?;
    let (num_rows, _) = narrow_TR.dims2(WHAT)?;
    narrow_TR.expect_dims(WHAT, &[num_rows, dys.len() * rank])?;
    b_OR.expect_dims(WHAT, &[dys.iter().map(|dy| dy.count).sum(), rank])?;
    let mut first_row = 0;
    let mut outputs = Vec::with_capacity(dys.len());
    for (at, &dy) in dys.iter().enumerate() {
        if dy.dims(WHAT)?.0 != num_rows {
            let expected = format!("{num_rows} rows");
            return Err(DeviceError::Shape { what: WHAT, found: dy.tensor.shape().clone(), expected });
        }
        let narrow = Columns { tensor: narrow_TR, start: at * rank, count: rank };
        outputs.push(Output { dy, b: b_OR.rows(first_row, dy.count)?, narrow, first_row });
        first_row += dy.count;
    }
    Ok(outputs)
}

/// `dy·B` of each adapter, side by side. Adds `scale · dyᵀ·narrow` of each, one under the other as factors B are, to
/// the elements of `sums` from `start` on; `sums` is f32. On a GPU only, where gradients are collected: there each `dy`
/// is read once for both, where it can be.
pub fn outputs_backward(
    (sums, start): (&mut DeviceBuffer, usize),
    dys: &[Columns],
    b_OR: &Tensor,
    narrow_TR: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    const WHAT: &str = "way back through adapters";
    let outputs = outputs(dys, b_OR, narrow_TR)?;
    if sums.dtype() != DType::F32 || start.checked_add(b_OR.num_elements()).is_none_or(|end| end > sums.num_elements())
    {
        let expected = format!("{} elements of f32 from {start} on", b_OR.num_elements());
        return Err(DeviceError::Shape { what: WHAT, found: sums.shape().clone(), expected });
    }
    let rank = b_OR.dims()[1];
    if sweep::takes(sums.device(), dys, narrow_TR, rank) {
        let tensors: Vec<&Tensor> = dys.iter().map(|dy| dy.tensor).chain([b_OR, narrow_TR]).collect();
        check::place(WHAT, &tensors)?;
        tensors.iter().try_for_each(|tensor| expect_dtype(WHAT, tensor, DType::BF16))?;
        return sweep::sweep((sums, start), dys, b_OR, narrow_TR, scale);
    }
    for Output { dy, narrow, first_row, .. } in &outputs {
        matmul::add_tn(sums, start + first_row * rank, *dy, *narrow, scale)?;
    }
    let pairs: Vec<_> = outputs.iter().map(|output| (output.dy, &output.b)).collect();
    matmul::side_by_side_nn(&pairs)
}

/// What [`outputs_backward`] takes of a GPU's working memory beside its result, at most, for outputs of these widths.
pub fn most_scratch(num_rows: usize, widths: &[usize], rank: usize) -> ByteCount {
    sweep::most_scratch(num_rows, widths, rank)
}

/// `y + scale · delta`. Writes into the memory of `y` and hands it back. `y` must therefore be the only look at that
/// memory: clones, row views and reshapes of it would change too. Fails when `delta` shares it, and on a GPU when anything
/// does.
pub fn add_delta(y_TO: Tensor, delta_TO: &Tensor, scale: f32) -> Result<Tensor> {
    const WHAT: &str = "addition of an adapter";
    delta_TO.dims2(WHAT)?;
    check::same_dims(WHAT, delta_TO, &y_TO)?;
    match check::place(WHAT, &[&y_TO, delta_TO])?.cloned() {
        None => host::add_delta(y_TO, delta_TO, scale),
        Some(device) => cuda::add_delta(&device, y_TO, delta_TO, scale),
    }
}

/// Names the mask of one adapter in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey {
    pub seed: u64,
    pub step: u64,
    pub module: u64,
}

/// Names each token of a batch wherever it is computed: its sample, and its position inside the document.
#[derive(Debug, Clone)]
pub struct TokenKeys {
    // Invariant: u32 and `[T, 3]`: the low and the high half of the sample, and the position.
    names_T3: Tensor,
}

impl TokenKeys {
    /// On the host. Fails when there are more of one than of the other.
    pub fn new(samples: &[u64], positions: &[u32]) -> Result<TokenKeys> {
        if samples.len() != positions.len() {
            let problem = format!("found {} samples and {} positions", samples.len(), positions.len());
            return Err(check::refusal("names of tokens", problem));
        }
        let names = samples.iter().zip(positions);
        let names = names.flat_map(|(&sample, &position)| [sample as u32, (sample >> 32) as u32, position]).collect();
        Ok(TokenKeys { names_T3: Tensor::from_u32(names, [samples.len(), 3])? })
    }

    /// Where the rows are that are to be dropped out.
    pub fn to_device(&self, device: &Device) -> Result<TokenKeys> {
        let names_T3 = match device {
            Device::Cpu => self.names_T3.to_host()?,
            Device::Cuda(gpu) => gpu.send(&self.names_T3)?,
        };
        Ok(TokenKeys { names_T3 })
    }

    /// u32, `[T, 3]`: the low and the high half of the sample, and the position.
    pub fn names(&self) -> &Tensor {
        &self.names_T3
    }
}

/// Zeroes each element with `probability` and multiplies the others by `1/(1 − probability)`. Applied to a gradient it
/// is its own backward pass. At probability 0 the result shares the memory of `x`.
///
/// The mask, to be repeated bit by bit on any device: with `mix` the finalizer of splitmix64 and
/// `row = mix(mix(mix(mix(mix(seed) ^ step) ^ module) ^ sample) ^ position)`, features `2i` and `2i + 1` take the low
/// and the high half of `mix(row + (i + 1) · 0x9e3779b97f4a7c15)`, and an element is kept when its half is at least
/// `probability · 2³²`, rounded.
pub fn dropout(x_TD: &Tensor, tokens: &TokenKeys, key: DropoutKey, probability: f32) -> Result<Tensor> {
    const WHAT: &str = "dropout";
    let (num_tokens, _) = x_TD.dims2(WHAT)?;
    if !(0.0..1.0).contains(&probability) {
        return Err(check::refusal(WHAT, format!("found probability {probability}, expected at least 0 and below 1")));
    }
    tokens.names_T3.expect_dims(WHAT, &[num_tokens, 3])?;
    let device = check::place(WHAT, &[x_TD, &tokens.names_T3])?;
    if probability == 0.0 {
        return Ok(x_TD.clone());
    }
    let mask = Mask {
        module: mix(mix(mix(key.seed) ^ key.step) ^ key.module),
        threshold: (f64::from(probability) * 2f64.powi(32)).round() as u32,
        scale: 1.0 / (1.0 - probability),
    };
    match device {
        None => host::dropout(x_TD, tokens, mask),
        Some(device) => cuda::dropout(device, x_TD, tokens, mask),
    }
}

/// What the masks of one adapter in one step have in common.
#[derive(Debug, Clone, Copy)]
struct Mask {
    module: u64,
    threshold: u32,
    scale: f32,
}

/// The finalizer of splitmix64.
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

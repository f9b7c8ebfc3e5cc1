//! What adapters need beside matrix products: adding a thin product to some columns, taking columns, and dropout whose
//! mask is a pure function of names, never of order, rank or device. On a GPU tensors are f32 or bf16; arithmetic is f32
//! and rounded once.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D input width, N output width, O columns of one adapter")]

mod cuda;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use scout_device::{Device, DeviceError, Tensor};

use crate::{Result, check, matmul};

/// `y[:, column_start..column_start + O] += scale · delta`; the other columns stay as they are.
///
/// Writes into the memory of `y` and hands it back. `y` must therefore be the only look at that memory: clones, row
/// views and reshapes of it would change too. Fails when `delta` shares it, and on a GPU when anything does.
pub fn add_delta(y_TN: Tensor, column_start: usize, delta_TO: &Tensor, scale: f32) -> Result<Tensor> {
    const WHAT: &str = "addition of an adapter";
    let (num_tokens, count) = delta_TO.dims2(WHAT)?;
    check_columns(WHAT, &y_TN, column_start, count)?;
    delta_TO.expect_dims(WHAT, &[y_TN.dims()[0], count])?;
    let device = check::place(WHAT, &[&y_TN, delta_TO])?.cloned();
    if num_tokens * count == 0 {
        return Ok(y_TN);
    }
    match device {
        None => host::add_delta(&y_TN, column_start, delta_TO, scale)?,
        Some(device) => return cuda::add_delta(&device, y_TN, column_start, delta_TO, scale),
    }
    Ok(y_TN)
}

/// `y[:, column_start..column_start + O] += scale · narrow·wideᵀ`, in the memory of `y` as [`add_delta`] does it. The sum
/// over the rank is f32, and on a GPU nothing is rounded before it is added.
pub fn add_nt(y_TN: Tensor, column_start: usize, narrow_TR: &Tensor, wide_OR: &Tensor, scale: f32) -> Result<Tensor> {
    add_product(y_TN, column_start, Product { narrow: narrow_TR, wide: wide_OR, transposed: true, scale })
}

/// The same for `narrow·wide`.
pub fn add_nn(y_TN: Tensor, column_start: usize, narrow_TR: &Tensor, wide_RO: &Tensor, scale: f32) -> Result<Tensor> {
    add_product(y_TN, column_start, Product { narrow: narrow_TR, wide: wide_RO, transposed: false, scale })
}

/// A thin product to be added.
#[derive(Clone, Copy)]
struct Product<'a> {
    narrow: &'a Tensor,
    wide: &'a Tensor,
    transposed: bool,
    scale: f32,
}

impl Product<'_> {
    /// On its own, for the sum to be made in a second pass.
    fn delta(&self) -> Result<Tensor> {
        if self.transposed { matmul::nt(self.narrow, self.wide) } else { matmul::nn(self.narrow, self.wide) }
    }
}

fn add_product(y: Tensor, column_start: usize, product: Product) -> Result<Tensor> {
    const WHAT: &str = "addition of an adapter's product";
    let Product { narrow, wide, transposed, scale } = product;
    let (rank, count) = match (wide.dims2(WHAT)?, transposed) {
        ((count, rank), true) => (rank, count),
        ((rank, count), false) => (rank, count),
    };
    check_columns(WHAT, &y, column_start, count)?;
    narrow.expect_dims(WHAT, &[y.dims()[0], rank])?;
    match check::place(WHAT, &[&y, narrow, wide])?.cloned() {
        Some(device) if rank <= cuda::LARGEST_RANK && y.dims()[0] * count > 0 => {
            cuda::add_product(&device, y, column_start, product)
        }
        _ => add_delta(y, column_start, &product.delta()?, scale),
    }
}

/// A copy of `count` columns: `[T, count]`.
pub fn columns(y_TN: &Tensor, column_start: usize, count: usize) -> Result<Tensor> {
    check_columns("columns", y_TN, column_start, count)?;
    match y_TN.cuda() {
        None => host::columns(y_TN, column_start, count),
        Some(device) => cuda::columns(device, y_TN, column_start, count),
    }
}

fn check_columns(what: &'static str, y: &Tensor, start: usize, count: usize) -> Result<()> {
    let (_, width) = y.dims2(what)?;
    if start.checked_add(count).is_none_or(|end| end > width) {
        let expected = format!("at least {count} columns from column {start}");
        return Err(DeviceError::Shape { what, found: y.shape().clone(), expected });
    }
    Ok(())
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

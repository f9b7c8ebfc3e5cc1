//! The kernel that has all experts in one launch: against the host version, and in turns with a product for each expert.

use std::sync::Arc;
use std::time::Duration;

use scout_core::DType;
use scout_device::cuda::CudaDevice;
use scout_device::{Device, Matrices, Tensor};

use super::meter::{median, runs};
use super::{Case, Check, tolerance};
use crate::grouped_matmul::{self, cuda, one_launch};
use crate::{Result, noise};

pub(super) const CASES: &[Case] =
    &[("grouped_matmul.small_rows", small_rows), ("grouped_matmul.any_way", any_way), ("grouped_matmul.apart", apart)];

/// Tiles that rows and columns do not fill, experts without rows, all rows on one expert, and one row.
const OFFSETS: &[&[u32]] = &[
    &[0, 1],
    &[0, 63, 63, 192, 193],
    &[0, 0, 0, 300],
    &[0, 129, 129, 129],
    &[0, 100, 356, 357, 600, 985],
    &[0, 64, 128, 129, 130, 131, 259, 260],
];

fn compare(check: &mut Check, offsets: &[u32], (k, n): (usize, usize)) -> Result<()> {
    const DTYPE: DType = DType::BF16;
    let num_experts = offsets.len() - 1;
    let num_rows = *offsets.last().unwrap_or(&0) as usize;
    let what = if num_experts > 8 { format!("{num_experts} experts") } else { format!("{offsets:?}") };
    let what = format!("{what}, {k}x{n}");
    let b = check.pair(DTYPE, [num_experts, k, n], 1.0)?;
    let (wide, narrow) = (check.pair(DTYPE, [num_rows, k], 1.0)?, check.pair(DTYPE, [num_rows, n], 1.0)?);
    let is_there = check.device.properties().architecture == 90;
    let found = one_launch::is_faster(check.device, &wide.gpu, &Matrices::from(&b.gpu), offsets);
    check.holds(format!("{what} in one launch: {found}"), found == is_there);
    let expected = grouped_matmul::nn(&wide.host, &b.host, offsets)?;
    let found = grouped_matmul::nn(&wide.gpu, &b.gpu, offsets)?;
    check.close(format!("{what} nn"), &found, &expected, tolerance(DTYPE))?;
    let expected = grouped_matmul::nt(&narrow.host, &b.host, offsets)?;
    let found = grouped_matmul::nt(&narrow.gpu, &b.gpu, offsets)?;
    check.close(format!("{what} nt"), &found, &expected, tolerance(DTYPE))
}

fn small_rows(check: &mut Check) -> Result<()> {
    for offsets in OFFSETS {
        for shape in [(128, 128), (256, 512), (512, 256), (136, 328), (1000, 1032)] {
            compare(check, offsets, shape)?;
        }
    }
    // More pairs of tiles than clusters, narrow and wide.
    let many: Vec<u32> = (0..=24).map(|expert| expert * expert * 7 + expert * 5).collect();
    for shape in [(128, 2048), (2048, 128), (192, 1032)] {
        compare(check, &many, shape)?;
    }
    // Scout's.
    compare(check, &[0, 1, 130], (5120, 16384))?;
    compare(check, &[0, 257, 300], (8192, 5120))
}

/// Many rows, and rows that begin between multiples of 16 bytes, go to the library.
fn any_way(check: &mut Check) -> Result<()> {
    let b = check.pair(DType::BF16, [2, 256, 136], 1.0)?;
    let matrices = Matrices::from(&b.gpu);
    let many = one_launch::MOST_ROWS as u32 + 1;
    let a = check.pair(DType::BF16, [2 * many as usize, 256], 1.0)?;
    let offsets = [0, many + 13, 2 * many];
    check.holds("many rows one by one", !one_launch::is_faster(check.device, &a.gpu, &matrices, &offsets));
    let expected = grouped_matmul::nn(&a.host, &b.host, &offsets)?;
    check.close("many rows", &grouped_matmul::nn(&a.gpu, &b.gpu, &offsets)?, &expected, tolerance(DType::BF16))?;
    if one_launch::can(check.device, &a.gpu, &matrices, &offsets) {
        let found = one_launch::by_expert(check.device, &a.gpu, &matrices, &offsets, false)?;
        check.close("many rows in one launch", &found, &expected, tolerance(DType::BF16))?;
    }
    let whole = check.pair(DType::BF16, [80 * 256 + 1], 1.0)?;
    let between = |tensor: &Tensor| tensor.rows(1, 80 * 256)?.reshape([80, 256]);
    let (host, gpu) = (between(&whole.host)?, between(&whole.gpu)?);
    let offsets = [0, 33, 80];
    check.holds("rows between one by one", !one_launch::can(check.device, &gpu, &matrices, &offsets));
    let expected = grouped_matmul::nn(&host, &b.host, &offsets)?;
    check.close("rows between", &grouped_matmul::nn(&gpu, &b.gpu, &offsets)?, &expected, tolerance(DType::BF16))
}

/// Neighbours that lie apart from the others give the same bits.
fn apart(check: &mut Check) -> Result<()> {
    for (dtype, offsets, (k, n)) in [
        (DType::BF16, &[0, 100, 356, 357, 600][..], (256, 512)),
        (DType::BF16, &[0, 0, 64, 200, 200], (136, 328)),
        // One by one.
        (DType::BF16, &[0, 9000, 9001, 9100, 9200], (256, 136)),
        (DType::F32, &[0, 3, 3, 70, 90], (33, 18)),
    ] {
        let num_rows = offsets[4] as usize;
        let b = check.pair(dtype, [4, k, n], 1.0)?;
        let (wide, narrow) = (check.pair(dtype, [num_rows, k], 1.0)?, check.pair(dtype, [num_rows, n], 1.0)?);
        let together =
            (grouped_matmul::nn(&wide.gpu, &b.gpu, offsets)?, grouped_matmul::nt(&narrow.gpu, &b.gpu, offsets)?);
        for own in [0..1, 1..3, 3..4, 1..4] {
            let values = b.host.to_f32_vec()?;
            let others = [&values[own.end * k * n..], &values[..own.start * k * n]].concat();
            let others = Tensor::from_f32(others, [4 - own.len(), k, n])?;
            let others = others.to_device_as(&Device::Cuda(check.device.clone()), dtype)?;
            let what = format!("{dtype} {offsets:?} {k}x{n}, {own:?} apart");
            // A copy, so that it lies elsewhere.
            let kept = b.host.rows(own.start, own.len())?.to_device_as(&Device::Cuda(check.device.clone()), dtype)?;
            let matrices = Matrices::around(own.start, kept, others)?;
            let found = grouped_matmul::nn(&wide.gpu, matrices.clone(), offsets)?;
            check.close(format!("{what} nn"), &found, &together.0, 0.0)?;
            let found = grouped_matmul::nt(&narrow.gpu, matrices, offsets)?;
            check.close(format!("{what} nt"), &found, &together.1, 0.0)?;
        }
    }
    Ok(())
}

/// Both ways with the same factors.
#[derive(Debug, Clone)]
pub struct ExpertRate {
    pub name: String,
    /// Of each of the 16 experts, on average.
    pub num_rows: usize,
    pub in_one_launch: Duration,
    pub one_by_one: Duration,
    /// Of all experts together.
    pub operations: f64,
    /// Whether the op would take the first way.
    pub is_taken: bool,
}

const NUM_EXPERTS: usize = 16;

/// Scout's experts, forward and backward, where both ways are possible.
pub fn rates(device: &Arc<CudaDevice>) -> Result<Vec<ExpertRate>> {
    let products = [
        ("gate and up, forward", [5120, 16384], false),
        ("down, forward", [8192, 5120], false),
        ("gate and up, backward", [5120, 16384], true),
        ("down, backward", [8192, 5120], true),
    ];
    let mut rates = Vec::new();
    for (name, extents, transposed) in products {
        let b = noise::tensor_on(device, DType::BF16, [NUM_EXPERTS, extents[0], extents[1]], 1, 0.02)?;
        for num_rows in [64, 128, 192, 256, 384, 512, 768, 1024, 2048] {
            let equal = (0..=NUM_EXPERTS).map(|expert| (expert * num_rows) as u32).collect();
            rates.extend(rate(device, name.to_string(), &b, equal, transposed)?);
        }
        for num_rows in [128, 512, 1024] {
            rates.extend(rate(device, format!("{name}, uneven"), &b, uneven(num_rows), transposed)?);
        }
    }
    Ok(rates)
}

/// From half as many rows to half as many again.
fn uneven(num_rows: usize) -> Vec<u32> {
    let mut offsets = vec![0];
    for expert in 0..NUM_EXPERTS {
        let rows = num_rows * (8 + expert * 5 % 17) / 16;
        offsets.push(offsets[expert] + rows as u32);
    }
    offsets
}

fn rate(
    device: &Arc<CudaDevice>,
    name: String,
    b: &Tensor,
    offsets: Vec<u32>,
    transposed: bool,
) -> Result<Option<ExpertRate>> {
    let (k, n) = (b.dims()[1], b.dims()[2]);
    let b = &Matrices::from(b);
    let num_rows = offsets[NUM_EXPERTS] as usize;
    let a = noise::tensor_on(device, DType::BF16, [num_rows, if transposed { n } else { k }], 2, 1.0)?;
    if !one_launch::can(device, &a, b, &offsets) {
        return Ok(None);
    }
    let [in_one_launch, one_by_one] = in_turns(
        device,
        [&|| one_launch::by_expert(device, &a, b, &offsets, transposed).map(drop), &|| {
            cuda::one_by_one(device, &a, b, &offsets, transposed).map(drop)
        }],
    )?;
    let operations = 2.0 * (num_rows * k * n) as f64;
    let is_taken = one_launch::is_faster(device, &a, b, &offsets);
    Ok(Some(ExpertRate { name, num_rows: num_rows / NUM_EXPERTS, in_one_launch, one_by_one, operations, is_taken }))
}

/// The median time of each, measured in turns so that both see the same clock.
fn in_turns(device: &Arc<CudaDevice>, ways: [&dyn Fn() -> Result<()>; 2]) -> Result<[Duration; 2]> {
    const TURNS: usize = 5;
    const CALLS: usize = 6;
    let mut times = [Vec::new(), Vec::new()];
    for way in ways {
        way()?;
    }
    for _ in 0..TURNS {
        for (way, times) in ways.into_iter().zip(&mut times) {
            times.extend(runs(device, CALLS, way)?.1);
        }
    }
    Ok(times.map(median))
}

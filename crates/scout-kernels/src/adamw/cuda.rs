//! A grid that fills the GPU once walks over the elements.

use std::ops::Range;

use scout_core::{DType, Shape};
use scout_device::cuda::{Argument, Grid};
use scout_device::{DeviceError, Tensor};

use super::GpuState;
use super::host::Scalars;
use crate::Result;
use crate::check::refusal;
use crate::cuda::{expect_dtype, sources};

const WHAT: &str = "adamw";
const THREADS: u32 = 256;
/// Elements that a thread updates at a time.
const PER_THREAD: u64 = 4;

pub(super) fn update(state: GpuState, gradients: &Tensor, range: Range<usize>, scalars: &Scalars) -> Result<()> {
    let GpuState { parameters, first_moment, second_moment, rounded } = state;
    let expected = parameters.num_elements();
    let expect = |found: usize, shape: &Shape, dtype: DType, expected_dtype: DType| match found == expected {
        _ if dtype != expected_dtype => Err(DeviceError::DType { what: WHAT, found: dtype, expected: expected_dtype }),
        true => Ok(()),
        false => Err(DeviceError::Shape { what: WHAT, found: shape.clone(), expected: format!("{expected} elements") }),
    };
    expect_dtype(WHAT, gradients, DType::F32)?;
    expect(gradients.num_elements(), gradients.shape(), DType::F32, DType::F32)?;
    for buffer in [&*parameters, first_moment, second_moment] {
        expect(buffer.num_elements(), buffer.shape(), buffer.dtype(), DType::F32)?;
    }
    if let Some(rounded) = &rounded {
        expect(rounded.num_elements(), rounded.shape(), rounded.dtype(), DType::BF16)?;
    }
    if range.start > range.end || range.end > expected {
        return Err(refusal(WHAT, format!("found elements {range:?}, expected some of {expected}")));
    }
    let (start, len) = (range.start as u64, range.len() as u64);
    let device = parameters.device().clone();
    let kernel = device.kernel(&sources::ADAMW, "adamw_update")?;
    let blocks = u64::from(device.resident_blocks(&kernel, THREADS, 0)?);
    let blocks = blocks.min(len.div_ceil(u64::from(THREADS) * PER_THREAD));
    let s = scalars;
    let scalars = [s.gradient_scale, s.decay, s.lerp, s.beta2, s.one_minus_beta2];
    let more_scalars = [s.correction2_sqrt, s.epsilon, s.negative_step_size];
    // All of them are f32.
    let bytes = 4 * len;
    let mut arguments = vec![
        Argument::InOut(parameters, bytes),
        Argument::In(gradients),
        Argument::InOut(first_moment, bytes),
        Argument::InOut(second_moment, bytes),
        rounded.map_or(Argument::Nothing, Argument::Out),
        Argument::U64(start),
        Argument::U64(len),
    ];
    arguments.extend(scalars.into_iter().chain(more_scalars).map(Argument::F32));
    // SAFETY: the kernel touches elements `start..start + len` of each run, which are as long as was compared above.
    unsafe { device.launch(&kernel, Grid::new(blocks as u32, THREADS), &mut arguments) }
}

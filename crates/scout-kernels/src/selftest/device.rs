//! What ops rely on: memory that is used again in order, steady steps, refusals.

use std::time::Duration;

use scout_core::{ByteCount, DType};
use scout_device::cuda::{Argument, DeviceBuffer, Grid, Pinned, Priority, Stream};
use scout_device::{Device, DeviceError, Purpose, Tensor};

use super::{Case, Check};
use crate::cuda::sources;
use crate::{Result, lora, matmul, noise, rms_norm, rows};

pub(super) const CASES: &[Case] = &[
    ("device.kernels", every_kernel_loads),
    ("device.copies", copies_keep_every_bit),
    ("device.poison", fresh_memory_is_no_number),
    ("device.reuse", memory_is_used_again_after_other_streams),
    ("device.streams", streams_wait_for_events),
    ("device.steady", a_steady_step_asks_for_no_memory),
    ("device.full", a_full_arena_says_where_the_bytes_are),
    ("device.refusals", wrong_arguments_are_refused),
];

const DEADLINE: Duration = Duration::from_secs(60);

fn every_kernel_loads(check: &mut Check) -> Result<()> {
    for source in sources::ALL {
        let quoted = source.text.lines().filter(|line| line.contains("extern \"C\" __global__")).count();
        check.holds(format!("{} has kernels", source.name), quoted > 0);
        // A name that no source has: the source is loaded or compiled, and the refusal is about the name.
        check.refused(source.name, "no function of this name", check.device.kernel(source, "no_such_kernel"));
    }
    Ok(())
}

fn copies_keep_every_bit(check: &mut Check) -> Result<()> {
    let device = Device::Cuda(check.device.clone());
    let numbers: Vec<u32> = (0..100_003u32).map(|index| index.wrapping_mul(2_654_435_761)).collect();
    let there = Tensor::from_u32(numbers.clone(), [100_003])?.to_device(&device)?;
    check.holds("u32 there and back", *there.to_host()?.u32s()? == numbers[..]);
    check.holds("rows of it", *there.rows(77, 1000)?.to_host()?.u32s()? == numbers[77..1077]);
    check.refused("reading it without a copy", "found memory of", there.u32s().map(|_| ()));
    let mut pinned = Pinned::zeros(check.device.context(), 400_012)?;
    for (to, from) in pinned.bytes_mut().chunks_exact_mut(4).zip(&numbers) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    let mut buffer = check.device.buffer(DType::U32, [100_003])?;
    let copy = check.device.copy().clone();
    copy.wait_for(&check.device.compute().record()?)?;
    let pinned = pinned.upload(&mut buffer, &copy)?.wait(DEADLINE)?;
    check.holds("up from pinned memory", *buffer.view().to_host()?.u32s()? == numbers[..]);
    let mut pinned = pinned;
    pinned.bytes_mut().fill(7);
    let pinned = pinned.download(&buffer.into_tensor(), &copy)?.wait(DEADLINE)?;
    let same = pinned.bytes().chunks_exact(4).zip(&numbers).all(|(bytes, number)| bytes == number.to_le_bytes());
    check.holds("down to pinned memory", same);
    Ok(())
}

fn fresh_memory_is_no_number(check: &mut Check) -> Result<()> {
    let fresh = check.device.buffer(DType::F32, [1000])?.into_tensor().to_host()?;
    check.holds("every element", fresh.f32s()?.iter().all(|value| value.is_nan()));
    let mut cleared = check.device.buffer(DType::F32, [1000])?;
    cleared.clear()?;
    check.holds("until it is cleared", cleared.view().to_host()?.f32s()?.iter().all(|&value| value == 0.0));
    Ok(())
}

/// A tensor is dropped while a slow copy of it is under way on another stream, and its memory is taken and overwritten
/// at once: the copy must still see the old values.
fn memory_is_used_again_after_other_streams(check: &mut Check) -> Result<()> {
    const LEN: usize = 32 << 20;
    let device = check.device.clone();
    let mut pinned = Pinned::zeros(device.context(), 4 * LEN)?;
    for round in 0..4 {
        let seed = check.next_seed();
        let old = noise::tensor_on(&device, DType::F32, [LEN], seed, 1.0)?;
        device.copy().wait_for(&device.compute().record()?)?;
        let copying = pinned.download(&old, device.copy())?;
        let in_use = device.working_memory().in_use();
        drop(old);
        let new = noise::tensor_on(&device, DType::F32, [LEN], seed + 1000, 1.0)?;
        let was_reused = device.working_memory().in_use() == in_use;
        pinned = copying.wait(DEADLINE)?;
        let last = f32::from_le_bytes(pinned.bytes()[4 * LEN - 4..].try_into().expect("four bytes"));
        let expected = noise::value_at(seed, LEN - 1);
        check.holds(format!("round {round}: the copy saw the old values"), was_reused && last == expected);
        let new_last = new.rows(LEN - 1, 1)?.to_host()?.f32s()?[0];
        check
            .holds(format!("round {round}: the new ones are there"), new_last == noise::value_at(seed + 1000, LEN - 1));
    }
    Ok(())
}

fn streams_wait_for_events(check: &mut Check) -> Result<()> {
    let device = check.device.clone();
    let side = std::sync::Arc::new(Stream::new(device.context(), Priority::Low)?);
    let kernel = device.kernel(&sources::NOISE, "noise_fill_f32")?;
    let mut buffer = device.buffer(DType::F32, [1 << 26])?;
    side.wait_for(&device.compute().record()?)?;
    let start = side.record_time()?;
    let mut arguments = [Argument::Out(&mut buffer), Argument::U64(1 << 26), Argument::U64(5), Argument::F32(1.0)];
    // SAFETY: the kernel writes elements below 2^26, of which the buffer has as many; the stream waits, above, for
    // whatever was queued on the memory before.
    unsafe { device.launch_on(&side, &kernel, Grid::new(64, 256), &mut arguments) }?;
    let end = side.record_time()?;
    device.compute().wait_for(&end)?;
    let tensor = buffer.into_tensor().reshape([1 << 16, 1 << 10])?;
    let doubled = lora::add_delta(rows::copy(&tensor)?, &tensor, 1.0)?;
    let last = doubled.rows((1 << 16) - 1, 1)?.to_host()?.f32s()?[(1 << 10) - 1];
    check.holds("what another stream wrote is read", last == 2.0 * noise::value_at(5, (1 << 26) - 1));
    check.holds("and took time", end.since(&start)? > Duration::from_micros(10));
    let late = device.compute().record()?;
    check.holds("an event is past at last", late.wait(DEADLINE).is_ok() && late.is_past()?);
    Ok(())
}

fn a_steady_step_asks_for_no_memory(check: &mut Check) -> Result<()> {
    let device = check.device.clone();
    let step = |seed: u64| -> Result<()> {
        let x = noise::tensor_on(&device, DType::BF16, [333, 512], seed, 1.0)?;
        let weight = noise::tensor_on(&device, DType::BF16, [512], seed + 1, 1.0)?;
        let normed = rms_norm::forward(&x, &weight, 1e-5)?;
        let projected = matmul::nt(&normed.y, &x)?;
        matmul::add_nt(Some(projected), &normed.y, &x).map(|_| ())
    };
    step(1)?;
    device.finish()?;
    let before = (device.context().num_allocations(), device.working_memory().in_use());
    let steady = device.steady_step();
    for seed in 0..20 {
        step(seed)?;
    }
    device.finish()?;
    check.refused("pinned memory", "a steady step allocates nothing", Pinned::zeros(device.context(), 16));
    let arena = device.arena("more", Purpose::Shard, ByteCount(1 << 20), device.compute());
    check.refused("an arena", "a steady step allocates nothing", arena);
    drop(steady);
    let after = (device.context().num_allocations(), device.working_memory().in_use());
    check.holds(format!("20 steps: {before:?} before, {after:?} after"), before == after);
    let arena = device.arena("more", Purpose::Shard, ByteCount(1 << 20), device.compute())?;
    check.holds("afterwards arenas can be made", arena.capacity() == ByteCount(1 << 20) && arena.base() != 0);
    Ok(())
}

fn a_full_arena_says_where_the_bytes_are(check: &mut Check) -> Result<()> {
    let too_much = check.device.working_memory().capacity().0 as usize + 1;
    let refused = check.device.buffer(DType::U8, [too_much]).err();
    let hint = refused.as_ref().and_then(DeviceError::hint).unwrap_or_default();
    let parts = ["per_device_train_batch_size", "cutoff_len", "device_memory", "\nactivations", "longest free run"];
    for part in parts {
        check.holds(format!("the hint has {:?}", part.trim()), hint.contains(part));
    }
    let code = refused.map(|refused| refused.exit_code());
    check.holds("exit code 69", code == Some(scout_core::ExitCode::DeviceUnavailable));
    let arena = check.device.arena("all of it", Purpose::Shard, ByteCount(1 << 50), check.device.compute());
    check.refused("an arena larger than the GPU", "do not fit", arena);
    Ok(())
}

fn wrong_arguments_are_refused(check: &mut Check) -> Result<()> {
    let device = check.device.clone();
    let kernel = device.kernel(&sources::LORA, "lora_add_delta_f32")?;
    let x = check.pair(DType::F32, [1, 8], 1.0)?.gpu;
    let mut y = device.buffer(DType::F32, [1, 8])?;
    let grid = Grid::new(1, 32);
    // SAFETY: refused before it runs: two arguments where four are taken.
    let outcome = unsafe { device.launch(&kernel, grid, &mut [Argument::Out(&mut y), Argument::In(&x)]) };
    check.refused("too few arguments", "found arguments of", outcome);
    let mut arguments = [Argument::Out(&mut y), Argument::In(&x), Argument::U64(8), Argument::F32(1.0)];
    // SAFETY: refused before it runs: 8 bytes where 4 are taken.
    let outcome = unsafe { device.launch(&kernel, grid, &mut arguments) };
    check.refused("an argument that is too long", "found arguments of", outcome);
    let look = y.view();
    let mut arguments = [Argument::Out(&mut y), Argument::In(&x), Argument::U32(8), Argument::F32(1.0)];
    // SAFETY: refused before it runs: a tensor looks at the memory to be written.
    let outcome = unsafe { device.launch(&kernel, grid, &mut arguments) };
    check.refused("writing under a tensor", "found 1 tensors", outcome);
    drop(look);
    let mut arguments = [Argument::Out(&mut y), Argument::In(&x), Argument::U32(8), Argument::F32(1.0)];
    // SAFETY: refused before it runs: more threads than a block has.
    let outcome = unsafe { device.launch(&kernel, Grid::new(1, 4096), &mut arguments) };
    check.refused("too many threads", "found blocks of 4096", outcome);
    let host = Tensor::from_f32(vec![0.0; 8], [1, 8])?;
    check.refused("factors that are apart", "found memory of", matmul::nt(&x, &host));
    let elements = x.reshape([8])?;
    check.refused("a part as a buffer", "part of a larger", DeviceBuffer::from_tensor(elements.rows(1, 7)?));
    drop(elements);
    check.refused("a shared tensor as a buffer", "found 1 tensors", DeviceBuffer::from_tensor(x.clone()));
    check.holds("a tensor of its own as a buffer", DeviceBuffer::from_tensor(x).is_ok());
    Ok(())
}

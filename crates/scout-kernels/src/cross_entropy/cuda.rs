//! Chunk by chunk: a product to logits, one kernel that turns them into losses and gradients where they are, a product
//! back.

use std::sync::Arc;

use scout_core::{ByteCount, DType};
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, DeviceBuffer, Factor, Grid, Scale, Window};

use super::{HeadLoss, TrainedHeadLoss};
use crate::Result;
use crate::cuda::{count, expect_dtype, kernel, same_dtype, sources};

const WHAT: &str = "cross entropy";
/// Logits of a chunk take at most this much, or one row.
const BYTES_PER_CHUNK: ByteCount = ByteCount(1 << 30);
/// Chunks have a multiple of so many rows, as tiles of matrix products do.
const ROWS_OF_TILE: usize = 128;
/// As in the kernel.
const THREADS: u32 = 256;
/// What a kernel reads at a time, in bytes.
const VECTOR: usize = 16;
/// What the kernel has beside the vectors that it keeps, generously.
const OTHER_SHARED_MEMORY: u32 = 1024;
/// Blocks that share a row where there are clusters, as in the kernel.
const PARTS: u32 = 8;
const FIRST_WITH_CLUSTERS: u32 = 90;

/// What is the same for all chunks.
struct Head<'a> {
    device: &'a Arc<CudaDevice>,
    x: &'a Tensor,
    weight: &'a Tensor,
    targets: &'a Tensor,
    dtype: DType,
    width: usize,
    vocabulary: usize,
    /// Logits of a row begin at multiples of 16 bytes.
    leading: usize,
}

impl<'a> Head<'a> {
    fn new(
        device: &'a Arc<CudaDevice>,
        [x, weight, targets]: [&'a Tensor; 3],
        weights: Option<&Tensor>,
    ) -> Result<Head<'a>> {
        let dtype = same_dtype(WHAT, &[x, weight])?;
        expect_dtype(WHAT, targets, DType::U32)?;
        if let Some(weights) = weights {
            expect_dtype(WHAT, weights, DType::F32)?;
        }
        let (vocabulary, width) = (weight.dims()[0], weight.dims()[1]);
        let leading = leading(vocabulary, dtype);
        Ok(Head { device, x, weight, targets, dtype, width, vocabulary, leading })
    }

    fn logits_buffer(&self, rows: usize) -> Result<DeviceBuffer> {
        self.device.buffer(self.dtype, [rows, self.leading])
    }

    /// The logits of `chunk`, in the first rows of a buffer.
    fn logits(&self, chunk: Chunk, logits: &mut DeviceBuffer) -> Result<()> {
        let x = Factor { tensor: self.x, window: chunk.of_rows(self.width), transposed: false };
        let weight = Factor { tensor: self.weight, window: self.whole_weight(), transposed: true };
        self.device.multiply([x, weight], (logits, self.of_logits(chunk)), Scale::OVERWRITE)
    }

    fn of_logits(&self, chunk: Chunk) -> Window {
        Window { start: 0, rows: chunk.rows, columns: self.vocabulary, leading: self.leading }
    }

    fn whole_weight(&self) -> Window {
        Window::whole(self.vocabulary, self.width)
    }

    /// Losses, and the gradient in place of the logits where there are weights.
    fn losses(&self, chunk: Chunk, logits: &mut DeviceBuffer, weights: Option<&Tensor>) -> Result<Tensor> {
        let mut losses = self.device.buffer(DType::F32, [chunk.rows])?;
        let targets = self.targets.rows(chunk.start, chunk.rows)?;
        let weights = weights.map(|weights| weights.rows(chunk.start, chunk.rows)).transpose()?;
        let kernel =
            kernel(self.device, &sources::CROSS_ENTROPY, self.dtype, ["cross_entropy_f32", "cross_entropy_bf16"])?;
        let parts = if self.device.properties().architecture >= FIRST_WITH_CLUSTERS { PARTS } else { 1 };
        let share = self.vocabulary.div_ceil(VECTOR / self.dtype.size().0 as usize).div_ceil(parts as usize);
        let room =
            self.device.properties().shared_memory_per_block.saturating_sub(OTHER_SHARED_MEMORY) as usize / VECTOR;
        let kept = count(WHAT, share.min(room))?;
        let grid = Grid::new(count(WHAT, chunk.rows * parts as usize)?, THREADS);
        let grid = Grid { shared_memory: kept * VECTOR as u32, ..grid };
        let bytes = (chunk.rows * self.leading) as u64 * self.dtype.size().0;
        // Losses alone leave the logits as they are.
        let logits = if weights.is_some() { Argument::InOut(logits, bytes) } else { Argument::OutPart(logits, bytes) };
        let mut arguments = [
            logits,
            Argument::In(&targets),
            weights.as_ref().map_or(Argument::Nothing, Argument::In),
            Argument::Out(&mut losses),
            Argument::U32(count(WHAT, self.vocabulary)?),
            Argument::U32(count(WHAT, self.leading)?),
            Argument::U32(kept),
        ];
        // SAFETY: `parts` blocks touch a row of `leading` logits, of which the buffer has at least `rows`, and its
        // element of the others; each has room for `kept` vectors; a target that is no logit is not looked up.
        unsafe { self.device.launch(&kernel, grid, &mut arguments) }?;
        Ok(losses.into_tensor())
    }
}

pub(super) fn forward(device: &Arc<CudaDevice>, inputs: [&Tensor; 3]) -> Result<Tensor> {
    let head = Head::new(device, inputs, None)?;
    let mut token_loss = device.buffer(DType::F32, [head.x.dims()[0]])?;
    let mut logits = head.logits_buffer(rows_per_chunk(head.x.dims()[0], head.leading, head.dtype))?;
    for chunk in chunks(head.x.dims()[0], head.leading, head.dtype) {
        head.logits(chunk, &mut logits)?;
        token_loss.copy_from(chunk.start, &head.losses(chunk, &mut logits, None)?)?;
    }
    Ok(token_loss.into_tensor())
}

pub(super) fn forward_backward(device: &Arc<CudaDevice>, inputs: [&Tensor; 3], weights: &Tensor) -> Result<HeadLoss> {
    by_chunk(&Head::new(device, inputs, Some(weights))?, weights, None)
}

pub(super) fn forward_backward_of_head(
    device: &Arc<CudaDevice>,
    inputs: [&Tensor; 3],
    weights: &Tensor,
) -> Result<TrainedHeadLoss> {
    let head = Head::new(device, inputs, Some(weights))?;
    let mut dweight = device.zeros(DType::F32, [head.vocabulary, head.width])?;
    let loss = by_chunk(&head, weights, Some(&mut dweight))?;
    Ok(TrainedHeadLoss { loss, dweight: dweight.into_tensor() })
}

/// Adds to `dweight` where the head is trained.
fn by_chunk(head: &Head, weights: &Tensor, mut dweight: Option<&mut DeviceBuffer>) -> Result<HeadLoss> {
    let (device, num_rows) = (head.device, head.x.dims()[0]);
    let mut token_loss = device.buffer(DType::F32, [num_rows])?;
    let mut dx = device.buffer(head.dtype, [num_rows, head.width])?;
    let mut logits = head.logits_buffer(rows_per_chunk(num_rows, head.leading, head.dtype))?;
    for chunk in chunks(num_rows, head.leading, head.dtype) {
        head.logits(chunk, &mut logits)?;
        token_loss.copy_from(chunk.start, &head.losses(chunk, &mut logits, Some(weights))?)?;
        let dlogits = logits.view();
        let of_logits = |transposed| Factor { tensor: &dlogits, window: head.of_logits(chunk), transposed };
        let weight = Factor { tensor: head.weight, window: head.whole_weight(), transposed: false };
        device.multiply([of_logits(false), weight], (&mut dx, chunk.of_rows(head.width)), Scale::OVERWRITE)?;
        if let Some(dweight) = &mut dweight {
            let x = Factor { tensor: head.x, window: chunk.of_rows(head.width), transposed: false };
            device.multiply([of_logits(true), x], (dweight, head.whole_weight()), Scale::ADD)?;
        }
    }
    Ok(HeadLoss { token_loss: token_loss.into_tensor(), dx: dx.into_tensor() })
}

/// The kernel alone on a buffer of logits, for its rate.
pub(crate) fn losses_of(
    device: &Arc<CudaDevice>,
    [x, weight, targets]: [&Tensor; 3],
    weights: &Tensor,
    logits: &mut DeviceBuffer,
) -> Result<Tensor> {
    let head = Head::new(device, [x, weight, targets], Some(weights))?;
    head.losses(Chunk { start: 0, rows: targets.dims()[0] }, logits, Some(weights))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    start: usize,
    rows: usize,
}

impl Chunk {
    /// Of a matrix with a row for each scored position.
    fn of_rows(self, width: usize) -> Window {
        Window { start: self.start * width, rows: self.rows, columns: width, leading: width }
    }
}

/// Chunks of equal size but for the last.
fn chunks(num_rows: usize, leading: usize, dtype: DType) -> impl Iterator<Item = Chunk> {
    let rows = rows_per_chunk(num_rows, leading, dtype);
    (0..num_rows).step_by(rows.max(1)).map(move |start| Chunk { start, rows: rows.min(num_rows - start) })
}

fn leading(vocabulary: usize, dtype: DType) -> usize {
    vocabulary.next_multiple_of(VECTOR / dtype.size().0 as usize)
}

/// Bytes of the logits of one chunk.
pub(super) fn bytes_of_chunk(num_rows: usize, vocabulary: usize, dtype: DType) -> ByteCount {
    let leading = leading(vocabulary, dtype);
    dtype.size() * (rows_per_chunk(num_rows, leading, dtype) * leading) as u64
}

fn rows_per_chunk(num_rows: usize, leading: usize, dtype: DType) -> usize {
    let bytes_of_row = (dtype.size() * leading as u64).0.max(1);
    let most = ((BYTES_PER_CHUNK.0 / bytes_of_row) as usize).max(1);
    if num_rows <= most {
        return num_rows;
    }
    let equal = num_rows.div_ceil(num_rows.div_ceil(most));
    equal.next_multiple_of(ROWS_OF_TILE).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_and_stay_below_their_limit() {
        for (num_rows, leading, dtype, expected) in [
            (0, 8, DType::BF16, vec![]),
            (1, 202_048, DType::BF16, vec![1]),
            (2657, 202_048, DType::BF16, vec![2657]),
            (2658, 202_048, DType::BF16, vec![1408, 1250]),
            (8192, 202_048, DType::BF16, vec![2048, 2048, 2048, 2048]),
            (1500, 202_048, DType::F32, vec![768, 732]),
            (3, 1 << 30, DType::BF16, vec![1, 1, 1]),
        ] {
            let found: Vec<Chunk> = chunks(num_rows, leading, dtype).collect();
            assert_eq!(found.iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), expected, "{num_rows} {leading}");
            assert!(found.windows(2).all(|pair| pair[0].start + pair[0].rows == pair[1].start));
        }
    }
}

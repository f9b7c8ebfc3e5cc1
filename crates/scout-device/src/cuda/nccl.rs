//! Collectives between GPUs by NCCL, on streams. Every rank makes the same calls in the same order; who does not come is
//! waited for until a deadline and never longer.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::Arc;

use scout_core::{ByteCount, DType};

use super::arena::{Arena, Block};
use super::communicator::Communicator;
use super::context::Context;
use super::device::CudaDevice;
use super::foreign;
use super::memory::DeviceBuffer;
use super::nccl_config::{NcclConfig, NcclUniqueId};
use super::nccl_window::WindowMemory;
use super::stream::Stream;
use crate::tensor::Tensor;
use crate::{DeviceError, Result};

/// What must stand in the environment before NCCL is called for the first time, which reads it once.
///
/// Multicast over NVLink stays off: it gains an all-gather nothing, it takes GPU memory, and where a process that uses it
/// ends badly the switches may stay occupied for everybody. NCCL 2.28 has no setting for it beside the environment: its
/// `nvlsCTAs` must be positive.
pub const MULTICAST_OFF: (&str, &str) = ("NCCL_NVLS_ENABLE", "0");

/// The variable by which NCCL is told what host it is on, where that is not to be the host's own name.
pub const HOST: &str = "NCCL_HOSTID";

/// NCCL's numbers for element types and operations.
const BYTES: c_int = 1;
const FLOAT32: c_int = 7;
const BFLOAT16: c_int = 9;
const SUM: c_int = 0;

/// The name under which the ranks of one communicator meet. One rank makes it and tells the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NcclId([u8; 128]);

/// How much of a GPU collectives may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// The most multiprocessors of one collective; NCCL's choice where none is given.
    pub max_ctas: Option<i32>,
    /// No multiprocessors for what copy engines can do: all-gathers between memory of [`Nccl::arena`].
    pub zero_cta: bool,
}

/// This rank's seat among the ranks that met under one id.
///
/// A collective stops the host until NCCL has queued it, which takes a thread's start; for the first of its kind NCCL also
/// connects the ranks, so it is queued only when all have called it.
pub struct Nccl {
    communicator: Arc<Communicator>,
    rank: usize,
    world_size: usize,
}

impl NcclId {
    /// Opens a port of this process, at which the other ranks will ask for their neighbours.
    pub fn new(context: &Arc<Context>) -> Result<NcclId> {
        let nccl = context.libraries.nccl()?;
        context.driver()?;
        let mut id = NcclUniqueId([0; 128]);
        // SAFETY: writes the 128 bytes that there are.
        let code = unsafe { (nccl.ncclGetUniqueId)(&mut id) };
        // SAFETY: returns a static text for every number.
        let name = |code| foreign::text(unsafe { (nccl.ncclGetErrorString)(code) });
        foreign::check("ncclGetUniqueId", code, name)?;
        Ok(NcclId(id.0))
    }

    pub fn to_bytes(&self) -> [u8; 128] {
        self.0
    }

    pub fn from_bytes(bytes: [u8; 128]) -> NcclId {
        NcclId(bytes)
    }
}

/// Elements that a collective reads or writes. They lie in `block`.
#[derive(Clone, Copy)]
struct Span<'a> {
    block: &'a Block,
    address: u64,
    dtype: DType,
    len: usize,
}

impl Span<'_> {
    fn seen<'a>(what: &'static str, tensor: &'a Tensor) -> Result<Span<'a>> {
        let region = tensor.region(what)?;
        let (dtype, len) = (tensor.dtype(), tensor.num_elements());
        Ok(Span { block: &region.block, address: region.address(), dtype, len })
    }

    fn whole(buffer: &DeviceBuffer) -> Span<'_> {
        Span { block: buffer.block(), address: buffer.address(), dtype: buffer.dtype(), len: buffer.num_elements() }
    }

    fn of<'a>(what: &'static str, buffer: &'a DeviceBuffer, elements: Range<usize>) -> Result<Span<'a>> {
        must_hold(what, &elements, buffer.num_elements())?;
        let address = buffer.address() + (buffer.dtype().size() * elements.start as u64).0;
        Ok(Span { address, len: elements.len(), ..Span::whole(buffer) })
    }

    fn pointer(&self) -> *mut c_void {
        self.address as *mut c_void
    }
}

impl Nccl {
    /// Fails with what to install where the library is missing.
    pub fn must_be_there(context: &Context) -> Result<()> {
        context.libraries.nccl().map(|_| ())
    }

    /// Stops the host until all ranks have met. Fails when they have not after the device's patience.
    pub fn new(
        device: &Arc<CudaDevice>,
        id: &NcclId,
        rank: usize,
        world_size: usize,
        settings: Settings,
    ) -> Result<Nccl> {
        if rank >= world_size {
            let problem = format!("found rank {rank}, expected one below {world_size}");
            return Err(DeviceError::Value { what: "communicator between GPUs", problem });
        }
        let config = NcclConfig::not_blocking(settings.max_ctas, settings.zero_cta);
        let (id, seat) = (NcclUniqueId(id.0), (rank, world_size));
        let communicator = Communicator::new(device.context(), id, seat, config, device.patience())?;
        Ok(Nccl { communicator: Arc::new(communicator), rank, world_size })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Queues on `stream`: `full` becomes the shards of all ranks, one behind the other.
    pub fn all_gather(&self, shard: &Tensor, full: &mut DeviceBuffer, stream: &Arc<Stream>) -> Result<()> {
        const WHAT: &str = "all-gather between GPUs";
        full.must_be_alone(WHAT)?;
        self.gather(WHAT, (Span::seen(WHAT, shard)?, Span::whole(full)), stream)
    }

    /// As [`Nccl::all_gather`], of elements of larger buffers: elements `to` of `full` become elements `from` of all ranks'
    /// `shard`. Other streams leave both alone until `stream` is done with them.
    pub fn all_gather_part(
        &self,
        (shard, from): (&DeviceBuffer, Range<usize>),
        (full, to): (&mut DeviceBuffer, Range<usize>),
        stream: &Arc<Stream>,
    ) -> Result<()> {
        const WHAT: &str = "all-gather of a part between GPUs";
        full.must_be_alone(WHAT)?;
        self.gather(WHAT, (Span::of(WHAT, shard, from)?, Span::of(WHAT, full, to)?), stream)
    }

    /// Nobody but this call looks at the elements of `to`.
    fn gather(&self, what: &'static str, (from, to): (Span, Span), stream: &Arc<Stream>) -> Result<()> {
        same_dtype(what, from.dtype, to.dtype)?;
        parts_make_whole(what, (from.len, to.len), self.world_size)?;
        self.meet(&[from.block, to.block], stream)?;
        let bytes = (from.dtype.size() * from.len as u64).0 as usize;
        if bytes == 0 {
            return Ok(());
        }
        self.communicator.call("ncclAllGather", |nccl, raw| {
            // SAFETY: spans lie in their blocks, and the lengths were checked above; nobody looks at `to`, so the two do not
            // overlap; both blocks were told of the stream and stay until it is done with them.
            unsafe { (nccl.ncclAllGather)(from.pointer(), to.pointer(), bytes, BYTES, raw, stream.raw()) }
        })
    }

    /// Queues on `stream`: `part` becomes this rank's part of the sum of all ranks' `full`; f32 or bf16.
    pub fn reduce_scatter(&self, full: &Tensor, part: &mut DeviceBuffer, stream: &Arc<Stream>) -> Result<()> {
        const WHAT: &str = "reduce-scatter between GPUs";
        part.must_be_alone(WHAT)?;
        self.scatter(WHAT, (Span::seen(WHAT, full)?, Span::whole(part)), stream)
    }

    /// As [`Nccl::reduce_scatter`], of elements of larger buffers: elements `to` of `part` become this rank's part of the
    /// sum of elements `from` of all ranks' `full`. Meanwhile the other elements of `full` may be written. Those of `from`
    /// are final: whatever wrote them comes before this on `stream`, and nothing writes them before `stream` is done.
    pub fn reduce_scatter_part(
        &self,
        (full, from): (&DeviceBuffer, Range<usize>),
        (part, to): (&mut DeviceBuffer, Range<usize>),
        stream: &Arc<Stream>,
    ) -> Result<()> {
        const WHAT: &str = "reduce-scatter of a part between GPUs";
        part.must_be_alone(WHAT)?;
        self.scatter(WHAT, (Span::of(WHAT, full, from)?, Span::of(WHAT, part, to)?), stream)
    }

    /// Nobody but this call looks at the elements of `to`.
    fn scatter(&self, what: &'static str, (from, to): (Span, Span), stream: &Arc<Stream>) -> Result<()> {
        same_dtype(what, from.dtype, to.dtype)?;
        let dtype = summed(what, from.dtype)?;
        parts_make_whole(what, (to.len, from.len), self.world_size)?;
        self.meet(&[from.block, to.block], stream)?;
        if to.len == 0 {
            return Ok(());
        }
        self.communicator.call("ncclReduceScatter", |nccl, raw| {
            // SAFETY: as in `gather`. NCCL reads `from` and nothing else of its block, so kernels may write the rest. The host
            // queues none that write `from` meanwhile: those elements are final. Were one queued all the same, the sums would
            // be wrong numbers in memory that is still there.
            unsafe { (nccl.ncclReduceScatter)(from.pointer(), to.pointer(), to.len, dtype, SUM, raw, stream.raw()) }
        })
    }

    /// Queues on `stream`: `sum` becomes the sum of all ranks' `values`; f32 or bf16.
    pub fn all_reduce(&self, values: &Tensor, sum: &mut DeviceBuffer, stream: &Arc<Stream>) -> Result<()> {
        const WHAT: &str = "all-reduce between GPUs";
        sum.must_be_alone(WHAT)?;
        let (from, to) = (Span::seen(WHAT, values)?, Span::whole(sum));
        same_dtype(WHAT, from.dtype, to.dtype)?;
        let dtype = summed(WHAT, from.dtype)?;
        parts_make_whole(WHAT, (from.len, to.len), 1)?;
        self.meet(&[from.block, to.block], stream)?;
        if to.len == 0 {
            return Ok(());
        }
        self.communicator.call("ncclAllReduce", |nccl, raw| {
            // SAFETY: as in `gather`, for `sum`.
            unsafe { (nccl.ncclAllReduce)(from.pointer(), to.pointer(), to.len, dtype, SUM, raw, stream.raw()) }
        })
    }

    /// An arena in one of NCCL's windows. With [`Settings::zero_cta`], an all-gather from one such arena to another takes
    /// no multiprocessors, where shard and result lie equally far from the beginnings of their arenas on all ranks. Every
    /// rank calls this at the same point with the same number of bytes. Other processes cannot map it by its handle.
    pub fn arena(&self, name: &'static str, bytes: ByteCount, home: &Arc<Stream>) -> Result<Arena> {
        // What a window must begin and end at.
        const PAGE: usize = 4096;
        self.meet(&[], home)?;
        let bytes = (bytes.0 as usize).next_multiple_of(PAGE);
        let memory = WindowMemory::new(&self.communicator, bytes)?;
        // SAFETY: the memory was just allocated for this arena alone, on the GPU of `home` (checked above), and stays until
        // it is dropped.
        Ok(unsafe { Arena::over(name, (memory.address(), bytes), home, Box::new(memory)) })
    }

    /// Every rank calls it when all have come to a good end. Dropped without, it is left to the end of the process.
    pub fn leave(&self) {
        self.communicator.leave();
    }

    /// Fails when something went wrong since the last call, with what NCCL noted about it. Does not wait.
    pub fn check(&self) -> Result<()> {
        self.communicator.check()
    }

    /// All blocks of a collective lie on the communicator's GPU, and learn of its stream.
    fn meet(&self, blocks: &[&Block], stream: &Arc<Stream>) -> Result<()> {
        let context = self.communicator.context();
        let is_here = |found: &Arc<Context>| Arc::ptr_eq(found, context);
        if !is_here(stream.context()) || !blocks.iter().all(|block| is_here(block.context())) {
            let problem = "found memory or a stream of another device".to_string();
            return Err(DeviceError::Value { what: "collective between GPUs", problem });
        }
        blocks.iter().for_each(|block| block.fence_when_dropped(stream));
        Ok(())
    }
}

fn must_hold(what: &'static str, elements: &Range<usize>, num_elements: usize) -> Result<()> {
    if elements.start <= elements.end && elements.end <= num_elements {
        return Ok(());
    }
    let problem = format!("found elements {elements:?}, expected at most {num_elements}");
    Err(DeviceError::Value { what, problem })
}

fn same_dtype(what: &'static str, found: DType, expected: DType) -> Result<()> {
    if found == expected { Ok(()) } else { Err(DeviceError::DType { what, found, expected }) }
}

/// NCCL's number of an element type that is summed.
fn summed(what: &'static str, found: DType) -> Result<c_int> {
    match found {
        DType::F32 => Ok(FLOAT32),
        DType::BF16 => Ok(BFLOAT16),
        found => Err(DeviceError::DType { what, found, expected: DType::F32 }),
    }
}

fn parts_make_whole(what: &'static str, (part, whole): (usize, usize), world_size: usize) -> Result<()> {
    if part.checked_mul(world_size) == Some(whole) {
        return Ok(());
    }
    let problem = format!("found {whole} elements in all, expected those of {world_size} parts of {part}");
    Err(DeviceError::Value { what, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_arrives_as_it_was_sent() {
        let bytes = std::array::from_fn(|index| index as u8);
        assert_eq!(NcclId::from_bytes(bytes).to_bytes(), bytes);
    }

    #[test]
    fn only_equal_parts_of_the_whole_are_taken() {
        assert!(parts_make_whole("test", (3, 24), 8).is_ok());
        assert!(parts_make_whole("test", (0, 0), 8).is_ok());
        for (part, whole) in [(3, 23), (3, 25), (4, 24), (usize::MAX, 8)] {
            let error = parts_make_whole("test", (part, whole), 8).unwrap_err().to_string();
            assert!(error.contains(&format!("8 parts of {part}")), "{error}");
        }
    }

    #[test]
    fn only_elements_that_are_there_are_taken() {
        for within in [0..0, 0..8, 3..3, 3..8, 8..8] {
            assert!(must_hold("test", &within, 8).is_ok(), "{within:?}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        for beyond in [0..9, 8..9, 9..9, 5..3, 9..0, 0..usize::MAX] {
            let error = must_hold("test", &beyond, 8).unwrap_err().to_string();
            assert!(error.contains(&format!("elements {beyond:?}, expected at most 8")), "{error}");
        }
    }

    #[test]
    fn only_floating_point_is_summed() {
        assert_eq!((summed("test", DType::F32).unwrap(), summed("test", DType::BF16).unwrap()), (7, 9));
        assert!(summed("test", DType::U32).is_err());
        assert!(same_dtype("test", DType::F32, DType::BF16).is_err());
    }
}

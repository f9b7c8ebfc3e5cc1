//! Memory of other processes' GPUs, mapped into this one: copy engines pull parts out of it or push them into it, and streams
//! of several processes wait for each other by flags. Which process is which is not known here.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cudarc::driver::sys::{
    CUdeviceptr, CUipcMem_flags, CUipcMemHandle, CUstreamWaitValue_flags, CUstreamWriteValue_flags,
};
use scout_core::ByteCount;

use super::arena::{Arena, Block};
use super::context::Context;
use super::device::CudaDevice;
use super::memory::DeviceBuffer;
use super::stream::Stream;
use crate::tensor::Tensor;
use crate::{DeviceError, Purpose, Result};

const FLAG: u64 = size_of::<u32>() as u64;

/// By what another process of this host maps an arena. Good for as long as the arena lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ArenaHandle([u8; 64]);

impl ArenaHandle {
    pub fn to_bytes(&self) -> [u8; 64] {
        self.0
    }

    pub fn from_bytes(bytes: [u8; 64]) -> ArenaHandle {
        ArenaHandle(bytes)
    }

    fn to_raw(self) -> CUipcMemHandle {
        CUipcMemHandle { reserved: self.0.map(|byte| byte as _) }
    }

    fn from_raw(raw: CUipcMemHandle) -> ArenaHandle {
        ArenaHandle(raw.reserved.map(|byte| byte as u8))
    }
}

impl Arena {
    /// To be told to other processes of this host. The arena must outlive their mappings of it.
    pub fn handle(&self) -> Result<ArenaHandle> {
        let context = self.home().context();
        let mut raw = CUipcMemHandle { reserved: [0; 64] };
        let driver = context.driver()?;
        // SAFETY: writes one handle; the driver refuses what is not a plain allocation.
        let code = unsafe { (driver.cuIpcGetMemHandle)(&mut raw, self.base()) };
        context.check("cuIpcGetMemHandle", code)?;
        Ok(ArenaHandle::from_raw(raw))
    }
}

/// An arena of another process, mapped. Dropping it waits, for some seconds at most, for copies out of it and into it.
pub struct PeerArena {
    context: Arc<Context>,
    base: CUdeviceptr,
    capacity: ByteCount,
    /// Streams that were given work on it.
    visitors: Mutex<Vec<Arc<Stream>>>,
}

impl PeerArena {
    /// `capacity` is that of the arena behind `handle`, which must be on another process's side: a process cannot map its
    /// own. Fails where the two GPUs cannot reach each other.
    pub fn open(context: &Arc<Context>, handle: &ArenaHandle, capacity: ByteCount) -> Result<PeerArena> {
        let flags = CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut base: CUdeviceptr = 0;
        let driver = context.driver()?;
        // SAFETY: writes one address; the driver refuses handles that are not its own.
        let code = unsafe { (driver.cuIpcOpenMemHandle_v2)(&mut base, handle.to_raw(), flags) };
        context.check("cuIpcOpenMemHandle", code)?;
        Ok(PeerArena { context: context.clone(), base, capacity, visitors: Mutex::new(Vec::new()) })
    }

    pub fn capacity(&self) -> ByteCount {
        self.capacity
    }

    /// Queues on `stream` that flag `index` of the peer becomes `value`. What was queued on `stream` before is done, and
    /// seen by whoever sees the flag.
    pub fn write_flag(&self, index: usize, value: u32, stream: &Arc<Stream>) -> Result<()> {
        const WHAT: &str = "flag of another GPU";
        let offset = FLAG.saturating_mul(index as u64);
        must_lie_within(WHAT, (offset, FLAG), self.capacity)?;
        self.note_visitor(WHAT, stream)?;
        // Without further flags the driver puts a barrier of the whole system before the write.
        let flags = CUstreamWriteValue_flags::CU_STREAM_WRITE_VALUE_DEFAULT as u32;
        let driver = self.context.driver()?;
        // SAFETY: the flag lies in the mapping (checked above), which stays until the stream is done with it.
        let code = unsafe { (driver.cuStreamWriteValue32_v2)(stream.raw(), self.base + offset, value, flags) };
        self.context.check("cuStreamWriteValue32", code)
    }

    /// Queues on `stream` that the peer's bytes from byte `offset` on become those of `part`. Takes no multiprocessor. The
    /// peer's side must have said that it expects them, and has to be told when they are there.
    pub fn push(&self, offset: ByteCount, part: &Tensor, stream: &Arc<Stream>) -> Result<()> {
        const WHAT: &str = "copy to another GPU";
        let region = part.region(WHAT)?;
        let bytes = part.bytes().0;
        must_lie_within(WHAT, (offset.0, bytes), self.capacity)?;
        must_be_same(WHAT, region.block.context(), &self.context)?;
        self.note_visitor(WHAT, stream)?;
        region.block.fence_when_dropped(stream);
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.base + offset.0, region.address());
        let driver = self.context.driver()?;
        // SAFETY: both ranges were checked above; the block and the mapping stay until the stream is done with them. That
        // nobody over there uses the memory meanwhile is what the peer has said.
        let code = unsafe { (driver.cuMemcpyAsync)(to, from, bytes as usize, stream.raw()) };
        self.context.check("cuMemcpyAsync", code)
    }

    /// Notes that `stream` gets work on the mapping. Fails for streams of another GPU.
    fn note_visitor(&self, what: &'static str, stream: &Arc<Stream>) -> Result<()> {
        must_be_same(what, stream.context(), &self.context)?;
        let mut visitors = self.visitors.lock().expect("no holder of this lock panics");
        if !visitors.iter().any(|visitor| Arc::ptr_eq(visitor, stream)) {
            visitors.push(stream.clone());
        }
        Ok(())
    }
}

impl Drop for PeerArena {
    fn drop(&mut self) {
        const FAREWELL: Duration = Duration::from_secs(5);
        let visitors = self.visitors.get_mut().map(std::mem::take).unwrap_or_default();
        // Where work on it does not come to an end, the mapping stays until the process ends.
        if visitors.iter().all(|stream| stream.finish(FAREWELL).is_ok())
            && let Ok(driver) = self.context.driver()
        {
            // SAFETY: mapped in `open`, closed once; all work on it is done.
            let _ = unsafe { (driver.cuIpcCloseMemHandle)(self.base) };
        }
    }
}

impl DeviceBuffer {
    /// Queues on `stream` that `elements` become the bytes of `from` from byte `offset` on. Takes no multiprocessor. Other
    /// streams have to wait for an event of `stream`; the peer's side must hold still until then.
    pub fn pull(
        &mut self,
        elements: Range<usize>,
        from: &PeerArena,
        offset: ByteCount,
        stream: &Arc<Stream>,
    ) -> Result<()> {
        const WHAT: &str = "copy from another GPU";
        self.must_be_alone(WHAT)?;
        let (before, bytes) = byte_range(WHAT, &elements, self.num_elements(), self.dtype().size())?;
        must_lie_within(WHAT, (offset.0, bytes), from.capacity)?;
        must_be_same(WHAT, self.block().context(), &from.context)?;
        from.note_visitor(WHAT, stream)?;
        self.block().fence_when_dropped(stream);
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.address() + before, from.base + offset.0);
        let context = stream.context();
        let driver = context.driver()?;
        // The driver is not told whose memory it is: it knows that of every address, mapped ones included.
        // SAFETY: both ranges were checked above; nobody looks at this buffer; the block and the mapping stay until the
        // stream is done with them.
        let code = unsafe { (driver.cuMemcpyAsync)(to, from, bytes as usize, stream.raw()) };
        context.check("cuMemcpyAsync", code)
    }
}

impl Tensor {
    /// To be called when all that is to be pushed of the tensor is queued on `stream`: once that is done its memory may be used
    /// again, whatever else `stream` was given by then.
    pub fn is_pushed(&self, stream: &Arc<Stream>) -> Result<()> {
        self.region("copy to another GPU")?.block.fence_now(stream)
    }

    /// Bytes from the beginning of `arena` to the first element. Fails when the tensor does not lie in it.
    pub fn offset_in(&self, arena: &Arena) -> Result<ByteCount> {
        const WHAT: &str = "place of a tensor in an arena";
        let region = self.region(WHAT)?;
        if !arena.holds(&region.block) {
            let problem = "found a tensor in other memory".to_string();
            return Err(DeviceError::Value { what: WHAT, problem });
        }
        Ok(ByteCount(region.address() - arena.base()))
    }
}

/// Numbers on this GPU that peers raise, and for which streams of this process wait. All begin at 0.
pub struct Flags {
    block: Block,
    arena: Arena,
    count: usize,
}

impl Flags {
    /// Stops the host until the flags are 0, so that no peer can write before.
    pub fn new(device: &Arc<CudaDevice>, count: usize) -> Result<Flags> {
        let bytes = ByteCount(FLAG * count.max(1) as u64);
        let home = device.compute();
        let arena = device.arena("flags", Purpose::Workspace, bytes, home)?;
        // The first block begins where the arena begins.
        let block = arena.take(Purpose::Workspace, bytes.0 as usize)?;
        block.fill(0)?;
        home.finish(device.patience())?;
        Ok(Flags { block, arena, count })
    }

    pub fn handle(&self) -> Result<ArenaHandle> {
        self.arena.handle()
    }

    /// What a peer gives as the capacity.
    pub fn bytes(&self) -> ByteCount {
        self.arena.capacity()
    }

    /// Queues on `stream`: work queued from now on begins when flag `index` is `at_least` or more. The host does not stop,
    /// and the stream waits for ever where nobody raises the flag: whoever waits for the stream has the deadline.
    pub fn wait_for(&self, index: usize, at_least: u32, stream: &Arc<Stream>) -> Result<()> {
        const WHAT: &str = "flag to wait for";
        if index >= self.count {
            let problem = format!("found flag {index}, expected one below {}", self.count);
            return Err(DeviceError::Value { what: WHAT, problem });
        }
        let context = self.block.context();
        must_be_same(WHAT, stream.context(), context)?;
        self.block.fence_when_dropped(stream);
        let address = self.block.address() + FLAG * index as u64;
        // The comparison is that of a difference with its sign, so flags may pass the largest number and begin again.
        let at_least_flag = CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // What came before the flag must be seen after it. Where the GPU may put writes of others in another order, it can be
        // told to finish them; where it cannot be told, it keeps the order that the peer's barrier gave them.
        let flush = CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_FLUSH as u32;
        let flags = at_least_flag | if context.properties.flushes_remote_writes { flush } else { 0 };
        let driver = context.driver()?;
        // SAFETY: the flag lies in the block (checked above), which stays until the stream is done with it.
        let code = unsafe { (driver.cuStreamWaitValue32_v2)(stream.raw(), address, at_least, flags) };
        context.check("cuStreamWaitValue32", code)
    }
}

impl Drop for Flags {
    fn drop(&mut self) {
        // Peers may have them mapped longer than we need them. They stay until the process ends, the 2 MiB that the driver gives
        // at least.
        std::mem::forget(self.arena.clone());
    }
}

fn must_be_same(what: &'static str, found: &Arc<Context>, expected: &Arc<Context>) -> Result<()> {
    match Arc::ptr_eq(found, expected) {
        true => Ok(()),
        false => {
            let problem = "found memory or a stream of another device".to_string();
            Err(DeviceError::Value { what, problem })
        }
    }
}

/// The bytes before `elements`, and of them, in a buffer of `num_elements`.
fn byte_range(
    what: &'static str,
    elements: &Range<usize>,
    num_elements: usize,
    element: ByteCount,
) -> Result<(u64, u64)> {
    if elements.start > elements.end || elements.end > num_elements {
        let problem = format!("found elements {elements:?}, expected at most {num_elements}");
        return Err(DeviceError::Value { what, problem });
    }
    Ok(((element * elements.start as u64).0, (element * elements.len() as u64).0))
}

fn must_lie_within(what: &'static str, (offset, bytes): (u64, u64), capacity: ByteCount) -> Result<()> {
    if offset.checked_add(bytes).is_some_and(|end| end <= capacity.0) {
        return Ok(());
    }
    let problem = format!("found {bytes} bytes from byte {offset} on, expected them within {} bytes", capacity.0);
    Err(DeviceError::Value { what, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_arrives_as_it_was_sent() {
        let bytes = std::array::from_fn(|index| 255 - index as u8);
        let handle = ArenaHandle::from_bytes(bytes);
        assert_eq!(handle.to_bytes(), bytes);
        assert_eq!(ArenaHandle::from_raw(handle.to_raw()).to_bytes(), bytes);
    }

    #[test]
    fn elements_are_counted_in_bytes_and_stay_within_the_buffer() {
        let range = |elements: Range<usize>| byte_range("test", &elements, 10, ByteCount(2));
        assert_eq!(range(3..7).unwrap(), (6, 8));
        assert_eq!(range(0..10).unwrap(), (0, 20));
        assert_eq!(range(10..10).unwrap(), (20, 0));
        let (outside, backwards) = (range(3..11).unwrap_err(), range(Range { start: 5, end: 4 }).unwrap_err());
        assert!(outside.to_string().contains("found elements 3..11, expected at most 10"), "{outside}");
        assert!(backwards.to_string().contains("5..4"), "{backwards}");
    }

    #[test]
    fn nothing_is_read_behind_the_end_of_a_peers_arena() {
        let within = |offset, bytes| must_lie_within("test", (offset, bytes), ByteCount(512));
        assert!(within(0, 512).is_ok() && within(512, 0).is_ok() && within(508, 4).is_ok());
        for (offset, bytes) in [(509, 4), (0, 513), (513, 0), (u64::MAX, 4), (4, u64::MAX)] {
            let error = within(offset, bytes).unwrap_err().to_string();
            assert!(error.contains("within 512 bytes"), "{error}");
        }
    }
}

//! Arenas: one plain allocation each, out of which blocks are taken and given back without asking the driver.
//!
//! An arena belongs to one stream, its home. A block that is dropped may be taken again at once, while the kernels that
//! use it are still queued: the next user's work is queued behind them on the same stream. Streams other than home that
//! used a block leave an event, and home waits for it before the memory is used again. The host never waits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cudarc::driver::sys::CUdeviceptr;
use scout_core::ByteCount;

use super::context::Context;
use super::free_list::{FreeList, Taken};
use super::stream::{Event, Stream};
use crate::{DeviceError, Lease, Purpose, Result};

/// Clones are the same arena.
#[derive(Clone)]
pub struct Arena {
    memory: Arc<Memory>,
}

struct Memory {
    context: Arc<Context>,
    name: &'static str,
    base: CUdeviceptr,
    home: Arc<Stream>,
    free: Mutex<FreeList<Arc<Event>>>,
    /// Who frees the memory when dropped; the driver where there is none.
    owner: Option<Box<dyn Send + Sync>>,
}

/// A part of an arena. Dropping it gives the memory to whoever takes next, in the order of the streams.
pub struct Block {
    memory: Arc<Memory>,
    start: usize,
    bytes: usize,
    lease: Lease,
    visitors: Mutex<Visitors>,
}

/// Who other than home uses a block.
#[derive(Default)]
struct Visitors {
    /// Streams that may be given work on it as long as it is held.
    streams: Vec<Arc<Stream>>,
    /// What was queued on other streams is done when these are past.
    fences: Vec<Arc<Event>>,
}

impl Arena {
    /// Blocks begin at multiples of so many bytes, so whole-line accesses and every alignment that cuBLASLt knows are
    /// possible.
    pub const GRAIN: usize = 512;

    /// Asks the driver for `bytes`. The account sees what is taken from the arena, not the arena.
    pub fn new(
        context: &Arc<Context>,
        name: &'static str,
        purpose: Purpose,
        bytes: usize,
        home: &Arc<Stream>,
    ) -> Result<Arena> {
        let bytes = bytes.next_multiple_of(Arena::GRAIN);
        let base = context.allocate(purpose, bytes)?;
        let free = Mutex::new(FreeList::new(bytes));
        let memory = Memory { context: context.clone(), name, base, home: home.clone(), free, owner: None };
        Ok(Arena { memory: Arc::new(memory) })
    }

    /// An arena in memory that `owner` allocated, `bytes` from `base` on, and frees when it is dropped.
    ///
    /// # Safety
    ///
    /// The bytes lie on the GPU of `home`, nobody else uses them, and they stay until `owner` is dropped.
    pub(super) unsafe fn over(
        name: &'static str,
        (base, bytes): (CUdeviceptr, usize),
        home: &Arc<Stream>,
        owner: Box<dyn Send + Sync>,
    ) -> Arena {
        // What lies behind the last whole grain is not used: a block never ends after the arena.
        let (free, context) = (Mutex::new(FreeList::new(bytes / Arena::GRAIN * Arena::GRAIN)), home.context().clone());
        let memory = Memory { context, name, base, home: home.clone(), free, owner: Some(owner) };
        Arena { memory: Arc::new(memory) }
    }

    pub fn capacity(&self) -> ByteCount {
        ByteCount(self.memory.lock().capacity() as u64)
    }

    pub fn in_use(&self) -> ByteCount {
        let free = self.memory.lock();
        ByteCount((free.capacity() - free.free()) as u64)
    }

    /// Where the arena begins: what another process maps.
    pub fn base(&self) -> u64 {
        self.memory.base
    }

    pub fn home(&self) -> &Arc<Stream> {
        &self.memory.home
    }

    pub(super) fn holds(&self, block: &Block) -> bool {
        Arc::ptr_eq(&self.memory, &block.memory)
    }

    /// Takes `bytes`, whose contents are arbitrary. Fails with a table of where the bytes are when they do not fit.
    pub fn take(&self, purpose: Purpose, bytes: usize) -> Result<Block> {
        self.take_by(purpose, bytes, FreeList::take)
    }

    /// The same of the bytes from byte `start` of the arena on, a whole number of grains. Fails where not all of them are free.
    pub fn take_at(&self, purpose: Purpose, start: usize, bytes: usize) -> Result<Block> {
        debug_assert_eq!(start % Arena::GRAIN, 0);
        self.take_by(purpose, bytes, |free, bytes| free.take_at(start, bytes))
    }

    fn take_by(
        &self,
        purpose: Purpose,
        bytes: usize,
        take: impl FnOnce(&mut FreeList<Arc<Event>>, usize) -> Option<Taken<Arc<Event>>>,
    ) -> Result<Block> {
        let memory = &self.memory;
        let bytes = bytes.next_multiple_of(Arena::GRAIN);
        let lease = memory.context.account.lease(purpose, ByteCount(bytes as u64))?;
        let taken = {
            let mut free = memory.lock();
            // A failed event is kept: waiting for it reports the failure.
            free.retain_fences(|fence| !fence.is_past().unwrap_or(false));
            take(&mut free, bytes).ok_or_else(|| memory.full(purpose, bytes, &free))
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(full) => {
                // On a lost GPU blocks that are dropped cannot be given back: then that is what has to be told.
                memory.home.record()?;
                return Err(full);
            }
        };
        let block = Block { memory: memory.clone(), start: taken.start, bytes, lease, visitors: Mutex::default() };
        for fence in taken.fences {
            memory.home.wait_for(&fence)?;
        }
        if memory.context.poisons() {
            block.fill(0xff)?;
        }
        Ok(block)
    }
}

impl Memory {
    fn lock(&self) -> std::sync::MutexGuard<'_, FreeList<Arc<Event>>> {
        self.free.lock().expect("no holder of this lock panics")
    }

    fn full(&self, purpose: Purpose, bytes: usize, free: &FreeList<Arc<Event>>) -> DeviceError {
        let count = |bytes: usize| ByteCount(bytes as u64);
        let mut table = self.context.account.table();
        table.push_str(&format!(
            "\n{}: {} in all, {} free, the longest free run is {}",
            self.name,
            count(free.capacity()),
            count(free.free()),
            count(free.largest())
        ));
        DeviceError::OutOfMemory {
            purpose: purpose.name().to_string(),
            wanted: count(bytes),
            in_use: count(free.capacity() - free.free()),
            budget: count(free.capacity()),
            table,
        }
    }
}

impl Block {
    /// Where it begins, on the device.
    pub(crate) fn address(&self) -> u64 {
        self.memory.base + self.start as u64
    }

    /// Bytes from its beginning that may be used.
    pub fn bytes(&self) -> ByteCount {
        self.lease.bytes()
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.memory.context
    }

    /// To be called with every stream that is given work on this block: before the memory is used again, home waits
    /// for what was queued on `stream` until the block is dropped. Costs nothing for home itself.
    pub(crate) fn fence_when_dropped(&self, stream: &Arc<Stream>) {
        if Arc::ptr_eq(stream, &self.memory.home) {
            return;
        }
        let mut visitors = self.visitors.lock().expect("no holder of this lock panics");
        if !visitors.streams.iter().any(|visitor| Arc::ptr_eq(visitor, stream)) {
            visitors.streams.push(stream.clone());
        }
    }

    /// To be called, instead or later, when `stream` was given all the work on this block that it will get: home does not wait
    /// for what is queued there after that.
    pub(super) fn fence_now(&self, stream: &Arc<Stream>) -> Result<()> {
        if !Arc::ptr_eq(stream, &self.memory.home) {
            let fence = Arc::new(stream.record()?);
            let mut visitors = self.visitors.lock().expect("no holder of this lock panics");
            visitors.streams.retain(|visitor| !Arc::ptr_eq(visitor, stream));
            visitors.fences.retain(|fence| !fence.is_past().unwrap_or(false));
            visitors.fences.push(fence);
        }
        Ok(())
    }

    /// Queues on home: every byte becomes `value`.
    pub(super) fn fill(&self, value: u8) -> Result<()> {
        self.fill_on(&self.memory.home, value)
    }

    /// As [`Block::fill`], on another stream, which has to wait for whatever was queued on the block before.
    pub(super) fn fill_on(&self, stream: &Arc<Stream>, value: u8) -> Result<()> {
        self.fence_when_dropped(stream);
        if self.bytes == 0 {
            return Ok(());
        }
        let context = &self.memory.context;
        let driver = context.driver()?;
        // SAFETY: the block owns these bytes of the arena's allocation until it is dropped, and its next owner's work is
        // queued behind, or waits for, what `stream` was given.
        let code = unsafe { (driver.cuMemsetD8Async)(self.address(), value, self.bytes, stream.raw()) };
        context.check("cuMemsetD8Async", code)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Visitors { streams, fences } = self.visitors.get_mut().map(std::mem::take).unwrap_or_default();
        let of_streams = streams.iter().map(|stream| stream.record().map(Arc::new));
        let fences: Result<Vec<Arc<Event>>> = fences.into_iter().map(Ok).chain(of_streams).collect();
        // Without its events nobody could know when the memory is free: it is lost then, and the context probably too.
        if let (Ok(fences), Ok(mut free)) = (fences, self.memory.free.lock()) {
            free.give(self.start, self.bytes, fences);
        }
    }
}

impl Memory {
    /// Waits, for some seconds at most, for all work that was queued on blocks of the arena.
    fn becomes_idle(&mut self) -> bool {
        const FAREWELL: Duration = Duration::from_secs(5);
        let Ok(free) = self.free.get_mut() else { return false };
        let mut is_idle = self.home.finish(FAREWELL).is_ok();
        free.retain_fences(|fence| {
            is_idle = is_idle && fence.wait(FAREWELL).is_ok();
            !is_idle
        });
        is_idle
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Owners do not wait for work under way, and the driver does without a deadline. Lost rather than freed under the GPU's hands.
        match (self.becomes_idle(), self.owner.take()) {
            (true, Some(owner)) => drop(owner),
            (true, None) => self.context.free(self.base),
            (false, owner) => std::mem::forget(owner),
        }
    }
}

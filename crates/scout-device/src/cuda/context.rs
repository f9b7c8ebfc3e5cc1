//! The driver's context of one GPU: what the GPU is, plain allocations, and the check of every answer. The context is
//! made current on whatever thread calls; streams, memory and kernels are built on it.

use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr};
use scout_core::ByteCount;

use super::foreign::{self, Code, text};
use super::libraries::Libraries;
use super::tables::Driver;
use crate::{Account, DeviceError, Purpose, Result};

/// What the driver says of a GPU.
#[derive(Debug, Clone)]
pub struct Properties {
    pub name: String,
    /// 90 for compute capability 9.0.
    pub architecture: u32,
    pub num_multiprocessors: u32,
    pub memory: ByteCount,
    /// The most dynamic shared memory that a block may ask for.
    pub shared_memory_per_block: u32,
    pub pci_bus_id: String,
    /// Whether a stream can be told to finish what other devices have written here.
    pub flushes_remote_writes: bool,
}

/// A GPU's primary context, kept until the last user of it is gone.
pub struct Context {
    pub libraries: Libraries,
    pub properties: Properties,
    pub account: Account,
    device: CUdevice,
    raw: CUcontext,
    /// Plain allocations so far, of device and of pinned host memory.
    num_allocations: AtomicU64,
    /// How many steps that must not allocate are under way.
    num_steady: AtomicU32,
    /// Whether fresh memory is filled with not-a-numbers.
    poison: AtomicBool,
}

// SAFETY: the driver's functions may be called from any thread; a context may be current on many threads at once.
unsafe impl Send for Context {}
// SAFETY: as above; everything of ours inside is atomic or never changes.
unsafe impl Sync for Context {}

thread_local! {
    /// The context that this program made current on this thread last.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// While it lives, asking the driver for memory is an error: a steady step takes all it needs from arenas.
#[must_use = "dropping it ends the steady step"]
pub struct SteadyStep {
    context: Arc<Context>,
}

impl Context {
    /// The GPU at `ordinal` among those that the driver shows to this process; where it shows one alone, that one: a
    /// launcher that hands each rank a GPU hides the others.
    pub fn open(libraries: Libraries, ordinal: u32, account: Account) -> Result<Context> {
        let driver = libraries.driver;
        // SAFETY: flags must be 0; may be called any number of times.
        check(&driver, "cuInit", unsafe { (driver.cuInit)(0) })?;
        let mut count = 0;
        // SAFETY: writes one number.
        check(&driver, "cuDeviceGetCount", unsafe { (driver.cuDeviceGetCount)(&mut count) })?;
        let ordinal = if count == 1 { 0 } else { ordinal };
        if ordinal as i64 >= i64::from(count) {
            return Err(DeviceError::Unavailable {
                wanted: "cuda".to_string(),
                reason: format!("found {count} GPUs, expected one with number {ordinal} (from 0)"),
            });
        }
        let mut device: CUdevice = 0;
        // SAFETY: writes one number; the ordinal was checked above.
        check(&driver, "cuDeviceGet", unsafe { (driver.cuDeviceGet)(&mut device, ordinal as c_int) })?;
        let mut raw: CUcontext = null_mut();
        // SAFETY: writes one pointer; `device` comes from the driver.
        let code = unsafe { (driver.cuDevicePrimaryCtxRetain)(&mut raw, device) };
        check(&driver, "cuDevicePrimaryCtxRetain", code)?;
        let properties = Properties {
            name: String::new(),
            architecture: 0,
            num_multiprocessors: 0,
            memory: ByteCount(0),
            shared_memory_per_block: 0,
            pci_bus_id: String::new(),
            flushes_remote_writes: false,
        };
        let mut context = Context {
            libraries,
            properties,
            account,
            device,
            raw,
            num_allocations: AtomicU64::new(0),
            num_steady: AtomicU32::new(0),
            poison: AtomicBool::new(false),
        };
        context.properties = context.ask_properties()?;
        Ok(context)
    }

    fn ask_properties(&self) -> Result<Properties> {
        use CUdevice_attribute as Attribute;
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let (mut name, mut bus) = ([0 as c_char; 128], [0 as c_char; 32]);
        let driver = self.driver()?;
        // SAFETY: writes at most the 128 bytes that there are, zero-terminated.
        let code = unsafe { (driver.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int, self.device) };
        self.check("cuDeviceGetName", code)?;
        // SAFETY: writes at most the 32 bytes that there are, zero-terminated.
        let code = unsafe { (driver.cuDeviceGetPCIBusId)(bus.as_mut_ptr(), bus.len() as c_int, self.device) };
        self.check("cuDeviceGetPCIBusId", code)?;
        Ok(Properties {
            name: text(name.as_ptr()),
            architecture: major * 10 + minor,
            num_multiprocessors: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory: self.memory()?.1,
            shared_memory_per_block: self.attribute(shared)?,
            pci_bus_id: text(bus.as_ptr()),
            flushes_remote_writes: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES)? == 1,
        })
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        let driver = self.driver()?;
        // SAFETY: writes one number; the device is the driver's own.
        let code = unsafe { (driver.cuDeviceGetAttribute)(&mut value, attribute, self.device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value.max(0) as u32)
    }

    /// The driver's functions, with this context current on the calling thread.
    pub(super) fn driver(&self) -> Result<&Driver> {
        let driver = &self.libraries.driver;
        if CURRENT.get() != self.raw as usize {
            // SAFETY: the context was retained in `open` and is released only when `self` is dropped.
            self.check("cuCtxSetCurrent", unsafe { (driver.cuCtxSetCurrent)(self.raw) })?;
            CURRENT.set(self.raw as usize);
        }
        Ok(driver)
    }

    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<()> {
        check(&self.libraries.driver, call, code)
    }

    /// Free and total bytes of the GPU, as the driver counts them for all processes together.
    pub fn memory(&self) -> Result<(ByteCount, ByteCount)> {
        let (mut free, mut total) = (0usize, 0usize);
        let driver = self.driver()?;
        // SAFETY: writes two numbers.
        self.check("cuMemGetInfo", unsafe { (driver.cuMemGetInfo_v2)(&mut free, &mut total) })?;
        Ok((ByteCount(free as u64), ByteCount(total as u64)))
    }

    /// One plain allocation of device memory, which other processes can be shown. Fails with a table of where the
    /// bytes are when it does not fit, and inside of a steady step.
    pub(super) fn allocate(&self, purpose: Purpose, bytes: usize) -> Result<CUdeviceptr> {
        /// What the driver gives memory out by. Asked for a number of bytes that is no multiple, it gives as much, but other
        /// GPUs then reach the memory a quarter slower.
        const PAGE: usize = 2 << 20;
        self.count_allocation("device memory")?;
        let mut address: CUdeviceptr = 0;
        let driver = self.driver()?;
        // SAFETY: writes one address.
        let code = unsafe { (driver.cuMemAlloc_v2)(&mut address, bytes.next_multiple_of(PAGE)) };
        const OUT_OF_MEMORY: Code = 2;
        if code == OUT_OF_MEMORY {
            let (free, total) = self.memory()?;
            return Err(DeviceError::OutOfMemory {
                purpose: purpose.name().to_string(),
                wanted: ByteCount(bytes as u64),
                in_use: ByteCount(total.0 - free.0),
                budget: total,
                table: self.account.table(),
            });
        }
        self.check("cuMemAlloc", code)?;
        Ok(address)
    }

    /// Gives an allocation back. The driver waits for work that is under way on it.
    pub(super) fn free(&self, address: CUdeviceptr) {
        let Ok(driver) = self.driver() else { return };
        // SAFETY: the address comes from `allocate`, and its owner, who calls this when dropped, gives it up.
        // A failure means that the context is lost, and the memory with it.
        let _ = unsafe { (driver.cuMemFree_v2)(address) };
    }

    pub(super) fn count_allocation(&self, of: &'static str) -> Result<()> {
        if self.num_steady.load(Ordering::Acquire) > 0 {
            let problem = format!("asked the driver for {of}, expected that a steady step allocates nothing");
            return Err(DeviceError::Value { what: "allocation", problem });
        }
        self.num_allocations.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// How often the driver was asked for memory.
    pub fn num_allocations(&self) -> u64 {
        self.num_allocations.load(Ordering::Relaxed)
    }

    /// Until the result is dropped, asking the driver for memory is an error.
    pub fn steady_step(self: &Arc<Context>) -> SteadyStep {
        self.num_steady.fetch_add(1, Ordering::AcqRel);
        SteadyStep { context: self.clone() }
    }

    /// From now on, memory taken from arenas is filled with not-a-numbers, so that a kernel which leaves elements
    /// unwritten, or reads what nobody wrote, shows itself. For tests: it costs a pass over the memory.
    pub fn poison_fresh_memory(&self, poison: bool) {
        self.poison.store(poison, Ordering::Relaxed);
    }

    pub(super) fn poisons(&self) -> bool {
        self.poison.load(Ordering::Relaxed)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if CURRENT.get() == self.raw as usize {
            CURRENT.set(0);
        }
        // SAFETY: retained once in `open`; everything made in the context holds it and is gone by now.
        let _ = unsafe { (self.libraries.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

impl Drop for SteadyStep {
    fn drop(&mut self) {
        self.context.num_steady.fetch_sub(1, Ordering::AcqRel);
    }
}

fn check(driver: &Driver, call: &'static str, code: Code) -> Result<()> {
    foreign::check(call, code, |code| {
        let (mut name, mut meaning) = (std::ptr::null(), std::ptr::null());
        // SAFETY: writes a pointer to a static text, or null for a number that the driver does not know.
        unsafe { (driver.cuGetErrorName)(code, &mut name) };
        // SAFETY: as above.
        unsafe { (driver.cuGetErrorString)(code, &mut meaning) };
        format!("{}, {}", text(name), text(meaning))
    })
}

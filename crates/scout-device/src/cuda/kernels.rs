//! Kernels: the functions made of their sources, and launches at the level of addresses.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUlaunchConfig, CUmodule};

use super::context::Context;
use super::foreign::Code;
use super::nvrtc;
use super::source::KernelSource;
use super::stream::Stream;
use crate::{DeviceError, Result};

/// A function on the GPU.
#[derive(Debug)]
pub struct Kernel {
    raw: CUfunction,
    name: &'static str,
    /// Bytes of each parameter, in order.
    parameters: Vec<usize>,
    max_threads: u32,
}

// SAFETY: a function of the driver may be launched from any thread; its module is never unloaded.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Fails unless its parameters have these `sizes`, in bytes and in this order.
    pub(super) fn must_take(&self, sizes: &[usize]) -> Result<()> {
        if sizes == self.parameters {
            return Ok(());
        }
        let problem = format!("found arguments of {sizes:?} bytes, expected {:?}", self.parameters);
        Err(refusal(self.name, problem))
    }
}

/// The kernels of a device, loaded when first asked for.
pub(super) struct Kernels {
    context: Arc<Context>,
    /// Where compiled kernels are kept between runs.
    cache: Option<PathBuf>,
    /// Compile all sources here, though machine code is built in.
    ignore_images: bool,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, Module>,
    kernels: HashMap<(&'static str, &'static str), Arc<Kernel>>,
}

#[derive(Clone, Copy)]
struct Module(CUmodule);

// SAFETY: modules of the driver may be used from any thread.
unsafe impl Send for Module {}

/// How many blocks of how many threads, and how much dynamic shared memory each block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    pub shared_memory: u32,
}

impl Grid {
    pub fn new(blocks: u32, threads: u32) -> Grid {
        Grid { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_memory: 0 }
    }
}

impl Kernels {
    pub(super) fn new(context: &Arc<Context>, cache: Option<PathBuf>, ignore_images: bool) -> Kernels {
        Kernels { context: context.clone(), cache, ignore_images, loaded: Mutex::default() }
    }

    /// The function `name` of `source`, loaded when first asked for.
    pub(super) fn get(&self, source: &'static KernelSource, name: &'static str) -> Result<Arc<Kernel>> {
        let mut loaded = self.loaded.lock().expect("no holder of this lock panics");
        if let Some(kernel) = loaded.kernels.get(&(source.name, name)) {
            return Ok(kernel.clone());
        }
        let module = match loaded.modules.get(source.name) {
            Some(&module) => module,
            None => {
                let module = self.load(source)?;
                loaded.modules.insert(source.name, module);
                module
            }
        };
        let kernel = Arc::new(self.function(module, name)?);
        loaded.kernels.insert((source.name, name), kernel.clone());
        Ok(kernel)
    }

    fn load(&self, source: &'static KernelSource) -> Result<Module> {
        let architecture = self.context.properties.architecture;
        let built_in = source.images.iter().find(|image| runs_on(image.architecture, architecture));
        let compiled;
        let code = match built_in {
            Some(image) if !self.ignore_images => image.code,
            _ => {
                let nvrtc = self.context.libraries.nvrtc()?;
                compiled = nvrtc::compile(nvrtc, source, architecture, self.cache.as_deref())?;
                &compiled
            }
        };
        let mut module: CUmodule = null_mut();
        let driver = self.context.driver()?;
        // SAFETY: `code` is a whole image, as a compiler wrote it; the driver reads it during the call only.
        let outcome = unsafe { (driver.cuModuleLoadData)(&mut module, code.as_ptr().cast()) };
        self.context.check("cuModuleLoadData", outcome)?;
        Ok(Module(module))
    }

    fn function(&self, module: Module, name: &'static str) -> Result<Kernel> {
        let driver = self.context.driver()?;
        let c_name = CString::new(name).map_err(|_| refusal(name, "found a zero byte in its name".to_string()))?;
        let mut raw: CUfunction = null_mut();
        // SAFETY: writes one pointer; the module is loaded and the name zero-terminated.
        let code = unsafe { (driver.cuModuleGetFunction)(&mut raw, module.0, c_name.as_ptr()) };
        const NOT_FOUND: Code = 500;
        if code == NOT_FOUND {
            return Err(refusal(name, "found no function of this name in its source".to_string()));
        }
        self.context.check("cuModuleGetFunction", code)?;
        let mut parameters = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: writes two numbers; refuses an index behind the last parameter.
            let code = unsafe { (driver.cuFuncGetParamInfo)(raw, parameters.len(), &mut offset, &mut size) };
            const INVALID_VALUE: Code = 1;
            if code == INVALID_VALUE {
                break;
            }
            self.context.check("cuFuncGetParamInfo", code)?;
            parameters.push(size);
        }
        let mut max_threads = 0;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        // SAFETY: writes one number.
        let code = unsafe { (driver.cuFuncGetAttribute)(&mut max_threads, attribute, raw) };
        self.context.check("cuFuncGetAttribute", code)?;
        Ok(Kernel { raw, name, parameters, max_threads: max_threads.max(0) as u32 })
    }

    /// Fails unless the grid's blocks may run `kernel`.
    pub(super) fn must_run(&self, kernel: &Kernel, grid: Grid) -> Result<()> {
        let num_threads: u32 = grid.threads.iter().product();
        if num_threads == 0 || num_threads > kernel.max_threads {
            let problem = format!("found blocks of {num_threads} threads, expected 1 to {}", kernel.max_threads);
            return Err(refusal(kernel.name, problem));
        }
        self.allow_shared_memory(kernel, grid.shared_memory)
    }

    /// Queues `kernel` on `stream`. Each argument begins at one of the `places` in `words`, with its low bytes.
    ///
    /// # Safety
    ///
    /// There is one place for each parameter, and from there on as many words as its bytes need
    /// ([`Kernel::must_take`]); the grid is one that [`Kernels::must_run`] let pass. With these arguments and this grid the kernel stays inside of memory that is there
    /// until `stream` is done with it, and writes only where nobody else looks; everything it reads was queued on
    /// `stream` before, or is waited for there.
    pub(super) unsafe fn launch(
        &self,
        kernel: &Kernel,
        stream: &Arc<Stream>,
        grid: Grid,
        (words, places): (&mut [u64], &[usize]),
    ) -> Result<()> {
        let mut pointers: Vec<*mut c_void> =
            places.iter().map(|&place| words[place..].as_mut_ptr().cast::<c_void>()).collect();
        let config = CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: grid.blocks[2],
            blockDimX: grid.threads[0],
            blockDimY: grid.threads[1],
            blockDimZ: grid.threads[2],
            sharedMemBytes: grid.shared_memory,
            hStream: stream.raw(),
            attrs: null_mut(),
            numAttrs: 0,
        };
        let driver = self.context.driver()?;
        // SAFETY: there is one pointer for each parameter, to at least its size (the caller's promise); values of 4 bytes
        // are the low half of 8 on the little-endian machines that have GPUs. The driver copies them before
        // it returns. What the kernel does is the caller's promise too.
        let code = unsafe { (driver.cuLaunchKernelEx)(&config, kernel.raw, pointers.as_mut_ptr(), null_mut()) };
        self.context.check(kernel.name, code)
    }

    /// More than 48 KiB have to be asked for.
    fn allow_shared_memory(&self, kernel: &Kernel, bytes: u32) -> Result<()> {
        const ALWAYS: u32 = 48 << 10;
        if bytes <= ALWAYS {
            return Ok(());
        }
        let limit = self.context.properties.shared_memory_per_block;
        if bytes > limit {
            let problem = format!("found {bytes} bytes of shared memory, expected at most {limit}");
            return Err(refusal(kernel.name, problem));
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let driver = self.context.driver()?;
        // SAFETY: the function is loaded, and the limit was checked above.
        let code = unsafe { (driver.cuFuncSetAttribute)(kernel.raw, attribute, bytes as i32) };
        self.context.check("cuFuncSetAttribute", code)
    }

    /// How many blocks of a kernel one multiprocessor holds at once.
    pub(super) fn blocks_per_multiprocessor(&self, kernel: &Kernel, threads: u32, shared_memory: u32) -> Result<u32> {
        self.allow_shared_memory(kernel, shared_memory)?;
        let mut blocks = 0;
        let driver = self.context.driver()?;
        // SAFETY: writes one number.
        let code = unsafe {
            (driver.cuOccupancyMaxActiveBlocksPerMultiprocessor)(
                &mut blocks,
                kernel.raw,
                threads as i32,
                shared_memory as usize,
            )
        };
        self.context.check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code)?;
        Ok(blocks.max(0) as u32)
    }
}

/// Machine code for `image` runs on GPUs of the same major version and no smaller minor one; that for 9.0 uses
/// instructions that exist nowhere else.
fn runs_on(image: u32, architecture: u32) -> bool {
    match image {
        90 => architecture == 90,
        _ => image / 10 == architecture / 10 && image <= architecture,
    }
}

pub(super) fn refusal(kernel: &'static str, problem: String) -> DeviceError {
    DeviceError::Value { what: kernel, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_runs_inside_of_its_major_version() {
        for (image, architecture, expected) in [
            (90, 90, true),
            (90, 100, false),
            (80, 80, true),
            (80, 86, true),
            (80, 89, true),
            (80, 90, false),
            (86, 80, false),
        ] {
            assert_eq!(runs_on(image, architecture), expected, "{image} {architecture}");
        }
    }
}

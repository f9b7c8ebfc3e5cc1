//! Kernels: their sources, the functions made of them, and launches whose arguments are compared with what the function
//! takes. What a kernel does with its arguments is the caller's promise.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUlaunchConfig, CUmodule};

use super::context::Context;
use super::foreign::Code;
use super::memory::DeviceBuffer;
use super::nvrtc;
use super::stream::Stream;
use crate::tensor::Tensor;
use crate::{DeviceError, Result};

/// One `.cu` file as it is built into the program: its text, and what the compiler made of it where there was one.
#[derive(Debug)]
pub struct KernelSource {
    pub name: &'static str,
    pub text: &'static str,
    /// Files that the text includes, by the name that it uses.
    pub headers: &'static [(&'static str, &'static str)],
    pub images: &'static [Image],
}

/// Machine code for one architecture: 90 stands for 9.0a, which runs on 9.0 alone; 80 runs on 8.x.
#[derive(Debug)]
pub struct Image {
    pub architecture: u32,
    pub code: &'static [u8],
}

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

/// An argument of a kernel. Tensors and buffers are passed as addresses.
pub enum Argument<'a> {
    /// Only read.
    In(&'a Tensor),
    /// Written; read too where the kernel adds to it.
    Out(&'a mut DeviceBuffer),
    /// No memory: the kernel tells by the null address.
    Nothing,
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
}

impl Argument<'_> {
    fn size(&self) -> usize {
        match self {
            Argument::In(_) | Argument::Out(_) | Argument::Nothing | Argument::U64(_) => 8,
            Argument::U32(_) | Argument::I32(_) | Argument::F32(_) => 4,
        }
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

    /// Queues `kernel` on `stream`. A grid without blocks is no work and no error.
    ///
    /// # Safety
    ///
    /// With these arguments and this grid the kernel stays inside the memory of its arguments, writes only to those
    /// that are `Out`, and everything it reads was queued on `stream` before, or is waited for there.
    pub(super) unsafe fn launch(
        &self,
        kernel: &Kernel,
        stream: &Arc<Stream>,
        grid: Grid,
        arguments: &mut [Argument],
    ) -> Result<()> {
        self.check(kernel, grid, arguments)?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let mut values: Vec<u64> = Vec::with_capacity(arguments.len());
        for argument in arguments.iter() {
            values.push(match argument {
                Argument::In(tensor) => {
                    let region = tensor.region(kernel.name)?;
                    region.block.is_used_on(stream);
                    region.address()
                }
                Argument::Out(buffer) => {
                    buffer.block().is_used_on(stream);
                    buffer.address()
                }
                Argument::Nothing => 0,
                Argument::U64(value) => *value,
                Argument::U32(value) => u64::from(*value),
                Argument::I32(value) => u64::from(value.cast_unsigned()),
                Argument::F32(value) => u64::from(value.to_bits()),
            });
        }
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
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
        // SAFETY: there is one pointer for each parameter, to a value of at least its size (`check`); values of 4 bytes
        // are the low half of 8 on the little-endian machines that have GPUs. The driver copies them before it
        // returns. What the kernel does is the caller's promise.
        let code = unsafe { (driver.cuLaunchKernelEx)(&config, kernel.raw, pointers.as_mut_ptr(), null_mut()) };
        self.context.check(kernel.name, code)
    }

    fn check(&self, kernel: &Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let sizes: Vec<usize> = arguments.iter().map(Argument::size).collect();
        if sizes != kernel.parameters {
            let problem = format!("found arguments of {sizes:?} bytes, expected {:?}", kernel.parameters);
            return Err(refusal(kernel.name, problem));
        }
        for argument in arguments {
            let context = match argument {
                Argument::In(tensor) => tensor.region(kernel.name)?.block.context(),
                Argument::Out(buffer) => {
                    buffer.must_be_alone(kernel.name)?;
                    buffer.block().context()
                }
                _ => continue,
            };
            if !Arc::ptr_eq(context, &self.context) {
                return Err(refusal(kernel.name, "found an argument on another device".to_string()));
            }
        }
        let num_threads: u32 = grid.threads.iter().product();
        if num_threads == 0 || num_threads > kernel.max_threads {
            let problem = format!("found blocks of {num_threads} threads, expected 1 to {}", kernel.max_threads);
            return Err(refusal(kernel.name, problem));
        }
        self.allow_shared_memory(kernel, grid.shared_memory)
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

fn refusal(kernel: &'static str, problem: String) -> DeviceError {
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

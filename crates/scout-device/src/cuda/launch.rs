//! Launches whose arguments are compared with what the kernel takes. What a kernel does with its arguments is the
//! caller's promise.

use std::sync::Arc;

use super::device::CudaDevice;
use super::kernels::{Grid, Kernel, refusal};
use super::memory::DeviceBuffer;
use super::profile::{Effort, Product};
use super::stream::Stream;
use super::tensor_map::TensorMap;
use crate::Result;
use crate::tensor::Tensor;

/// An argument of a kernel. Tensors and buffers are passed as addresses, maps and numbers as structures.
pub enum Argument<'a> {
    /// Only read.
    In(&'a Tensor),
    /// Only read, and no more than so many bytes of it.
    Part(&'a Tensor, u64),
    /// Written.
    Out(&'a mut DeviceBuffer),
    /// Written, and no more than so many bytes of it.
    OutPart(&'a mut DeviceBuffer, u64),
    /// Read, and written over; so many bytes of it.
    InOut(&'a mut DeviceBuffer, u64),
    /// Only read, by the copy engine.
    Map(&'a TensorMap<'a>),
    /// No memory: the kernel tells by the null address.
    Nothing,
    /// A structure of nothing but these.
    Numbers(&'a [u32]),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Argument<'_> {
    fn size(&self) -> usize {
        match self {
            Argument::In(_) | Argument::Part(..) | Argument::Out(_) | Argument::OutPart(..) | Argument::InOut(..) => 8,
            Argument::Nothing | Argument::U64(_) => 8,
            Argument::U32(_) | Argument::F32(_) => 4,
            Argument::Map(map) => size_of_val(map.words()),
            Argument::Numbers(numbers) => size_of_val(*numbers),
        }
    }

    /// What of it is read and written, in a profile. Nothing else depends on it.
    fn bytes(&self) -> u64 {
        match self {
            Argument::In(tensor) => tensor.bytes().0,
            Argument::Map(map) => map.tensor().bytes().0,
            Argument::Part(_, bytes) | Argument::OutPart(_, bytes) => *bytes,
            Argument::Out(buffer) => buffer.bytes().0,
            Argument::InOut(_, bytes) => 2 * bytes,
            _ => 0,
        }
    }
}

impl CudaDevice {
    /// Queues `kernel` on the compute stream. A grid without blocks is no work and no error.
    ///
    /// # Safety
    ///
    /// With these arguments and this grid the kernel stays inside the memory of its arguments, and writes only to those
    /// that are `Out`. Everything it reads was queued on the compute stream, or is waited for there.
    pub unsafe fn launch(&self, kernel: &Kernel, grid: Grid, arguments: &mut [Argument]) -> Result<()> {
        let bytes = arguments.iter().map(Argument::bytes).sum();
        let what = || (kernel.name().to_string(), Effort::Bytes(bytes));
        // SAFETY: the caller's promise.
        let work = || unsafe { self.launch_on(self.compute(), kernel, grid, arguments) };
        self.profiler().time(self.compute(), what, work)
    }

    /// As [`CudaDevice::launch`], for a kernel that computes matrix products: a profile shows them, under a name.
    ///
    /// # Safety
    ///
    /// As for [`CudaDevice::launch`].
    pub unsafe fn launch_products(
        &self,
        kernel: &Kernel,
        grid: Grid,
        arguments: &mut [Argument],
        products: impl FnOnce() -> (String, Vec<Product>),
    ) -> Result<()> {
        let what = || {
            let (name, products) = products();
            (name, Effort::Products(products))
        };
        // SAFETY: the caller's promise.
        let work = || unsafe { self.launch_on(self.compute(), kernel, grid, arguments) };
        self.profiler().time(self.compute(), what, work)
    }

    /// As [`CudaDevice::launch`], on another stream.
    ///
    /// # Safety
    ///
    /// As for [`CudaDevice::launch`], with `stream` in the place of the compute stream.
    pub unsafe fn launch_on(
        &self,
        stream: &Arc<Stream>,
        kernel: &Kernel,
        grid: Grid,
        arguments: &mut [Argument],
    ) -> Result<()> {
        self.check(kernel, arguments)?;
        self.kernels().must_run(kernel, grid)?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let (mut words, mut places): (Vec<u64>, Vec<usize>) = (Vec::new(), Vec::new());
        for argument in arguments.iter() {
            places.push(words.len());
            match argument {
                Argument::In(tensor) | Argument::Part(tensor, _) => {
                    let region = tensor.region(kernel.name())?;
                    region.block.fence_when_dropped(stream);
                    words.push(region.address());
                }
                Argument::Out(buffer) | Argument::OutPart(buffer, _) | Argument::InOut(buffer, _) => {
                    buffer.block().fence_when_dropped(stream);
                    words.push(buffer.address());
                }
                Argument::Map(map) => {
                    map.tensor().region(kernel.name())?.block.fence_when_dropped(stream);
                    words.extend_from_slice(map.words());
                }
                Argument::Nothing => words.push(0),
                Argument::Numbers(numbers) => {
                    let high = |pair: &[u32]| pair.get(1).map_or(0, |&number| u64::from(number) << 32);
                    words.extend(numbers.chunks(2).map(|pair| u64::from(pair[0]) | high(pair)));
                }
                Argument::U64(value) => words.push(*value),
                Argument::U32(value) => words.push(u64::from(*value)),
                Argument::F32(value) => words.push(u64::from(value.to_bits())),
            }
        }
        // SAFETY: `check` compared number and sizes of the arguments, and `must_run` passed the grid. Every block was
        // told of `stream`, so its memory stays until that is done, and what is `Out` is looked at by nobody (`check`).
        // What the kernel does is the caller's promise.
        unsafe { self.kernels().launch(kernel, stream, grid, (&mut words, &places)) }
    }

    fn check(&self, kernel: &Kernel, arguments: &[Argument]) -> Result<()> {
        let sizes: Vec<usize> = arguments.iter().map(Argument::size).collect();
        kernel.must_take(&sizes)?;
        for argument in arguments {
            let context = match argument {
                Argument::In(tensor) | Argument::Part(tensor, _) => tensor.region(kernel.name())?.block.context(),
                Argument::Map(map) => map.tensor().region(kernel.name())?.block.context(),
                Argument::Out(buffer) | Argument::OutPart(buffer, _) | Argument::InOut(buffer, _) => {
                    buffer.must_be_alone(kernel.name())?;
                    buffer.block().context()
                }
                _ => continue,
            };
            if !Arc::ptr_eq(context, self.context()) {
                return Err(refusal(kernel.name(), "found an argument on another device".to_string()));
            }
        }
        Ok(())
    }
}

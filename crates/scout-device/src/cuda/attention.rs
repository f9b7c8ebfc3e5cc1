//! Attention of tensors by cuDNN: everything is compared with what the plan was made for before an address is taken.

use std::sync::Arc;

use scout_core::DType;

use super::device::CudaDevice;
use super::dnn::address::Address;
use super::dnn::documents::DocumentIndex;
use super::dnn::engine::Attention;
use super::dnn::graph::ALIGNMENT;
use super::dnn::run::{BackwardMemory, ForwardMemory};
use super::dnn::shape::AttentionShape;
use super::memory::DeviceBuffer;
use super::pinned::{Copying, Pinned};
use super::profile::Effort;
use crate::tensor::Tensor;
use crate::{DeviceError, Purpose, Result};

const FORWARD: &str = "attention forward";
const BACKWARD: &str = "attention backward";

/// Documents of a batch, known to the GPU.
#[derive(Clone)]
pub struct Documents {
    shape: AttentionShape,
    num_tokens: usize,
    // Invariant: what a `DocumentIndex` of this shape says. The kernels believe it.
    index: Tensor,
}

impl Documents {
    /// Queues the copy on the compute stream, by way of the first bytes of `pinned`.
    pub fn upload(index: &DocumentIndex, device: &Arc<CudaDevice>, mut pinned: Pinned) -> Result<(Documents, Copying)> {
        let mut buffer = device.buffer(DType::U32, [index.values().len()])?;
        let bytes: &[u8] = bytemuck::cast_slice(index.values());
        let Some(room) = pinned.bytes_mut().get_mut(..bytes.len()) else {
            let problem = format!("found {} bytes of pinned memory, expected {}", pinned.bytes().len(), bytes.len());
            return Err(DeviceError::Value { what: "documents of a batch", problem });
        };
        room.copy_from_slice(bytes);
        let copying = pinned.upload(&mut buffer, device.compute())?;
        Ok((Documents::new(index, buffer), copying))
    }

    /// The same by way of the device's own pinned memory.
    pub fn send(index: &DocumentIndex, device: &Arc<CudaDevice>) -> Result<Documents> {
        let values = Tensor::from_u32(index.values().to_vec(), [index.values().len()])?;
        let (shape, num_tokens) = (*index.shape(), index.num_tokens());
        Ok(Documents { shape, num_tokens, index: device.send(&values)? })
    }

    fn new(index: &DocumentIndex, buffer: DeviceBuffer) -> Documents {
        Documents { shape: *index.shape(), num_tokens: index.num_tokens(), index: buffer.into_tensor() }
    }

    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}

/// What the forward pass answers; the backward pass asks for it again.
#[derive(Debug, Clone)]
pub struct Attended {
    /// `[T, query heads, head size]`, bf16.
    pub context: Tensor,
    /// `[T, query heads]`, f32, of the scaled scores.
    pub log_sum_exp: Tensor,
}

/// Shaped like the tensors they are gradients of, bf16.
#[derive(Debug, Clone)]
pub struct QkvGradients {
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
}

impl Attention {
    /// `softmax(scale · q·kᵀ)·v`, causal inside each document and blind across documents.
    pub fn forward(&self, qkv: [&Tensor; 3], documents: &Documents, scale: f32) -> Result<Attended> {
        let shape = &documents.shape;
        let device = self.check_inputs(FORWARD, qkv, documents)?;
        let query_dims = dims(documents, shape.heads().query);
        let mut context = device.buffer(DType::BF16, query_dims)?;
        let mut log_sum_exp = device.buffer(DType::F32, [query_dims[0], query_dims[1]])?;
        if documents.num_tokens > 0 {
            self.context().driver()?;
            let mut runner = self.lock();
            let scratch = device.working_memory().take(Purpose::Workspace, runner.forward_scratch(shape)?)?;
            let [q, k, v] = self.read(&device, FORWARD, qkv)?;
            let [index] = self.read(&device, FORWARD, [&documents.index])?;
            let [context, log_sum_exp] = written([&mut context, &mut log_sum_exp]);
            let memory = ForwardMemory { q, k, v, index, context, log_sum_exp, scratch: scratch.address() };
            // SAFETY: shapes and types were compared with the plan's in `check_inputs`, alignment in `read`, and the
            // results are as large as asked for above, fresh and at multiples of 512. Every block belongs to this
            // device, and whoever takes one next comes later on the same stream, or waits for it (`fence_when_dropped`).
            let run = || unsafe { runner.forward(shape, device.compute().raw().cast(), &memory, scale) };
            device.profiler().time(
                device.compute(),
                || ("attention forward, cuDNN".to_string(), Effort::Other),
                run,
            )?;
        }
        Ok(Attended { context: context.into_tensor(), log_sum_exp: log_sum_exp.into_tensor() })
    }

    /// Gradients of all query heads of a group add up in the key and value head that they share.
    pub fn backward(
        &self,
        dcontext: &Tensor,
        qkv: [&Tensor; 3],
        attended: &Attended,
        documents: &Documents,
        scale: f32,
    ) -> Result<QkvGradients> {
        let shape = &documents.shape;
        let device = self.check_inputs(BACKWARD, qkv, documents)?;
        let (query_dims, kv_dims) = (dims(documents, shape.heads().query), dims(documents, shape.heads().kv));
        for tensor in [dcontext, &attended.context] {
            expect(BACKWARD, tensor, DType::BF16, &query_dims)?;
        }
        expect(BACKWARD, &attended.log_sum_exp, DType::F32, &query_dims[..2])?;
        let mut dq = device.buffer(DType::BF16, query_dims)?;
        let mut dk = device.buffer(DType::BF16, kv_dims)?;
        let mut dv = device.buffer(DType::BF16, kv_dims)?;
        if documents.num_tokens > 0 {
            self.context().driver()?;
            let mut runner = self.lock();
            let bytes = runner.backward_scratch(shape, documents.num_tokens)?;
            let scratch = device.working_memory().take(Purpose::Workspace, bytes)?;
            let [q, k, v] = self.read(&device, BACKWARD, qkv)?;
            let others = [dcontext, &attended.context, &attended.log_sum_exp, &documents.index];
            let [dcontext, context, log_sum_exp, index] = self.read(&device, BACKWARD, others)?;
            let [dq, dk, dv] = written([&mut dq, &mut dk, &mut dv]);
            let scratch = scratch.address();
            let memory = BackwardMemory { q, k, v, index, context, log_sum_exp, dcontext, dq, dk, dv, scratch };
            let size = (shape, documents.num_tokens);
            // SAFETY: as in `forward`; what else is read was compared above.
            let run = || unsafe { runner.backward(size, device.compute().raw().cast(), &memory, scale) };
            device.profiler().time(
                device.compute(),
                || ("attention backward, cuDNN".to_string(), Effort::Other),
                run,
            )?;
        }
        Ok(QkvGradients { dq: dq.into_tensor(), dk: dk.into_tensor(), dv: dv.into_tensor() })
    }

    /// The device of all of them. Fails unless shapes and element types are those of the documents.
    fn check_inputs(
        &self,
        what: &'static str,
        [q, k, v]: [&Tensor; 3],
        documents: &Documents,
    ) -> Result<Arc<CudaDevice>> {
        let heads = documents.shape.heads();
        expect(what, q, DType::BF16, &dims(documents, heads.query))?;
        for tensor in [k, v] {
            expect(what, tensor, DType::BF16, &dims(documents, heads.kv))?;
        }
        let device = &q.region(what)?.device;
        if !Arc::ptr_eq(device.context(), self.context()) {
            return Err(elsewhere(what));
        }
        Ok(device.clone())
    }

    /// Where the tensors begin. Tells their blocks that the compute stream uses them.
    fn read<const N: usize>(
        &self,
        device: &CudaDevice,
        what: &'static str,
        tensors: [&Tensor; N],
    ) -> Result<[Address; N]> {
        let mut addresses = [0; N];
        for (address, tensor) in addresses.iter_mut().zip(tensors) {
            let region = tensor.region(what)?;
            if !Arc::ptr_eq(region.device.context(), self.context()) {
                return Err(elsewhere(what));
            }
            *address = region.address();
            if !address.is_multiple_of(ALIGNMENT as u64) {
                let problem = format!("found a tensor at {address:#x}, expected a multiple of {ALIGNMENT}");
                return Err(DeviceError::Value { what, problem });
            }
            region.block.fence_when_dropped(device.compute());
        }
        Ok(addresses)
    }
}

/// Where fresh buffers begin; they come from the working memory, whose home is the compute stream.
fn written<const N: usize>(buffers: [&mut DeviceBuffer; N]) -> [Address; N] {
    buffers.map(|buffer| buffer.address())
}

fn dims(documents: &Documents, heads: usize) -> [usize; 3] {
    [documents.num_tokens, heads, documents.shape.heads().size]
}

fn expect(what: &'static str, tensor: &Tensor, dtype: DType, dims: &[usize]) -> Result<()> {
    tensor.expect_dims(what, dims)?;
    match tensor.dtype() {
        found if found == dtype => Ok(()),
        found => Err(DeviceError::DType { what, found, expected: dtype }),
    }
}

fn elsewhere(what: &'static str) -> DeviceError {
    let (found, expected) = ("another GPU".to_string(), "the GPU of this attention".to_string());
    DeviceError::Place { what, found, expected }
}

//! Attention as a device keeps it: cuDNN's plans and handle, and the context that they live in.

use std::sync::{Arc, Mutex};

use scout_core::ByteCount;

use super::run::Runner;
use super::shape::AttentionShape;
use crate::Result;
use crate::cuda::context::Context;

/// Attention by cuDNN on one GPU. Work is queued on the compute stream of the device; scratch memory is taken from its
/// working memory and given back at once, in the order of that stream.
pub struct Attention {
    // Dropped before the context it lives in.
    runner: Mutex<Runner>,
    context: Arc<Context>,
}

impl Attention {
    /// Fails where cuDNN is missing or too old, with what to install.
    pub fn new(context: &Arc<Context>) -> Result<Attention> {
        let cudnn = context.libraries.cudnn()?;
        context.driver()?;
        Ok(Attention { runner: Mutex::new(Runner::new(*cudnn)?), context: context.clone() })
    }

    /// Makes the plan of the forward pass for a shape, which takes about a second, and answers the scratch memory that it
    /// takes. Afterwards nothing is made or allocated any more.
    pub fn prepare_forward(&self, shape: &AttentionShape) -> Result<ByteCount> {
        self.context.driver()?;
        Ok(ByteCount(self.lock().forward_scratch(shape)? as u64))
    }

    /// The same for the backward pass, whose scratch memory is that for `num_tokens` tokens.
    pub fn prepare_backward(&self, shape: &AttentionShape, num_tokens: usize) -> Result<ByteCount> {
        self.context.driver()?;
        Ok(ByteCount(self.lock().backward_scratch(shape, num_tokens)? as u64))
    }

    pub(in crate::cuda) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(in crate::cuda) fn lock(&self) -> std::sync::MutexGuard<'_, Runner> {
        self.runner.lock().expect("no holder of this lock panics")
    }
}

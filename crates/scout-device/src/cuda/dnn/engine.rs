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

    /// Makes both plans for a shape, which takes a second or two, and answers the scratch memory that the passes take
    /// for `num_tokens` tokens. Afterwards nothing is made or allocated any more.
    pub fn prepare(&self, shape: &AttentionShape, num_tokens: usize) -> Result<[ByteCount; 2]> {
        self.context.driver()?;
        let mut runner = self.lock();
        let bytes = [runner.forward_scratch(shape)?, runner.backward_scratch(shape, num_tokens)?];
        Ok(bytes.map(|bytes| ByteCount(bytes as u64)))
    }

    pub(in crate::cuda) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(in crate::cuda) fn lock(&self) -> std::sync::MutexGuard<'_, Runner> {
        self.runner.lock().expect("no holder of this lock panics")
    }
}

//! One GPU, ready to work: its streams, its working memory, and what it keeps from one piece of work to the next. Nothing
//! here knows of tensors: they lie on a device, and what a device does with them stands in files above this one.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use scout_core::ByteCount;

use super::arena::Arena;
use super::blas::{Blas, Choice, Trial};
use super::context::{Context, Properties, SteadyStep};
use super::dnn::engine::Attention;
use super::dnn::shape::SumOrder;
use super::envelopes::Envelopes;
use super::kernels::{Kernel, Kernels};
use super::libraries::{Found, Libraries, Search};
use super::nvml::Gauge;
use super::profile::{Effort, Profiler, Share, Timed};
use super::source::KernelSource;
use super::stream::{Event, Priority, Stream};
use super::uploads::Uploads;
use crate::{Account, DeviceError, Purpose, Result};

/// What a GPU is opened with.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    pub search: Search,
    /// Which of the GPUs that the driver shows to this process.
    pub ordinal: u32,
    /// How much memory results and scratch may take: one allocation, made at once.
    pub working_memory: ByteCount,
    /// Where given, results and scratch take all memory that is free but this much, which stays for shards and libraries.
    pub leave_free: Option<ByteCount>,
    /// Processes among which the memory of the GPU is divided then.
    pub sharers: usize,
    /// Where kernels compiled at run time are kept.
    pub kernel_cache: Option<PathBuf>,
    /// Compile kernels at run time though machine code is built in: for tests of that path.
    pub compile_kernels: bool,
    pub choice: Choice,
    /// Products of one class of shapes run by the first candidate until they have taken as long as so many
    /// trials; then a trial finds a better one.
    pub trials_first: f64,
    /// The longest time that the host waits for work on the GPU.
    pub patience: Duration,
}

impl Default for CudaOptions {
    fn default() -> CudaOptions {
        CudaOptions {
            search: Search::default(),
            ordinal: 0,
            working_memory: ByteCount(4 << 30),
            leave_free: None,
            sharers: 1,
            kernel_cache: None,
            compile_kernels: false,
            choice: Choice::Timed,
            trials_first: 0.0,
            patience: Duration::from_secs(120),
        }
    }
}

pub struct CudaDevice {
    // Fields are dropped in this order: what was made in the context goes before it.
    /// Made when first asked for; none where it cannot be.
    attention: OnceLock<std::result::Result<Attention, String>>,
    kernels: Kernels,
    blas: Blas,
    working: Arena,
    envelopes: Envelopes,
    uploads: Uploads,
    profiler: Profiler,
    compute: Arc<Stream>,
    copy: Arc<Stream>,
    context: Arc<Context>,
    patience: Duration,
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.properties().name, self.properties().pci_bus_id)
    }
}

impl CudaDevice {
    /// Opens the libraries and the GPU. Fails with what is missing and how to install it.
    pub fn open(options: &CudaOptions) -> Result<Arc<CudaDevice>> {
        let libraries = Libraries::open(&options.search)?;
        CudaDevice::of(Arc::new(Context::open(libraries, options.ordinal, Account::new(None))?), options)
    }

    /// The same GPU with other memory. What was set up with this one, a communicator of NCCL's too, works with both.
    pub fn open_again(&self, options: &CudaOptions) -> Result<Arc<CudaDevice>> {
        CudaDevice::of(self.context.clone(), options)
    }

    fn of(context: Arc<Context>, options: &CudaOptions) -> Result<Arc<CudaDevice>> {
        // With a lower priority than products, copies inside of the GPU got next to nothing under products without end.
        let compute = Arc::new(Stream::new(&context, Priority::Low)?);
        let copy = Arc::new(Stream::new(&context, Priority::High)?);
        let bytes = match options.leave_free {
            None => options.working_memory,
            Some(rest) => {
                let (free, all) = context.memory()?;
                ByteCount(free.0.min(all.0 / options.sharers as u64).saturating_sub(rest.0))
            }
        };
        let bytes = bytes.0 as usize;
        let working = Arena::new(&context, "working memory", Purpose::Activations, bytes, &compute)?;
        let blas = Blas::new(&context, working.clone(), options.choice, options.trials_first)?;
        let kernels = Kernels::new(&context, options.kernel_cache.clone(), options.compile_kernels);
        let (attention, patience) = (OnceLock::new(), options.patience);
        let (envelopes, uploads) = (Envelopes::default(), Uploads::default());
        Ok(Arc::new(CudaDevice {
            attention,
            kernels,
            blas,
            working,
            envelopes,
            uploads,
            profiler: Profiler::default(),
            compute,
            copy,
            context,
            patience,
        }))
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub fn properties(&self) -> &Properties {
        &self.context.properties
    }

    /// The libraries that were opened, with their files and versions.
    pub fn libraries(&self) -> &[Found] {
        &self.context.libraries.found
    }

    /// Libraries that were not found. None of them is needed for what this device did so far.
    pub fn missing_libraries(&self) -> Vec<DeviceError> {
        self.context.libraries.missing()
    }

    pub fn account(&self) -> &Account {
        &self.context.account
    }

    /// Where the arithmetic of the model is queued.
    pub fn compute(&self) -> &Arc<Stream> {
        &self.compute
    }

    /// Where copies are queued that arithmetic does not wait for, or waits for later.
    pub fn copy(&self) -> &Arc<Stream> {
        &self.copy
    }

    pub fn patience(&self) -> Duration {
        self.patience
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    pub(super) fn blas(&self) -> &Blas {
        &self.blas
    }

    pub(super) fn envelopes(&self) -> &Envelopes {
        &self.envelopes
    }

    pub(super) fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    pub(super) fn profiler(&self) -> &Profiler {
        &self.profiler
    }

    /// Attention by cuDNN, or why there is none: the library is missing or too old, or the GPU is older than its engines for
    /// packed documents.
    pub fn attention(&self) -> std::result::Result<&Attention, &str> {
        const OLDEST: u32 = 90;
        let make = || match self.properties().architecture {
            OLDEST.. => Attention::new(&self.context).map_err(|error| error.to_string()),
            _ => Err("cuDNN computes it on GPUs of compute capability 9.0 and newer".to_string()),
        };
        self.attention.get_or_init(make).as_ref().map_err(String::as_str)
    }

    /// Whether sums may be taken in another order in every run. Where the same algorithms are to compute the same products
    /// in every run, they may not.
    pub fn sum_order(&self) -> SumOrder {
        match self.blas.choice() {
            Choice::Timed => SumOrder::Any,
            Choice::First => SumOrder::Fixed,
        }
    }

    pub fn working_memory(&self) -> &Arena {
        &self.working
    }

    /// An arena beside the working memory, with its own stream as home: for shards, or for gathered layers.
    pub fn arena(&self, name: &'static str, purpose: Purpose, bytes: ByteCount, home: &Arc<Stream>) -> Result<Arena> {
        Arena::new(&self.context, name, purpose, bytes.0 as usize, home)
    }

    /// The function `name` of `source`, loaded or compiled when first asked for.
    pub fn kernel(&self, source: &'static KernelSource, name: &'static str) -> Result<Arc<Kernel>> {
        self.kernels.get(source, name)
    }

    /// Blocks of `kernel` that run at once on the whole GPU: the grid of a kernel that loops over its work.
    pub fn resident_blocks(&self, kernel: &Kernel, threads: u32, shared_memory: u32) -> Result<u32> {
        let each = self.kernels.blocks_per_multiprocessor(kernel, threads, shared_memory)?;
        Ok(each.max(1) * self.properties().num_multiprocessors)
    }

    /// Which algorithms were tried for which products.
    pub fn trials(&self) -> Vec<Trial> {
        self.blas.trials()
    }

    /// From now on trials do not wait until they are worth their time: for measurements of a run that has gone on for long.
    pub fn try_products_at_once(&self) {
        self.blas.try_at_once();
    }

    /// Until the result is dropped, asking the driver for memory is an error.
    pub fn steady_step(&self) -> SteadyStep {
        self.context.steady_step()
    }

    /// Clock and power. Fails without NVML.
    pub fn gauge(&self) -> Result<Gauge<'_>> {
        Gauge::open(&self.context)
    }

    /// Does `work`, which queues on `stream` what other GPUs take part in, so that a profile shows it under a name.
    pub fn communicate<T, E: From<DeviceError>>(
        &self,
        stream: &Arc<Stream>,
        name: impl FnOnce() -> String,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.profiler.time(stream, || (name(), Effort::Communication), work)
    }

    /// From now on every piece of work is timed, until [`CudaDevice::end_profile`] or [`CudaDevice::end_trace`].
    pub fn begin_profile(&self) {
        self.profiler.begin();
    }

    /// What was timed among the arithmetic, by name, the longest first. Stops the host until all of it is done.
    pub fn end_profile(&self) -> Result<Vec<Share>> {
        self.profiler.end(&self.compute, self.patience)
    }

    /// What was timed on all streams, with its place in time since `zero`. Stops the host until all of it is done.
    pub fn end_trace(&self, zero: &Event) -> Result<Vec<Timed>> {
        self.profiler.end_in_time(&self.compute, zero, self.patience)
    }

    /// Stops the host until all arithmetic queued so far is done.
    pub fn finish(&self) -> Result<()> {
        self.compute.finish(self.patience)
    }
}

//! The foreign functions that are used, library by library: the raw level, nothing is checked here.
//!
//! The bindings' own loader is not used: it takes the first file of a name without a version that the system's loader
//! finds, so a CUDA toolkit beside pip's packages would win over what the user asked for, and a missing function would
//! be a panic. Types and enumerations are theirs.

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_void};

use cudarc::cublaslt::sys as blas_sys;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulAlgoConfigAttributes_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cublasStatus_t, cudaDataType_t,
};
use cudarc::cudnn::sys as cudnn_sys;
use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, cudnnBackendDescriptor_t, cudnnBackendDescriptorType_t,
    cudnnHandle_t, cudnnStatus_t,
};
use cudarc::driver::sys as driver_sys;
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUipcMemHandle,
    CUlaunchConfig, CUmodule, CUresult, CUstream, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill,
    CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use cudarc::nvrtc::sys as nvrtc_sys;
use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};

use super::foreign::{Code, functions};
use super::nccl_config::{NcclConfig, NcclUniqueId};

functions! {
    /// `libcuda.so.1`, which comes with the driver.
    pub struct Driver like driver_sys;
    fn cuInit(flags: c_uint) -> CUresult;
    fn cuDriverGetVersion(version: *mut c_int) -> CUresult;
    fn cuDeviceGetCount(count: *mut c_int) -> CUresult;
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> CUresult;
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice) -> CUresult;
    fn cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: CUdevice) -> CUresult;
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice) -> CUresult;
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) -> CUresult;
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) -> CUresult;
    fn cuCtxSetCurrent(context: CUcontext) -> CUresult;
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> CUresult;
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize) -> CUresult;
    fn cuMemFree_v2(address: CUdeviceptr) -> CUresult;
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult;
    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint) -> CUresult;
    fn cuMemFreeHost(address: *mut c_void) -> CUresult;
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) -> CUresult;
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult;
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult;
    fn cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult;
    fn cuIpcGetMemHandle(handle: *mut CUipcMemHandle, address: CUdeviceptr) -> CUresult;
    fn cuIpcOpenMemHandle_v2(address: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) -> CUresult;
    fn cuIpcCloseMemHandle(address: CUdeviceptr) -> CUresult;
    fn cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream) -> CUresult;
    fn cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int) -> CUresult;
    fn cuStreamDestroy_v2(stream: CUstream) -> CUresult;
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint) -> CUresult;
    fn cuStreamWaitValue32_v2(stream: CUstream, address: CUdeviceptr, value: u32, flags: c_uint) -> CUresult;
    fn cuStreamWriteValue32_v2(stream: CUstream, address: CUdeviceptr, value: u32, flags: c_uint) -> CUresult;
    fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> CUresult;
    fn cuEventDestroy_v2(event: CUevent) -> CUresult;
    fn cuEventRecord(event: CUevent, stream: CUstream) -> CUresult;
    fn cuEventQuery(event: CUevent) -> CUresult;
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: CUevent, end: CUevent) -> CUresult;
    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> CUresult;
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char) -> CUresult;
    fn cuFuncGetParamInfo(function: CUfunction, index: usize, offset: *mut usize, size: *mut usize) -> CUresult;
    fn cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction) -> CUresult;
    fn cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int) -> CUresult;
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, function: CUfunction, threads: c_int, shared: usize,
    ) -> CUresult;
    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig, function: CUfunction, parameters: *mut *mut c_void, extra: *mut *mut c_void,
    ) -> CUresult;
    fn cuTensorMapEncodeTiled(
        map: *mut CUtensorMap, dtype: CUtensorMapDataType, rank: u32, address: *mut c_void, extents: *const u64,
        strides: *const u64, part: *const u32, steps: *const u32, interleave: CUtensorMapInterleave,
        swizzle: CUtensorMapSwizzle, promotion: CUtensorMapL2promotion, outside: CUtensorMapFloatOOBfill,
    ) -> CUresult;
    loose fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> c_int;
    loose fn cuGetErrorString(error: c_int, text: *mut *const c_char) -> c_int;
}

functions! {
    /// `libcublasLt.so.13`.
    pub struct CublasLt like blas_sys;
    fn cublasLtCreate(handle: *mut cublasLtHandle_t) -> cublasStatus_t;
    fn cublasLtDestroy(handle: cublasLtHandle_t) -> cublasStatus_t;
    fn cublasLtMatmulDescCreate(
        desc: *mut cublasLtMatmulDesc_t, compute: cublasComputeType_t, scale: cudaDataType_t,
    ) -> cublasStatus_t;
    fn cublasLtMatmulDescDestroy(desc: cublasLtMatmulDesc_t) -> cublasStatus_t;
    fn cublasLtMatmulDescSetAttribute(
        desc: cublasLtMatmulDesc_t, attribute: cublasLtMatmulDescAttributes_t, value: *const c_void, bytes: usize,
    ) -> cublasStatus_t;
    fn cublasLtMatrixLayoutCreate(
        layout: *mut cublasLtMatrixLayout_t, r#type: cudaDataType_t, rows: u64, columns: u64, leading: i64,
    ) -> cublasStatus_t;
    fn cublasLtMatrixLayoutDestroy(layout: cublasLtMatrixLayout_t) -> cublasStatus_t;
    fn cublasLtMatmulPreferenceCreate(preference: *mut cublasLtMatmulPreference_t) -> cublasStatus_t;
    fn cublasLtMatmulPreferenceDestroy(preference: cublasLtMatmulPreference_t) -> cublasStatus_t;
    fn cublasLtMatmulPreferenceSetAttribute(
        preference: cublasLtMatmulPreference_t, attribute: cublasLtMatmulPreferenceAttributes_t, value: *const c_void,
        bytes: usize,
    ) -> cublasStatus_t;
    fn cublasLtMatmulAlgoGetHeuristic(
        handle: cublasLtHandle_t, desc: cublasLtMatmulDesc_t, a: cublasLtMatrixLayout_t, b: cublasLtMatrixLayout_t,
        c: cublasLtMatrixLayout_t, d: cublasLtMatrixLayout_t, preference: cublasLtMatmulPreference_t, wanted: c_int,
        results: *mut cublasLtMatmulHeuristicResult_t, found: *mut c_int,
    ) -> cublasStatus_t;
    fn cublasLtMatmulAlgoCheck(
        handle: cublasLtHandle_t, desc: cublasLtMatmulDesc_t, a: cublasLtMatrixLayout_t, b: cublasLtMatrixLayout_t,
        c: cublasLtMatrixLayout_t, d: cublasLtMatrixLayout_t, algorithm: *const cublasLtMatmulAlgo_t,
        result: *mut cublasLtMatmulHeuristicResult_t,
    ) -> cublasStatus_t;
    fn cublasLtMatmulAlgoConfigGetAttribute(
        algorithm: *const cublasLtMatmulAlgo_t, attribute: cublasLtMatmulAlgoConfigAttributes_t, value: *mut c_void,
        bytes: usize, written: *mut usize,
    ) -> cublasStatus_t;
    fn cublasLtMatmul(
        handle: cublasLtHandle_t, desc: cublasLtMatmulDesc_t, alpha: *const c_void, a: *const c_void,
        a_layout: cublasLtMatrixLayout_t, b: *const c_void, b_layout: cublasLtMatrixLayout_t, beta: *const c_void,
        c: *const c_void, c_layout: cublasLtMatrixLayout_t, d: *mut c_void, d_layout: cublasLtMatrixLayout_t,
        algorithm: *const cublasLtMatmulAlgo_t, workspace: *mut c_void, workspace_bytes: usize,
        stream: blas_sys::cudaStream_t,
    ) -> cublasStatus_t;
    plain fn cublasLtGetVersion() -> usize;
    loose fn cublasLtGetStatusString(status: c_int) -> *const c_char;
}

functions! {
    /// `libcudnn.so.9`: its graph interface.
    pub struct Cudnn like cudnn_sys;
    fn cudnnCreate(handle: *mut cudnnHandle_t) -> cudnnStatus_t;
    fn cudnnDestroy(handle: cudnnHandle_t) -> cudnnStatus_t;
    fn cudnnSetStream(handle: cudnnHandle_t, stream: cudnn_sys::cudaStream_t) -> cudnnStatus_t;
    fn cudnnBackendCreateDescriptor(
        kind: cudnnBackendDescriptorType_t, descriptor: *mut cudnnBackendDescriptor_t,
    ) -> cudnnStatus_t;
    fn cudnnBackendDestroyDescriptor(descriptor: cudnnBackendDescriptor_t) -> cudnnStatus_t;
    fn cudnnBackendSetAttribute(
        descriptor: cudnnBackendDescriptor_t, name: cudnnBackendAttributeName_t, kind: cudnnBackendAttributeType_t,
        count: i64, elements: *const c_void,
    ) -> cudnnStatus_t;
    fn cudnnBackendGetAttribute(
        descriptor: cudnnBackendDescriptor_t, name: cudnnBackendAttributeName_t, kind: cudnnBackendAttributeType_t,
        wanted: i64, found: *mut i64, elements: *mut c_void,
    ) -> cudnnStatus_t;
    fn cudnnBackendFinalize(descriptor: cudnnBackendDescriptor_t) -> cudnnStatus_t;
    fn cudnnBackendExecute(
        handle: cudnnHandle_t, plan: cudnnBackendDescriptor_t, pack: cudnnBackendDescriptor_t,
    ) -> cudnnStatus_t;
    plain fn cudnnGetVersion() -> usize;
    plain fn cudnnGetLastErrorString(message: *mut c_char, size: usize) -> ();
    loose fn cudnnGetErrorString(status: c_int) -> *const c_char;
}

functions! {
    /// `libnvrtc.so.13`: compiles kernels where no compiler was there to build them.
    pub struct Nvrtc like nvrtc_sys;
    fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> nvrtcResult;
    fn nvrtcCreateProgram(
        program: *mut nvrtcProgram, source: *const c_char, name: *const c_char, num_headers: c_int,
        headers: *const *const c_char, header_names: *const *const c_char,
    ) -> nvrtcResult;
    fn nvrtcDestroyProgram(program: *mut nvrtcProgram) -> nvrtcResult;
    fn nvrtcCompileProgram(program: nvrtcProgram, count: c_int, options: *const *const c_char) -> nvrtcResult;
    fn nvrtcGetCUBINSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult;
    fn nvrtcGetCUBIN(program: nvrtcProgram, cubin: *mut c_char) -> nvrtcResult;
    fn nvrtcGetProgramLogSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult;
    fn nvrtcGetProgramLog(program: nvrtcProgram, log: *mut c_char) -> nvrtcResult;
    loose fn nvrtcGetErrorString(result: c_int) -> *const c_char;
}

/// What the management library calls a device: an opaque pointer.
pub type NvmlDevice = *mut c_void;

/// `nvmlUtilization_t`: percent of the last sample in which kernels ran, and in which memory was accessed.
#[repr(C)]
#[derive(Default)]
pub struct NvmlUtilization {
    pub gpu: c_uint,
    pub memory: c_uint,
}

/// `nvmlMemory_t`, in bytes.
#[repr(C)]
#[derive(Default)]
pub struct NvmlMemory {
    pub total: u64,
    pub free: u64,
    pub used: u64,
}

functions! {
    /// `libnvidia-ml.so.1`, which comes with the driver: clocks, power and how busy a GPU is.
    pub struct Nvml;
    fn nvmlInit_v2() -> c_int;
    fn nvmlSystemGetDriverVersion(version: *mut c_char, bytes: c_uint) -> c_int;
    fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, device: *mut NvmlDevice) -> c_int;
    fn nvmlDeviceGetClockInfo(device: NvmlDevice, kind: c_uint, megahertz: *mut c_uint) -> c_int;
    fn nvmlDeviceGetPowerUsage(device: NvmlDevice, milliwatts: *mut c_uint) -> c_int;
    fn nvmlDeviceGetUtilizationRates(device: NvmlDevice, utilization: *mut NvmlUtilization) -> c_int;
    fn nvmlDeviceGetMemoryInfo(device: NvmlDevice, memory: *mut NvmlMemory) -> c_int;
}

/// A set of counters as the management library keeps it: an opaque pointer.
pub type NvmlSample = *mut c_void;

/// `nvmlGpmMetric_t`: one number that follows from two samples.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NvmlMetric {
    pub id: c_uint,
    pub status: c_int,
    pub value: f64,
    pub names: [*const c_char; 3],
}

/// `nvmlGpmMetricsGet_t`, with room for more metrics than any version of the header has: the library looks at `count`.
#[repr(C)]
pub struct NvmlMetrics {
    pub version: c_uint,
    pub count: c_uint,
    pub before: NvmlSample,
    pub after: NvmlSample,
    pub metrics: [NvmlMetric; 512],
}

functions! {
    /// What the same library knows of a GPU's counters, from Hopper on.
    pub struct NvmlCounters;
    fn nvmlGpmSampleAlloc(sample: *mut NvmlSample) -> c_int;
    fn nvmlGpmSampleFree(sample: NvmlSample) -> c_int;
    fn nvmlGpmSampleGet(device: NvmlDevice, sample: NvmlSample) -> c_int;
    fn nvmlGpmMetricsGet(metrics: *mut NvmlMetrics) -> c_int;
}

/// What NCCL calls a communicator: an opaque pointer.
pub type NcclComm = *mut c_void;
/// What NCCL calls a window, memory that lies alike on all ranks: an opaque pointer.
pub type NcclWindow = *mut c_void;

functions! {
    /// `libnccl.so.2`. Declared by hand after the header of 2.28.9; element types and operations are numbers.
    pub struct Nccl;
    fn ncclGetVersion(version: *mut c_int) -> c_int;
    fn ncclGetUniqueId(id: *mut NcclUniqueId) -> c_int;
    fn ncclCommInitRankConfig(
        comm: *mut NcclComm, world_size: c_int, id: NcclUniqueId, rank: c_int, config: *mut NcclConfig,
    ) -> c_int;
    fn ncclCommFinalize(comm: NcclComm) -> c_int;
    fn ncclCommDestroy(comm: NcclComm) -> c_int;
    fn ncclCommAbort(comm: NcclComm) -> c_int;
    fn ncclCommGetAsyncError(comm: NcclComm, error: *mut Code) -> c_int;
    fn ncclMemAlloc(address: *mut *mut c_void, bytes: usize) -> c_int;
    fn ncclMemFree(address: *mut c_void) -> c_int;
    fn ncclCommWindowRegister(
        comm: NcclComm, start: *mut c_void, bytes: usize, window: *mut NcclWindow, flags: c_int,
    ) -> c_int;
    fn ncclCommWindowDeregister(comm: NcclComm, window: NcclWindow) -> c_int;
    fn ncclAllGather(
        send: *const c_void, receive: *mut c_void, send_count: usize, dtype: c_int, comm: NcclComm, stream: CUstream,
    ) -> c_int;
    fn ncclReduceScatter(
        send: *const c_void, receive: *mut c_void, receive_count: usize, dtype: c_int, operation: c_int, comm: NcclComm,
        stream: CUstream,
    ) -> c_int;
    fn ncclAllReduce(
        send: *const c_void, receive: *mut c_void, count: usize, dtype: c_int, operation: c_int, comm: NcclComm,
        stream: CUstream,
    ) -> c_int;
    loose fn ncclGetErrorString(code: c_int) -> *const c_char;
    loose fn ncclGetLastError(comm: NcclComm) -> *const c_char;
}

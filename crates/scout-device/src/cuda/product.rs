//! Matrix products as cuBLASLt takes them: descriptors, candidates and the call. Which candidate is taken is decided in
//! `blas.rs`.
//!
//! Matrices here are row-major. cuBLASLt's are column-major, and a row-major matrix read by columns is its transpose; so
//! `c = a·b` is asked for as `cᵀ = bᵀ·aᵀ`, with the factors exchanged and nothing moved.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulAlgoConfigAttributes_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatmulTile_t, cublasLtMatrixLayout_t, cudaDataType_t,
};
use scout_core::DType;

use super::context::Context;
use super::foreign::{self, Code, text};
use super::stream::Stream;
use super::tables::CublasLt;
use crate::{DeviceError, Result};

/// Everything that cuBLASLt must know of `c = alpha·op(a)·op(b) + beta·c` beside addresses and scalars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// What is summed over.
    pub k: usize,
    pub a: FactorForm,
    pub b: FactorForm,
    /// Elements from one row of the result to the next.
    pub leading: usize,
    /// Element types of the factors and of the result. Sums are f32.
    pub factors: DType,
    pub result: DType,
    /// The largest power of two, up to 256, that divides all three addresses.
    pub alignment: u32,
}

impl Problem {
    /// About how long it takes on an H200: bound by arithmetic, or by memory, and never as short as nothing.
    pub(super) fn estimate(&self) -> Duration {
        let operations_per_second = if self.factors == DType::BF16 { 660e12 } else { 50e12 };
        const BYTES_PER_SECOND: f64 = 4e12;
        const LEAST: f64 = 3e-6;
        let [m, n, k] = [self.m, self.n, self.k].map(|extent| extent as f64);
        let bytes = self.factors.size().as_f64() * (m * k + k * n) + self.result.size().as_f64() * m * n;
        Duration::from_secs_f64((2.0 * m * n * k / operations_per_second).max(bytes / BYTES_PER_SECOND) + LEAST)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FactorForm {
    /// Stored with its dimensions exchanged.
    pub transposed: bool,
    /// Elements from one stored row to the next.
    pub leading: usize,
}

/// Addresses of a product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub a: u64,
    pub b: u64,
    pub c: u64,
}

/// Memory that an algorithm may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workspace {
    pub address: u64,
    pub bytes: usize,
}

/// Rows and columns of a result that a block may compute at a time.
pub(super) const WIDE_TILE: [usize; 2] = [128, 256];

/// How a product is computed, and how much workspace that takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Algorithm {
    raw: cublasLtMatmulAlgo_t,
    workspace: usize,
}

/// The library's state for one context.
pub(super) struct Handle {
    context: Arc<Context>,
    raw: cublasLtHandle_t,
}

// SAFETY: cuBLASLt's handle holds no state of a call; the library allows its use from many threads at once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// The descriptors of a problem.
pub(super) struct Descriptors {
    table: CublasLt,
    desc: cublasLtMatmulDesc_t,
    // The factors in cuBLASLt's order: first our `b`, then our `a`.
    first: cublasLtMatrixLayout_t,
    second: cublasLtMatrixLayout_t,
    result: cublasLtMatrixLayout_t,
}

// SAFETY: descriptors are plain memory, read by calls and written only while being made.
unsafe impl Send for Descriptors {}

impl Handle {
    pub(super) fn new(context: &Arc<Context>) -> Result<Handle> {
        let mut raw: cublasLtHandle_t = null_mut();
        context.driver()?;
        let table = &context.libraries.blas;
        // SAFETY: writes one pointer; the context is current.
        check(table, "cublasLtCreate", unsafe { (table.cublasLtCreate)(&mut raw) })?;
        Ok(Handle { context: context.clone(), raw })
    }

    fn table(&self) -> &CublasLt {
        &self.context.libraries.blas
    }

    pub(super) fn describe(&self, problem: &Problem) -> Result<Descriptors> {
        let table = self.table();
        let mut made =
            Descriptors { table: *table, desc: null_mut(), first: null_mut(), second: null_mut(), result: null_mut() };
        // Products and sums in f32. For f32 factors this is the plain arithmetic, without shorter formats inside.
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: writes one pointer, which `made` frees.
        let code = unsafe { (table.cublasLtMatmulDescCreate)(&mut made.desc, compute, cudaDataType_t::CUDA_R_32F) };
        check(table, "cublasLtMatmulDescCreate", code)?;
        use cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        made.set_operation(CUBLASLT_MATMUL_DESC_TRANSA, problem.b.transposed)?;
        made.set_operation(CUBLASLT_MATMUL_DESC_TRANSB, problem.a.transposed)?;
        let (factors, result) = (data_type(problem.factors)?, data_type(problem.result)?);
        made.first = layout(table, factors, stored(problem.k, problem.n, problem.b), problem.b.leading)?;
        made.second = layout(table, factors, stored(problem.m, problem.k, problem.a), problem.a.leading)?;
        made.result = layout(table, result, (problem.m, problem.n), problem.leading)?;
        Ok(made)
    }

    /// Up to `wanted` algorithms, the one that the library expects to be fastest first.
    pub(super) fn candidates(
        &self,
        descriptors: &Descriptors,
        alignment: u32,
        workspace: usize,
        wanted: usize,
    ) -> Result<Vec<Algorithm>> {
        use cublasLtMatmulPreferenceAttributes_t as Attribute;
        let table = self.table();
        let preference = Preference::new(table)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(workspace as u64).to_ne_bytes())?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(attribute, &alignment.to_ne_bytes())?;
        }
        // SAFETY: numbers, for which all bits zero are values; the status that zero stands for is success.
        let mut found: Vec<cublasLtMatmulHeuristicResult_t> = vec![unsafe { std::mem::zeroed() }; wanted];
        let mut count = 0;
        self.context.driver()?;
        let Descriptors { desc, first, second, result, .. } = *descriptors;
        // SAFETY: the descriptors are alive; writes at most `wanted` results, and their number.
        let code = unsafe {
            (table.cublasLtMatmulAlgoGetHeuristic)(
                self.raw,
                desc,
                first,
                second,
                result,
                result,
                preference.raw,
                wanted as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        check(table, "cublasLtMatmulAlgoGetHeuristic", code)?;
        found.truncate(count.max(0) as usize);
        let usable = found.iter().filter(|result| result.state as u32 == 0 && result.workspaceSize <= workspace);
        Ok(usable.map(|result| Algorithm { raw: result.algo, workspace: result.workspaceSize }).collect())
    }

    /// Whether blocks of an algorithm compute tiles of [`WIDE_TILE`].
    pub(super) fn has_wide_tiles(&self, algorithm: &Algorithm) -> Result<bool> {
        const TILE: cublasLtMatmulAlgoConfigAttributes_t =
            cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_TILE_ID;
        let table = self.table();
        let (mut tile, mut written) = (0u32, 0);
        let value = (&raw mut tile).cast();
        // SAFETY: the library made the algorithm; a tile is a number of 4 bytes, written during the call as is their count.
        let code = unsafe {
            (table.cublasLtMatmulAlgoConfigGetAttribute)(&algorithm.raw, TILE, value, size_of_val(&tile), &mut written)
        };
        check(table, "cublasLtMatmulAlgoConfigGetAttribute", code)?;
        // The library counts our columns first.
        Ok(tile == cublasLtMatmulTile_t::CUBLASLT_MATMUL_TILE_256x128 as u32)
    }

    /// An algorithm chosen for a similar problem, if it can compute this one too.
    pub(super) fn adapt(
        &self,
        descriptors: &Descriptors,
        algorithm: &Algorithm,
        workspace: usize,
    ) -> Option<Algorithm> {
        // SAFETY: numbers, for which all bits zero are values.
        let mut result: cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        self.context.driver().ok()?;
        let Descriptors { desc, first, second, result: c, .. } = *descriptors;
        // SAFETY: descriptors and algorithm are alive; writes one result.
        let code = unsafe {
            (self.table().cublasLtMatmulAlgoCheck)(self.raw, desc, first, second, c, c, &algorithm.raw, &mut result)
        };
        let fits = code == 0 && result.workspaceSize <= workspace;
        fits.then_some(Algorithm { raw: algorithm.raw, workspace: result.workspaceSize })
    }

    /// Queues `c = alpha·op(a)·op(b) + beta·c`. With `beta` 0, `c` is not read.
    ///
    /// # Safety
    ///
    /// The operands have the memory that the problem of `descriptors` says, `c` is nobody else's, and `workspace` is
    /// used by `stream` alone.
    pub(super) unsafe fn multiply(
        &self,
        descriptors: &Descriptors,
        algorithm: &Algorithm,
        operands: Operands,
        (alpha, beta): (f32, f32),
        workspace: Workspace,
        stream: &Stream,
    ) -> Result<()> {
        let table = self.table();
        self.context.driver()?;
        let Descriptors { desc, first, second, result, .. } = *descriptors;
        let address = |address: u64| address as *mut c_void;
        // SAFETY: alpha and beta are f32 on the host, read during the call; descriptors and algorithm are alive, the
        // algorithm takes no more workspace than there is (`candidates`, `adapt`); the rest is the caller's promise.
        let code = unsafe {
            (table.cublasLtMatmul)(
                self.raw,
                desc,
                (&raw const alpha).cast(),
                address(operands.b),
                first,
                address(operands.a),
                second,
                (&raw const beta).cast(),
                address(operands.c),
                result,
                address(operands.c),
                result,
                &algorithm.raw,
                address(workspace.address),
                algorithm.workspace,
                stream.raw().cast(),
            )
        };
        check(table, "cublasLtMatmul", code)
    }
}

impl Descriptors {
    fn set_operation(&self, attribute: cublasLtMatmulDescAttributes_t, transposed: bool) -> Result<()> {
        // The library's numbers for a matrix as it is, and for its transpose.
        let operation: i32 = if transposed { 1 } else { 0 };
        let value = (&raw const operation).cast::<c_void>();
        // SAFETY: the attribute is a number of 4 bytes, read during the call.
        let code = unsafe { (self.table.cublasLtMatmulDescSetAttribute)(self.desc, attribute, value, 4) };
        check(&self.table, "cublasLtMatmulDescSetAttribute", code)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        for layout in [self.first, self.second, self.result] {
            if !layout.is_null() {
                // SAFETY: made in `describe`, destroyed once.
                let _ = unsafe { (self.table.cublasLtMatrixLayoutDestroy)(layout) };
            }
        }
        if !self.desc.is_null() {
            // SAFETY: as above.
            let _ = unsafe { (self.table.cublasLtMatmulDescDestroy)(self.desc) };
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { (self.table().cublasLtDestroy)(self.raw) };
    }
}

/// What an algorithm must be able to do.
struct Preference<'a> {
    table: &'a CublasLt,
    raw: cublasLtMatmulPreference_t,
}

impl Preference<'_> {
    fn new(table: &CublasLt) -> Result<Preference<'_>> {
        let mut raw: cublasLtMatmulPreference_t = null_mut();
        // SAFETY: writes one pointer, which `Preference` frees.
        check(table, "cublasLtMatmulPreferenceCreate", unsafe { (table.cublasLtMatmulPreferenceCreate)(&mut raw) })?;
        Ok(Preference { table, raw })
    }

    /// `value` are the bytes of a number, as wide as the attribute.
    fn set(&self, attribute: cublasLtMatmulPreferenceAttributes_t, value: &[u8]) -> Result<()> {
        // SAFETY: as many bytes as announced, read during the call.
        let code = unsafe {
            (self.table.cublasLtMatmulPreferenceSetAttribute)(self.raw, attribute, value.as_ptr().cast(), value.len())
        };
        check(self.table, "cublasLtMatmulPreferenceSetAttribute", code)
    }
}

impl Drop for Preference<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { (self.table.cublasLtMatmulPreferenceDestroy)(self.raw) };
    }
}

/// Rows and columns as stored.
fn stored(rows: usize, columns: usize, form: FactorForm) -> (usize, usize) {
    if form.transposed { (columns, rows) } else { (rows, columns) }
}

/// A row-major matrix as cuBLASLt sees it: its columns are our rows.
fn layout(
    table: &CublasLt,
    data_type: cudaDataType_t,
    (rows, columns): (usize, usize),
    leading: usize,
) -> Result<cublasLtMatrixLayout_t> {
    let mut raw: cublasLtMatrixLayout_t = null_mut();
    // SAFETY: writes one pointer, which the caller frees.
    let code =
        unsafe { (table.cublasLtMatrixLayoutCreate)(&mut raw, data_type, columns as u64, rows as u64, leading as i64) };
    check(table, "cublasLtMatrixLayoutCreate", code)?;
    Ok(raw)
}

fn data_type(dtype: DType) -> Result<cudaDataType_t> {
    match dtype {
        DType::F32 => Ok(cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(cudaDataType_t::CUDA_R_16BF),
        found => Err(DeviceError::DType { what: "matrix product on the GPU", found, expected: DType::BF16 }),
    }
}

fn check(table: &CublasLt, call: &'static str, code: Code) -> Result<()> {
    // SAFETY: returns a static text for any number.
    foreign::check(call, code, |code| text(unsafe { (table.cublasLtGetStatusString)(code) }))
}

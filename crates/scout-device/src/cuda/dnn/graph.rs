//! Operations on tensors, gathered into one cuDNN operation graph.

use cudarc::cudnn::sys;
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendDescriptorType_t as Kind;
use sys::cudnnDataType_t as DataType;
use sys::cudnnPointwiseMode_t as Mode;

use super::api::Api;
use super::descriptor::{Descriptor, Draft};
use super::handle::Handle;
use crate::Result;

/// What every address that a graph works on must be a multiple of, in bytes.
pub(in crate::cuda) const ALIGNMENT: usize = 16;

pub(super) const F32: DataType = DataType::CUDNN_DATA_FLOAT;
pub(super) const BF16: DataType = DataType::CUDNN_DATA_BFLOAT16;
pub(super) const I32: DataType = DataType::CUDNN_DATA_INT32;
pub(super) const BOOLEAN: DataType = DataType::CUDNN_DATA_BOOLEAN;

/// Where a tensor's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the device, at an address given when the graph runs.
    Memory,
    /// Nowhere: it exists inside a kernel.
    Inside,
    /// One number on the host, read when the graph is launched.
    Value,
}

/// A tensor of a [`GraphBuilder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TensorId(usize);

impl TensorId {
    /// The name by which addresses are bound to the tensor.
    pub fn unique_id(self) -> i64 {
        self.0 as i64
    }
}

/// What a new tensor is like. Batch, head, row and column, in this order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub element: DataType,
    pub dims: [i64; 4],
    pub strides: [i64; 4],
    /// Where each batch entry starts, in elements; without it, a batch stride apart.
    pub starts: Option<TensorId>,
}

impl Form {
    /// Row-major, without gaps.
    pub fn dense(element: DataType, dims: [i64; 4]) -> Form {
        let [_, heads, rows, columns] = dims;
        Form { element, dims, strides: [heads * rows * columns, rows * columns, columns, 1], starts: None }
    }

    pub fn one(element: DataType) -> Form {
        Form::dense(element, [1; 4])
    }

    /// One number for each of `count` batch entries.
    pub fn per_entry(element: DataType, count: i64) -> Form {
        Form::dense(element, [count, 1, 1, 1])
    }

    /// The same memory with rows and columns exchanged.
    pub fn transposed(mut self) -> Form {
        self.dims.swap(2, 3);
        self.strides.swap(2, 3);
        self
    }

    pub fn of(mut self, element: DataType) -> Form {
        self.element = element;
        self
    }
}

/// How many rows, columns and inner elements of a product exist in each batch entry; `None` means all.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Extents {
    pub rows: Option<TensorId>,
    pub columns: Option<TensorId>,
    pub inner: Option<TensorId>,
}

pub(super) struct GraphBuilder {
    api: Api,
    name: &'static str,
    tensors: Vec<Descriptor>,
    forms: Vec<Form>,
    operations: Vec<Descriptor>,
}

impl GraphBuilder {
    pub fn new(api: Api, name: &'static str) -> GraphBuilder {
        GraphBuilder { api, name, tensors: Vec::new(), forms: Vec::new(), operations: Vec::new() }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn form(&self, tensor: TensorId) -> Form {
        self.forms[tensor.0]
    }

    pub fn tensor(&mut self, name: &str, place: Place, form: Form) -> Result<TensorId> {
        let id = TensorId(self.tensors.len());
        let subject = format!("tensor `{name}` of {}", self.name);
        let mut draft = Draft::new(self.api, Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR, subject)?
            .data_type(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, form.element)?
            .i64s(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &form.dims)?
            .i64s(Name::CUDNN_ATTR_TENSOR_STRIDES, &form.strides)?
            .i64s(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id.unique_id()])?
            .i64s(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT as i64])?;
        draft = match place {
            Place::Memory => draft,
            Place::Inside => draft.bool(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, true)?,
            Place::Value => draft.bool(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE, true)?,
        };
        if let Some(starts) = form.starts {
            draft = draft.descriptor(Name::CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, &self.tensors[starts.0])?;
        }
        self.tensors.push(draft.finish()?);
        self.forms.push(form);
        Ok(id)
    }

    /// A dense tensor that exists inside a kernel.
    pub fn inside(&mut self, name: &str, form: Form) -> Result<TensorId> {
        self.tensor(name, Place::Inside, form)
    }

    /// `mode(x)`, as a new tensor inside the kernel, shaped like `x`.
    pub fn unary(&mut self, name: &str, mode: Mode, x: TensorId) -> Result<TensorId> {
        let y = self.inside(name, Form::dense(F32, self.form(x).dims))?;
        self.pointwise(name, mode, [Some(x), None, None], y)?;
        Ok(y)
    }

    /// `mode(x, b)`, as a new tensor inside the kernel, shaped like `x`.
    pub fn binary(&mut self, name: &str, mode: Mode, x: TensorId, b: TensorId) -> Result<TensorId> {
        let y = self.inside(name, Form::dense(element_of(mode), self.form(x).dims))?;
        self.pointwise(name, mode, [Some(x), Some(b), None], y)?;
        Ok(y)
    }

    /// `x` where `condition` holds, else `otherwise`.
    pub fn select(&mut self, name: &str, condition: TensorId, x: TensorId, otherwise: TensorId) -> Result<TensorId> {
        let y = self.inside(name, Form::dense(F32, self.form(x).dims))?;
        let mode = Mode::CUDNN_POINTWISE_BINARY_SELECT;
        self.pointwise(name, mode, [Some(x), Some(otherwise), Some(condition)], y)?;
        Ok(y)
    }

    /// The position along `axis` of every element of `x`.
    pub fn position(&mut self, name: &str, axis: i64, x: TensorId) -> Result<TensorId> {
        let y = self.inside(name, Form::dense(I32, self.form(x).dims))?;
        let mode = self
            .draft(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR, name)?
            .pointwise_mode(Mode::CUDNN_POINTWISE_GEN_INDEX)?
            .data_type(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, I32)?
            .i64s(Name::CUDNN_ATTR_POINTWISE_AXIS, &[axis])?
            .finish()?;
        self.push_pointwise(name, &mode, [Some(x), None, None], y)?;
        Ok(y)
    }

    /// `mode` of one to three operands, written to `y`.
    pub fn pointwise(&mut self, name: &str, mode: Mode, operands: [Option<TensorId>; 3], y: TensorId) -> Result<()> {
        let mode = self
            .draft(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR, name)?
            .pointwise_mode(mode)?
            .data_type(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, element_of(mode))?
            .finish()?;
        self.push_pointwise(name, &mode, operands, y)
    }

    fn push_pointwise(
        &mut self,
        name: &str,
        mode: &Descriptor,
        operands: [Option<TensorId>; 3],
        y: TensorId,
    ) -> Result<()> {
        let mut draft = self
            .draft(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, name)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &self.tensors[y.0])?;
        let places = [
            Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
            Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
            Name::CUDNN_ATTR_OPERATION_POINTWISE_TDESC,
        ];
        for (place, operand) in places.into_iter().zip(operands) {
            if let Some(operand) = operand {
                draft = draft.descriptor(place, &self.tensors[operand.0])?;
            }
        }
        self.operations.push(draft.finish()?);
        Ok(())
    }

    /// `c = a · b`.
    pub fn matmul(&mut self, name: &str, a: TensorId, b: TensorId, c: TensorId, extents: Extents) -> Result<()> {
        let precision = self
            .draft(Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR, name)?
            .data_type(Name::CUDNN_ATTR_MATMUL_COMP_TYPE, F32)?
            .finish()?;
        let mut draft = self
            .draft(Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, name)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_ADESC, &self.tensors[a.0])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_BDESC, &self.tensors[b.0])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_CDESC, &self.tensors[c.0])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_DESC, &precision)?;
        for (place, extent) in [
            (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, extents.rows),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, extents.columns),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, extents.inner),
        ] {
            if let Some(extent) = extent {
                draft = draft.descriptor(place, &self.tensors[extent.0])?;
            }
        }
        self.operations.push(draft.finish()?);
        Ok(())
    }

    /// Reduces `x` to the dimensions of `y`.
    pub fn reduce(&mut self, name: &str, operator: sys::cudnnReduceTensorOp_t, x: TensorId, y: TensorId) -> Result<()> {
        let reduction = self
            .draft(Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR, name)?
            .data_type(Name::CUDNN_ATTR_REDUCTION_COMP_TYPE, F32)?
            .reduction_operator(operator)?
            .finish()?;
        let operation = self
            .draft(Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, name)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_DESC, &reduction)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, &self.tensors[x.0])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, &self.tensors[y.0])?
            .finish()?;
        self.operations.push(operation);
        Ok(())
    }

    /// `x` seen under another form.
    pub fn reshape(&mut self, name: &str, x: TensorId, form: Form) -> Result<TensorId> {
        let y = self.inside(name, form)?;
        let operation = self
            .draft(Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, name)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, &self.tensors[x.0])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, &self.tensors[y.0])?
            .finish()?;
        self.operations.push(operation);
        Ok(y)
    }

    pub fn finish(self, handle: &Handle) -> Result<Descriptor> {
        let operations: Vec<&Descriptor> = self.operations.iter().collect();
        let draft = self
            .draft(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "all operations")?
            .descriptors(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations)?;
        // SAFETY: the handle is live, and whoever owns it drops what is built on it first (field order of `Runner`).
        unsafe { draft.handle(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle.raw()) }?.finish()
    }

    fn draft(&self, kind: Kind, name: &str) -> Result<Draft> {
        let subject = format!("`{name}` of {} ({kind:?})", self.name);
        Draft::new(self.api, kind, subject)
    }
}

/// What an operation computes in and, but for positions, what its result is made of.
fn element_of(mode: Mode) -> DataType {
    match mode {
        Mode::CUDNN_POINTWISE_CMP_LT | Mode::CUDNN_POINTWISE_CMP_GE | Mode::CUDNN_POINTWISE_LOGICAL_AND => BOOLEAN,
        _ => F32,
    }
}

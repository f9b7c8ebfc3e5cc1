//! A graph that cuDNN has turned into kernels, ready to run.

use std::ffi::c_void;

use cudarc::cudnn::sys;
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendDescriptorType_t as Kind;

use super::api::Api;
use super::descriptor::{Descriptor, Draft};
use super::graph::{GraphBuilder, TensorId};
use super::handle::Handle;
use crate::{DeviceError, Result};

pub(super) struct Plan {
    plan: Descriptor,
    // The plan was made from these; cuDNN does not say that it copies them.
    _engine: Descriptor,
    _graph: Descriptor,
    api: Api,
    name: &'static str,
    workspace_bytes: usize,
}

impl Plan {
    /// The first plan, in the order of cuDNN's own guess of speed, that can be made. Compiles kernels, so it takes up to
    /// a second or two.
    pub fn make(api: Api, handle: &Handle, graph: GraphBuilder) -> Result<Plan> {
        let name = graph.name();
        let graph = graph.finish(handle)?;
        let heuristics = Draft::new(api, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, format!("engines for {name}"))?
            .descriptor(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &graph)?
            .heuristic_mode(sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A)?
            .finish()?;
        let engines = heuristics.held(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?;
        let mut refusals = Vec::new();
        for engine in engines {
            match realise(api, name, &engine) {
                Ok(plan) => {
                    let workspace_bytes = plan.i64(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
                    let workspace_bytes = usize::try_from(workspace_bytes).unwrap_or(0);
                    return Ok(Plan { plan, _engine: engine, _graph: graph, api, name, workspace_bytes });
                }
                Err(refusal) => refusals.push(refusal.to_string()),
            }
        }
        let problem = match refusals.is_empty() {
            true => format!("no engine takes {name} on this GPU; attention needs compute capability 9.0 or later"),
            false => format!("no engine takes {name}: {}", refusals.join("; ")),
        };
        Err(DeviceError::Value { what: "cuDNN", problem })
    }

    /// What the kernels need for themselves while they run.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    /// Starts the kernels on the handle's stream.
    ///
    /// # Safety
    /// The plan must have been made with `handle`. `bindings` must name every tensor of the graph that is not inside;
    /// each address must be as large as its tensor, aligned, and stay valid until the kernels have run, `workspace`
    /// likewise with `workspace_bytes()`. Values on the host must be readable during this call.
    pub unsafe fn execute(
        &self,
        handle: &Handle,
        bindings: &[(TensorId, *mut c_void)],
        workspace: *mut c_void,
    ) -> Result<()> {
        let names: Vec<i64> = bindings.iter().map(|(tensor, _)| tensor.unique_id()).collect();
        let addresses: Vec<*mut c_void> = bindings.iter().map(|&(_, address)| address).collect();
        let subject = format!("the addresses of {}", self.name);
        let pack = Draft::new(self.api, Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, subject)?
            .i64s(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &names)?
            .addresses(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?
            .addresses(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[workspace])?
            .finish()?;
        // SAFETY: handle, plan and pack are live and finished; the caller vouches for the addresses.
        let code = unsafe { (self.api.table.cudnnBackendExecute)(handle.raw(), self.plan.raw(), pack.raw()) };
        self.api.check("cudnnBackendExecute", code, || self.name.to_string())
    }
}

fn realise(api: Api, name: &'static str, engine: &Descriptor) -> Result<Descriptor> {
    Draft::new(api, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, format!("a plan of {name}"))?
        .descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine)?
        .finish()
}

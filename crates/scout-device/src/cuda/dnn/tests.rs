//! Plans made without a device, for one that is only described.

use super::api::Api;
use super::handle::Target;
use super::plan::Plan;
use super::{AttentionShape, Gradients, Heads, graph_backward, graph_forward};
use crate::cuda::tables::Cudnn;

/// An NVIDIA H200, in the words in which cuDNN writes a device down.
const H200: &str = r#"{"deviceName":"NVIDIA H200","cudaDeviceId":0,"deviceVer":900,"multiProcessorCount":132,
"driverVer":13000,"maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":232448,
"reservedSharedMemoryPerBlock":1024,"totalGlobalMem":150109880320,"maxGridSize":[2147483647,65535,65535],
"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"warpSize":32,"maxRegistersPerSM":65536,"maxCtasPerSM":32,
"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,
"smClockRateKHz":1980000,"memClockRateKHz":3201000,"l2CacheSize":62914560}"#;

#[test]
#[ignore = "needs libcudnn.so.9 and libnvrtc.so.13 on the loader's path, but no GPU"]
fn every_shape_has_a_plan_for_a_described_h200() {
    // SAFETY: opening runs the library's initialisers, which expect nothing of the process.
    let library = Box::leak(Box::new(unsafe { libloading::Library::new("libcudnn.so.9") }.unwrap()));
    let api = Api::new(Cudnn::resolve(library).unwrap()).unwrap();
    let target = Target::described(api, H200).unwrap();
    for (query, kv) in [(40, 8)] {
        for (documents, longest) in [(4, 2048)] {
            for gradients in [Gradients::AnyOrder, Gradients::FixedOrder] {
                let shape = AttentionShape::new(Heads { query, kv, size: 128 }, documents, longest, gradients).unwrap();
                let (graph, _) = graph_forward::build(api, &shape).unwrap();
                let forward = Plan::make(api, &target, graph).map(|plan| (plan.workspace_bytes(), plan.made_in()));
                let (graph, _) = graph_backward::build(api, &shape).unwrap();
                let backward = Plan::make(api, &target, graph).map(|plan| (plan.workspace_bytes(), plan.made_in()));
                println!("{shape:?}\n  {forward:?}\n  {backward:?}");
            }
        }
    }
}

//! What a number was measured on: without it nobody can compare.

use std::collections::BTreeMap;

use scout_device::{Device, host};
use serde_json::{Value, json};

/// The device and its libraries, and the host around it.
pub fn environment(device: &Device) -> Value {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (name, memory, libraries) = match device {
        Device::Cpu => ("cpu".to_string(), None, BTreeMap::new()),
        Device::Cuda(gpu) => {
            let libraries = gpu.libraries().iter().map(|found| (found.name, found.version.clone())).collect();
            (gpu.properties().name.clone(), Some(gpu.properties().memory.0), libraries)
        }
    };
    json!({
        "device": name, "device_memory_bytes": memory, "libraries": libraries,
        "host": host::name(), "host_cores": cores,
    })
}

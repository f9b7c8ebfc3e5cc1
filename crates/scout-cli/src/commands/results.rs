//! What commands write down of their results.

use std::collections::BTreeMap;

use scout_device::{Device, host};
use serde_json::{Value, json};

use crate::build_info::COMMIT;

/// What a benchmark `found`, beside what all results have. Without what it was measured on nobody can compare a number; what
/// has no meaning for a benchmark is null.
pub fn results(benchmark: &str, (device, num_ranks): (&Device, usize), found: Value) -> Value {
    let num_gpus = match device {
        Device::Cpu => 0,
        Device::Cuda(_) => num_ranks,
    };
    let mut all = json!({
        "benchmark": benchmark, "layers": null, "gpus": num_gpus, "num_ranks": num_ranks, "batch": null, "seq": null,
        "tok_s_gpu": null, "useful_tflops": null, "step_s": null, "environment": environment(device),
        "version": env!("CARGO_PKG_VERSION"), "commit": COMMIT,
        "command": std::env::args().collect::<Vec<_>>().join(" "),
    });
    if let (Value::Object(all), Value::Object(found)) = (&mut all, found) {
        all.extend(found);
    }
    all
}

/// The device and its libraries, and the host around it.
fn environment(device: &Device) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_results_have_the_same_keys_and_what_was_found_stands_among_them() {
        let all = results("toy", (&Device::Cpu, 3), json!({ "seq": 16, "mine": 7 }));
        let keys =
            "layers gpus batch seq tok_s_gpu useful_tflops step_s commit command benchmark num_ranks environment";
        for key in keys.split(' ') {
            assert!(all.get(key).is_some(), "`{key}` is missing: {all}");
        }
        assert_eq!((&all["benchmark"], &all["seq"], &all["mine"]), (&json!("toy"), &json!(16), &json!(7)));
        assert_eq!((&all["gpus"], &all["num_ranks"], &all["layers"]), (&json!(0), &json!(3), &Value::Null));
    }
}

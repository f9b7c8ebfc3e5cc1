//! Which device computes. Choosing one never falls back: a wish that cannot be met is an error.

use std::path::Path;

use crate::{DeviceError, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu,
}

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceWish {
    /// CUDA where a driver is loaded, else the host.
    Auto,
    Cpu,
    Cuda,
}

/// The kernel module's own word that a driver is loaded.
const DRIVER_VERSION_FILE: &str = "/proc/driver/nvidia/version";

impl Device {
    /// The device for `wish`; fails when CUDA is asked for, or a driver is loaded, and this program cannot use it.
    pub fn choose(wish: DeviceWish) -> Result<Device> {
        Device::choose_with(wish, Path::new(DRIVER_VERSION_FILE).exists())
    }

    fn choose_with(wish: DeviceWish, driver_loaded: bool) -> Result<Device> {
        let no_cuda_path = "this version computes on the host only";
        match (wish, driver_loaded) {
            (DeviceWish::Cpu, _) | (DeviceWish::Auto, false) => Ok(Device::Cpu),
            (DeviceWish::Auto, true) => Err(DeviceError::Unavailable {
                wanted: "auto".to_string(),
                reason: format!("a CUDA driver is loaded, but {no_cuda_path}"),
            }),
            (DeviceWish::Cuda, _) => {
                Err(DeviceError::Unavailable { wanted: "cuda".to_string(), reason: no_cuda_path.to_string() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_cuda_is_never_met_by_the_host_in_silence() {
        for (wish, driver_loaded, expected) in [
            (DeviceWish::Auto, false, true),
            (DeviceWish::Auto, true, false),
            (DeviceWish::Cpu, true, true),
            (DeviceWish::Cuda, false, false),
            (DeviceWish::Cuda, true, false),
        ] {
            assert_eq!(Device::choose_with(wish, driver_loaded).is_ok(), expected, "{wish:?} {driver_loaded}");
        }
    }
}

//! Which device computes. Choosing one never falls back: a wish that cannot be met is an error.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::cuda::device::{CudaDevice, CudaOptions};

#[derive(Debug, Clone)]
pub enum Device {
    Cpu,
    Cuda(Arc<CudaDevice>),
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
    /// The device for `wish`; fails when CUDA is asked for, or a driver is loaded, and anything that it needs is missing.
    pub fn choose(wish: DeviceWish, options: &CudaOptions) -> Result<Device> {
        match wants_cuda(wish, Path::new(DRIVER_VERSION_FILE).exists()) {
            false => Ok(Device::Cpu),
            true => Ok(Device::Cuda(CudaDevice::open(options)?)),
        }
    }
}

fn wants_cuda(wish: DeviceWish, driver_loaded: bool) -> bool {
    match wish {
        DeviceWish::Cpu => false,
        DeviceWish::Cuda => true,
        DeviceWish::Auto => driver_loaded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_cuda_is_never_met_by_the_host_in_silence() {
        for (wish, driver_loaded, expected) in [
            (DeviceWish::Auto, false, false),
            (DeviceWish::Auto, true, true),
            (DeviceWish::Cpu, true, false),
            (DeviceWish::Cuda, false, true),
            (DeviceWish::Cuda, true, true),
        ] {
            assert_eq!(wants_cuda(wish, driver_loaded), expected, "{wish:?} {driver_loaded}");
        }
    }

    #[test]
    fn a_wish_for_cuda_is_an_error_where_there_is_none() {
        let options = CudaOptions::default();
        match Device::choose(DeviceWish::Cuda, &options) {
            Ok(Device::Cuda(device)) => assert!(device.properties().architecture > 0),
            Ok(Device::Cpu) => panic!("the host was taken in silence"),
            Err(refused) => assert_eq!(refused.exit_code(), scout_core::ExitCode::DeviceUnavailable, "{refused}"),
        }
        assert!(matches!(Device::choose(DeviceWish::Cpu, &options), Ok(Device::Cpu)));
    }
}

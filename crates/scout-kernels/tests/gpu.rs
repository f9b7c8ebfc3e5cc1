//! The ops on a GPU, for machines that have one. Elsewhere `scout-dist selftest ops` is carried to such a machine.

use scout_core::ByteCount;
use scout_device::cuda::{CudaDevice, CudaOptions, Search};

#[test]
#[ignore = "needs a GPU: `scout-dist selftest ops` runs the same there"]
fn every_op_on_the_gpu_agrees_with_the_host() {
    let search = Search {
        cuda_libs: std::env::var_os("SCOUT_CUDA_LIBS"),
        library_path: std::env::var_os("LD_LIBRARY_PATH"),
        virtual_env: std::env::var_os("VIRTUAL_ENV"),
    };
    let options = CudaOptions { search, working_memory: ByteCount(24 << 30), ..CudaOptions::default() };
    let device = CudaDevice::open(&options).expect("this test was asked for, so the machine has a GPU");
    let outcomes = scout_kernels::selftest::run(&device, "", 1);
    assert!(outcomes.len() > 300, "{} comparisons", outcomes.len());
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_ok()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

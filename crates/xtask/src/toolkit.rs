//! CUDA's compiler out of Python packages, so that every machine has the same one without a toolkit of its own.

/// The compiler and what it calls and includes, without the rest of the toolkit.
pub const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];
/// From the root of the workspace, as is where it is installed.
pub const COMPILER: &str = "target/nvcc/nvidia/cu13/bin/nvcc";
const FOLDER: &str = "target/nvcc";

/// Succeeds in the root of the workspace when the compiler is the one of `PACKAGES`, and compiles a text with a header of
/// the last of them, which includes those of the others.
pub const PROBE: &str = "cd target/nvcc/nvidia/cu13/bin && ./nvcc --version | grep -q V13.0.88 \
    && echo '#include <cuda/std/cstdint>' | ./nvcc -x cu -cubin -arch=sm_90a -o probe.cubin -";

/// The command that installs it, in the root of the workspace. `pip` replaces the folder that the packages share, so they
/// come together or not at all.
pub fn installation() -> Vec<&'static str> {
    let pip = ["python3", "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"];
    [&pip[..], &["--upgrade", "--target", FOLDER], &PACKAGES].concat()
}

//! How CUDA's compiler is called: the same in the build script and in the gate. It finds neither compiler nor sources.

use std::path::Path;
use std::process::Command;

/// Each architecture by its number in the program, and by its names for the compiler. The first is for 9.0 alone, whose
/// matrix instructions exist nowhere else; the second runs on all of 8.x.
pub const ARCHITECTURES: [(u32, &str, &str); 2] = [(90, "compute_90a", "sm_90a"), (80, "compute_80", "sm_80")];
pub const OPTIONS: [&str; 5] = ["-cubin", "-O3", "--std=c++17", "-Werror", "all-warnings"];
/// What all kernels include lies here, in the folder of this crate.
pub const HEADERS: &str = "src/cuda";

/// Compiles one source for one of the architectures when run in the folder of this crate.
pub fn command(compiler: &Path, source: &Path, architecture: usize, output: &Path) -> Command {
    let (_, virtual_name, real_name) = ARCHITECTURES[architecture];
    let mut command = Command::new(compiler);
    command.args(OPTIONS).arg(format!("-gencode=arch={virtual_name},code={real_name}"));
    command.args(["-I", HEADERS, "-o"]).arg(output).arg(source);
    command
}

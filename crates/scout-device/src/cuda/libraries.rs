//! Finds the CUDA libraries by path, opens them, and says which files and versions were taken. Nothing is computed here.
//!
//! Libraries are opened by absolute path before anything asks for them by name: what one library loads by name later
//! (cuDNN its NVRTC, NVRTC its built-in functions) is then the copy that was chosen here.

use std::ffi::{OsString, c_char, c_int};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::foreign::text;
use super::tables::{CublasLt, Cudnn, Driver, Nccl, Nvml, NvmlCounters, Nvrtc};
use crate::{DeviceError, Result};

/// Where to look, as the environment says. Reading the environment is the caller's part.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// `SCOUT_CUDA_LIBS`: folders of libraries, or of Python packages that hold them; separated by `:`.
    pub cuda_libs: Option<OsString>,
    /// `LD_LIBRARY_PATH`.
    pub library_path: Option<OsString>,
    /// `VIRTUAL_ENV`: pip's packages lie below.
    pub virtual_env: Option<OsString>,
}

/// A library that was opened.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: &'static str,
    pub path: PathBuf,
    pub version: String,
}

/// The tables of all libraries. The driver and cuBLASLt are there; asking for another one may fail.
pub struct Libraries {
    pub driver: Driver,
    pub blas: CublasLt,
    nvrtc: std::result::Result<Nvrtc, Missing>,
    cudnn: std::result::Result<Cudnn, Missing>,
    nvml: std::result::Result<Nvml, Missing>,
    /// Older drivers have none.
    counters: Option<NvmlCounters>,
    nccl: std::result::Result<Nccl, Missing>,
    pub found: Vec<Found>,
}

#[derive(Debug, Clone)]
struct Missing {
    file: &'static str,
    problem: String,
    install: &'static str,
}

impl Missing {
    fn error(&self) -> DeviceError {
        DeviceError::Library { library: self.file, problem: self.problem.clone(), install: self.install }
    }
}

/// A library as it is looked for.
struct Wanted {
    name: &'static str,
    file: &'static str,
    install: &'static str,
}

const DRIVER: Wanted =
    Wanted { name: "driver", file: "libcuda.so.1", install: "install NVIDIA's driver, version 580 or later" };
const BLAS: Wanted = Wanted {
    name: "cuBLASLt",
    file: "libcublasLt.so.13",
    install: "install CUDA 13, or `pip install nvidia-cublas==13.1.0.3`, and name its folder in SCOUT_CUDA_LIBS",
};
const NVRTC: Wanted = Wanted {
    name: "NVRTC",
    file: "libnvrtc.so.13",
    install: "install CUDA 13, or `pip install nvidia-cuda-nvrtc==13.0.88`, and name its folder in SCOUT_CUDA_LIBS",
};
const CUDNN: Wanted = Wanted {
    name: "cuDNN",
    file: "libcudnn.so.9",
    install: "install cuDNN 9.19, or `pip install nvidia-cudnn-cu13==9.19.0.56`, and name its folder in SCOUT_CUDA_LIBS",
};
const NVML: Wanted = Wanted { name: "NVML", file: "libnvidia-ml.so.1", install: DRIVER.install };
const NCCL: Wanted = Wanted {
    name: "NCCL",
    file: "libnccl.so.2",
    install: "install NCCL 2.28, or `pip install nvidia-nccl-cu13==2.28.9`, and name its folder in SCOUT_CUDA_LIBS",
};

/// NVRTC opens this one by name, from a folder that it does not know.
const NVRTC_BUILTINS: &str = "libnvrtc-builtins.so.13";

impl Libraries {
    /// Opens what is there. Fails without the driver or without cuBLASLt; what else is missing fails when asked for.
    pub fn open(search: &Search) -> Result<Libraries> {
        let folders = search.folders();
        let mut found = Vec::new();
        let (driver, path) = open(&DRIVER, &folders, Driver::resolve).map_err(|missing| missing.error())?;
        found.push(Found { name: DRIVER.name, path, version: driver_version(&driver) });
        let (blas, path) = open(&BLAS, &folders, CublasLt::resolve).map_err(|missing| missing.error())?;
        // SAFETY: takes nothing, returns a number.
        let version = unsafe { (blas.cublasLtGetVersion)() };
        found.push(Found { name: BLAS.name, path, version: dotted(version, 10_000, 100) });
        let nvrtc = open(&NVRTC, &folders, Nvrtc::resolve).map(|(nvrtc, path)| {
            open_builtins(&path, &folders);
            found.push(Found { name: NVRTC.name, path, version: nvrtc_version(&nvrtc) });
            nvrtc
        });
        let cudnn = open(&CUDNN, &folders, Cudnn::resolve).map(|(cudnn, path)| {
            // SAFETY: takes nothing, returns a number.
            let version = unsafe { (cudnn.cudnnGetVersion)() };
            found.push(Found { name: CUDNN.name, path, version: dotted(version, 10_000, 100) });
            cudnn
        });
        let nvml = open(&NVML, &folders, Nvml::resolve).map(|(nvml, path)| {
            found.push(Found { name: NVML.name, path, version: nvml_version(&nvml) });
            nvml
        });
        let counters = open(&NVML, &folders, NvmlCounters::resolve).ok().map(|(counters, _)| counters);
        let nccl = open(&NCCL, &folders, Nccl::resolve).map(|(nccl, path)| {
            found.push(Found { name: NCCL.name, path, version: nccl_version(&nccl) });
            nccl
        });
        Ok(Libraries { driver, blas, nvrtc, cudnn, nvml, counters, nccl, found })
    }

    pub fn nvrtc(&self) -> Result<&Nvrtc> {
        self.nvrtc.as_ref().map_err(Missing::error)
    }

    pub fn cudnn(&self) -> Result<&Cudnn> {
        self.cudnn.as_ref().map_err(Missing::error)
    }

    pub fn nvml(&self) -> Result<&Nvml> {
        self.nvml.as_ref().map_err(Missing::error)
    }

    pub fn counters(&self) -> Option<&NvmlCounters> {
        self.counters.as_ref()
    }

    pub fn nccl(&self) -> Result<&Nccl> {
        self.nccl.as_ref().map_err(Missing::error)
    }

    /// What could not be opened, each with the reason.
    pub fn missing(&self) -> Vec<DeviceError> {
        let outcomes =
            [self.nvrtc.as_ref().err(), self.cudnn.as_ref().err(), self.nvml.as_ref().err(), self.nccl.as_ref().err()];
        outcomes.into_iter().flatten().map(Missing::error).collect()
    }
}

impl Search {
    /// Folders in the order in which they are searched; only those that exist.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        for folder in split(&self.cuda_libs) {
            folders.extend(package_folders(&folder));
            folders.extend(package_folders(&folder.join("nvidia")));
            folders.push(folder);
        }
        folders.extend(split(&self.library_path));
        for prefix in split(&self.virtual_env).into_iter().chain(["/usr/local", "/usr"].map(PathBuf::from)) {
            for python in entries(&prefix.join("lib")).into_iter().filter(|path| is_python(path)) {
                for packages in ["site-packages", "dist-packages"] {
                    folders.extend(package_folders(&python.join(packages).join("nvidia")));
                }
            }
        }
        const SYSTEM: [&str; 6] = [
            "/usr/local/cuda/lib64",
            "/usr/local/nvidia/lib64",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
            "/usr/lib/wsl/lib",
        ];
        folders.extend(SYSTEM.map(PathBuf::from));
        let mut kept: Vec<PathBuf> = Vec::new();
        for folder in folders {
            if folder.is_dir() && !kept.contains(&folder) {
                kept.push(folder);
            }
        }
        kept
    }
}

fn split(paths: &Option<OsString>) -> Vec<PathBuf> {
    let all = paths.iter().flat_map(|paths| std::env::split_paths(paths).collect::<Vec<_>>());
    all.filter(|path| !path.as_os_str().is_empty()).collect()
}

/// Below a folder of pip's CUDA packages, each has its libraries in `lib`.
fn package_folders(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().map(|package| package.join("lib")).filter(|lib| lib.is_dir()).collect()
}

fn is_python(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
}

/// The entries of a folder in the order of their names; none where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// The first file of the name in `folders`, else what the system's loader takes. The library stays open for good.
fn open<T>(
    wanted: &Wanted,
    folders: &[PathBuf],
    resolve: fn(&Library) -> std::result::Result<T, &'static str>,
) -> std::result::Result<(T, PathBuf), Missing> {
    let missing = |problem: String| Missing { file: wanted.file, problem, install: wanted.install };
    let candidate = folders.iter().map(|folder| folder.join(wanted.file)).find(|path| path.is_file());
    let path = candidate.unwrap_or_else(|| PathBuf::from(wanted.file));
    // SAFETY: opening runs the initialisers of one of NVIDIA's libraries, which expect nothing of the process.
    let library = unsafe { Library::new(&path) }.map_err(|cause| match path.is_absolute() {
        true => missing(format!("`{}` cannot be opened: {cause}", path.display())),
        false => missing(format!("it is in none of {} folders and not known to the system's loader", folders.len())),
    })?;
    let library: &'static Library = Box::leak(Box::new(library));
    let table = resolve(library)
        .map_err(|function| missing(format!("`{}` has no function {function}: it is too old", path.display())))?;
    Ok((table, path))
}

/// Opens NVRTC's built-in functions from beside it, for good. Where they are missing, compiling says so.
fn open_builtins(nvrtc: &Path, folders: &[PathBuf]) {
    let beside = nvrtc.parent().map(Path::to_path_buf);
    let is_builtins =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NVRTC_BUILTINS));
    let path = beside.iter().chain(folders).flat_map(|folder| entries(folder)).find(is_builtins);
    if let Some(path) = path {
        // SAFETY: as for every library of NVIDIA's.
        std::mem::forget(unsafe { Library::new(path) });
    }
}

fn dotted(version: usize, major: usize, minor: usize) -> String {
    format!("{}.{}.{}", version / major, version % major / minor, version % minor)
}

fn driver_version(driver: &Driver) -> String {
    let mut version: c_int = 0;
    // SAFETY: writes one number, needs no initialised driver.
    let code = unsafe { (driver.cuDriverGetVersion)(&mut version) };
    if code == 0 { format!("CUDA {}.{}", version / 1000, version % 1000 / 10) } else { "unknown".to_string() }
}

fn nvrtc_version(nvrtc: &Nvrtc) -> String {
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: writes two numbers.
    let code = unsafe { (nvrtc.nvrtcVersion)(&mut major, &mut minor) };
    if code == 0 { format!("{major}.{minor}") } else { "unknown".to_string() }
}

fn nccl_version(nccl: &Nccl) -> String {
    let mut version: c_int = 0;
    // SAFETY: writes one number.
    let code = unsafe { (nccl.ncclGetVersion)(&mut version) };
    if code == 0 { dotted(version as usize, 10_000, 100) } else { "unknown".to_string() }
}

fn nvml_version(nvml: &Nvml) -> String {
    let mut version = [0 as c_char; 96];
    // SAFETY: may be called any number of times.
    if unsafe { (nvml.nvmlInit_v2)() } != 0 {
        return "unknown".to_string();
    }
    // SAFETY: writes at most the 96 bytes that there are, zero-terminated.
    let code = unsafe { (nvml.nvmlSystemGetDriverVersion)(version.as_mut_ptr(), version.len() as u32) };
    if code == 0 { format!("driver {}", text(version.as_ptr())) } else { "unknown".to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_in_the_order_that_the_user_gave() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in ["own", "site/nvidia/cu13/lib", "site/nvidia/cudnn/lib", "site/nvidia/empty", "loader"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::create_dir_all(at("venv/lib/python3.12/site-packages/nvidia/nccl/lib")).unwrap();
        let cuda_libs = std::env::join_paths([at("own"), at("site"), at("gone")]).unwrap();
        let search = Search {
            cuda_libs: Some(cuda_libs),
            library_path: Some(at("loader").into_os_string()),
            virtual_env: Some(at("venv").into_os_string()),
        };
        let expected = [
            at("own"),
            at("site/nvidia/cu13/lib"),
            at("site/nvidia/cudnn/lib"),
            at("site"),
            at("loader"),
            at("venv/lib/python3.12/site-packages/nvidia/nccl/lib"),
        ];
        assert_eq!(search.folders()[..6], expected);
    }

    #[test]
    fn a_library_that_is_not_there_is_named_with_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = Wanted { name: "nothing", file: "libscout-nothing.so.1", install: "install it" };
        let folders = [folder.path().to_path_buf()];
        let absent = open(&wanted, &folders, Nccl::resolve).err().unwrap().error();
        assert!(absent.to_string().contains("libscout-nothing.so.1"), "{absent}");
        assert_eq!(absent.hint().unwrap(), "install it, or set `device: cpu` to train on the host");
        assert_eq!(absent.exit_code(), scout_core::ExitCode::DeviceUnavailable);
        std::fs::write(folder.path().join(wanted.file), "no library").unwrap();
        let broken = open(&wanted, &folders, Nccl::resolve).err().unwrap().error();
        assert!(broken.to_string().contains("cannot be opened"), "{broken}");
    }

    #[test]
    fn versions_are_written_with_dots() {
        assert_eq!(dotted(130_100, 10_000, 100), "13.1.0");
        assert_eq!(dotted(91_900, 10_000, 100), "9.19.0");
        assert_eq!(dotted(22_809, 10_000, 100), "2.28.9");
    }
}

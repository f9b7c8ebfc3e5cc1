//! Builds the kernels of every op folder into the program: as text, and as machine code where CUDA's compiler is found.
//! Without one, the program compiles them when it first runs.

mod nvcc;

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use nvcc::{ARCHITECTURES, HEADERS, OPTIONS};

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=nvcc.rs");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = kernels();
    let compiler = compiler();
    if let Some(compiler) = &compiler {
        compile_all(compiler, &kernels, &out);
    }
    std::fs::write(out.join("sources.rs"), sources(&kernels, compiler.is_some())).expect("OUT_DIR can be written");
}

/// A `.cu` file in a folder of `src`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    /// That of the folder for its `kernel.cu`; for others theirs behind it, as `folder_other`.
    name: String,
    path: PathBuf,
}

/// All of them.
fn kernels() -> Vec<Source> {
    let mut found: Vec<Source> = entries(Path::new("src"))
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| entries(&folder))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .filter_map(|path| {
            let folder = path.parent()?.file_name()?.to_str()?;
            let name = match path.file_stem()?.to_str()? {
                "kernel" => folder.to_string(),
                other => format!("{folder}_{other}"),
            };
            Some(Source { name, path })
        })
        .collect();
    found.sort();
    found
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).expect("a folder of sources can be read");
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

/// Rust that names every kernel's text and machine code.
fn sources(kernels: &[Source], compiled: bool) -> String {
    let mut code = String::new();
    for Source { name, path } in kernels {
        let images: String = ARCHITECTURES
            .iter()
            .filter(|_| compiled)
            .map(|(number, _, target)| {
                format!(
                    "Image {{ architecture: {number}, code: aligned!(concat!(env!(\"OUT_DIR\"), \"/{name}.{target}.cubin\")) }}, "
                )
            })
            .collect();
        writeln!(
            code,
            "pub static {}: KernelSource = KernelSource {{ name: \"{name}\", \
             text: include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{}\")), \
             headers: HEADERS, images: &[{images}] as &[Image] }};",
            name.to_uppercase(),
            path.display()
        )
        .expect("writing to text");
    }
    let all: String = kernels.iter().map(|source| format!("&{}, ", source.name.to_uppercase())).collect();
    writeln!(code, "pub static ALL: &[&KernelSource] = &[{all}];").expect("writing to text");
    code
}

/// CUDA's compiler: `NVCC` (empty for none), a toolkit, or pip's packages.
fn compiler() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("NVCC") {
        return (!named.is_empty()).then(|| PathBuf::from(named));
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let mut places: Vec<PathBuf> = toolkits.map(|toolkit| toolkit.join("bin")).collect();
    let environment = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    for prefix in environment.into_iter().chain([PathBuf::from("/usr/local"), PathBuf::from("/usr")]) {
        places.extend(pip_places(&prefix));
    }
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    places.push(PathBuf::from("/usr/local/cuda/bin"));
    places.into_iter().map(|place| place.join("nvcc")).find(|path| path.is_file())
}

fn pip_places(prefix: &Path) -> Vec<PathBuf> {
    let versions =
        std::fs::read_dir(prefix.join("lib")).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let pythons = versions.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3")));
    pythons
        .flat_map(|python| ["site-packages", "dist-packages"].map(|packages| python.join(packages)))
        .map(|packages| packages.join("nvidia/cu13/bin"))
        .collect()
}

/// Compiles what has changed, two at a time.
fn compile_all(compiler: &Path, kernels: &[Source], out: &Path) {
    let version = Command::new(compiler).arg("--version").output();
    let version = version.unwrap_or_else(|error| panic!("`{}` does not start: {error}", compiler.display())).stdout;
    let headers = ["prelude.cuh", "squares.cuh"].map(|name| std::fs::read(Path::new(HEADERS).join(name)));
    let headers = headers.map(|header| header.expect("the header is there"));
    let mut work: Vec<(&Source, usize)> = kernels.iter().flat_map(|source| [(source, 0), (source, 1)]).collect();
    work.retain(|&(Source { name, path }, architecture)| {
        let source = std::fs::read(path).expect("the kernel was just found");
        let mut hasher = DefaultHasher::new();
        (&version, &headers, source, architecture, OPTIONS).hash(&mut hasher);
        let (stamp, hash) = (out.join(format!("{name}.{architecture}.hash")), format!("{:016x}", hasher.finish()));
        let is_done = std::fs::read_to_string(&stamp).is_ok_and(|found| found == hash)
            && output(out, name, architecture).is_file();
        if !is_done {
            // Written before the compiler runs; when that fails there is no output.
            let _ = std::fs::remove_file(output(out, name, architecture));
            std::fs::write(stamp, hash).expect("OUT_DIR can be written");
        }
        !is_done
    });
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((source, architecture)) = work.lock().expect("not poisoned before a panic").pop() else {
                        break;
                    };
                    compile(compiler, source, architecture, out);
                }
            });
        }
    });
}

fn output(out: &Path, name: &str, architecture: usize) -> PathBuf {
    out.join(format!("{name}.{}.cubin", ARCHITECTURES[architecture].2))
}

fn compile(compiler: &Path, Source { name, path }: &Source, architecture: usize, out: &Path) {
    let outcome = nvcc::command(compiler, path, architecture, &output(out, name, architecture)).output();
    let outcome = outcome.unwrap_or_else(|error| panic!("`{}` does not start: {error}", compiler.display()));
    assert!(
        outcome.status.success(),
        "{} does not compile for {} (set `NVCC=` to build without CUDA's compiler):\n{}{}",
        path.display(),
        ARCHITECTURES[architecture].2,
        String::from_utf8_lossy(&outcome.stdout),
        String::from_utf8_lossy(&outcome.stderr)
    );
}

//! Kernels compiled while the program runs, for machines on which it was built without CUDA's compiler, and kept on disk
//! under a name made of everything that the result depends on.

use std::ffi::{CString, c_char};
use std::io::Write;
use std::path::Path;
use std::ptr::null_mut;

use cudarc::nvrtc::sys::nvrtcProgram;

use super::foreign::{self, Code, text};
use super::source::KernelSource;
use super::tables::Nvrtc;
use crate::{DeviceError, Result};

/// Machine code of `source` for `architecture` (90 for 9.0): from the folder `cache`, or compiled and left there.
pub(super) fn compile(
    nvrtc: &Nvrtc,
    source: &KernelSource,
    architecture: u32,
    cache: Option<&Path>,
) -> Result<Vec<u8>> {
    let options = options(architecture);
    let Some(cache) = cache else { return compile_now(nvrtc, source, &options) };
    let path = cache.join(file_name(source, &options, version(nvrtc)?));
    if let Ok(code) = std::fs::read(&path)
        && !code.is_empty()
    {
        return Ok(code);
    }
    let code = compile_now(nvrtc, source, &options)?;
    // Where the cache cannot be written, the next start compiles again, which is no failure.
    let _ = leave(cache, &path, &code);
    Ok(code)
}

fn options(architecture: u32) -> Vec<String> {
    // The extra letter allows the instructions that 9.0 alone has.
    let letter = if architecture == 90 { "a" } else { "" };
    // Without the last one, NVRTC 13.0 takes generic lambdas for functions of the host.
    let others = ["--std=c++17", "--device-as-default-execution-space"].map(str::to_string);
    [format!("--gpu-architecture=sm_{architecture}{letter}")].into_iter().chain(others).collect()
}

fn file_name(source: &KernelSource, options: &[String], version: (i32, i32)) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    add(source.text);
    source.headers.iter().for_each(|(name, text)| {
        add(name);
        add(text);
    });
    options.iter().for_each(|option| add(option));
    add(&format!("{version:?}"));
    format!("{}-{}.cubin", source.name, &hasher.finalize().to_hex()[..32])
}

/// Several ranks may do this at once: each writes a file of its own and renames it.
fn leave(folder: &Path, path: &Path, code: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let own = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = std::fs::File::create(&own)?;
    let written = file.write_all(code).and_then(|()| std::fs::rename(&own, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&own);
    }
    written
}

fn version(nvrtc: &Nvrtc) -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    check(nvrtc, "nvrtcVersion", unsafe { (nvrtc.nvrtcVersion)(&mut major, &mut minor) })?;
    Ok((major, minor))
}

fn compile_now(nvrtc: &Nvrtc, source: &KernelSource, options: &[String]) -> Result<Vec<u8>> {
    let program = Program::new(nvrtc, source)?;
    let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect::<Result<_>>()?;
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: the program is alive, and there are as many options as are announced, alive until after the call.
    let code = unsafe { (nvrtc.nvrtcCompileProgram)(program.raw, pointers.len() as i32, pointers.as_ptr()) };
    if code != 0 {
        let problem = format!("`{}` does not compile: {}", source.name, program.log()?);
        return Err(DeviceError::Value { what: "kernel", problem });
    }
    let mut bytes = 0;
    // SAFETY: writes one number.
    check(nvrtc, "nvrtcGetCUBINSize", unsafe { (nvrtc.nvrtcGetCUBINSize)(program.raw, &mut bytes) })?;
    let mut cubin = vec![0u8; bytes];
    // SAFETY: writes as many bytes as it announced.
    check(nvrtc, "nvrtcGetCUBIN", unsafe { (nvrtc.nvrtcGetCUBIN)(program.raw, cubin.as_mut_ptr().cast()) })?;
    Ok(cubin)
}

/// A program being compiled.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    raw: nvrtcProgram,
}

impl Program<'_> {
    fn new<'a>(nvrtc: &'a Nvrtc, source: &KernelSource) -> Result<Program<'a>> {
        let text = c_string(source.text)?;
        let name = c_string(&format!("{}.cu", source.name))?;
        let names: Vec<CString> = source.headers.iter().map(|(name, _)| c_string(name)).collect::<Result<_>>()?;
        let headers: Vec<CString> = source.headers.iter().map(|(_, text)| c_string(text)).collect::<Result<_>>()?;
        let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let header_texts: Vec<*const c_char> = headers.iter().map(|text| text.as_ptr()).collect();
        let mut raw: nvrtcProgram = null_mut();
        let count = names.len() as i32;
        // SAFETY: all texts are zero-terminated and alive; there are as many headers as are announced. NVRTC copies them.
        let code = unsafe {
            (nvrtc.nvrtcCreateProgram)(
                &mut raw,
                text.as_ptr(),
                name.as_ptr(),
                count,
                header_texts.as_ptr(),
                names.as_ptr(),
            )
        };
        check(nvrtc, "nvrtcCreateProgram", code)?;
        Ok(Program { nvrtc, raw })
    }

    fn log(&self) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: writes one number.
        let code = unsafe { (self.nvrtc.nvrtcGetProgramLogSize)(self.raw, &mut bytes) };
        check(self.nvrtc, "nvrtcGetProgramLogSize", code)?;
        let mut log = vec![0u8; bytes];
        // SAFETY: writes as many bytes as it announced.
        let code = unsafe { (self.nvrtc.nvrtcGetProgramLog)(self.raw, log.as_mut_ptr().cast()) };
        check(self.nvrtc, "nvrtcGetProgramLog", code)?;
        Ok(String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string())
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { (self.nvrtc.nvrtcDestroyProgram)(&mut self.raw) };
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| DeviceError::Value {
        what: "kernel",
        problem: "found a zero byte in its source, expected text".to_string(),
    })
}

fn check(nvrtc: &Nvrtc, call: &'static str, code: Code) -> Result<()> {
    // SAFETY: returns a static text for any number.
    foreign::check(call, code, |code| text(unsafe { (nvrtc.nvrtcGetErrorString)(code) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_machine_code_depends_on_everything_that_it_is_made_of() {
        let source = |text, headers| KernelSource { name: "k", text, headers, images: &[] };
        let name = |source: &KernelSource, architecture, version| file_name(source, &options(architecture), version);
        let plain = source("a", &[("h", "b")]);
        let first = name(&plain, 90, (13, 0));
        assert_eq!(first, name(&plain, 90, (13, 0)));
        let others = [
            name(&source("c", &[("h", "b")]), 90, (13, 0)),
            name(&source("a", &[("h", "c")]), 90, (13, 0)),
            name(&source("a", &[]), 90, (13, 0)),
            name(&plain, 80, (13, 0)),
            name(&plain, 90, (13, 1)),
        ];
        for other in others {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn machine_code_is_left_whole_in_a_folder_that_is_made_for_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        let path = folder.join("k.cubin");
        leave(&folder, &path, b"code").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"code");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }
}

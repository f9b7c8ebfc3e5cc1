//! Every CUDA source of the tree compiles for the GPUs that the program carries machine code for, and works in registers.
//! Nothing runs on a GPU here.

// The build script and the gate must not come to call the compiler in two ways.
#[path = "../../scout-kernels/nvcc.rs"]
mod nvcc;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};

use crate::tree::Tree;
use crate::workspace::Workspace;
use crate::{process, toolkit};

/// The home of the kernels, whose headers every source may include.
const HOME: &str = "crates/scout-kernels";
/// A comment that begins like this, and goes on with a number of bytes and the reason, permits that much to each thread.
const PERMISSION: &str = "// Local memory: ";

pub fn check(workspace: &Workspace) -> Result<bool> {
    let compiler = workspace.root.join(toolkit::COMPILER);
    if !compiler.is_file() {
        println!(
            "`{}` is missing, without which no kernel is checked: run `cargo xtask test --all`, which installs it, or \
             `{}`",
            toolkit::COMPILER,
            toolkit::installation().join(" ")
        );
        return Ok(false);
    }
    let tree = Tree::read(&workspace.root)?;
    let work = work(&tree);
    let (num_compilations, work) = (work.len(), Mutex::new(work));
    let out = workspace.target.join("cuda");
    std::fs::create_dir_all(&out).with_context(|| format!("could not make `{}`", out.display()))?;
    let compile_some = || -> Result<Vec<String>> {
        let mut findings = Vec::new();
        loop {
            let next = work.lock().expect("nothing panics while it takes one").pop_front();
            let Some(compilation) = next else { return Ok(findings) };
            findings.extend(compilation.run(workspace, &compiler, &out)?);
        }
    };
    let outcomes: Vec<Result<Vec<String>>> = thread::scope(|scope| {
        let num_threads = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(compile_some)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a compilation returns its errors")).collect()
    });
    let mut findings = outcomes.into_iter().collect::<Result<Vec<_>>>()?.concat();
    findings.sort();
    if num_compilations == 0 {
        findings.push("found no CUDA source in the whole tree".to_string());
    }
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("{} CUDA sources compile for {}", num_compilations / nvcc::ARCHITECTURES.len(), architectures());
    }
    Ok(findings.is_empty())
}

/// `sm_90a and sm_80`.
pub fn architectures() -> String {
    nvcc::ARCHITECTURES.map(|(_, _, name)| name).join(" and ")
}

struct Compilation<'a> {
    path: &'a str,
    text: &'a str,
    architecture: usize,
}

/// The long ones first, so that no thread ends with one of them while the others have nothing left.
fn work(tree: &Tree) -> VecDeque<Compilation<'_>> {
    let mut sources: Vec<(&str, &str)> = tree.texts(&["cu"]).map(|(file, text)| (file.path.as_str(), text)).collect();
    sources.sort_by_key(|(_, text)| std::cmp::Reverse(text.len()));
    let all = 0..nvcc::ARCHITECTURES.len();
    sources
        .into_iter()
        .flat_map(|(path, text)| all.clone().map(move |architecture| Compilation { path, text, architecture }))
        .collect()
}

impl Compilation<'_> {
    /// What is wrong with this source.
    fn run(&self, workspace: &Workspace, compiler: &Path, out: &Path) -> Result<Vec<String>> {
        let (path, target) = (self.path, nvcc::ARCHITECTURES[self.architecture].2);
        let output = out.join(format!("{}.{target}.cubin", path.replace('/', "-")));
        let mut command = nvcc::command(compiler, &workspace.root.join(path), self.architecture, &output);
        // The assembler tells what each kernel keeps in registers and what it does not.
        command.args(["-Xptxas", "-v"]).current_dir(workspace.root.join(HOME));
        let (succeeded, lines) = process::run_quietly(&mut command, process::KILL_TIME)?;
        if !succeeded {
            return Ok(vec![format!("{path} does not compile for {target}:\n{lines}")]);
        }
        Ok(beyond_registers(&lines, permitted_bytes(self.text))
            .into_iter()
            .map(|finding| format!("{path} for {target}: {finding}"))
            .collect())
    }
}

/// The functions that keep more than `permitted` bytes of a thread in memory, after what the assembler says of each in
/// two lines: `ptxas info : Function properties for NAME` and `48 bytes stack frame, 44 bytes spill stores, …`.
fn beyond_registers(lines: &str, permitted: usize) -> Vec<String> {
    let mut findings = Vec::new();
    let mut lines = lines.lines();
    let mut num_functions = 0;
    while let Some(line) = lines.next() {
        let Some((_, function)) = line.split_once("Function properties for ") else { continue };
        num_functions += 1;
        let Some(bytes) = lines.next().and_then(|line| number_before(line, " bytes stack frame")) else {
            findings.push(format!("the assembler does not say what `{function}` keeps in local memory"));
            continue;
        };
        if bytes > permitted {
            findings.push(format!(
                "a thread of `{function}` keeps {bytes} bytes in local memory, expected {permitted}: make it work in \
                 registers, or permit it with a comment like `{PERMISSION}{bytes} bytes, because …`"
            ));
        }
    }
    if num_functions == 0 {
        findings.push("the assembler says nothing about the registers of any kernel".to_string());
    }
    findings
}

/// What the source itself permits: none where it has no word about it.
fn permitted_bytes(text: &str) -> usize {
    text.lines().find_map(|line| number_before(line.strip_prefix(PERMISSION)?, " bytes")).unwrap_or(0)
}

fn number_before(line: &str, unit: &str) -> Option<usize> {
    line.split_once(unit)?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'rows_add' for 'sm_80'
ptxas info    : Function properties for rows_add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 29 registers, used 0 barriers
ptxas info    : Compiling entry function 'attention' for 'sm_80'
ptxas info    : Function properties for attention
    48 bytes stack frame, 44 bytes spill stores, 44 bytes spill loads
";

    #[test]
    fn a_kernel_that_leaves_its_registers_is_named_unless_its_source_permits_it() {
        let found = beyond_registers(TOLD, 0);
        assert!(found.len() == 1 && found[0].contains("`attention` keeps 48 bytes"), "{found:?}");
        assert_eq!(beyond_registers(TOLD, 47).len(), 1);
        assert!(beyond_registers(TOLD, 48).is_empty());
        // Words that this function does not know any more are no praise.
        assert_eq!(beyond_registers("ptxas info    : 0 bytes gmem\n", 1000).len(), 1);
    }

    #[test]
    fn a_permission_is_a_comment_with_a_number() {
        for (text, expected) in [
            ("// One.\n// Local memory: 48 bytes, because of this.\n", 48),
            ("// One.\n", 0),
            ("// Local memory: a few bytes\n", 0),
            ("    // Local memory: 8 bytes in the middle of a function\n", 0),
        ] {
            assert_eq!(permitted_bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn every_source_is_compiled_for_every_architecture_wherever_it_lies() {
        let tree = Tree::of(&[
            ("a/kernel.cu", "// One."),
            ("a/prelude.cuh", "// No source of its own."),
            ("benches/longer.cu", "// Two, which is longer."),
        ]);
        let work: Vec<_> = work(&tree).iter().map(|it| (it.path, nvcc::ARCHITECTURES[it.architecture].2)).collect();
        let expected = [
            ("benches/longer.cu", "sm_90a"),
            ("benches/longer.cu", "sm_80"),
            ("a/kernel.cu", "sm_90a"),
            ("a/kernel.cu", "sm_80"),
        ];
        assert_eq!(work, expected);
    }

    #[test]
    fn a_compiler_that_is_missing_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let workspace = Workspace { root: folder.path().into(), target, edges: Vec::new(), crates: Vec::new() };
        assert!(!check(&workspace).unwrap());
    }

    #[test]
    fn a_source_that_the_compiler_refuses_is_shown_with_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join(HOME)).unwrap();
        let workspace = Workspace { root: root.into(), target: root.into(), edges: Vec::new(), crates: Vec::new() };
        let compilation = Compilation { path: "a/kernel.cu", text: "// One.", architecture: 1 };
        let found = compilation.run(&workspace, Path::new("/bin/ls"), root).unwrap();
        assert!(
            found.len() == 1 && found[0].starts_with("a/kernel.cu does not compile for sm_80:\n/bin/ls: "),
            "{found:?}"
        );
    }
}

//! The configurations that are shipped, and the commands that the README shows: all of them must work as they stand.

use std::path::{Path, PathBuf};

use crate::folder::Folder;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[test]
fn every_shipped_configuration_is_planned_for_eight_ranks() {
    // The toy that the smallest of them names.
    let folder = Folder::with_toy();
    let mut planned = 0;
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.extension().and_then(|ending| ending.to_str()), Some("yaml"), "{}", path.display());
        let name = path.to_str().unwrap();
        let said = folder.succeed(&["plan", name, "--world", "8"]).stdout;
        assert!(said.contains("ranks      8\n"), "{name}\n{said}");
        let json = folder.succeed(&["plan", name, "--world", "8", "--json"]).stdout;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["world"], 8, "{name}");
        // Those for GPUs are planned for them wherever they are read, and take what memory is there.
        let is_for_gpus = !name.contains("cpu");
        assert_eq!(json["device"] == "cuda", is_for_gpus, "{name}");
        let configured = std::fs::read_to_string(&path).unwrap();
        assert!(!configured.contains("device_memory"), "{name}: what is free is known where it is used");
        for gib in ["78GiB", "138GiB"].into_iter().filter(|_| is_for_gpus) {
            let said = folder.succeed(&["plan", name, "--world", "8", "--device-memory", gib]).stdout;
            let json = folder.succeed(&["plan", name, "--world", "8", "--device-memory", gib, "--json"]).stdout;
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            let ways = json["ways"].as_array().unwrap();
            let chosen = ways.iter().find(|way| way["chosen"] == true).unwrap();
            let (total, step) = (json["memory"]["total"].as_u64().unwrap(), chosen["step_seconds"].as_f64().unwrap());
            assert!(total <= json["memory"]["budget"].as_u64().unwrap() && chosen["total"] == total, "{name}: {total}");
            assert!(json["runs"] == chosen["runs"] && json["runs"].as_u64().unwrap() >= 1, "{name}");
            // An update of at most 65,536 tokens a rank.
            assert!((0.1..20.0).contains(&step), "{name}: {step} s");
            for word in ["exposed", "chosen", "tok/s", "step       "] {
                assert!(said.contains(word), "{name}: {word}\n{said}");
            }
        }
        planned += 1;
    }
    assert!(planned >= 5, "only {planned} files in configs/");
}

#[test]
fn the_commands_of_the_readme_work_in_their_order() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let folder = Folder::empty();
    for name in ["tests", "configs"] {
        std::os::unix::fs::symlink(root().join(name), folder.path(name)).unwrap();
    }
    let mut in_block = false;
    let mut started = Vec::new();
    for line in readme.lines() {
        if line.starts_with("```") {
            in_block = line == "```sh";
            continue;
        }
        let command = line.split('#').next().unwrap_or_default();
        let Some(arguments) = command.strip_prefix("scout-dist ").filter(|_| in_block) else { continue };
        let mut arguments: Vec<&str> = arguments.split_whitespace().collect();
        if arguments.contains(&"train") {
            // That it learns is tested elsewhere; here it is to start as written.
            arguments.push("max_steps=2");
        }
        folder.succeed(&arguments);
        started.push(arguments[0].to_string());
    }
    for command in ["synth", "preprocess", "plan", "launch", "train", "verify"] {
        assert!(started.iter().any(|name| name == command), "the README shows no `{command}`: {started:?}");
    }
}

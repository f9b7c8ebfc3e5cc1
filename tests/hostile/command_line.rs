//! Command lines that cannot be meant, and commands in folders that are not made for them.

use crate::case::{case, check};

#[test]
fn a_command_line_that_cannot_be_meant_is_explained() {
    check(&[
        case("an unknown command", 2, &["frobnicate"], |_| {}).on(&["frobnicate"]),
        case("a command that is nearly right", 2, &["trian", "train"], |_| {}).on(&["trian", "run.yaml"]),
        case("an unknown option", 2, &["--fast"], |_| {}).on(&["train", "run.yaml", "--fast"]),
        case("no ranks", 2, &["--world", "0"], |_| {}).on(&["plan", "run.yaml", "--world", "0"]),
        case("ranks that are no number", 2, &["--world", "eight"], |_| {})
            .on(&["plan", "run.yaml", "--world", "eight"]),
        case("no layers", 2, &["--layers", "0"], |_| {})
            .on(&["synth", "--shape", "tiny", "--layers", "0", "--out", "new"]),
        case("an unknown shape", 2, &["huge", "tiny"], |_| {}).on(&["synth", "--shape", "huge", "--out", "new"]),
        case("no folder to write to", 2, &["--out"], |_| {}).on(&["synth", "--shape", "tiny"]),
        case("no folder to verify", 2, &["FOLDER"], |_| {}).on(&["verify"]),
        case("no rows to show", 2, &["--show", "few"], |_| {}).on(&["preprocess", "run.yaml", "--show", "few"]),
    ]);
}

#[test]
fn a_command_in_a_folder_not_made_for_it_is_one_clear_error() {
    check(&[
        case("no configuration at all", 66, &["scout-dist.yaml", "configs/", "scout-dist synth"], |_| {})
            .on(&["train"]),
        case("no configuration but a change", 66, &["scout-dist.yaml"], |_| {}).on(&["train", "seed=3"]),
        case("no configuration to plan", 66, &["scout-dist.yaml", "configs/"], |_| {}).on(&["plan"]),
        case("no configuration to show", 66, &["scout-dist.yaml", "configs/"], |_| {}).on(&["preprocess"]),
        case("a model over a model", 73, &["model", "already"], |_| {})
            .on(&["synth", "--shape", "tiny", "--out", "model"]),
        case("a model below a file", 73, &["run.yaml/new"], |_| {}).on(&[
            "synth",
            "--shape",
            "tiny",
            "--out",
            "run.yaml/new",
        ]),
        case("a demo over somebody's folder", 73, &["model", "no earlier demo", "--out"], |_| {})
            .on(&["demo", "--out", "model"]),
        case("a demo over a file", 73, &["run.yaml"], |_| {}).on(&["demo", "--out", "run.yaml"]),
        case("nothing to verify", 66, &["nowhere"], |_| {}).on(&["verify", "nowhere"]),
        case("a folder without recorded numbers", 66, &["model", "manifest.json"], |_| {}).on(&["verify", "model"]),
        case("recorded numbers that are not JSON", 65, &["manifest.json"], |p| p.write("model/manifest.json", "{"))
            .on(&["verify", "model"]),
        case("verify on CUDA where there is none", 69, &["cuda"], |_| {}).on(&["verify", "model", "--device", "cuda"]),
    ]);
}

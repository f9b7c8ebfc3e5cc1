//! Whether the program itself, started on a damaged copy of a fixture folder, ends with exit code 1 and names on stdout
//! the rows that the damage reaches, and no others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use scout_core::ExitCode;
use scout_tests::{Ended, fixtures, run_in};
use tempfile::TempDir;

use crate::recorded::tiny_scout;

const LIMIT: Duration = Duration::from_secs(60);

/// What happens to a file.
enum Damage {
    CutOneByte,
    CutInHalf,
    Deleted,
    /// The first occurrence of a text becomes another one.
    Text(&'static str, &'static str),
    /// A number of a JSON file, found by its path, grows by this much.
    Number(&'static str, f64),
    WithoutTensor(&'static str),
    NotANumber(&'static str),
    /// The first entry of a tensor of ids becomes larger than every vocabulary.
    LargestId(&'static str),
    /// The last value of a tensor changes by a thousandth of the tensor's range.
    Changed(&'static str),
    Exchanged(&'static str, &'static str),
}

use Damage::*;

/// The files that are damaged in one run, and the rows that have to fail: `group quantity`, where `*` at the end means
/// every row that begins like this. The rows of all other names have to stay as they are.
struct Case<'a> {
    damage: &'a [(&'a str, Damage)],
    failing: &'a [&'a str],
}

fn check(case: &Case) {
    let folder = copy_of(&tiny_scout());
    for (file, damage) in case.damage {
        damage.inflict(&folder.path().join(file));
    }
    let ended = verify(folder.path());
    let files: Vec<_> = case.damage.iter().map(|(file, _)| file).collect();
    assert_eq!(ended.code, Some(ExitCode::CheckFailed.code().into()), "{files:?}\n{}{}", ended.stdout, ended.stderr);
    let rows = printed(&ended.stdout);
    let expected = |row: &str| {
        case.failing.iter().any(|name| name.strip_suffix('*').map_or(row == *name, |start| row.starts_with(start)))
    };
    for (row, fails) in &rows {
        assert_eq!(*fails, expected(row), "{files:?}: {row}\n{}", ended.stdout);
    }
    for name in case.failing {
        let is_named = rows.iter().any(|(row, _)| row.starts_with(name.trim_end_matches('*')));
        assert!(is_named, "{files:?}: no row is named {name}\n{}", ended.stdout);
    }
}

fn verify(folder: &Path) -> Ended {
    run_in(folder, &["verify", "."], LIMIT)
}

/// `group quantity` of every printed line, and whether it says FAIL. Rows of a kind that pass share a line.
fn printed(stdout: &str) -> Vec<(String, bool)> {
    let lines = stdout.lines().skip(1).take_while(|line| !line.ends_with(" later"));
    lines
        .filter_map(|line| {
            let (group, rest) = line.split_once(' ')?;
            let (quantity, rest) = rest.trim_start().split_once("  ")?;
            Some((format!("{group} {quantity}"), rest.contains("  FAIL")))
        })
        .collect()
}

#[test]
fn a_damaged_weight_file_is_named() {
    let shards = ["model-00001-of-00003", "model-00002-of-00003", "model-00003-of-00003"];
    for shard in shards.map(|shard| format!("{shard}.safetensors")) {
        for damage in [CutOneByte, CutInHalf, Deleted] {
            check(&Case { damage: &[(&shard, damage)], failing: &["model weights"] });
        }
    }
    let head = "model-00003-of-00003.safetensors";
    for damage in [WithoutTensor("model.norm.weight"), NotANumber("lm_head.weight")] {
        check(&Case { damage: &[(head, damage)], failing: &["model weights"] });
    }
    check(&Case { damage: &[("model.safetensors.index.json", CutInHalf)], failing: &["model weights"] });
    check(&Case { damage: &[("config.json", CutInHalf)], failing: &["config.json all"] });
}

#[test]
fn a_recording_without_its_batch_fails() {
    for damage in [CutOneByte, CutInHalf, Deleted, WithoutTensor("input_ids"), WithoutTensor("labels")] {
        check(&Case { damage: &[("expected.safetensors", damage)], failing: &["expected batch"] });
    }
}

/// The three ways to lose a file, in three orders, so that each of three files meets each of them.
const LOSSES: [[fn() -> Damage; 3]; 3] = [
    [|| CutOneByte, || CutInHalf, || Deleted],
    [|| CutInHalf, || Deleted, || CutOneByte],
    [|| Deleted, || CutOneByte, || CutInHalf],
];

const NO_TRAINING: [&str; 3] = ["training_attn all", "training_experts all", "training_all all"];

#[test]
fn damaged_training_batches_adapters_and_4_bit_files_are_named() {
    let adapters = ["attn", "experts", "all"].map(|name| format!("adapter_{name}/adapter_model.safetensors"));
    let failing =
        [&NO_TRAINING[..], &["train_data *", "nf4 *"], &["adapter_attn all", "adapter_experts all", "adapter_all all"]];
    for [first, second, third] in LOSSES {
        let damage = [
            (adapters[0].as_str(), first()),
            (adapters[1].as_str(), second()),
            (adapters[2].as_str(), third()),
            ("train_batches.safetensors", first()),
            ("nf4.expected.safetensors", second()),
        ];
        check(&Case { damage: &damage, failing: &failing.concat() });
    }
}

#[test]
fn damaged_texts_and_a_damaged_training_are_named() {
    let texts = ["tokenizer_cases all", "chat_cases all", "train_data all"];
    let spelling = "config_hub_style.json same model as config.json";
    for [first, second, third] in LOSSES {
        // Without its last byte, a newline, a file of lines is still whole.
        let of_lines = match first() {
            CutOneByte => CutInHalf,
            other => other,
        };
        let damage = [
            ("training.json", first()),
            ("tokenizer_cases.json", second()),
            ("chat_cases.json", third()),
            ("train_data.jsonl", of_lines),
            ("config_hub_style.json", second()),
        ];
        let failing = [&NO_TRAINING[..], &[texts[0], texts[1], "train_data *", spelling]].concat();
        check(&Case { damage: &damage, failing: &failing });
    }
    for damage in [CutInHalf, Deleted] {
        let damage = [("training.json", Deleted), ("tokenizer.json", damage)];
        check(&Case { damage: &damage, failing: &[&NO_TRAINING[..], &texts].concat() });
    }
}

#[test]
fn a_tensor_that_is_missing_or_not_a_number_in_any_file_is_named() {
    let experts = "adapter_experts/adapter_model.safetensors";
    let inner_b = "base_model.model.model.layers.1.feed_forward.experts.base_layer.lora_B.weight";
    check(&Case {
        damage: &[
            ("train_batches.safetensors", WithoutTensor("labels")),
            ("nf4.expected.safetensors", WithoutTensor("nf4.sample_lm_head_300_rows.packed")),
            ("nf4.expected.safetensors", NotANumber("nf4.model.layers.0.self_attn.k_proj.weight.double")),
            (experts, WithoutTensor(inner_b)),
            ("adapter_all.expected.safetensors", WithoutTensor("layer.2.router_expert")),
        ],
        failing: &[
            &NO_TRAINING[..],
            &["train_data *", "adapter_experts all", "adapter_all layer.2.router_expert"],
            &["nf4 nf4.sample_lm_head_300_rows.packed", "nf4 nf4.model.layers.0.self_attn.k_proj.weight.double"],
        ]
        .concat(),
    });
    check(&Case {
        damage: &[
            ("training.json", Deleted),
            (experts, NotANumber(inner_b)),
            ("adapter_attn/adapter_config.json", Deleted),
            ("adapter_all.expected.safetensors", NotANumber("logits")),
        ],
        failing: &[&NO_TRAINING[..], &["adapter_experts all", "adapter_attn all", "adapter_all logits"]].concat(),
    });
}

#[test]
fn a_recording_that_lost_its_adapter_numbers_fails_row_by_row() {
    for losses in LOSSES {
        let names = ["attn", "experts", "all"];
        let expected = names.map(|name| format!("adapter_{name}.expected.safetensors"));
        let trained = names.map(|name| format!("adapter_{name}_trained/adapter_model.safetensors"));
        let files = expected.iter().chain(&trained).map(String::as_str);
        let damage: Vec<_> = files.zip(losses.iter().cycle().map(|damage| damage())).collect();
        let failing = names.map(|name| [format!("adapter_{name} *"), format!("training_{name} trained.*")]).concat();
        let failing: Vec<&str> = failing.iter().map(String::as_str).collect();
        check(&Case { damage: &damage, failing: &failing });
    }
}

#[test]
fn a_single_changed_number_in_a_file_is_named() {
    let gate_b = "base_model.model.model.layers.2.feed_forward.shared_expert.gate_proj.lora_B.weight";
    let down_a = "base_model.model.model.layers.0.feed_forward.experts.lora_A.weight";
    check(&Case {
        damage: &[
            ("expected.safetensors", Changed("layer.0.v")),
            ("expected.safetensors", NotANumber("layer.1.q")),
            ("expected.safetensors", WithoutTensor("layer.2.attn_ctx")),
            ("expected.safetensors", Exchanged("layer.0.ffn_in", "layer.3.ffn_in")),
            ("adapter_attn.expected.safetensors", Changed("token_loss")),
            ("adapter_experts.expected.safetensors", WithoutTensor("accum_loss")),
            ("adapter_all.expected.safetensors", NotANumber("grad_of.layer.1.out")),
            ("adapter_attn_trained/adapter_model.safetensors", Changed(gate_b)),
            ("adapter_experts_trained/adapter_model.safetensors", WithoutTensor(down_a)),
            ("adapter_all_trained/adapter_model.safetensors", NotANumber(down_a)),
            ("tokenizer_cases.json", Text("256,", "257,")),
            ("chat_cases.json", Text("-100,", "481,")),
            ("train_data.jsonl", Text("hollow compass", "hollow lantern")),
            ("config_hub_style.json", Text("\"factor\": 16.0", "\"factor\": 8.0")),
        ],
        failing: &[
            "expected layer.0.v",
            "expected layer.1.q",
            "expected layer.2.attn_ctx",
            "expected layer.0.ffn_in",
            "expected layer.3.ffn_in",
            "adapter_attn token_loss",
            "adapter_experts accum_loss",
            "adapter_all grad_of.layer.1.out",
            &format!("training_attn trained.{gate_b}"),
            &format!("training_experts trained.{down_a}"),
            &format!("training_all trained.{down_a}"),
            "tokenizer_cases case 1",
            "chat_cases case 2, supervised view*",
            "train_data batch 0, row 0",
            "config_hub_style.json same model as config.json",
        ],
    });
}

#[test]
fn a_changed_entry_of_the_recorded_training_is_named() {
    // A thousandth of the range of each series.
    check(&Case {
        damage: &[
            ("training.json", Number("/runs/attn/lr/3", 1e-6)),
            ("training.json", Number("/runs/attn/probe_loss_after", -6.8e-3)),
            ("training.json", Number("/runs/experts/loss/9", 4.7e-4)),
            ("training.json", Number("/runs/all/grad_norm/0", -8.3e-4)),
        ],
        failing: &[
            "training_attn lr",
            "training_attn probe_loss_after",
            "training_experts loss",
            "training_all grad_norm",
        ],
    });
}

#[test]
fn a_folder_without_a_readable_manifest_is_an_error_that_names_it() {
    for (damage, code) in [(Deleted, ExitCode::MissingInput), (CutInHalf, ExitCode::BadData)] {
        let folder = copy_of(&tiny_scout());
        damage.inflict(&folder.path().join("manifest.json"));
        let ended = verify(folder.path());
        assert_eq!(ended.code, Some(code.code().into()), "{}", ended.stderr);
        assert!(ended.stderr.contains("manifest.json"), "{}", ended.stderr);
    }
}

#[test]
fn both_committed_folders_pass_and_no_row_is_lost() {
    for (folder, at_least) in [("tiny-scout", 414), ("tiny-scout-vision", 4)] {
        let ended = verify(&fixtures().join(folder));
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        let last = ended.stdout.lines().last().expect("a verdict is printed");
        let counts: Vec<(usize, &str)> = last
            .split(", ")
            .filter_map(|part| part.split_once(' '))
            .map(|(count, word)| (count.parse().expect("a count"), word))
            .collect();
        let [(ok, "ok"), (0, "failed"), (_, "later")] = counts[..] else { panic!("{folder}: {last}") };
        assert!(ok >= at_least, "{folder}: {last}");
    }
}

#[test]
fn several_ranks_find_the_same_damage_and_none_waits_for_another() {
    let head = "model-00003-of-00003.safetensors";
    let adapter = "adapter_experts/adapter_model.safetensors";
    let inner_b = "base_model.model.model.layers.1.feed_forward.experts.base_layer.lora_B.weight";
    let cases: [(&str, &[(&str, Damage)]); 5] = [
        // Only the rank that keeps this value reads it.
        ("--transport=threads", &[(head, NotANumber("lm_head.weight"))]),
        ("--transport=tcp", &[(head, NotANumber("model.norm.weight"))]),
        ("--transport=threads", &[("config.json", CutInHalf)]),
        // Ids that no rank knows, in a row that one rank has.
        (
            "--transport=tcp",
            &[("train_batches.safetensors", LargestId("input_ids")), ("config_hub_style.json", Deleted)],
        ),
        (
            "--transport=threads",
            &[
                (adapter, NotANumber(inner_b)),
                ("expected.safetensors", Changed("layer.0.v")),
                ("adapter_attn.expected.safetensors", Changed("token_loss")),
                ("training.json", Number("/runs/all/grad_norm/0", -8.3e-4)),
            ],
        ),
    ];
    for (transport, damage) in cases {
        let folder = copy_of(&tiny_scout());
        for (file, damage) in damage {
            damage.inflict(&folder.path().join(file));
        }
        let alone = verify(folder.path());
        let together = run_in(folder.path(), &["verify", ".", "--world", "3", transport], LIMIT);
        let code = Some(ExitCode::CheckFailed.code().into());
        assert_eq!((alone.code, together.code), (code, code), "{transport}\n{}{}", together.stdout, together.stderr);
        let rows = |ended: &Ended| {
            let mut rows = printed(&ended.stdout);
            rows.retain(|(row, _)| !row.starts_with("3 ranks:"));
            rows
        };
        assert_eq!(rows(&together), rows(&alone), "{transport}\n{}", together.stdout);
        assert!(together.stderr.is_empty(), "{}", together.stderr);
    }
}

#[test]
fn processes_verify_what_threads_verify() {
    for world in ["2", "4"] {
        for folder in ["tiny-scout", "tiny-scout-vision"].map(|name| fixtures().join(name)) {
            let with = |transport| {
                let ended = run_in(&folder, &["verify", ".", "--world", world, "--transport", transport], LIMIT);
                assert_eq!(ended.code, Some(0), "{world} {transport}\n{}{}", ended.stdout, ended.stderr);
                ended.stdout
            };
            assert_eq!(with("tcp"), with("threads"), "{world} ranks, to the last digit of every error");
        }
    }
}

fn copy_of(folder: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else {
                // Written anew and not copied: a read-only checkout stays usable.
                fs::write(&to, fs::read(entry.path()).unwrap()).unwrap();
            }
        }
    }
    let target = tempfile::tempdir().unwrap();
    copy(folder, target.path());
    target
}

impl Damage {
    fn inflict(&self, file: &Path) {
        let len = fs::metadata(file).expect("the file to damage is there").len();
        let cut = |to| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(to).unwrap();
        match self {
            CutOneByte => cut(len - 1),
            CutInHalf => cut(len / 2),
            Deleted => fs::remove_file(file).unwrap(),
            Text(from, to) => {
                let text = fs::read_to_string(file).unwrap();
                assert!(text.contains(from), "{from} stands in {}", file.display());
                fs::write(file, text.replacen(from, to, 1)).unwrap();
            }
            Number(path, change) => {
                let mut json: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
                let number = json.pointer_mut(path).expect("the number is there");
                *number = (number.as_f64().unwrap() + change).into();
                fs::write(file, json.to_string()).unwrap();
            }
            WithoutTensor(_) | NotANumber(_) | LargestId(_) | Changed(_) | Exchanged(..) => self.rewrite_tensors(file),
        }
    }

    fn rewrite_tensors(&self, file: &Path) {
        let bytes = fs::read(file).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = read
            .tensors()
            .into_iter()
            .map(|(name, tensor)| (name, (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())))
            .collect();
        match *self {
            WithoutTensor(name) => drop(tensors.remove(name).expect("the tensor is there")),
            NotANumber(name) => set_last_f32(&mut tensors.get_mut(name).expect("the tensor is there").2, |_| f32::NAN),
            LargestId(name) => {
                let ids = &mut tensors.get_mut(name).expect("the tensor is there").2;
                ids[..8].copy_from_slice(&i64::from(u32::MAX).to_le_bytes());
            }
            Changed(name) => set_last_f32(&mut tensors.get_mut(name).expect("the tensor is there").2, |values| {
                let range = values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
                    - values.iter().copied().fold(f32::INFINITY, f32::min);
                values.last().unwrap() + 1e-3 * range
            }),
            Exchanged(a, b) => {
                let of_a = tensors.remove(a).expect("the tensor is there");
                let of_b = tensors.insert(b.to_string(), of_a).expect("the tensor is there");
                tensors.insert(a.to_string(), of_b);
            }
            _ => unreachable!("only damage to tensors comes here"),
        }
        let views: Vec<(&String, TensorView)> = tensors
            .iter()
            .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
            .collect();
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

fn set_last_f32(bytes: &mut [u8], value: impl Fn(&[f32]) -> f32) {
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    bytes[4 * (values.len() - 1)..].copy_from_slice(&value(&values).to_le_bytes());
}

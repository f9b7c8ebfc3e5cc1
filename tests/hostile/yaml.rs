//! Configurations that cannot be meant, and wishes that this machine or this program cannot meet.

use crate::case::{Case, case, check};
use crate::place::Place;

#[test]
fn a_configuration_that_is_no_yaml_of_a_run_is_one_clear_error() {
    check(&[
        case("no such file", 66, &["nowhere.yaml", "No such file"], |_| {}).on(&["train", "nowhere.yaml"]),
        case("a plan for no such file", 66, &["nowhere.yaml"], |_| {}).on(&["plan", "nowhere.yaml"]),
        case("rows shown for no such file", 66, &["nowhere.yaml"], |_| {}).on(&["preprocess", "nowhere.yaml"]),
        case("a folder", 74, &["model", "the YAML file inside"], |_| {}).on(&["train", "model"]),
        yaml("nothing", &["run.yaml:1:1: ", "no keys"], ""),
        yaml("a list", &["run.yaml:1:1: ", "a list"], "- 1\n- 2\n"),
        yaml("tabs", &["run.yaml:2:", "tab", "indent with spaces"], "dataset:\n\t- toy\n"),
        yaml("two documents", &["run.yaml:3:1: ", "second document"], "seed: 1\n---\nseed: 2\n"),
        yaml("a list that does not end", &["run.yaml:"], "dataset: [toy\nseed: 3\n"),
        yaml("a colon in a value", &["run.yaml:1:", "quotes"], "output_dir: a: b\n"),
        yaml("a key twice", &["run.yaml:2:1: ", "duplicate key seed", "run.yaml:1:1"], "seed: 1\nseed: 2\n"),
        yaml("a merge key", &["run.yaml:1:1: ", "<<"], "<<: {seed: 1}\n"),
        yaml("a call of Python", &["run.yaml:1:"], "seed: !!python/object/apply:os.system [ls]\n"),
        yaml("an unknown anchor", &["run.yaml:1:"], "seed: *there\n"),
        yaml("a tower of brackets", &["run.yaml:1:"], &"[".repeat(50_000)),
        yaml("a million keys", &["run.yaml:1:1: ", "1048576"], &"seed: 1\n".repeat(150_000)),
        case("a bomb of aliases", 78, &["run.yaml:", "aliases"], |p| {
            let rounds = (1..9).map(|n| format!("k{n}: &k{n} [{}]\n", vec![format!("*k{}", n - 1); 10].join(", ")));
            p.write("run.yaml", format!("k0: &k0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n{}", rounds.collect::<String>()));
        }),
        case("not UTF-8", 78, &["run.yaml:2:7: ", "0xff", "UTF-8"], |p| p.write("run.yaml", b"seed: 1\nstage:\xff\n")),
        case("weights in place of a configuration", 78, &["model/model.safetensors:1:", "UTF-8"], |_| {})
            .on(&["train", "model/model.safetensors"]),
    ]);
}

#[test]
fn a_key_that_cannot_be_meant_is_one_line_with_its_place() {
    check(&[
        key(
            "an unknown key",
            &["run.yaml:11:1: unknown key learnin_rate, did you mean learning_rate?"],
            "learnin_rate: 1e-4",
        ),
        key(
            "a key of another program",
            &["run.yaml:11:1: unknown key fsdp_transformer_layer_cls"],
            "fsdp_transformer_layer_cls: x",
        ),
        key(
            "an unknown template",
            &["run.yaml:10:11: template: found \"llama3\", expected llama4"],
            "template: llama3",
        ),
        key("another stage", &["run.yaml:11:8: stage: found \"dpo\"", "sft"], "stage: dpo"),
        key(
            "a kind of training that is none",
            &["finetuning_type", "oft", "lora, full or freeze"],
            "finetuning_type: oft",
        ),
        key("4-bit", &["quantization_bit", "not built"], "quantization_bit: 4"),
        key("4-bit weights", &["weights", "zero3-nf4"], "weights: zero3-nf4"),
        key("a text for a number", &["learning_rate", "fast", "expected"], "learning_rate: fast"),
        key("a list for a number", &["learning_rate", "expected"], "learning_rate: [1e-4]"),
        key("a map for a text", &["output_dir", "a map"], "output_dir: {a: b}"),
        key("not a number", &["learning_rate", ".nan"], "learning_rate: .nan"),
        key("a negative rate", &["learning_rate", "-1"], "learning_rate: -1"),
        key("no steps", &["max_steps", "found 0"], "max_steps: 0"),
        key("no rows in a batch", &["per_device_train_batch_size", "found 0"], "per_device_train_batch_size: 0"),
        key("no tokens in a row", &["cutoff_len", "found 0"], "cutoff_len: 0"),
        key("no rank", &["lora_rank", "found 0"], "lora_rank: 0"),
        key("half a rank", &["lora_rank", "4.5"], "lora_rank: 4.5"),
        key("a number past counting", &["lora_rank"], "lora_rank: 99999999999999999999999"),
        key("an unknown module", &["lora_target", "wq", "q_proj"], "lora_target: wq"),
        key("the router", &["lora_target", "routers get no adapter"], "lora_target: router"),
        key("an unknown schedule", &["lr_scheduler_type", "linear"], "lr_scheduler_type: zigzag"),
        key("an unknown device", &["device", "tpu", "cuda"], "device: tpu"),
        key("no number of bytes", &["device_memory", "lots"], "device_memory: lots"),
        key("dropout and routed experts", &["lora_dropout", "lora_target"], "lora_target: experts\nlora_dropout: 0.1"),
        key(
            "masked and learned prompts",
            &["mask_history", "train_on_prompt"],
            "mask_history: true\ntrain_on_prompt: true",
        ),
        key("rows held back for nothing", &["val_size", "eval_strategy"], "val_size: 0.1"),
        key("evaluation of nothing", &["eval_strategy", "val_size"], "eval_strategy: steps"),
        key(
            "a constant rate that warms up",
            &["lr_scheduler_type", "warmup_steps"],
            "lr_scheduler_type: constant\nwarmup_steps: 3",
        ),
        key("a whole copy in part", &["resident_layers", "weights"], "weights: resident\nresident_layers: 2"),
        key(
            "more layers kept whole than there are",
            &["run.yaml:11:18: resident_layers: is 60, and the model has "],
            "resident_layers: 60",
        ),
        key("a gather without a device", &["gather", "device"], "gather: nccl"),
        key("an empty model", &["model_name_or_path"], "model_name_or_path: null"),
        key("no data", &["dataset"], "dataset: null"),
        key("no place for the result", &["output_dir"], "output_dir: null"),
        key("a name that would write on the terminal", &["unknown key"], "\"\\e[2Jgone\": 1"),
    ]);
}

#[test]
fn a_change_on_the_command_line_that_cannot_be_meant_is_one_clear_error() {
    check(&[
        case("an unknown key", 78, &["learnin_rate=1", "did you mean learning_rate?"], |_| {}).on(&[
            "train",
            "run.yaml",
            "learnin_rate=1",
        ]),
        case("a wrong value", 78, &["override max_steps=0", "found 0"], |_| {}).on(&[
            "train",
            "run.yaml",
            "max_steps=0",
        ]),
        case("no value", 78, &["seed=", "no value"], |_| {}).on(&["train", "run.yaml", "seed="]),
        case("no equals sign", 78, &["seed", "key=value"], |_| {}).on(&["train", "run.yaml", "seed"]),
        case("a broken list", 78, &["override dataset=[a"], |_| {}).on(&["train", "run.yaml", "dataset=[a"]),
        case("a plan with a wrong value", 78, &["override lora_rank=0"], |_| {}).on(&[
            "plan",
            "run.yaml",
            "lora_rank=0",
        ]),
        case("too many layers to plan with", 78, &["override resident_layers=60: resident_layers: is 60"], |_| {})
            .on(&["plan", "run.yaml", "--world", "2", "resident_layers=60"]),
        case("too many layers to measure", 78, &["override resident_layers=60: resident_layers: is 60"], |_| {}).on(&[
            "bench",
            "step",
            "run.yaml",
            "--device",
            "cpu",
            "resident_layers=60",
        ]),
        case("memory that is no number", 78, &["device_memory=much"], |_| {}).on(&[
            "plan",
            "run.yaml",
            "--device-memory",
            "much",
        ]),
    ]);
}

#[test]
fn a_wish_that_cannot_be_met_is_one_clear_error() {
    check(&[
        case("CUDA where there is none", 69, &["device", "cuda", "`device: cpu`", "driver"], |p| {
            p.set("device", "cuda")
        }),
        case("less memory than is needed", 69, &["512.00 KiB", "do not fit", "device_memory"], |p| {
            p.set("device_memory", "512KiB")
        }),
        case("a plan for less memory than is needed", 69, &["512.00 KiB", "do not fit"], |_| {}).on(&[
            "plan",
            "run.yaml",
            "--device-memory",
            "512KiB",
        ]),
        case("a name of a model in place of its folder", 66, &["`meta/llama`", "hf download meta/llama"], |p| {
            p.set("model_name_or_path", "meta/llama")
        }),
        case("a result that is there already", 78, &["`run` is not empty", "overwrite_output_dir"], |p| {
            p.make_folder("run");
            p.write("run/notes.txt", "precious");
        }),
        case("a result inside a file", 73, &["run.yaml/run"], |p| p.set("output_dir", "run.yaml/run")),
        case("a result in place of a file", 73, &["model/config.json"], |p| p.set("output_dir", "model/config.json")),
        case("a result where no folder can be", 73, &["/proc/run"], |p| p.set("output_dir", "/proc/run")),
        case("a loss that is not a number", 79, &["step", "not a number", "learning_rate"], |p| {
            for (key, value) in
                [("learning_rate", "1e38"), ("max_steps", "20"), ("max_grad_norm", "0"), ("warmup_steps", "0")]
            {
                p.set(key, value);
            }
        }),
    ]);
}

/// `run.yaml` holds `text` and nothing else.
fn yaml(name: &'static str, says: &'static [&'static str], text: &str) -> Case {
    let text = text.to_string();
    case(name, 78, says, move |place| place.write("run.yaml", &text))
}

/// `run.yaml` with `lines` added, in place of the lines of the same keys.
fn key(name: &'static str, says: &'static [&'static str], lines: &'static str) -> Case {
    case(name, 78, says, move |place| {
        for (key, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
            place.set(key, value);
        }
    })
}

#[test]
fn the_good_original_trains_so_that_every_case_fails_for_its_own_reason() {
    let place: Place = crate::place::Good::make().copy();
    let ended = scout_tests::run_in(place.folder(), &["train", "run.yaml"], crate::place::LIMIT);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(place.path("run/adapter_model.safetensors").is_file());
}

//! What `plan` tells before anything is read or computed, and what it does not need for that.

use serde_json::Value;

use crate::folder::Folder;

#[test]
fn a_plan_names_the_model_what_is_trained_memory_and_steps() {
    let folder = Folder::with_toy();
    let said = folder.succeed(&["plan", "run.yaml", "max_steps=null", "num_train_epochs=2"]).stdout;
    for phrase in [
        "155,072 parameters, 1 layers of width 64, 4 experts",
        "LoRA rank 4, alpha 8, on q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        "ranks      1",
        "steps      48 (96 rows, 24 updates an epoch, 0 of warm-up)",
        "embedding",
        "layers.0.gate_up",
        "head",
    ] {
        assert!(said.contains(phrase), "{phrase}\n{said}");
    }
    assert!(!folder.path("run").exists(), "a plan writes nothing");
}

#[test]
fn a_plan_as_json_holds_the_same_numbers() {
    let folder = Folder::with_toy();
    let plan = json(&folder, &["plan", "run.yaml", "--json", "--world", "4", "num_train_epochs=2", "max_steps=-1"]);
    assert_eq!((&plan["world"], &plan["parameters"]), (&Value::from(4), &Value::from(155_072)));
    // A and B of rank 4 on seven matrices of width 64, 32 or 80.
    assert_eq!(plan["trained_parameters"], 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 80)));
    assert_eq!(plan["steps"], serde_json::json!({"rows": 96, "updates_per_epoch": 6, "total": 12, "warmup": 0}));
    assert_eq!(plan["runs"], 1);
    let excess = plan["balance"]["excess"].as_f64().unwrap();
    assert!((0.0..0.2).contains(&excess), "{excess}");
    let units = plan["units"].as_array().unwrap();
    let parameters: u64 = units.iter().map(|unit| unit["parameters"].as_u64().unwrap()).sum();
    assert_eq!(parameters, 155_072, "every parameter travels in one unit");
    for unit in units {
        let [parameters, kept] = ["parameters", "kept_elements"].map(|key| unit[key].as_u64().unwrap());
        assert_eq!(kept, parameters.div_ceil(4), "{unit}");
    }
    let memory = &plan["memory"];
    let parts = ["shard", "gathered", "trained", "activations", "workspace"].map(|key| memory[key].as_u64().unwrap());
    assert_eq!(memory["total"], parts.iter().sum::<u64>());
}

#[test]
fn a_plan_says_how_evenly_ranks_are_loaded_and_in_how_many_runs_they_compute() {
    let folder = Folder::with_toy();
    let changes = ["run.yaml", "gradient_accumulation_steps=4", "max_steps=2"];
    let on_four = [&["plan"], &changes[..], &["--world", "4"]].concat();
    let said = folder.succeed(&on_four).stdout;
    let excess = json(&folder, &[&on_four[..], &["--json"]].concat())["balance"]["excess"].as_f64().unwrap();
    let line =
        format!("balance    the busiest rank of an update has {:.1} % more work than the average", 100.0 * excess);
    assert!(said.contains(&line), "{line}\n{said}");
    let alone = json(&folder, &[&["plan", "--json"], &changes[..]].concat());
    assert_eq!((&alone["balance"]["excess"], &alone["runs"]), (&0.0.into(), &4.into()));
    assert!(!folder.succeed(&[&["plan"], &changes[..]].concat()).stdout.contains("balance"), "nobody to compare with");
    // Four gathers of the whole model in place of one.
    let several = [&on_four[..], &["device=cuda", "device_memory=3GiB", "--json"]].concat();
    let several = json(&folder, &several);
    assert!(several["runs"].as_u64().unwrap() < 4, "{several}");
    let as_dealt = several["ways"].as_array().unwrap().iter().find(|way| way["runs"] == 4);
    assert_eq!(as_dealt.expect("what merging gains is shown")["chosen"], false);
}

#[test]
fn scout_is_planned_by_its_name_alone() {
    let folder = Folder::empty();
    folder.write(
        "scout.yaml",
        "model_name_or_path: meta-llama/Llama-4-Scout-17B-16E-Instruct\ndataset: identity,alpaca_en_demo\n\
         template: llama4\nlora_target: all\noutput_dir: run\nper_device_train_batch_size: 1\ndevice: cpu\n",
    );
    // Scout's shape, matrix by matrix.
    let (vocab, hidden, width, heads, kv_heads, head, experts) = (202_048_u64, 5120, 8192, 40, 8, 128, 16);
    let attention = hidden * head * (2 * heads + 2 * kv_heads);
    let layer = attention + (experts + 1) * 3 * hidden * width + experts * hidden + 2 * hidden;
    let parameters = 48 * layer + 2 * vocab * hidden + hidden;
    let plan = json(&folder, &["plan", "scout.yaml", "--world", "8", "--device-memory", "80GiB", "--json"]);
    assert_eq!((&plan["parameters"], &plan["steps"]), (&Value::from(parameters), &Value::Null));
    assert_eq!((&plan["world"], &plan["memory"]["budget"]), (&Value::from(8), &Value::from(80_u64 << 30)));
    let total = plan["memory"]["total"].as_u64().unwrap();
    assert!(total > parameters * 4 / 8 && total <= 80 << 30, "{total}");
    let said = folder.succeed(&["plan", "scout.yaml", "--world", "8"]).stdout;
    assert!(said.contains("107,769,861,120 parameters, 48 layers of width 5120, 16 experts"), "{said}");
    assert!(said.contains("steps      unknown: "), "{said}");
    // What trains must be there.
    assert_eq!(folder.run(&["train", "scout.yaml"]).code, Some(66));
}

#[test]
fn a_gpu_is_planned_where_there_is_none() {
    let folder = Folder::with_toy();
    let gpu = ["plan", "run.yaml", "device=cuda"];
    let in_memory = |memory: &str, more: &[&str]| {
        let memory = format!("device_memory={memory}");
        json(&folder, &[&gpu[..], &["--json", memory.as_str()], more].concat())
    };
    let plan = in_memory("1GiB", &[]);
    assert_eq!(
        (&plan["device"], &plan["dtype"], &plan["deterministic"]),
        (&"cuda".into(), &"bf16".into(), &false.into())
    );
    assert_eq!(plan["memory"]["shard"], 2 * 155_072);
    let ways = plan["ways"].as_array().unwrap();
    let totals: Vec<u64> = ways.iter().map(|way| way["total"].as_u64().unwrap()).collect();
    assert!(totals.is_sorted_by(|more, less| more > less), "{totals:?}");
    // In a byte less than the first way takes, the second is chosen, and the first said not to fit.
    let tight = in_memory(&(totals[0] - 1).to_string(), &[]);
    let chosen: Vec<&Value> = tight["ways"].as_array().unwrap().iter().map(|way| &way["chosen"]).collect();
    assert_eq!(chosen, [false, true, false]);
    assert_eq!((&tight["ways"][0]["fits"], &tight["keeps"]), (&false.into(), &ways[1]["keeps"]));
    let exact = in_memory("1GiB", &["bf16=false", "deterministic=true"]);
    assert_eq!((&exact["dtype"], &exact["deterministic"]), (&"f32".into(), &true.into()));
    assert_eq!(exact["memory"]["shard"], 4 * 155_072);
    // Whatever is here, and in words.
    let said = folder.succeed(&gpu).stdout;
    for phrase in ["computing  on a GPU, in bf16", "all kept ", "gate and up computed again ", "  chosen"] {
        assert!(said.contains(phrase), "{phrase}\n{said}");
    }
}

#[test]
fn the_table_of_units_adds_up_to_the_shard_however_layers_are_held() {
    let folder = Folder::empty();
    folder.write(
        "scout.yaml",
        "model_name_or_path: meta-llama/Llama-4-Scout-17B-16E-Instruct\ntemplate: llama4\nlora_target: all\n\
         output_dir: run\ncutoff_len: 2048\nper_device_train_batch_size: 1\ndevice: cuda\ndevice_memory: 139.4GiB\n",
    );
    // Some layers whole and matrices of others; experts that stay beside whole layers; and beside none of them.
    for (more, expected) in [
        (&["weights=zero3"][..], " down "),
        (&["weights=expert-resident", "device_memory=80GiB"], "experts stay + 3"),
        (&["weights=expert-resident", "device_memory=65GiB"], "experts stay "),
    ] {
        let plan = [&["plan", "scout.yaml", "--world", "4"][..], more].concat();
        let shard = json(&folder, &[&plan[..], &["--json"]].concat())["memory"]["shard"].as_u64().unwrap();
        let said = folder.succeed(&plan).stdout;
        let chosen = said.lines().find(|line| line.ends_with("  chosen")).unwrap();
        assert!(chosen.contains(expected), "{said}");
        assert_eq!(chosen.contains(" stay +"), expected.contains('+'), "{said}");
        let is_assumed = said.contains("with 1.10 times an even share of each layer's rows for the busiest rank");
        assert_eq!(is_assumed, expected.contains("stay"), "{said}");
        let lines = said.lines().skip_while(|line| !line.starts_with("unit ")).skip(1);
        let is_unit = |line: &&str| !line.starts_with("gathered ") && !line.starts_with("experts ");
        let lines: Vec<Vec<&str>> = lines.take_while(is_unit).map(|line| line.split_whitespace().collect()).collect();
        let kept = lines.iter().map(|line| {
            let [.., kept, unit] = line[..] else { panic!("{line:?}") };
            let bytes = if unit == "GiB" { 2_f64.powi(30) } else { 2_f64.powi(20) };
            line[1].parse::<f64>().unwrap() * kept.parse::<f64>().unwrap() * bytes
        });
        let kept: f64 = kept.sum();
        assert!((kept / shard as f64 - 1.0).abs() < 1e-3, "{kept} of {shard}\n{said}");
        let num_units: u64 = lines.iter().map(|line| line[1].parse::<u64>().unwrap()).sum();
        assert_eq!(num_units, 4 * 48 + 2);
    }
}

#[test]
fn a_plan_needs_no_data_and_says_what_it_misses() {
    let folder = Folder::with_toy();
    for (change, phrase) in [("dataset=nowhere", "`nowhere`"), ("dataset=null", "no `dataset`")] {
        let said = folder.succeed(&["plan", "run.yaml", change]).stdout;
        let line = said.lines().find(|line| line.starts_with("steps ")).unwrap();
        assert!(line.starts_with("steps      unknown: ") && line.contains(phrase), "{line}");
        let plan = json(&folder, &["plan", "run.yaml", change, "--json"]);
        assert_eq!((&plan["steps"], &plan["balance"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn a_plan_needs_no_weights() {
    let folder = Folder::with_toy();
    let whole = folder.succeed(&["plan", "run.yaml"]).stdout;
    std::fs::remove_file(folder.path("toy/model.safetensors")).unwrap();
    assert_eq!(folder.succeed(&["plan", "run.yaml"]).stdout, whole);
}

#[test]
fn less_memory_is_met_by_computing_again_and_changes_no_bit() {
    let folder = Folder::with_toy();
    let batch = "per_device_train_batch_size=16";
    let plan = |memory: &str| json(&folder, &["plan", "run.yaml", batch, "--json", "--device-memory", memory]);
    let whole = plan("1GiB");
    assert_eq!(whole["keeps"], "all kept");
    // Just less than all, in bytes, until blocks are computed again.
    let total = whole["memory"]["total"].as_u64().unwrap();
    let choices: Vec<u64> = (1..=40).map(|cut| total - cut * 20_000).collect();
    let fitting = choices.into_iter().map_while(|bytes| {
        let ended = folder.run(&["plan", "run.yaml", batch, "--json", "--device-memory", &bytes.to_string()]);
        (ended.code == Some(0)).then(|| (bytes, serde_json::from_str::<Value>(&ended.stdout).unwrap()["keeps"].clone()))
    });
    let (least, keeps) = fitting.last().expect("a little less still fits");
    assert_ne!(keeps, "all kept");
    folder.succeed(&["train", "run.yaml", batch, "output_dir=whole"]);
    folder.succeed(&["train", "run.yaml", batch, "output_dir=least", &format!("device_memory={least}")]);
    assert_eq!(folder.bits("least"), folder.bits("whole"), "{keeps}");
}

fn json(folder: &Folder, arguments: &[&str]) -> Value {
    serde_json::from_str(&folder.succeed(arguments).stdout).unwrap()
}

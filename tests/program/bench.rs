//! `bench`: what its numbers are made of, on ranks of the host. How fast anything is, is tested nowhere.

use serde_json::Value;

use crate::folder::Folder;

/// Three rows of 15, 13 and 20 tokens.
const LENGTHS: &str = r#"{"prompt_overhead": 10, "output_overhead": 1, "lengths": [[2, 0, 3], [1, 1, 1], [4, 0, 6]]}"#;
const STEP: [&str; 7] = ["bench", "step", "run.yaml", "--layers", "1", "--batch", "1"];

fn launched(extra: &[&str]) -> Vec<String> {
    let launch = ["launch", "-n", "2"];
    launch.iter().chain(&STEP).chain(extra).map(|word| word.to_string()).collect()
}

fn succeed(folder: &Folder, words: &[String]) -> String {
    folder.succeed(&words.iter().map(String::as_str).collect::<Vec<_>>()).stdout
}

#[test]
fn two_ranks_step_together_and_each_has_its_line() {
    let folder = Folder::with_toy();
    let words = launched(&["--seq", "16", "--steps", "3", "--json", "two.json", "--trace", "trace.json"]);
    let said = succeed(&folder, &words);
    assert!(said.contains("3 steps: ") && said.contains(" on each rank"), "{said}");
    let table: Vec<&str> = said.lines().skip_while(|line| !line.contains("exposed")).collect();
    assert_eq!(table.len(), 3 + 2, "two ranks, and what is exposed, in words: {said}");
    assert!(!said.contains("[rank 1]"), "only the first rank tells:\n{said}");

    let found = folder.json("two.json");
    for key in ["layers", "gpus", "batch", "seq", "tok_s_gpu", "useful_tflops", "step_s", "commit", "command"] {
        assert!(!found[key].is_null(), "`{key}` is missing: {found}");
    }
    assert_eq!((&found["layers"], &found["steps"], &found["batch"]), (&1.into(), &3.into(), &1.into()));
    assert_eq!((&found["gpus"], &found["num_ranks"], &found["gather"]), (&0.into(), &2.into(), &Value::Null));
    // Together steps take no less than as many of the shortest, and no more than as many of the longest.
    let [shortest, longest] = [0, 2].map(|index| found["step_s_spread"][index].as_f64().unwrap());
    let seconds = found["seconds"].as_f64().unwrap();
    assert!((3.0 * shortest - 1e-6..=3.0 * longest + 1e-6).contains(&seconds), "{found}");
    // Two ranks with a row of 16 tokens each.
    assert_eq!(found["tokens"], 3 * 2 * 16);
    let ranks = found["ranks"].as_array().unwrap();
    assert_eq!(ranks.iter().map(|rank| rank["rank"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    for rank in ranks {
        // Who waits does so within its steps: not before them, and not in what ranks tell each other between them.
        let [step, exposed] = ["step_s", "exposed_s"].map(|key| rank[key].as_f64().unwrap());
        assert!(exposed > 0.0 && exposed < step, "{rank}");
        assert!(rank["memory_peak_bytes"].as_u64().unwrap() > 1 << 20, "{rank}");
    }
    let exposed = found["exposed_comm"].as_f64().unwrap();
    assert!(exposed > 0.0 && exposed < 1.0, "{exposed}");
    assert!(found["environment"]["host_cores"].as_u64().unwrap() >= 1, "{found}");
    assert_eq!((&found["plan"]["runs"], &found["plan"]["resident_layers"]), (&1.into(), &0.into()));
    check_trace(&folder.json("trace.json"));
}

/// Every phase of a step on both ranks, one behind the other.
fn check_trace(trace: &Value) {
    let events = trace["traceEvents"].as_array().unwrap();
    for rank in 0..2 {
        let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X" && event["pid"] == rank).collect();
        for phase in ["forward", "loss", "backward", "reduce", "update"] {
            assert!(spans.iter().any(|span| span["name"] == phase), "rank {rank} has no {phase}: {spans:?}");
        }
        let number = |span: &Value, key: &str| span[key].as_f64().unwrap();
        for pair in spans.windows(2) {
            assert!(number(pair[0], "ts") + number(pair[0], "dur") <= number(pair[1], "ts") + 0.01, "{pair:?}");
        }
    }
}

#[test]
fn the_same_steps_have_the_same_losses_however_weights_are_held() {
    let folder = Folder::with_toy();
    let losses = |weights: &str, ranks: bool| -> Vec<Value> {
        let setting = format!("weights={weights}");
        let extra = [&setting[..], "--seq", "16", "--steps", "4", "--json", "steps.json"];
        match ranks {
            true => succeed(&folder, &launched(&extra)),
            false => folder.succeed(&[&STEP[..], &extra].concat()).stdout,
        };
        folder.json("steps.json")["loss_bits"].as_array().unwrap().clone()
    };
    let sharded = losses("zero3", true);
    assert_eq!(sharded.len(), 4);
    assert_eq!(sharded, losses("resident", true));
    // Training goes on, on other rows than those of one rank.
    assert_ne!(sharded[0], sharded[3]);
    assert_ne!(sharded, losses("zero3", false));
}

#[test]
fn a_whole_job_runs_every_update_of_its_epochs_once() {
    let folder = Folder::with_toy();
    folder.write("lengths.json", LENGTHS);
    let words = launched(&["--lengths", "lengths.json", "--epochs", "3", "--json", "job.json"]);
    let said = succeed(&folder, &words);
    // Three rows on two ranks: the second update of an epoch wraps to the first row.
    let tokens = 3 * (15 + 13 + 20 + 15);
    assert!(said.contains(&format!("6 updates of 3 epochs: {tokens} tokens in ")), "{said}");
    let found = folder.json("job.json");
    assert_eq!((&found["steps"], &found["tokens"], &found["seq"]), (&6.into(), &tokens.into(), &Value::Null));
    let (rate, seconds) = (found["tok_s_gpu"].as_f64().unwrap(), found["seconds"].as_f64().unwrap());
    assert!((rate * seconds * 2.0 - tokens as f64).abs() < 1e-6, "{found}");
    // The host queues a step while a GPU is at the one before: only all of them together are known.
    assert!((found["step_s"].as_f64().unwrap() * 6.0 - seconds).abs() < 1e-9, "{found}");
    assert_eq!((&found["step_s_spread"], &found["step_s_all"]), (&Value::Null, &Value::Null));
    assert!(said.contains(" ms on average; without pauses"), "{said}");
}

#[test]
fn a_step_has_all_micro_batches_that_gradients_are_accumulated_over() {
    let folder = Folder::with_toy();
    let accumulation = ["gradient_accumulation_steps=3", "packing=true"];
    let more = ["--seq", "16", "--steps", "1", "--json", "three.json"];
    let said = succeed(&folder, &launched(&[&accumulation[..], &more].concat()));
    let found = folder.json("three.json");
    // Three micro-batches of a row of 16 tokens on each of two ranks.
    assert_eq!((&found["tokens"], &found["gradient_accumulation_steps"]), (&(3 * 2 * 16).into(), &3.into()), "{found}");
    assert_eq!((&found["batch"], &found["plan"]["runs"]), (&1.into(), &3.into()));
    assert!(said.contains("`packing` is left aside"), "{said}");
    // Seven rows are one update of twelve.
    let lengths = LENGTHS.replace("[4, 0, 6]]", "[4, 0, 6], [1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1]]");
    folder.write("lengths.json", lengths);
    let more = ["--lengths", "lengths.json", "--batch", "2", "--epochs", "2", "--json", "job.json"];
    let words = ["launch", "-n", "2", "bench", "step", "run.yaml", accumulation[0]];
    let said = folder.succeed(&[&words[..], &more].concat()).stdout;
    assert!(said.contains("2 updates of 2 epochs: ") && !said.contains("left aside"), "{said}");
}

#[test]
fn useful_work_is_told_as_it_is_counted() {
    let folder = Folder::with_toy();
    for (method, said_of) in [("lora", "4 x active matrix parameters"), ("full", "2 more where trained")] {
        let method = format!("finetuning_type={method}");
        let words = [&STEP[..], &[&method, "--seq", "16", "--steps", "1", "--json", "step.json"]].concat();
        let said = folder.succeed(&words).stdout;
        let formula = folder.json("step.json")["formula"].as_str().unwrap().to_string();
        assert!(formula.contains(said_of), "{method}: {formula}");
        assert!(said.contains(&formula), "{said}");
    }
}

#[test]
fn a_path_that_cannot_be_written_is_told_before_anything_is_measured() {
    let folder = Folder::with_toy();
    folder.write("held.json", "{}");
    for (benchmark, flag) in [("step", "--json"), ("step", "--trace"), ("load", "--json")] {
        for path in ["nowhere/found.json", "."] {
            let ended = folder.run(&["launch", "-n", "2", "bench", benchmark, "run.yaml", flag, path]);
            assert_eq!(ended.code, Some(73), "{benchmark} {flag} {path}\n{}", ended.stderr);
            assert!(ended.stderr.contains(&format!("`{path}` cannot be written")), "{}", ended.stderr);
            assert!(!ended.stdout.contains("tokens/s") && !ended.stdout.contains("GB/s"), "{}", ended.stdout);
        }
    }
    // What fails after it was opened takes nothing away, and leaves nothing behind.
    let no_files =
        ["bench", "step", "run.yaml", "--lengths", "nowhere.json", "--json", "held.json", "--trace", "new.json"];
    assert_eq!(folder.run(&no_files).code, Some(66));
    assert_eq!(folder.text("held.json"), "{}");
    assert!(!folder.path("new.json").exists());
    // A longer file is written over as a whole.
    folder.write("held.json", " ".repeat(1 << 16));
    folder.succeed(&[&STEP[..], &["--seq", "16", "--steps", "1", "--json", "held.json"]].concat());
    assert_eq!(folder.json("held.json")["steps"], 1);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = Folder::with_toy();
    let cases: [(&[&str], &str); 6] = [
        (&["bench", "gather", "run.yaml"], "what several GPUs do together"),
        (&["launch", "-n", "2", "bench", "gather", "run.yaml"], "what several GPUs do together"),
        (&["bench", "comm"], "what several GPUs do together"),
        (&["bench", "comm", "--bytes-min", "4096", "--bytes-max", "2048"], "`--bytes-max` 2048 is less"),
        (&["bench", "step", "run.yaml", "--epochs", "2"], "--lengths"),
        (&["bench", "step", "run.yaml", "--steps", "2", "--seconds", "2"], "cannot be used with"),
    ];
    for (words, said) in cases {
        let ended = folder.run(words);
        assert_eq!(ended.code, Some(2), "{words:?}\n{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{words:?} does not say `{said}`:\n{}", ended.stderr);
    }
}

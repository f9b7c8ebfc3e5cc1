//! Where values come from: the order of the sources, the origin of each value, and files that cannot be read.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use scout_config::{KEYS, Loaded, Origin, RunConfig, Treatment};
use scout_core::ExitCode;

fn load(text: &str, overrides: &[&str], environment: &[(&str, &str)]) -> Loaded {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    let environment: Vec<(String, String)> =
        environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    RunConfig::from_text("run.yaml", text, &overrides, &environment).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_command_line_wins_over_variables_over_the_file_over_defaults() {
    let variable = ("SCOUT_DIST__LORA_RANK", "32");
    for (lines, overrides, environment, rank, origin) in [
        ("", &[][..], &[][..], 8, "default"),
        ("lora_rank: 16", &[], &[], 16, "run.yaml:2:12"),
        (
            "lora_rank: 16",
            &[],
            &[variable, ("PATH", "/bin"), ("SCOUT_DIST_RANK", "0")],
            32,
            "environment SCOUT_DIST__LORA_RANK",
        ),
        ("lora_rank: 16", &["lora_rank=64"], &[variable], 64, "override lora_rank=64"),
        ("lora_rank: 16", &["lora_rank=64", "lora_rank=4"], &[variable], 4, "override lora_rank=4"),
        ("lora_rank: 16", &["lora_rank=null"], &[], 8, "override lora_rank=null"),
        ("lora_rank: ~", &[], &[], 8, "run.yaml:2:12"),
    ] {
        let loaded = load(&format!("random_weights: true\n{lines}\n"), overrides, environment);
        assert_eq!(loaded.config.lora.lora_rank, rank, "{lines} {overrides:?}");
        assert_eq!(loaded.origins["lora_rank"].to_string(), origin, "{lines} {overrides:?}");
        assert_eq!(loaded.config.lora.lora_alpha, 2.0 * rank as f64, "{lines} {overrides:?}");
    }
}

#[test]
fn every_key_has_an_origin() {
    let loaded = load("random_weights: true\nstage: sft\n", &[], &[]);
    assert_eq!(loaded.origins.len(), KEYS.len());
    assert_eq!(loaded.origins["stage"], Origin::File { name: "run.yaml".into(), line: 2, column: 8 });
    assert_eq!(loaded.origins["seed"], Origin::Default);
}

#[test]
fn what_is_found_wrong_with_a_key_later_is_told_with_its_place() {
    let variable = ("SCOUT_DIST__RESIDENT_LAYERS", "60");
    for (lines, overrides, environment, place) in [
        ("", &[][..], &[][..], "run.yaml:1:1"),
        ("resident_layers: 60", &[], &[], "run.yaml:2:18"),
        ("", &[], &[variable], "environment SCOUT_DIST__RESIDENT_LAYERS"),
        ("resident_layers: 7", &["resident_layers=60"], &[variable], "override resident_layers=60"),
    ] {
        let loaded = load(&format!("random_weights: true\n{lines}\n"), overrides, environment);
        let error = loaded.at_odds("resident_layers", "is 60, and the model has 48 layers").unwrap();
        assert_eq!(error.to_string(), format!("{place}: resident_layers: is 60, and the model has 48 layers"));
        assert_eq!(error.exit_code(), ExitCode::BadConfig);
        assert!(loaded.at_odds("world", "is 0").is_none(), "no key");
    }
}

#[test]
fn overrides_are_read_as_yaml() {
    let overrides =
        ["dataset=[a, 'b,c']", "learning_rate=1e-4", "packing=yes", "output_dir=a=b", "template=\"llama4\"", "seed=7"];
    let config = load("random_weights: true", &overrides, &[]).config;
    assert_eq!(config.data.dataset, ["a", "b,c"]);
    assert_eq!((config.train.learning_rate, config.train.seed, config.data.packing), (1e-4, 7, true));
    assert_eq!(config.output.output_dir.as_deref(), Some(Path::new("a=b")));
    assert_eq!(load("random_weights: true", &["dataset=a,b"], &[]).config.data.dataset, ["a", "b"]);
}

#[test]
fn files_are_read_whatever_their_line_ends_and_byte_order_mark() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    for text in [
        "random_weights: true\nseed: 5\n",
        "\u{feff}random_weights: true\r\nseed: 5\r\n",
        "{random_weights: true, \"seed\": 5}",
    ] {
        fs::write(&path, text).unwrap();
        let loaded = RunConfig::load(&path, &[], &[]).unwrap();
        assert_eq!(loaded.config.train.seed, 5, "{text:?}");
        assert_eq!(loaded.name, path.display().to_string());
    }
}

#[test]
fn files_that_cannot_be_read_end_with_their_own_codes() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let latin1 = file("latin1.yaml", b"seed: 5\noutput_dir: \xe9t\xe9\n");
    let huge = file("huge.yaml", "# much\n".repeat(200_000).as_bytes());
    for (path, code, words) in [
        (folder.path().join("absent.yaml"), ExitCode::MissingInput, "cannot read the configuration `"),
        (folder.path().to_path_buf(), ExitCode::InputOutput, "cannot read the configuration `"),
        (latin1, ExitCode::BadConfig, "latin1.yaml:2:13: found the byte 0xe9, expected UTF-8 text"),
        (huge, ExitCode::BadConfig, "huge.yaml:1:1: found more than 1048576 bytes"),
    ] {
        let error = RunConfig::load(&path, &[], &[]).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.exit_code(), code, "{error}");
    }
}

#[test]
fn the_resolved_listing_holds_every_honoured_key() {
    let resolved = load("random_weights: true", &[], &[]).config.resolved();
    let listed: Vec<&str> = resolved.iter().map(|(key, _)| key.as_str()).collect();
    // Its value is part of `hang_limit`.
    let mapped = "ddp_timeout";
    let honoured = KEYS.iter().filter(|key| key.treatment == Treatment::Honoured && key.name != mapped);
    let mut expected: Vec<&str> = honoured.map(|key| key.name).collect();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
}

#[test]
fn the_table_states_the_defaults_that_are_used() {
    let base = load("random_weights: true", &[], &[]);
    for key in KEYS.iter().filter(|key| key.treatment == Treatment::Honoured && key.name != "random_weights") {
        let text = format!("random_weights: true\n{}: {}\n", key.name, key.default);
        assert_eq!(load(&text, &[], &[]).config, base.config, "{}", key.name);
    }
}

#[test]
fn a_resolved_configuration_loads_as_itself() {
    for overrides in [
        &[][..],
        &["lora_target=[q_proj, experts.down_proj]", "dataset=['a,b', \"5\", c d]", "output_dir='yes'", "max_steps=7"],
        &[
            "lora_alpha=3.5",
            "val_size=0.1",
            "eval_strategy=steps",
            "eval_steps=3",
            "device_memory=1500",
            "hang_limit=0.5",
        ],
        &["ddp_timeout=60", "weights=resident", "learning_rate=1.2345678901234567e-7", "seed=18446744073709551615"],
        &["model_name_or_path='a: b #c'", "random_weights=false", "template=llama4", "adapter_layout=conditional"],
    ] {
        let config = load("random_weights: true", overrides, &[]).config;
        assert_eq!(load(&config.to_yaml_text(), &[], &[]).config, config, "{}", config.to_yaml_text());
    }
}

proptest! {
    #[test]
    fn no_text_causes_a_panic_or_a_line_without_its_place(text in "\\PC{0,40}|[a-z_]{1,6}: [\\[{&*!\"'|>a-z0-9,:. \\n\\t-]{0,30}") {
        if let Err(error) = RunConfig::from_text("run.yaml", &text, &[], &[]) {
            let lines = error.to_string();
            prop_assert!(!lines.is_empty() && lines.lines().all(|line| line.starts_with("run.yaml:")), "{}", lines);
        }
    }

    #[test]
    fn no_value_of_any_key_causes_a_panic(index in 0..KEYS.len(), value in "[0-9a-z_+,.:\\[\\]{}\"'#&*!|> \u{e9}-]{0,12}") {
        let overrides = [format!("{}={value}", KEYS[index].name)];
        if let Err(error) = RunConfig::from_text("run.yaml", "random_weights: true", &overrides, &[]) {
            prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
            prop_assert_eq!(error.exit_code(), ExitCode::BadConfig);
        }
    }

    #[test]
    fn numbers_survive_writing_and_reading(rate in 1e-12f64..1e3, alpha in 1e-3f64..1e4, rank in 1usize..4096) {
        let overrides = [format!("learning_rate={rate:?}"), format!("lora_alpha={alpha:?}"), format!("lora_rank={rank}")];
        let config = RunConfig::from_text("run.yaml", "random_weights: true", &overrides, &[]).unwrap().config;
        prop_assert_eq!(config.train.learning_rate, rate);
        prop_assert_eq!(RunConfig::from_text("again", &config.to_yaml_text(), &[], &[]).unwrap().config, config);
    }
}

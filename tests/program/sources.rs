//! Where a configuration comes from: a file, the working folder, variables, the command line; the later wins.

use crate::folder::Folder;

fn steps(folder: &Folder) -> u64 {
    folder.log("run")[0]["total_steps"].as_u64().unwrap()
}

#[test]
fn a_change_on_the_command_line_wins_over_variables_and_those_over_the_file() {
    let folder = Folder::with_toy();
    let check = |variables: &[(&str, &str)], overrides: &[&str], expected: u64| {
        let ended = folder.run_with(variables, &[&["train", "run.yaml"], overrides].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(steps(&folder), expected, "{variables:?} {overrides:?}");
    };
    let two = [("SCOUT_DIST__MAX_STEPS", "2")];
    check(&[], &[], 3);
    check(&[], &["max_steps=1"], 1);
    check(&[], &["max_steps=4", "max_steps=1"], 1);
    check(&two, &[], 2);
    check(&two, &["max_steps=1"], 1);
    // `null` asks for the default, which is three epochs of 24 steps; variables of others are nobody's business.
    check(&[("SCOUT_DISTANCE", "9")], &["max_steps=null", "num_train_epochs=0.2"], 5);
}

#[test]
fn lists_and_quoted_texts_on_the_command_line_mean_what_they_mean_in_the_file() {
    let folder = Folder::with_toy();
    for target in ["lora_target=[q_proj, v_proj]", "lora_target=q_proj,v_proj", "lora_target=\"q_proj, v_proj\""] {
        folder.succeed(&["train", "run.yaml", "max_steps=1", target]);
        let modules = &folder.json("run/adapter_config.json")["target_modules"];
        assert_eq!(*modules, serde_json::json!(["q_proj", "v_proj"]), "{target}");
    }
}

#[test]
fn a_wrong_variable_is_named_with_what_was_meant() {
    let folder = Folder::with_toy();
    let ended = folder.run_with(&[("SCOUT_DIST__LEARNIN_RATE", "1")], &["train", "run.yaml"]);
    assert_eq!(ended.code, Some(78));
    let expected = "environment SCOUT_DIST__LEARNIN_RATE: unknown key learnin_rate, did you mean learning_rate?\n";
    assert_eq!(ended.stderr, expected);
}

#[test]
fn without_a_file_the_one_of_the_working_folder_is_taken() {
    let folder = Folder::with_toy();
    std::fs::rename(folder.path("run.yaml"), folder.path("scout-dist.yaml")).unwrap();
    folder.succeed(&["train"]);
    assert_eq!(steps(&folder), 3);
    folder.succeed(&["train", "max_steps=2"]);
    assert_eq!(steps(&folder), 2);
    assert!(folder.succeed(&["plan"]).stdout.contains("steps      3 "));
    assert!(folder.succeed(&["preprocess", "max_samples=5"]).stdout.contains("5 rows"));
}

#[test]
fn keys_without_effect_are_told_once_each() {
    let folder = Folder::with_toy();
    let ended =
        folder.succeed(&["train", "run.yaml", "stage=sft", "do_train=true", "trust_remote_code=true", "max_steps=1"]);
    for key in ["`stage`", "`do_train`", "`trust_remote_code`"] {
        let lines = ended.stderr.lines().filter(|line| line.starts_with("note: ") && line.contains(key)).count();
        assert_eq!(lines, 1, "{key}\n{}", ended.stderr);
    }
}

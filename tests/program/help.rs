//! What the program says about itself.

use crate::folder::Folder;

#[test]
fn the_version_is_one_line() {
    let ended = Folder::empty().succeed(&["--version"]);
    let commit = ended.stdout.strip_prefix(&format!("scout-dist {} (", env!("CARGO_PKG_VERSION")));
    let commit = commit.and_then(|rest| rest.strip_suffix(")\n")).expect("version and commit");
    let commit = commit.strip_suffix("-dirty").unwrap_or(commit);
    let is_hash = commit.len() >= 12 && commit.bytes().all(|digit| digit.is_ascii_hexdigit());
    assert!(is_hash || commit == "unknown", "{commit}");
}

#[test]
fn every_command_explains_itself() {
    let folder = Folder::empty();
    let whole = folder.succeed(&["--help"]).stdout;
    for (command, option) in [
        ("demo", "--out"),
        ("train", "KEY=VALUE"),
        ("train", "--device"),
        ("plan", "--device-memory"),
        ("verify", "--device"),
        ("synth", "--shape"),
        ("preprocess", "--show"),
    ] {
        let listed = whole.lines().any(|line| line.trim_start().starts_with(command) && line.trim().contains("  "));
        assert!(listed, "{command} is not explained:\n{whole}");
        let own = folder.succeed(&[command, "--help"]).stdout;
        assert!(own.contains(option) && own.contains("Usage: scout-dist "), "{own}");
    }
}

#[test]
fn no_command_at_all_shows_the_help_and_is_a_wrong_command_line() {
    let ended = Folder::empty().run(&[]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("Usage: scout-dist") && ended.stderr.contains("train"), "{}", ended.stderr);
}

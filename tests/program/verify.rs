//! The exit code and the last line of `verify`, on the shipped numbers and on copies in which one thing is wrong.

use scout_tests::fixtures;

use crate::folder::{Folder, tensors};

#[test]
fn the_shipped_numbers_are_verified() {
    let folder = Folder::empty();
    for (name, least) in [("tiny-scout", 400), ("tiny-scout-vision", 4)] {
        let path = fixtures().join(name);
        let said = folder.succeed(&["verify", path.to_str().unwrap()]).stdout;
        let last = said.lines().last().unwrap();
        let numbers: Vec<usize> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert!(numbers.len() == 3 && numbers[0] >= least && numbers[1] == 0, "{name}: {last}");
        assert!(last.ends_with(" later"), "{last}");
    }
}

#[test]
fn every_row_is_one_object_of_the_json() {
    let folder = Folder::empty();
    let path = fixtures().join("tiny-scout-vision");
    let said = folder.succeed(&["verify", path.to_str().unwrap(), "--json"]).stdout;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    assert!(rows.len() >= 4);
    for row in rows {
        assert!(["ok", "later"].contains(&row["result"].as_str().unwrap()), "{row}");
        assert!(row["quantity"].is_string() && row["from"].is_string() && row["tolerance"].is_number(), "{row}");
    }
}

#[test]
fn one_wrong_number_fails_and_is_named() {
    let folder = copy();
    let file = folder.path("recorded/expected.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = 8 + header + entries["layer.2.ffn_out"]["data_offsets"][0].as_u64().unwrap() as usize;
    let value = f32::from_le_bytes(bytes[start..start + 4].try_into().unwrap());
    bytes[start..start + 4].copy_from_slice(&(value + 0.01).to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    fails_with(&folder, "layer.2.ffn_out");
}

#[test]
fn a_file_that_is_missing_cut_or_unreadable_fails_and_is_never_skipped() {
    let folder = copy();
    let original = folder.bytes("recorded/adapter_attn.expected.safetensors");
    std::fs::remove_file(folder.path("recorded/adapter_attn.expected.safetensors")).unwrap();
    fails_with(&folder, "adapter_attn");
    folder.write("recorded/adapter_attn.expected.safetensors", &original[..original.len() - 1]);
    fails_with(&folder, "adapter_attn");
    folder.write("recorded/adapter_attn.expected.safetensors", original);
    folder.write("recorded/chat_cases.json", "[");
    fails_with(&folder, "chat_cases");
}

#[test]
fn a_model_that_is_not_the_recorded_one_fails() {
    let folder = copy();
    let index = folder.json("recorded/model.safetensors.index.json");
    let shard = index["weight_map"]["lm_head.weight"].as_str().unwrap();
    assert!(!tensors(&folder.path("recorded").join(shard)).is_empty());
    let mut bytes = folder.bytes(&format!("recorded/{shard}"));
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40; // the exponent of the last weight
    folder.write(&format!("recorded/{shard}"), bytes);
    fails_with(&folder, "FAIL");
}

fn copy() -> Folder {
    let folder = Folder::empty();
    copy_all(&fixtures().join("tiny-scout"), &folder.path("recorded"));
    folder
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            // A copy of the bytes, not of the permissions: fixtures may be read-only.
            std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

fn fails_with(folder: &Folder, quantity: &str) {
    let ended = folder.run(&["verify", "recorded"]);
    assert_eq!(ended.code, Some(1), "{quantity}\n{}{}", ended.stdout, ended.stderr);
    let failed: Vec<&str> = ended.stdout.lines().filter(|line| line.contains("FAIL")).collect();
    assert!(failed.iter().any(|line| line.contains(quantity)), "{quantity}: {failed:?}");
    let last = ended.stdout.lines().last().unwrap();
    assert!(last.contains(" failed, ") && !last.contains(" 0 failed"), "{last}");
    assert!(ended.stderr.is_empty(), "{}", ended.stderr);
}

//! `bench load`: what is read is what the model has, and it is told beside the disk's own rate.

use crate::folder::Folder;

#[test]
fn loading_is_measured_beside_the_disk_and_written_as_json() {
    let folder = Folder::with_toy();
    let said = folder.succeed(&["bench", "load", "run.yaml", "--streams", "3", "--json", "load.json"]).stdout;
    assert!(said.contains("disk before: ") && said.contains("% of the disk's rate"), "{said}");
    let json = folder.json("load.json");
    let header = u64::from_le_bytes(folder.bytes("toy/model.safetensors")[..8].try_into().unwrap());
    let of_tensors = folder.bytes("toy/model.safetensors").len() as u64 - 8 - header;
    assert_eq!(json["bytes"], of_tensors, "{json:#}");
    for (key, expected) in [("streams", 3), ("num_ranks", 1), ("gpus", 0), ("layers", 1)] {
        assert_eq!(json[key], expected, "{key}: {json:#}");
    }
    let device = json["environment"]["device"].as_str();
    assert_eq!((json["benchmark"].as_str(), device), (Some("load"), Some("cpu")));
    for key in ["batch", "seq", "tok_s_gpu", "useful_tflops", "step_s"] {
        assert_eq!(json.get(key), Some(&serde_json::Value::Null), "{key}: {json:#}");
    }
    let [rate, disk, ratio] = ["gb_s", "disk_gb_s", "ratio"].map(|key| json[key].as_f64().unwrap());
    assert!(rate > 0.0 && disk > 0.0 && (ratio - rate / disk).abs() <= 1e-9 * ratio, "{json:#}");
    assert!(json["command"].as_str().unwrap().contains("bench load run.yaml"), "{json:#}");
}

#[test]
fn ranks_read_their_parts_together_and_the_first_one_tells() {
    let folder = Folder::with_toy();
    let said = folder.succeed(&["launch", "-n", "3", "bench", "load", "run.yaml", "--json", "load.json"]).stdout;
    assert_eq!(said.matches("weights: ").count(), 1, "{said}");
    let json = folder.json("load.json");
    let model = folder.bytes("toy/model.safetensors");
    let of_tensors = model.len() as u64 - 8 - u64::from_le_bytes(model[..8].try_into().unwrap());
    assert_eq!((json["bytes"].as_u64(), json["num_ranks"].as_u64()), (Some(of_tensors), Some(3)), "{json:#}");
    assert_eq!(json["bytes_repeated"], 0, "{json:#}");
    assert!(!said.contains("again"), "{said}");
}

#[test]
fn what_all_ranks_keep_counts_once_whoever_reads_it() {
    let folder = Folder::with_toy();
    let words = ["launch", "-n", "3", "bench", "load", "run.yaml", "weights=resident", "--json", "load.json"];
    let said = folder.succeed(&words).stdout;
    let json = folder.json("load.json");
    let model = folder.bytes("toy/model.safetensors");
    let of_tensors = model.len() as u64 - 8 - u64::from_le_bytes(model[..8].try_into().unwrap());
    let counted = ["bytes", "bytes_repeated"].map(|key| json[key].as_u64());
    assert_eq!(counted, [Some(of_tensors), Some(2 * of_tensors)], "{json:#}");
    assert!(said.contains(" again, by ranks that keep the same"), "{said}");
    let [rate, seconds] = ["gb_s", "seconds"].map(|key| json[key].as_f64().unwrap());
    assert!((rate * seconds * 1e9 - of_tensors as f64).abs() < 1.0, "{json:#}");
}

#[test]
fn without_files_there_is_nothing_to_measure_and_bad_weights_are_named() {
    let folder = Folder::with_toy();
    let ended = folder.run(&["bench", "load", "run.yaml", "--synthetic"]);
    assert_eq!(ended.code, Some(66), "{}", ended.stderr);
    let mut model = folder.bytes("toy/model.safetensors");
    let last = model.len() - 4;
    model[last..].fill(0xff);
    folder.write("toy/model.safetensors", model);
    let ended = folder.run(&["bench", "load", "run.yaml"]);
    assert_eq!(ended.code, Some(65), "{}", ended.stderr);
    assert!(ended.stderr.contains("model.safetensors") && ended.stderr.contains("NaN"), "{}", ended.stderr);
}

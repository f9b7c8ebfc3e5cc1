//! Model folders: the fixtures, hand-made bad ones, and writing them again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use scout_core::{ByteCount, DType, ParamSpec};

use super::{INDEX_FILE, ModelFolder, SINGLE_FILE};
use crate::error::CheckpointError;
use crate::model_writer::write_model;
use crate::safetensors::TensorWriter;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn write_tensors(path: &Path, names: &[&str]) {
    let declared = names.iter().map(|name| (ParamSpec::new(*name, [2]), DType::F32)).collect();
    let mut writer = TensorWriter::create(path, declared).unwrap();
    names.iter().for_each(|name| writer.write_f32(name, &[1.0, 2.0]).unwrap());
    writer.finish().unwrap();
}

/// Two shards, `a` and `b` in the first, `c` in the second, without an index.
fn two_shards(folder: &Path) {
    write_tensors(&folder.join("1.safetensors"), &["a", "b"]);
    write_tensors(&folder.join("2.safetensors"), &["c"]);
}

const GOOD_MAP: &str = r#"{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}"#;

fn open_error(folder: &Path) -> CheckpointError {
    ModelFolder::open(folder).map(|_| ()).expect_err("the folder opened")
}

#[test]
fn a_bad_index_is_refused_with_the_reason() {
    let check = |index: &str, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        two_shards(folder.path());
        fs::write(folder.path().join("pickle.bin"), "never opened").unwrap();
        fs::write(folder.path().join(INDEX_FILE), index).unwrap();
        let error = open_error(folder.path());
        assert!(format!("{error:?} {error}").contains(expected), "{index}\n  found: {error}\n  expected: {expected}");
        assert_eq!(error.exit_code().code(), 65, "{error}");
    };
    let map = |entries: &str| format!(r#"{{"weight_map":{{{entries}}}}}"#);
    check("", "EOF");
    check("[]", "has no object `weight_map`");
    check(r#"{"weight_map":[]}"#, "has no object `weight_map`");
    check(r#"{"weight_map":{}}"#, "has an empty `weight_map`");
    check(&map(r#""a":1"#), "gives `a` no file name but 1");
    check(&map(r#""a":"1.safetensors","a":"1.safetensors""#), "the key `a` stands twice");
    check(&map(r#""a":"/etc/passwd""#), "expected a .safetensors file of the same folder");
    check(&map(r#""a":"../1.safetensors""#), "puts `a` into `../1.safetensors`");
    check(&map(r#""a":"x/1.safetensors""#), "puts `a` into `x/1.safetensors`");
    check(&map(r#""a":"x\\1.safetensors""#), "expected a .safetensors file of the same folder");
    check(&map(r#""a":"1\u0000.safetensors""#), "puts `a` into `1\\0.safetensors`");
    check(&map(r#""a":"""#), "puts `a` into ``");
    check(&map(r#""a":"model.txt""#), "puts `a` into `model.txt`");
    check(&map(r#""a":"pickle.bin""#), "holds its weights as `pickle.bin`");
    check(&map("\"a\\u001b\":\"1.safetensors\""), "unusable tensor name `a\\u{1b}`");
    check(&map(r#""a":"3.safetensors""#), "names the file `3.safetensors`, which is missing");
    check(&map(r#""a":"1.safetensors","c":"2.safetensors""#), "does not name the tensor `b` of `1.safetensors`");
    check(
        &map(r#""a":"1.safetensors","b":"2.safetensors","c":"2.safetensors""#),
        "puts `b` into `2.safetensors`, and `1.safetensors` holds it",
    );
    check(
        &map(r#""a":"1.safetensors","b":"1.safetensors","c":"2.safetensors","d":"2.safetensors""#),
        "puts `d` into `2.safetensors`, which does not hold it",
    );
    let sized = |size: &str| format!(r#"{{"metadata":{{"total_size":{size}}},"weight_map":{GOOD_MAP}}}"#);
    check(&sized("23"), "a `total_size` of 23 bytes, and the tensors have 24");
    check(&sized("25"), "a `total_size` of 25 bytes, and the tensors have 24");
    check(&sized("\"24\""), "expected a number of bytes");
    check(&sized("-1"), "expected a number of bytes");
    check(&sized("24.5"), "expected a number of bytes");
}

fn check_folder(expected: &str, code: u8, hint: Option<&str>, build: &dyn Fn(&Path)) {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    fs::create_dir(&folder).unwrap();
    build(&folder);
    let error = open_error(&folder);
    assert!(error.to_string().contains(expected), "found: {error}\n  expected: {expected}");
    assert_eq!(error.exit_code().code(), code, "{error}");
    match hint {
        None => assert_eq!(error.hint(), None),
        Some(hint) => assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint()),
    }
}

fn write_good_index(folder: &Path) {
    fs::write(folder.join(INDEX_FILE), format!(r#"{{"weight_map":{GOOD_MAP}}}"#)).unwrap();
}

#[test]
fn a_folder_without_its_own_weights_is_refused_with_its_code() {
    check_folder("there is no model folder", 66, None, &|folder| fs::remove_dir(folder).unwrap());
    check_folder("there is no model folder", 66, None, &|folder| {
        fs::remove_dir(folder).unwrap();
        fs::write(folder, "a file").unwrap();
    });
    check_folder("holds no model: `model.safetensors` is not there", 66, None, &|folder| {
        fs::write(folder.join("config.json"), "{}").unwrap();
    });
    for name in ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"] {
        let expected = format!("holds its weights as `{name}`");
        check_folder(&expected, 65, Some("convert"), &|folder| fs::write(folder.join(name), "never opened").unwrap());
    }
    check_folder("outside of the folder", 65, Some("cp -rL"), &|folder| {
        let blob = folder.with_file_name("blob");
        write_tensors(&blob, &["a"]);
        symlink("../blob", folder.join(SINGLE_FILE)).unwrap();
    });
    check_folder("outside of the folder", 65, Some("cp -rL"), &|folder| {
        two_shards(folder);
        fs::rename(folder.join("2.safetensors"), folder.with_file_name("blob")).unwrap();
        symlink("../blob", folder.join("2.safetensors")).unwrap();
        write_good_index(folder);
    });
    check_folder("outside of the folder", 65, Some("cp -rL"), &|folder| {
        fs::write(folder.with_file_name("index"), "{}").unwrap();
        symlink("../index", folder.join(INDEX_FILE)).unwrap();
    });
}

#[test]
fn files_that_contradict_each_other_are_refused() {
    check_folder("is not a regular file", 65, None, &|folder| fs::create_dir(folder.join(SINGLE_FILE)).unwrap());
    check_folder("the folder holds two models", 65, None, &|folder| {
        two_shards(folder);
        write_good_index(folder);
        write_tensors(&folder.join(SINGLE_FILE), &["a"]);
    });
    check_folder("`1.safetensors` holds it", 65, None, &|folder| {
        two_shards(folder);
        write_good_index(folder);
        write_tensors(&folder.join("1.safetensors"), &["a", "b", "c"]);
    });
    check_folder("(1 missing)", 65, Some("fetch the file again"), &|folder| {
        two_shards(folder);
        write_good_index(folder);
        let bytes = fs::read(folder.join("2.safetensors")).unwrap();
        fs::write(folder.join("2.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    });
}

#[test]
fn a_link_inside_of_the_folder_and_a_link_to_it_are_fine() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    fs::create_dir(&folder).unwrap();
    write_tensors(&folder.join("blob"), &["a"]);
    symlink("blob", folder.join(SINGLE_FILE)).unwrap();
    symlink(&folder, outer.path().join("link")).unwrap();
    let model = ModelFolder::open(&outer.path().join("link")).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["a"]);
    assert_eq!(model.total_bytes(), ByteCount(8));
}

#[test]
fn a_whole_number_that_went_through_a_float_is_a_total_size() {
    let folder = tempfile::tempdir().unwrap();
    two_shards(folder.path());
    let index = format!(r#"{{"metadata":{{"total_size":24.0}},"weight_map":{GOOD_MAP}}}"#);
    fs::write(folder.path().join(INDEX_FILE), index).unwrap();
    let model = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn every_tensor_is_accounted_for_in_one_error() {
    let folder = tempfile::tempdir().unwrap();
    write_tensors(&folder.path().join(SINGLE_FILE), &["a", "b", "c", "x1", "x2", "x3", "x4"]);
    let model = ModelFolder::open(folder.path()).unwrap();
    let expected =
        [ParamSpec::new("a", [2]), ParamSpec::new("b", [1, 2]), ParamSpec::new("c", [2]), ParamSpec::new("gone", [2])];
    let error = model.check(&expected, &[DType::F32]).unwrap_err();
    let found = "1 missing (`gone`); 4 unexpected (`x1`, `x2`, `x3`, …); 1 misshapen (`b` is [2], expected [1, 2])";
    assert!(error.to_string().ends_with(found), "{error}");
    assert_eq!(error.exit_code().code(), 65);
    let error = model.check(&expected, &[DType::BF16, DType::F16]).unwrap_err();
    assert!(error.to_string().contains("3 mistyped (`a` is F32, expected BF16 or F16, "), "{error}");

    let all: Vec<_> = model.names().map(|name| ParamSpec::new(name, [2])).collect();
    model.check(&all, &[DType::BF16, DType::F32]).unwrap();
}

/// The order of a state dict, by which `save_pretrained` deals tensors to files.
fn state_dict_order(model: &ModelFolder) -> Vec<ParamSpec> {
    let parts = [
        "embed_tokens",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_up_proj",
        "experts.down_proj",
        "router",
        "gate_proj",
        "up_proj",
        "down_proj",
        "input_layernorm",
        "post_attention_layernorm",
        "model.norm",
        "lm_head",
    ];
    let key = |name: &str| {
        let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
        let part = parts.iter().position(|part| name.contains(part)).unwrap();
        let stage = match part {
            0 => 0,
            13 => 2,
            14 => 3,
            _ => 1,
        };
        (stage, layer, part)
    };
    let mut names: Vec<_> = model.names().collect();
    names.sort_by_key(|name| key(name));
    names.into_iter().map(|name| ParamSpec::new(name, model.shape(name).unwrap().clone())).collect()
}

#[test]
fn a_model_written_again_equals_the_fixture_byte_for_byte() {
    let model = ModelFolder::open(&fixture("tiny-scout")).unwrap();
    assert_eq!(model.total_bytes(), ByteCount(1_693_952));
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("new/model");
    let tensors = state_dict_order(&model);
    write_model(&out, &tensors, DType::F32, ByteCount(700_000), &|param, range, values| {
        model.read_f32(&param.name, range, values)
    })
    .unwrap();
    assert_eq!(model.bytes_read(), model.total_bytes());
    for name in
        [1, 2, 3].map(|k| format!("model-{k:05}-of-00003.safetensors")).iter().map(String::as_str).chain([INDEX_FILE])
    {
        assert!(fs::read(out.join(name)).unwrap() == fs::read(model.path().join(name)).unwrap(), "{name}");
    }
    let error = write_model(&out, &tensors, DType::F32, ByteCount(1 << 40), &|_, _, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("already holds a model (`model.safetensors.index.json`)"), "{error}");
    assert_eq!(error.exit_code().code(), 73);
}

#[test]
fn a_small_model_is_one_file_and_a_failed_fill_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [ParamSpec::new("b", [3, 500_000]), ParamSpec::new("a", [2])];
    let asked = Mutex::new(Vec::new());
    let failed = write_model(folder.path(), &tensors, DType::BF16, ByteCount(1 << 40), &|param, range, _| {
        asked.lock().unwrap().push((param.name.clone(), range));
        Err(CheckpointError::NoTensor { path: "x".into(), tensor: "y".into() })
    });
    assert!(matches!(failed, Err(CheckpointError::NoTensor { .. })));
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [("a".to_string(), 0..2)]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    write_model(folder.path(), &tensors, DType::BF16, ByteCount(1 << 40), &|param, range, values| {
        asked.lock().unwrap().push((param.name.clone(), range.clone()));
        range.zip(values).for_each(|(index, value)| *value = (index % 100) as f32);
        Ok(())
    })
    .unwrap();
    // No tensor is asked for in one piece when it is large.
    let expected = [("a".to_string(), 0..2), ("b".to_string(), 0..1 << 20), ("b".to_string(), 1 << 20..1_500_000)];
    assert_eq!(*asked.lock().unwrap(), expected);
    let model = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(model.total_bytes(), ByteCount(2 * 1_500_002));
    let mut values = [0.0; 3];
    model.read_f32("b", 1_400_050..1_400_053, &mut values).unwrap();
    assert_eq!(values, [50.0, 51.0, 52.0]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn only_the_bytes_asked_for_are_read() {
    let model = ModelFolder::open(&fixture("tiny-scout-vision")).unwrap();
    assert_eq!(model.bytes_read(), ByteCount(0));
    let mut values = [0.0; 100];
    model.read_f32("language_model.lm_head.weight", 64..164, &mut values).unwrap();
    assert_eq!(model.bytes_read(), ByteCount(400));
    assert!(model.contains("vision_model.class_embedding"));
    assert_eq!(model.element_type("vision_model.class_embedding").unwrap().dtype(), Some(DType::F32));
    assert!(model.shape("absent").is_err());
}

#[test]
fn fifty_shards_open_in_milliseconds() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..1150).map(|index| ParamSpec::new(format!("layers.{index}.weight"), [8, 8])).collect();
    write_model(folder.path(), &tensors, DType::BF16, ByteCount(23 * 128), &|_, _, _| Ok(())).unwrap();
    let begin = Instant::now();
    let model = ModelFolder::open(folder.path()).unwrap();
    let took = begin.elapsed();
    assert_eq!(model.files.len(), 50);
    // About 5 ms alone; the bound only has to tell headers from weights on a busy machine.
    assert!(took < Duration::from_millis(500), "{took:?}");
}

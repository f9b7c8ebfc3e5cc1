//! The format against hand-made bad files, random damage, and the public library as a second opinion.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use scout_core::{DType, ParamSpec};

use super::{TensorFile, TensorWriter};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn file_bytes(header: &str, num_data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..num_data_bytes).map(|index| index as u8));
    bytes
}

/// Opens the bytes as a file and returns the whole chain of messages with the exit code.
fn open_error(bytes: &[u8]) -> Option<(String, u8)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    let error = TensorFile::open(&path).err()?;
    Some((chain(&error), error.exit_code().code()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

#[test]
fn a_bad_file_is_refused_with_the_reason() {
    let check = |header: &str, num_data_bytes: usize, expected: &str| {
        let (message, code) =
            open_error(&file_bytes(header, num_data_bytes)).unwrap_or_else(|| panic!("{header} opened"));
        assert!(message.contains(expected), "{header}\n  found: {message}\n  expected: {expected}");
        assert_eq!(code, 65, "{message}");
    };
    let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    check(&format!("{{{a}}}"), 7, "(1 missing)");
    check(&format!("{{{a}}}"), 9, "1 bytes after the last tensor, expected none");
    check(&format!("{{{a},{a}}}"), 8, "names the tensor `a` twice");
    check("", 0, "does not begin with `{`");
    check(" {}", 0, "does not begin with `{`");
    check("[]", 0, "does not begin with `{`");
    check("{", 0, "is not the JSON it should be: EOF");
    check("{} x", 0, "trailing characters");
    check(r#"{"a":1}"#, 0, "invalid type");
    check(r#"{"a":{"dtype":"F32","shape":[2]}}"#, 8, "missing field `data_offsets`");
    check(r#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8, "duplicate field `dtype`");
    check(r#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#, 8, "the unknown element type `F31`");
    check(r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8, "invalid value");
    check(r#"{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}"#, 8, "invalid type");
    check(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "8 bytes, expected 12 for F32 [3]");
    check(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "end (0) before it begins (8)");
    check(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1, "12 bits, which is no number of bytes");
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
    check(huge, 0, "too large to count");
    let hidden = r#"{"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}"#;
    check(hidden, 0, "too large to count");
    let deep = format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, "1,".repeat(64));
    check(&deep, 1, "65 dimensions, expected at most 64");
    let far = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    check(far, 16, "`a` leaves a hole before it (begins at 8, expected 0)");
    let beyond = r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#;
    check(beyond, 0, "too large to count");
    let overlap = format!(r#"{{{a},"b":{{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}}}"#);
    check(&overlap, 12, "`b` overlaps the tensor before it (begins at 4, expected 8)");
    check(r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, "unusable tensor name ``");
    check(
        "{\"\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        1,
        "unusable tensor name `\\u{1b}[2J`",
    );
    let long = format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "n".repeat(1025));
    check(&long, 1, "a tensor name of 1025 bytes");
    check(r#"{"__metadata__":{"format":1}}"#, 0, "`__metadata__` is not an object of strings");
    check(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0, "the key `a` stands twice");
    check(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "the key `__metadata__` stands twice");
    check(&format!("{{{a}}}").replace('a', "\u{e9}").replace("d\u{e9}t\u{e9}", "data"), 8, "missing field");
}

#[test]
fn a_file_that_ends_inside_its_header_says_how_much_is_missing() {
    let check = |bytes: &[u8], expected: &str| {
        let (message, code) = open_error(bytes).unwrap();
        assert!(message.contains(expected), "{message}");
        assert_eq!(code, 65);
    };
    check(b"", "has 0 bytes where its header asks for 8 (8 missing)");
    check(b"\x10\0\0\0\0\0\0", "(1 missing)");
    check(b"\x10\0\0\0\0\0\0\0{}", "has 10 bytes where its header asks for 24 (14 missing)");
    check(&u64::MAX.to_le_bytes(), "claims a header of 18446744073709551615 bytes, expected at most 100000000");
    check(&[&2u64.to_le_bytes()[..], b"{\xff"].concat(), "is not the JSON it should be");
    check(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a pointer of git-lfs");
    check(b"<!DOCTYPE html><html>", "is a page of a web site");
    check(b"<html><head>", "is a page of a web site");
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_opening_it() {
    let folder = tempfile::tempdir().unwrap();
    let error = TensorFile::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("is not a regular file"), "{error}");
    assert_eq!(error.exit_code().code(), 65);
    let error = TensorFile::open(&folder.path().join("absent")).unwrap_err();
    assert_eq!(error.exit_code().code(), 66);
}

#[test]
fn element_types_are_read_only_as_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("types.safetensors");
    let header = concat!(
        r#"{"eight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},"#,
        r#""i":{"dtype":"I64","shape":[1],"data_offsets":[2,10]},"#,
        r#""u":{"dtype":"U8","shape":[2,1],"data_offsets":[10,12]},"#,
        r#""f":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}"#,
    );
    fs::write(&path, file_bytes(header, 16)).unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.read_u8("u").unwrap(), ([2, 1].into(), vec![10, 11]));
    assert_eq!(file.read_i64("i").unwrap(), ([1].into(), vec![i64::from_le_bytes([2, 3, 4, 5, 6, 7, 8, 9])]));
    assert_eq!(file.read_f32_all("f").unwrap(), ([].into(), vec![f32::from_le_bytes([12, 13, 14, 15])]));
    assert_eq!(file.bytes_read(), 14);
    let check = |result: crate::error::Result<()>, expected: &str, code: u8| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code().code(), code);
    };
    check(file.read_f32_all("eight").map(drop), "tensor `eight` of", 65);
    check(file.read_f32("eight", 0..1, &mut [0.0]), "is F8_E4M3, expected F32, BF16 or F16", 65);
    check(file.read_u8("i").map(drop), "is I64, expected U8", 65);
    check(file.read_i64("f").map(drop), "is F32, expected I64", 65);
    check(file.read_i64("g").map(drop), "has no tensor `g`", 65);
    check(file.read_f32("f", 0..2, &mut [0.0; 2]), "elements 0..2 of `f` (1 elements)", 70);
    check(file.read_f32("f", 0..1, &mut [0.0; 2]), "into room for 2", 70);
}

#[test]
fn values_survive_a_round_trip_rounded_to_nearest_even() {
    let values: Vec<f32> = (0..600_000).map(|i| (i as f32 - 300_000.0) * 0.37 + 1e-3).collect();
    let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0];
    let folder = tempfile::tempdir().unwrap();
    let check = |dtype: DType, round: &dyn Fn(f32) -> f32| {
        let scaled: Vec<f32> = values.iter().map(|value| value * 0.25).chain(ties).collect();
        let path = folder.path().join(format!("{dtype}.safetensors"));
        let declared = vec![(ParamSpec::new("empty", [0, 3]), dtype), (ParamSpec::new("x", [scaled.len()]), dtype)];
        let mut writer = TensorWriter::create(&path, declared).unwrap();
        scaled.chunks(70_001).for_each(|piece| writer.write_f32("x", piece).unwrap());
        writer.finish().unwrap();
        let file = TensorFile::open(&path).unwrap();
        let expected: Vec<f32> = scaled.iter().map(|&value| round(value)).collect();
        assert!(file.read_f32_all("x").unwrap().1 == expected, "{dtype}");
        // A range that begins and ends inside of blocks.
        let mut part = vec![0.0; 300_007];
        file.read_f32("x", 12_345..312_352, &mut part).unwrap();
        assert!(part == expected[12_345..312_352], "{dtype}");
    };
    check(DType::F32, &|value| value);
    check(DType::BF16, &|value| bf16::from_f32(value).to_f32());
    check(DType::F16, &|value| f16::from_f32(value).to_f32());
    assert_eq!(bf16::from_f32(ties[0]).to_f32(), 1.0);
    assert_eq!(bf16::from_f32(ties[1]).to_f32(), 1.015625);
}

#[test]
fn a_value_that_is_not_finite_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.safetensors");
    let check = |dtype: &str, bytes: &[u8], expected: &str| {
        let end = bytes.len();
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{end}]}}}}"#);
        fs::write(&path, [&file_bytes(&header, 0), bytes].concat()).unwrap();
        let error = TensorFile::open(&path).unwrap().read_f32_all("w").unwrap_err();
        assert!(error.to_string().contains("tensor `w` of"), "{error}");
        assert!(error.to_string().ends_with(expected), "{error}");
        assert_eq!(error.exit_code().code(), 65);
    };
    check("F32", &[0, 0, 0, 0, 0, 0, 0xc0, 0x7f], "holds NaN at index 1");
    check("F32", &[0, 0, 0x80, 0xff, 0, 0, 0, 0], "holds -inf at index 0");
    check("BF16", &[0, 0, 0x80, 0x7f], "holds inf at index 1");
    check("F16", &[0, 0x7e, 0, 0], "holds NaN at index 0");
}

#[test]
fn a_writer_used_out_of_order_is_an_error_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let check = |expected: &str, code: u8, run: &dyn Fn(TensorWriter) -> crate::error::Result<()>| {
        let declared = vec![(ParamSpec::new("a", [2]), DType::F16), (ParamSpec::new("b", [1]), DType::F16)];
        let error = run(TensorWriter::create(&path, declared).unwrap()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code().code(), code);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    };
    check("`b` is written where `a` is due", 70, &|mut writer| writer.write_f32("b", &[1.0]));
    check("`a` has room for 2 more elements and got 3", 70, &|mut writer| writer.write_f32("a", &[1.0; 3]));
    check("`a` ends after 0 of 2 elements", 70, &|writer| writer.finish());
    check("`b` ends after 0 of 1 elements", 70, &|mut writer| {
        writer.write_f32("a", &[1.0; 2])?;
        writer.finish()
    });
    check("`a` is written where `nothing more` is due", 70, &|mut writer| {
        writer.write_f32("a", &[1.0; 2])?;
        writer.write_f32("b", &[1.0])?;
        writer.write_f32("a", &[1.0])
    });
    check("NaN at index 1", 79, &|mut writer| writer.write_f32("a", &[1.0, f32::NAN]));
    // Finite in f32, not in f16.
    check("70000 at index 0", 79, &|mut writer| writer.write_f32("a", &[70_000.0]));

    let create = |tensors| TensorWriter::create(&path, tensors).err().map(|error| error.to_string()).unwrap();
    let twice = vec![(ParamSpec::new("a", [1]), DType::F32); 2];
    assert!(create(twice).contains("`a` is declared twice"));
    assert!(create(vec![(ParamSpec::new("a", [1]), DType::U8)]).contains("declared as u8"));
}

#[test]
fn files_equal_those_of_the_public_library_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ours.safetensors");
    // Names of every length modulo 8, so that the padding is tried too.
    for extra in 0..8 {
        let tensors =
            [("a\"é".to_string(), vec![2, 3]), (format!("b{}", "x".repeat(extra)), vec![]), ("c".into(), vec![0])];
        let declared: Vec<_> =
            tensors.iter().map(|(name, dims)| (ParamSpec::new(name, dims.as_slice()), DType::F32)).collect();
        let mut writer = TensorWriter::create(&path, declared.clone()).unwrap();
        let mut views = Vec::new();
        let data: Vec<Vec<u8>> = declared.iter().map(|(param, _)| vec![0x3f; 4 * param.num_elements()]).collect();
        for ((param, _), bytes) in declared.iter().zip(&data) {
            let value = f32::from_le_bytes([0x3f; 4]);
            writer.write_f32(&param.name, &vec![value; param.num_elements()]).unwrap();
            views.push((&param.name, TensorView::new(Dtype::F32, param.shape.0.clone(), bytes).unwrap()));
        }
        writer.finish().unwrap();
        let metadata = [("format".to_string(), "pt".to_string())].into();
        assert_eq!(fs::read(&path).unwrap(), safetensors::serialize(views, Some(metadata)).unwrap());
    }
}

#[test]
fn every_fixture_file_is_read_as_the_public_library_reads_it() {
    let mut num_tensors = 0;
    for folder in ["tiny-scout", "tiny-scout/adapter_all", "tiny-scout-vision", "tiny-scout-vision/adapter_all"] {
        for entry in fs::read_dir(fixture(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|ending| ending != "safetensors") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let ours = TensorFile::open(&path).unwrap();
            assert_eq!(ours.entries().len(), theirs.len());
            for entry in ours.entries() {
                let view = theirs.tensor(&entry.name).unwrap();
                assert_eq!(view.shape(), entry.shape.dims());
                let read = match entry.element_type.dtype().unwrap() {
                    DType::I64 => {
                        ours.read_i64(&entry.name).unwrap().1.into_iter().flat_map(i64::to_le_bytes).collect()
                    }
                    DType::U8 => ours.read_u8(&entry.name).unwrap().1,
                    _ => ours
                        .read_f32_all(&entry.name)
                        .unwrap()
                        .1
                        .into_iter()
                        .flat_map(f32::to_le_bytes)
                        .collect::<Vec<_>>(),
                };
                assert!(read == view.data(), "{}", entry.name);
                num_tensors += 1;
            }
        }
    }
    assert!(num_tensors > 500, "{num_tensors}");
}

#[test]
fn random_damage_never_panics_and_never_passes_what_the_public_library_refuses() {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"#,
        r#""a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"#,
        r#""c":{"dtype":"I64","shape":[1],"data_offsets":[32,40]}}"#,
    );
    let valid = file_bytes(header, 40);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut num_accepted, mut num_refused) = (0, 0);
    for _ in 0..2000 {
        let mut bytes = valid.clone();
        for _ in 0..=random.below(2) {
            damage(&mut bytes, &mut random);
        }
        fs::write(&path, &bytes).unwrap();
        let Ok(file) = TensorFile::open(&path) else {
            num_refused += 1;
            continue;
        };
        num_accepted += 1;
        let theirs = safetensors::SafeTensors::deserialize(&bytes);
        let theirs = theirs.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)));
        for entry in file.entries() {
            assert_eq!(theirs.tensor(&entry.name).unwrap().shape(), entry.shape.dims());
            // Each of these may fail; none may panic.
            let _ = file.read_f32_all(&entry.name);
            let _ = (file.read_i64(&entry.name), file.read_u8(&entry.name));
        }
    }
    assert!(num_accepted > 50 && num_refused > 50, "{num_accepted} accepted, {num_refused} refused");
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(5) {
        0 => bytes[at] = random.below(256) as u8,
        1 => bytes[at] = b"0123456789\"[]{},:"[random.below(17)],
        2 => drop(bytes.remove(at)),
        3 => bytes.insert(at, b"0189\"[]{},: "[random.below(12)]),
        _ => bytes[at] ^= 1 << random.below(8),
    }
}

/// Xorshift: the same sequence on every machine, so a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

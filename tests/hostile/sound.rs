//! Input that looks hostile and is sound: it must work, or the checks would refuse what people have.

use scout_tests::run_in;

use crate::place::{Good, LIMIT, Place};

const ROW: &str = r#"{"instruction": "Where?", "output": "Here."}"#;

#[test]
fn odd_input_that_is_sound_trains() {
    let good = Good::make();
    let check = |name: &str, prepare: fn(&Place)| {
        let place = good.copy();
        prepare(&place);
        let ended = run_in(place.folder(), &["train", "run.yaml"], LIMIT);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        assert!(place.path("run/adapter_model.safetensors").is_file(), "{name}");
    };
    check("rows with line ends of Windows", |p| p.data("rows.jsonl", format!("{ROW}\r\n{ROW}\r\n\r\n")));
    check("rows behind a byte order mark", |p| p.data("rows.jsonl", format!("\u{feff}{ROW}\n{ROW}\n")));
    check("a list behind a byte order mark", |p| p.data("rows.json", format!("\u{feff}[\r\n{ROW},\r\n{ROW}\r\n]\r\n")));
    check("a row of 7 MB", |p| {
        let row = format!("{{\"instruction\": \"Where?\", \"output\": \"{}\"}}", "Here. ".repeat(7 << 17));
        p.data("rows.jsonl", row);
    });
    check("special tokens in the text", |p| {
        p.data("rows.jsonl", r#"{"instruction": "<|eot|><|begin_of_text|>", "output": "<|image|> here"}"#);
    });
    check("emoji, right-to-left text and combining marks", |p| {
        p.data("rows.jsonl", r#"{"instruction": "👩‍🚀 שלום é ﷽", "output": "\ud83d\ude00 \t\n\u202e"}"#);
    });
    check("a pickle beside safetensors, which is never opened", |p| {
        p.write("model/pytorch_model.bin", b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.");
    });
    check("a link that stays in the folder", |p| {
        std::fs::rename(p.path("model/model.safetensors"), p.path("model/blob")).unwrap();
        std::os::unix::fs::symlink("blob", p.path("model/model.safetensors")).unwrap();
    });
    check("a model folder that is a link itself", |p| {
        std::fs::rename(p.path("model"), p.path("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", p.path("model")).unwrap();
    });
    check("a configuration with line ends of Windows and a byte order mark", |p| {
        let text = std::fs::read_to_string(p.path("run.yaml")).unwrap();
        p.write("run.yaml", format!("\u{feff}{}", text.replace('\n', "\r\n")));
    });
    check("a run folder that may be overwritten", |p| {
        p.make_folder("run");
        p.write("run/notes.txt", "not so precious");
        p.set("overwrite_output_dir", "true");
    });
    check("an empty run folder", |p| p.make_folder("run"));
    check("a run folder that is a link", |p| {
        p.make_folder("elsewhere");
        std::os::unix::fs::symlink("elsewhere", p.path("run")).unwrap();
    });
}

//! The file of `--lengths`: how long rows of a data set are, without their text.

use std::path::Path;

use scout_core::ExitCode;
use scout_train::step_bench::Row;

use crate::failure::Mistake;

/// Each answer is learned together with the mark of its end.
pub fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let wrong = |problem: String, code| -> anyhow::Error {
        Mistake { message: format!("`{}` {problem}", path.display()), code, hint: None }.into()
    };
    let text = std::fs::read_to_string(path)
        .map_err(|cause| wrong(format!("cannot be read: {cause}"), ExitCode::of_io(&cause, ExitCode::MissingInput)))?;
    let expected = "does not hold `lengths` of three numbers each, `prompt_overhead` and `output_overhead`";
    rows(&text).filter(|rows| !rows.is_empty()).ok_or_else(|| wrong(expected.to_string(), ExitCode::BadData))
}

fn rows(text: &str) -> Option<Vec<Row>> {
    let number = |value: &serde_json::Value| value.as_u64().map(|number| number as usize);
    let all: serde_json::Value = serde_json::from_str(text).ok()?;
    let overhead = number(&all["prompt_overhead"])?;
    let learned_overhead = number(&all["output_overhead"])?;
    let row = |lengths: &serde_json::Value| {
        let [instruction, input, output] = [0, 1, 2].map(|index| number(&lengths[index]));
        let num_learned = output? + learned_overhead;
        Some(Row { num_tokens: overhead + instruction? + input? + output?, num_learned })
    };
    all["lengths"].as_array()?.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_as_long_as_its_parts_and_what_the_template_adds() {
        let text = r#"{"prompt_overhead": 10, "output_overhead": 1, "lengths": [[7, 0, 30], [2, 3, 1]]}"#;
        let expected = [(47, 31), (16, 2)].map(|(num_tokens, num_learned)| Row { num_tokens, num_learned });
        assert_eq!(rows(text).unwrap(), expected);
        for wrong in ["", "[]", r#"{"prompt_overhead": 1, "output_overhead": 1, "lengths": [[1, 2]]}"#] {
            assert_eq!(rows(wrong), None, "{wrong}");
        }
    }
}

//! Rules about how large things may get.

use super::finding::Finding;
use crate::tree::Tree;

const MAX_LINES: usize = 800;
const MAX_FIXTURE_BYTES: u64 = 12_000_000;
const FIXTURES: &str = "tests/fixtures";

/// A source file that cannot be read in one sitting is two files.
pub fn files_stay_short(tree: &Tree) -> Vec<Finding> {
    tree.texts(&["rs", "cu", "cuh"])
        .filter_map(|(file, text)| {
            let lines = text.lines().count();
            let message = format!("{lines} lines, expected at most {MAX_LINES}: split it by what it is about");
            (lines > MAX_LINES).then(|| Finding::new(&file.path, 0, message))
        })
        .collect()
}

/// Everybody who clones the repository pays for its fixtures for ever.
pub fn fixtures_stay_small(tree: &Tree) -> Vec<Finding> {
    let fixtures = tree.files.iter().filter(|file| file.path.starts_with(FIXTURES));
    let bytes: u64 = fixtures.map(|file| file.bytes).sum();
    let message = format!("{bytes} bytes in all, expected at most {MAX_FIXTURE_BYTES}");
    (bytes > MAX_FIXTURE_BYTES).then(|| Finding::new(FIXTURES, 0, message)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::finding::check_rows;
    use crate::tree::TreeFile;

    #[test]
    fn a_source_file_may_have_800_lines_and_not_801() {
        let lines = |count: usize| "\n".repeat(count);
        check_rows(
            files_stay_short,
            &[
                ("a.rs", &lines(800), None),
                ("a.rs", &lines(801), Some("801 lines")),
                ("kernel.cu", &lines(900), Some("900 lines")),
                ("data.json", &lines(5_000), None),
            ],
        );
    }

    #[test]
    fn fixtures_are_counted_together() {
        let tree = |sizes: &[(&str, u64)]| Tree {
            files: sizes
                .iter()
                .map(|(path, bytes)| TreeFile { path: path.to_string(), bytes: *bytes, text: None })
                .collect(),
        };
        let small = tree(&[("tests/fixtures/a", 6_000_000), ("tests/fixtures/b/c", 6_000_000), ("big", 9_000_000)]);
        assert!(fixtures_stay_small(&small).is_empty());
        let large = tree(&[("tests/fixtures/a", 6_000_000), ("tests/fixtures/b/c", 6_000_001)]);
        assert!(fixtures_stay_small(&large)[0].message.contains("12000001 bytes"));
    }
}

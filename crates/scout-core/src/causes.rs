//! An error as one line: its own sentence, then everything that caused it.

use std::error::Error;

/// Joins an error and its sources. Transparent layers repeat the sentence below them, which is said once.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

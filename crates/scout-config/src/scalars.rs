//! From the text of one value to a number or a truth value. Says nothing of keys, and makes no errors.

use crate::yaml::Node;

/// Truth values as YAML 1.1 and 1.2 write them.
pub(crate) fn truth(node: &Node) -> Option<bool> {
    truth_of(node.scalar()?)
}

fn truth_of(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Whether a value is this word, or the same truth value or number in another spelling.
pub(crate) fn means(node: &Node, word: &str) -> bool {
    let Some(text) = node.scalar() else { return false };
    let same_truth = truth_of(text).is_some_and(|truth| truth_of(word) == Some(truth));
    let same_number = number(text).is_some_and(|written| number(word) == Some(written));
    text == word || same_truth || same_number
}

/// A finite decimal number: `2e-5`, `1.0`, `-3`, `1_000`.
pub(crate) fn number(text: &str) -> Option<f64> {
    let digits = decimal(text)?;
    digits.parse::<f64>().ok().filter(|number| number.is_finite())
}

pub(crate) fn whole(text: &str) -> Option<i128> {
    decimal(text)?.parse().ok()
}

/// The text without `_` between digits, if nothing in it but decimal digits, signs, one point and an exponent.
fn decimal(text: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_digit() || "+-.eE_".contains(c);
    let stray_underscore = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    if !text.chars().all(allowed) || stray_underscore || has_leading_zero(text) {
        return None;
    }
    Some(text.replace('_', ""))
}

/// `010` is eight to YAML 1.1 and ten to YAML 1.2: nobody can know what was meant.
pub(crate) fn has_leading_zero(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn numbers_are_decimal_finite_and_unambiguous() {
        for (text, expected) in [
            ("1e-4", Some(1e-4)),
            ("1.0e-4", Some(1e-4)),
            ("2E+3", Some(2000.0)),
            ("-3", Some(-3.0)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("0", Some(0.0)),
            ("0.10", Some(0.1)),
            ("1_000", Some(1000.0)),
            ("010", None),
            ("-010", None),
            ("1__0", None),
            ("_1", None),
            ("0x10", None),
            ("1e999", None),
            (".nan", None),
            (".inf", None),
            ("inf", None),
            ("1,5", None),
            ("e", None),
            ("", None),
            ("--1", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_word_is_known_in_every_spelling_of_its_truth_value_or_number() {
        for (written, word, expected) in [
            ("no", "no", true),
            ("'no'", "no", true),
            ("False", "no", true),
            ("off", "false", true),
            ("yes", "false", false),
            ("0.0", "0", true),
            ("0e3", "0", true),
            ("0.1", "0", false),
            ("steps", "steps", true),
            ("Steps", "steps", false),
            ("[no]", "no", false),
            ("~", "no", false),
        ] {
            assert_eq!(means(&yaml::parse(written).unwrap(), word), expected, "{written} {word}");
        }
    }
}

//! How the tensors of a file differ from the expected ones, in words that stay short. Compares nothing itself.

use std::fmt;

/// More names than this of one kind are counted, not listed: a wrong model folder disagrees in a thousand places.
const LISTED: usize = 3;

/// A phrase with found and expected is three times as long as a name.
const PHRASES: usize = 2;

/// Tensors that are not as expected, by kind. The last two carry a whole phrase each, with found and expected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disagreement {
    pub missing: Vec<String>,
    pub unexpected: Vec<String>,
    pub misshapen: Vec<String>,
    pub mistyped: Vec<String>,
}

impl Disagreement {
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty() && self.mistyped.is_empty()
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |names: &[String]| names.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>();
        let phrases = |phrases: &[String]| phrases.iter().take(PHRASES).cloned().collect::<Vec<_>>();
        let kinds = [
            ("missing", self.missing.len(), quoted(&self.missing)),
            ("unexpected", self.unexpected.len(), quoted(&self.unexpected)),
            ("misshapen", self.misshapen.len(), phrases(&self.misshapen)),
            ("mistyped", self.mistyped.len(), phrases(&self.mistyped)),
        ];
        let mut separator = "";
        for (kind, count, listed) in kinds.into_iter().filter(|(_, count, _)| *count > 0) {
            let more = if count > listed.len() { ", …" } else { "" };
            write!(f, "{separator}{count} {kind} ({}{more})", listed.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}

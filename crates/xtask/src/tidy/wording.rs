//! Rules about words that must not stand in the project.

use super::finding::Finding;
use crate::tree::Tree;

// The words are put together here so that the rules do not find themselves.
const WISH: &str = concat!("TO", "DO");
const ALARMS: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];

/// Folders that exist on one person's or one company's machine only.
const MACHINE_FOLDERS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];
const OUTSIDE: &str = concat!("..", "/shared");

/// Where packages come from is a matter of the machine that builds, not of the project.
const REGISTRY_HOSTS: [&str; 7] = [
    concat!("static.cra", "tes.io"),
    concat!("index.cra", "tes.io"),
    concat!("pypi", ".org"),
    concat!("files.pythonhosted", ".org"),
    concat!("registry.npmjs", ".org"),
    concat!("proxy.golang", ".org"),
    concat!("arti", "factory"),
];

/// A wish for later has the number of the place where it is kept, and an alarm is no comment at all.
pub fn wishes_have_a_number(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.texts(&["rs", "cu", "cuh", "toml", "yaml", "sh"]) {
        for (index, line) in text.lines().enumerate() {
            for (_, rest) in words(line).filter(|(word, _)| *word == WISH) {
                let number = rest.strip_prefix("(#").and_then(|rest| rest.split_once("):")).map(|(number, _)| number);
                if !number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())) {
                    let message = format!("`{WISH}` without a number, expected `{WISH}(#123): …`");
                    findings.push(Finding::new(&file.path, index + 1, message));
                }
            }
            for (word, _) in words(line).filter(|(word, _)| ALARMS.contains(word)) {
                let message = format!("`{word}`: mend it, or write down with a number what is left");
                findings.push(Finding::new(&file.path, index + 1, message));
            }
        }
    }
    findings
}

/// The words of a line, each with what follows it.
fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = line;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c| !is_word(c));
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some((word, after))
    })
}

/// Old code is in the history; in a comment nobody compiles it.
pub fn no_code_in_comments(tree: &Tree) -> Vec<Finding> {
    const BEGINNINGS: [&str; 12] =
        ["let ", "use ", "pub ", "fn ", "return ", "assert", "println!", "eprintln!", "if ", "for ", "match ", "self."];
    let mut findings = Vec::new();
    for (file, text) in tree.texts(&["rs", "cu", "cuh"]) {
        for (index, line) in text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
            // Documentation shows code on purpose.
            if comment.starts_with(['/', '!']) {
                continue;
            }
            let comment = comment.trim();
            let ends_like_code = comment.ends_with(';') || comment.ends_with(" {");
            if ends_like_code && BEGINNINGS.iter().any(|beginning| comment.starts_with(beginning)) {
                findings.push(Finding::new(&file.path, index + 1, "code in a comment: delete it"));
            }
        }
    }
    findings
}

pub fn no_paths_of_a_machine(tree: &Tree) -> Vec<Finding> {
    refuse_in_all_texts(tree, |line| {
        let folder = MACHINE_FOLDERS.iter().find(|folder| {
            // As part of a longer path it is somebody else's folder of that name.
            let starts_a_path = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.~}".contains(c));
            line.match_indices(**folder).any(|(at, _)| starts_a_path(at))
        });
        if let Some(folder) = folder {
            return Some(format!("`{folder}` is a path of one machine"));
        }
        line.contains(OUTSIDE).then(|| format!("`{OUTSIDE}` lies outside the repository"))
    })
}

pub fn no_registry_hosts(tree: &Tree) -> Vec<Finding> {
    refuse_in_all_texts(tree, |line| {
        let host = REGISTRY_HOSTS.iter().find(|host| line.contains(**host))?;
        Some(format!("`{host}` is a package registry: name the package, not the host"))
    })
}

fn refuse_in_all_texts(tree: &Tree, judge: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        // Cargo writes the lock file, and the registry's name belongs to its format.
        let Some(text) = file.text.as_deref().filter(|_| !file.path.ends_with(".lock")) else { continue };
        for (index, line) in text.lines().enumerate() {
            if let Some(message) = judge(line) {
                findings.push(Finding::new(&file.path, index + 1, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::finding::check_rows;

    #[test]
    fn a_wish_needs_a_number() {
        let wish = |rest: &str| format!("// {WISH}{rest}");
        check_rows(
            wishes_have_a_number,
            &[
                ("a.rs", &wish("(#12): later"), None),
                ("a.rs", &wish(": later"), Some("without a number")),
                ("a.rs", &wish("(#): later"), Some("without a number")),
                ("a.rs", &wish("(anna): later"), Some("without a number")),
                ("a.rs", &wish("(#12) later"), Some("without a number")),
                ("kernel.cu", &wish(""), Some("without a number")),
                ("a.rs", &format!("// {}", ALARMS[0]), Some(ALARMS[0])),
                ("a.rs", &format!("let x = 1; // {}!", ALARMS[1]), Some(ALARMS[1])),
                ("a.rs", &format!("// {}S and NOT{}", WISH, ALARMS[1]), None),
                ("notes.txt", &wish(": later"), None),
            ],
        );
    }

    #[test]
    fn code_in_a_comment_is_refused_and_prose_is_not() {
        check_rows(
            no_code_in_comments,
            &[
                ("a.rs", "    // let x = 5;", Some("code in a comment")),
                ("a.rs", "//if x > 5 {", Some("code in a comment")),
                ("kernel.cu", "// return x;", Some("code in a comment")),
                ("a.rs", "// for the last row the weights stay; see above", None),
                ("a.rs", "/// let x = 5;", None),
                ("a.rs", "// Adding happens later; this row is short;", None),
            ],
        );
    }

    #[test]
    fn paths_of_one_machine_are_refused() {
        let folder = MACHINE_FOLDERS[0];
        check_rows(
            no_paths_of_a_machine,
            &[
                ("a.md", &format!("see `{folder}notes`"), Some("path of one machine")),
                ("run", &format!("cd {}me", MACHINE_FOLDERS[1]), Some("path of one machine")),
                ("a.md", &format!("{OUTSIDE}/notes"), Some("outside the repository")),
                ("a.md", &format!("files in frame{folder} and out{folder}"), None),
                ("Cargo.lock", folder, None),
            ],
        );
    }

    #[test]
    fn registry_hosts_are_refused() {
        check_rows(
            no_registry_hosts,
            &[
                ("config.toml", &format!("index = \"https://{}/\"", REGISTRY_HOSTS[1]), Some("package registry")),
                ("requirements.txt", &format!("-i https://{}/simple", REGISTRY_HOSTS[2]), Some("package registry")),
                ("a.md", "https://docs.rs/png", None),
                ("Cargo.lock", REGISTRY_HOSTS[1], None),
            ],
        );
    }
}

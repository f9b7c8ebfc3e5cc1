//! The promises of the project that a machine can hold. Each rule looks at the whole tree and names what breaks it;
//! none of them mends anything.

mod documents;
mod finding;
mod sizes;
mod structure;
mod wording;

use anyhow::Result;

use finding::{Finding, Rule};

use crate::tree::Tree;
use crate::workspace::Workspace;

const RULES: [Rule; 13] = [
    sizes::files_stay_short,
    sizes::fixtures_stay_small,
    structure::files_say_what_they_are,
    structure::unsafe_stays_in_its_two_crates,
    structure::no_module_without_a_word,
    structure::configs_are_named_after_what_they_do,
    structure::the_environment_is_read_at_the_top,
    wording::wishes_have_a_number,
    wording::no_code_in_comments,
    wording::no_paths_of_a_machine,
    wording::no_registry_hosts,
    documents::links_lead_somewhere,
    documents::invariants_name_a_living_test,
];

pub fn check(workspace: &Workspace) -> Result<bool> {
    let tree = Tree::read(&workspace.root)?;
    let findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    for Finding { path, line, message } in &findings {
        match line {
            0 => println!("{path}: {message}"),
            _ => println!("{path}:{line}: {message}"),
        }
    }
    if findings.is_empty() {
        println!("tidy: {} files keep {} rules", tree.files.len(), RULES.len());
    }
    Ok(findings.is_empty())
}

//! What `preprocess` shows: the rows as the model sees them, and which tokens are learned.

use crate::folder::Folder;

#[test]
fn learned_tokens_stand_between_marks_and_the_prompt_does_not() {
    let folder = Folder::with_toy();
    let row = r#"{"instruction": "Where is the iron key?", "output": "Beneath the vase."}"#;
    folder.write("rows.jsonl", format!("{row}\n{row}\n{row}\n"));
    let said = folder.succeed(&["preprocess", "run.yaml", "dataset=rows.jsonl", "--show", "2"]).stdout;
    let shown = "<|begin_of_text|><|header_start|>user<|header_end|>\n\nWhere is the iron key?<|eot|>\
                 <|header_start|>assistant<|header_end|>\n\n⟦Beneath the vase.<|eot|>⟧\n";
    assert_eq!(said.matches(shown).count(), 2, "{said}");
    assert!(said.contains("\n3 rows, "), "{said}");

    let whole =
        folder.succeed(&["preprocess", "run.yaml", "dataset=rows.jsonl", "train_on_prompt=true", "--show", "1"]);
    assert!(whole.stdout.contains("⟦<|begin_of_text|><|header_start|>user"), "{}", whole.stdout);
    let none = folder.succeed(&["preprocess", "run.yaml", "dataset=rows.jsonl", "--show", "0"]).stdout;
    assert!(none.starts_with("3 rows, "), "{none}");
}

#[test]
fn of_a_conversation_all_answers_are_learned_or_the_last_alone() {
    let folder = Folder::with_toy();
    let turn = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let turns = [turn("user", "one"), turn("assistant", "two"), turn("user", "three"), turn("assistant", "four")];
    folder.write("rows.jsonl", format!("{{\"messages\": [{}]}}\n", turns.join(", ")));
    let all = folder.succeed(&["preprocess", "run.yaml", "dataset=rows.jsonl"]).stdout;
    assert!(all.contains("⟦two<|eot|>⟧") && all.contains("⟦four<|eot|>⟧"), "{all}");
    let last = folder.succeed(&["preprocess", "run.yaml", "dataset=rows.jsonl", "mask_history=true"]).stdout;
    assert!(!last.contains("⟦two") && last.contains("⟦four<|eot|>⟧"), "{last}");
}

#[test]
fn rows_over_the_cut_are_counted() {
    let folder = Folder::with_toy();
    let said = folder.succeed(&["preprocess", "run.yaml", "cutoff_len=20", "--show", "1"]).stdout;
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("96 rows, ") && last.ends_with("100.0 % of the rows cut at 20"), "{last}");
    assert!(last.contains("the longest row 20;"), "{last}");
}

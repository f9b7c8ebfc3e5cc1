//! LLaMA-Factory 0.9.5's `llama4` template: a conversation to ids and labels, cut to a length. Reads no files and knows
//! no batches; a checkpoint's own template is rendered elsewhere.
//!
//! Every piece (prefix, system block, each turn) is tokenised on its own and the ids are joined, as there. One oddity
//! is left out: there `{{idx}}` in a user's text is replaced by the number of the turn.

use crate::conversation::{Conversation, Role, Turn};
use crate::date::Date;
use crate::error::{DataError, Result, near_names};
use crate::row_problem::RowProblem;
use crate::tokenizer::Tokenizer;
use crate::tools::{function_text, tools_text};

/// The label of a token that is not learned.
pub const IGNORED: i64 = -100;

/// Marks that stand for media in LLaMA-Factory's rows.
const MEDIA_MARKS: [(&str, &str); 3] = [("<image>", "pictures"), ("<video>", "videos"), ("<audio>", "sounds")];

/// What the model learns of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// Every answer.
    Answers,
    /// The last answer (`mask_history`).
    LastAnswer,
    /// Every token (`train_on_prompt`).
    Everything,
}

/// How conversations become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    pub supervision: Supervision,
    /// The most tokens an example may have.
    pub cutoff_len: usize,
}

impl Encoding {
    /// From the keys of the configuration; `mask_history` with `train_on_prompt` contradict each other.
    pub fn from_keys(cutoff_len: usize, train_on_prompt: bool, mask_history: bool) -> Result<Encoding> {
        let supervision = match (train_on_prompt, mask_history) {
            (false, false) => Supervision::Answers,
            (false, true) => Supervision::LastAnswer,
            (true, false) => Supervision::Everything,
            (true, true) => {
                let problem = "cannot be true together with `train_on_prompt`".to_string();
                return Err(DataError::Setting { key: "mask_history", problem });
            }
        };
        if cutoff_len == 0 {
            let problem = "is 0, expected at least 1".to_string();
            return Err(DataError::Setting { key: "cutoff_len", problem });
        }
        Ok(Encoding { supervision, cutoff_len })
    }
}

/// One conversation as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// The id at the same place, or [`IGNORED`].
    pub labels: Vec<i64>,
    /// Tokens that the cut took away.
    pub tokens_cut: usize,
    /// Learned tokens among them.
    pub targets_cut: usize,
}

/// A question (with everything before it) and its answer.
struct Pair {
    source: Vec<u32>,
    target: Vec<u32>,
}

/// The `llama4` template over one tokenizer.
#[derive(Debug, Clone)]
pub struct Template {
    tokenizer: Tokenizer,
    date: Date,
}

impl Template {
    /// `date` is what the tool prompt names as today.
    pub fn llama4(tokenizer: Tokenizer, date: Date) -> Result<Template> {
        for token in ["<|header_start|>", "<|header_end|>"] {
            if tokenizer.special(token).is_none() {
                return Err(DataError::MissingToken { token: token.to_string() });
            }
        }
        Ok(Template { tokenizer, date })
    }

    /// The template that `template:` names.
    pub fn by_name(name: &str, tokenizer: Tokenizer, date: Date) -> Result<Template> {
        if name == "llama4" {
            return Template::llama4(tokenizer, date);
        }
        let near = if near_names(name, ["llama4"]).is_empty() { "expected" } else { "did you mean" };
        let problem = format!("names the unknown template `{name}`, {near} `llama4`");
        Err(DataError::Setting { key: "template", problem })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids and labels of a conversation, at most `encoding.cutoff_len` of them.
    pub fn encode(&self, conversation: &Conversation, encoding: &Encoding) -> Result<Example> {
        let pairs = self.encode_pairs(conversation).map_err(DataError::Conversation)?;
        let kept = kept_lengths(&pairs, encoding);
        let mut example = Example::default();
        let total: usize = kept.iter().map(|(source, target)| source + target).sum();
        example.ids.reserve_exact(total);
        example.labels.reserve_exact(total);
        let last = pairs.len() - 1;
        for (index, (pair, (source, target))) in pairs.iter().zip(kept).enumerate() {
            let learn_source = encoding.supervision == Supervision::Everything;
            let learn_target = encoding.supervision != Supervision::LastAnswer || index == last;
            example.push(&pair.source, source, learn_source);
            example.push(&pair.target, target, learn_target);
        }
        Ok(example)
    }

    fn encode_pairs(&self, conversation: &Conversation) -> Result<Vec<Pair>, RowProblem> {
        let turns = &conversation.turns;
        refuse_media(turns)?;
        if turns.is_empty() || !turns.len().is_multiple_of(2) {
            return Err(RowProblem::Answerless);
        }
        let mut pairs = Vec::with_capacity(turns.len() / 2);
        for (index, pair) in turns.chunks_exact(2).enumerate() {
            let mut source = Vec::new();
            if index == 0 {
                source.push(self.tokenizer.bos());
                if let Some(system) = self.system_text(conversation)? {
                    source = self.append(source, &block("system", &system))?;
                }
            }
            let (question, answer) = (&pair[0], &pair[1]);
            let source = self.append(source, &question_text(question, 2 * index + 1)?)?;
            let target = self.append(Vec::new(), &answer_text(answer, 2 * index + 2)?)?;
            pairs.push(Pair { source, target });
        }
        Ok(pairs)
    }

    /// The text of the system block: the system prompt with the tool definitions right behind it, no space between.
    fn system_text(&self, conversation: &Conversation) -> Result<Option<String>, RowProblem> {
        let system = conversation.system.as_deref().unwrap_or_default();
        let tools = conversation.tools.as_deref().unwrap_or_default();
        if tools.is_empty() {
            return Ok(Some(system.to_string()).filter(|text| !text.is_empty()));
        }
        Ok(Some(format!("{system}{}", tools_text(tools, self.date)?)))
    }

    fn append(&self, mut ids: Vec<u32>, text: &str) -> Result<Vec<u32>, RowProblem> {
        let more = self.tokenizer.encode(text).map_err(|error| RowProblem::Tokenizer(Box::new(error)))?;
        ids.extend(more);
        Ok(ids)
    }
}

impl Example {
    fn push(&mut self, piece: &[u32], kept: usize, learned: bool) {
        self.ids.extend_from_slice(&piece[..kept]);
        self.labels.extend(piece[..kept].iter().map(|&id| if learned { i64::from(id) } else { IGNORED }));
        self.tokens_cut += piece.len() - kept;
        self.targets_cut += if learned { piece.len() - kept } else { 0 };
    }
}

fn refuse_media(turns: &[Turn]) -> Result<(), RowProblem> {
    for (mark, kind) in MEDIA_MARKS {
        if turns.iter().any(|turn| turn.content.contains(mark)) {
            return Err(RowProblem::Media { kind });
        }
    }
    Ok(())
}

fn block(role: &str, content: &str) -> String {
    format!("<|header_start|>{role}<|header_end|>\n\n{content}<|eot|>")
}

fn question_text(turn: &Turn, number: usize) -> Result<String, RowProblem> {
    let role = match turn.role {
        Role::User => "user",
        Role::Observation => "ipython",
        Role::Assistant | Role::FunctionCall => return Err(wrong_order(turn, number, "a question")),
    };
    Ok(block(role, &turn.content) + "<|header_start|>assistant<|header_end|>\n\n")
}

fn answer_text(turn: &Turn, number: usize) -> Result<String, RowProblem> {
    match turn.role {
        Role::Assistant => Ok(format!("{}<|eot|>", turn.content)),
        Role::FunctionCall => Ok(function_text(&turn.content)? + "<|eot|>"),
        Role::User | Role::Observation => Err(wrong_order(turn, number, "an answer")),
    }
}

fn wrong_order(turn: &Turn, number: usize, expected: &str) -> RowProblem {
    RowProblem::WrongOrder { turn: number, found: format!("{:?}", turn.role), expected: expected.to_string() }
}

/// How much of each pair's source and target stays. Room is given out pair by pair; when only the last answer is
/// learned, the last pair is served first and the earlier ones get what is left.
fn kept_lengths(pairs: &[Pair], encoding: &Encoding) -> Vec<(usize, usize)> {
    let mut kept = vec![(0, 0); pairs.len()];
    let mut room = encoding.cutoff_len;
    for turn in 0..pairs.len() {
        let index = if encoding.supervision == Supervision::LastAnswer { pairs.len() - 1 - turn } else { turn };
        let (source, target) = fit(pairs[index].source.len(), pairs[index].target.len(), room);
        kept[index] = (source, target);
        room -= source + target;
        if room == 0 {
            break;
        }
    }
    kept
}

/// How many of `source` and `target` tokens stay when there is room for `room`.
fn fit(source: usize, target: usize, room: usize) -> (usize, usize) {
    let target_cap = if target * 2 < room {
        room
    } else if source * 2 < room {
        room - source
    } else {
        // The order of the operations, in f64, decides the last token; it is LLaMA-Factory's.
        (room as f64 * (target as f64 / (source + target) as f64)) as usize
    };
    let target = target_cap.min(target);
    (room.saturating_sub(target).min(source), target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_cut_in_proportion_when_neither_half_is_short() {
        for (source, target, room, expected) in [
            (10, 5, 100, (10, 5)),
            (100, 5, 20, (15, 5)),
            (5, 100, 20, (5, 15)),
            (100, 100, 20, (10, 10)),
            (30, 10, 20, (15, 5)),
            (100, 1, 2, (2, 0)),
            (1, 1, 1, (1, 0)),
            (0, 7, 5, (0, 5)),
            // 22 · 30 / 44 is 15, but 22 · (30 / 44) is a hair less in f64.
            (14, 30, 22, (8, 14)),
        ] {
            assert_eq!(fit(source, target, room), expected, "{source} {target} {room}");
        }
    }

    #[test]
    fn contradicting_keys_are_a_configuration_error() {
        for (cutoff_len, train_on_prompt, mask_history) in [(0, false, false), (10, true, true)] {
            let error = Encoding::from_keys(cutoff_len, train_on_prompt, mask_history).unwrap_err();
            assert_eq!(error.exit_code(), scout_core::ExitCode::BadConfig);
        }
    }
}

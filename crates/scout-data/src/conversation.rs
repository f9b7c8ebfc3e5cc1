//! A conversation as every data format is read into. It has no tokens and knows no template.

/// Who speaks in a turn. Questions (`User`, `Observation`) and answers (`Assistant`, `FunctionCall`) take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    User,
    Assistant,
    /// What a tool returned.
    Observation,
    /// A tool call: JSON with `name` and `arguments`, or a list of such.
    FunctionCall,
}

impl Role {
    /// Whether the turn is something the model says, hence learned.
    pub fn is_answer(self) -> bool {
        matches!(self, Role::Assistant | Role::FunctionCall)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub role: Role,
    pub content: String,
}

/// Questions and answers in turn, beginning with a question and ending with an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    pub system: Option<String>,
    /// Tool definitions: a JSON list, as text.
    pub tools: Option<String>,
    pub turns: Vec<Turn>,
}

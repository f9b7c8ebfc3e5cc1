//! From data sets on disk to flat batches of tokens: reading, chat templates, tokenising, order, weights. Everything
//! here is a pure function of files, configuration and one integer, the number of the update; nothing here knows
//! about devices, collectives or the model.

#![forbid(unsafe_code)]

mod bad_rows;
pub mod balance;
pub mod batch;
mod bins;
mod catalogue;
pub mod chat_template;
pub mod conversation;
mod convert;
pub mod dataset;
pub mod date;
pub mod error;
pub mod examples;
mod json;
pub mod order;
pub mod packing;
mod python_methods;
mod row_problem;
mod row_shape;
mod rows;
pub mod template;
pub mod tokenizer;
mod tools;
pub mod toy;

pub use bad_rows::BadRows;
pub use balance::{Balance, RowCost};
pub use batch::{FlatBatch, LossReduction, Target, UpdateCounts, UpdatePlan, WeightedRow};
pub use chat_template::{ChatRequest, ChatTemplate};
pub use conversation::{Conversation, Role, Turn};
pub use dataset::{Dataset, DatasetRequest};
pub use date::Date;
pub use error::{DataError, Result};
pub use examples::{ExampleSet, TokenStatistics, tokenise};
pub use json::{JsonError, Position};
pub use order::{Dealing, Dealt, SampleOrder, Shuffle, UpdateOrder, hold_out, permutation};
pub use packing::PackedOrder;
pub use row_problem::{Place, RowProblem};
pub use template::{Encoding, Example, IGNORED, Supervision, Template};
pub use tokenizer::Tokenizer;
pub use toy::{ToyTokenizer, alpaca_json, openai_jsonl, toy_conversations, toy_tokenizer_json};

//! `preprocess`: rows as the model sees them. Learned tokens are marked, so that a wrong mask is seen before it costs a
//! run.

use scout_config::RunConfig;
use scout_core::ExitCode;
use scout_data::tokenise;
use scout_telemetry::grouped;
use scout_train::TrainError;
use scout_train::plan::ModelSource;
use scout_train::prepare::{dataset, encoding, template};

use super::configuration::{ConfigArguments, load, placing};
use crate::failure::Mistake;
use crate::surroundings::{self, print};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Number of rows to show
    #[arg(long, default_value_t = 3)]
    show: usize,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let loaded = load(&arguments.config)?;
    placing(&loaded, || show(&loaded.config, arguments.show))
}

fn show(config: &RunConfig, num_rows: usize) -> anyhow::Result<ExitCode> {
    if config.data.dataset.is_empty() {
        let message = "`dataset` is not given, so there are no rows to show".to_string();
        return Err(Mistake { message, code: ExitCode::BadConfig, hint: None }.into());
    }
    // The tokenizer is needed, the weights are not.
    let source = ModelSource::find(config, true)?;
    let Some(folder) = source.folder else {
        let message = "`model_name_or_path` is not given, so there is no tokenizer".to_string();
        return Err(Mistake { message, code: ExitCode::BadConfig, hint: None }.into());
    };
    let template = template(config, &folder)?;
    let conversations = dataset(config)?;
    for note in conversations.notes() {
        print(&format!("note: {note}"))?;
    }
    let examples = tokenise(&conversations, &template, &encoding(config)?).map_err(TrainError::from)?;
    let color = std::io::IsTerminal::is_terminal(&std::io::stdout()) && surroundings::terminal().color;
    for row in 0..examples.len().min(num_rows) {
        let (tokens, targets) = (examples.length(row), examples.targets(row));
        print(&format!("row {}: {tokens} tokens, {targets} of them learned", row + 1))?;
        let labels: Vec<bool> = examples.labels(row).map(|label| label.is_some()).collect();
        let mut text = String::new();
        let ids = examples.ids(row);
        let mut start = 0;
        for run in labels.chunk_by(|a, b| a == b) {
            let piece = template.tokenizer().decode(&ids[start..start + run.len()]).map_err(TrainError::from)?;
            text.push_str(&marked(&piece, run[0], color));
            start += run.len();
        }
        print(&format!("{text}\n"))?;
    }
    let statistics = examples.statistics();
    print(&format!(
        "{} rows, {} tokens, {} learned, the longest row {}; {:.1} % of the rows cut at {}",
        grouped(statistics.rows as u64),
        grouped(statistics.tokens as u64),
        grouped(statistics.targets as u64),
        statistics.longest,
        100.0 * statistics.share_of_rows_cut(),
        config.data.cutoff_len
    ))?;
    Ok(ExitCode::Success)
}

/// Learned text in green, or between marks where there is no colour.
fn marked(text: &str, is_learned: bool, color: bool) -> String {
    match (is_learned, color) {
        (false, _) => text.to_string(),
        (true, true) => format!("\x1b[32m{text}\x1b[0m"),
        (true, false) => format!("⟦{text}⟧"),
    }
}

//! What a run says: the step log, the progress on the terminal, TensorBoard events, the loss picture and the result
//! files of the run folder. It measures nothing and decides nothing; only the first rank speaks.

#![forbid(unsafe_code)]

mod canvas;
mod error;
mod glyphs;
mod loss_picture;
mod progress;
mod run_files;
mod spelling;
mod step_log;
mod tensorboard;
mod terminal_plot;
mod ticks;

pub use error::TelemetryError;
pub use loss_picture::{encode_loss_picture, smoothed, write_loss_picture};
pub use progress::{Progress, Terminal};
pub use run_files::{
    EvalResults, LogEntry, RunningLog, TrainResults, TrainerState, write_results, write_trainer_state,
};
pub use spelling::{clock, grouped};
pub use step_log::{StepLog, StepRecord};
pub use tensorboard::{EventFile, SCALAR_TAGS};
pub use terminal_plot::terminal_plot;

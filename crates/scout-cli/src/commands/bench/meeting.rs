//! How the ranks of a benchmark meet: as those of a training run do, without a word on success.

use scout_config::RunConfig;
use scout_core::ExitCode;
use scout_telemetry::Progress;
use scout_train::identity;
use scout_train::plan::ModelSource;

use crate::failure::Mistake;
use crate::joined::{Identity, Joined, Waits};
use crate::ranks::Ranks;
use crate::surroundings;

/// This process among the ranks that mean the same configuration and shape and, unless weights are random, the same tensors.
/// Waits for all of them.
pub fn meet(config: &RunConfig, source: &ModelSource, random_weights: bool) -> anyhow::Result<(Ranks, Joined)> {
    let model = identity::of_model(source, random_weights)?;
    let identity = Identity { config: identity::of_config(config), model };
    let waits = Waits { init_timeout: config.device.init_timeout, hang_limit: config.device.hang_limit };
    meet_as(identity, waits)
}

/// The same where there is no configuration.
pub fn meet_as(identity: Identity, waits: Waits) -> anyhow::Result<(Ranks, Joined)> {
    let ranks = surroundings::ranks()?;
    surroundings::share_the_host(ranks.seat.local_size.unwrap_or(1))?;
    let joined = Joined::with_others(&ranks, identity, waits, &mut Progress::silent())?;
    Ok((ranks, joined))
}

/// What has no meaning on one rank, or on the host.
pub fn needs_several_gpus(benchmark: &str) -> Mistake {
    Mistake {
        message: format!("`bench {benchmark}` measures what several GPUs do together"),
        code: ExitCode::Usage,
        hint: Some(format!("start a rank for each GPU: scout-dist launch -n 8 bench {benchmark} ...")),
    }
}

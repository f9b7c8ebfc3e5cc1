//! Names of every environment variable this program reads. Reading them is left to `scout-cli` and the launcher.

/// Position of this worker among all workers, from 0.
pub const RANK: &str = "SCOUT_DIST_RANK";
/// Number of workers.
pub const WORLD_SIZE: &str = "SCOUT_DIST_WORLD_SIZE";
/// Position of this worker on its host, from 0.
pub const LOCAL_RANK: &str = "SCOUT_DIST_LOCAL_RANK";
/// Path of the program under test; set by `cargo xtask test`, read by whole-program tests only.
pub const TEST_BINARY: &str = "SCOUT_DIST_BIN";
/// Folders to search for the CUDA libraries, separated by `:`.
pub const CUDA_LIBS: &str = "SCOUT_CUDA_LIBS";
/// Prefix of variables that set a configuration key: `SCOUT_DIST__LEARNING_RATE=1e-4`.
pub const KEY_PREFIX: &str = "SCOUT_DIST__";

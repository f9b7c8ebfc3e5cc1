//! What this program was built from.

/// The commit, with `-dirty` where sources differed from it; `unknown` where they were not in a repository.
pub const COMMIT: &str = env!("SCOUT_DIST_COMMIT");

/// Version and commit, as `--version` prints them.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SCOUT_DIST_COMMIT"), ")");

//! What this program was built from.

/// The commit; `unknown` where the sources were not in a repository. Changes that were not committed are not told.
pub const COMMIT: &str = env!("SCOUT_DIST_COMMIT");

/// Version and commit, as `--version` prints them.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SCOUT_DIST_COMMIT"), ")");

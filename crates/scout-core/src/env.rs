//! Names of every environment variable this program reads. Reading them is left to `scout-cli` and the launcher.

/// Position of this worker among all workers, from 0.
pub const RANK: &str = "SCOUT_DIST_RANK";
/// Number of workers.
pub const WORLD_SIZE: &str = "SCOUT_DIST_WORLD_SIZE";
/// Position of this worker on its host, from 0.
pub const LOCAL_RANK: &str = "SCOUT_DIST_LOCAL_RANK";
/// Folder of one job on one host, made by the launcher: where ranks meet and where each leaves its whereabouts.
pub const JOB_FOLDER: &str = "SCOUT_DIST_JOB_FOLDER";
/// The job's secret, 64 hexadecimal digits, handed by the launcher to its ranks. Never printed.
pub const TOKEN: &str = "SCOUT_DIST_TOKEN";
/// File that holds the job's secret, readable by its owner alone.
pub const TOKEN_FILE: &str = "SCOUT_DIST_TOKEN_FILE";
/// Process number of the launcher: a rank whose parent is another process has been left alone.
pub const LAUNCHER_PID: &str = "SCOUT_DIST_LAUNCHER_PID";
/// How many GPUs the ranks of a host share in turns, where they are not to have one each. For tests of what many ranks do
/// to each other, never of speed.
pub const SHARED_GPUS: &str = "SCOUT_DIST_SHARED_GPUS";
/// How ranks that share a host meet: `unix` (a socket in a folder of the user) or `tcp` (which always asks for the token).
pub const TRANSPORT: &str = "SCOUT_DIST_TRANSPORT";
/// Path of the program under test; set by `cargo xtask test`, read by whole-program tests only.
pub const TEST_BINARY: &str = "SCOUT_DIST_BIN";
/// The same, built with the feature `mpi`.
pub const TEST_MPI_BINARY: &str = "SCOUT_DIST_MPI_BIN";
/// Marks every process of one job that a whole-program test started, so that the test can count those that are left.
pub const TEST_MARK: &str = "SCOUT_DIST_TEST_MARK";
/// How many ranks the test of sudden deaths kills, one after the other.
pub const TEST_CHAOS_POINTS: &str = "SCOUT_DIST_CHAOS_POINTS";
/// Number from which that test takes its victims and moments; the same number gives the same ones.
pub const TEST_CHAOS_SEED: &str = "SCOUT_DIST_CHAOS_SEED";
/// Set for the ranks of a test under `mpirun`: folder in which each leaves what it saw.
pub const TEST_MPI_FOLDER: &str = "SCOUT_DIST_TEST_MPI";
/// Folders to search for the CUDA libraries, separated by `:`.
pub const CUDA_LIBS: &str = "SCOUT_CUDA_LIBS";
/// Prefix of variables that set a configuration key: `SCOUT_DIST__LEARNING_RATE=1e-4`.
pub const KEY_PREFIX: &str = "SCOUT_DIST__";

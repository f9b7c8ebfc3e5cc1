//! Which of how many ranks this process is, as the variables of its launcher say, and how it will meet the others.
//! Nothing is opened or connected here.

mod fnv;
mod parent;
mod seat;
mod slurm;
mod variables;

use std::fmt;
use std::path::PathBuf;

use scout_comm::{CommError, MeetingPlace};
use scout_core::{ExitCode, Mesh, Token, TokenError, env};

pub use parent::tie_to_parent;
pub use seat::{Launcher, Seat, seat};

use fnv::fnv;
use variables::{Variables, mistake, number, required};

use crate::failure::Mistake;

/// This process's seat, and how the ranks meet.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranks {
    pub seat: Seat,
    pub meeting: Meeting,
    /// Where this rank keeps its whereabouts for a launcher that reads them.
    pub place_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Meeting {
    /// There is nobody to meet.
    Alone,
    /// Rank 0 listens at a socket in a folder of this user.
    Unix { socket: PathBuf },
    /// Rank 0 listens at this port of its host.
    Tcp { host: String, port: u16, secret: Secret },
    /// Rank 0 listens at a port of its choice on the loopback interface and publishes it in a file.
    Loopback { publish: PathBuf, secret: Secret },
}

/// What is known of this process besides its variables.
pub struct Process {
    pub parent_pid: u32,
    /// Where this user's sockets lie.
    pub user_folder: PathBuf,
}

impl Ranks {
    pub fn mesh(&self) -> Mesh {
        Mesh::new(self.seat.rank, self.seat.world_size).expect("a seat's rank is below its world size")
    }

    /// Where the ranks meet, with the token at hand; `None` for a rank alone.
    pub fn meeting_place(&self) -> Result<Option<MeetingPlace>, CommError> {
        Ok(Some(match &self.meeting {
            Meeting::Alone => return Ok(None),
            Meeting::Unix { socket } => MeetingPlace::Unix { socket: socket.clone() },
            Meeting::Tcp { host, port, secret } => {
                // An address of version 6 has colons of its own.
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                MeetingPlace::Tcp { address: format!("{host}:{port}"), token: secret.token()? }
            }
            Meeting::Loopback { publish, secret } => {
                MeetingPlace::Loopback { publish: publish.clone(), token: secret.token()? }
            }
        }))
    }
}

impl Process {
    pub fn this() -> Process {
        Process { parent_pid: parent::pid(), user_folder: scout_launch::user_folder() }
    }
}

/// Asks the launchers in their order; a process that none of them started is alone.
///
/// Variables that are missing or contradict each other are a mistake that names them with their values.
pub fn find(variables: Variables, process: &Process) -> Result<Ranks, Mistake> {
    let seat = seat(variables)?;
    let transport = transport(variables)?;
    let job_folder = match seat.launcher {
        Launcher::Own => Some(PathBuf::from(required(variables, env::JOB_FOLDER, "`scout-dist launch` sets it")?)),
        _ => None,
    };
    let meeting = match &job_folder {
        _ if seat.world_size == 1 => Meeting::Alone,
        Some(folder) if transport == Some(Transport::Tcp) => {
            Meeting::Loopback { publish: scout_launch::address_file(folder), secret: secret(variables)? }
        }
        Some(folder) => Meeting::Unix { socket: scout_launch::meeting_socket(folder) },
        None if seat.is_one_host() && transport != Some(Transport::Tcp) => {
            let name = format!("{:016x}.sock", fnv(&key(seat.launcher, variables, process)));
            Meeting::Unix { socket: process.user_folder.join(name) }
        }
        None if transport == Some(Transport::Unix) => {
            let message = format!("{} is `unix`, but not all {} ranks share a host", env::TRANSPORT, seat.world_size);
            return Err(mistake(message));
        }
        None => {
            let (host, port) = address(seat.launcher, variables)?;
            Meeting::Tcp { host, port, secret: secret(variables)? }
        }
    };
    let place_file = job_folder.map(|folder| scout_launch::place_file(&folder, seat.rank));
    Ok(Ranks { seat, meeting, place_file })
}

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Unix,
    Tcp,
}

/// `None` where the user does not say.
fn transport(variables: Variables) -> Result<Option<Transport>, Mistake> {
    match variables(env::TRANSPORT).as_deref() {
        None => Ok(None),
        Some("unix") => Ok(Some(Transport::Unix)),
        Some("tcp") => Ok(Some(Transport::Tcp)),
        Some(other) => Err(mistake(format!("{} is `{other}`, expected `unix` or `tcp`", env::TRANSPORT))),
    }
}

/// What the ranks of one job on one host share, and no other job on this host.
fn key(launcher: Launcher, variables: Variables, process: &Process) -> String {
    let parent = process.parent_pid;
    let job = match launcher {
        // A run id may be the word `none`; a group that was started again has the same agent and must not meet the old.
        Launcher::Torchrun => {
            let text = |name: &str| variables(name).unwrap_or_default();
            let (run, restart) = (text("TORCHELASTIC_RUN_ID"), text("TORCHELASTIC_RESTART_COUNT"));
            Some(format!("{run} {restart} {parent}"))
        }
        Launcher::OpenMpi => variables("PMIX_NAMESPACE").or(variables("OMPI_MCA_ess_base_jobid")),
        Launcher::Slurm => Some(slurm::job_and_step(variables)),
        // Under PMI the name of the job travels over PMI's own wire alone.
        _ => None,
    };
    // On one host all ranks are children of one process.
    let job = job.unwrap_or_else(|| format!("children of {parent}"));
    format!("{launcher}: {job}")
}

/// Where rank 0 listens when ranks run on several hosts.
fn address(launcher: Launcher, variables: Variables) -> Result<(String, u16), Mistake> {
    let port = variables("MASTER_PORT").map(|port| number::<u16>("MASTER_PORT", &port)).transpose()?;
    match (variables("MASTER_ADDR"), launcher) {
        (None, Launcher::Slurm) => Ok((slurm::first_host(variables)?, port.unwrap_or_else(|| slurm::port(variables)))),
        (Some(host), Launcher::Slurm) => Ok((host, port.unwrap_or_else(|| slurm::port(variables)))),
        (Some(host), Launcher::Torchrun) if agent_listens(variables) => {
            match port.unwrap_or(DEFAULT_PORT).checked_add(1) {
                Some(next) => Ok((host, next)),
                None => Err(mistake("MASTER_PORT is 65535, and ranks meet at the port behind it".to_string())),
            }
        }
        (Some(host), _) => Ok((host, port.unwrap_or(DEFAULT_PORT))),
        (None, _) => Err(Mistake {
            message: format!(
                "{launcher} started ranks on several hosts, and MASTER_ADDR does not name the host of rank 0"
            ),
            code: ExitCode::BadConfig,
            hint: Some(format!(
                "set MASTER_ADDR, and MASTER_PORT where it is not to be {DEFAULT_PORT}, and have {launcher} pass them on"
            )),
        }),
    }
}

/// Whether torchrun itself listens at MASTER_PORT.
fn agent_listens(variables: Variables) -> bool {
    variables("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// What PyTorch's launchers take where nothing is said.
const DEFAULT_PORT: u16 = 29_500;

/// The job's secret, or the file that holds it. Shown to nobody.
#[derive(Clone, PartialEq)]
pub enum Secret {
    Given(String),
    InFile(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Given(_) => f.write_str("Secret(not shown)"),
            Secret::InFile(path) => write!(f, "Secret(in {})", path.display()),
        }
    }
}

fn secret(variables: Variables) -> Result<Secret, Mistake> {
    if let Some(path) = variables(env::TOKEN_FILE) {
        return Ok(Secret::InFile(PathBuf::from(path)));
    }
    if let Some(text) = variables(env::TOKEN) {
        return Ok(Secret::Given(text));
    }
    let (file, token) = (env::TOKEN_FILE, env::TOKEN);
    Err(Mistake {
        message: format!("ranks that meet over TCP need the job's token: neither {file} nor {token} is set"),
        code: ExitCode::PermissionDenied,
        hint: Some(format!(
            "make one that every host can read: (umask 077; od -An -tx1 -N32 /dev/urandom | tr -d ' \\n' > job.token), \
             and set {file} to its path"
        )),
    })
}

impl Secret {
    fn token(&self) -> Result<Token, TokenError> {
        match self {
            Secret::Given(digits) => Token::from_hex(digits),
            Secret::InFile(path) => Token::from_file(path),
        }
    }
}

#[cfg(test)]
mod tests;

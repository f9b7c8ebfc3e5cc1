//! Rank, number of ranks and rank on this host, from the variables of the launchers we know.

use std::fmt;
use std::num::NonZeroUsize;

use scout_core::{Rank, env};

use super::slurm;
use super::variables::{Variables, mistake, number};
use crate::failure::Mistake;

/// Who started this process as one rank of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    Nobody,
    Own,
    Torchrun,
    OpenMpi,
    /// MPICH, Intel MPI and others that speak PMI.
    Pmi,
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::Nobody => "nobody",
            Launcher::Own => "scout-dist launch",
            Launcher::Torchrun => "torchrun",
            Launcher::OpenMpi => "Open MPI",
            Launcher::Pmi => "an MPI that speaks PMI",
            Launcher::Slurm => "Slurm",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    pub launcher: Launcher,
    pub world_size: usize,
    pub rank: Rank,
    /// Position on this host, which chooses the GPU.
    pub local_rank: usize,
    /// Number of ranks on this host, where the launcher tells.
    pub local_size: Option<usize>,
    /// GPUs that the ranks of this host share in turns; each has one of its own where nobody says.
    pub shared_gpus: Option<NonZeroUsize>,
}

impl Seat {
    pub fn is_one_host(&self) -> bool {
        self.local_size == Some(self.world_size)
    }

    /// Of the GPUs that this host has, the one of this rank.
    pub fn gpu(&self) -> u32 {
        self.shared_gpus.map_or(self.local_rank, |gpus| self.local_rank % gpus) as u32
    }

    /// The most ranks that are on one GPU.
    pub fn ranks_of_a_gpu(&self) -> usize {
        self.shared_gpus.map_or(1, |gpus| self.local_size.unwrap_or(self.world_size).div_ceil(gpus.get()))
    }
}

/// Names of the variables that one launcher sets.
pub struct Names {
    pub launcher: Launcher,
    rank: &'static str,
    world_size: &'static str,
    pub local_rank: &'static str,
    local_size: Option<&'static str>,
}

const OWN: Names = Names {
    launcher: Launcher::Own,
    rank: env::RANK,
    world_size: env::WORLD_SIZE,
    local_rank: env::LOCAL_RANK,
    // All ranks of our own launcher share its host.
    local_size: Some(env::WORLD_SIZE),
};

const TORCHRUN: Names = Names {
    launcher: Launcher::Torchrun,
    rank: "RANK",
    world_size: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_size: Some("LOCAL_WORLD_SIZE"),
};

const OPEN_MPI: Names = Names {
    launcher: Launcher::OpenMpi,
    rank: "OMPI_COMM_WORLD_RANK",
    world_size: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
};

const PMI: Names = Names {
    launcher: Launcher::Pmi,
    rank: "PMI_RANK",
    world_size: "PMI_SIZE",
    local_rank: "MPI_LOCALRANKID",
    local_size: Some("MPI_LOCALNRANKS"),
};

const SLURM: Names = Names {
    launcher: Launcher::Slurm,
    rank: "SLURM_PROCID",
    // Not SLURM_NTASKS: see `is_slurm_step`.
    world_size: "SLURM_STEP_NUM_TASKS",
    local_rank: "SLURM_LOCALID",
    local_size: None,
};

/// The seat that the launcher nearest to this process gave it.
pub fn seat(variables: Variables) -> Result<Seat, Mistake> {
    let Some(names) = names(variables) else {
        return Ok(Seat {
            launcher: Launcher::Nobody,
            world_size: 1,
            rank: Rank(0),
            local_rank: 0,
            local_size: Some(1),
            shared_gpus: None,
        });
    };
    let read = |name: &str| variables(name).map(|value| number::<usize>(name, &value)).transpose();
    let (Some(rank), Some(world_size)) = (read(names.rank)?, read(names.world_size)?) else {
        return Err(half_set(names, variables));
    };
    expect_below((names.rank, rank), (names.world_size, world_size))?;
    let local_rank = match read(names.local_rank)? {
        Some(local_rank) => local_rank,
        // Not every launcher tells a single rank where it is.
        None if world_size == 1 => 0,
        None => {
            let (name, size) = (names.local_rank, names.world_size);
            return Err(mistake(format!("{size} is {world_size} and {name}, which chooses the GPU, is not set")));
        }
    };
    let local_size = match names.local_size {
        Some(name) => read(name)?.map(|size| (name, size)),
        None => slurm::local_size(variables, world_size)?.map(|size| ("SLURM_STEP_TASKS_PER_NODE", size)),
    };
    if let Some((name, size)) = local_size {
        expect_below((names.local_rank, local_rank), (name, size))?;
        if size > world_size {
            let world = names.world_size;
            return Err(mistake(format!("{name} is {size} and {world} is {world_size}, expected no more on one host")));
        }
    }
    let local_size = local_size.map(|(_, size)| size);
    let shared_gpus = variables(env::SHARED_GPUS).map(|value| shared_gpus(&value)).transpose()?;
    Ok(Seat { launcher: names.launcher, world_size, rank: Rank(rank), local_rank, local_size, shared_gpus })
}

fn shared_gpus(value: &str) -> Result<NonZeroUsize, Mistake> {
    value.parse().map_err(|_| mistake(format!("{} is `{value}`, expected a number from 1 on", env::SHARED_GPUS)))
}

/// Which launcher's variables count. A launcher that was itself started by another hides it.
pub fn names(variables: Variables) -> Option<&'static Names> {
    let is_set = |name: &str| variables(name).is_some();
    if is_set(OWN.rank) || is_set(OWN.world_size) || is_set(OWN.local_rank) {
        return Some(&OWN);
    }
    if is_set(TORCHRUN.rank) {
        return Some(&TORCHRUN);
    }
    if is_set(OPEN_MPI.rank) || is_set(OPEN_MPI.world_size) {
        return Some(&OPEN_MPI);
    }
    let is_slurm_step = is_slurm_step(variables);
    // `srun --mpi=pmi2` speaks PMI too, but leaves the rank on this host to Slurm's own variables.
    if (is_set(PMI.rank) || is_set(PMI.world_size)) && (is_set(PMI.local_rank) || !is_slurm_step) {
        return Some(&PMI);
    }
    if is_slurm_step {
        return Some(&SLURM);
    }
    // Last, because scripts set it by hand for programs that take the rank from one of the above.
    is_set(TORCHRUN.world_size).then_some(&TORCHRUN)
}

/// Only `srun` sets the number of tasks of a step. Inside `sbatch` and `salloc` a plain start sees SLURM_PROCID=0 and
/// SLURM_NTASKS=8 as well, and would wait for ranks that never come.
fn is_slurm_step(variables: Variables) -> bool {
    variables(SLURM.world_size).is_some_and(|tasks| tasks.parse() != Ok(1))
}

fn half_set(names: &Names, variables: Variables) -> Mistake {
    let say = |name: &str| match variables(name) {
        Some(value) => format!("{name} is {value}"),
        None => format!("{name} is not set"),
    };
    mistake(format!("{} and {}, expected both or neither", say(names.rank), say(names.world_size)))
}

fn expect_below((name, value): (&str, usize), (limit_name, limit): (&str, usize)) -> Result<(), Mistake> {
    match value < limit {
        true => Ok(()),
        false => {
            Err(mistake(format!("{name} is {value} and {limit_name} is {limit}, expected the first to be smaller")))
        }
    }
}

//! Whoever started a job dies: no rank outlives it.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use scout_tests::program;

use crate::faults::{ENDLESS, OPEN_MPI, SRUN, wait_for_step};
use crate::processes::Process;
use crate::slurm::Slurm;
use crate::started::{Started, turn};
use crate::toy::Toy;

/// After this no rank of a job may live whose starter is dead.
const NO_ORPHANS: Duration = Duration::from_secs(5);

#[test]
fn no_rank_outlives_our_launcher() {
    let _turn = turn();
    let toy = Toy::new();
    check(Started::one(toy.launch(8, &[], &ENDLESS)), 8, |job| job.starter());
}

#[test]
fn no_rank_outlives_mpirun() {
    let _turn = turn();
    let toy = Toy::new();
    let mut command = toy.command(OPEN_MPI[0], &OPEN_MPI[1..]);
    command.arg(program()).args(["train", "run.yaml"]).args(ENDLESS);
    check(Started::one(command), 4, |job| job.starter());
}

#[test]
fn no_rank_outlives_its_step_of_slurm() {
    let _turn = turn();
    let toy = Toy::new();
    let slurm = Slurm::start();
    let mut command = slurm.point(toy.command(SRUN[0], &SRUN[1..]));
    command.arg(program()).args(["train", "run.yaml"]).args(ENDLESS);
    check(Started::one(command), 4, |job| {
        let step = job.ranks().remove(&0).and_then(|rank| rank.parent()).expect("rank 0 has a parent");
        assert_eq!(step.name, "slurmstepd");
        step
    });
}

fn check(job: Started, world: usize, starter: impl FnOnce(&Started) -> Process) {
    job.wait_for_ranks(world);
    wait_for_step(&job, 5);
    let killed = Instant::now();
    starter(&job).send(Signal::KILL);
    let gone = job.wait_until("no rank lives", NO_ORPHANS * 4, || job.ranks().is_empty().then(|| killed.elapsed()));
    assert!(gone <= NO_ORPHANS, "ranks lived on for {gone:?}");
}

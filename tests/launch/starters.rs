//! The same job under everything that can start one: the losses are the same to the last bit.

use std::process::Command;

use scout_core::env::TEST_MPI_BINARY;
use scout_tests::program;

use crate::elastic::Agent;
use crate::slurm::Slurm;
use crate::started::{LIMIT, Started, turn};
use crate::toy::Toy;

const STEPS: usize = 20;

/// The toy with the losses of the job under our own launcher, which all others are compared with.
struct Reference {
    toy: Toy,
    expected: Vec<String>,
}

impl Reference {
    fn new() -> Reference {
        let toy = Toy::new();
        Started::one(toy.launch(4, &[], &["output_dir=expected"])).end_within(LIMIT).expect_success();
        let expected = toy.loss_bits("expected");
        assert_eq!(expected.len(), STEPS);
        for bits in &expected {
            assert!(f32::from_bits(u32::from_str_radix(bits, 16).unwrap()).is_finite(), "{bits}");
        }
        Reference { toy, expected }
    }

    /// Runs `STARTER… scout-dist train run.yaml` and compares.
    fn check(&self, name: &str, starter: &[&str]) {
        self.check_command(name, self.started_by(starter, &program(), name));
    }

    fn started_by(&self, starter: &[&str], program: &std::path::Path, run: &str) -> Command {
        let mut command = self.toy.command(starter[0], &starter[1..]);
        command.arg(program).args(["train", "run.yaml", &format!("output_dir={run}")]);
        command
    }

    fn check_command(&self, run: &str, command: Command) {
        let ended = Started::one(command).end_within(LIMIT);
        ended.expect_success();
        assert_eq!(self.toy.loss_bits(run), self.expected, "{run}\n{ended}");
    }
}

const OPEN_MPI: [&str; 5] = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", "4"];

#[test]
fn a_job_over_tcp_loses_what_a_job_over_a_unix_socket_loses() {
    let _turn = turn();
    let reference = Reference::new();
    reference.check_command("tcp", reference.toy.launch(4, &["--tcp"], &["output_dir=tcp"]));
    // Twice the same is the same: whatever differs elsewhere is not chance.
    reference.check_command("again", reference.toy.launch(4, &[], &["output_dir=again"]));
}

#[test]
fn the_losses_depend_on_the_number_of_ranks() {
    let _turn = turn();
    let reference = Reference::new();
    // A comparison that could not fail would prove nothing: two ranks see half the rows of a step.
    Started::one(reference.toy.launch(2, &[], &["output_dir=two"])).end_within(LIMIT).expect_success();
    assert_ne!(reference.toy.loss_bits("two"), reference.expected);
}

#[test]
fn open_mpi_starts_the_same_job() {
    let _turn = turn();
    let reference = Reference::new();
    reference.check("openmpi", &OPEN_MPI);
}

#[test]
fn a_rank_that_is_bound_to_one_core_computes_the_same() {
    let _turn = turn();
    let toy = Toy::new();
    Started::one(toy.launch(2, &[], &["output_dir=free"])).end_within(LIMIT).expect_success();
    let mut bound = toy.command("mpirun.openmpi", &["--allow-run-as-root", "--oversubscribe", "--bind-to", "core"]);
    bound.args(["-n", "2"]).arg(program()).args(["train", "run.yaml", "output_dir=bound"]);
    Started::one(bound).end_within(LIMIT).expect_success();
    assert_eq!(toy.loss_bits("bound"), toy.loss_bits("free"));
}

#[test]
fn mpich_starts_the_same_job() {
    let _turn = turn();
    let reference = Reference::new();
    reference.check("mpich", &["mpirun.mpich", "-n", "4"]);
}

#[test]
fn slurm_starts_the_same_job_with_and_without_pmix_and_from_a_script() {
    let _turn = turn();
    let reference = Reference::new();
    let slurm = Slurm::start();
    for mpi in ["none", "pmix"] {
        let starter = ["srun", "-N1", "--overcommit", "-n", "4", &format!("--mpi={mpi}")];
        reference.check_command(mpi, slurm.point(reference.started_by(&starter, &program(), mpi)));
    }
    let script = format!(
        "#!/bin/sh\nexec srun -N1 --overcommit -n 4 --mpi=none {} train run.yaml output_dir=batch\n",
        program().display()
    );
    std::fs::write(reference.toy.path("job.sh"), script).unwrap();
    let batch = reference.toy.command("sbatch", &["-N1", "--overcommit", "--wait", "-o", "batch.out", "job.sh"]);
    reference.check_command("batch", slurm.point(batch));
}

#[test]
fn torchruns_variables_start_the_same_job_and_its_agents_port_is_left_alone() {
    let _turn = turn();
    let reference = Reference::new();
    let agent = Agent::new();
    let command = |_| reference.toy.command(program(), &["train", "run.yaml", "output_dir=elastic"]);
    let ended = agent.start(4, &[0, 1, 2, 3], command).end_within(LIMIT);
    ended.expect_success();
    assert_eq!(reference.toy.loss_bits("elastic"), reference.expected, "{ended}");
    assert!(!agent.was_called());
}

#[test]
fn the_program_with_mpi_in_it_runs_the_same_job_through_mpi() {
    let _turn = turn();
    let program = std::env::var_os(TEST_MPI_BINARY)
        .unwrap_or_else(|| panic!("{TEST_MPI_BINARY} is not set: run the tests with `cargo xtask test`"));
    let reference = Reference::new();
    let command = reference.started_by(&OPEN_MPI, std::path::Path::new(&program), "through-mpi");
    reference.check_command("through-mpi", command);
}

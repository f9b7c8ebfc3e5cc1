//! Environments as the launchers make them, recorded from Open MPI 5.0.11 and MPICH 5.0.2, and from the documentation of
//! Slurm and torchrun, with the seat and the meeting that follow from each.

use std::path::Path;

use scout_core::Rank;

use super::*;

const PARENT: u32 = 4711;

/// Finds with the variables of `environment`, words like `RANK=3`.
fn find_in(environment: &str) -> Result<Ranks, Mistake> {
    let variables = |name: &str| {
        let value = environment.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.filter(|value| !value.is_empty()).map(str::to_string)
    };
    find(&variables, &Process { parent_pid: PARENT, user_folder: PathBuf::from("/tmp/scout-dist-1000") })
}

const OWN: &str = "SCOUT_DIST_RANK=1 SCOUT_DIST_WORLD_SIZE=4 SCOUT_DIST_LOCAL_RANK=1 SCOUT_DIST_LAUNCHER_PID=4711 \
    SCOUT_DIST_JOB_FOLDER=/tmp/scout-dist-1000/job-4711-0a SCOUT_DIST_TOKEN=5e";

const TORCHRUN: &str = "RANK=3 LOCAL_RANK=3 WORLD_SIZE=4 LOCAL_WORLD_SIZE=4 GROUP_RANK=0 ROLE_RANK=3 MASTER_ADDR=localhost \
    MASTER_PORT=41234 TORCHELASTIC_RESTART_COUNT=0 TORCHELASTIC_MAX_RESTARTS=0 TORCHELASTIC_RUN_ID=9e6b \
    TORCHELASTIC_USE_AGENT_STORE=True OMP_NUM_THREADS=1";

const TORCHRUN_TWO_HOSTS: &str = "RANK=9 LOCAL_RANK=1 WORLD_SIZE=16 LOCAL_WORLD_SIZE=8 GROUP_RANK=1 MASTER_ADDR=gpu-01 \
    MASTER_PORT=29400 TORCHELASTIC_RESTART_COUNT=1 TORCHELASTIC_RUN_ID=job TORCHELASTIC_USE_AGENT_STORE=True \
    SCOUT_DIST_TOKEN_FILE=keys/job.token";

/// `torchrun --node-rank` as PyTorch before 2.0 did it: the first worker owns MASTER_PORT.
const TORCHRUN_STATIC: &str = "RANK=0 LOCAL_RANK=0 WORLD_SIZE=4 LOCAL_WORLD_SIZE=2 GROUP_RANK=0 MASTER_ADDR=10.0.0.1 \
    MASTER_PORT=29500 TORCHELASTIC_RESTART_COUNT=0 TORCHELASTIC_RUN_ID=none TORCHELASTIC_USE_AGENT_STORE=False \
    SCOUT_DIST_TOKEN=5e";

const OPEN_MPI: &str = "OMPI_COMMAND=scout-dist OMPI_COMM_WORLD_LOCAL_RANK=2 OMPI_COMM_WORLD_LOCAL_SIZE=4 \
    OMPI_COMM_WORLD_NODE_RANK=2 OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 PMIX_NAMESPACE=prterun-vm-24750@1 PMIX_RANK=2";

const OPEN_MPI_TWO_HOSTS: &str = "OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=4 OMPI_COMM_WORLD_RANK=4 \
    OMPI_COMM_WORLD_SIZE=8 PMIX_NAMESPACE=prterun-vm-24750@1 PMIX_RANK=4 SCOUT_DIST_TOKEN_FILE=keys/job.token";

const HYDRA: &str =
    "HYDI_CONTROL_FD=7 MPI_LOCALNRANKS=4 MPI_LOCALRANKID=1 PMI_FD=11 PMI_HOSTNAME=vm PMI_RANK=1 PMI_SIZE=4";

/// What a batch script, an `salloc` shell, and whatever they start without `srun` see of a job of eight tasks.
const SBATCH: &str = "SLURM_JOB_ID=77 SLURM_JOBID=77 SLURM_NTASKS=8 SLURM_NPROCS=8 SLURM_PROCID=0 SLURM_LOCALID=0 \
    SLURM_NODEID=0 SLURM_JOB_NODELIST=node[03-04] SLURM_NNODES=2 SLURM_TASKS_PER_NODE=4(x2)";

const SRUN: &str = "SLURM_STEP_ID=0 SLURM_STEPID=0 SLURM_STEP_NUM_TASKS=8 SLURM_STEP_NUM_NODES=1 SLURM_PROCID=5 \
    SLURM_LOCALID=5 SLURM_NODEID=0 SLURM_STEP_NODELIST=node03 SLURM_STEP_TASKS_PER_NODE=8 SLURM_JOB_ID=77 SLURM_NTASKS=8";

const SRUN_TWO_HOSTS: &str = "SLURM_STEP_ID=1 SLURM_STEPID=1 SLURM_STEP_NUM_TASKS=8 SLURM_STEP_NUM_NODES=2 SLURM_PROCID=5 \
    SLURM_LOCALID=1 SLURM_NODEID=1 SLURM_STEP_NODELIST=node[03-05,07] SLURM_STEP_TASKS_PER_NODE=4(x2) SLURM_JOB_ID=77 \
    SLURM_NTASKS=8 SCOUT_DIST_TOKEN_FILE=keys/job.token";

/// Later words do not replace earlier ones, so `more` stands in front.
fn with(more: &str, environment: &str) -> String {
    format!("{more} {environment}")
}

#[test]
fn every_launcher_is_recognised_and_the_nearest_counts() {
    use Launcher::*;
    // Launcher, rank, world size, local rank, local size.
    type Expected = (Launcher, usize, usize, usize, Option<usize>);
    let alone: Expected = (Nobody, 0, 1, 0, Some(1));
    let cases: &[(&str, String, Expected)] = &[
        ("plain start", String::new(), alone),
        ("sbatch, plain start", SBATCH.to_string(), alone),
        ("salloc's own step of one task", with("SLURM_STEP_NUM_TASKS=1 SLURM_STEP_ID=4294967290", SBATCH), alone),
        ("own", OWN.to_string(), (Own, 1, 4, 1, Some(4))),
        ("own inside srun", with(OWN, SRUN), (Own, 1, 4, 1, Some(4))),
        ("torchrun", TORCHRUN.to_string(), (Torchrun, 3, 4, 3, Some(4))),
        ("torchrun on two hosts", TORCHRUN_TWO_HOSTS.to_string(), (Torchrun, 9, 16, 1, Some(8))),
        ("torchrun in each task of srun", with(TORCHRUN_TWO_HOSTS, SRUN_TWO_HOSTS), (Torchrun, 9, 16, 1, Some(8))),
        (
            "by hand, one for each host",
            "RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a SCOUT_DIST_TOKEN=5e".to_string(),
            (Torchrun, 1, 2, 0, None),
        ),
        ("mpirun -n 4", OPEN_MPI.to_string(), (OpenMpi, 2, 4, 2, Some(4))),
        ("salloc and mpirun", with(OPEN_MPI, SBATCH), (OpenMpi, 2, 4, 2, Some(4))),
        ("mpirun -n 1", "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1".to_string(), (OpenMpi, 0, 1, 0, None)),
        ("hydra", HYDRA.to_string(), (Pmi, 1, 4, 1, Some(4))),
        ("salloc and hydra", with(HYDRA, SBATCH), (Pmi, 1, 4, 1, Some(4))),
        ("hydra, started by a step of srun", with(HYDRA, SRUN), (Pmi, 1, 4, 1, Some(4))),
        ("srun inside sbatch", with(SRUN, SBATCH), (Slurm, 5, 8, 5, Some(8))),
        ("srun over two nodes", with(SRUN_TWO_HOSTS, SBATCH), (Slurm, 5, 8, 1, Some(4))),
        ("srun --mpi=pmi2", with("PMI_RANK=5 PMI_SIZE=8 PMI_FD=9 SLURM_PMI_FD=9", SRUN), (Slurm, 5, 8, 5, Some(8))),
        ("srun with WORLD_SIZE set by hand", with("WORLD_SIZE=8 MASTER_ADDR=node03", SRUN), (Slurm, 5, 8, 5, Some(8))),
    ];
    for (name, environment, expected) in cases {
        let Seat { launcher, world_size, rank, local_rank, local_size, .. } = find_in(environment).expect(name).seat;
        assert_eq!((launcher, rank.0, world_size, local_rank, local_size), *expected, "{name}");
    }
}

#[test]
fn each_rank_has_a_gpu_of_its_own_unless_they_are_told_to_share() {
    let seat = |more: &str| find_in(&with(more, OPEN_MPI)).expect(more).seat;
    let on = |seat: &Seat| (seat.gpu(), seat.ranks_of_a_gpu());
    for (more, expected) in [("", (2, 1)), ("SCOUT_DIST_SHARED_GPUS=1", (0, 4)), ("SCOUT_DIST_SHARED_GPUS=3", (2, 2))] {
        assert_eq!(on(&seat(more)), expected, "{more}");
    }
    for nonsense in ["0", "two"] {
        let error = find_in(&with(&format!("SCOUT_DIST_SHARED_GPUS={nonsense}"), OPEN_MPI)).unwrap_err();
        assert!(
            error.message.contains(&format!("SCOUT_DIST_SHARED_GPUS is `{nonsense}`, expected a number from 1 on")),
            "{error:?}"
        );
    }
}

#[test]
fn ranks_of_one_host_meet_at_a_socket_and_others_over_tcp_with_a_token() {
    let tcp = |host: &str, port: u16, secret: Secret| Meeting::Tcp { host: host.to_string(), port, secret };
    let in_file = || Secret::InFile(PathBuf::from("keys/job.token"));
    let given = || Secret::Given("5e".to_string());
    let folder = Path::new("/tmp/scout-dist-1000/job-4711-0a");
    let slurm_port = 20_000 + (fnv("77.1") % 10_000) as u16;
    let over_tcp = "SCOUT_DIST_TRANSPORT=tcp SCOUT_DIST_TOKEN=5e";
    let cases: &[(String, Meeting)] = &[
        (String::new(), Meeting::Alone),
        (SBATCH.to_string(), Meeting::Alone),
        ("RANK=0 WORLD_SIZE=1 MASTER_PORT=29500".to_string(), Meeting::Alone),
        (OWN.to_string(), Meeting::Unix { socket: folder.join("meet.sock") }),
        (with("SCOUT_DIST_TRANSPORT=unix", OWN), Meeting::Unix { socket: folder.join("meet.sock") }),
        (with(over_tcp, OWN), Meeting::Loopback { publish: folder.join("address"), secret: given() }),
        (with(over_tcp, TORCHRUN), tcp("localhost", 41235, given())),
        (TORCHRUN_TWO_HOSTS.to_string(), tcp("gpu-01", 29401, in_file())),
        (TORCHRUN_STATIC.to_string(), tcp("10.0.0.1", 29500, given())),
        (with("MASTER_ADDR=a MASTER_PORT=5000", OPEN_MPI_TWO_HOSTS), tcp("a", 5000, in_file())),
        (with("MASTER_ADDR=a", OPEN_MPI_TWO_HOSTS), tcp("a", 29500, in_file())),
        (SRUN_TWO_HOSTS.to_string(), tcp("node03", slurm_port, in_file())),
        (with("MASTER_ADDR=b MASTER_PORT=5000", SRUN_TWO_HOSTS), tcp("b", 5000, in_file())),
    ];
    for (environment, expected) in cases {
        assert_eq!(find_in(environment).expect(environment).meeting, *expected, "{environment}");
    }
    assert!((20_000..30_000).contains(&slurm_port));
    assert_eq!(find_in(OWN).unwrap().place_file, Some(folder.join("rank-1.place")));
    assert_eq!(find_in(HYDRA).unwrap().place_file, None);
}

#[test]
fn ranks_of_one_job_find_one_socket_and_other_jobs_another() {
    let socket = |environment: &str| match find_in(environment).unwrap().meeting {
        Meeting::Unix { socket } => socket,
        other => panic!("{environment}: {other:?}"),
    };
    for (environment, one_of_them, other_job) in [
        (TORCHRUN, "RANK=0 LOCAL_RANK=0 ROLE_RANK=0", "TORCHELASTIC_RESTART_COUNT=1"),
        (TORCHRUN, "RANK=1 LOCAL_RANK=1 ROLE_RANK=1", "TORCHELASTIC_RUN_ID=9e6c"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_RANK=0", "PMIX_NAMESPACE=prterun-vm-24751@1"),
        (SRUN, "SLURM_PROCID=0 SLURM_LOCALID=0", "SLURM_STEP_ID=1"),
        (SRUN, "SLURM_PROCID=1 SLURM_LOCALID=1", "SLURM_JOB_ID=78"),
    ] {
        let own = socket(environment);
        assert_eq!(socket(&with(one_of_them, environment)), own, "{one_of_them}");
        assert_ne!(socket(&with(other_job, environment)), own, "{other_job}");
        assert!(own.starts_with("/tmp/scout-dist-1000") && own.as_os_str().len() < 100, "{}", own.display());
    }
    assert_eq!(socket(&with("PMI_RANK=0 MPI_LOCALRANKID=0 PMI_FD=9", HYDRA)), socket(HYDRA));
    // Where nothing else names the job, its ranks are the children of one process.
    let without_name = OPEN_MPI.replace("PMIX_NAMESPACE=prterun-vm-24750@1", "");
    let process = |parent_pid| Process { parent_pid, user_folder: PathBuf::from("/tmp/scout-dist-1000") };
    for launcher in [Launcher::Pmi, Launcher::Torchrun] {
        assert_ne!(key(launcher, &|_| None, &process(1)), key(launcher, &|_| None, &process(2)));
    }
    assert_ne!(socket(&without_name), socket(OPEN_MPI));
    assert_ne!(socket(&with("OMPI_MCA_ess_base_jobid=123", &without_name)), socket(&without_name));
    assert_ne!(socket(&without_name), socket(HYDRA));
}

#[test]
fn what_contradicts_itself_is_named_with_its_values() {
    let cases: &[(String, u8, &[&str])] = &[
        ("RANK=3".to_string(), 78, &["RANK is 3", "WORLD_SIZE is not set"]),
        ("WORLD_SIZE=8".to_string(), 78, &["RANK is not set", "WORLD_SIZE is 8"]),
        ("RANK=4 WORLD_SIZE=4 LOCAL_RANK=0".to_string(), 78, &["RANK is 4", "WORLD_SIZE is 4"]),
        ("RANK=0 WORLD_SIZE=0".to_string(), 78, &["RANK is 0", "WORLD_SIZE is 0"]),
        ("RANK=one WORLD_SIZE=2".to_string(), 78, &["RANK is `one`", "expected a number"]),
        ("RANK=-1 WORLD_SIZE=2".to_string(), 78, &["RANK is `-1`"]),
        ("RANK=1 WORLD_SIZE=2".to_string(), 78, &["LOCAL_RANK", "not set"]),
        (with("LOCAL_RANK=4", TORCHRUN), 78, &["LOCAL_RANK is 4", "LOCAL_WORLD_SIZE is 4"]),
        (with("LOCAL_WORLD_SIZE=5", TORCHRUN), 78, &["LOCAL_WORLD_SIZE is 5", "WORLD_SIZE is 4"]),
        (with("MASTER_PORT=x", TORCHRUN_TWO_HOSTS), 78, &["MASTER_PORT is `x`"]),
        (with("MASTER_PORT=65535", TORCHRUN_TWO_HOSTS), 78, &["MASTER_PORT is 65535"]),
        ("SCOUT_DIST_RANK=0".to_string(), 78, &["SCOUT_DIST_RANK is 0", "SCOUT_DIST_WORLD_SIZE is not set"]),
        (
            "SCOUT_DIST_RANK=0 SCOUT_DIST_WORLD_SIZE=2 SCOUT_DIST_LOCAL_RANK=0".to_string(),
            78,
            &["SCOUT_DIST_JOB_FOLDER"],
        ),
        ("OMPI_COMM_WORLD_SIZE=2".to_string(), 78, &["OMPI_COMM_WORLD_RANK is not set"]),
        ("PMI_RANK=0 PMI_SIZE=2".to_string(), 78, &["PMI_SIZE is 2", "MPI_LOCALRANKID"]),
        (with("SLURM_STEP_NUM_TASKS=many", SRUN), 78, &["SLURM_STEP_NUM_TASKS is `many`"]),
        (with("SLURM_STEP_NODELIST=node[", SRUN_TWO_HOSTS), 78, &["SLURM_STEP_NODELIST is `node[`"]),
        (OPEN_MPI_TWO_HOSTS.to_string(), 78, &["Open MPI", "several hosts", "MASTER_ADDR"]),
        (with("SCOUT_DIST_TRANSPORT=udp", OWN), 78, &["SCOUT_DIST_TRANSPORT is `udp`", "`unix` or `tcp`"]),
        (with("SCOUT_DIST_TRANSPORT=unix", TORCHRUN_TWO_HOSTS), 78, &["SCOUT_DIST_TRANSPORT is `unix`", "16 ranks"]),
        (with("SCOUT_DIST_TRANSPORT=tcp", TORCHRUN), 77, &["SCOUT_DIST_TOKEN_FILE", "SCOUT_DIST_TOKEN is set"]),
        (with("SCOUT_DIST_TOKEN_FILE=", SRUN_TWO_HOSTS), 77, &["SCOUT_DIST_TOKEN_FILE", "SCOUT_DIST_TOKEN is set"]),
    ];
    for (environment, code, parts) in cases {
        let mistake = find_in(environment).expect_err(environment);
        assert_eq!(mistake.code.code(), *code, "{environment}: {mistake}");
        for part in *parts {
            assert!(mistake.message.contains(part), "{environment}: {mistake} does not say `{part}`");
        }
    }
}

#[test]
fn an_address_of_version_6_keeps_its_port_apart() {
    let token = "5e".repeat(32);
    for (host, expected) in [("gpu-01", "gpu-01:29401"), ("10.0.0.1", "10.0.0.1:29401"), ("fe80::1", "[fe80::1]:29401")]
    {
        let more = format!("MASTER_ADDR={host} SCOUT_DIST_TOKEN_FILE= SCOUT_DIST_TOKEN={token}");
        match find_in(&with(&more, TORCHRUN_TWO_HOSTS)).unwrap().meeting_place().unwrap() {
            Some(MeetingPlace::Tcp { address, .. }) => assert_eq!(address, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_token_is_shown_to_nobody() {
    let ranks = find_in(&with("SCOUT_DIST_TRANSPORT=tcp SCOUT_DIST_TOKEN=5ec2e7", TORCHRUN)).unwrap();
    assert!(!format!("{ranks:?}").contains("5ec2e7"), "{ranks:?}");
}

#[test]
fn the_name_of_a_socket_is_the_same_in_every_version() {
    // Published values of FNV-1a.
    assert_eq!(fnv(""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv("foobar"), 0x8594_4171_f739_67e8);
    assert_eq!(key(Launcher::OpenMpi, &|_| Some("j".to_string()), &Process::this()), "Open MPI: j");
    assert_eq!(find_in(OPEN_MPI).unwrap().seat.rank, Rank(2));
}

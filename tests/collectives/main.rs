//! One list of cases for every way in which ranks exchange buffers. A backend without a row in `BACKENDS` is no backend;
//! MPI, whose ranks are processes, runs the same list under `mpirun`.

mod attack;
mod backends;
mod cases;
mod ends;
mod faults;
#[cfg(feature = "mpi")]
mod mpi;

use std::time::Duration;

use backends::{BACKENDS, on_every_rank};

const WORLDS: [usize; 5] = [1, 2, 3, 4, 8];
const PATIENT: Duration = Duration::from_secs(60);

/// Runs a case over all backends of one process. What is printed last before a failure says where it failed.
fn check(case: cases::Case) {
    for world in WORLDS {
        for backend in BACKENDS {
            println!("{backend}, {world} ranks");
            on_every_rank(std::slice::from_ref(backend), world, PATIENT, |comm| case(&*comm));
        }
    }
}

/// Each name is a test over the backends of one process, and a row of the list for those of several.
macro_rules! list {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "mpi")]
        const CASES: &[(&str, cases::Case)] = &[$((stringify!($name), cases::$name)),+];

        $(#[test]
        fn $name() {
            check(cases::$name);
        })+
    };
}

list![
    gathers_lay_shards_in_rank_order_for_every_element_type,
    sums_are_taken_in_rank_order_to_the_last_bit,
    every_rank_can_be_the_one_that_all_listen_to,
    long_mixed_sequences_may_be_waited_for_in_any_order,
    buffers_longer_than_any_backend_moves_at_once_arrive_whole,
    buffers_that_do_not_fit_together_are_refused_before_anything_is_sent,
];

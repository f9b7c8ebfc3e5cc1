//! One rank's seat in a job: the way to the others, and where it says what it is doing.

use std::sync::Arc;
use std::time::Duration;

use scout_core::{Mesh, Whereabouts};

use crate::communicator::Communicator;
use crate::local::local_group;

#[derive(Clone)]
pub struct Job {
    pub comm: Arc<dyn Communicator>,
    pub whereabouts: Arc<Whereabouts>,
}

impl Job {
    /// A seat whose whereabouts nobody else reads.
    pub fn over(comm: impl Communicator + 'static) -> Job {
        Job { comm: Arc::new(comm), whereabouts: Arc::new(Whereabouts::new(None)) }
    }

    /// A job of one rank. It waits for nobody; `deadline` is set all the same, because every wait has one.
    pub fn alone(deadline: Duration) -> Job {
        Job::over(local_group(1, deadline).pop().expect("a group of one has one member"))
    }

    pub fn mesh(&self) -> Mesh {
        self.comm.mesh()
    }
}

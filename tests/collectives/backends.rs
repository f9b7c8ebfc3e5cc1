//! The backends under test, and a way to run the same body on every rank of each.

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use scout_comm::{
    Approach, Communicator, Control, Ending, Introduction, Limits, MeetingPlace, Seat, Through, local_group, meet,
};
use scout_core::{Mesh, Phase, Rank, Token, Whereabouts};

/// How one rank of `mesh` gets its seat; `folder` and `token` are the same for all of them.
type Join = fn(mesh: Mesh, folder: &Path, token: &Token, hang_limit: Duration) -> Member;

#[derive(Clone, Copy)]
pub enum Backend {
    Threads,
    Met(&'static str, Join),
}

pub const BACKENDS: &[Backend] = &[Backend::Threads, Backend::Met("unix", unix), Backend::Met("tcp", tcp)];
/// Those whose ranks share no memory.
pub const STREAMS: &[Backend] = &[Backend::Met("unix", unix), Backend::Met("tcp", tcp)];

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Threads => f.write_str("threads"),
            Backend::Met(name, _) => f.write_str(name),
        }
    }
}

/// A rank's seat. Dropped, it leaves in peace.
pub struct Member {
    // Invariant: there until dropped.
    comm: Option<Arc<dyn Communicator>>,
    /// Ranks that are threads around one board have none.
    control: Option<Control>,
    whereabouts: Arc<Whereabouts>,
}

impl Member {
    pub fn seated(Seat { job, control, .. }: Seat) -> Member {
        job.whereabouts.enter_step(Phase::Reduce, 1);
        Member { comm: Some(job.comm), control: Some(control), whereabouts: job.whereabouts }
    }

    pub fn control(&self) -> &Control {
        self.control.as_ref().expect("this backend has a control plane")
    }

    pub fn whereabouts(&self) -> &Whereabouts {
        &self.whereabouts
    }

    /// Ends without a goodbye, as a process that was killed.
    pub fn die(mut self) {
        self.control = None;
    }
}

impl Deref for Member {
    type Target = dyn Communicator;

    fn deref(&self) -> &(dyn Communicator + 'static) {
        self.comm.as_deref().expect("there until dropped")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // The control plane watches until the last part is written.
        self.comm = None;
        if let Some(control) = self.control.take() {
            control.leave();
        }
    }
}

pub fn introduction(mesh: Mesh) -> Introduction {
    Introduction {
        version: "1.2.3".to_string(),
        config_digest: [1; 32],
        model_digest: [2; 32],
        host: "here".to_string(),
        pid: 1000 + mesh.rank().0 as u32,
    }
}

/// Ranks are threads here, so nothing may end the process.
pub fn limits(hang_limit: Duration) -> Limits {
    let ending = Ending::calling(|_| {}, |_| {});
    Limits { init_timeout: Duration::from_secs(60), hang_limit: Some(hang_limit), ending }
}

fn unix(mesh: Mesh, folder: &Path, _: &Token, hang_limit: Duration) -> Member {
    seat(MeetingPlace::Unix { socket: folder.join("job/meet.sock") }, mesh, hang_limit)
}

fn tcp(mesh: Mesh, folder: &Path, token: &Token, hang_limit: Duration) -> Member {
    seat(MeetingPlace::Loopback { publish: folder.join("address"), token: token.clone() }, mesh, hang_limit)
}

fn seat(place: MeetingPlace, mesh: Mesh, hang_limit: Duration) -> Member {
    let approach = approach(place, mesh, limits(hang_limit));
    Member::seated(meet(&approach, Arc::new(Whereabouts::new(None))).unwrap())
}

pub fn approach(place: MeetingPlace, mesh: Mesh, limits: Limits) -> Approach {
    Approach { place, mesh, introduction: introduction(mesh), limits, through: Through::Streams }
}

/// What each rank's body returned, in rank order, for each backend. The hang limit is also that of threads' waits.
pub fn on_every_rank<R: Send>(
    backends: &[Backend],
    size: usize,
    hang_limit: Duration,
    body: impl Fn(Member) -> R + Sync,
) -> Vec<(&'static str, Vec<R>)> {
    let run = |backend: &Backend| match backend {
        Backend::Threads => {
            let members: Vec<Member> = local_group(size, hang_limit)
                .into_iter()
                .map(|comm| Member {
                    comm: Some(Arc::new(comm)),
                    control: None,
                    whereabouts: Arc::new(Whereabouts::new(None)),
                })
                .collect();
            ("threads", on_threads(members, &body))
        }
        Backend::Met(name, join) => {
            let folder = tempfile::tempdir().unwrap();
            let token = Token::generate().unwrap();
            let meshes: Vec<Mesh> = (0..size).map(|rank| Mesh::new(Rank(rank), size).unwrap()).collect();
            (*name, on_threads(meshes, &|mesh| body(join(mesh, folder.path(), &token, hang_limit))))
        }
    };
    backends.iter().map(run).collect()
}

/// Calls `body` with each of `ranks`, each on a thread of its own.
pub fn on_threads<T: Send, R: Send>(ranks: Vec<T>, body: &(dyn Fn(T) -> R + Sync)) -> Vec<R> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || body(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

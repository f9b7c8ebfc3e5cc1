//! Ranks that are threads of the test, around one board or with streams between them as processes have.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use scout_comm::{Approach, Ending, Introduction, Job, Limits, MeetingPlace, Seat, Through, local_group, meet};
use scout_core::{Mesh, Rank, Whereabouts};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// One board, one memory.
    Local,
    /// A Unix stream between any two ranks.
    Streams,
}

/// Longer than any of these trainings takes on a busy machine; a rank that fails leaves the others waiting this long.
const LIMIT: Duration = Duration::from_secs(100);

/// What each rank's body returned, in rank order.
pub fn on_every_rank<R: Send>(backend: Backend, world_size: usize, body: impl Fn(&Job) -> R + Sync) -> Vec<R> {
    // Ranks meet only where nobody else of this host may look.
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
    let seats: Vec<Join> = match backend {
        Backend::Local => {
            let jobs = local_group(world_size, LIMIT).into_iter().map(Job::over);
            jobs.map(|job| Box::new(move |_: &Path| Member { job, control: None }) as Join).collect()
        }
        Backend::Streams => {
            let meshes = (0..world_size).map(|rank| Mesh::new(Rank(rank), world_size).unwrap());
            meshes.map(|mesh| Box::new(move |folder: &Path| met(folder, mesh)) as Join).collect()
        }
    };
    std::thread::scope(|scope| {
        let (body, folder) = (&body, folder.path());
        let spawn = |join: Join| {
            scope.spawn(move || {
                let Member { job, control } = join(folder);
                let result = body(&job);
                // Streams are written empty before the rank says goodbye.
                drop(job);
                control.into_iter().for_each(scout_comm::Control::leave);
                result
            })
        };
        let ranks: Vec<_> = seats.into_iter().map(spawn).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

type Join = Box<dyn FnOnce(&Path) -> Member + Send>;

struct Member {
    job: Job,
    control: Option<scout_comm::Control>,
}

fn met(folder: &Path, mesh: Mesh) -> Member {
    let place = MeetingPlace::Unix { socket: folder.join("meet.sock") };
    let introduction = Introduction {
        version: "1".to_string(),
        config_digest: [1; 32],
        model_digest: [2; 32],
        host: "here".to_string(),
        pid: mesh.rank().0 as u32,
    };
    // Ranks are threads here, so nothing may end the process.
    let limits = Limits { init_timeout: LIMIT, hang_limit: Some(LIMIT), ending: Ending::calling(|_| {}, |_| {}) };
    let approach = Approach { place, mesh, introduction, limits, through: Through::Streams };
    let Seat { job, control, .. } = meet(&approach, Arc::new(Whereabouts::new(None))).unwrap();
    Member { job, control: Some(control) }
}

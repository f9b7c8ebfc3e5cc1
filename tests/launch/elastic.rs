//! What torchrun does, as far as a rank can see it: an agent listens on the master's port and starts the ranks of this
//! host with torchrun's variables. Neither Python nor torch takes part.

use std::net::TcpListener;
use std::process::Command;

use crate::started::Started;

pub struct Agent {
    // Held while the job runs, as torchrun's own store is: a rank that wanted this port could not have it.
    store: TcpListener,
}

impl Agent {
    pub fn new() -> Agent {
        Agent { store: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    /// A job of `world` ranks, of which only `present` are started, each by its own command.
    pub fn start(&self, world: usize, present: &[usize], mut command: impl FnMut(usize) -> Command) -> Started {
        let port = self.store.local_addr().unwrap().port().to_string();
        let world = world.to_string();
        let commands = present.iter().map(|rank| {
            let rank_text = rank.to_string();
            let mut command = command(*rank);
            command.envs([
                ("RANK", rank_text.as_str()),
                ("LOCAL_RANK", &rank_text),
                ("GROUP_RANK", "0"),
                ("ROLE_RANK", &rank_text),
                ("WORLD_SIZE", &world),
                ("LOCAL_WORLD_SIZE", &world),
                ("GROUP_WORLD_SIZE", "1"),
                ("ROLE_WORLD_SIZE", &world),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
                ("TORCHELASTIC_RESTART_COUNT", "0"),
                ("TORCHELASTIC_MAX_RESTARTS", "0"),
                ("TORCHELASTIC_RUN_ID", &format!("run-{port}")),
                ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ]);
            command
        });
        Started::several(commands.collect())
    }

    /// Whether some rank knocked at the agent's door, where ours have no business.
    pub fn was_called(&self) -> bool {
        self.store.set_nonblocking(true).unwrap();
        self.store.accept().is_ok()
    }
}

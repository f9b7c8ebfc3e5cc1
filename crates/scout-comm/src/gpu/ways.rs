//! The ways of gathering that there are. Each needs memory of its own kind: what other processes map must be a plain
//! allocation, and what NCCL's copy engines fill must be one of its windows. So a way is chosen before there is memory.

use std::fmt;
use std::sync::Arc;

use scout_core::ByteCount;
use scout_device::Purpose;
use scout_device::cuda::{Arena, CudaDevice, Nccl, Settings};

use super::exchange;
use super::nccl;
use crate::communicator::Communicator;
use crate::error::{CommError, Result};

/// Who moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatherWay {
    /// Copy engines write each rank's part to the others.
    Push,
    /// Copy engines fetch the parts of the others.
    Pull,
    /// NCCL, which leaves the copying to copy engines.
    NcclByCopy,
    /// NCCL's kernels.
    Nccl,
}

/// What a job's ranks on GPUs gather with: a device, and how to talk to the others on the host.
#[derive(Clone, Copy)]
pub struct Ranks<'a> {
    pub device: &'a Arc<CudaDevice>,
    pub comm: &'a dyn Communicator,
}

/// Where parts lie and where they become whole units.
pub struct GatherMemory {
    pub parts: Arena,
    pub ring: Arena,
    /// What gathers between them, where that is NCCL.
    pub(super) nccl: Option<Arc<Nccl>>,
}

impl fmt::Display for GatherWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GatherWay::Push => "copy engines, pushing",
            GatherWay::Pull => "copy engines, pulling",
            GatherWay::NcclByCopy => "NCCL's copy engines",
            GatherWay::Nccl => "NCCL's kernels",
        })
    }
}

impl GatherWay {
    /// Whether own parts can stay where they are. NCCL knows only units of which every part is there.
    pub fn brings_others_alone(self) -> bool {
        matches!(self, GatherWay::Push | GatherWay::Pull)
    }

    /// Asks the driver for both arenas, of so many bytes. Every rank calls it with the same numbers; all fail where one
    /// does, with its reason.
    pub fn memory(self, ranks: Ranks, parts: ByteCount, ring: ByteCount) -> Result<GatherMemory> {
        let Ranks { device, comm } = ranks;
        // A communicator of its own: NCCL keeps the order of all work of one, and sums would hold gathers up.
        let connect = |zero_cta| {
            let settings = Settings { zero_cta, ..Settings::default() };
            // Where it cannot, other ways still may.
            exchange::all_can(comm, "NCCL", nccl::connect(device, comm, settings)).map(|nccl| Some(Arc::new(nccl)))
        };
        let nccl = match self {
            GatherWay::NcclByCopy => connect(true)?,
            GatherWay::Nccl => connect(false)?,
            GatherWay::Push | GatherWay::Pull => None,
        };
        let (parts_home, ring_home) = (device.compute(), device.copy());
        let asked = match &nccl {
            Some(nccl) if self == GatherWay::NcclByCopy => nccl
                .arena("weights", parts, parts_home)
                .and_then(|parts| Ok((parts, nccl.arena("gathered units", ring, ring_home)?))),
            _ => device
                .arena("weights", Purpose::Shard, parts, parts_home)
                .and_then(|parts| Ok((parts, device.arena("gathered units", Purpose::Gathered, ring, ring_home)?))),
        };
        let (parts, ring) = match self {
            // Windows are not to be had everywhere; plain memory is.
            GatherWay::NcclByCopy => exchange::all_can(comm, "NCCL's copy engines", asked).inspect_err(|error| {
                // All ranks go on without it, unless one of them is gone.
                if matches!(error, CommError::NoWay { .. }) {
                    nccl.iter().for_each(|nccl| nccl.leave());
                }
            })?,
            _ => exchange::must_agree(comm, asked)?,
        };
        Ok(GatherMemory { parts, ring, nccl })
    }
}

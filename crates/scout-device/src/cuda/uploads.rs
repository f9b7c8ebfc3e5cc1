//! Where the device keeps the pinned memory of small tensors on their way to it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_core::ByteCount;

use super::context::Context;
use super::pinned::{Copying, Pinned};
use crate::Result;

/// The least that one piece of pinned memory holds: the index of 65,536 documents, or 262,144 tokens.
const ROOM: ByteCount = ByteCount(1 << 20);
/// Pieces of one size, all made when the first is wanted: how far the host runs ahead differs from step to step, and
/// none of them may ask the driver for memory. A batch takes about ten, so that a few of them are ahead.
const PIECES: usize = 32;

/// Pinned memory by size.
#[derive(Default)]
pub(super) struct Uploads(Mutex<HashMap<usize, Pieces>>);

struct Pieces {
    spare: Vec<Pinned>,
    /// The oldest first. They are queued on one stream, so that is the first to be done.
    under_way: VecDeque<Copying>,
}

impl Uploads {
    /// Pinned memory of at least `bytes`, and how much it is. With all pieces under way, waits for the oldest, but no
    /// longer than `patience`.
    pub(super) fn take(&self, context: &Arc<Context>, patience: Duration, bytes: usize) -> Result<(Pinned, usize)> {
        let room = bytes.next_power_of_two().max(ROOM.0 as usize);
        let mut uploads = self.0.lock().expect("no holder of this lock panics");
        let pieces = match uploads.entry(room) {
            Entry::Occupied(pieces) => pieces.into_mut(),
            Entry::Vacant(place) => {
                let spare = (0..PIECES).map(|_| Pinned::zeros(context, room)).collect::<Result<_>>()?;
                place.insert(Pieces { spare, under_way: VecDeque::new() })
            }
        };
        if let Some(pinned) = pieces.spare.pop() {
            return Ok((pinned, room));
        }
        let oldest = pieces.under_way.pop_front();
        drop(uploads);
        match oldest {
            Some(oldest) => Ok((oldest.wait(patience)?, room)),
            // Other threads are about to send them all.
            None => Ok((Pinned::zeros(context, room)?, room)),
        }
    }

    /// Keeps the memory of `copying`, which has `room` bytes, for a later copy.
    pub(super) fn put(&self, copying: Copying, room: usize) {
        let mut uploads = self.0.lock().expect("no holder of this lock panics");
        if let Some(pieces) = uploads.get_mut(&room) {
            pieces.under_way.push_back(copying);
        }
    }
}

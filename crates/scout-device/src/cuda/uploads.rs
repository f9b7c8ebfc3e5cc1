//! Where the device keeps the pinned memory of small tensors on their way to it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_core::ByteCount;

use super::context::Context;
use super::pinned::{Copying, Pinned};
use crate::Result;

/// The least that one piece of pinned memory holds: the index of 65,536 documents, or 262,144 tokens.
const ROOM: ByteCount = ByteCount(1 << 20);

/// Pinned memory of copies that are done, or soon will be. A steady step that sends no more at a time than an earlier
/// one did finds all it needs here.
#[derive(Default)]
pub(super) struct Uploads(Mutex<Vec<Upload>>);

struct Upload {
    copying: Copying,
    room: usize,
}

impl Uploads {
    /// Pinned memory of at least `bytes`, from a copy that is done, or fresh; and how much it is.
    pub(super) fn take(&self, context: &Arc<Context>, patience: Duration, bytes: usize) -> Result<(Pinned, usize)> {
        let mut uploads = self.0.lock().expect("no holder of this lock panics");
        for index in 0..uploads.len() {
            if uploads[index].room >= bytes && uploads[index].copying.done().is_past()? {
                let Upload { copying, room } = uploads.swap_remove(index);
                return Ok((copying.wait(patience)?, room));
            }
        }
        let room = bytes.next_power_of_two().max(ROOM.0 as usize);
        Ok((Pinned::zeros(context, room)?, room))
    }

    /// Keeps the memory of `copying`, which has `room` bytes, for a later copy.
    pub(super) fn put(&self, copying: Copying, room: usize) {
        self.0.lock().expect("no holder of this lock panics").push(Upload { copying, room });
    }
}

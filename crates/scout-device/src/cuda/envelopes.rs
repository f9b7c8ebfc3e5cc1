//! Where the device keeps the pinned memory of short messages to the host.

use std::sync::{Arc, Mutex};

use scout_core::ByteCount;

use super::context::Context;
use super::pinned::Pinned;
use crate::Result;

/// Pinned memory of messages that were read. A steady step sends no more messages at a time than an earlier one did, and
/// then finds all it needs here.
#[derive(Default)]
pub(super) struct Envelopes(Mutex<Vec<Pinned>>);

impl Envelopes {
    /// Room for each message: 1,024 numbers.
    pub(super) const ROOM: ByteCount = ByteCount(4096);

    pub(super) fn take(&self, context: &Arc<Context>) -> Result<Pinned> {
        let spare = self.0.lock().expect("no holder of this lock panics").pop();
        spare.map_or_else(|| Pinned::zeros(context, Envelopes::ROOM.0 as usize), Ok)
    }

    pub(super) fn give(&self, pinned: Pinned) {
        self.0.lock().expect("no holder of this lock panics").push(pinned);
    }
}

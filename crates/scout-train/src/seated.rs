//! A trainer that others may be reaching into, and how it goes.

use std::ops::{Deref, DerefMut};

use scout_device::Device;

use crate::error::Result;
use crate::trainer::Trainer;

/// A trainer among others, until it leaves. On a GPU, a trainer that failed ends with its process: others may be reaching into
/// its memory, and to free it waits for streams that wait for others.
pub struct Seated {
    // None while it is dropped.
    trainer: Option<Trainer>,
    has_left: bool,
}

impl Seated {
    /// The end of all gathering. On GPUs ranks reach into each other's memory, so nobody frees any before all of them have
    /// come here; every rank calls it.
    pub fn leave(&mut self) -> Result<()> {
        self.end_gathering()?;
        self.has_left = true;
        Ok(())
    }
}

impl From<Trainer> for Seated {
    fn from(trainer: Trainer) -> Seated {
        Seated { trainer: Some(trainer), has_left: false }
    }
}

impl Deref for Seated {
    type Target = Trainer;

    fn deref(&self) -> &Trainer {
        self.trainer.as_ref().expect("none only while it is dropped")
    }
}

impl DerefMut for Seated {
    fn deref_mut(&mut self) -> &mut Trainer {
        self.trainer.as_mut().expect("none only while it is dropped")
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        match (&self.device, self.has_left) {
            (Device::Cuda(_), false) => std::mem::forget(self.trainer.take()),
            _ => drop(self.trainer.take()),
        }
    }
}

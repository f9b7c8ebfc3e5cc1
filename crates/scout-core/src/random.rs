//! Bytes that nobody can guess, from the operating system: good enough for secrets.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness(#[source] io::Error);

pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            getrandom(&mut bytes[filled..], GetRandomFlags::empty()).map_err(|errno| NoRandomness(errno.into()))?;
    }
    Ok(bytes)
}

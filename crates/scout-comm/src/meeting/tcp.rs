//! Meeting over TCP: at an address that all know, or at a port of this host that rank 0 writes into a file.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::door::listener::Listener;
use crate::error::{CommError, Result};

/// No single attempt to connect takes longer; the next one may reach a host that has come up in between.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Listens at `address` and nowhere else.
pub(crate) fn listen(address: &str) -> Result<Listener> {
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Listener::Tcp(listener)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(CommError::InUse { address: address.to_string() }),
        Err(cause) => Err(CommError::Place { act: "listen at", place: address.to_string(), cause }),
    }
}

/// Listens at some port of `host`.
pub(crate) fn listen_somewhere(host: IpAddr) -> Result<Listener> {
    listen(&SocketAddr::new(host, 0).to_string())
}

/// Writes where rank 0 listens into `path`, whole or not at all.
pub(crate) fn publish(address: &str, path: &Path) -> Result<()> {
    let failed = |cause| CommError::Place { act: "write", place: path.display().to_string(), cause };
    let mut unfinished = path.as_os_str().to_os_string();
    unfinished.push(format!(".{}", std::process::id()));
    fs::write(&unfinished, format!("{address}\n")).map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)
}

/// What rank 0 has published so far. A file of another job's, left behind, leads nowhere and is read again.
pub(crate) fn published(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_string())
}

/// One attempt to reach `address`, not beyond `until`.
pub(crate) fn connect(address: &str, until: Instant) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now()).min(ATTEMPT);
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

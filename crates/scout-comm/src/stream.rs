//! An open connection to one peer, over TCP or over a Unix socket. Every wait of it has a deadline.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) enum PeerStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl PeerStream {
    pub(crate) fn try_clone(&self) -> io::Result<PeerStream> {
        Ok(match self {
            PeerStream::Tcp(stream) => PeerStream::Tcp(stream.try_clone()?),
            PeerStream::Unix(stream) => PeerStream::Unix(stream.try_clone()?),
        })
    }

    /// Small frames go out at once, and a write that nobody reads fails after `deadline`.
    pub(crate) fn set_write_deadline(&self, deadline: Duration) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(deadline))
            }
            PeerStream::Unix(stream) => stream.set_write_timeout(Some(deadline)),
        }
    }

    /// `None` waits for as long as the connection lives.
    pub(crate) fn set_read_deadline(&self, deadline: Option<Duration>) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.set_read_timeout(deadline),
            PeerStream::Unix(stream) => stream.set_read_timeout(deadline),
        }
    }

    pub(crate) fn set_nonblocking(&self, is_nonblocking: bool) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.set_nonblocking(is_nonblocking),
            PeerStream::Unix(stream) => stream.set_nonblocking(is_nonblocking),
        }
    }

    /// Fills `buffer`, however slowly it comes, but not later than `until`.
    pub(crate) fn read_until(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.set_read_deadline(Some(left))?;
            match self.read(&mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                // The loop looks at the clock itself.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        self.set_read_deadline(None)
    }

    /// Whether a process of this user is at the other end; over TCP that is proved otherwise.
    pub(crate) fn is_ours(&self) -> bool {
        match self {
            PeerStream::Tcp(_) => true,
            PeerStream::Unix(stream) => {
                let peer = rustix::net::sockopt::socket_peercred(stream);
                peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
            }
        }
    }

    /// The peer reads the end of the stream; this end may go on reading.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    /// Ends both directions, here and for whoever is blocked in them on another thread.
    pub(crate) fn end(&self) {
        // A stream that the peer has ended already needs no second end.
        let _ = self.shutdown(Shutdown::Both);
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.shutdown(how),
            PeerStream::Unix(stream) => stream.shutdown(how),
        }
    }
}

impl AsFd for PeerStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            PeerStream::Tcp(stream) => stream.as_fd(),
            PeerStream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for PeerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            PeerStream::Tcp(stream) => stream.read(buffer),
            PeerStream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for PeerStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            PeerStream::Tcp(stream) => stream.write(buffer),
            PeerStream::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.flush(),
            PeerStream::Unix(stream) => stream.flush(),
        }
    }
}

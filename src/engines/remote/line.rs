//! The connection to one server, which gives way at once: looking up the name, connecting, sending and waiting are all
//! left within a tick when the job is cancelled or its time is over. ureq does the rest of HTTP and TLS above it.
//!
//! Never speaks in clear with an address beyond this network unless the settings allow it; that is looked at after the
//! name was looked up, because a name says nothing. Uses what ureq calls `unversioned`: a new version may want changes.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use ureq::config::Config;
use ureq::{
    http::Uri,
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport},
    },
};

use crate::{base::lock, engines::Cancel, settings::is_private};

/// How long anything waits before it looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(50);
/// More addresses than a server of one name has; ureq holds no more than 16.
const MAX_ADDRESSES: usize = 8;

/// Why a line stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stop {
    #[error("nobody waits for it any more")]
    Cancelled,
    #[error("its time is over")]
    Late,
}

/// A server is reached only in clear, at an address where others listen.
#[derive(Debug, thiserror::Error)]
#[error("{0} is beyond this network")]
pub(super) struct Exposed(pub(super) SocketAddr);

/// There is no connection, so that nothing was asked.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Unreached(#[from] io::Error);

impl Unreached {
    fn over(error: io::Error) -> ureq::Error {
        ureq::Error::Other(Box::new(Unreached(error)))
    }
}

/// What the connections of one engine are used for now. Kept ones outlive the job that opened them.
#[derive(Debug)]
pub(super) struct Watch(Mutex<(Cancel, Instant)>);

impl Watch {
    pub(super) fn new() -> Watch {
        Watch(Mutex::new((Cancel::default(), Instant::now())))
    }

    pub(super) fn begin(&self, cancel: &Cancel, deadline: Instant) {
        *lock(&self.0) = (cancel.clone(), deadline);
    }

    pub(super) fn stop(&self) -> Option<Stop> {
        let (cancel, deadline) = &*lock(&self.0);
        if cancel.is_cancelled() { Some(Stop::Cancelled) } else { (Instant::now() >= *deadline).then_some(Stop::Late) }
    }

    pub(super) fn left(&self) -> Duration {
        lock(&self.0).1.saturating_duration_since(Instant::now())
    }

    /// Sleeps, unless there is a reason to stop.
    pub(super) fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while self.stop().is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    fn check(&self) -> io::Result<()> {
        self.stop().map_or(Ok(()), |stop| Err(io::Error::new(io::ErrorKind::TimedOut, stop)))
    }

    /// Work that nothing can interrupt, on a thread of its own; left to itself when there is a reason to stop. It must
    /// end by itself.
    fn wait_for<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let until = Instant::now() + limit;
        let (done, result) = mpsc::sync_channel(1);
        // Nobody may be there to hear it any more.
        std::thread::Builder::new().name("remote-connect".to_owned()).spawn(move || drop(done.send(work())))?;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within connect_timeout_secs"));
            }
            match result.recv_timeout(left.min(TICK)) {
                Ok(result) => return result,
                Err(mpsc::RecvTimeoutError::Timeout) => (),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(io::Error::other("connecting crashed")),
            }
        }
    }
}

/// Reaches one server, whatever address ureq believes it asks.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) host: String,
    pub(super) port: u16,
    /// In clear, and not allowed beyond this network.
    pub(super) only_private: bool,
    pub(super) connect_timeout: Duration,
    pub(super) watch: Arc<Watch>,
}

impl Resolver for Line {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let place = (self.host.clone(), self.port);
        let look_up = move || Ok(place.to_socket_addrs()?.take(MAX_ADDRESSES).collect::<Vec<_>>());
        let found = self.watch.wait_for(self.connect_timeout, look_up).map_err(Unreached::over)?;
        let mut addresses = self.empty();
        for address in found {
            addresses.push(address);
        }
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }
}

impl Connector for Line {
    type Out = Wire;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Wire>, ureq::Error> {
        let until = Instant::now() + self.connect_timeout;
        let mut trouble = ureq::Error::HostNotFound;
        let count = details.addrs.len() as u32;
        for (tried, address) in (0..).zip(details.addrs.iter().copied()) {
            if self.only_private && !is_private(address.ip()) {
                trouble = ureq::Error::Other(Box::new(Exposed(address)));
                continue;
            }
            // An address that swallows everything must leave time for the next one.
            let limit = until.saturating_duration_since(Instant::now()) / (count - tried).max(1);
            let connect = move || TcpStream::connect_timeout(&address, limit.max(Duration::from_millis(1)));
            match self.watch.wait_for(limit, connect) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(TICK))?;
                    stream.set_write_timeout(Some(TICK))?;
                    let buffers =
                        LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
                    return Ok(Some(Wire { stream, buffers, watch: Arc::clone(&self.watch) }));
                }
                Err(error) => trouble = Unreached::over(error),
            }
            self.watch.check().map_err(Unreached::over)?;
        }
        Err(trouble)
    }
}

#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    buffers: LazyBuffers,
    watch: Arc<Watch>,
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let mut rest = &self.buffers.output()[..amount];
        while !rest.is_empty() {
            self.watch.check()?;
            match (&self.stream).write(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(sent) => rest = &rest[sent..],
                Err(error) if only_a_tick(&error) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        loop {
            self.watch.check()?;
            match (&self.stream).read(self.buffers.input_append_buf()) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    return Ok(amount > 0);
                }
                Err(error) if only_a_tick(&error) => (),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Silent and not ended: what comes before anything was asked is no answer.
    fn is_open(&mut self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return false;
        }
        let silent = matches!(self.stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        silent && self.stream.set_nonblocking(false).is_ok()
    }
}

fn only_a_tick(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

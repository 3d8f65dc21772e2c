//! A client's TCP connection: its place among `server.max_connections`, and the limit on how long it may refuse
//! to take what is sent to it. Serves HTTP and, after the upgrade, the WebSocket.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep, timeout},
};

/// Enough for a client to notice that nobody reads on; short, because it keeps a place.
const LINGER: Duration = Duration::from_secs(2);

/// Dropping it closes the connection and frees its place.
pub(crate) struct Connection {
    tcp: TcpStream,
    send_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    pub(crate) fn new(tcp: TcpStream, send_timeout: Duration, place: OwnedSemaphorePermit) -> Connection {
        Connection { tcp, send_timeout, stalled: None, _place: place }
    }

    pub(crate) async fn linger(&mut self) {
        linger(&mut self.tcp, LINGER).await;
    }

    /// Writes what is pending is worth waiting for as long as something of it is taken within the timeout.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let send_timeout = self.send_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(send_timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

/// Says goodbye and lets the client read it: closing with unread bytes would reset the connection, and the last
/// answer (a 413, a 503, a close frame) would be lost on its way.
pub(crate) async fn linger(tcp: &mut TcpStream, limit: Duration) {
    let drain = async {
        tcp.shutdown().await?;
        let mut unread = [0; 4096];
        while tcp.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    match timeout(limit, pin!(drain)).await {
        // Closed by the client, reset, or still sending: nothing more can be done for it.
        Ok(Ok(()) | Err(_)) | Err(_) => (),
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, parts);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.tcp).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

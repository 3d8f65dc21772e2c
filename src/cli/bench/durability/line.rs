//! The line between client and daemon, which can be cut: a small relay. A cut drops both ends as they are, with whatever
//! is under way.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::base::{Error, Result, lock};

pub(super) struct Line {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// How many connections stand.
    standing: watch::Receiver<usize>,
}

struct State {
    to: SocketAddr,
    cut: CancellationToken,
}

impl Line {
    /// Relays until the runtime ends.
    pub(super) async fn open(to: SocketAddr) -> Result<Line> {
        let failed = |error| Error::internal("no port for the line").cause(error);
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let state = Arc::new(Mutex::new(State { to, cut: CancellationToken::new() }));
        let theirs = Arc::clone(&state);
        let (count, standing) = watch::channel(0);
        let count = Arc::new(count);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, cut) = {
                    let state = lock(&theirs);
                    (state.to, state.cut.clone())
                };
                tokio::spawn(relay(client, to, cut, Arc::clone(&count)));
            }
        });
        Ok(Line { address, state, standing })
    }

    /// Everything that is connected is cut off, as soon as something is. False: nothing was in time.
    pub(super) async fn cut(&self, until: Instant) -> bool {
        let mut standing = self.standing.clone();
        let stands = matches!(timeout_at(until, standing.wait_for(|count| *count > 0)).await, Ok(Ok(_)));
        std::mem::take(&mut lock(&self.state).cut).cancel();
        stands
    }

    pub(super) fn lead_to(&self, to: SocketAddr) {
        lock(&self.state).to = to;
    }
}

async fn relay(mut client: TcpStream, to: SocketAddr, cut: CancellationToken, standing: Arc<watch::Sender<usize>>) {
    // While the daemon is away its client finds the line broken, and tries again.
    let Ok(mut daemon) = TcpStream::connect(to).await else { return };
    standing.send_modify(|count| *count += 1);
    tokio::select! {
        () = cut.cancelled() => {}
        // However it ends, both ends are closed with it.
        _ = copy_bidirectional(&mut client, &mut daemon) => {}
    }
    standing.send_modify(|count| *count -= 1);
}

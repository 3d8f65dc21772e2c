//! The MQTT broker inside the daemon: rumqttd's router behind a front door of our own.
//!
//! The router (retained messages, subscriptions, offline queues) is rumqttd's; accepting, logging in and speaking
//! with one client is `broker/link.rs`. rumqttd's own server is not used: it needs a port each for MQTT 3.1.1 and
//! 5, cannot be stopped, closes without a word on a wrong password, publishes the will of a client that has just
//! come back, and hands its router things that bring it down (see `broker/guard.rs`).
//!
//! Not offered: QoS of the session surviving a restart (retained messages live in memory; the daemon publishes its
//! own again), shared subscriptions, aliases of topics, `$SYS`, TLS, more than 100 retained messages for one
//! subscription. The router remembers each topic and client name for as long as it runs. Its thread cannot be ended
//! and stays, idle, until the process ends.

mod guard;
mod line;
mod link;

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use rumqttd::{
    Notification, RouterConfig,
    local::{LinkBuilder, LinkError, LinkRx, LinkTx},
};
use tokio::{sync::Semaphore, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    base::{Error, Result, lock},
    publish::password::Login,
    settings,
};

/// A home's dashboards, phones and sensors; each may hold about 300 KiB while it is slow, and one packet more.
const MAX_CLIENTS: usize = 128;
/// What a subscriber that is slow or away may lag behind, per filter: 1 MiB, about 2000 results. Nobody waits for
/// the slowest; who lags further misses what is oldest. The router counts the bytes of topic and payload and takes
/// some 240 more for each message.
const SEGMENT_BYTES: usize = 128 << 10;
const SEGMENTS: usize = 8;
/// Packets that the router puts out at once.
const BATCH: u64 = 100;
/// A client that is being closed gets this long to take its last packets.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Dropping it closes the port and all connections.
pub struct Broker {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Listens from now on; a port that is taken is an error here.
    pub fn start(settings: &settings::Mqtt) -> Result<Broker> {
        let login = Login::read(settings)?;
        let wanted = settings.listen;
        if login.is_none() && !wanted.ip().is_loopback() {
            return Err(Error::invalid(format!("the MQTT broker may not listen on {wanted} without a password"))
                .hint("set mqtt.username and mqtt.password_file, or mqtt.listen to 127.0.0.1:1883"));
        }
        let listener = TcpListener::bind(wanted).map_err(|error| {
            Error::unavailable(format!("the MQTT broker cannot listen on {wanted}: {error}")).hint(
                "another broker may run there: set mqtt.mode = \"external\" to use it, or mqtt.listen to a free port",
            )
        })?;
        let failed = |error| Error::internal("the MQTT broker cannot start").cause(error);
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let stop = CancellationToken::new();
        let house = Arc::new(House::new(login));
        let thread = std::thread::Builder::new()
            .name("mqtt-broker".to_owned())
            .spawn({
                let stop = stop.clone();
                move || runtime.block_on(accept(listener, house, stop))
            })
            .map_err(failed)?;
        log::info!("MQTT broker listening on {address}");
        Ok(Broker { address, stop, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and the connections, and waits (a second at most) until they are gone.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && tokio::task::spawn_blocking(move || thread.join()).await.is_err()
        {
            log::error!("the MQTT broker's thread panicked");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, house: Arc<House>, stop: CancellationToken) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::error!("the MQTT broker cannot listen: {error}"),
    };
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let links = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let (house, stop) = (Arc::clone(&house), stop.clone());
                    links.spawn(async move {
                        if let Err(error) = link::serve(stream, &house, &stop).await {
                            log::info!("MQTT client {peer} closed: {}", error.full());
                        }
                        drop(place);
                    });
                }
                Err(_) => log::warn!("MQTT client {peer} turned away: {MAX_CLIENTS} are connected"),
            },
            // Out of file descriptors: they come back when somebody leaves.
            Err(error) => {
                log::warn!("the MQTT broker cannot accept: {error}");
                time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    links.close();
    if time::timeout(LEAVE_LIMIT, links.wait()).await.is_err() {
        log::warn!("{} MQTT clients did not leave in time", links.len());
    }
}

/// What all links share.
struct House {
    login: Option<Login>,
    router: Mutex<Router>,
    /// Who is connected, by client id.
    seats: Mutex<HashMap<String, Arc<Seat>>>,
}

/// rumqttd keeps the type of its channel to itself: held by a closure.
type Router = Arc<dyn Fn(&str, bool) -> Result<Joined, Box<LinkError>> + Send + Sync>;
/// Both directions and the router's welcome.
type Joined = (LinkTx, LinkRx, Notification);

/// One connected client; the next with its id takes its place.
#[derive(Default)]
struct Seat {
    leave: CancellationToken,
    left: CancellationToken,
}

impl House {
    fn new(login: Option<Login>) -> House {
        House { login, router: Mutex::new(spawn_router()), seats: Mutex::default() }
    }

    /// Joins the router. One whose thread has died is replaced: what it held in memory is gone, the box goes on.
    fn join(&self, client_id: &str, clean: bool) -> Result<Joined, Box<LinkError>> {
        let router = Arc::clone(&lock(&self.router));
        match router(client_id, clean) {
            Err(error) if matches!(*error, LinkError::Send(_)) => {
                log::error!("the MQTT broker's router died and was started anew; retained messages are gone");
                let mut current = lock(&self.router);
                if Arc::ptr_eq(&current, &router) {
                    *current = spawn_router();
                }
                let router = Arc::clone(&current);
                drop(current);
                router(client_id, clean)
            }
            joined => joined,
        }
    }

    /// The place of this client, once whoever had it has left the router.
    async fn sit(&self, client_id: &str) -> Sitting<'_> {
        let seat = Arc::new(Seat::default());
        let former = lock(&self.seats).insert(client_id.to_owned(), Arc::clone(&seat));
        if let Some(former) = former {
            former.leave.cancel();
            former.left.cancelled().await;
        }
        Sitting { house: self, client_id: client_id.to_owned(), seat }
    }
}

/// Dropping it gives the place free.
struct Sitting<'a> {
    house: &'a House,
    client_id: String,
    seat: Arc<Seat>,
}

impl Drop for Sitting<'_> {
    fn drop(&mut self) {
        let mut seats = lock(&self.house.seats);
        if seats.get(&self.client_id).is_some_and(|seat| Arc::ptr_eq(seat, &self.seat)) {
            seats.remove(&self.client_id);
        }
        self.seat.left.cancel();
    }
}

fn spawn_router() -> Router {
    let config = RouterConfig {
        max_connections: MAX_CLIENTS,
        max_outgoing_packet_count: BATCH,
        max_segment_size: SEGMENT_BYTES,
        max_segment_count: SEGMENTS,
        ..RouterConfig::default()
    };
    let router = rumqttd::Router::new(0, config).spawn();
    Arc::new(move |client_id, clean| {
        let builder = LinkBuilder::new(client_id, router.clone());
        // No topic aliases towards clients: the router gives one per filter, not per topic, so that messages of a
        // wildcard subscription would arrive under the wrong topic. No will: the link publishes it.
        builder.clean_session(clean).topic_alias_max(0).build().map_err(Box::new)
    })
}

#[cfg(test)]
mod tests;

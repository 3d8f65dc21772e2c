//! The client of the MQTT broker, embedded or external: keeps a connection up, and says how it stands.
//!
//! `run` alone knows retry, back-off and shutdown; `run_once` is one connection, and `mqtt/talk.rs` what is said on it.
//! Each connection starts with an empty client: what has not arrived comes from the outbox, so rumqttc's own
//! memory of unacknowledged messages is never used. Speaks MQTT 3.1.1, which every broker understands; no TLS.

mod talk;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming, LastWill, MqttOptions, Outgoing, QoS,
};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};

use self::talk::{Note, Talk};
use crate::{
    base::{Error, Kind, Result, Shutdown},
    publish::{Command, Hub, MAX_PACKET_BYTES, outbox::Outbox, password::Login, topics::Topics, topics::escape},
    settings,
    store::Store,
    telemetry::events::{MqttConnected, emit},
};

const KEEP_ALIVE: Duration = Duration::from_secs(30);
const CONNECT_LIMIT_SECS: u64 = 5;
/// Requests that may wait for the socket: all retained states at once and a full outbox window, with room.
const QUEUE: usize = 1024;
/// What comes in are commands: texts and small pictures.
const MAX_INCOMING_BYTES: usize = 4 << 20;
/// After a break; doubled up to `WAIT_MAX`. A connection that held for `WAIT_MAX` starts again at the shortest.
const WAIT_MIN: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(15);
/// A wrong password is not right a second later, and brokers ban those who insist.
const WAIT_REFUSED: Duration = Duration::from_secs(30);
/// A broker that answers pings but acknowledges nothing for so long is left and tried anew.
const WAIT_ACK: Duration = Duration::from_secs(60);

/// Tests have less of it.
struct Patience {
    min: Duration,
    max: Duration,
    refused: Duration,
    ack: Duration,
}

/// What MQTT says of this box. The closures are called on the client's task and must be quick.
#[derive(Clone)]
pub struct Node {
    pub name: Arc<str>,
    /// Published once a connection, at `info`.
    pub info: Value,
    pub health: Arc<dyn Fn() -> Value + Send + Sync>,
    /// (task, state), asked after each `model.state` event and every 30 s.
    pub tasks: Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>,
}

/// For `/api/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MqttStatus {
    Off,
    Connecting,
    Connected,
    Failed { reason: String },
}

/// The client, before it runs.
pub struct Mqtt {
    host: String,
    port: u16,
    login: Option<Login>,
    discovery: bool,
    topics: Topics,
    node: Node,
    hub: Hub,
    store: Store,
    commands: mpsc::Sender<Command>,
    status: watch::Sender<MqttStatus>,
    /// Events before this position were before this box had MQTT.
    first: i64,
    patience: Patience,
}

impl Mqtt {
    /// `embedded`: where the broker inside the daemon listens; without it the one of the settings is used.
    pub fn new(
        settings: &settings::Mqtt,
        embedded: Option<SocketAddr>,
        node: Node,
        store: Store,
        hub: Hub,
        commands: mpsc::Sender<Command>,
    ) -> Result<Mqtt> {
        let (host, port) = match embedded {
            // A broker on all interfaces is reached through loopback.
            Some(address) if address.ip().is_unspecified() => ("localhost".to_owned(), address.port()),
            Some(address) => (address.ip().to_string(), address.port()),
            None => (settings.host.clone(), settings.port),
        };
        Ok(Mqtt {
            host: if host.contains(':') { format!("[{host}]") } else { host },
            port,
            login: Login::read(settings)?,
            discovery: settings.discovery,
            topics: Topics::new(&settings.prefix, &node.name),
            node,
            first: store.last_position(),
            store,
            hub,
            commands,
            status: watch::Sender::new(MqttStatus::Connecting),
            patience: Patience { min: WAIT_MIN, max: WAIT_MAX, refused: WAIT_REFUSED, ack: WAIT_ACK },
        })
    }

    /// How the connection stands, from now on.
    pub fn status(&self) -> watch::Receiver<MqttStatus> {
        self.status.subscribe()
    }

    /// Until shutdown: then sends what is in the journal (for 5 s at most), says `offline` and goodbye.
    pub async fn run(self, shutdown: Shutdown) {
        let _busy = shutdown.busy("mqtt");
        let mut outbox = None;
        let mut wait = self.patience.min;
        while !shutdown.started() {
            let began = Instant::now();
            let error = match self.run_once(&mut outbox, &shutdown).await {
                Ok(()) => break,
                Err(error) => error,
            };
            self.failed(&error);
            if began.elapsed() > self.patience.max {
                wait = self.patience.min;
            }
            let pause = if error.kind() == Kind::Unauthorized { self.patience.refused } else { wait };
            tokio::select! {
                () = time::sleep(pause) => wait = (wait * 2).min(self.patience.max),
                () = shutdown.wait() => (),
            }
        }
        self.status.send_replace(MqttStatus::Off);
    }

    /// One connection, from its beginning to its end; `Ok` is a clean stop.
    async fn run_once(&self, outbox: &mut Option<Outbox>, shutdown: &Shutdown) -> Result<()> {
        let outbox = match outbox {
            Some(outbox) => outbox,
            None => outbox.insert(Outbox::open(self.store.clone(), self.topics.clone(), self.first).await?),
        };
        let (client, mut events) = AsyncClient::new(self.options(), QUEUE);
        events.network_options.set_connection_timeout(CONNECT_LIMIT_SECS);
        events.network_options.set_tcp_nodelay(true);
        tokio::select! {
            connected = events.poll() => drop(connected.map_err(|error| self.explain(error))?),
            () = shutdown.wait() => return Ok(()),
        }
        log::info!("MQTT connected to {}:{}", self.host, self.port);
        emit(MqttConnected);
        self.status.send_replace(MqttStatus::Connected);

        let (tell, heard) = mpsc::channel(QUEUE);
        let mut talk = Talk::new(self, outbox, client, heard);
        let ended = tokio::select! {
            ended = pump(&mut events, &tell) => ended.map_err(|error| self.explain(error)),
            error = talk.run(shutdown) => Err(error),
        };
        talk.end().await;
        ended
    }

    fn options(&self) -> MqttOptions {
        let mut options = MqttOptions::new(format!("vigia-{}", escape(&self.node.name)), &self.host, self.port);
        options.set_keep_alive(KEEP_ALIVE);
        options.set_max_packet_size(MAX_INCOMING_BYTES, MAX_PACKET_BYTES);
        options.set_last_will(LastWill::new(self.topics.availability(), "offline", QoS::AtLeastOnce, true));
        if let Some(login) = &self.login {
            options.set_credentials(&login.username, &login.password);
        }
        options
    }

    /// Logged once per reason, not once per attempt.
    fn failed(&self, error: &Error) {
        let status = MqttStatus::Failed { reason: error.full() };
        if *self.status.borrow() != status {
            log::warn!("MQTT: {}", error.full());
            self.status.send_replace(status);
        }
    }

    fn explain(&self, error: ConnectionError) -> Error {
        let broker = format!("the MQTT broker at {}:{}", self.host, self.port);
        match error {
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
            ) => {
                let who = match &self.login {
                    Some(login) => format!("user `{}`", login.username),
                    None => "a client without user and password".to_owned(),
                };
                Error::new(Kind::Unauthorized, format!("{broker} refuses {who}"))
                    .hint("check mqtt.username and mqtt.password_file")
            }
            ConnectionError::ConnectionRefused(code) => Error::unavailable(format!("{broker} refuses us: {code:?}")),
            ConnectionError::Io(error) => Error::unavailable(format!("{broker} cannot be reached"))
                .cause(error)
                .hint("is it running? mqtt.host and mqtt.port say where it is looked for"),
            error => Error::unavailable(format!("the connection to {broker} broke")).cause(error),
        }
    }
}

/// Moves bytes, and tells the talk what has been sent and what has come. Ends well after our goodbye.
async fn pump(events: &mut EventLoop, tell: &mpsc::Sender<Note>) -> Result<(), ConnectionError> {
    loop {
        let note = match events.poll().await? {
            Event::Outgoing(Outgoing::Publish(id)) if id > 0 => Note::Sent(id),
            Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
            Event::Incoming(Incoming::PubAck(ack)) => Note::Acked(ack.pkid),
            Event::Incoming(Incoming::Publish(publish)) => Note::Message(publish),
            _ => continue,
        };
        // Waits while the talk is busy: it never waits for us.
        if tell.send(note).await.is_err() {
            return Err(ConnectionError::RequestsDone);
        }
    }
}

#[cfg(test)]
mod tests;

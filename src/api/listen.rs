//! Takes connections in and serves HTTP on them. Never holds more than `server.max_connections`, never spins when
//! the system has no file descriptor left, never dies of one connection.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    HeaderMap, Method,
    header::{self, HeaderName, HeaderValue},
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tower::Layer as _;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{
    api::{
        Context,
        connection::{Connection, linger},
        error::RETRY_AFTER,
        path::{self, Paths},
        wire,
    },
    base::{Error, Kind, Result},
    telemetry::{emit, events::ConnectionRefused},
};

/// Bodies that may lie in memory at a time, as multiples of the largest one allowed.
const BODIES_IN_MEMORY: u64 = 4;

/// Recordings that are taken in or transcribed at a time. The engine works on one piece at a time anyway.
const RECORDINGS_AT_A_TIME: usize = 8;

/// Clients that are told at a time that the house is full; beyond that a connection is closed without a word.
const REFUSALS_AT_A_TIME: usize = 256;

/// What a refused client has for reading why.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed accept: long enough not to spin, short enough not to be felt.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Largest head of a request; also how much of a body hyper reads at a time.
const HEAD_BYTES: usize = 16 << 10;

/// What every request needs, made once.
pub(crate) struct App {
    pub(crate) context: Arc<Context>,
    pub(crate) paths: Paths,
    /// Memory for bodies in KiB.
    pub(crate) body_memory: Arc<Semaphore>,
    /// Places for recordings: each takes a part of the disk, and a decoder.
    pub(crate) recordings: Arc<Semaphore>,
}

impl App {
    pub(crate) fn new(context: Arc<Context>) -> Arc<App> {
        let kib = BODIES_IN_MEMORY * context.settings.server.max_body.get().div_ceil(1024);
        let permits = usize::try_from(kib).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let body_memory = Arc::new(Semaphore::new(permits));
        let recordings = Arc::new(Semaphore::new(RECORDINGS_AT_A_TIME));
        Arc::new(App { context, paths: Paths::new(), body_memory, recordings })
    }
}

/// Clients that may knock while we are busy with others. tokio's own 128 makes a crowd that comes at once (every device
/// after a restart) wait a second for its next try.
const BACKLOG: u32 = 1024;

/// Port 0 takes any free one; ask the listener which.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart need not wait for connections of the last run to fade away.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "another program (another vigia?) listens there; choose another server.listen",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose another server.listen",
            _ => "check server.listen",
        };
        Error::unavailable(format!("cannot listen on {address}: {error}")).hint(hint)
    })
}

/// Serves until shutdown starts; connections then finish what they are at and count as busy until they have.
pub async fn serve(listener: TcpListener, context: Arc<Context>) {
    let shutdown = context.shutdown.clone();
    let server = &context.settings.server;
    let cors = cors(&server.cors_origins);
    let places = Arc::new(Semaphore::new(server.max_connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS_AT_A_TIME));
    let app = App::new(Arc::clone(&context));
    // One line in the log when trouble begins, not one for each connection.
    let (mut failing, mut full) = (false, false);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.wait() => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                if !failing {
                    log::error!("cannot take connections in: {error}; trying on (is LimitNOFILE too low?)");
                }
                failing = true;
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                full = false;
                tokio::spawn(serve_connection(tcp, place, Arc::clone(&app), cors.clone()));
            }
            Err(_) => {
                if !full {
                    log::warn!("{} connections, no more are taken in (server.max_connections)", server.max_connections);
                }
                full = true;
                emit(ConnectionRefused);
                if let Ok(turn) = Arc::clone(&refusals).try_acquire_owned() {
                    tokio::spawn(refuse(tcp, turn));
                }
            }
        }
    }
}

/// A client that left between its knock and our opening, not a fault of the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
}

async fn serve_connection(tcp: TcpStream, place: OwnedSemaphorePermit, app: Arc<App>, cors: CorsLayer) {
    let context = Arc::clone(&app.context);
    let server = &context.settings.server;
    let busy = context.shutdown.busy("http connection");
    if let Err(error) = tcp.set_nodelay(true) {
        log::debug!("TCP_NODELAY: {error}");
    }
    let answer = tower::service_fn(move |request| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(path::answer(app, request).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Also how long a connection may idle between two requests.
        .header_read_timeout(server.request_timeout())
        .max_buf_size(HEAD_BYTES)
        .serve_connection(
            TokioIo::new(Connection::new(tcp, server.send_timeout(), place)),
            TowerToHyperService::new(cors.layer(answer)),
        )
        .with_upgrades();
    let served = tokio::select! {
        served = &mut connection => served,
        () = context.shutdown.wait() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    drop(busy);
    if let Err(error) = served {
        log::trace!("connection: {error}");
    }
    // An upgraded connection is gone from here: the WebSocket has it.
    if let Some(parts) = connection.into_parts()
        && !context.shutdown.started()
    {
        parts.io.into_inner().linger().await;
    }
}

/// The answer to one connection too many.
async fn refuse(mut tcp: TcpStream, _turn: OwnedSemaphorePermit) {
    let error = Error::new(Kind::Busy, "too many connections").hint("try again shortly; see server.max_connections");
    let body = wire::ErrorBody::new(Kind::Busy.code(), &error, &ulid::Ulid::new().to_string());
    let body = serde_json::to_string(&body).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: {}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        RETRY_AFTER.as_secs(),
        body.len(),
    );
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    if let Ok(Ok(())) = timeout(REFUSAL_TIMEOUT, tcp.write_all(&answer)).await {
        linger(&mut tcp, REFUSAL_TIMEOUT).await;
    }
}

fn cors(origins: &[String]) -> CorsLayer {
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
        .expose_headers([
            HeaderName::from_static("x-request-id"),
            HeaderName::from_static("x-vigia-seed"),
            header::RETRY_AFTER,
        ])
        .max_age(Duration::from_secs(3600))
}

/// Whether a page of this origin may call us: one of the settings, or a page that we served ourselves.
pub(crate) fn origin_allowed(headers: &HeaderMap, origins: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let own = origin.split_once("://").map(|(_, host)| host);
    own.is_some() && own == host || origins.iter().any(|it| it == origin)
}

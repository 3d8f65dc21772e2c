//! The other end of the wire: a small client for `vigia stream`, the self-test, the benches and the tests. Plain
//! connections only.
//!
//! `streamer`: a client of `/ws/audio` that loses nothing; `ring`: what it keeps for that.

mod ring;
pub mod streamer;

use std::{net::SocketAddr, str::FromStr, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream::SplitStream};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

use crate::base::{Error, Kind, Result};

/// No answer of the daemon takes longer, but for work that the caller gives its own limit.
const LIMIT: Duration = Duration::from_secs(30);

fn unreachable_at(address: SocketAddr) -> Error {
    Error::unavailable(format!("nothing answers at {address}")).hint("is the daemon running? scripts/run starts it")
}

async fn within<T>(what: &str, waiting: impl Future<Output = T>) -> Result<T> {
    let late = |_| Error::new(Kind::Timeout, format!("{what}: no answer within {} s", LIMIT.as_secs()));
    timeout(LIMIT, waiting).await.map_err(late)
}

/// One request, one answer.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<(StatusCode, Bytes)> {
    within(path, async {
        let stream = TcpStream::connect(address).await.map_err(|error| unreachable_at(address).cause(error))?;
        let broken = |error: hyper::Error| Error::internal(format!("{path}: the connection broke")).cause(error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driving = tokio::spawn(connection);
        let mut builder = Request::builder().method(method).uri(path).header(header::HOST, address.to_string());
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let request =
            builder.body(Full::new(body)).map_err(|error| Error::invalid("the request is malformed").cause(error))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        driving.abort();
        Ok((status, body))
    })
    .await?
}

/// A JSON answer, whatever its status.
pub async fn get_json(address: SocketAddr, path: &str, token: Option<&str>) -> Result<(StatusCode, Value)> {
    json(address, "GET", path, token).await
}

/// As `get_json`, of a request that changes something and has no body.
pub async fn post(address: SocketAddr, path: &str, token: Option<&str>) -> Result<(StatusCode, Value)> {
    json(address, "POST", path, token).await
}

async fn json(address: SocketAddr, method: &str, path: &str, token: Option<&str>) -> Result<(StatusCode, Value)> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    let (status, body) = request(address, method, path, &headers, Bytes::new()).await?;
    let value =
        serde_json::from_slice(&body).map_err(|error| Error::internal(format!("{path}: no JSON")).cause(error))?;
    Ok((status, value))
}

/// Where a daemon is, as a person writes it: `http://box:8090` or `ws://box:8090`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    token: Option<String>,
}

impl Target {
    pub fn with_token(self, token: Option<String>) -> Target {
        Target { token, ..self }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Target {
        Target { host: address.ip().to_string(), port: address.port(), token: None }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Target> {
        const EXPECTED: &str = "such as http://127.0.0.1:8090";
        let wrong = |what: &str| Error::invalid(format!("{text:?} {what}")).hint(EXPECTED);
        if text.starts_with("https://") || text.starts_with("wss://") {
            return Err(Error::new(Kind::Unsupported, "the daemon itself speaks no TLS, and neither does this client")
                .hint("give the daemon's own address, http://…, and reach it through a tunnel or a VPN"));
        }
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("ws://"));
        let rest = rest.ok_or_else(|| wrong("does not begin with http:// or ws://"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !path.is_empty() && path != "ws/audio" {
            return Err(wrong("names a path; only the box is wanted"));
        }
        // The colons of an IPv6 address stand in brackets.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("has a port that is no number"))?)
            }
            _ => (authority, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@') {
            return Err(wrong("names no host"));
        }
        Ok(Target { host: host.to_owned(), port, token: None })
    }
}

/// An open WebSocket.
pub struct WebSocket {
    stream: WebSocketStream<TcpStream>,
}

/// What the daemon sends.
#[derive(Debug)]
pub enum Received {
    Json(Value),
    Closed { code: u16, reason: String },
}

impl WebSocket {
    pub async fn open(address: SocketAddr, path: &str, token: Option<&str>) -> Result<WebSocket> {
        WebSocket::connect(&Target::from(address).with_token(token.map(str::to_owned)), path).await
    }

    pub async fn connect(target: &Target, path: &str) -> Result<WebSocket> {
        let Target { host, port, token } = target;
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        within(path, async {
            let nobody = |error| {
                Error::unavailable(format!("nothing answers at {authority}"))
                    .hint("is the daemon running? scripts/run starts it")
                    .cause(error)
            };
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(nobody)?;
            stream.set_nodelay(true).map_err(nobody)?;
            let malformed = |error| Error::invalid("the request is malformed").cause(error);
            let mut request = format!("ws://{authority}{path}").into_client_request().map_err(malformed)?;
            if let Some(token) = token {
                let bearer = format!("Bearer {token}")
                    .parse()
                    .map_err(|error| Error::invalid("the key has characters that no key has").cause(error))?;
                request.headers_mut().insert(header::AUTHORIZATION, bearer);
            }
            // Benches hold hundreds of these in one process.
            let config = WebSocketConfig::default().read_buffer_size(8 << 10).write_buffer_size(4 << 10);
            let (stream, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config))
                .await
                .map_err(|error| refused(&authority, path, error))?;
            Ok(WebSocket { stream })
        })
        .await?
    }

    pub async fn send_json(&mut self, message: &Value) -> Result<()> {
        self.send(Message::text(message.to_string())).await
    }

    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        self.send(Message::text(text)).await
    }

    pub async fn send_audio(&mut self, audio: Bytes) -> Result<()> {
        self.send(Message::Binary(audio)).await
    }

    async fn send(&mut self, message: Message) -> Result<()> {
        let sent = within("sending", self.stream.send(message)).await?;
        sent.map_err(|error| Error::unavailable("the daemon closed the connection").cause(error))
    }

    /// The next message, within the limit. Cancel-safe.
    pub async fn next(&mut self) -> Result<Received> {
        within("waiting for a message", next(&mut self.stream)).await?
    }

    pub async fn close(mut self) {
        // Whether the daemon still listens or not, we are done.
        drop(timeout(CLOSE_LIMIT, self.stream.close(None)).await);
    }

    /// For who sends and receives at the same time, so that neither waits for the other.
    pub fn split(self) -> (Sending, Receiving) {
        let (mut sink, stream) = self.stream.split();
        let (queue, mut waiting) = mpsc::channel(SENDING_QUEUE);
        let writer = tokio::spawn(async move {
            while let Some(message) = waiting.recv().await {
                let closing = matches!(message, Message::Close(_));
                // A line that takes nothing is as good as broken: the queue closes, and its owner sees that.
                if !matches!(timeout(LIMIT, sink.send(message)).await, Ok(Ok(()))) || closing {
                    return;
                }
            }
        });
        (Sending { queue, writer }, Receiving(stream))
    }
}

/// Messages on their way out: few, since what is there cannot be taken back.
const SENDING_QUEUE: usize = 4;
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// One half of a WebSocket. Dropping it cuts the line; `close` says goodbye first.
pub struct Sending {
    queue: mpsc::Sender<Message>,
    writer: JoinHandle<()>,
}

/// A place for one message.
pub struct Slot<'a>(mpsc::Permit<'a, Message>);

/// The other half.
pub struct Receiving(SplitStream<WebSocketStream<TcpStream>>);

impl Sending {
    /// Waits until a message may go; `None`: the line is broken. Cancel-safe.
    pub async fn slot(&self) -> Option<Slot<'_>> {
        self.queue.reserve().await.ok().map(Slot)
    }

    pub async fn close(self) {
        // Whether the daemon still listens or not, we are done.
        let bye = async {
            drop(self.queue.send(Message::Close(None)).await);
            drop(self.writer.await);
        };
        drop(timeout(CLOSE_LIMIT, bye).await);
    }
}

impl Slot<'_> {
    pub fn json(self, message: &Value) {
        self.0.send(Message::text(message.to_string()));
    }

    pub fn audio(self, audio: Bytes) {
        self.0.send(Message::Binary(audio));
    }
}

impl Receiving {
    /// The next message, without a limit. Cancel-safe.
    pub async fn next(&mut self) -> Result<Received> {
        next(&mut self.0).await
    }
}

async fn next<S>(stream: &mut S) -> Result<Received>
where
    S: futures_util::Stream<Item = tungstenite::Result<Message>> + Unpin,
{
    loop {
        return match stream.next().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text)
                .map(Received::Json)
                .map_err(|error| Error::internal("the daemon sent no JSON").cause(error)),
            Some(Ok(Message::Close(Some(frame)))) => {
                Ok(Received::Closed { code: frame.code.into(), reason: frame.reason.to_string() })
            }
            // 1006 is what the protocol calls an end without a close frame.
            Some(Ok(Message::Close(None)) | Err(_)) | None => {
                Ok(Received::Closed { code: 1006, reason: String::new() })
            }
            Some(Ok(_)) => continue,
        };
    }
}

/// Why there is no WebSocket, as far as the answer says.
fn refused(authority: &str, path: &str, error: tungstenite::Error) -> Error {
    let status = match &error {
        tungstenite::Error::Http(response) => response.status(),
        _ => {
            return Error::unavailable(format!("{authority} does not answer as a WebSocket at {path}")).cause(error);
        }
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Error::new(Kind::Unauthorized, format!("{authority} wants a key, and this one is missing or wrong"))
                .hint("`vigia keys add NAME` on the box makes one")
        }
        StatusCode::SERVICE_UNAVAILABLE => Error::new(Kind::Busy, format!("{authority} has too many connections")),
        StatusCode::NOT_FOUND => Error::new(Kind::NotFound, format!("{authority} has no {path}"))
            .hint("is that a vigia, and its own address?"),
        status => Error::unavailable(format!("{authority} refused {path} with {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_people_write_them() {
        let target = |text: &str| text.parse::<Target>();
        for text in ["http://box:8090", "ws://box:8090/", "ws://box:8090/ws/audio"] {
            assert_eq!(target(text).unwrap(), Target { host: "box".into(), port: 8090, token: None }, "{text}");
        }
        assert_eq!(target("http://[::1]:1234").unwrap(), Target { host: "::1".into(), port: 1234, token: None });
        assert_eq!(target("http://[::1]").unwrap().port, 80);
        for text in ["box:8090", "ftp://box", "http://", "http://box:port", "http://box/other", "http://a@b", ""] {
            let error = target(text).unwrap_err();
            assert!(error.hint_text().is_some(), "{text}: {error}");
        }
        assert_eq!(target("https://box").unwrap_err().kind(), Kind::Unsupported);
    }
}

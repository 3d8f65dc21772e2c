//! The other end of the wire: a small client for the self-test, the benches and the tests. Plain connections only.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest, protocol::WebSocketConfig},
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
        within(path, async {
            let stream = TcpStream::connect(address).await.map_err(|error| unreachable_at(address).cause(error))?;
            stream.set_nodelay(true).map_err(|error| unreachable_at(address).cause(error))?;
            let malformed = |error| Error::invalid("the request is malformed").cause(error);
            let mut request = format!("ws://{address}{path}").into_client_request().map_err(malformed)?;
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
                .map_err(|error| Error::unavailable(format!("{path}: the daemon refused: {error}")))?;
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
        within("waiting for a message", async {
            loop {
                return match self.stream.next().await {
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
        })
        .await?
    }

    pub async fn close(mut self) {
        // Whether the daemon still listens or not, we are done.
        drop(timeout(Duration::from_secs(2), self.stream.close(None)).await);
    }
}

//! WebSockets: the handshake, and a socket with limits on everything: the size of messages, the time a client may be
//! silent, the time it may refuse to take what is sent. Knows nothing of what is said on it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message as Frame,
        error::CapacityError,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    api::{
        call::{Call, Response, full},
        connection::Connection,
    },
    base::{Error, Result},
    telemetry::{
        emit,
        events::{ClientTooSlow, SocketClosed, SocketOpened},
    },
};

pub(crate) use tungstenite::Utf8Bytes;

/// tungstenite's own 128 KiB would be most of what a live stream may cost.
const READ_BUFFER_BYTES: usize = 8 << 10;
const WRITE_BUFFER_BYTES: usize = 4 << 10;

/// A close frame is answered within this, or the connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pings that fit into the time that a client may be silent, so that one that is lost on the way ends nothing.
const MAX_UNANSWERED: u32 = 2;

/// The client has sent its head, so the switch itself is a matter of writing ours.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    Text(Utf8Bytes),
    Binary(Bytes),
}

/// Why there is nothing more to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It closed, and said that it is done (or nothing).
    Done,
    /// It closed for another reason, or its line broke: it may come back.
    Left,
    /// It neither spoke nor answered a ping, or took nothing.
    Silent,
    TooLarge,
    /// It does not speak WebSocket, or its text is not UTF-8.
    Garbled,
}

/// Why we close; the codes are part of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    Done,
    GoingAway,
    Garbled,
    Access,
    TooLarge,
    Internal,
    Restarting,
    TryLater,
}

impl Close {
    fn code(self) -> CloseCode {
        match self {
            Close::Done => CloseCode::Normal,
            Close::GoingAway => CloseCode::Away,
            Close::Garbled => CloseCode::Protocol,
            Close::Access => CloseCode::Policy,
            Close::TooLarge => CloseCode::Size,
            Close::Internal => CloseCode::Error,
            Close::Restarting => CloseCode::Restart,
            Close::TryLater => CloseCode::Again,
        }
    }
}

pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    has_token(headers, header::CONNECTION, "upgrade") && has_token(headers, header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name);
    values
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','))
        .any(|it| it.trim().eq_ignore_ascii_case(token))
}

/// Checks the handshake. The answer must be sent for the future to resolve, so await it in a task of its own.
pub(crate) fn upgrade(call: &mut Call) -> Result<(Response, impl Future<Output = Result<Socket>> + use<>)> {
    let accept = accept_key(&call.request)?;
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    let upgraded = hyper::upgrade::on(&mut call.request);
    let server = &call.context().settings.server;
    let max_message = usize::try_from(server.max_message.get()).unwrap_or(usize::MAX);
    Ok((response, Socket::open(upgraded, call.route, max_message, server.idle_timeout())))
}

fn accept_key(request: &Request<()>) -> Result<HeaderValue> {
    let headers = request.headers();
    if request.method() != Method::GET || request.version() != Version::HTTP_11 || !is_upgrade(headers) {
        return Err(Error::invalid("this path is a WebSocket").hint("connect to it with a WebSocket client (ws://…)"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Error::invalid("Sec-WebSocket-Version must be 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    // 16 bytes in base64.
    if key.len() != 24 {
        return Err(Error::invalid("Sec-WebSocket-Key is missing or malformed"));
    }
    HeaderValue::from_str(&derive_accept_key(key)).map_err(|error| Error::internal("accept key").cause(error))
}

/// One client's WebSocket. Dropping it cuts the line; `close` says why first.
pub(crate) struct Socket {
    stream: WebSocketStream<Connection>,
    ping: Interval,
    /// Pings since the client was last heard. Counted, not timed: while we do not read, its silence is our own.
    unanswered: u32,
    gone: Option<Gone>,
    /// It takes nothing more; what it said before is still to be heard, its goodbye perhaps.
    deaf: bool,
    route: &'static str,
}

impl Socket {
    async fn open(upgraded: OnUpgrade, route: &'static str, max_message: usize, idle: Duration) -> Result<Socket> {
        let failed = || Error::invalid("the client left before the WebSocket was open");
        let upgraded = timeout(UPGRADE_TIMEOUT, upgraded).await.map_err(|_| failed())?;
        let upgraded = upgraded.map_err(|error| failed().cause(error))?;
        let parts = upgraded
            .downcast::<TokioIo<Connection>>()
            .map_err(|_| Error::internal("a WebSocket on something that is no connection of ours"))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message));
        let (io, early) = (parts.io.into_inner(), parts.read_buf.to_vec());
        let stream = WebSocketStream::from_partially_read(io, early, Role::Server, Some(config)).await;
        let pause = (idle / (MAX_UNANSWERED + 1)).max(Duration::from_millis(10));
        let mut ping = interval_at(Instant::now() + pause, pause);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        emit(SocketOpened { route });
        Ok(Socket { stream, ping, unanswered: 0, gone: None, deaf: false, route })
    }

    /// The next message. Cancelling it loses nothing, so it may stand in a `select!`. After an error only `close`
    /// makes sense.
    pub(crate) async fn next(&mut self) -> Result<Message, Gone> {
        loop {
            if let Some(gone) = self.gone {
                return Err(gone);
            }
            tokio::select! {
                // What has come is looked at before its sender is given up.
                biased;
                frame = self.stream.next() => {
                    self.unanswered = 0;
                    match frame {
                        Some(Ok(Frame::Text(text))) => return Ok(Message::Text(text)),
                        Some(Ok(Frame::Binary(bytes))) => return Ok(Message::Binary(bytes)),
                        Some(Ok(Frame::Ping(_) | Frame::Pong(_) | Frame::Frame(_))) => (),
                        // Its answer is sent by `close`.
                        Some(Ok(Frame::Close(frame))) => self.gone = Some(Gone::closed(frame.as_ref())),
                        None => self.gone = Some(Gone::Left),
                        Some(Err(error)) => self.gone = Some(Gone::from(error)),
                    }
                }
                _ = self.ping.tick() => {
                    if self.unanswered == MAX_UNANSWERED {
                        self.gone = Some(Gone::Silent);
                        continue;
                    }
                    self.unanswered += 1;
                    if !self.deaf && let Err(error) = self.stream.send(Frame::Ping(Bytes::new())).await {
                        self.cannot_send(Gone::from(error));
                    }
                }
            }
        }
    }

    /// Waits until the client has taken it; a client that takes nothing for `server.send_timeout_secs` is gone. One that
    /// has left (`Gone::Left`) may have said something before: `next` tells it.
    pub(crate) async fn send(&mut self, text: impl Into<Utf8Bytes>) -> Result<(), Gone> {
        if let Some(gone) = self.gone.or(self.deaf.then_some(Gone::Left)) {
            return Err(gone);
        }
        self.stream.send(Frame::Text(text.into())).await.map_err(|error| {
            let gone = Gone::from(error);
            if gone == Gone::Silent {
                emit(ClientTooSlow { route: self.route });
            }
            self.cannot_send(gone);
            gone
        })
    }

    fn cannot_send(&mut self, gone: Gone) {
        match gone {
            Gone::Left => self.deaf = true,
            gone => self.gone = Some(gone),
        }
    }

    /// Says why and waits a little for the client to agree. `reason` may be cut: a close frame holds 123 bytes.
    pub(crate) async fn close(mut self, close: Close, reason: &str) {
        let frame = CloseFrame { code: close.code(), reason: cut(reason, 123).into() };
        let farewell = async {
            self.stream.close(Some(frame)).await?;
            while let Some(frame) = self.stream.next().await {
                frame?;
            }
            Ok::<(), tungstenite::Error>(())
        };
        if let Ok(Err(error)) = timeout(CLOSE_TIMEOUT, farewell).await {
            log::trace!("closing a WebSocket: {error}");
        }
        // What follows a message that is too large is its rest, which nobody parses.
        if self.gone == Some(Gone::TooLarge) {
            self.stream.get_mut().linger().await;
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        emit(SocketClosed { route: self.route });
    }
}

/// The longest beginning that fits and ends at a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

impl From<tungstenite::Error> for Gone {
    fn from(error: tungstenite::Error) -> Gone {
        use tungstenite::Error as E;
        match error {
            E::Capacity(CapacityError::MessageTooLong { .. }) => Gone::TooLarge,
            E::Capacity(_) | E::Utf8(_) => Gone::Garbled,
            E::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => Gone::Left,
            E::Protocol(_) => Gone::Garbled,
            E::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => Gone::Silent,
            _ => Gone::Left,
        }
    }
}

impl Gone {
    /// A page that is reloaded, an app that is put to sleep say 1001.
    fn closed(frame: Option<&CloseFrame>) -> Gone {
        match frame.map(|frame| frame.code) {
            None | Some(CloseCode::Normal | CloseCode::Status) => Gone::Done,
            Some(_) => Gone::Left,
        }
    }

    /// How to answer it.
    pub(crate) fn close(self) -> Close {
        match self {
            Gone::Done | Gone::Left => Close::Done,
            Gone::Silent => Close::GoingAway,
            Gone::TooLarge => Close::TooLarge,
            Gone::Garbled => Close::Garbled,
        }
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Gone::Done | Gone::Left => "",
            Gone::Silent => "no sign of life",
            Gone::TooLarge => "the message is larger than server.max_message",
            Gone::Garbled => "this is not WebSocket, or text that is not UTF-8",
        }
    }
}

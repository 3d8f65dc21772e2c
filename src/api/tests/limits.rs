//! Clients that are too many, too large, too slow, or gone.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use super::{LIMIT, Server, parse};
use crate::base::ByteSize;

async fn read_all(tcp: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset after the answer ends it as well.
    drop(timeout(LIMIT, tcp.read_to_end(&mut answer)).await.expect("an end in time"));
    answer
}

/// Asks until the server has a place again.
async fn served_again(server: &Server) {
    let started = Instant::now();
    while server.get("/healthz").await.status != 200 {
        assert!(started.elapsed() < LIMIT);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_by_its_announcement() {
    let server = Server::start(|settings| settings.server.max_body = ByteSize(1000)).await;
    let refused = server.raw(b"POST /api/tts HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n").await;
    let refused = parse(&refused);
    assert_eq!((refused.status, refused.code().as_str()), (413, "too_large"));
    assert_eq!(refused.headers["connection"], "close");
}

#[tokio::test]
async fn a_body_that_grows_over_the_limit_is_answered_and_not_read_on() {
    let server = Server::start(|settings| settings.server.max_body = ByteSize(100_000)).await;
    let mut tcp = server.connect().await;
    tcp.write_all(b"POST /api/tts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    for _ in 0..3 {
        tcp.write_all(&chunk).await.unwrap();
    }
    assert_eq!(parse(&read_all(&mut tcp).await).code(), "too_large");
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let server = Server::start(|settings| settings.server.request_timeout_secs = 1).await;
    let mut tcp = server.connect().await;
    tcp.write_all(b"POST /api/tts HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n{").await.unwrap();
    let (mut reader, mut writer) = tcp.into_split();
    // Each part is in time, all of them together are far slower than any line.
    let drip = tokio::spawn(async move {
        while writer.write_all(b" ").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let mut answer = Vec::new();
    drop(timeout(LIMIT, reader.read_to_end(&mut answer)).await.unwrap());
    let answer = parse(&answer);
    assert_eq!((answer.status, answer.code().as_str()), (504, "timeout"));
    drip.abort();
}

#[tokio::test]
async fn heads_that_never_end_are_closed_and_idle_connections_too() {
    let server = Server::start(|settings| settings.server.request_timeout_secs = 1).await;
    let (mut silent, mut half, mut idle) = (server.connect().await, server.connect().await, server.connect().await);
    half.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    for tcp in [&mut silent, &mut half] {
        let answer = read_all(tcp).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }
    assert!(read_all(&mut idle).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn clients_that_vanish_cost_nobody_else() {
    let server = Server::start(|settings| settings.server.max_connections = 4).await;
    for request in [
        b"POST /api/tts HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n{".as_slice(),
        b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HT",
        b"GET /ws/events HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ] {
        for _ in 0..4 {
            let mut tcp = server.connect().await;
            drop(tcp.write_all(request).await);
        }
        served_again(&server).await;
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_the_others_are_served() {
    let server = Server::start(|settings| settings.server.max_connections = 100).await;
    let mut inside = Vec::new();
    for _ in 0..100 {
        inside.push(server.connect().await);
    }
    let mut outside = Vec::new();
    for _ in 0..300 {
        outside.push(server.connect().await);
    }
    // Some of the many get no word, but whoever knocks alone does.
    for mut tcp in outside {
        let answer = read_all(&mut tcp).await;
        assert!(answer.is_empty() || parse(&answer).status == 503);
    }
    let refused = parse(&server.raw(b"").await);
    assert_eq!((refused.status, refused.code().as_str()), (503, "busy"));
    assert!(refused.headers["retry-after"].parse::<u32>().unwrap() > 0);
    inside[57].write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert_eq!(parse(&read_all(&mut inside[57]).await).status, 200);
    drop(inside);
    served_again(&server).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_closed() {
    let server = Server::start(|settings| {
        settings.server.max_connections = 1;
        settings.server.send_timeout_secs = 1;
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut greedy = socket.connect(server.address).await.unwrap();
    let requests = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10);
    greedy.write_all(&requests).await.unwrap();
    let started = Instant::now();
    assert_eq!(parse(&server.raw(b"").await).status, 503, "it has the only place");
    served_again(&server).await;
    assert!(started.elapsed() > Duration::from_millis(900), "given up only after the timeout");
    drop(greedy);
}

#[tokio::test]
async fn what_is_being_answered_is_finished_at_shutdown() {
    let server = Server::start(|_| ()).await;
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    idle.read_exact(&mut [0; 15]).await.unwrap();
    busy.write_all(b"POST /api/tts HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    // Said once the handler asks for the body: from here on the request is being answered.
    let mut go_on = [0; 25];
    busy.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    busy.write_all(b"{\"inp").await.unwrap();
    server.context.shutdown.start();
    read_all(&mut idle).await;
    busy.write_all(b"uts\":\"x\"}").await.unwrap();
    assert_eq!(parse(&read_all(&mut busy).await).code(), "unavailable");
    let late = server.context.shutdown.finished(crate::base::shutdown::deadline(LIMIT)).await;
    assert!(late.is_empty(), "{late:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_what_to_do() {
    let server = Server::start(|_| ()).await;
    let error = crate::api::bind(server.address).await.unwrap_err();
    assert!(error.message().contains(&server.address.to_string()));
    assert!(error.hint_text().unwrap().contains("server.listen"));
}

//! Who is let in.

use tokio_tungstenite::tungstenite;

use super::Server;
use crate::api::path::ROUTES;

#[tokio::test]
async fn where_keys_exist_every_route_but_the_open_ones_needs_one() {
    let server = Server::start(|_| ()).await;
    let key = server.context.store.add_key("phone").await.unwrap();
    for route in ROUTES {
        let path = route.path.replace("{id}", "x").replace("{format}", "txt").replace("{file}", "start.js");
        let open = matches!(route.path, "/healthz" | "/docs/{file}");
        let without = server.ask(&format!("{} {path}", route.method), b"").await;
        assert_eq!(without.status == 401, !open, "{path}: {}", without.status);
        if !open {
            assert_eq!(
                (without.code().as_str(), without.headers["www-authenticate"].as_str()),
                ("unauthorized", "Bearer")
            );
        }
        let with = server.ask(&format!("{} {path}\nAuthorization: Bearer {key}", route.method), b"").await;
        assert_ne!(with.status, 401, "{path}");
    }
}

#[tokio::test]
async fn wrong_and_revoked_keys_are_refused() {
    let server = Server::start(|_| ()).await;
    let (key, _other) =
        (server.context.store.add_key("phone").await.unwrap(), server.context.store.add_key("other").await.unwrap());
    let ask = async |key: &str| server.ask(&format!("GET /sessions\nAuthorization: Bearer {key}"), b"").await.status;
    assert_eq!((ask(&key).await, ask("vg_wrong").await), (200, 401));
    assert_eq!(server.get(&format!("/sessions?token={key}")).await.status, 401, "only a WebSocket may use ?token=");
    server.context.store.revoke_key("phone").await.unwrap();
    assert_eq!(ask(&key).await, 401);
}

#[tokio::test]
async fn a_browser_gets_the_page_that_asks_for_the_key() {
    let server = Server::start(|_| ()).await;
    server.context.store.add_key("phone").await.unwrap();
    let page = server.ask("GET /ui\nAccept: text/html", b"").await;
    assert_eq!(page.status, 401);
    assert!(page.text().contains("<form id=\"key\""));
    assert_eq!(server.get("/ui").await.code(), "unauthorized");
}

#[tokio::test]
async fn a_websocket_may_bring_its_key_in_the_address() {
    let server = Server::start(|_| ()).await;
    let key = server.context.store.add_key("phone").await.unwrap();
    assert!(server.websocket(&format!("/ws/events?token={key}")).await.is_ok());
    match server.websocket("/ws/events").await {
        Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 401),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_foreign_page_can_neither_act_nor_listen_through_a_browser_on_this_box() {
    let server = Server::start(|_| ()).await;
    let tts = async |origin: &str| server.ask(&format!("POST /api/tts\nOrigin: {origin}"), br#"{"inputs":"x"}"#).await;
    assert_eq!(tts("http://evil.example").await.status, 401);
    assert_eq!(tts("null").await.status, 401);
    assert_eq!(tts("http://test").await.status, 503, "our own page; the host of these requests is `test`");
    assert_eq!(tts("http://localhost:4173").await.status, 503);
    let upgrade = "GET /ws/events\nUpgrade: websocket\nConnection: Upgrade\nOrigin: http://evil.example";
    assert_eq!(server.ask(upgrade, b"").await.status, 401);
    let key = server.context.store.add_key("phone").await.unwrap();
    let with_key = format!("POST /api/tts\nOrigin: http://evil.example\nAuthorization: Bearer {key}");
    assert_eq!(server.ask(&with_key, br#"{"inputs":"x"}"#).await.status, 503, "a key is no browser's to give away");
}

//! HTTP and WebSocket: what a client asks becomes a call of the layers below, what they say becomes an answer.
//!
//! Decides nothing about audio, pictures or models. Every body, queue and wait here has a limit, and a fault in
//! one request costs that request. `path.rs` is the table of routes; the wire is described in `wire.rs` and, for
//! clients, by `/openapi.json`.

mod audio_ws;
mod auth;
mod body;
mod call;
pub mod client;
mod connection;
mod docs;
mod error;
mod events_ws;
mod frames;
mod info;
mod listen;
mod models;
mod path;
mod sessions;
mod speech;
mod stt;
mod tts;
mod ui;
mod upload;
mod vision;
pub mod wire;
mod ws;

use std::{sync::Arc, time::Instant};

use tokio::sync::watch;

pub use auth::may_listen;
pub use frames::Frames;
pub use info::current as health;
pub use listen::{bind, serve};

use crate::{
    base::Shutdown,
    device::Facts,
    engines::Registry,
    jobs::Queue,
    media::Media,
    publish::{Hub, MqttStatus},
    settings::Settings,
    sources::Sessions,
    store::Store,
    telemetry::Metrics,
};

/// What the routes work with. The daemon makes it once all below is there.
pub struct Context {
    pub settings: Arc<Settings>,
    pub facts: Arc<Facts>,
    pub profile: RunningProfile,
    pub store: Store,
    pub hub: Hub,
    pub registry: Registry,
    pub queue: Queue,
    pub sessions: Sessions,
    pub media: Media,
    pub frames: Frames,
    pub metrics: Metrics,
    pub mqtt: watch::Receiver<MqttStatus>,
    pub started: Instant,
    pub shutdown: Shutdown,
}

/// The profile that was chosen, and why.
#[derive(Debug, Clone)]
pub struct RunningProfile {
    pub name: String,
    pub why: String,
}

#[cfg(test)]
mod tests;

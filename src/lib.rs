//! Vigía: what comes in from glasses and cameras becomes text, warnings, speech and pictures, on this box.
//!
//! ```text
//!      phone / glasses                        camera, microphone, RTSP, file
//!            │ WS, POST                                  │
//!          api ───────────► sources ◄────────────────────┘    what arrives; retry lives here
//!                              │ media (GStreamer): decode, resample, rotate, scale
//!                              ▼
//!                           segment                           pure: speech spans, chosen frames
//!                              ▼ Job
//!                            jobs          bounded, prioritised; the one place that waits
//!                              ▼
//!                           engines ─► runtime (ONNX Runtime, TensorRT)
//!                              ▼ Outcome
//!                           publish (hub)
//!                 ┌────────────┼───────────────┐
//!               MQTT      live WebSocket    journal ─► store (SQLite, audio log)
//! ```
//!
//! Three things only travel the other way: the answer to one waiting caller, `Busy`, and shutdown.
//! Engines never see a session; publish never sees an engine; `segment` knows no clock and no device.
//!
//! Layers: a module may use modules of earlier lines, never of its own line or a later one. The library named
//! beside a module lives there and nowhere else. `tests/tidy.rs` holds both.
//!
//! | | modules | library |
//! |---|---|---|
//! | 0 | `base` | |
//! | 1 | `flow` · `settings` · `telemetry` | serde · config · log, systemd-journal-logger, metrics |
//! | 2 | `media` · `runtime` · `device` · `store` · `systemd` | gstreamer · ort · nvml-wrapper, /sys · rusqlite · sd-notify |
//! | 3 | `segment` · `models` | pure decisions · ureq, tar |
//! | 4 | `engines` · `publish` | postcard · rumqttc, rumqttd |
//! | 5 | `jobs` | |
//! | 6 | `sources` | |
//! | 7 | `api` | hyper, tokio-tungstenite |
//! | 8 | `daemon` | |
//! | 9 | `cli`, `main` | clap, indicatif |
//!
//! Glossary: *chunk* (as received) → *segment* (cut) → *job* (asked) → *outcome* (answered) → *event*
//! (published). *Session*: one conversation of one device, made of *takes*. *Profile*: what a kind of device
//! runs. *Engine*: one loaded model with its before and after.

pub mod base;

pub mod flow;
pub mod settings;
pub mod telemetry;

pub mod device;
pub mod media;
pub mod runtime;
pub mod store;
pub mod systemd;

pub mod models;
pub mod segment;

pub mod engines;
pub mod publish;

pub mod jobs;

pub mod sources;

pub mod api;

pub mod daemon;

pub mod cli;

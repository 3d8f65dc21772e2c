//! Vigía: what comes in from glasses and cameras becomes text, warnings, speech and pictures, on this box.
//!
//! ```text
//!      phone / glasses                        a recording (POST, or `vigia transcribe`)
//!            │ WS                                        │
//!          api ───────────► sources                      │    what arrives live
//!                              │                         │
//!                              ├─────────────────────────┘    media (GStreamer): decode, resample, rotate, scale
//!                              ▼
//!                           segment                           pure: spans of speech, windows of 30 s, what may be committed
//!                              ▼ Job
//!                            jobs                             bounded, prioritised; where work waits for its turn
//!                              ▼                    lease
//!                           engines (registry) ◄──────────── models (ledger): waits until it fits into the budget
//!                              │ Ask, small                   ▲ costs, measured
//!                              ├──► host: a process ─► engine ─► runtime (ONNX Runtime: processor, CUDA, TensorRT)
//!                              ├──► host: a thread ──► engine of a small model, of voices
//!                              ├──► host: a thread ──► remote: a server elsewhere
//!                              ▼ Outcome
//!                           publish (hub)
//!                 ┌────────────┼───────────────┐
//!               MQTT      live WebSocket    journal ─► store (SQLite, audio log)
//! ```
//!
//! Four things only travel the other way: the answer to one waiting caller, `Busy`, the wish that batch work yields
//! its memory, and shutdown. Engines never see a session; publish never sees an engine; `segment` knows no clock and no
//! device; the ledger knows no engine, only what it takes; the queue knows no kind of engine, only that each kind does
//! one job at a time. The voice detector is small: a thread of the daemon hears all live streams, before `segment` and
//! outside the ledger.
//!
//! Layers: a module may use modules of earlier lines, never of its own line or a later one. A library named beside a
//! line is used there alone, but for ureq, which two lines name. `tests/tidy.rs` holds the layers, and fences for most
//! of the libraries.
//!
//! | | modules | library |
//! |---|---|---|
//! | 0 | `base` | jiff |
//! | 1 | `flow` · `settings` · `telemetry` | none · config · systemd-journal-logger, metrics-exporter-prometheus |
//! | 2 | `media` · `runtime` · `device` · `store` · `systemd` | gstreamer, imagesize · ort, libloading, half · nvml-wrapper, /sys · rusqlite · sd-notify |
//! | 3 | `segment` · `models` | pure decisions · ureq (`hub`), tar |
//! | 4 | `engines` · `publish` | tokenizers, realfft, postcard (`host`), ureq (`remote`), flate2 · rumqttc, rumqttd |
//! | 5 | `jobs` | |
//! | 6 | `sources` | |
//! | 7 | `api` | hyper, tokio-tungstenite, multer |
//! | 8 | `daemon` | |
//! | 9 | `cli`, `main` | clap, indicatif, anyhow |
//!
//! Glossary: *chunk* (as received) → *segment* (cut) → *job* (asked) → *outcome* (answered) → *event* (published).
//! *Session*: one conversation of one device, made of *takes*. *Checkpoint*: where an open take can be gone on with
//! after a crash. *Partial*: the text of a segment that is being spoken; what of it is *committed* stays. *Trial*: a final
//! text begun before it is known that speech has ended. *Profile*: what a kind of device runs. *Engine*: one loaded
//! model with its before and after. *Host*:
//! the process or thread that runs one engine; who asks has its *handle*. *Budget*: what models may take of one memory.
//! *Ledger*: what each takes of it. *Lease*: the promise that a model stays in memory; without one none is loaded.
//! *Provider*: what a graph runs on. *Remote*: a server that does a task instead of this box. *Window*: speech of a
//! recording, 30 s at most; *piece*: what a transcriber hears as one.
//!
//! Absent so far: engines of this box for chat, photos and speech (servers elsewhere do these); cameras, microphones and
//! RTSP as sources.

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

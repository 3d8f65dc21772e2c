//! The whole daemon, as its clients see it: the real binary, a temporary folder, free ports, real sockets.

#![allow(clippy::unwrap_used, reason = "clippy takes only the bodies of `#[test]` functions for tests")]

mod again;
mod analysis;
mod asr;
mod asr_command;
mod audio;
mod bad_input;
mod card;
mod encodings;
mod engines;
mod harness;
mod hosts;
mod live;
mod long;
mod mqtt;
mod remote_health;
mod remotes;
mod resume;
mod service;
mod speakers;
mod stream;

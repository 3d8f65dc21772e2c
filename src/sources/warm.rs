//! The models of a session are loaded while it begins, not while somebody waits for a first word: on a cold box the first
//! segment would else come late, or without its speaker. Nothing depends on it: what is not there in time is loaded when it
//! is asked for.

use crate::{
    base::Result,
    engines::{Asr, Voiceprints},
    flow::Priority,
    sources::SharedServices,
};

/// Never waits.
pub(super) fn warm(services: &SharedServices, transcribes: bool, diarizes: bool) {
    let services = SharedServices::clone(services);
    tokio::spawn(async move {
        let registry = &services.registry;
        let text = async {
            if transcribes {
                told(registry.hire::<Asr>(Priority::Live).await);
            }
        };
        let voices = async {
            if diarizes {
                told(registry.hire::<Voiceprints>(Priority::Live).await);
            }
        };
        tokio::select! {
            _ = async { tokio::join!(text, voices) } => {}
            () = services.shutdown.wait() => {}
        }
    });
}

/// Whoever asks for it is told in full.
fn told<E>(hired: Result<E>) {
    if let Err(error) = hired {
        log::debug!("a model is not there yet for a session that begins: {}", error.full());
    }
}

//! Every change of a model's state becomes an event, for those who watch the box.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    base::Shutdown,
    engines::Registry,
    flow::{Draft, EventType},
    models::ModelState,
    publish::Hub,
};

pub(super) fn publish(registry: &Registry, hub: &Hub, shutdown: &Shutdown) {
    for states in registry.model_states() {
        tokio::spawn(forward(states, hub.clone(), shutdown.clone()));
    }
}

async fn forward(mut states: Receiver<ModelState>, hub: Hub, shutdown: Shutdown) {
    let device: Arc<str> = "".into();
    loop {
        let state = tokio::select! {
            state = states.recv() => state,
            () = shutdown.wait() => return,
        };
        match state {
            Ok(state) => {
                let draft = Draft {
                    kind: EventType::ModelState,
                    device: Arc::clone(&device),
                    session: None,
                    data: json!(state),
                };
                hub.publish(draft).await;
            }
            Err(RecvError::Lagged(missed)) => log::warn!("{missed} changes of models' states were not published"),
            Err(RecvError::Closed) => return,
        }
    }
}

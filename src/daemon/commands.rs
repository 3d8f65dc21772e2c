//! Carries out what is asked over MQTT. A verb whose engine does not exist yet is answered by dropping it.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    base::{Error, Result},
    engines::Registry,
    publish::{Command, commands::Verb},
};

pub(super) async fn carry_out(mut queue: mpsc::Receiver<Command>, registry: Registry) {
    while let Some(command) = queue.recv().await {
        if command.verb == Verb::Unload {
            let answer = unload(&registry, command.body.get("model")).await;
            command.answer(answer);
        }
    }
}

async fn unload(registry: &Registry, model: Option<&Value>) -> Result<Value> {
    let Some(model) = model.and_then(Value::as_str) else {
        return Err(
            Error::invalid("`model` says which model to unload").hint(r#"for example {"model":"whisper-base"}"#)
        );
    };
    registry.unload(model).await?;
    Ok(json!({ "model": model, "state": "unloaded" }))
}

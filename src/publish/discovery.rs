//! Tells Home Assistant what this box offers: one retained message at `homeassistant/device/<node>/config`.
//!
//! Only what is published anyway becomes an entity; texts longer than a state may be (255 characters) go into its
//! attributes.

use serde_json::{Map, Value, json};

use crate::publish::topics::{Topics, escape};

/// Home Assistant says `online` here when it has (re)started and wants to be told again.
pub(super) const STATUS_TOPIC: &str = "homeassistant/status";

pub(super) fn topic(node: &str) -> String {
    format!("homeassistant/device/{}/config", escape(node))
}

/// `info` is what is published at `info`: its `version` and `device` are shown if they are there.
pub(super) fn payload(node: &str, topics: &Topics, tasks: &[(String, String)], info: &Value) -> Value {
    let id = format!("vigia_{}", escape(node));
    let mut components = Map::new();
    let mut add = |key: &str, mut component: Value| {
        component["unique_id"] = json!(format!("{id}_{key}"));
        components.insert(key.to_owned(), component);
    };
    add(
        "speaking",
        json!({
            "p": "binary_sensor", "name": "Speech", "dev_cla": "sound",
            "stat_t": topics.any_device("speaking"), "pl_on": "ON", "pl_off": "OFF",
        }),
    );
    for (key, name, what, text) in [
        ("transcript", "Last words", "transcript/segment", "segment.text"),
        ("scene", "Last scene", "scene", "description"),
        ("hazard", "Last hazard", "hazard", "what"),
    ] {
        let from = topics.any_device(what);
        add(
            key,
            json!({
                "p": "sensor", "name": name, "stat_t": from,
                "val_tpl": format!("{{{{ (value_json.data.{text} | default('', true) | string)[:250] }}}}"),
                "json_attr_t": from, "json_attr_tpl": "{{ value_json.data | tojson }}",
            }),
        );
    }
    add(
        "health",
        json!({
            "p": "sensor", "name": "Health", "ent_cat": "diagnostic",
            "stat_t": topics.health(), "val_tpl": "{{ value_json.status }}",
        }),
    );
    for (task, _) in tasks {
        add(
            &format!("task_{}", escape(task)),
            json!({
                "p": "sensor", "name": format!("Task {task}"), "ent_cat": "diagnostic", "stat_t": topics.task_state(task),
            }),
        );
    }
    let version = info.get("version").and_then(Value::as_str).unwrap_or(env!("CARGO_PKG_VERSION"));
    let model = info.get("device").and_then(Value::as_str).unwrap_or("Vigía");
    json!({
        "dev": { "ids": [id], "name": format!("Vigía {node}"), "mf": "Vigía", "mdl": model, "sw": version },
        "o": { "name": "vigia", "sw": version },
        "avty_t": topics.availability(),
        "qos": 1,
        "cmps": components,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_names_its_topics_and_every_entity_is_unique() {
        let topics = Topics::new("vigia", "caja 1");
        let tasks = [("vad".to_owned(), "ready".to_owned()), ("transcribe".to_owned(), "unavailable".to_owned())];
        let config = payload("caja 1", &topics, &tasks, &json!({"version": "9.9", "device": "Jetson Orin Nano"}));
        assert_eq!(topic("caja 1"), "homeassistant/device/caja_1/config");
        assert_eq!(config["avty_t"], "vigia/caja_1/availability");
        assert_eq!(config["dev"]["sw"], "9.9");
        assert_eq!(config["dev"]["mdl"], "Jetson Orin Nano");
        assert_eq!(config["cmps"]["task_vad"]["stat_t"], "vigia/caja_1/tasks/vad/state");
        assert_eq!(config["cmps"]["speaking"]["stat_t"], "vigia/caja_1/dev/+/speaking");
        let template = config["cmps"]["transcript"]["val_tpl"].as_str().unwrap();
        assert_eq!(template, "{{ (value_json.data.segment.text | default('', true) | string)[:250] }}");

        let components = config["cmps"].as_object().unwrap();
        let ids: std::collections::BTreeSet<_> =
            components.values().map(|it| it["unique_id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), components.len());
        assert!(components.values().all(|it| it["p"].is_string() && it["stat_t"].is_string()));
    }
}

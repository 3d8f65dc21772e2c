//! What leaves the box: every event goes through the hub, and from there to its listeners and to MQTT.
//!
//! Never knows an engine or a client: what MQTT says of the daemon (health, the tasks' states) comes in as closures.

pub mod hub;

#[cfg(feature = "broker")]
pub mod broker;
#[cfg(not(feature = "broker"))]
#[path = "no_broker.rs"]
pub mod broker;
pub mod commands;
mod discovery;
pub mod mqtt;
mod outbox;
mod password;
mod topics;

pub use broker::Broker;
pub use commands::{Command, Verb};
pub use hub::{Hub, Published};
pub use mqtt::{Mqtt, MqttStatus, Node};

/// Largest MQTT payload. The final result of an hour of speech with the times of its words is about 700 KiB.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;
/// Largest MQTT packet: a payload with its topic and properties.
const MAX_PACKET_BYTES: usize = MAX_PAYLOAD_BYTES + (16 << 10);

#[cfg(test)]
mod tests;

//! What is published: the envelope that `/ws/events`, MQTT and the store share.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::flow::SessionId;

macro_rules! event_types {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// What happened. The names are part of the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum EventType {
            $(#[serde(rename = $name)] $variant,)*
        }

        impl EventType {
            pub const ALL: &[EventType] = &[$(EventType::$variant,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(EventType::$variant => $name,)*
                }
            }

            pub fn from_name(name: &str) -> Option<EventType> {
                Self::ALL.iter().copied().find(|it| it.name() == name)
            }
        }
    };
}

event_types! {
    SessionStart = "session.start",
    SessionEnd = "session.end",
    Speech = "speech",
    TranscriptPartial = "transcript.partial",
    TranscriptSegment = "transcript.segment",
    TranscriptFinal = "transcript.final",
    SessionAnalysis = "session.analysis",
    Scene = "scene",
    Hazard = "hazard",
    ImageProgress = "image.progress",
    ImageDone = "image.done",
    SpeechDone = "speech.done",
    ModelState = "model.state",
    Health = "health",
}

/// An event before the hub has numbered it.
#[derive(Debug, Clone)]
pub struct Draft {
    pub kind: EventType,
    pub device: Arc<str>,
    /// `None`: the node itself is speaking.
    pub session: Option<SessionId>,
    pub data: Value,
}

/// The envelope. `seq` is gap-free per session, `id` is the key for dropping doubles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    #[schema(example = 1)]
    pub v: u8,
    #[schema(example = "01JD8Z0V6S8X2Q3W4E5R6T7Y8U")]
    pub id: String,
    pub seq: u64,
    #[serde(rename = "type")]
    pub kind: EventType,
    #[schema(example = "2026-01-02T03:04:05.678Z")]
    pub ts_at: String,
    #[schema(value_type = String)]
    pub node: Arc<str>,
    #[schema(value_type = String)]
    pub device: Arc<str>,
    #[schema(value_type = Option<String>)]
    pub session: Option<SessionId>,
    #[schema(value_type = Object)]
    pub data: Value,
}

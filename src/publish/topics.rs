//! Where each event goes on MQTT: topic, payload, guarantee. The one place that knows the names of the topics.

use serde_json::Value;

use crate::flow::{Event, EventType};

const MAX_VERB_BYTES: usize = 64;

/// The topics of one box: `<prefix>/<node>/…`.
#[derive(Debug, Clone)]
pub(super) struct Topics {
    base: String,
}

/// What is sent for an event, and how.
#[derive(Debug, PartialEq)]
pub(super) struct Route {
    pub(super) topic: String,
    pub(super) payload: Payload,
    pub(super) delivery: Delivery,
    pub(super) retain: bool,
}

#[derive(Debug, PartialEq)]
pub(super) enum Payload {
    /// The event as `/ws/events` shows it.
    Envelope,
    /// Only its `data`.
    Data,
    Word(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Worth something only now: straight from the hub, lost when nobody is there.
    Live,
    /// Through the outbox: survives a broker that is away and a daemon that is killed.
    Durable,
}

impl Delivery {
    pub(super) fn of(kind: EventType) -> Delivery {
        match kind {
            EventType::TranscriptPartial => Delivery::Live,
            _ => Delivery::Durable,
        }
    }
}

impl Topics {
    pub(super) fn new(prefix: &str, node: &str) -> Topics {
        let prefix: Vec<String> = prefix.split('/').filter(|part| !part.is_empty()).map(escape).collect();
        Topics { base: format!("{}/{}", prefix.join("/"), escape(node)) }
    }

    pub(super) fn availability(&self) -> String {
        self.at("availability")
    }

    pub(super) fn info(&self) -> String {
        self.at("info")
    }

    pub(super) fn health(&self) -> String {
        self.at("health")
    }

    pub(super) fn task_state(&self, task: &str) -> String {
        self.at(&format!("tasks/{}/state", escape(task)))
    }

    /// Any device's; only for reading.
    pub(super) fn any_device(&self, what: &str) -> String {
        self.at(&format!("dev/+/{what}"))
    }

    pub(super) fn any_command(&self) -> String {
        self.at("cmd/+")
    }

    /// The verb of a command's topic. Longer ones than any that is known: no topic has room for their reply.
    pub(super) fn command<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(&self.base)?.strip_prefix("/cmd/").filter(|verb| verb.len() <= MAX_VERB_BYTES)
    }

    /// `verb` is what somebody else wrote: a reply never lands outside `cmd/`.
    pub(super) fn reply(&self, verb: &str) -> String {
        self.at(&format!("cmd/{}/reply", escape(verb)))
    }

    /// `None`: the event is not for MQTT.
    pub(super) fn route(&self, event: &Event) -> Option<Route> {
        let device = |what: &str| Some(self.at(&format!("dev/{}/{what}", device_part(&event.device))));
        let session =
            |what: &str| Some(self.at(&format!("sessions/{}/{what}", escape(event.session.as_ref()?.as_str()))));
        let named = |key: &str| event.data.get(key).and_then(Value::as_str).map(escape);
        let mut route = Route {
            topic: String::new(),
            payload: Payload::Envelope,
            delivery: Delivery::of(event.kind),
            retain: false,
        };
        route.topic = match event.kind {
            EventType::SessionStart | EventType::SessionEnd => session("state"),
            EventType::TranscriptFinal => session("final"),
            EventType::SessionAnalysis => session("analysis"),
            EventType::TranscriptSegment => device("transcript/segment"),
            EventType::TranscriptPartial => device("transcript/partial"),
            EventType::Speech => {
                let speaking = event.data.get("state").and_then(Value::as_str) == Some("start");
                route.payload = Payload::Word(if speaking { "ON" } else { "OFF" });
                device("speaking")
            }
            EventType::Scene => device("scene"),
            EventType::Hazard => device("hazard"),
            EventType::ImageProgress | EventType::ImageDone | EventType::SpeechDone => {
                named("job").map(|job| self.at(&format!("jobs/{job}")))
            }
            EventType::ModelState => {
                route.payload = Payload::Data;
                route.retain = true;
                named("model").map(|model| self.at(&format!("models/{model}/state")))
            }
            // Published on its own clock, whole.
            EventType::Health => None,
        }?;
        Some(route)
    }

    fn at(&self, rest: &str) -> String {
        format!("{}/{rest}", self.base)
    }
}

/// A part of a topic out of any text: only `[A-Za-z0-9_-]`, never empty.
pub(super) fn escape(part: &str) -> String {
    if part.is_empty() {
        return "_".to_owned();
    }
    part.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

fn device_part(device: &str) -> String {
    if device.is_empty() { "default".to_owned() } else { escape(device) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::flow::SessionId;

    fn event(kind: EventType, data: Value) -> Event {
        Event {
            v: 1,
            id: "01".to_owned(),
            seq: 1,
            kind,
            ts_at: String::new(),
            node: "box".into(),
            device: "gafas de José".into(),
            session: Some(SessionId::parse("s#1+x").unwrap()),
            data,
        }
    }

    #[test]
    fn every_kind_of_event_has_its_topic() {
        let topics = Topics::new("vigia", "my box");
        let topic = |kind, data| topics.route(&event(kind, data)).map(|route| route.topic);
        for (kind, data, expected) in [
            (EventType::SessionStart, json!({}), "sessions/s_1_x/state"),
            (EventType::SessionEnd, json!({}), "sessions/s_1_x/state"),
            (EventType::Speech, json!({"state": "start"}), "dev/gafas_de_Jos_/speaking"),
            (EventType::TranscriptPartial, json!({}), "dev/gafas_de_Jos_/transcript/partial"),
            (EventType::TranscriptSegment, json!({}), "dev/gafas_de_Jos_/transcript/segment"),
            (EventType::TranscriptFinal, json!({}), "sessions/s_1_x/final"),
            (EventType::SessionAnalysis, json!({}), "sessions/s_1_x/analysis"),
            (EventType::Scene, json!({}), "dev/gafas_de_Jos_/scene"),
            (EventType::Hazard, json!({}), "dev/gafas_de_Jos_/hazard"),
            (EventType::ImageProgress, json!({"job": "j1"}), "jobs/j1"),
            (EventType::ImageDone, json!({"job": "j1"}), "jobs/j1"),
            (EventType::SpeechDone, json!({"job": "j/2"}), "jobs/j_2"),
            (EventType::ModelState, json!({"model": "silero-vad"}), "models/silero-vad/state"),
        ] {
            assert_eq!(topic(kind, data).unwrap(), format!("vigia/my_box/{expected}"), "{kind:?}");
        }
        assert_eq!(topic(EventType::Health, json!({})), None);
        assert_eq!(topic(EventType::ImageDone, json!({})), None, "a job without a name has no topic");
    }

    #[test]
    fn only_partials_may_be_lost_and_only_states_are_kept() {
        let topics = Topics::new("vigia", "box");
        for kind in EventType::ALL {
            let Some(route) = topics.route(&event(*kind, json!({"job": "j", "model": "m"}))) else { continue };
            assert_eq!(route.delivery == Delivery::Live, *kind == EventType::TranscriptPartial, "{kind:?}");
            assert_eq!(route.retain, *kind == EventType::ModelState, "{kind:?}");
        }
        let word = |state| topics.route(&event(EventType::Speech, json!({"state": state}))).unwrap().payload;
        assert_eq!(word("start"), Payload::Word("ON"));
        assert_eq!(word("end"), Payload::Word("OFF"));
    }

    #[test]
    fn names_from_outside_cannot_leave_their_part() {
        let topics = Topics::new("/home//vigia/", "");
        assert_eq!(topics.info(), "home/vigia/_/info");
        assert_eq!(topics.reply("../availability"), "home/vigia/_/cmd/___availability/reply");
        assert_eq!(topics.command("home/vigia/_/cmd/tts"), Some("tts"));
        assert_eq!(topics.command("home/vigia/other/cmd/tts"), None);
        assert_eq!(topics.command(&format!("home/vigia/_/cmd/{}", "x".repeat(65_000))), None);
        assert_eq!(escape(""), "_");
        assert_eq!(device_part(""), "default");
    }
}

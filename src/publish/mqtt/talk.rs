//! What is said on one connection: the states when it begins, events as they come, commands and their replies,
//! `offline` and goodbye at the end.
//!
//! Events wait until the broker has acknowledged `online`: one that breaks off before says nothing about them.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use rumqttc::{AsyncClient, Publish, QoS};
use serde_json::Value;
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    time::{self, Instant, MissedTickBehavior},
};

use super::{Mqtt, QUEUE};
use crate::{
    base::{Error, Kind, Result, Shutdown},
    flow::EventType,
    publish::{
        Published, Verb, commands, discovery,
        outbox::{Message, Outbox, message},
        topics::Delivery,
    },
    telemetry::events::{MqttAcked, MqttPublished, MqttSkipped, emit},
};

const HEALTH_EVERY: Duration = Duration::from_secs(30);
/// A cursor that is behind only means doubles after a crash: not worth a commit for every event.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// At the end: for the events that are left, then for the goodbye.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
const MAX_COMMANDS: usize = 16;
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Messages that wait for the broker; what is asked of us beyond gets no answer. Half of the queue: whoever asks faster
/// than the broker takes answers must not cost us the connection.
const MAX_UNSENT: usize = QUEUE / 2;

/// What the connection tells.
pub(super) enum Note {
    /// The oldest message with a guarantee that was not sent yet has been, under this id.
    Sent(u16),
    Acked(u16),
    Message(Publish),
}

/// Whose acknowledgement is awaited.
#[derive(Clone, Copy, PartialEq)]
enum Awaited {
    Event(i64),
    /// The last word; the goodbye may follow it.
    Offline,
    Other,
}

pub(super) struct Talk<'a> {
    mqtt: &'a Mqtt,
    outbox: &'a mut Outbox,
    client: AsyncClient,
    heard: mpsc::Receiver<Note>,
    unsent: VecDeque<Awaited>,
    unacked: HashMap<u16, Awaited>,
    /// When an acknowledgement has to be here, if one is awaited.
    ack_due: Option<Instant>,
    /// The broker has acknowledged something on this connection.
    willing: bool,
    /// As last published.
    tasks: HashMap<String, String>,
    replies: FuturesUnordered<BoxFuture<'static, (Verb, Value)>>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Open,
    /// What is left may go until then.
    Draining(Instant),
    /// `offline` is on its way.
    Leaving(Instant),
    Left,
}

impl<'a> Talk<'a> {
    pub(super) fn new(
        mqtt: &'a Mqtt,
        outbox: &'a mut Outbox,
        client: AsyncClient,
        heard: mpsc::Receiver<Note>,
    ) -> Talk<'a> {
        Talk {
            mqtt,
            outbox,
            client,
            heard,
            unsent: VecDeque::new(),
            unacked: HashMap::new(),
            ack_due: None,
            willing: false,
            tasks: HashMap::new(),
            replies: FuturesUnordered::new(),
            stage: Stage::Open,
        }
    }

    /// Returns only when the connection is of no use any more; after a goodbye it waits for the pump to end.
    pub(super) async fn run(&mut self, shutdown: &Shutdown) -> Error {
        match self.talk(shutdown).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Puts things in order after the connection, however it ended.
    pub(super) async fn end(&mut self) {
        // What was acknowledged just before the line broke.
        while let Ok(note) = self.heard.try_recv() {
            match note {
                Note::Sent(_) | Note::Acked(_) => drop(self.hear(note)),
                Note::Message(_) => (),
            }
        }
        if let Err(error) = self.outbox.save().await {
            log::warn!("how far MQTT has come was not noted; some events will be sent twice: {}", error.full());
        }
        self.outbox.broken(self.willing && self.stage == Stage::Open);
    }

    async fn talk(&mut self, shutdown: &Shutdown) -> Result<Infallible> {
        let mut live = self.mqtt.hub.subscribe();
        self.greet()?;
        let mut health = time::interval(HEALTH_EVERY);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut save_at = None;
        loop {
            self.send_events().await?;
            self.advance()?;
            if save_at.is_none() && self.outbox.is_unsaved() {
                save_at = Some(Instant::now() + SAVE_AFTER);
            }
            let reading = self.willing && self.outbox.may_read();
            tokio::select! {
                note = self.heard.recv() => match note {
                    Some(note) => self.hear(note)?,
                    None => return Err(Error::internal("the MQTT connection ended")),
                },
                () = self.outbox.more(), if reading => (),
                published = live.recv() => match published {
                    Ok(published) => self.live(&published)?,
                    // Partials that were missed are of no use now.
                    Err(RecvError::Lagged(_)) => (),
                    Err(RecvError::Closed) => return Err(Error::internal("the hub is gone")),
                },
                Some((verb, reply)) = self.replies.next() => self.reply(verb.name(), &reply)?,
                _ = health.tick() => {
                    self.say_json(self.mqtt.topics.health(), &(self.mqtt.node.health)(), true)?;
                    self.say_tasks()?;
                }
                () = at(save_at) => {
                    save_at = None;
                    // A store that is full is no reason to leave the broker: the next round tries again.
                    if let Err(error) = self.outbox.save().await {
                        log::debug!("how far MQTT has come is not noted: {}", error.full());
                    }
                }
                () = at(self.ack_due) => return Err(silent()),
                () = at(self.stage.limit()) => self.give_up()?,
                () = shutdown.wait(), if self.stage == Stage::Open => {
                    self.mqtt.store.flush().await?;
                    self.stage = Stage::Draining(Instant::now() + DRAIN_LIMIT);
                }
            }
        }
    }

    fn greet(&mut self) -> Result<()> {
        let topics = &self.mqtt.topics;
        self.say(kept(topics.availability(), "online"), Awaited::Other)?;
        self.say_json(topics.info(), &self.mqtt.node.info, true)?;
        self.say_tasks()?;
        self.say_discovery()?;
        self.subscribe(topics.any_command())?;
        if self.mqtt.discovery {
            self.subscribe(discovery::STATUS_TOPIC.to_owned())?;
        }
        Ok(())
    }

    async fn send_events(&mut self) -> Result<()> {
        while self.willing && matches!(self.stage, Stage::Open | Stage::Draining(_)) {
            self.outbox.refill().await?;
            let Some((position, message)) = self.outbox.next() else { break };
            self.say(message, Awaited::Event(position))?;
        }
        Ok(())
    }

    fn live(&mut self, published: &Published) -> Result<()> {
        let Published { event, json, .. } = published;
        if event.kind == EventType::ModelState {
            self.say_tasks()?;
        }
        if Delivery::of(event.kind) == Delivery::Live
            && self.stage == Stage::Open
            && let Some(message) = message(&self.mqtt.topics, event, json)
        {
            // A full queue: the next partial says more anyway.
            match self.client.try_publish(message.topic, QoS::AtMostOnce, false, message.payload) {
                Ok(()) => emit(MqttPublished),
                Err(_) => emit(MqttSkipped { reason: "partial" }),
            }
        }
        Ok(())
    }

    fn hear(&mut self, note: Note) -> Result<()> {
        match note {
            Note::Sent(id) => {
                let awaited = self.unsent.pop_front();
                let awaited = awaited.ok_or_else(|| Error::internal("the MQTT client sent what it was not given"))?;
                self.unacked.insert(id, awaited);
            }
            Note::Acked(id) => {
                emit(MqttAcked);
                self.willing = true;
                let acked = self.unacked.remove(&id);
                let awaiting = !self.unacked.is_empty() || !self.unsent.is_empty();
                self.ack_due = awaiting.then(|| Instant::now() + self.mqtt.patience.ack);
                match acked {
                    Some(Awaited::Event(position)) => self.outbox.arrived(position),
                    Some(Awaited::Offline) => {
                        self.stage = Stage::Left;
                        self.client.try_disconnect().map_err(full)?;
                    }
                    Some(Awaited::Other) | None => (),
                }
            }
            Note::Message(publish) => self.asked(&publish)?,
        }
        Ok(())
    }

    fn asked(&mut self, publish: &Publish) -> Result<()> {
        if self.unsent.len() >= MAX_UNSENT {
            emit(MqttSkipped { reason: "answer" });
            return Ok(());
        }
        if publish.topic == discovery::STATUS_TOPIC {
            return if publish.payload[..] == b"online"[..] { self.say_discovery() } else { Ok(()) };
        }
        // A retained command would be carried out anew with every connection.
        let Some(verb) = self.mqtt.topics.command(&publish.topic).filter(|_| !publish.retain) else { return Ok(()) };
        if self.replies.len() >= MAX_COMMANDS {
            let busy = Error::new(Kind::Busy, "too many commands are being worked on").hint("try again in a moment");
            return self.reply(verb, &commands::refusal(verb, busy));
        }
        match commands::hand_on(verb, &publish.payload, &self.mqtt.commands) {
            Ok(asked) => {
                let verb = asked.verb;
                let late =
                    move |_| (verb, commands::refusal(verb.name(), Error::new(Kind::Timeout, "it took too long")));
                let answer = time::timeout(COMMAND_LIMIT, asked.reply());
                self.replies.push(Box::pin(async move { answer.await.unwrap_or_else(late) }));
                Ok(())
            }
            Err(refusal) => self.reply(verb, &refusal),
        }
    }

    /// From stage to stage once shutdown has begun.
    fn advance(&mut self) -> Result<()> {
        let drained = self.outbox.is_empty() && self.replies.is_empty() || !self.willing;
        if matches!(self.stage, Stage::Draining(_)) && drained {
            self.leave()?;
        }
        Ok(())
    }

    /// A stage took too long.
    fn give_up(&mut self) -> Result<()> {
        match self.stage {
            Stage::Draining(_) => {
                log::warn!("MQTT: not everything could be sent in time; the rest follows after the next start");
                self.leave()
            }
            // Without a goodbye: the broker publishes our will, which says the same.
            _ => Err(silent()),
        }
    }

    fn leave(&mut self) -> Result<()> {
        self.stage = Stage::Leaving(Instant::now() + GOODBYE_LIMIT);
        self.say(kept(self.mqtt.topics.availability(), "offline"), Awaited::Offline)
    }

    fn say_tasks(&mut self) -> Result<()> {
        for (task, state) in (self.mqtt.node.tasks)() {
            if self.tasks.get(&task) != Some(&state) {
                self.say(kept(self.mqtt.topics.task_state(&task), &state), Awaited::Other)?;
                self.tasks.insert(task, state);
            }
        }
        Ok(())
    }

    fn say_discovery(&mut self) -> Result<()> {
        if !self.mqtt.discovery {
            return Ok(());
        }
        let node = &self.mqtt.node;
        let config = discovery::payload(&node.name, &self.mqtt.topics, &(node.tasks)(), &node.info);
        self.say_json(discovery::topic(&node.name), &config, true)
    }

    fn reply(&mut self, verb: &str, reply: &Value) -> Result<()> {
        self.say_json(self.mqtt.topics.reply(verb), reply, false)
    }

    fn say_json(&mut self, topic: String, json: &Value, retain: bool) -> Result<()> {
        let payload = json.to_string().into_bytes();
        self.say(Message { topic, payload, delivery: Delivery::Durable, retain }, Awaited::Other)
    }

    /// Never waits: the pump, which makes room, waits for us.
    fn say(&mut self, message: Message, awaited: Awaited) -> Result<()> {
        let Message { topic, payload, retain, .. } = message;
        self.client.try_publish(topic, QoS::AtLeastOnce, retain, payload).map_err(full)?;
        emit(MqttPublished);
        self.unsent.push_back(awaited);
        self.ack_due.get_or_insert(Instant::now() + self.mqtt.patience.ack);
        Ok(())
    }

    fn subscribe(&self, filter: String) -> Result<()> {
        self.client.try_subscribe(filter, QoS::AtLeastOnce).map_err(full)
    }
}

impl Stage {
    fn limit(self) -> Option<Instant> {
        match self {
            Stage::Draining(limit) | Stage::Leaving(limit) => Some(limit),
            Stage::Open | Stage::Left => None,
        }
    }
}

fn kept(topic: String, word: &str) -> Message {
    Message { topic, payload: word.as_bytes().to_vec(), delivery: Delivery::Durable, retain: true }
}

fn silent() -> Error {
    Error::new(Kind::Timeout, "the MQTT broker does not acknowledge what it is sent")
}

fn full(error: rumqttc::ClientError) -> Error {
    Error::unavailable("the MQTT broker does not take messages").cause(error)
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

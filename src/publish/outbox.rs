//! The durable lane to MQTT: reads the journal after its cursor, hands out what must arrive, and moves the cursor on
//! as it is acknowledged. Knows nothing of connections but that they break.
//!
//! The cursor never passes an event that the broker has not acknowledged. After a break or a restart everything
//! after it is sent again: nothing is lost, and doubles have the same `id`.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::watch;

use crate::{
    base::Result,
    flow::Event,
    publish::{
        MAX_PAYLOAD_BYTES,
        topics::{Delivery, Payload, Topics},
    },
    store::Store,
    telemetry::events::{MqttSkipped, emit},
};

/// Under this name the journal keeps how far MQTT has come.
const CURSOR: &str = "mqtt";
/// Messages on their way at a time; below rumqttc's and mosquitto's own limits.
const WINDOW: usize = 64;
const READ: usize = 256;
/// A broker that closes the connection this often on the same message, sent alone, after having acknowledged another
/// on the same connection, does not want it: it is left out so that the rest may pass.
const REFUSALS: u32 = 5;
/// From so many on the message is sent alone.
const SUSPICIONS: u32 = 2;

/// What MQTT is given to send.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) delivery: Delivery,
    pub(super) retain: bool,
}

pub(super) struct Outbox {
    store: Store,
    topics: Topics,
    committed: watch::Receiver<i64>,
    /// Read from the journal up to here.
    read: i64,
    /// Everything up to here has arrived, or need not.
    arrived: i64,
    /// What the journal knows of `arrived`.
    saved: i64,
    ready: VecDeque<(i64, Message)>,
    /// Everything between `arrived` and `read`, and whether it is done with.
    between: VecDeque<(i64, bool)>,
    sent: usize,
    suspect: Option<Suspect>,
}

/// The first message that had not arrived when the connection broke.
#[derive(Clone, Copy)]
struct Suspect {
    position: i64,
    breaks: u32,
}

impl Outbox {
    /// `first`: where to begin at the very first start; what was before MQTT was switched on is history.
    pub(super) async fn open(store: Store, topics: Topics, first: i64) -> Result<Outbox> {
        let cursor = match store.cursor(CURSOR).await? {
            Some(position) => position,
            None => {
                store.set_cursor(CURSOR, first).await?;
                first
            }
        };
        Ok(Outbox {
            committed: store.committed(),
            store,
            topics,
            read: cursor,
            arrived: cursor,
            saved: cursor,
            ready: VecDeque::new(),
            between: VecDeque::new(),
            sent: 0,
            suspect: None,
        })
    }

    /// A connection is gone: what has not arrived goes again. `willing`: the broker had acknowledged something on it.
    pub(super) fn broken(&mut self, willing: bool) {
        let first = self.between.iter().find(|(_, done)| !done).map(|(position, _)| *position);
        let was_sent = first.is_some_and(|first| self.ready.front().is_none_or(|(ready, _)| first < *ready));
        if let Some(position) = first.filter(|_| willing && was_sent) {
            let before = self.suspect.filter(|it| it.position == position).map_or(0, |it| it.breaks);
            self.suspect = Some(Suspect { position, breaks: before + 1 });
        }
        self.ready.clear();
        self.between.clear();
        self.sent = 0;
        self.read = self.arrived;
    }

    /// Resolves when the journal has something that has not been read. May be cancelled at any time.
    pub(super) async fn more(&mut self) {
        let read = self.read;
        // An error means that the store is closed: nothing will ever come.
        if self.committed.wait_for(|committed| *committed > read).await.is_err() {
            std::future::pending().await
        }
    }

    /// Everything read is on its way, and more may follow.
    pub(super) fn may_read(&self) -> bool {
        self.ready.is_empty() && self.sent < WINDOW
    }

    /// Reads on if that is of use now.
    pub(super) async fn refill(&mut self) -> Result<()> {
        // Asked before the journal is read: what is committed meanwhile may be missing in the answer.
        let committed = *self.committed.borrow();
        if !self.may_read() || committed <= self.read {
            return Ok(());
        }
        let events = self.store.events_after(self.read, READ).await?;
        if events.is_empty() {
            // What was there has been deleted since.
            self.read = committed;
        }
        for (position, json) in events {
            self.read = position;
            let message = self.message(position, &json);
            self.between.push_back((position, message.is_none()));
            self.ready.extend(message.map(|message| (position, message)));
        }
        self.settle();
        Ok(())
    }

    /// The next message to send, and its position, as long as not too many are on their way.
    pub(super) fn next(&mut self) -> Option<(i64, Message)> {
        let position = self.ready.front()?.0;
        let alone = self.suspect.is_some_and(|it| it.position == position && it.breaks >= SUSPICIONS);
        let behind_suspect = self.suspect.is_some_and(|it| it.position < position && it.breaks >= SUSPICIONS);
        let window = if alone || behind_suspect { 1 } else { WINDOW };
        if self.sent >= window {
            return None;
        }
        self.sent += 1;
        self.ready.pop_front()
    }

    pub(super) fn arrived(&mut self, position: i64) {
        self.sent = self.sent.saturating_sub(1);
        if let Some(entry) = self.between.iter_mut().find(|(it, _)| *it == position) {
            entry.1 = true;
        }
        if self.suspect.is_some_and(|it| it.position == position) {
            self.suspect = None;
        }
        self.settle();
    }

    pub(super) fn is_unsaved(&self) -> bool {
        self.saved != self.arrived
    }

    pub(super) async fn save(&mut self) -> Result<()> {
        if self.is_unsaved() {
            self.store.set_cursor(CURSOR, self.arrived).await?;
            self.saved = self.arrived;
        }
        Ok(())
    }

    /// Everything that is in the journal has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.between.is_empty() && *self.committed.borrow() <= self.read
    }

    fn settle(&mut self) {
        while let Some((position, _)) = self.between.pop_front_if(|(_, done)| *done) {
            self.arrived = position;
        }
        if self.between.is_empty() {
            self.arrived = self.read;
        }
    }

    /// `None`: nothing to send, or nothing that can be.
    fn message(&mut self, position: i64, json: &Arc<str>) -> Option<Message> {
        let event: Event = match serde_json::from_str(json) {
            Ok(event) => event,
            Err(error) => {
                log::error!("position {position} of the journal is no event and was not sent to MQTT: {error}");
                emit(MqttSkipped { reason: "unreadable" });
                return None;
            }
        };
        let message = message(&self.topics, &event, json).filter(|it| it.delivery == Delivery::Durable)?;
        let size = message.payload.len();
        if size > MAX_PAYLOAD_BYTES {
            log::error!(
                "{} {} was not sent to MQTT: {size} bytes are more than {MAX_PAYLOAD_BYTES}; it is in the journal",
                event.kind.name(),
                event.id,
            );
            emit(MqttSkipped { reason: "too_large" });
            return None;
        }
        if self.suspect.is_some_and(|it| it.position == position && it.breaks >= REFUSALS) {
            log::error!(
                "{} {} ({size} bytes) was not sent to MQTT: the broker closed the connection on it {REFUSALS} times; \
                 look for a limit of sizes or topics there",
                event.kind.name(),
                event.id,
            );
            emit(MqttSkipped { reason: "refused" });
            self.suspect = None;
            return None;
        }
        Some(message)
    }
}

/// What an event is on MQTT.
pub(super) fn message(topics: &Topics, event: &Event, json: &str) -> Option<Message> {
    let route = topics.route(event)?;
    let payload = match route.payload {
        Payload::Envelope => json.as_bytes().to_vec(),
        Payload::Data => event.data.to_string().into_bytes(),
        Payload::Word(word) => word.as_bytes().to_vec(),
    };
    Some(Message { topic: route.topic, payload, delivery: route.delivery, retain: route.retain })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        flow::{Draft, EventType, SessionId},
        publish::Hub,
    };

    struct Bench {
        store: Store,
        hub: Hub,
        _dir: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Bench { hub: Hub::new("box".into(), store.clone(), 16), store, _dir: dir }
    }

    impl Bench {
        async fn outbox(&self) -> Outbox {
            let first = self.store.last_position();
            Outbox::open(self.store.clone(), Topics::new("vigia", "box"), first).await.unwrap()
        }

        async fn publish(&self, kind: EventType, data: Value) -> i64 {
            let session = Some(SessionId::parse("s").unwrap());
            let published = self.hub.publish(Draft { kind, device: "default".into(), session, data }).await;
            self.store.flush().await.unwrap();
            published.position
        }
    }

    async fn take(outbox: &mut Outbox) -> Option<i64> {
        outbox.refill().await.unwrap();
        outbox.next().map(|(position, _)| position)
    }

    #[tokio::test]
    async fn the_cursor_follows_what_has_arrived_and_survives_a_restart() {
        let bench = bench();
        bench.publish(EventType::TranscriptSegment, json!("before MQTT was switched on")).await;
        let mut outbox = bench.outbox().await;
        assert_eq!(take(&mut outbox).await, None);

        let first = bench.publish(EventType::TranscriptSegment, json!(1)).await;
        let partial = bench.publish(EventType::TranscriptPartial, json!(2)).await;
        let last = bench.publish(EventType::TranscriptFinal, json!(3)).await;
        assert_eq!(take(&mut outbox).await, Some(first));
        assert_eq!(take(&mut outbox).await, Some(last), "a partial is not for the outbox");
        assert_eq!(take(&mut outbox).await, None);
        outbox.arrived(last);
        assert!(!outbox.is_unsaved(), "the first has not arrived");
        outbox.arrived(first);
        outbox.save().await.unwrap();
        assert!(outbox.is_empty());
        assert!(partial < last);

        let next = bench.publish(EventType::Scene, json!(4)).await;
        assert_eq!(take(&mut outbox).await, Some(next));
        bench.store.flush().await.unwrap();
        let mut again = bench.outbox().await;
        assert_eq!(take(&mut again).await, Some(next), "sent before the restart, never acknowledged");
    }

    #[tokio::test]
    async fn a_break_sends_again_what_has_not_arrived_in_order() {
        let bench = bench();
        let mut outbox = bench.outbox().await;
        let mut positions = Vec::new();
        for number in 0..200 {
            positions.push(bench.publish(EventType::TranscriptSegment, json!(number)).await);
        }
        let mut sent = Vec::new();
        while let Some(position) = take(&mut outbox).await {
            sent.push(position);
        }
        assert_eq!(sent, positions[..WINDOW]);
        sent[..10].iter().for_each(|position| outbox.arrived(*position));
        outbox.broken(true);
        for position in &positions[10..] {
            assert_eq!(take(&mut outbox).await, Some(*position));
            outbox.arrived(*position);
        }
        assert!(outbox.is_empty());
    }

    #[tokio::test]
    async fn an_event_that_no_broker_takes_does_not_hold_up_the_others() {
        let bench = bench();
        let mut outbox = bench.outbox().await;
        bench.publish(EventType::TranscriptFinal, json!("x".repeat(MAX_PAYLOAD_BYTES))).await;
        let refused = bench.publish(EventType::TranscriptSegment, json!(1)).await;
        let fine = bench.publish(EventType::TranscriptSegment, json!(2)).await;
        for round in 0..REFUSALS {
            assert_eq!(take(&mut outbox).await, Some(refused), "the oversized one is left out");
            assert_eq!(take(&mut outbox).await.is_some(), round < SUSPICIONS, "a suspect goes alone");
            outbox.broken(true);
        }
        assert_eq!(take(&mut outbox).await, Some(fine));
        outbox.arrived(fine);
        assert!(outbox.is_empty());
    }

    #[tokio::test]
    async fn a_broker_that_is_down_makes_no_event_suspect() {
        let bench = bench();
        let mut outbox = bench.outbox().await;
        let first = bench.publish(EventType::TranscriptSegment, json!(1)).await;
        for _ in 0..3 * REFUSALS {
            assert_eq!(take(&mut outbox).await, Some(first));
            outbox.broken(false);
        }
        // Breaks before anything was sent say nothing either.
        for _ in 0..3 * REFUSALS {
            outbox.refill().await.unwrap();
            outbox.broken(true);
        }
        assert_eq!(take(&mut outbox).await, Some(first));
    }

    #[tokio::test]
    async fn what_comes_while_only_deleted_events_are_read_is_not_passed_over() {
        let bench = bench();
        let mut outbox = bench.outbox().await;
        for _ in 0..20 {
            bench.publish(EventType::TranscriptSegment, json!(1)).await;
            bench.store.delete_session(&SessionId::parse("s").unwrap()).await.unwrap();
            let mut refilling = Box::pin(outbox.refill());
            let reading = futures_util::poll!(&mut refilling).is_pending();
            // The read connection is the same: once this is answered, the journal has been read.
            bench.store.last_seq(None).await.unwrap();
            let next = bench.publish(EventType::Hazard, json!(2)).await;
            if reading {
                refilling.as_mut().await.unwrap();
            }
            drop(refilling);
            assert_eq!(take(&mut outbox).await, Some(next));
            outbox.arrived(next);
        }
    }

    #[tokio::test]
    async fn what_is_deleted_before_it_was_sent_is_passed_over() {
        let bench = bench();
        let mut outbox = bench.outbox().await;
        bench.publish(EventType::TranscriptSegment, json!(1)).await;
        bench.store.delete_session(&SessionId::parse("s").unwrap()).await.unwrap();
        assert_eq!(take(&mut outbox).await, None);
        assert!(outbox.is_empty());
        let next = bench.publish(EventType::Hazard, json!(2)).await;
        assert_eq!(take(&mut outbox).await, Some(next));
    }
}

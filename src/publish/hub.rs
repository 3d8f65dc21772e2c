//! The hub: numbers every event and hands it to the journal and to live listeners, in one order for all.
//!
//! Live listeners get an event at once, before it is committed: words must not wait for the disk. Who needs what was
//! before (`from=…`): subscribe first, then `store.flush()`, then read the journal, then skip live events up to the
//! last position read: no gap, no double. Publishing never fails: when the journal refuses (disk full), events
//! go on live and the log says what is missing.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::{Mutex, broadcast};
use ulid::{Generator, Ulid};

use crate::{
    base::clock,
    flow::{Draft, Event, EventType, SessionId},
    store::{Note, Store},
};

/// A handle, cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    node: Arc<str>,
    store: Store,
    live: broadcast::Sender<Arc<Published>>,
    numbers: Mutex<Numbers>,
}

/// An event with its place in the journal and its one serialised form.
#[derive(Debug)]
pub struct Published {
    pub position: i64,
    pub event: Arc<Event>,
    pub json: Arc<str>,
}

/// `None` is the node itself.
type Speaker = Option<SessionId>;

struct Numbers {
    position: i64,
    ids: Generator,
    counters: HashMap<Speaker, Counter>,
    /// Who may be forgotten once this position is committed.
    leaving: VecDeque<(i64, SessionId)>,
}

struct Counter {
    seq: u64,
    /// Of its last event in the journal's queue.
    position: i64,
    /// Between `session.start` and `session.end`.
    open: bool,
}

impl Hub {
    /// `capacity`: how many events a live listener may be behind before it misses some (and is told so).
    pub fn new(node: Arc<str>, store: Store, capacity: usize) -> Hub {
        let numbers = Numbers {
            position: store.last_position(),
            ids: Generator::new(),
            counters: HashMap::new(),
            leaving: VecDeque::new(),
        };
        Hub(Arc::new(Inner { node, store, live: broadcast::Sender::new(capacity), numbers: Mutex::new(numbers) }))
    }

    /// Every event published from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.0.live.subscribe()
    }

    /// Waits for the journal's queue when it is full, within a limit. Dropping the future before it is ready publishes
    /// nothing and leaves no gap.
    pub async fn publish(&self, draft: Draft) -> Arc<Published> {
        self.publish_with(draft, Vec::new()).await
    }

    /// As `publish`; what is noted is committed together with the event, or not at all.
    pub async fn publish_with(&self, draft: Draft, notes: Vec<Note>) -> Arc<Published> {
        // Held until the event is in the queue: the order of the numbers is the order of the journal.
        let mut numbers = self.0.numbers.lock().await;
        numbers.forget_the_committed(*self.0.store.committed().borrow());
        let seq = match numbers.counters.get(&draft.session) {
            Some(counter) => counter.seq + 1,
            None => self.journaled_seq(&draft.session).await + 1,
        };

        let event = Arc::new(Event {
            v: 1,
            id: numbers.next_id(),
            seq,
            kind: draft.kind,
            ts_at: clock::now_at(),
            node: Arc::clone(&self.0.node),
            device: draft.device,
            session: draft.session,
            data: draft.data,
        });
        let json: Arc<str> = serde_json::to_string(&*event).expect("text, numbers and JSON make JSON").into();
        let published = Arc::new(Published { position: numbers.position + 1, event, json });

        let Published { position, event, json } = &*published;
        let appended = self.0.store.append(*position, Arc::clone(event), Arc::clone(json), notes).await;
        numbers.given(*position, event, appended.is_ok());
        if let Err(error) = appended {
            log::error!("{} {} is not in the journal: {}", event.kind.name(), event.id, error.full());
        }
        // An error only means that nobody listens.
        drop(self.0.live.send(Arc::clone(&published)));
        published
    }

    /// A session that was open when the daemon ended goes on: its numbers are kept in memory as after its start.
    pub async fn go_on(&self, session: &SessionId) {
        let mut numbers = self.0.numbers.lock().await;
        let speaker = Some(session.clone());
        let seq = self.journaled_seq(&speaker).await;
        numbers.counters.entry(speaker).or_insert(Counter { seq, position: 0, open: true }).open = true;
    }

    async fn journaled_seq(&self, speaker: &Speaker) -> u64 {
        self.0.store.last_seq(speaker.as_ref()).await.unwrap_or_else(|error| {
            log::error!("events are numbered from 1 again: {}", error.full());
            0
        })
    }
}

impl Numbers {
    fn next_id(&mut self) -> String {
        self.ids.generate().unwrap_or_else(|_| Ulid::new()).to_string()
    }

    fn given(&mut self, position: i64, event: &Event, journaled: bool) {
        self.position = position;
        let known = self.counters.entry(event.session.clone());
        let counter = known.or_insert(Counter { seq: 0, position: 0, open: event.session.is_none() });
        counter.seq = event.seq;
        match event.kind {
            EventType::SessionStart => counter.open = true,
            EventType::SessionEnd => counter.open = false,
            _ => (),
        }
        if journaled {
            counter.position = position;
        }
        let (open, position) = (counter.open, counter.position);
        if let (false, Some(session)) = (open, &event.session) {
            // What the journal refused must not make this queue grow instead.
            if journaled || event.kind == EventType::SessionEnd {
                self.leaving.push_back((position, session.clone()));
            } else if position == 0 {
                self.counters.remove(&event.session);
            }
        }
    }

    /// Memory is for sessions that are open. The counters of others go, but only once their last event is committed:
    /// from then on the journal can be asked.
    fn forget_the_committed(&mut self, committed: i64) {
        while let Some((position, session)) = self.leaving.pop_front_if(|(position, _)| *position <= committed) {
            let speaker = Some(session);
            if self.counters.get(&speaker).is_some_and(|it| !it.open && it.position == position) {
                self.counters.remove(&speaker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, time::Duration};

    use serde_json::json;
    use tokio::time::{Instant, timeout};

    use super::*;

    fn hub(dir: &Path) -> Hub {
        Hub::new("box".into(), Store::open(dir).unwrap(), 10_000)
    }

    fn draft(session: Option<&str>, kind: EventType) -> Draft {
        let session = session.map(|text| SessionId::parse(text).unwrap());
        Draft { kind, device: "glasses".into(), session, data: json!({ "text": "¿qué?" }) }
    }

    async fn say(hub: &Hub, session: &str) -> Arc<Published> {
        hub.publish(draft(Some(session), EventType::Speech)).await
    }

    async fn close(hub: &Hub) {
        hub.0.store.close(Instant::now() + Duration::from_secs(10)).await.unwrap();
    }

    async fn counters(hub: &Hub) -> usize {
        hub.0.numbers.lock().await.counters.len()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everyone_sees_one_order_without_gaps_and_the_journal_tells_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path());
        let mut live = hub.subscribe();
        let publishers = (0..40).map(|n| {
            let hub = hub.clone();
            tokio::spawn(async move {
                // Two publishers a session, and the node itself.
                let session = (n % 20 != 0).then(|| format!("s{}", n % 20));
                for _ in 0..25 {
                    hub.publish(draft(session.as_deref(), EventType::TranscriptPartial)).await;
                }
            })
        });
        for publisher in futures_util::future::join_all(publishers).await {
            publisher.unwrap();
        }

        let mut heard = Vec::new();
        while let Ok(published) = live.try_recv() {
            heard.push(published);
        }
        assert_eq!(heard.len(), 1000);
        let mut last_of: BTreeMap<Speaker, u64> = BTreeMap::new();
        for (n, published) in heard.iter().enumerate() {
            assert_eq!(published.position, n as i64 + 1);
            let last = last_of.entry(published.event.session.clone()).or_default();
            assert_eq!(published.event.seq, *last + 1);
            *last += 1;
            assert_eq!(serde_json::from_str::<Event>(&published.json).unwrap(), *published.event);
        }
        assert!(heard.is_sorted_by(|a, b| a.event.id < b.event.id), "ids rise");

        hub.0.store.flush().await.unwrap();
        let journal = hub.0.store.events_after(0, 2000).await.unwrap();
        let live: Vec<(i64, Arc<str>)> = heard.iter().map(|it| (it.position, Arc::clone(&it.json))).collect();
        assert_eq!(journal, live);
    }

    #[tokio::test]
    async fn numbers_go_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = hub(dir.path());
        for _ in 0..3 {
            say(&first, "a").await;
        }
        first.publish(draft(None, EventType::Health)).await;
        close(&first).await;

        let second = hub(dir.path());
        let next = say(&second, "a").await;
        assert_eq!((next.position, next.event.seq), (5, 4));
        assert_eq!(second.publish(draft(None, EventType::Health)).await.event.seq, 2);
        assert_eq!(say(&second, "b").await.event.seq, 1);
    }

    #[tokio::test]
    async fn an_ended_session_is_forgotten_and_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path());
        for kind in [EventType::SessionStart, EventType::Speech, EventType::SessionEnd] {
            hub.publish(draft(Some("a"), kind)).await;
        }
        // At once, with nothing committed, and again after the commit.
        assert_eq!(say(&hub, "a").await.event.seq, 4);
        assert_eq!(counters(&hub).await, 1);
        hub.0.store.flush().await.unwrap();
        assert_eq!(hub.publish(draft(Some("a"), EventType::SessionAnalysis)).await.event.seq, 5);
        hub.0.store.flush().await.unwrap();
        hub.publish(draft(None, EventType::Health)).await;
        assert_eq!(counters(&hub).await, 1, "only the node's is left");
        assert_eq!(hub.publish(draft(Some("a"), EventType::SessionStart)).await.event.seq, 6);
    }

    #[tokio::test]
    async fn memory_does_not_grow_with_sessions_that_are_over_or_never_began() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path());
        for n in 0..300 {
            let session = format!("s{n}");
            match n % 2 {
                0 => drop(hub.publish(draft(Some(&session), EventType::Scene)).await),
                _ => {
                    hub.publish(draft(Some(&session), EventType::SessionStart)).await;
                    hub.publish(draft(Some(&session), EventType::SessionEnd)).await;
                }
            }
        }
        hub.0.store.flush().await.unwrap();
        hub.publish(draft(None, EventType::Health)).await;
        assert_eq!(counters(&hub).await, 1);
        assert!(hub.0.numbers.lock().await.leaving.is_empty());
    }

    #[tokio::test]
    async fn live_listeners_hear_on_when_the_journal_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path());
        hub.publish(draft(Some("a"), EventType::SessionStart)).await;
        close(&hub).await;
        let mut live = hub.subscribe();
        for seq in 2..5 {
            say(&hub, "a").await;
            assert_eq!(live.recv().await.unwrap().event.seq, seq);
        }
    }

    #[tokio::test]
    async fn a_publisher_that_leaves_makes_no_gap() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path());
        for n in 0..50 {
            let mut publishing = Box::pin(say(&hub, "a"));
            for _ in 0..n % 3 {
                if timeout(Duration::ZERO, &mut publishing).await.is_ok() {
                    break;
                }
            }
        }
        say(&hub, "a").await;
        hub.0.store.flush().await.unwrap();
        let events = hub.0.store.events(&SessionId::parse("a").unwrap(), 0, 100).await.unwrap();
        assert!(!events.is_empty());
        for (n, (position, json)) in events.iter().enumerate() {
            assert_eq!(*position, n as i64 + 1);
            assert_eq!(serde_json::from_str::<Event>(json).unwrap().seq, n as u64 + 1);
        }
    }

    #[tokio::test]
    async fn a_replay_joins_the_live_events_without_gap_or_double() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path());
        let talking = tokio::spawn({
            let hub = hub.clone();
            async move {
                for _ in 0..500 {
                    say(&hub, "a").await;
                    tokio::task::yield_now().await;
                }
            }
        });
        say(&hub, "b").await;
        // As the module's text says.
        let mut live = hub.subscribe();
        hub.0.store.flush().await.unwrap();
        let mut heard: Vec<i64> = hub.0.store.events_after(0, 1000).await.unwrap().iter().map(|it| it.0).collect();
        let replayed = *heard.last().unwrap();
        talking.await.unwrap();
        while let Ok(published) = live.try_recv() {
            if published.position > replayed {
                heard.push(published.position);
            }
        }
        assert_eq!(heard, (1..=501).collect::<Vec<i64>>());
    }
}

//! A session's transcript, derived from its journaled events: there is no second copy that could differ.

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;
use serde_json::Value;

use super::Store;
use crate::{
    base::{Error, Result},
    flow::{EventType, SessionId, TextSegment},
};

impl Store {
    /// The final text of a session, in order, as its journaled events tell it.
    pub async fn transcript(&self, id: &SessionId) -> Result<Vec<TextSegment>> {
        let id = id.clone();
        self.read(move |db| transcript(db, &id)).await
    }

    /// The last analysis of a session, if there is one.
    pub async fn analysis(&self, id: &SessionId) -> Result<Option<Value>> {
        let id = id.clone();
        let json = self.read(move |db| {
            db.prepare_cached("SELECT json FROM events WHERE session = ? AND kind = ? ORDER BY seq DESC LIMIT 1")?
                .query_row(params![id.as_str(), EventType::SessionAnalysis.name()], |row| row.get::<_, String>(0))
                .optional()
        });
        let event = json.await?.map(|json| serde_json::from_str::<Value>(&json)).transpose();
        let event = event.map_err(|error| Error::internal("a stored event is no JSON").cause(error))?;
        Ok(event.map(|mut event| event["data"].take()))
    }
}

/// What `transcript.segment` and `transcript.final` carry, as far as it matters here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Take {
        segments: Vec<TextSegment>,
        /// The whole session was transcribed once more.
        #[serde(default)]
        again: bool,
    },
    Segment {
        segment: TextSegment,
    },
    Bare(TextSegment),
}

/// A take's final text stands for what was said of that take before it: speakers may have changed, segments been split. One
/// of the whole session, transcribed once more, stands for everything before it.
/// A segment that comes again with the same id replaces the earlier one.
pub(super) fn transcript(db: &Connection, id: &SessionId) -> rusqlite::Result<Vec<TextSegment>> {
    #[derive(Deserialize)]
    struct Envelope {
        data: Text,
    }

    let mut query = db.prepare_cached("SELECT json FROM events WHERE session = ? AND kind IN (?, ?) ORDER BY seq")?;
    let kinds = (EventType::TranscriptSegment.name(), EventType::TranscriptFinal.name());
    let mut rows = query.query(params![id.as_str(), kinds.0, kinds.1])?;
    let mut transcript: Vec<TextSegment> = Vec::new();
    let mut take_from = 0;
    while let Some(row) = rows.next()? {
        let json = row.get_ref(0)?.as_str()?;
        match serde_json::from_str::<Envelope>(json) {
            Ok(Envelope { data: Text::Segment { segment } | Text::Bare(segment) }) => put(&mut transcript, segment),
            Ok(Envelope { data: Text::Take { segments, again } }) => {
                transcript.truncate(if again { 0 } else { take_from });
                segments.into_iter().for_each(|segment| put(&mut transcript, segment));
                take_from = transcript.len();
            }
            Err(error) => log::warn!("an event of session {id} holds no text that can be read: {error}"),
        }
    }
    Ok(transcript)
}

fn put(transcript: &mut Vec<TextSegment>, segment: TextSegment) {
    match transcript.iter_mut().rfind(|it| it.id == segment.id) {
        Some(earlier) => *earlier = segment,
        None => transcript.push(segment),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::testing::{id, say};

    pub(crate) fn text(id: u64, start: f64, words: &str) -> TextSegment {
        TextSegment {
            id,
            start,
            end: start + 1.0,
            text: words.into(),
            language: "es".into(),
            probability: 0.9,
            speaker: None,
            words: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_transcript_is_what_the_events_say() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let segment = |segment: TextSegment| json!({ "segment": segment });
        let kind = EventType::TranscriptSegment;
        say(&store, 1, "a", EventType::TranscriptPartial, json!({ "text": "ho" })).await;
        say(&store, 2, "a", kind, segment(text(0, 0.0, "hola"))).await;
        say(&store, 3, "a", kind, json!(text(1, 1.0, "qué tal"))).await;
        // The end of the take names speakers and splits the second segment.
        let take = [text(0, 0.0, "hola"), text(1, 1.0, "qué"), text(2, 2.0, "tal")];
        say(&store, 4, "a", EventType::TranscriptFinal, json!({ "text": "…", "segments": take })).await;
        say(&store, 5, "a", kind, segment(text(3, 9.0, "adiós"))).await;
        say(&store, 6, "a", kind, json!("nonsense")).await;
        say(&store, 7, "b", kind, segment(text(0, 0.0, "otro"))).await;
        store.flush().await.unwrap();
        let words = |transcript: Vec<TextSegment>| {
            transcript.into_iter().map(|it| format!("{} {}", it.id, it.text)).collect::<Vec<_>>()
        };
        assert_eq!(words(store.transcript(&id("a")).await.unwrap()), ["0 hola", "1 qué", "2 tal", "3 adiós"]);

        // Transcribed once more, later; and then somebody goes on with the session.
        let whole = [text(4, 0.0, "¡Hola! ¿Qué tal?"), text(5, 9.0, "Adiós.")];
        say(&store, 8, "a", EventType::TranscriptFinal, json!({ "segments": whole, "again": true })).await;
        store.flush().await.unwrap();
        let again = ["4 ¡Hola! ¿Qué tal?", "5 Adiós."];
        assert_eq!(words(store.transcript(&id("a")).await.unwrap()), again);
        say(&store, 9, "a", EventType::TranscriptFinal, json!({ "segments": [text(6, 20.0, "otra vez")] })).await;
        store.flush().await.unwrap();
        assert_eq!(words(store.transcript(&id("a")).await.unwrap()), [&again[..], &["6 otra vez"]].concat());
        assert_eq!(store.transcript(&id("none")).await.unwrap(), []);
    }
}

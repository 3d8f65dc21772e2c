//! Final segments: from their audio to the text that is published, one after another in the order in which they were
//! spoken. What a text says depends on the audio and on the segments before it alone, never on which partials happened
//! to be made; it only keeps, word by word, what was committed.

use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::timeout;

use crate::{
    base::{Error, Kind, Result},
    engines::{Asr, Embedded, PieceText, TranscribeAsk, guarded, transcript},
    flow::{Pcm, Priority, SessionConfig, TextSegment},
    jobs::{Answer, Ask, Queue},
    segment::{Committer, Fit, Likelihood, SessionLanguage},
    telemetry::events::{FinalFitted, emit},
};

/// From being cut to having its text, the queue included.
const SEGMENT_LIMIT: Duration = Duration::from_secs(600);

/// What an engine makes of one audio.
pub(super) type Texts = Result<Vec<PieceText>>;

/// A segment that waits for its text.
pub(super) struct Unsettled {
    /// Without the text.
    pub(super) segment: TextSegment,
    pub(super) audio: Pcm,
    /// What was committed of it.
    pub(super) committer: Committer,
    /// Once it is known; None where nobody asked who speaks, or it cannot be told.
    voice: Option<Embedded>,
    /// The language that was settled on against the model's own; the text is made again in it.
    decided: Option<Likelihood>,
}

/// A segment that is final.
pub(super) struct Spoken {
    pub(super) segment: TextSegment,
    /// Why there is no text, if it is because of that.
    pub(super) error: Option<Error>,
    pub(super) voice: Option<Embedded>,
}

impl Spoken {
    /// Of a segment whose times are all that there will be.
    pub(super) fn silent(segment: TextSegment) -> Spoken {
        Spoken { segment, error: None, voice: None }
    }
}

/// A segment with what an engine made of it.
pub(super) type Read = Box<(Unsettled, Texts)>;

/// Waits for the voice as well, which is asked for at the same time.
pub(super) fn with_voice(
    read: BoxFuture<'static, Read>,
    voice: impl Future<Output = Option<Embedded>> + Send + 'static,
) -> BoxFuture<'static, Read> {
    async move {
        let (mut read, voice) = tokio::join!(read, voice);
        read.0.voice = voice;
        read
    }
    .boxed()
}

/// What is known when an answer has come.
pub(super) enum Settled {
    Done(Spoken),
    /// The session's language is another one than the model heard.
    Again(Box<Unsettled>),
}

/// What a session asks of an audio.
pub(super) fn transcribe_ask(config: &SessionConfig, language: &SessionLanguage, audio: Pcm) -> TranscribeAsk {
    TranscribeAsk {
        leaning: language.leaning(audio.secs()),
        words: config.words,
        translate: config.translate,
        prompt: config.prompt.clone(),
        ..TranscribeAsk::of(audio, language.asked())
    }
}

impl Unsettled {
    pub(super) fn new(segment: TextSegment, audio: Pcm, committer: Committer) -> Unsettled {
        Unsettled { segment, audio, committer, voice: None, decided: None }
    }

    /// Waits for its turn and its text, within a limit.
    pub(super) fn ask(
        self,
        queue: Queue,
        config: &SessionConfig,
        language: &SessionLanguage,
    ) -> BoxFuture<'static, Read> {
        let mut ask = transcribe_ask(config, language, self.audio.clone());
        if let Some((decided, _)) = &self.decided {
            ask.language.clone_from(decided);
        }
        async move {
            let asked = async { queue.submit_patiently(Priority::Live, Ask::<Asr>::new(ask)).await?.await };
            let texts = timeout(SEGMENT_LIMIT, asked).await.unwrap_or_else(|_| Err(late()));
            Box::new((self, texts))
        }
        .boxed()
    }

    /// Waits for an answer that was asked for before it was known that the segment ends here; asks anew where that failed.
    pub(super) fn await_trial(
        self,
        trial: Answer<Asr>,
        queue: Queue,
        config: &SessionConfig,
        language: &SessionLanguage,
    ) -> BoxFuture<'static, Read> {
        let (config, language) = (config.clone(), language.clone());
        async move {
            match timeout(SEGMENT_LIMIT, trial).await {
                Ok(Ok(pieces)) => Box::new((self, Ok(pieces))),
                _ => self.ask(queue, &config, &language).await,
            }
        }
        .boxed()
    }

    /// The segments before this one have been settled.
    pub(super) fn settle(mut self, texts: Texts, language: &mut SessionLanguage) -> Settled {
        let pieces = match texts {
            Ok(pieces) => pieces,
            Err(error) => {
                // What was committed was promised.
                self.segment.text = self.committer.committed().to_owned();
                return self.done(Some(error));
            }
        };
        if pieces.is_empty() {
            // There is no transcriber: its times are all that there will be.
            return self.done(None);
        }
        let secs = self.segment.end - self.segment.start;
        let heard = pieces.first();
        if self.decided.is_none()
            && let Some(heard) = heard
            && let Some(chosen) = language.choose(&heard.language_probabilities, secs)
        {
            let again = chosen.0 != heard.language;
            self.decided = Some(chosen);
            if again {
                return Settled::Again(Box::new(self));
            }
        }
        let transcript = transcript(guarded(pieces));
        let (found, probability) = self.decided.take().unwrap_or((transcript.language, transcript.probability));
        let start = self.segment.start;
        let shift = |secs: f64| ((start + secs) * 1000.0).round() / 1000.0;
        self.segment.words = transcript.words;
        for word in &mut self.segment.words {
            (word.start, word.end) = (shift(word.start), shift(word.end));
        }
        let (text, fit) = self.committer.settle(&transcript.text);
        if !self.committer.committed().is_empty() {
            emit(FinalFitted { fit: fit_name(fit) });
        }
        if !text.is_empty() {
            language.published(&found, probability, secs);
        }
        (self.segment.text, self.segment.language, self.segment.probability) = (text, found, probability);
        self.done(None)
    }

    fn done(self, error: Option<Error>) -> Settled {
        Settled::Done(Spoken { segment: self.segment, error, voice: self.voice })
    }
}

fn fit_name(fit: Fit) -> &'static str {
    match fit {
        Fit::Same => "same",
        Fit::Spelling => "spelling_kept",
        Fit::Words => "words_kept",
    }
}

fn late() -> Error {
    Error::new(Kind::Timeout, "a segment has waited too long for its text")
        .hint("the box has more to transcribe than it can: a smaller model, or fewer sessions (audio.max_sessions)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engines::SegmentText,
        segment::{CommitRule, Reading},
    };

    fn unsettled(committed: &str) -> Unsettled {
        let mut committer = Committer::new(CommitRule::Agreement);
        for heard_secs in [1.0, 2.0] {
            let text = format!("{committed} …y");
            committer.read(Reading { text, heard_secs, ..Reading::default() }, None);
        }
        assert_eq!(committer.committed(), committed);
        let segment = TextSegment {
            id: 7,
            start: 10.0,
            end: 13.0,
            text: String::new(),
            language: "auto".to_owned(),
            probability: 0.0,
            speaker: None,
            words: Vec::new(),
        };
        Unsettled::new(segment, vec![0.0; 48_000].into(), committer)
    }

    fn heard(language: &str, likely: &[(&str, f32)], text: &str) -> Texts {
        let segment = SegmentText { text: text.to_owned(), ..SegmentText::default() };
        let language_probabilities = likely.iter().map(|(code, likely)| ((*code).to_owned(), *likely)).collect();
        Ok(vec![PieceText {
            language: language.to_owned(),
            language_probabilities,
            segments: vec![segment],
            ..PieceText::default()
        }])
    }

    fn done(settled: Settled) -> (TextSegment, Option<Error>) {
        match settled {
            Settled::Done(Spoken { segment, error, .. }) => (segment, error),
            Settled::Again(unsettled) => panic!("asked again in {:?}", unsettled.decided),
        }
    }

    #[test]
    fn a_text_is_asked_for_again_in_the_language_that_is_settled_on() {
        let mut language = SessionLanguage::new("auto");
        let sure = heard("es", &[("es", 0.95), ("en", 0.03)], "hola Ana");
        let (segment, _) = done(unsettled("").settle(sure, &mut language));
        assert_eq!((segment.text.as_str(), segment.language.as_str(), segment.probability), ("hola Ana", "es", 0.95));
        let doubtful = heard("en", &[("en", 0.5), ("es", 0.4)], "oh la");
        let Settled::Again(again) = unsettled("").settle(doubtful, &mut language) else {
            panic!("English was believed")
        };
        let (segment, _) = done(again.settle(heard("es", &[], "hola"), &mut language));
        assert_eq!((segment.text.as_str(), segment.language.as_str(), segment.probability), ("hola", "es", 0.4));
        let clear = heard("en", &[("en", 0.97), ("es", 0.02)], "good morning");
        assert_eq!(done(unsettled("").settle(clear, &mut language)).0.language, "en");
    }

    #[test]
    fn a_phrase_that_models_write_into_noise_is_left_out_where_the_model_doubts_it() {
        let mut language = SessionLanguage::new("es");
        let said = |avg_logprob: f32| {
            let mut pieces = heard("es", &[], "¡Gracias por ver el video!").unwrap();
            (pieces[0].segments[0].avg_logprob, pieces[0].segments[0].end) = (avg_logprob, 2.0);
            Ok(pieces)
        };
        let mut text = |committed: &str, texts: Texts| done(unsettled(committed).settle(texts, &mut language)).0.text;
        assert_eq!(text("", said(-0.8)), "");
        assert_eq!(text("", said(-0.1)), "¡Gracias por ver el video!", "people do say it");
        assert_eq!(text("gracias por", said(-0.8)), "gracias por", "what was committed stays");
        let loops = heard("es", &[], &"no sé qué ".repeat(9));
        assert_eq!(text("", loops), "no sé qué");
    }

    #[test]
    fn what_was_committed_begins_the_final_text_even_where_there_is_none() {
        let mut language = SessionLanguage::new("es");
        let (segment, _) = done(unsettled("hola Ana").settle(heard("es", &[], "Hola, Eva, ¿qué tal?"), &mut language));
        assert_eq!((segment.text.as_str(), segment.probability), ("hola Ana, ¿qué tal?", 1.0));
        let failed = Err(Error::internal("the engine is gone"));
        let (segment, error) = done(unsettled("hola Ana").settle(failed, &mut language));
        assert_eq!((segment.text.as_str(), error.is_some()), ("hola Ana", true));
    }
}

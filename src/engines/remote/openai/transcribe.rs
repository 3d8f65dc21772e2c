//! `/v1/audio/transcriptions` and `/v1/audio/translations`: one request a piece. Servers tell words and segments to a
//! different degree; what one does not tell is asked for less, once with a word in the log.

use serde::Deserialize;

use crate::{
    base::{Kind, Result},
    engines::{
        Cancel, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, Transcriber,
        remote::{
            link::{Link, Request},
            openai::languages,
            wav::wav,
        },
    },
    flow::{SAMPLE_RATE_HZ, Word},
};

pub(crate) struct OpenAiTranscriber {
    link: Link,
    model: String,
    /// As much as this server is known to tell.
    most: Detail,
}

/// How much a server tells of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Detail {
    Text,
    Segments,
    Words,
}

impl Detail {
    fn less(self) -> Option<Detail> {
        match self {
            Detail::Words => Some(Detail::Segments),
            Detail::Segments => Some(Detail::Text),
            Detail::Text => None,
        }
    }
}

/// Servers differ in what they leave out; numbers that some write as texts are not read.
#[derive(Deserialize)]
struct Transcription {
    text: String,
    language: Option<String>,
    segments: Option<Vec<WireSegment>>,
    words: Option<Vec<WireWord>>,
}

#[derive(Deserialize)]
struct WireSegment {
    start: f64,
    end: f64,
    text: String,
    tokens: Option<Vec<u32>>,
    temperature: Option<f32>,
    avg_logprob: Option<f32>,
    compression_ratio: Option<f32>,
    no_speech_prob: Option<f32>,
    words: Option<Vec<WireWord>>,
}

#[derive(Deserialize)]
struct WireWord {
    start: f64,
    end: f64,
    word: String,
    probability: Option<f32>,
}

impl OpenAiTranscriber {
    pub(crate) fn new(link: Link, model: &str) -> OpenAiTranscriber {
        OpenAiTranscriber { link, model: model.to_owned(), most: Detail::Words }
    }

    fn piece(&mut self, piece: &Piece, ask: &TranscribeAsk, cancel: &Cancel) -> Result<PieceText> {
        let samples = piece.audio.get(piece.lead..).unwrap_or_default();
        let secs = samples.len() as f64 / f64::from(SAMPLE_RATE_HZ);
        let sound = wav(samples);
        let wanted = if ask.words { Detail::Words } else { Detail::Segments };
        let mut detail = wanted.min(self.most);
        let mut refusal = None;
        loop {
            let transcription = self.ask(&sound, ask, detail, cancel);
            match transcription {
                Ok(transcription) => {
                    // Only now is it known that the detail was what the server refused.
                    if let Some(error) = refusal {
                        let remote = self.link.server.name.as_str();
                        log::warn!(remote; "{} tells no more than {detail:?}: {error}", self.model);
                        self.most = detail;
                    }
                    return Ok(piece_text(transcription, ask, secs));
                }
                Err(error) => match detail.less() {
                    Some(less) if error.kind() == Kind::Invalid => {
                        detail = less;
                        refusal = Some(error);
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    fn ask(&self, sound: &[u8], ask: &TranscribeAsk, detail: Detail, cancel: &Cancel) -> Result<Transcription> {
        let mut form = Form::new();
        form.field("model", &self.model);
        if ask.language != "auto" && !ask.translate {
            // Servers know languages, not regions.
            form.field("language", ask.language.split('-').next().unwrap_or_default());
        }
        let prompt = [ask.hotwords.as_deref(), ask.prompt.as_deref()];
        let prompt: Vec<&str> = prompt.into_iter().flatten().filter(|text| !text.is_empty()).collect();
        if !prompt.is_empty() {
            form.field("prompt", &prompt.join(" "));
        }
        let temperature = ask.decode.temperatures.first().copied().unwrap_or_default();
        form.field("temperature", &temperature.to_string());
        form.field("response_format", if detail == Detail::Text { "json" } else { "verbose_json" });
        // Some give segments only to those who ask, and none take the field with less than `verbose_json`.
        if detail >= Detail::Segments && !ask.translate {
            form.field("timestamp_granularities[]", "segment");
        }
        if detail == Detail::Words && !ask.translate {
            form.field("timestamp_granularities[]", "word");
        }
        form.file("file", "piece.wav", "audio/wav", sound);
        let path = if ask.translate { "/v1/audio/translations" } else { "/v1/audio/transcriptions" };
        let (kind, bytes) = form.finish();
        self.link.ask(&Request::post(path, &kind, bytes), cancel, |answer| answer.json())
    }
}

impl Transcriber for OpenAiTranscriber {
    fn transcribe(
        &mut self,
        ask: &TranscribeAsk,
        step: &mut dyn FnMut(TranscribeStep),
        cancel: &Cancel,
    ) -> Result<Vec<PieceText>> {
        let mut texts = Vec::new();
        for (piece, it) in ask.pieces.iter().enumerate() {
            let text = self.piece(it, ask, cancel)?;
            let tokens = text.segments.iter().map(|segment| segment.tokens.len()).sum();
            step(TranscribeStep { piece, tokens });
            texts.push(text);
        }
        Ok(texts)
    }
}

fn piece_text(transcription: Transcription, ask: &TranscribeAsk, secs: f64) -> PieceText {
    let Transcription { text, language, segments, words } = transcription;
    let given = Some(ask.language.as_str()).filter(|it| *it != "auto").map(str::to_owned);
    let language = given.or_else(|| languages::code(language.as_deref()?)).unwrap_or_default();
    let has_words = words.is_some() || segments.iter().flatten().any(|segment| segment.words.is_some());
    let mut segments: Vec<SegmentText> = match segments {
        Some(segments) if !segments.is_empty() || text.trim().is_empty() => {
            segments.into_iter().map(|segment| segment_text(segment, secs)).collect()
        }
        _ if text.trim().is_empty() => Vec::new(),
        _ => vec![SegmentText { end: secs, text: text.trim().to_owned(), ..SegmentText::default() }],
    };
    for word in words.into_iter().flatten() {
        let middle = (word.start + word.end) / 2.0;
        let last = segments.len().saturating_sub(1);
        let at = segments.iter().position(|segment| middle < segment.end).unwrap_or(last);
        if let Some(segment) = segments.get_mut(at) {
            let likely = segment.avg_logprob.min(0.0).exp();
            segment.words.push(word_text(word, likely, secs));
        }
    }
    let silence = segments.iter().map(|segment| segment.no_speech_probability).fold(0.0, f32::max);
    PieceText {
        language,
        no_speech_probability: silence,
        tokens: segments.iter().flat_map(|segment| segment.tokens.iter().copied()).collect(),
        segments,
        without_words: ask.words && !has_words,
        advance_secs: secs,
        ..PieceText::default()
    }
}

fn segment_text(segment: WireSegment, secs: f64) -> SegmentText {
    let (start, end) = times(segment.start, segment.end, secs);
    let avg_logprob = segment.avg_logprob.unwrap_or_default();
    let likely = avg_logprob.min(0.0).exp();
    SegmentText {
        start,
        end,
        tokens: segment.tokens.unwrap_or_default(),
        text: segment.text.trim().to_owned(),
        avg_logprob,
        compression_ratio: segment.compression_ratio.unwrap_or_default(),
        no_speech_probability: segment.no_speech_prob.unwrap_or_default(),
        temperature: segment.temperature.unwrap_or_default(),
        words: segment.words.into_iter().flatten().map(|word| word_text(word, likely, secs)).collect(),
        attends_to: Vec::new(),
    }
}

/// `likely`: of the segment's tokens on average, where the server says nothing of the word itself.
fn word_text(word: WireWord, likely: f32, secs: f64) -> Word {
    let (start, end) = times(word.start, word.end, secs);
    let probability = word.probability.unwrap_or(likely).clamp(0.0, 1.0);
    Word { start, end, text: word.word.trim().to_owned(), probability }
}

/// Within the piece and in order, whatever the server says.
fn times(start: f64, end: f64, secs: f64) -> (f64, f64) {
    let start = start.clamp(0.0, secs);
    (start, end.clamp(start, secs))
}

/// A form with a file in it.
struct Form {
    boundary: String,
    bytes: Vec<u8>,
}

impl Form {
    fn new() -> Form {
        // Long enough to stand nowhere in the sound.
        let boundary = format!("vigia-{:032x}", fastrand::u128(..));
        Form { boundary, bytes: Vec::new() }
    }

    fn field(&mut self, name: &str, value: &str) {
        self.part(&format!("name=\"{name}\""), value.as_bytes());
    }

    fn file(&mut self, name: &str, file: &str, kind: &str, content: &[u8]) {
        self.part(&format!("name=\"{name}\"; filename=\"{file}\"\r\nContent-Type: {kind}"), content);
    }

    fn part(&mut self, head: &str, content: &[u8]) {
        let head = format!("--{}\r\nContent-Disposition: form-data; {head}\r\n\r\n", self.boundary);
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn finish(mut self) -> (String, Vec<u8>) {
        self.bytes.extend_from_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        (format!("multipart/form-data; boundary={}", self.boundary), self.bytes)
    }
}

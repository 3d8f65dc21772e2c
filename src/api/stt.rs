//! `POST /api/stt`: a recording of any length becomes text, at once or as it comes (`Accept: text/event-stream`). The
//! work ends with whoever asked for it.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::unfold};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    StatusCode,
    body::Frame,
    header::{self, HeaderValue},
};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    api::{
        Context, body,
        call::{Call, Response, json as answer_json},
        error::{Reply, told},
        listen::App,
        speech::language,
        upload::Upload,
        wire::{SttAnswer, SttForm},
    },
    base::{Error, Kind, Result},
    engines::{TranscribeAsk, diarize::Voices},
    flow::{Priority, Task, TextSegment},
    jobs::{FileAsk, FileDesk, FileNews, FileSpeakers, FileSummary},
    media::AudioFile,
};

/// News that may wait for a client; then the work waits.
const NEWS_QUEUE: usize = 16;

/// One: whoever is speaking waits for no more than that.
const WINDOWS_AT_A_TIME: usize = 1;

const MOST_SPEAKERS: usize = 64;

/// A stream that says nothing for longer is taken for dead by what lies between us and the client.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Transcribe a file
///
/// With `Accept: text/event-stream` the results come as they are made: events `segment` (one of the answer's segments),
/// `progress` (`{"secs","duration"}`), and at the end `done` (the whole answer) or `error` (`{"code","message","hint"}`).
/// Leaving ends the work.
///
/// A recording that breaks off in the middle, or cannot be decoded from there on, keeps the text that there is; `warnings`
/// says so.
///
/// With `diarize` the answer's segments name their speakers. Who speaks is known once all is heard, so events `segment`
/// have none. Where the speaker changes within a segment, and the model can tell when words are spoken, the answer has it
/// in parts: the first keeps the `id`, the others get new ones.
#[utoipa::path(post, path = "/api/stt", tag = "speech",
    request_body(content = SttForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "What is said in it", body = SttAnswer)),
)]
pub(crate) async fn stt(mut call: Call) -> Reply {
    let context = Arc::clone(call.context());
    // A place before a gigabyte is taken in, not after.
    let place = place(&call.app)?;
    let mut form = body::large_form::<Upload>(&mut call).await?;
    let file = form.take_file()?.into_audio();
    let spoken = form.get("language").unwrap_or("auto").to_owned();
    language(&spoken)?;
    let diarize = form.flag("diarize")?;
    let words = form.flag("words")?;
    let translate = form.get("task").map(translates).transpose()?.unwrap_or(false);
    context.registry.installed(Task::Transcribe)?;
    let speakers = if diarize {
        context.registry.installed(Task::Diarize)?;
        let known = Voices::open(&context.settings.store_dir())?;
        Some(FileSpeakers::known(speaker_count(form.get("speakers"))?, known))
    } else {
        None
    };
    let prompt = form.get("prompt").map(str::to_owned);
    let transcribe = TranscribeAsk { words, translate, prompt, ..TranscribeAsk::of(Vec::new().into(), &spoken) };
    let ask = FileAsk { transcribe, speakers, first_id: 0 };
    let (news, told) = mpsc::channel(NEWS_QUEUE);
    let model = context.settings.model_for(Task::Transcribe).unwrap_or_default().to_owned();
    let worker = AbortOnDropHandle::new(tokio::spawn(async move {
        let _place = place;
        let mut summary = work(&context, file, ask, news).await?;
        summary.warnings.extend(context.registry.instead(Task::of_transcript(diarize)));
        Ok(summary)
    }));
    let work = Work { worker, news: told, segments: Vec::new(), words, model };
    if call.header(header::ACCEPT).is_some_and(|accept| accept.contains("text/event-stream")) {
        return Ok(events(work));
    }
    Ok(answer_json(StatusCode::OK, &work.answer().await?))
}

/// Of a recording among those that are transcribed at a time.
pub(crate) fn place(app: &App) -> Result<OwnedSemaphorePermit> {
    Arc::clone(&app.recordings).try_acquire_owned().map_err(|_| {
        Error::new(Kind::Busy, "too many recordings are being transcribed already").hint("try again when one is done")
    })
}

/// How many speakers there are, where the client knows it.
fn speaker_count(text: Option<&str>) -> Result<Option<usize>> {
    // What is no number is as wrong as none at all.
    text.map(|text| speakers(text.parse().unwrap_or(0))).transpose()
}

pub(crate) fn speakers(count: usize) -> Result<usize> {
    match count {
        1..=MOST_SPEAKERS => Ok(count),
        _ => Err(Error::invalid(format!("speakers must be a number from 1 to {MOST_SPEAKERS}"))
            .hint("leave it out where it is not known")),
    }
}

pub(crate) fn translates(task: &str) -> Result<bool> {
    match task {
        "transcribe" => Ok(false),
        "translate" => Ok(true),
        _ => Err(Error::invalid("task must be transcribe or translate")),
    }
}

async fn work(context: &Context, file: AudioFile, ask: FileAsk, news: mpsc::Sender<FileNews>) -> Result<FileSummary> {
    let desk = FileDesk {
        voice: context.registry.voice().await?,
        queue: context.queue.clone(),
        priority: Priority::Interactive,
        batch: WINDOWS_AT_A_TIME,
    };
    let stream = context.media.open_file(file).await?;
    tokio::select! {
        done = desk.transcribe(stream, ask, news) => done,
        () = context.shutdown.wait() => Err(Error::new(Kind::Busy, "the daemon is going down").hint("send the file again")),
    }
}

/// A recording that is being transcribed. Dropping it ends the work.
struct Work {
    worker: AbortOnDropHandle<Result<FileSummary>>,
    news: mpsc::Receiver<FileNews>,
    segments: Vec<TextSegment>,
    words: bool,
    model: String,
}

impl Work {
    async fn answer(mut self) -> Result<SttAnswer> {
        while let Some(news) = self.news.recv().await {
            self.note(&news);
        }
        self.end().await
    }

    fn note(&mut self, news: &FileNews) {
        if let FileNews::Segment(segment) = news {
            self.segments.push(segment.clone());
        }
    }

    /// Once nothing more is told.
    async fn end(&mut self) -> Result<SttAnswer> {
        let ended = (&mut self.worker).await;
        let summary = ended.map_err(|error| Error::internal("a fault in the server").cause(error))??;
        let told = std::mem::take(&mut self.segments);
        let segments = summary.spoken.unwrap_or(told);
        let texts: Vec<&str> = segments.iter().map(|it| it.text.as_str()).filter(|text| !text.is_empty()).collect();
        let text = texts.join(" ");
        let unavailable = if self.words && summary.without_words { vec!["words"] } else { Vec::new() };
        Ok(SttAnswer {
            text,
            language: summary.language,
            probability: summary.probability,
            duration: summary.secs,
            segments,
            model: std::mem::take(&mut self.model),
            unavailable,
            warnings: summary.warnings,
        })
    }
}

/// The results as a stream of events. When the client leaves, the body is dropped and the work with it.
fn events(work: Work) -> Response {
    let parts = unfold(Some(work), |work| async {
        let mut work = work?;
        let (event, work) = match timeout(KEEP_ALIVE, work.news.recv()).await {
            Err(_) => (Bytes::from_static(b": still at work\n\n"), Some(work)),
            Ok(Some(news)) => {
                work.note(&news);
                let event = match news {
                    FileNews::Segment(segment) => event("segment", &segment),
                    FileNews::Progress { secs, of } => event("progress", &json!({ "secs": secs, "duration": of })),
                };
                (event, Some(work))
            }
            Ok(None) => (last_event(work.end().await), None),
        };
        Some((event, work))
    });
    let frames = parts.map(|event| Ok::<_, Infallible>(Frame::data(event)));
    let body = StreamBody::new(frames).map_err(|never| -> io::Error { match never {} });
    let mut response = Response::new(body.boxed());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn last_event(ended: Result<SttAnswer>) -> Bytes {
    match ended {
        Ok(answer) => event("done", &answer),
        Err(error) => {
            log::debug!("/api/stt: {}", error.full());
            let hint = error.hint_text();
            event("error", &json!({ "code": error.kind().code(), "message": told(&error), "hint": hint }))
        }
    }
}

fn event(name: &str, data: &impl Serialize) -> Bytes {
    // Only maps with keys that are no text fail, and the wire has none. JSON has no line breaks of its own.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_two_lines_and_an_error_names_its_kind() {
        assert_eq!(event("progress", &json!({ "secs": 1.5 })), "event: progress\ndata: {\"secs\":1.5}\n\n");
        let last = last_event(Err(Error::invalid("line\nbreak").hint("cut")));
        let text = std::str::from_utf8(&last).unwrap();
        assert!(text.starts_with("event: error\ndata: {") && text.contains("\"invalid\""), "{text}");
        assert_eq!(text.trim_end().lines().count(), 2, "{text}");
    }
}

//! Sessions as the store remembers them: lists, transcripts, events. The live ones are in `sources`.

use std::sync::Arc;

use hyper::{
    StatusCode,
    header::{self, HeaderValue},
};
use serde_json::value::RawValue;

use crate::{
    api::{
        body,
        call::{Call, Response, json, not_found, text, typed},
        error::{Refusal, Reply},
        speech, stt,
        wire::{EventList, SessionDetail, SessionInfo, SessionList, SessionTranscript, SttAnswer, TranscribeRequest},
    },
    base::{Error, Result},
    flow::{Task, TextSegment, subtitles},
    jobs::Analysis,
    sources::{Again, FinalResult, Retold},
    store::{SessionRow, SessionState},
};

/// Rows and events of one answer, unless asked for fewer.
const PAGE: u64 = 50;
const LARGEST_PAGE: u64 = 500;

/// The hub numbers from here.
const FIRST_SEQ: u64 = 1;

/// The sessions, the newest first
#[utoipa::path(get, path = "/sessions", tag = "sessions",
    params(
        ("limit" = Option<u64>, Query, description = "1 to 500", example = 50),
        ("before" = Option<String>, Query, description = "`next` of the page before, or an instant (RFC 3339, UTC)"),
        ("device" = Option<String>, Query, description = "Only those of this device"),
    ),
    responses((status = 200, description = "One page", body = SessionList)),
)]
pub(crate) async fn list(call: Call) -> Reply {
    let query = call.query();
    let limit = page(query.number("limit")?)?;
    let store = &call.context().store;
    store.settled().await;
    // One more than asked tells whether there is a next page.
    let mut rows = store.sessions(limit + 1, query.get("before"), query.get("device")).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| row.id.to_string());
    Ok(json(StatusCode::OK, &SessionList { sessions: rows.iter().map(info).collect(), next }))
}

/// One session, with its transcript and analysis
#[utoipa::path(get, path = "/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses((status = 200, description = "The session", body = SessionDetail)),
)]
pub(crate) async fn one(call: Call) -> Reply {
    let row = row(&call).await?;
    let segments = call.context().store.transcript(&row.id).await?;
    let transcript = session_transcript(&row, segments);
    let analysis = call.context().store.analysis(&row.id).await?;
    Ok(json(StatusCode::OK, &SessionDetail { session: info(&row), transcript, analysis }))
}

/// Forget a session
///
/// Its events, its transcript and its audio go with it. A session that is still open cannot be forgotten.
#[utoipa::path(delete, path = "/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses((status = 204, description = "Forgotten")),
)]
pub(crate) async fn delete(call: Call) -> Reply {
    let row = row(&call).await?;
    if row.state == SessionState::Open {
        return Err(Error::invalid("this session is still open").hint("close its connection, then delete it").into());
    }
    call.context().store.delete_session(&row.id).await?;
    call.context().sessions.forget_audio(&row.id);
    let mut response = text(StatusCode::NO_CONTENT, "");
    response.headers_mut().remove(header::CONTENT_TYPE);
    Ok(response)
}

/// What happened in a session, in order
#[utoipa::path(get, path = "/sessions/{id}/events", tag = "sessions",
    params(
        ("id" = String, Path, description = "The session"),
        ("from" = Option<u64>, Query, description = "The first `seq` wanted", example = 1),
        ("limit" = Option<u64>, Query, description = "1 to 500", example = 50),
    ),
    responses((status = 200, description = "Events as they were published", body = EventList)),
)]
pub(crate) async fn events(call: Call) -> Reply {
    let query = call.query();
    let (from, limit) = (query.number("from")?.unwrap_or(0), page(query.number("limit")?)?);
    let row = row(&call).await?;
    let mut rows = call.context().store.events(&row.id, from, limit + 1).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    // `seq` is gap-free, so the next page begins where this one was cut.
    let next = more.then(|| from.max(FIRST_SEQ) + limit as u64);
    let raw = |json: &Arc<str>| RawValue::from_string(json.to_string());
    let events = rows.iter().map(|(_, json)| raw(json)).collect::<std::result::Result<_, _>>();
    let events = events.map_err(|error| Error::internal("a stored event is no JSON").cause(error))?;
    Ok(json(StatusCode::OK, &EventList { events, next }))
}

/// The transcript as a file
#[utoipa::path(get, path = "/sessions/{id}/transcript.{format}", tag = "sessions",
    params(
        ("id" = String, Path, description = "The session"),
        ("format" = String, Path, description = "`txt`, `srt`, `vtt` or `json`", example = "srt"),
    ),
    responses((status = 200, description = "The transcript", content(
        (SessionTranscript = "application/json"),
        (String = "text/plain", example = "S1: Hola.\n"),
        (String = "application/x-subrip", example = "1\n00:00:00,500 --> 00:00:02,250\nHola.\n\n"),
        (String = "text/vtt", example = "WEBVTT\n\n00:00:00.500 --> 00:00:02.250\nHola.\n\n"),
    ))),
)]
pub(crate) async fn transcript(call: Call) -> Reply {
    let format = call.param("format")?.to_owned();
    let row = row(&call).await?;
    let segments = call.context().store.transcript(&row.id).await?;
    Ok(match format.as_str() {
        "json" => json(StatusCode::OK, &session_transcript(&row, segments)),
        "txt" => text(StatusCode::OK, subtitles::txt(&segments)),
        "srt" => file("application/x-subrip; charset=utf-8", subtitles::srt(&segments)),
        "vtt" => file("text/vtt; charset=utf-8", subtitles::vtt(&segments)),
        _ => return Err(not_found(format_args!("transcript.{format}"))),
    })
}

/// Analyse a session
///
/// Published as `session.analysis` too, and kept with the session. Leaving ends the work. A live session is analysed by
/// itself when a take is over, unless its client says `"analyze": false`.
#[utoipa::path(post, path = "/sessions/{id}/analyze", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses((status = 200, description = "What it was about", body = Analysis)),
)]
pub(crate) async fn analyze(call: Call) -> Reply {
    let row = row(&call).await?;
    let analysis = call.context().sessions.analyse(&row.id).await?;
    Ok(json(StatusCode::OK, &analysis))
}

/// Transcribe a session once more
///
/// From its audio, while that is kept (`store.keep_audio`), and once the session is over. What is left out of the request is
/// as the session's client had asked. The result stands for the session's transcript from then on, with segment ids of its
/// own, and is published as `transcript.final` with `"again": true`. Waits for its turn behind all other work; leaving ends
/// it and changes nothing.
#[utoipa::path(post, path = "/sessions/{id}/transcribe", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    request_body(content = TranscribeRequest, description = "May be left out"),
    responses((status = 200, description = "What is said in it", body = SttAnswer)),
)]
pub(crate) async fn transcribe(mut call: Call) -> Reply {
    let row = row(&call).await?;
    let request: TranscribeRequest = body::json_if_any(&mut call).await?;
    let language = request.language.filter(|language| !language.is_empty());
    language.as_deref().map(speech::language).transpose()?;
    let again = Again {
        language,
        diarize: request.diarize,
        speakers: request.speakers.map(stt::speakers).transpose()?,
        words: request.words,
        prompt: request.prompt,
        translate: request.task.as_deref().map(stt::translates).transpose()?,
    };
    let context = call.context();
    let _place = stt::place(&call.app)?;
    let Retold { result, probability, without_words } = context.sessions.transcribe_again(&row.id, again).await?;
    let FinalResult { text, language, duration, segments, warnings, .. } = result;
    let answer = SttAnswer {
        text,
        language,
        probability,
        duration,
        segments,
        model: context.settings.model_for(Task::Transcribe).unwrap_or_default().to_owned(),
        unavailable: if without_words { vec!["words"] } else { Vec::new() },
        warnings,
    };
    Ok(json(StatusCode::OK, &answer))
}

async fn row(call: &Call) -> Result<SessionRow, Refusal> {
    let id = call.session_id()?;
    // Who was just told that the session is over reads that it is.
    call.context().store.settled().await;
    call.context().store.session(&id).await?.ok_or_else(|| not_found(format_args!("session {id}")))
}

fn page(asked: Option<u64>) -> Result<usize> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=LARGEST_PAGE => Ok(limit as usize),
        _ => Err(Error::invalid(format!("limit must be 1 to {LARGEST_PAGE}"))),
    }
}

fn info(row: &SessionRow) -> SessionInfo {
    SessionInfo {
        session_id: row.id.to_string(),
        device: row.device.clone(),
        language: row.language.clone(),
        state: match row.state {
            SessionState::Open => "open",
            SessionState::Closed => "closed",
        },
        opened_at: row.opened_at.clone(),
        ended_at: row.ended_at.clone(),
        takes: row.takes,
        duration: row.duration_secs,
    }
}

fn session_transcript(row: &SessionRow, segments: Vec<TextSegment>) -> SessionTranscript {
    let texts = segments.iter().map(|segment| segment.text.trim()).filter(|text| !text.is_empty());
    SessionTranscript {
        session_id: row.id.to_string(),
        language: row.language.clone(),
        duration: row.duration_secs,
        text: texts.collect::<Vec<&str>>().join(" "),
        segments,
    }
}

/// Offered to be saved, not shown.
fn file(content_type: &'static str, content: String) -> Response {
    let mut response = typed(StatusCode::OK, content_type, content);
    response.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    response
}

//! Recordings with what is spoken in them, and what the daemon makes of each as a file.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    api::client,
    base::{Error, Result},
    flow::Pcm,
    media::{AudioFile, Media},
};

/// Longer recordings than this are no clips.
const LONGEST: Duration = Duration::from_secs(3600);

/// A recording whose text is known.
pub(super) struct Clip {
    path: PathBuf,
    pub(super) audio: Pcm,
    pub(super) language: String,
    pub(super) text: String,
    /// Where each word stands, in seconds, if the list says so.
    words: Vec<(f64, f64)>,
    /// What was understood of the whole file.
    pub(super) offline: String,
    /// How far the times of its words are from the right ones; none where the words are not those that were said.
    pub(super) word_times: Vec<Duration>,
}

/// As clips.json lists them; what else an entry says is not looked at.
#[derive(Deserialize)]
struct Listed {
    file: String,
    language: Option<String>,
    text: Option<String>,
    #[serde(default)]
    segments: Vec<ListedSegment>,
}

#[derive(Deserialize)]
struct ListedSegment {
    /// Word, start, end.
    #[serde(default)]
    words: Vec<(String, f64, f64)>,
}

pub(super) async fn read(media: &Media, folder: &Path) -> Result<Vec<Clip>> {
    let list = folder.join("clips.json");
    let wrong = |what: String| {
        Error::invalid(what)
            .hint("clips.json is a list of {\"file\", \"language\", \"text\"}; --clips names its folder")
    };
    let text = fs::read(&list).map_err(|error| wrong(format!("{} cannot be read: {error}", list.display())))?;
    let listed: Vec<Listed> = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("{} is no list of clips: {error}", list.display())))?;
    let mut clips = Vec::with_capacity(listed.len());
    for Listed { file, language, text, segments } in listed {
        let path = folder.join(file);
        let audio = media.decode_file(AudioFile::Path(path.clone()), LONGEST).await?.whole()?;
        let (language, text) = (language.unwrap_or_else(|| "auto".to_owned()), text.unwrap_or_default());
        let words =
            segments.into_iter().flat_map(|segment| segment.words).map(|(_, start, end)| (start, end)).collect();
        clips.push(Clip { path, audio, language, text, words, offline: String::new(), word_times: Vec::new() });
    }
    if clips.is_empty() {
        return Err(wrong(format!("{} lists no clips", list.display())));
    }
    Ok(clips)
}

/// Has the clip transcribed as a file.
pub(super) async fn transcribe(address: SocketAddr, clip: &mut Clip, auto: bool) -> Result<()> {
    const BOUNDARY: &str = "vigia-bench-live";
    let file = fs::read(&clip.path)
        .map_err(|error| Error::unavailable(format!("{} cannot be read", clip.path.display())).cause(error))?;
    let language = if auto { "auto" } else { &clip.language };
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"language\"\r\n\r\n{language}\r\n--{BOUNDARY}\r\n\
         Content-Disposition: form-data; name=\"words\"\r\n\r\ntrue\r\n--{BOUNDARY}\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"clip\"\r\n\r\n"
    )
    .into_bytes();
    body.extend(file);
    body.extend(format!("\r\n--{BOUNDARY}--\r\n").bytes());
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let headers = [("content-type", content_type.as_str())];
    let (status, answer) = client::request(address, "POST", "/api/stt", &headers, Bytes::from(body)).await?;
    let told: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let Some(text) = told["text"].as_str().filter(|_| status.is_success()) else {
        return Err(Error::internal(format!("{}: the daemon answered {status}: {told}", clip.path.display())));
    };
    text.clone_into(&mut clip.offline);
    clip.word_times = distances(&clip.words, &times(&told));
    Ok(())
}

/// Start and end of each word of an answer.
fn times(told: &Value) -> Vec<(f64, f64)> {
    let segments = told["segments"].as_array().into_iter().flatten();
    let words = segments.filter_map(|segment| segment["words"].as_array()).flatten();
    words.filter_map(|word| Some((word["start"].as_f64()?, word["end"].as_f64()?))).collect()
}

/// Of starts and ends, word by word; only where as many were told as were said.
fn distances(said: &[(f64, f64)], told: &[(f64, f64)]) -> Vec<Duration> {
    if said.len() != told.len() {
        return Vec::new();
    }
    let pairs = said.iter().zip(told).flat_map(|(said, told)| [(said.0, told.0), (said.1, told.1)]);
    pairs.map(|(said, told)| Duration::from_secs_f64((said - told).abs())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_compared_where_the_words_are_the_same_number() {
        let told = json!({ "segments": [
            { "words": [{ "start": 0.1, "end": 0.5 }] },
            { "text": "without times" },
            { "words": [{ "start": 1.0, "end": 1.25 }] },
        ] });
        let told = times(&told);
        assert_eq!(told, [(0.1, 0.5), (1.0, 1.25)]);
        let far = distances(&[(0.1, 0.4), (1.25, 1.25)], &told);
        assert_eq!(
            far.iter().map(|it| it.as_secs_f64().mul_add(100.0, 0.5) as u32).collect::<Vec<_>>(),
            [0, 10, 25, 0]
        );
        assert!(distances(&[(0.1, 0.4)], &told).is_empty());
    }
}

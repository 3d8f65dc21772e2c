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
    /// What was understood of the whole file.
    pub(super) offline: String,
}

/// As clips.json lists them; what else an entry says is not looked at.
#[derive(Deserialize)]
struct Listed {
    file: String,
    language: Option<String>,
    text: Option<String>,
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
    for Listed { file, language, text } in listed {
        let path = folder.join(file);
        let audio = media.decode_file(AudioFile::Path(path.clone()), LONGEST).await?.whole()?;
        let (language, text) = (language.unwrap_or_else(|| "auto".to_owned()), text.unwrap_or_default());
        clips.push(Clip { path, audio, language, text, offline: String::new() });
    }
    if clips.is_empty() {
        return Err(wrong(format!("{} lists no clips", list.display())));
    }
    Ok(clips)
}

/// The text of the clip as a file.
pub(super) async fn offline(address: SocketAddr, clip: &Clip, auto: bool) -> Result<String> {
    const BOUNDARY: &str = "vigia-bench-live";
    let file = fs::read(&clip.path)
        .map_err(|error| Error::unavailable(format!("{} cannot be read", clip.path.display())).cause(error))?;
    let language = if auto { "auto" } else { &clip.language };
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"language\"\r\n\r\n{language}\r\n--{BOUNDARY}\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"clip\"\r\n\r\n"
    )
    .into_bytes();
    body.extend(file);
    body.extend(format!("\r\n--{BOUNDARY}--\r\n").bytes());
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let headers = [("content-type", content_type.as_str())];
    let (status, answer) = client::request(address, "POST", "/api/stt", &headers, Bytes::from(body)).await?;
    let told: Value = serde_json::from_slice(&answer).unwrap_or_default();
    match told["text"].as_str().filter(|_| status.is_success()) {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::internal(format!("{}: the daemon answered {status}: {told}", clip.path.display()))),
    }
}

//! A whole audio file, of any container that the wire knows: as a stream of samples, or at once within a limit of
//! length.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{
    Media, audio,
    feed::{Feed, Source, Stream, Unit, Whole},
    head,
    pool::Lent,
    recipe::MICROPHONE,
};
use crate::{
    base::{Error, Kind, Result},
    flow::{Pcm, SAMPLE_RATE_HZ},
};

/// Enough to see what a file is.
const FIRST_BYTES: usize = 4096;

/// Where the audio is.
#[derive(Debug, Clone)]
pub enum AudioFile {
    Path(PathBuf),
    Bytes(Bytes),
    /// Open already; it may have no name any more.
    Open(Arc<File>),
}

/// A file's samples at 16 kHz, decoded as they are taken: a reader that pauses pauses the decoder, and little of the
/// file is in memory at a time. Dropping it ends the work.
pub struct FileStream(Lent);

impl FileStream {
    /// The next samples, in order; `None` at the end, and after an error. Dropping the future loses nothing.
    pub async fn next(&self) -> Option<Result<Vec<f32>>> {
        let sample = self.0.next(|| true).await?;
        Some(sample.and_then(|it| audio::samples(&it)))
    }

    /// How long the file says it is, once it has said so; some only estimate it.
    pub fn duration(&self) -> Option<Duration> {
        self.0.duration()
    }
}

impl Media {
    /// What this machine's microphone hears, as a stream that does not end by itself.
    pub async fn open_microphone(&self) -> Result<FileStream> {
        let seat = Arc::clone(&self.audio_seats).try_acquire_owned().map_err(|_| audio::busy())?;
        let feed = Feed::Stream(Stream::new(Unit::Samples));
        Ok(FileStream(self.pool.lend(MICROPHONE, seat, feed, Vec::new()).await?))
    }

    /// What the file is, its first bytes say, never its name; nothing is opened that a file only points to.
    pub async fn open_file(&self, file: AudioFile) -> Result<FileStream> {
        let seat = Arc::clone(&self.audio_seats).try_acquire_owned().map_err(|_| audio::busy())?;
        let opened = spawn_blocking(move || open(file)).await;
        let (name, whole) = opened.map_err(|error| Error::internal("opening the file failed").cause(error))??;
        Ok(FileStream(self.pool.lend(name, seat, Feed::Whole(whole), Vec::new()).await?))
    }

    /// Decodes up to `longest`; a longer file is refused (`TooLarge`). Dropping the future ends the work.
    pub async fn decode_file(&self, file: AudioFile, longest: Duration) -> Result<Pcm> {
        let stream = self.open_file(file).await?;
        let most = (longest.as_secs_f64() * f64::from(SAMPLE_RATE_HZ)) as usize;
        let mut pcm = Vec::new();
        while let Some(samples) = stream.next().await {
            pcm.extend(samples?);
            if pcm.len() > most {
                let secs = longest.as_secs();
                return Err(Error::new(Kind::TooLarge, format!("the audio is longer than {secs} s"))
                    .hint("cut it into shorter files"));
            }
        }
        Ok(pcm.into())
    }
}

fn open(file: AudioFile) -> Result<(&'static str, Whole)> {
    let (first, source, path) = match file {
        AudioFile::Bytes(bytes) => (bytes.slice(..bytes.len().min(FIRST_BYTES)), Source::Bytes(bytes), None),
        AudioFile::Open(file) => {
            let first = first_bytes(&file).map_err(|error| Error::internal("cannot read the file").cause(error))?;
            (first, Source::File(file), None)
        }
        AudioFile::Path(path) => {
            let cannot = |error: io::Error| {
                let kind = if error.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Invalid };
                Error::new(kind, format!("cannot read {}: {error}", path.display()))
            };
            let file = File::open(&path).map_err(cannot)?;
            (first_bytes(&file).map_err(cannot)?, Source::File(Arc::new(file)), Some(path))
        }
    };
    let named = |error: Error| match &path {
        Some(path) => Error::new(error.kind(), format!("{}: {error}", path.display()))
            .hint(error.hint_text().unwrap_or_default().to_owned()),
        None => error,
    };
    let (encoding, start) = head::recognise(&first).map_err(named)?;
    let whole = Whole::new(source, start).map_err(|error| Error::internal("cannot size the file").cause(error))?;
    Ok((audio::pipeline_name(encoding), whole))
}

fn first_bytes(file: &File) -> io::Result<Bytes> {
    let mut first = vec![0; FIRST_BYTES];
    let read = file.read_at(&mut first, 0)?;
    first.truncate(read);
    Ok(first.into())
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use super::*;
    use crate::media::tests::media;

    /// Recordings beside the checkout, where a machine has them.
    #[tokio::test]
    async fn the_golden_recording_decodes_to_its_samples() {
        let Ok(assets) = env::var("VIGIA_TEST_ASSETS") else {
            println!("skipped: VIGIA_TEST_ASSETS is not set");
            return;
        };
        let path = PathBuf::from(assets).join("golden/audio/speech_es.wav");
        let bytes = fs::read(&path).unwrap();
        let pcm = media().decode_file(AudioFile::Path(path), Duration::from_secs(60)).await.unwrap();
        let (stored, _) = bytes[44..].as_chunks::<2>();
        assert_eq!(pcm.len(), stored.len());
        let same = |(a, b): (&f32, &[u8; 2])| (a - f32::from(i16::from_le_bytes(*b)) / 32768.0).abs() < 1e-4;
        assert!(pcm.iter().zip(stored).all(same));
    }
}

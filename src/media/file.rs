//! A whole audio file, of any container that GStreamer reads: as a stream of samples, or at once within a limit of
//! length.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{
    Media, audio,
    ending::{self, Ending},
    feed::{Feed, Source, Stream, Unit, Whole},
    head,
    pool::Lent,
    recipe::{CONTAINER, MICROPHONE},
};
use crate::{
    base::{Error, Kind, Result},
    flow::{Pcm, SAMPLE_RATE_HZ, Warning, WarningCode, audio::samples_to_secs},
};

/// What resampling and the delay of a codec may take of a length.
const ROUNDING_SECS: f64 = 0.25;

const NOTHING: &str = "the file breaks off before any of its audio";

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
pub struct FileStream {
    line: Lent,
    ending: Ending,
    given: AtomicU64,
    warning: OnceLock<Warning>,
}

/// A file that was decoded at once.
#[derive(Debug)]
pub struct Decoded {
    pub pcm: Pcm,
    /// What is there is not all.
    pub warning: Option<Warning>,
}

impl FileStream {
    fn new(line: Lent, ending: Ending) -> FileStream {
        FileStream { line, ending, given: AtomicU64::new(0), warning: OnceLock::new() }
    }

    /// The next samples, in order; `None` at the end, and after an error. Dropping the future loses nothing.
    ///
    /// A file that breaks off in the middle, or cannot be decoded from there on, gives what it holds and ends with a
    /// warning; one that gives nothing at all is an error.
    pub async fn next(&self) -> Option<Result<Vec<f32>>> {
        let next = self.line.next(|| true).await.map(|sample| sample.and_then(|it| audio::samples(&it)));
        let secs = samples_to_secs(self.given.load(Ordering::Relaxed));
        match next {
            Some(Ok(samples)) => {
                self.given.fetch_add(samples.len() as u64, Ordering::Relaxed);
                Some(Ok(samples))
            }
            // A decoder that waits for what will never come.
            Some(Err(error)) if secs == 0.0 && self.cut(secs).is_some() => {
                Some(Err(Error::invalid(NOTHING).hint("send it again, whole").cause(error)))
            }
            Some(Err(error)) if matches!(error.kind(), Kind::Invalid | Kind::Timeout) && secs > 0.0 => {
                log::debug!("a recording breaks off: {}", error.full());
                let cut = self.cut(secs).unwrap_or_else(|| Warning {
                    code: WarningCode::Damaged,
                    message: format!("the recording cannot be decoded after {secs:.1} s: {error}"),
                });
                self.warning.get_or_init(|| cut);
                None
            }
            None => {
                let cut = self.cut(secs)?;
                let told = self.warning.set(cut).is_err();
                let nothing = secs == 0.0 && !told;
                nothing.then(|| Err(Error::invalid(NOTHING).hint("send it again, whole")))
            }
            failed => failed,
        }
    }

    /// How long the file says it is, once it has said so; some only estimate it.
    pub fn duration(&self) -> Option<Duration> {
        self.line.duration()
    }

    /// What is wrong with what was given; known at the end.
    pub fn warning(&self) -> Option<&Warning> {
        self.warning.get()
    }

    fn cut(&self, secs: f64) -> Option<Warning> {
        let why = match self.ending {
            Ending::Cut(why) => why.to_owned(),
            Ending::Secs(promised) if promised > secs + ROUNDING_SECS => format!("it says that it has {promised:.1} s"),
            Ending::Whole | Ending::Secs(_) => return None,
        };
        let message = format!("the recording is cut off after {secs:.1} s: {why}");
        Some(Warning { code: WarningCode::Cut, message })
    }
}

impl Decoded {
    /// For what makes no sense of a part.
    pub fn whole(self) -> Result<Pcm> {
        match self.warning {
            None => Ok(self.pcm),
            Some(Warning { message, .. }) => Err(Error::invalid(message).hint("a whole file is needed here")),
        }
    }
}

impl Media {
    /// What this machine's microphone hears, as a stream that does not end by itself.
    pub async fn open_microphone(&self) -> Result<FileStream> {
        let seat = Arc::clone(&self.audio_seats).try_acquire_owned().map_err(|_| audio::busy())?;
        let feed = Feed::Stream(Stream::new(Unit::Samples));
        Ok(FileStream::new(self.pool.lend(MICROPHONE, seat, feed, Vec::new()).await?, Ending::Whole))
    }

    /// What the file is, its first bytes say, never its name; nothing is opened that a file only points to.
    pub async fn open_file(&self, file: AudioFile) -> Result<FileStream> {
        let seat = Arc::clone(&self.audio_seats).try_acquire_owned().map_err(|_| audio::busy())?;
        let opened = spawn_blocking(move || open(file)).await;
        let Opened { name, whole, ending } =
            opened.map_err(|error| Error::internal("opening the file failed").cause(error))??;
        Ok(FileStream::new(self.pool.lend(name, seat, Feed::Whole(whole), Vec::new()).await?, ending))
    }

    /// Decodes up to `longest`; a longer file is refused (`TooLarge`). Dropping the future ends the work.
    pub async fn decode_file(&self, file: AudioFile, longest: Duration) -> Result<Decoded> {
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
        Ok(Decoded { pcm: pcm.into(), warning: stream.warning().cloned() })
    }
}

/// A file that was looked at.
struct Opened {
    /// Of its pipeline.
    name: &'static str,
    whole: Whole,
    ending: Ending,
}

fn open(file: AudioFile) -> Result<Opened> {
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
    if first.is_empty() {
        return Err(named(Error::invalid("the file is empty").hint("send it again, whole")));
    }
    let known = head::recognise(&first);
    let (encoding, start) = (known.map(|(encoding, _)| encoding), known.map_or(0, |(_, start)| start));
    let whole = Whole::new(source, start).map_err(|error| Error::internal("cannot size the file").cause(error))?;
    let ending = ending::of(encoding, &whole).map_err(|error| Error::internal("cannot read the file").cause(error))?;
    Ok(Opened { name: encoding.map_or(CONTAINER, audio::pipeline_name), whole, ending })
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
        let pcm = media().decode_file(AudioFile::Path(path), Duration::from_secs(60)).await.unwrap().whole().unwrap();
        let (stored, _) = bytes[44..].as_chunks::<2>();
        assert_eq!(pcm.len(), stored.len());
        let same = |(a, b): (&f32, &[u8; 2])| (a - f32::from(i16::from_le_bytes(*b)) / 32768.0).abs() < 1e-4;
        assert!(pcm.iter().zip(stored).all(same));
    }
}

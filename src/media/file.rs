//! A whole audio file, of any container that the wire knows, decoded at once within a limit of length.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{
    Media, audio,
    feed::{Feed, Source, Whole},
    head,
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
}

impl Media {
    /// Decodes up to `longest`; a longer file is refused (`TooLarge`). What the file is, its first bytes say, never
    /// its name; nothing is opened that a file only points to. Dropping the future ends the work.
    pub async fn decode_file(&self, file: AudioFile, longest: Duration) -> Result<Pcm> {
        let seat = Arc::clone(&self.audio_seats).try_acquire_owned().map_err(|_| audio::busy())?;
        let opened = spawn_blocking(move || open(file)).await;
        let (name, whole) = opened.map_err(|error| Error::internal("opening the file failed").cause(error))??;
        let line = self.pool.lend(name, seat, Feed::Whole(whole), Vec::new()).await?;
        let most = (longest.as_secs_f64() * f64::from(SAMPLE_RATE_HZ)) as usize;
        let mut pcm = Vec::new();
        while let Some(sample) = line.next(|| true).await {
            pcm.extend(audio::samples(&sample?)?);
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
        AudioFile::Path(path) => {
            let cannot = |error: std::io::Error| {
                let kind = if error.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Invalid };
                Error::new(kind, format!("cannot read {}: {error}", path.display()))
            };
            let file = File::open(&path).map_err(cannot)?;
            let mut first = vec![0; FIRST_BYTES];
            let read = file.read_at(&mut first, 0).map_err(cannot)?;
            first.truncate(read);
            (first.into(), Source::File(file), Some(path))
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

//! A file that is too large for memory, on disk while it comes and while it is worked on. It loses its name as soon as
//! it is open, so that nothing stays behind, whatever ends the request or the daemon.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use multer::Field;
use tokio::{
    io::{AsyncWriteExt as _, BufWriter},
    task::spawn_blocking,
};

use crate::{
    api::{
        Context,
        body::{self, FilePart},
        error::Refusal,
    },
    base::{Error, Result},
    media::AudioFile,
    store::space,
};

/// Written at a time: a disk likes it large, and each write takes a thread.
const WRITE_BYTES: usize = 512 << 10;

/// Stays free on the disk, for what clients were told is safe.
const KEEP_FREE_BYTES: u64 = 512 << 20;

/// The room on the disk is looked at again each time this much has come.
const LOOK_EVERY_BYTES: u64 = 64 << 20;

pub(crate) struct Upload {
    file: Arc<File>,
    bytes: u64,
}

impl Upload {
    pub(crate) fn into_audio(self) -> AudioFile {
        AudioFile::Open(self.file)
    }
}

impl FilePart for Upload {
    async fn read(mut part: Field<'_>, context: &Arc<Context>) -> Result<Upload, Refusal> {
        let dir = context.settings.store_dir();
        let nameless = {
            let dir = dir.clone();
            spawn_blocking(move || nameless(&dir)).await.map_err(|error| Error::internal("no upload").cause(error))?
        };
        let file = tokio::fs::File::from_std(nameless.map_err(not_written)?);
        let mut out = BufWriter::with_capacity(WRITE_BYTES, file);
        let (mut bytes, mut looked_at) = (0, 0);
        while let Some(chunk) = part.chunk().await.map_err(body::refusal)? {
            if bytes >= looked_at {
                room(&dir)?;
                looked_at = bytes + LOOK_EVERY_BYTES;
            }
            out.write_all(&chunk).await.map_err(not_written)?;
            bytes += chunk.len() as u64;
        }
        out.flush().await.map_err(not_written)?;
        Ok(Upload { file: Arc::new(out.into_inner().into_std().await), bytes })
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

fn nameless(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".upload-{}", ulid::Ulid::new()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Of a file system that does not say, nothing is assumed.
fn room(dir: &Path) -> Result<()> {
    match space::free(dir) {
        Some(free) if free.get() < KEEP_FREE_BYTES + LOOK_EVERY_BYTES => {
            Err(Error::unavailable(format!("the disk has no room for the file: {free} are free"))
                .hint("make room where store.dir is"))
        }
        _ => Ok(()),
    }
}

fn not_written(error: io::Error) -> Error {
    Error::unavailable("the file cannot be kept while it is worked on")
        .hint("is there room where store.dir is?")
        .cause(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn an_upload_has_no_name_from_the_start_and_can_be_read_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = nameless(dir.path()).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        file.write_all_at(b"RIFF", 0).unwrap();
        let mut read = [0; 4];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"RIFF");
        assert!(nameless(&dir.path().join("nowhere")).is_err());
    }
}

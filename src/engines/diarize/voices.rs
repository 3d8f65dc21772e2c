//! Known voices: whose they are, kept in one private file of the store's folder. They never leave this box, and
//! removing one rewrites the file without it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Kind, Result},
    engines::diarize::embedder::{dot, unit},
};

const FILE_NAME: &str = "voices.json";
const VERSION: u32 = 1;
/// In characters; names stand beside every line of a transcript.
const LONGEST_NAME: usize = 64;
const MOST: usize = 256;
/// How much closer the best voice must be than the next: brothers are not to be guessed between.
const MARGIN: f32 = 0.02;

/// A person's voice, as one model of voices hears it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voice {
    pub name: String,
    /// Voices of different models cannot be compared.
    pub model: String,
    /// How much speech it was made of.
    pub secs: f64,
    pub enrolled_at: String,
    /// Of unit length.
    pub voice: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    v: u32,
    voices: Vec<Voice>,
}

/// All known voices.
#[derive(Debug, Default)]
pub struct Voices {
    path: PathBuf,
    voices: Vec<Voice>,
}

impl Voices {
    /// Those in the store's folder; a folder without any holds none.
    pub fn open(store_dir: &Path) -> Result<Voices> {
        let path = store_dir.join(FILE_NAME);
        let broken = |cause: Error| {
            Error::unavailable(format!("{} cannot be read", path.display()))
                .cause(cause)
                .hint("move it away and enrol the voices again")
        };
        let voices = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(broken(Error::internal("reading failed").cause(error))),
            Ok(text) => {
                let stored: Stored = serde_json::from_slice(&text)
                    .map_err(|error| broken(Error::invalid("it is no list of voices").cause(error)))?;
                if stored.v != VERSION || stored.voices.iter().flat_map(|it| &it.voice).any(|value| !value.is_finite())
                {
                    return Err(broken(Error::invalid("it is of another version, or damaged")));
                }
                stored.voices
            }
        };
        Ok(Voices { path, voices })
    }

    pub fn list(&self) -> &[Voice] {
        &self.voices
    }

    /// Adds a voice, or replaces the one that this model has of that name.
    pub fn enroll(&mut self, mut voice: Voice) -> Result<()> {
        voice.name = voice.name.trim().to_owned();
        let printable = !voice.name.is_empty() && !voice.name.chars().any(char::is_control);
        if !printable || voice.name.chars().count() > LONGEST_NAME {
            return Err(Error::invalid(format!("a name has 1 to {LONGEST_NAME} printable characters")));
        }
        if voice.name.strip_prefix('S').is_some_and(|rest| rest.parse::<u64>().is_ok()) {
            return Err(Error::invalid(format!("{} is what somebody without a name is called", voice.name))
                .hint("take another name"));
        }
        if voice.voice.is_empty() || voice.voice.iter().any(|value| !value.is_finite()) {
            return Err(Error::invalid("this is no voice"));
        }
        voice.voice = unit(voice.voice);
        let mut voices = self.voices.clone();
        voices.retain(|known| known.name != voice.name || known.model != voice.model);
        if voices.len() >= MOST {
            return Err(Error::new(Kind::TooLarge, format!("{MOST} voices are known already"))
                .hint("`vigia voices remove NAME` makes room"));
        }
        voices.push(voice);
        voices.sort_by(|a, b| a.name.cmp(&b.name));
        self.replace(voices)
    }

    /// Forgets a person, whichever models heard them.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let mut voices = self.voices.clone();
        voices.retain(|known| known.name != name);
        if voices.len() == self.voices.len() {
            return Err(Error::new(Kind::NotFound, format!("no voice is known as `{name}`"))
                .hint("`vigia voices list` shows them"));
        }
        self.replace(voices)
    }

    /// Whose voice it is, if it is close enough to one and to no other. `same`: `Likeness::same` of the model.
    pub fn name_of(&self, model: &str, voice: &[f32], same: f32) -> Option<&str> {
        let of_model = self.voices.iter().filter(|known| known.model == model && known.voice.len() == voice.len());
        let mut alike: Vec<(f32, &str)> =
            of_model.map(|known| (dot(&known.voice, voice), known.name.as_str())).collect();
        alike.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (best, name) = *alike.first()?;
        let next = alike.get(1).map_or(f32::NEG_INFINITY, |next| next.0);
        (best >= same && best - next >= MARGIN).then_some(name)
    }

    /// Either the old file or the new one, whatever happens; for its owner alone.
    fn replace(&mut self, voices: Vec<Voice>) -> Result<()> {
        let stored = Stored { v: VERSION, voices };
        let text = serde_json::to_vec_pretty(&stored)
            .map_err(|error| Error::internal("the known voices cannot be written").cause(error))?;
        let written = (|| {
            let dir = self.path.parent().unwrap_or(Path::new("."));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let new = self.path.with_extension("new");
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            File::open(dir)?.sync_all()
        })();
        written.map_err(|error| {
            Error::unavailable(format!("{} cannot be written", self.path.display()))
                .cause(error)
                .hint("run as the owner of store.dir")
        })?;
        self.voices = stored.voices;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn voice(name: &str, model: &str, direction: [f32; 2]) -> Voice {
        let (name, model, enrolled_at) = (name.to_owned(), model.to_owned(), "2026-01-01T00:00:00Z".to_owned());
        Voice { name, model, secs: 12.0, enrolled_at, voice: direction.to_vec() }
    }

    #[test]
    fn a_voice_is_kept_privately_recognised_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("store");
        let mut voices = Voices::open(&dir).unwrap();
        voices.enroll(voice(" Zoë ", "m", [3.0, 0.0])).unwrap();
        voices.enroll(voice("Ana", "m", [0.0, 1.0])).unwrap();
        let path = dir.join(FILE_NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut voices = Voices::open(&dir).unwrap();
        assert_eq!(voices.list().iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["Ana", "Zoë"]);
        assert_eq!(voices.name_of("m", &[0.9, 0.1], 0.7), Some("Zoë"));
        assert_eq!(voices.name_of("m", &[0.9, 0.1], 0.95), None);
        assert_eq!(voices.name_of("other", &[1.0, 0.0], 0.7), None);
        assert_eq!(voices.name_of("m", &[1.0, 0.0, 0.0], 0.7), None);
        // As close to one as to the other.
        assert_eq!(voices.name_of("m", &[0.71, 0.70], 0.7), None);

        voices.remove("Zoë").unwrap();
        assert_eq!(voices.remove("Zoë").unwrap_err().kind(), Kind::NotFound);
        assert!(!fs::read_to_string(&path).unwrap().contains("Zoë"));
    }

    #[test]
    fn enrolling_again_replaces_the_voice_of_that_model_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut voices = Voices::open(dir.path()).unwrap();
        for (model, direction) in [("m", [1.0, 0.0]), ("n", [1.0, 0.0]), ("m", [0.0, 1.0])] {
            voices.enroll(voice("Ana", model, direction)).unwrap();
        }
        assert_eq!(voices.list().len(), 2);
        assert_eq!(voices.name_of("m", &[0.0, 1.0], 0.7), Some("Ana"));
    }

    #[test]
    fn bad_names_bad_voices_and_damaged_files_are_refused_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut voices = Voices::open(dir.path()).unwrap();
        for name in ["", "  ", "a\nb", "S1", &"x".repeat(65)] {
            assert_eq!(voices.enroll(voice(name, "m", [1.0, 0.0])).unwrap_err().kind(), Kind::Invalid);
        }
        assert!(voices.enroll(voice("Ana", "m", [f32::NAN, 0.0])).is_err());
        assert!(!dir.path().join(FILE_NAME).exists());
        for text in ["", "[]", "{\"v\":2,\"voices\":[]}", "{\"v\":1,\"voices\":[],\"more\":1}"] {
            fs::write(dir.path().join(FILE_NAME), text).unwrap();
            let error = Voices::open(dir.path()).unwrap_err();
            assert!(error.full().contains("enrol"), "{}", error.full());
        }
    }
}

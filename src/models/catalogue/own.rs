//! A user's own entries. One that cannot be taken is left out and told, whatever is wrong with it: no other model has to
//! suffer for it. Opens nothing but plain files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    base::{Error, Result, printable},
    models::catalogue::{Entry, entry},
};

/// A larger file is no entry.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) entries: Vec<Entry>,
    /// Each names the file that is left out.
    pub(super) problems: Vec<String>,
}

/// A folder that is not there holds none.
pub(super) fn load(dir: &Path, built_in: &[Entry]) -> Own {
    let mut own = Own::default();
    let paths = files(dir).unwrap_or_else(|error| {
        own.tell(&error);
        Vec::new()
    });
    let mut taken: BTreeMap<PathBuf, Entry> = BTreeMap::new();
    for path in paths {
        match read(&path).and_then(|text| entry::parse(&text, &path.display().to_string())) {
            Ok(entry) => match taken.iter().find(|(_, other)| other.name == entry.name) {
                Some((first, _)) => own.tell(&left_out(
                    &path,
                    &format!("{} has an entry of the name {} already", first.display(), entry.name),
                )),
                None => drop(taken.insert(path, entry)),
            },
            Err(error) => own.tell(&error),
        }
    }
    // One that is left out may be what another comes with.
    while let Some((path, why)) = lonely(&taken, built_in) {
        own.tell(&left_out(&path, &why));
        taken.remove(&path);
    }
    own.entries = taken.into_values().collect();
    own
}

impl Own {
    fn tell(&mut self, error: &Error) {
        self.problems.push(printable(&error.full()));
    }
}

/// Of one that comes with a model that nobody knows.
fn lonely(own: &BTreeMap<PathBuf, Entry>, built_in: &[Entry]) -> Option<(PathBuf, String)> {
    let names: BTreeSet<&str> = own.values().chain(built_in).map(|entry| entry.name.as_str()).collect();
    own.iter().find_map(|(path, entry)| {
        let with = entry.with.iter().find(|with| !names.contains(with.as_str()))?;
        Some((path.clone(), format!("{} comes with {with}, which is not known", entry.name)))
    })
}

fn left_out(path: &Path, why: &str) -> Error {
    Error::invalid(format!("{} is left out: {why}", path.display()))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error| Error::unavailable(format!("{} cannot be read", dir.display())).cause(error);
    let listed = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(unreadable)?,
    };
    let mut paths = Vec::new();
    for entry in listed {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String> {
    let unreadable = |error| left_out(path, "it cannot be read").cause(error);
    // Whoever reads of a pipe waits for somebody who writes.
    let found = fs::metadata(path).map_err(unreadable)?;
    if !found.is_file() {
        return Err(left_out(path, "it is no plain file"));
    }
    if found.len() > MAX_BYTES {
        return Err(left_out(path, "it is too large for an entry of the catalogue"));
    }
    fs::read_to_string(path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::catalogue::Catalogue;

    const TEXT: &str = "name = \"NAME\"\ntitle = \"Mine\"\ntasks = [\"chat\"]\nfamily = \"qwen2\"\nsource = \"copy it\"\n\
                        files = [\"m.onnx\"]\n[licence]\nname = \"MIT\"\n";

    fn put(dir: &Path, file: &str, text: impl AsRef<[u8]>) {
        fs::write(dir.join(file), text).unwrap();
    }

    #[test]
    fn what_is_wrong_with_one_entry_is_told_and_takes_no_other_away() {
        let dir = tempfile::tempdir().unwrap();
        let built_in = Catalogue::load(None).unwrap().entries().len();
        put(dir.path(), "good.toml", TEXT.replace("NAME", "good"));
        let lonely = TEXT.replace("NAME", "lonely").replace("[licence]", "with = [\"companion\"]\n[licence]");
        for (content, word) in [
            (lonely.into_bytes(), "lonely comes with companion, which is not known"),
            (b"name = 7".to_vec(), "line 1"),
            (TEXT.replace("NAME", "good").into_bytes(), "good.toml has an entry of the name good already"),
            (vec![b'#'; usize::try_from(MAX_BYTES).unwrap() + 1], "too large"),
            (b"name = \"\xff\"".to_vec(), "cannot be read"),
            (b"name = \"\x1b]0;x\x07\"".to_vec(), "line 1"),
            (Vec::new(), "vigia models show whisper-base --entry"),
        ] {
            put(dir.path(), "on.toml", content);
            let catalogue = Catalogue::load(Some(dir.path())).unwrap();
            assert_eq!(catalogue.entries().len(), built_in + 1, "{word}");
            let [problem] = catalogue.problems() else { panic!("{word}: {:?}", catalogue.problems()) };
            assert!(problem.contains("on.toml") && problem.contains(word), "{word}: {problem}");
            assert!(!problem.contains(['\x1b', '\n']) && !problem.contains("README"), "{problem:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder.toml")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("gone.toml")).unwrap();
        let pipe = std::ffi::CString::new(dir.path().join("pipe.toml").to_str().unwrap()).unwrap();
        // SAFETY: `pipe` is a C string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        let catalogue = Catalogue::load(Some(dir.path())).unwrap();
        let told = catalogue.problems().join("; ");
        assert!(catalogue.problems().len() == 3 && told.matches("it is no plain file").count() == 2, "{told}");
        assert!(told.contains("gone.toml is left out: it cannot be read"), "{told}");
        // A file where the folder should be.
        put(dir.path(), "file", "");
        let catalogue = Catalogue::load(Some(&dir.path().join("file"))).unwrap();
        assert!(catalogue.problems()[0].contains("file cannot be read"), "{:?}", catalogue.problems());
        assert!(Catalogue::load(Some(&dir.path().join("nowhere"))).unwrap().problems().is_empty());
    }

    #[test]
    fn whoever_comes_with_one_that_is_left_out_is_left_out_too() {
        let dir = tempfile::tempdir().unwrap();
        let with = |name: &str, with: &str| {
            TEXT.replace("NAME", name).replace("[licence]", &format!("with = [\"{with}\"]\n[licence]"))
        };
        put(dir.path(), "a.toml", with("first", "second"));
        put(dir.path(), "b.toml", with("second", "nobody"));
        put(dir.path(), "c.toml", with("whisper-tiny", "second"));
        let catalogue = Catalogue::load(Some(dir.path())).unwrap();
        assert_eq!(catalogue.problems().len(), 3, "{:?}", catalogue.problems());
        assert!(catalogue.get("first").is_none() && catalogue.get("second").is_none());
        assert_ne!(catalogue.get("whisper-tiny").unwrap().title, "Mine", "the built-in one is back");
    }
}

//! What makes an engine the one that is wanted: if any of this differs, it is another engine.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use serde::Serialize;

use crate::{
    base::{Error, Result, lock},
    device::Gpu,
    models::{catalogue::is_side_file, digest::Digest, installed::Lock},
    runtime::{Runtime, provider::TensorRtOptions},
};

/// Of an id, which is a folder's name.
const ID_DIGITS: usize = 24;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineKey {
    pub model: String,
    pub variant: String,
    /// Of the model's graphs, so that new weights are a new engine.
    pub digest: String,
    pub onnxruntime: String,
    pub tensorrt: String,
    /// Its name and compute capability: an engine is made for one kind of GPU.
    pub gpu: String,
    pub options: TensorRtOptions,
}

impl EngineKey {
    /// For the graphs of one variant, by role, as they lie in the model's folder. An error says why TensorRT cannot
    /// be had here: the driver, the library.
    pub fn new(
        (model, variant): (&str, &str),
        (folder, graphs): (&Path, &BTreeMap<String, String>),
        (runtime, gpu): (&Runtime, &Gpu),
        options: TensorRtOptions,
        digests: &Digests,
    ) -> Result<EngineKey> {
        let tensorrt = runtime.tensorrt_version()?.to_string();
        Ok(EngineKey {
            model: model.to_owned(),
            variant: variant.to_owned(),
            digest: digests.of(folder, graphs)?,
            onnxruntime: runtime.version(),
            tensorrt,
            gpu: format!("{} {}", gpu.name, gpu.compute_capability.as_deref().unwrap_or_default()),
            options,
        })
    }

    pub fn id(&self) -> String {
        let TensorRtOptions { fp16, int8, workspace_bytes, .. } = self.options;
        let EngineKey { digest, onnxruntime, tensorrt, gpu, .. } = self;
        // Of the options those that the engine itself depends on; the length keeps two words from passing for others.
        let words = [digest, onnxruntime, tensorrt, gpu, &format!("{fp16} {int8} {workspace_bytes:?}")];
        let mut id = Digest::default();
        for word in words {
            id.add(format!("{}:{word}\n", word.len()).as_bytes());
        }
        let mut id = id.sha256();
        id.truncate(ID_DIGITS);
        format!("{}-{}-{id}", self.model, self.variant)
    }
}

/// Sums of files that no lock has, which may be large: made once, as long as size and time of change stay.
#[derive(Default)]
pub struct Digests(Mutex<BTreeMap<PathBuf, (u64, SystemTime, String)>>);

impl Digests {
    /// Of all graphs and the weights beside them; taken from the model's lock, where it has one.
    fn of(&self, folder: &Path, graphs: &BTreeMap<String, String>) -> Result<String> {
        let locked = Lock::read(folder)?.unwrap_or_default();
        let mut all = Digest::default();
        for (role, graph) in graphs {
            for file in files(folder, graph) {
                let of_file = match locked.files.get(&file) {
                    Some(locked) => locked.sha256.clone(),
                    None => {
                        let path = folder.join(&file);
                        let unreadable = || Error::unavailable(format!("{} cannot be read", path.display()));
                        self.of_file(&path).map_err(|error| unreadable().cause(error))?
                    }
                };
                all.add(format!("{role}:{file}:{of_file}\n").as_bytes());
            }
        }
        Ok(all.sha256())
    }

    fn of_file(&self, path: &Path) -> io::Result<String> {
        let metadata = path.metadata()?;
        let (size, changed) = (metadata.len(), metadata.modified()?);
        if let Some((.., sum)) = lock(&self.0).get(path).filter(|(a, b, _)| (*a, *b) == (size, changed)) {
            return Ok(sum.clone());
        }
        let sum = Digest::of_file(path)?.sha256();
        lock(&self.0).insert(path.to_owned(), (size, changed, sum.clone()));
        Ok(sum)
    }
}

/// A graph and the weights beside it, within the model's folder.
pub(in crate::engines) fn files(folder: &Path, graph: &str) -> impl Iterator<Item = String> {
    std::iter::once(graph.to_owned()).chain(side_files(folder, graph))
}

/// In an order that is always the same.
fn side_files(folder: &Path, graph: &str) -> Vec<String> {
    let (within, _) = graph.rsplit_once('/').unwrap_or_default();
    let listed = std::fs::read_dir(folder.join(within)).into_iter().flatten().flatten();
    let names = listed.filter_map(|file| file.file_name().into_string().ok());
    let paths = names.map(|name| if within.is_empty() { name } else { format!("{within}/{name}") });
    let mut files: Vec<String> = paths.filter(|path| is_side_file(graph, path)).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn other_weights_have_another_digest_and_missing_ones_none() {
        let dir = tempfile::tempdir().unwrap();
        let graphs = [("model".to_owned(), "m.onnx".to_owned())].into();
        let digests = Digests::default();
        assert!(digests.of(dir.path(), &graphs).unwrap_err().message().contains("m.onnx"));
        let mut time = SystemTime::now();
        let mut of = |content: &str| {
            std::fs::write(dir.path().join("m.onnx"), content).unwrap();
            // As a later version of the file has a later time.
            let file = std::fs::File::options().write(true).open(dir.path().join("m.onnx")).unwrap();
            time += Duration::from_secs(1);
            file.set_modified(time).unwrap();
            digests.of(dir.path(), &graphs).unwrap()
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        let alone = of("a");
        for weights in ["1", "2"] {
            std::fs::write(dir.path().join("m.onnx_data"), weights).unwrap();
            assert_ne!(of("a"), alone, "weights beside a graph are the model's too");
        }
    }

    #[test]
    fn a_file_that_has_not_changed_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        std::fs::write(&path, "one").unwrap();
        let digests = Digests::default();
        let first = digests.of_file(&path).unwrap();
        let at = path.metadata().unwrap().modified().unwrap();
        // Nobody could tell that it is another one.
        std::fs::write(&path, "two").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        assert_eq!(digests.of_file(&path).unwrap(), first);
        std::fs::write(&path, "three").unwrap();
        assert_ne!(digests.of_file(&path).unwrap(), first);
    }
}

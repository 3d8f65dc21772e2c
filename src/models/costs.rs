//! What models were seen to take, per device, provider, model and variant: kept on disk, so that the second load is
//! planned with a measured cost. A file that cannot be read is told, put aside and begun afresh: it holds nothing that
//! cannot be measured again.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result, lock},
    models::{ModelKey, Seen, installed::write_whole},
};

/// In the store's folder.
const FILE: &str = "costs.json";

/// Other kinds of device in a folder that has moved house keep their own figures.
type Devices = BTreeMap<String, Vec<Cost>>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    model: String,
    variant: String,
    provider: String,
    /// At any time.
    bytes: u64,
    /// Before it had worked; files of earlier versions do not say.
    #[serde(default)]
    loaded_bytes: Option<u64>,
}

#[derive(Debug)]
pub struct Costs {
    path: PathBuf,
    device: String,
    devices: Mutex<Devices>,
    /// One writer at a time, so that the newest figures are written last.
    writing: Mutex<()>,
}

impl Costs {
    /// `device` is what figures hold for, such as `Facts::title`.
    pub fn open(dir: &Path, device: &str) -> Costs {
        let path = dir.join(FILE);
        let devices = read(&path).unwrap_or_else(|error| {
            log::error!("{}", error.full());
            let aside = path.with_extension("json.broken");
            if let Err(error) = fs::rename(&path, &aside) {
                log::error!("{} cannot be put aside: {error}", path.display());
            }
            Devices::new()
        });
        Costs { path, device: device.to_owned(), devices: Mutex::new(devices), writing: Mutex::new(()) }
    }

    /// Of this device.
    pub fn all(&self) -> BTreeMap<ModelKey, Seen> {
        let devices = lock(&self.devices);
        let costs = devices.get(&self.device).into_iter().flatten();
        costs.map(|cost| (cost.key(), cost.seen())).collect()
    }

    /// Keeps a figure in memory; true when it is a new one, to be written.
    pub fn set(&self, key: &ModelKey, seen: Seen) -> bool {
        let mut devices = lock(&self.devices);
        let costs = devices.entry(self.device.clone()).or_default();
        match costs.iter_mut().find(|cost| cost.is_of(key)) {
            Some(cost) if cost.seen() == seen => return false,
            Some(cost) => *cost = Cost::new(key, seen),
            None => costs.push(Cost::new(key, seen)),
        }
        true
    }

    /// Blocks on the disk.
    pub fn write(&self) -> Result<()> {
        let _one_at_a_time = lock(&self.writing);
        let text = serde_json::to_string_pretty(&*lock(&self.devices))
            .map_err(|error| Error::internal("the costs of models cannot be written").cause(error))?;
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)
                .map_err(|error| Error::unavailable(format!("{} cannot be made", dir.display())).cause(error))?;
        }
        write_whole(&self.path, text.as_bytes())
    }
}

impl Cost {
    fn new(key: &ModelKey, seen: Seen) -> Cost {
        let ModelKey { model, variant, provider } = key.clone();
        Cost { model, variant, provider, bytes: seen.most, loaded_bytes: seen.loaded }
    }

    fn seen(&self) -> Seen {
        Seen { loaded: self.loaded_bytes, most: self.bytes }
    }

    fn key(&self) -> ModelKey {
        let Cost { model, variant, provider, .. } = self.clone();
        ModelKey { model, variant, provider }
    }

    fn is_of(&self, key: &ModelKey) -> bool {
        (&self.model, &self.variant, &self.provider) == (&key.model, &key.variant, &key.provider)
    }
}

fn read(path: &Path) -> Result<Devices> {
    let broken = |cause: Box<dyn std::error::Error + Send + Sync>| {
        Error::unavailable(format!("{} cannot be read: the costs of models are measured anew", path.display()))
            .cause(cause)
    };
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| broken(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Devices::new()),
        Err(error) => Err(broken(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str) -> ModelKey {
        ModelKey { model: model.to_owned(), variant: "q4".to_owned(), provider: "cuda".to_owned() }
    }

    fn seen(most: u64) -> Seen {
        Seen { loaded: Some(most / 2), most }
    }

    #[test]
    fn a_file_of_an_earlier_version_tells_the_most_alone() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"d": [{"model": "a", "variant": "q4", "provider": "cuda", "bytes": 7}]}"#;
        fs::write(dir.path().join(FILE), text).unwrap();
        assert_eq!(Costs::open(dir.path(), "d").all()[&key("a")], Seen { loaded: None, most: 7 });
    }

    #[test]
    fn what_was_measured_is_known_to_the_next_life_on_the_same_device() {
        let dir = tempfile::tempdir().unwrap();
        let costs = Costs::open(dir.path(), "RTX 5070");
        assert!(costs.all().is_empty());
        assert!(costs.set(&key("a"), seen(7)) && costs.set(&key("b"), seen(8)) && costs.set(&key("a"), seen(9)));
        assert!(!costs.set(&key("a"), seen(9)), "nothing new");
        costs.write().unwrap();

        let expected = BTreeMap::from([(key("a"), seen(9)), (key("b"), seen(8))]);
        assert_eq!(Costs::open(dir.path(), "RTX 5070").all(), expected);
        let other = Costs::open(dir.path(), "Jetson Orin Nano 8GB");
        assert!(other.all().is_empty());
        other.set(&key("a"), seen(1));
        other.write().unwrap();
        assert_eq!(Costs::open(dir.path(), "RTX 5070").all(), expected, "another device changes nothing");
    }

    #[test]
    fn a_broken_file_is_put_aside_and_begun_afresh() {
        for text in ["", "{", "[1]", "{\"d\": [{\"model\": \"a\"}]}", "{\"d\": 3}", "\0\u{1}"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE);
            fs::write(&path, text).unwrap();
            let costs = Costs::open(dir.path(), "d");
            assert!(costs.all().is_empty());
            assert_eq!(fs::read_to_string(dir.path().join("costs.json.broken")).unwrap(), text);
            costs.set(&key("a"), seen(1));
            costs.write().unwrap();
            assert_eq!(Costs::open(dir.path(), "d").all().len(), 1);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "in the way").unwrap();
        let costs = Costs::open(&dir.path().join("file"), "d");
        costs.set(&key("a"), seen(1));
        assert!(costs.write().unwrap_err().message().contains("cannot be made"));
    }
}

//! Which graph of a model's folder is the model.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::base::{Error, Result};

/// As published exports name it; else the only graph in the folder.
pub(in crate::engines) fn graph(dir: &Path) -> Result<PathBuf> {
    let missing = |what: &str| {
        Error::unavailable(format!("{} {what}", dir.display()))
            .hint("name the folder of a model; `vigia models list` shows those that are installed")
    };
    if let Some(path) = ["onnx/model.onnx", "model.onnx"].map(|name| dir.join(name)).into_iter().find(|it| it.is_file())
    {
        return Ok(path);
    }
    let listed = fs::read_dir(dir).map_err(|error| missing("cannot be read").cause(error))?;
    let mut graphs: Vec<PathBuf> = listed
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
        .collect();
    match (graphs.pop(), graphs.is_empty()) {
        (Some(path), true) => Ok(path),
        (Some(_), false) => Err(missing("holds several graphs and no model.onnx")),
        (None, _) => Err(missing("holds no graph")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_graph_is_taken_and_several_are_not_guessed_between() {
        let dir = tempfile::tempdir().unwrap();
        assert!(graph(dir.path()).unwrap_err().message().contains("holds no graph"));
        assert!(graph(&dir.path().join("nowhere")).unwrap_err().message().contains("cannot be read"));
        fs::write(dir.path().join("ge2e.onnx"), b"x").unwrap();
        assert_eq!(graph(dir.path()).unwrap(), dir.path().join("ge2e.onnx"));
        fs::write(dir.path().join("other.onnx"), b"x").unwrap();
        assert!(graph(dir.path()).unwrap_err().message().contains("several"));
        fs::write(dir.path().join("model.onnx"), b"x").unwrap();
        assert_eq!(graph(dir.path()).unwrap(), dir.path().join("model.onnx"));
    }
}

//! Puts files that are whole where they belong in a model's folder, all of them at once: first the list of what will be
//! there, then the files, the graphs last. Whatever ends it in between, the model is there in part and no more.
//!
//! Writes through no link but that of the model's own folder, which may lie on another disk.

use std::{
    fs,
    io::Error as IoError,
    path::{Path, PathBuf},
};

use crate::{
    base::{Error, Result},
    models::{catalogue::PLAN, installed::Lock},
};

/// From where, and which file of the model it is. On the file system of the model's folder.
pub(super) type Move = (PathBuf, String);

/// `lock` says what will be there.
pub(super) fn place(dir: &Path, moves: &[Move], lock: &Lock) -> Result<()> {
    moves.iter().try_for_each(|(_, path)| make_folder(dir, path))?;
    lock.write(dir)?;
    let is_graph = |path: &str| path.ends_with(".onnx") || path.ends_with(PLAN);
    let (graphs, others): (Vec<&Move>, Vec<&Move>) = moves.iter().partition(|(_, path)| is_graph(path));
    for (from, path) in others.into_iter().chain(graphs) {
        let target = dir.join(path);
        fs::rename(from, &target).map_err(|error| unwritable(&target, error))?;
    }
    Ok(())
}

/// The folder for a file of the model.
pub(super) fn make_folder(dir: &Path, path: &str) -> Result<()> {
    let target = dir.join(path);
    fs::create_dir_all(dir).map_err(|error| unwritable(&target, error))?;
    if fs::symlink_metadata(&target).is_ok_and(|found| found.is_dir()) {
        return Err(Error::unavailable(format!("{} cannot be written: a folder is in its place", target.display())));
    }
    let mut folder = dir.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        match fs::symlink_metadata(&folder) {
            Ok(found) if found.is_symlink() => {
                let link = folder.display();
                return Err(Error::unavailable(format!("{} cannot be written: {link} is a link", target.display()))
                    .hint(format!("put a folder in its place, or make all of {} a link", dir.display())));
            }
            Ok(_) => (),
            Err(_) => fs::create_dir_all(&folder).map_err(|error| unwritable(&target, error))?,
        }
    }
    // Where a file is in the place of a folder, writing would say so later.
    match target.parent() {
        Some(parent) if !parent.is_dir() => Err(unwritable(&target, std::io::ErrorKind::NotADirectory.into())),
        _ => Ok(()),
    }
}

fn unwritable(path: &Path, error: IoError) -> Error {
    Error::unavailable(format!("{} cannot be written", path.display())).cause(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn graphs_come_last_and_nothing_before_every_file_has_its_folder() {
        let home = tempfile::tempdir().unwrap();
        let (from, dir) = (home.path().join("from"), home.path().join("m"));
        let moves =
            |paths: &[&str]| -> Vec<Move> { paths.iter().map(|path| (from.join(path), (*path).to_owned())).collect() };
        // The side file is not there: what is moved before it stays, and what comes after it does not come.
        put(&from.join("onnx/m.onnx"), "graph");
        put(&from.join("config.json"), "{}");
        let error = place(&dir, &moves(&["onnx/m.onnx", "config.json", "onnx/m.onnx_data"]), &Lock::default());
        assert!(error.unwrap_err().full().contains("onnx/m.onnx_data cannot be written"));
        assert!(dir.join("config.json").exists() && !dir.join("onnx/m.onnx").exists());
        assert!(Lock::read(&dir).unwrap().is_some(), "what is lacking is known");

        put(&dir.join("file"), "no folder");
        put(&dir.join("folder/below"), "no file");
        put(&from.join("tokenizer.json"), "{}");
        for path in ["file/m.bin", "folder"] {
            put(&from.join("x").join(path), "x");
            let error = place(&dir, &moves(&["tokenizer.json", path]), &Lock::default()).unwrap_err();
            assert!(error.full().contains(&format!("m/{path} cannot be written")), "{}", error.full());
            assert!(!dir.join("tokenizer.json").exists(), "{path}");
        }
    }

    #[test]
    fn nothing_is_written_through_a_link_below_the_models_folder() {
        let home = tempfile::tempdir().unwrap();
        let (elsewhere, dir, from) = (home.path().join("elsewhere"), home.path().join("m"), home.path().join("from"));
        put(&elsewhere.join("keep"), "theirs");
        fs::create_dir(&dir).unwrap();
        symlink(&elsewhere, dir.join("onnx")).unwrap();
        put(&from, "graph");
        let error = place(&dir, &[(from.clone(), "onnx/keep".to_owned())], &Lock::default()).unwrap_err();
        assert!(error.full().contains("onnx is a link"), "{}", error.full());
        // A link to a file gives way; what it leads to stays.
        symlink(elsewhere.join("keep"), dir.join("m.onnx")).unwrap();
        place(&dir, &[(from, "m.onnx".to_owned())], &Lock::default()).unwrap();
        assert_eq!(fs::read_to_string(dir.join("m.onnx")).unwrap(), "graph");
        assert_eq!(fs::read_to_string(elsewhere.join("keep")).unwrap(), "theirs");
    }
}

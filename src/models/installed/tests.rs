//! Folders of models as they may be found.

use super::*;

fn put(dir: &Path, path: &str, content: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn entry(name: &str) -> Entry {
    Catalogue::load(None).unwrap().require(name).unwrap().clone()
}

fn locked(content: &str) -> Locked {
    let mut digest = Digest::default();
    digest.add(content.as_bytes());
    Locked { size: digest.size(), sha256: digest.sha256() }
}

#[test]
fn a_model_is_installed_once_a_variant_is_whole() {
    let place = tempfile::tempdir().unwrap();
    let places = [place.path().to_owned()];
    let entry = entry("qwen2.5-0.5b-instruct");
    assert_eq!(find(&entry, &places).unwrap(), None);
    let dir = place.path().join(&entry.name);
    let required = entry.required("q4");
    for path in &required[1..] {
        put(&dir, path, "x");
    }
    assert!(find(&entry, &places).unwrap().unwrap().variants.is_empty());
    put(&dir, &required[0], "x");
    let found = find(&entry, &places).unwrap().unwrap();
    assert_eq!((found.variants, found.bytes), (vec!["q4".to_owned()], required.len() as u64));

    // Weights that came beside a graph belong to it.
    let mut lock = Lock::default();
    lock.files.insert("onnx/model_q4.onnx_data".to_owned(), locked("weights"));
    lock.write(&dir).unwrap();
    assert!(find(&entry, &places).unwrap().unwrap().variants.is_empty());
    put(&dir, "onnx/model_q4.onnx_data", "weights");
    assert_eq!(find(&entry, &places).unwrap().unwrap().variants, ["q4"]);
}

/// As a download leaves it that was cut: the graph is there, and of its weights a part.
#[test]
fn a_graph_beside_a_part_of_its_weights_is_a_model_in_part() {
    let place = tempfile::tempdir().unwrap();
    let places = [place.path().to_owned()];
    let entry = entry("qwen2.5-0.5b-instruct");
    let dir = place.path().join(&entry.name);
    for path in entry.required("q4").iter().chain(&entry.required("fp16")) {
        put(&dir, path, "x");
    }
    let part = "onnx/model_q4.onnx_data.part-0123456789abcdef";
    put(&dir, part, "half");
    let found = find(&entry, &places).unwrap().unwrap();
    assert_eq!((&found.variants[..], found.unfinished.len()), (&["fp16".to_owned()][..], 1), "the other one is whole");
    for (variant, words) in [
        (
            "q4",
            "is here only in part: it is being fetched, or that was cut (`vigia models pull qwen2.5-0.5b-instruct --variant q4` goes on",
        ),
        ("fp16", "the variant fp16 of qwen2.5-0.5b-instruct is not installed"),
    ] {
        let error = missing(&entry, variant, Some(&found)).full();
        assert!(error.contains(words), "{error}");
    }
    assert!(is_in_part(&dir, &["onnx/model_q4.onnx".to_owned()]).unwrap());
    assert!(!is_in_part(&dir, &["onnx/model_fp16.onnx".to_owned()]).unwrap());
    assert!(!files_below(&dir).unwrap().contains_key(part), "a part is no file of the model");
    let verdicts = verify(Some(&entry), &dir).unwrap();
    assert_eq!(verdicts["onnx/model_q4.onnx_data"], Verdict::Missing, "{verdicts:?}");
    // What an earlier version took for a file of the model.
    let mut lock = Lock::default();
    lock.files.insert(part.to_owned(), locked("half"));
    lock.write(&dir).unwrap();
    assert!(Lock::read(&dir).unwrap().unwrap().files.is_empty());
    assert_eq!(find(&entry, &places).unwrap().unwrap().variants, ["fp16"]);

    // One that is about to take the place of a whole file is in nobody's way.
    put(&dir, "onnx/model_q4.onnx_data", "weights");
    let found = find(&entry, &places).unwrap().unwrap();
    assert!(found.variants.contains(&"q4".to_owned()) && found.unfinished.is_empty());

    put(place.path(), "mine/config.json", "{}");
    put(place.path(), "mine/m.onnx", "graph");
    put(place.path(), "mine/m.onnx_data.part-0123456789abcdef", "half");
    let mine = &unlisted(&Catalogue::load(None).unwrap(), &places).unwrap()["mine"];
    assert!(mine.variants.is_empty() && !mine.unfinished.is_empty(), "{mine:?}");
}

/// As a copy by hand leaves it that forgot a file.
#[test]
fn a_graph_without_the_weights_that_it_names_is_a_model_in_part() {
    let place = tempfile::tempdir().unwrap();
    let places = [place.path().to_owned()];
    let entry = entry("qwen2.5-0.5b-instruct");
    let dir = place.path().join(&entry.name);
    for path in entry.required("q4").iter().chain(&entry.required("fp16")) {
        put(&dir, path, "x");
    }
    fs::write(dir.join("onnx/model_q4.onnx"), crate::models::beside::graph_with(&["weights.bin"])).unwrap();
    let found = find(&entry, &places).unwrap().unwrap();
    assert_eq!(found.variants, ["fp16"]);
    // A lock of another variant says nothing of it.
    let mut lock = Lock::default();
    lock.files.extend(entry.required("fp16").into_iter().map(|path| (path, locked("x"))));
    lock.write(&dir).unwrap();
    assert_eq!(find(&entry, &places).unwrap().unwrap().variants, ["fp16"]);
    fs::remove_file(dir.join(".vigia-lock.json")).unwrap();
    assert!(missing(&entry, "q4", Some(&found)).full().contains("only in part"));
    assert!(is_in_part(&dir, &["onnx/model_q4.onnx".to_owned()]).unwrap());
    assert_eq!(verify(Some(&entry), &dir).unwrap()["onnx/weights.bin"], Verdict::Missing);
    put(&dir, "onnx/weights.bin", "weights");
    assert!(find(&entry, &places).unwrap().unwrap().variants.contains(&"q4".to_owned()));
    assert_eq!(verify(Some(&entry), &dir).unwrap()["onnx/weights.bin"], Verdict::Unknown);

    put(place.path(), "mine/config.json", "{}");
    fs::write(place.path().join("mine/m.onnx"), crate::models::beside::graph_with(&["m.onnx_data"])).unwrap();
    assert!(unlisted(&Catalogue::load(None).unwrap(), &places).unwrap()["mine"].variants.is_empty());
}

#[test]
fn a_folder_of_links_to_files_is_read_as_if_they_were_there() {
    let (place, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let link = |to: &str, path: &str| {
        let path = place.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(cache.path().join(to), path).unwrap();
    };
    put(cache.path(), "blob", "graph");
    put(cache.path(), "folder/secret", "of somebody else");
    link("blob", "mine/config.json");
    link("blob", "mine/onnx/model.onnx");
    link("folder", "mine/more");
    link("nowhere", "mine/gone.json");
    let found = unlisted(&Catalogue::load(None).unwrap(), &[place.path().to_owned()]).unwrap();
    assert_eq!(found["mine"].bytes, 10);
    let verdicts = verify(None, &found["mine"].dir).unwrap();
    assert_eq!(verdicts.keys().collect::<Vec<_>>(), ["config.json", "onnx/model.onnx"]);
    remove(place.path(), "mine", false).unwrap();
    assert!(cache.path().join("blob").exists() && cache.path().join("folder/secret").exists());
}

#[test]
fn a_bare_folder_in_the_hubs_layout_counts_as_a_model() {
    let place = tempfile::tempdir().unwrap();
    for path in ["mine/config.json", "mine/onnx/model.onnx", "junk/readme.md", "whisper-tiny/config.json"] {
        put(place.path(), path, "x");
    }
    let found = unlisted(&Catalogue::load(None).unwrap(), &[place.path().to_owned()]).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["mine"]);
    assert_eq!(found["mine"].bytes, 2);
}

#[test]
fn verifying_finds_what_is_missing_changed_or_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let mut lock = Lock::default();
    for (path, content) in [("good", "abc"), ("gone", "abc"), ("flipped", "abc"), ("longer", "abc")] {
        lock.files.insert(path.to_owned(), locked(content));
    }
    lock.write(dir.path()).unwrap();
    for (path, content) in [("good", "abc"), ("flipped", "abd"), ("longer", "abcd"), ("extra", "abc")] {
        put(dir.path(), path, content);
    }
    let verdicts = verify(None, dir.path()).unwrap();
    assert_eq!(verdicts["good"], Verdict::Good);
    assert_eq!(verdicts["gone"], Verdict::Missing);
    assert_eq!(verdicts["flipped"], Verdict::Changed);
    assert_eq!(verdicts["longer"], Verdict::Changed);
    assert_eq!(verdicts["extra"], Verdict::Unknown);
    assert_eq!(verdicts.len(), 5, "the lock itself is no file of the model: {verdicts:?}");
}

#[test]
fn without_a_lock_the_catalogue_says_what_a_file_must_be() {
    let dir = tempfile::tempdir().unwrap();
    let silero = entry("silero-vad");
    assert_eq!(verify(Some(&silero), dir.path()).unwrap()["silero_vad.onnx"], Verdict::Missing);
    put(dir.path(), "silero_vad.onnx", "something else");
    assert_eq!(verify(Some(&silero), dir.path()).unwrap()["silero_vad.onnx"], Verdict::Changed);
}

#[test]
fn a_lock_that_leads_elsewhere_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut lock = Lock::default();
    lock.files.insert("../../etc/passwd".to_owned(), locked("x"));
    lock.write(dir.path()).unwrap();
    let error = verify(None, dir.path()).unwrap_err();
    assert!(error.full().contains(LOCK), "{}", error.full());
    put(dir.path(), LOCK, "{");
    assert!(Lock::read(dir.path()).is_err());
}

#[test]
fn removing_takes_one_model_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "a/m.onnx", "x");
    put(place.path(), "b/config.json", "x");
    for name in ["..", "a/f", ".", ""] {
        assert_eq!(remove(place.path(), name, true).unwrap_err().kind(), Kind::Invalid, "{name:?}");
    }
    assert_eq!(remove(place.path(), "c", true).unwrap_err().kind(), Kind::NotFound);
    remove(place.path(), "a", false).unwrap();
    std::os::unix::fs::symlink(place.path().join("b"), place.path().join("linked")).unwrap();
    remove(place.path(), "linked", false).unwrap();
    assert!(!place.path().join("a").exists() && place.path().join("b/config.json").exists());
}

#[test]
fn what_is_no_model_is_not_removed() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "Documents/letter.txt", "x");
    put(place.path(), "Documents/old/project/model.onnx", "x");
    put(place.path(), "notes.onnx", "x");
    for (name, is_known) in [("Documents", false), ("notes.onnx", false), ("notes.onnx", true)] {
        let error = remove(place.path(), name, is_known).unwrap_err();
        assert!(error.full().contains("is no model: it stays"), "{name}: {}", error.full());
        assert!(place.path().join(name).exists(), "{name}");
    }
    // Whatever of a known model is there; and of an unknown one what a cut download has left.
    put(place.path(), "whisper-tiny/tokenizer.json", "x");
    put(place.path(), "cut/m.onnx.part-0123456789abcdef", "x");
    remove(place.path(), "whisper-tiny", true).unwrap();
    remove(place.path(), "cut", false).unwrap();
}

#[test]
fn two_commands_do_not_change_the_folder_at_a_time() {
    let place = tempfile::tempdir().unwrap();
    let claim = Claim::of(&place.path().join("models")).unwrap();
    assert_eq!(Claim::of(&place.path().join("models")).unwrap_err().kind(), Kind::Busy);
    drop(claim);
    Claim::of(&place.path().join("models")).unwrap();
    put(place.path(), "file", "in the way");
    let error = Claim::of(&place.path().join("file")).unwrap_err();
    assert!(error.full().contains("models.dir"), "{}", error.full());
    let error = Lock::default().write(&place.path().join("absent")).unwrap_err();
    assert!(error.message().contains("cannot be written"), "{}", error.full());
}

#[test]
fn a_model_whose_files_have_changed_has_another_stamp() {
    let place = tempfile::tempdir().unwrap();
    let places = [place.path().join("nowhere"), place.path().to_owned()];
    let stamp = || stamp(&places, "m");
    assert_eq!(stamp(), None);
    put(place.path(), "m/m.onnx.part-0123456789abcdef", "graph");
    let half = stamp();
    put(place.path(), "m/m.onnx", "graph");
    let whole = stamp();
    assert!(half.is_some() && half != whole);
    let file = File::options().append(true).open(place.path().join("m/m.onnx")).unwrap();
    file.set_modified(UNIX_EPOCH).unwrap();
    assert_ne!(stamp(), whole, "of the same size");
    assert_eq!(super::stamp(&[], place.path().join("m").to_str().unwrap()), stamp(), "a name may be a path");
}

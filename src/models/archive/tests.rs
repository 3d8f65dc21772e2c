//! Archives that come whole, and archives that somebody made to do harm.

use super::*;
use crate::base::ByteSize;

type Member<'a> = (&'a str, EntryType, &'a [u8]);

fn catalogue() -> Catalogue {
    Catalogue::load(None).unwrap()
}

fn no_limit(_: &Path) -> Option<ByteSize> {
    None
}

fn locked(content: &[u8]) -> Locked {
    let mut digest = Digest::default();
    digest.add(content);
    Locked { size: digest.size(), sha256: digest.sha256() }
}

fn put(dir: &Path, path: &str, content: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn take(file: &Path, models_dir: &Path) -> Result<Vec<String>> {
    import(file, models_dir, &catalogue(), false, &no_limit)
}

/// A list of one model with one file.
fn list(name: &str, path: &str, locked: Locked) -> Manifest {
    let lock = Lock { files: BTreeMap::from([(path.to_owned(), locked)]), ..Lock::default() };
    Manifest { format: FORMAT, models: BTreeMap::from([(name.to_owned(), lock)]) }
}

/// An archive as somebody hostile may write one: any names, any kinds.
fn forged(file: &Path, manifest: &Manifest, members: &[Member<'_>]) {
    let mut builder = Builder::new(File::create(file).unwrap());
    let text = serde_json::to_vec(manifest).unwrap();
    builder.append(&header(MANIFEST, text.len() as u64).unwrap(), text.as_slice()).unwrap();
    for (path, kind, content) in members {
        let mut header = Header::new_ustar();
        // `set_path` would refuse what this is about.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn models_travel_whole_with_their_locks() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let long = format!("onnx/{}/{}.bin", "d".repeat(60), "f".repeat(80));
    put(here.path(), "fetched/config.json", "{}");
    put(here.path(), &format!("fetched/{long}"), "weights");
    let mut lock = Lock { variants: BTreeSet::from(["q4".to_owned()]), ..Lock::default() };
    lock.files.insert("config.json".to_owned(), locked(b"{}"));
    lock.files.insert(long.clone(), locked(b"weights"));
    lock.write(&here.path().join("fetched")).unwrap();
    put(here.path(), "copied/config.json", "{}");
    put(here.path(), "copied/m.onnx", "graph");

    let file = here.path().join("stick.tar");
    let (fetched, copied) = (here.path().join("fetched"), here.path().join("copied"));
    let models = [Carried { name: "fetched", dir: &fetched }, Carried { name: "copied", dir: &copied }];
    assert_eq!(export(&file, &models, &catalogue(), &no_limit).unwrap(), 2 + 7 + 2 + 5);
    assert!(export(&file, &models, &catalogue(), &no_limit).unwrap_err().full().contains("there already"));

    assert_eq!(take(&file, there.path()).unwrap(), ["copied", "fetched"]);
    assert_eq!(fs::read_to_string(there.path().join("fetched").join(long)).unwrap(), "weights");
    assert_eq!(Lock::read(&there.path().join("fetched")).unwrap().unwrap(), lock);
    assert_eq!(Lock::read(&there.path().join("copied")).unwrap().unwrap().files["m.onnx"], locked(b"graph"));
    assert!(!there.path().join(STAGING).exists());
    // Once more changes nothing.
    take(&file, there.path()).unwrap();
}

#[test]
fn a_model_that_is_not_right_here_is_not_carried() {
    let here = tempfile::tempdir().unwrap();
    put(here.path(), "silero-vad/silero_vad.onnx", "not the real one");
    let dir = here.path().join("silero-vad");
    let file = here.path().join("stick.tar");
    let error = export(&file, &[Carried { name: "silero-vad", dir: &dir }], &catalogue(), &no_limit).unwrap_err();
    assert!(error.full().contains("not what it was"), "{}", error.full());
    assert!(!file.exists());
}

#[test]
fn a_tampered_archive_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    fs::create_dir(&models).unwrap();
    let good = || list("m", "f", locked(b"abc"));
    let cases: [(&str, Manifest, Vec<Member<'_>>); 7] = [
        ("is not what its list says", good(), vec![("m/f", EntryType::Regular, b"abd")]),
        ("another size", good(), vec![("m/f", EntryType::Regular, b"abcd")]),
        ("is missing", good(), vec![]),
        ("does not have", good(), vec![("m/f", EntryType::Regular, b"abc"), ("m/g", EntryType::Regular, b"x")]),
        ("does not have", good(), vec![("m/f", EntryType::Regular, b"abc"), ("m/f", EntryType::Regular, b"abc")]),
        ("does not have", good(), vec![("m/f", EntryType::Symlink, b"abc")]),
        ("does not have", good(), vec![("m/f", EntryType::GNULongName, b"abc")]),
    ];
    for (why, manifest, members) in cases {
        forged(&file, &manifest, &members);
        let error = take(&file, &models).unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.full().contains(why), "{why}: {}", error.full());
        assert_eq!(fs::read_dir(&models).unwrap().count(), 0, "{why}");
    }
}

#[test]
fn names_that_lead_outside_are_refused_in_the_list_and_in_the_members() {
    let dir = tempfile::tempdir().unwrap();
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    fs::create_dir(&models).unwrap();
    for (name, path) in [("..", "evil"), ("m", "../../evil"), ("m", "/evil"), ("m", ".vigia-lock.json"), ("a/b", "f")] {
        forged(&file, &list(name, path, locked(b"x")), &[(&format!("{name}/{path}"), EntryType::Regular, b"x")]);
        assert_eq!(take(&file, &models).unwrap_err().kind(), Kind::Invalid, "{name}/{path}");
    }
    for path in ["../evil", "/evil", "m/../../evil"] {
        forged(&file, &list("m", "f", locked(b"x")), &[(path, EntryType::Regular, b"x")]);
        assert_eq!(take(&file, &models).unwrap_err().kind(), Kind::Invalid, "{path}");
    }
    assert!(!dir.path().join("evil").exists() && fs::read_dir(&models).unwrap().count() == 0);
}

#[test]
fn an_archive_cut_anywhere_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    fs::create_dir(&models).unwrap();
    forged(&file, &list("m", "f", locked(b"abc")), &[("m/f", EntryType::Regular, b"abc")]);
    let whole = fs::read(&file).unwrap();
    // Headers and contents; the padding and the two empty blocks behind them may go.
    let end = whole.windows(3).rposition(|it| it == b"abc").unwrap() + 3;
    for length in (0..end).step_by(37) {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(take(&file, &models).is_err(), "{length}");
        assert_eq!(fs::read_dir(&models).unwrap().count(), 0, "{length}");
    }
}

#[test]
fn what_claims_to_be_large_must_fit_before_it_is_unfolded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    forged(&file, &list("m", "f", Locked { size: u64::MAX, ..locked(b"") }), &[]);
    let error = import(&file, dir.path(), &catalogue(), false, &|_| Some(ByteSize::mib(500))).unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge, "{}", error.full());
}

#[test]
fn a_licence_is_asked_for_and_what_the_catalogue_knows_is_enforced() {
    let dir = tempfile::tempdir().unwrap();
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    fs::create_dir(&models).unwrap();
    forged(
        &file,
        &list("qwen2.5-vl-3b-instruct", "f", locked(b"x")),
        &[("qwen2.5-vl-3b-instruct/f", EntryType::Regular, b"x")],
    );
    assert!(take(&file, &models).unwrap_err().full().contains("--accept-licence"));
    // What is accepted for an archive that is refused is not accepted.
    let whole = fs::read(&file).unwrap();
    fs::write(&file, [&whole[..whole.len() - 1536], &[b'y'; 512][..], &[0; 1024][..]].concat()).unwrap();
    import(&file, &models, &catalogue(), true, &no_limit).unwrap_err();
    assert_eq!(fs::read_dir(&models).unwrap().count(), 0);
    fs::write(&file, whole).unwrap();
    assert!(take(&file, &models).unwrap_err().full().contains("--accept-licence"));
    import(&file, &models, &catalogue(), true, &no_limit).unwrap();
    take(&file, &models).unwrap();
    forged(
        &file,
        &list("silero-vad", "silero_vad.onnx", locked(b"x")),
        &[("silero-vad/silero_vad.onnx", EntryType::Regular, b"x")],
    );
    let error = take(&file, &models).unwrap_err().full();
    assert!(error.contains("another silero_vad.onnx") && !error.contains("models remove"), "it is not here: {error}");
    put(&models, "mine/f", "y");
    let mut lock = Lock::default();
    lock.files.insert("f".to_owned(), locked(b"y"));
    lock.write(&models.join("mine")).unwrap();
    forged(&file, &list("mine", "f", locked(b"x")), &[("mine/f", EntryType::Regular, b"x")]);
    assert!(take(&file, &models).unwrap_err().full().contains("models remove mine"));
}

#[test]
fn a_model_that_is_named_twice_is_carried_once() {
    let dir = tempfile::tempdir().unwrap();
    let (file, m) = (dir.path().join("a.tar"), dir.path().join("m"));
    put(&m, "config.json", "{}");
    let twice = [Carried { name: "m", dir: &m }, Carried { name: "m", dir: &m }];
    assert_eq!(export(&file, &twice, &catalogue(), &no_limit).unwrap(), 2);
    assert_eq!(take(&file, &dir.path().join("models")).unwrap(), ["m"]);
}

#[test]
fn what_is_there_in_part_is_not_carried_and_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (file, m, models) = (dir.path().join("a.tar"), dir.path().join("m"), dir.path().join("models"));
    let part = "m.onnx_data.part-0123456789abcdef";
    put(&m, "m.onnx", "graph");
    put(&m, part, "half");
    export(&file, &[Carried { name: "m", dir: &m }], &catalogue(), &no_limit).unwrap();
    take(&file, &models).unwrap();
    assert!(models.join("m/m.onnx").exists() && !models.join("m").join(part).exists());
    // As an earlier version has carried it.
    forged(&file, &list("n", part, locked(b"half")), &[(&format!("n/{part}"), EntryType::Regular, b"half")]);
    let error = take(&file, &models).unwrap_err();
    assert!(error.full().contains("is a part of a file"), "{}", error.full());
}

#[test]
fn a_graph_without_its_weights_is_not_carried_and_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (file, m, models) = (dir.path().join("a.tar"), dir.path().join("m"), dir.path().join("models"));
    let graph = crate::models::beside::graph_with(&["m.onnx_data"]);
    put(&m, "config.json", "{}");
    fs::write(m.join("m.onnx"), &graph).unwrap();
    let carried = [Carried { name: "m", dir: &m }];
    let error = export(&file, &carried, &catalogue(), &no_limit).unwrap_err().full();
    assert!(error.contains("the weights of m.onnx of m are not there") && !file.exists(), "{error}");
    forged(&file, &list("m", "m.onnx", locked(&graph)), &[("m/m.onnx", EntryType::Regular, &graph)]);
    let error = take(&file, &models).unwrap_err().full();
    assert!(error.contains("m.onnx needs m.onnx_data, which is not in it"), "{error}");
    assert!(!models.join("m").exists());
    // It may be the rest of a model that is here.
    put(&models, "m/m.onnx_data", "weights");
    take(&file, &models).unwrap();
    fs::remove_file(&file).unwrap();
    put(&m, "m.onnx_data", "weights");
    export(&file, &carried, &catalogue(), &no_limit).unwrap();
}

#[test]
fn links_to_files_are_carried_as_the_files_that_they_lead_to() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, m, models) = (dir.path().join("a.tar"), dir.path().join("m"), dir.path().join("models"));
    put(cache.path(), "blob", "graph");
    put(&m, "config.json", "{}");
    std::os::unix::fs::symlink(cache.path().join("blob"), m.join("m.onnx")).unwrap();
    assert_eq!(export(&file, &[Carried { name: "m", dir: &m }], &catalogue(), &no_limit).unwrap(), 7);
    take(&file, &models).unwrap();
    assert!(!models.join("m/m.onnx").is_symlink());
    assert_eq!(fs::read_to_string(models.join("m/m.onnx")).unwrap(), "graph");
}

#[test]
fn a_model_whose_folder_is_on_another_disk_is_replaced_there() {
    let dir = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return println!("SKIPPED: no /dev/shm") };
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(dir.path()) == device(other.path()) {
        return println!("SKIPPED: /dev/shm is on the same disk");
    }
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    put(other.path(), "f", "old");
    fs::create_dir(&models).unwrap();
    std::os::unix::fs::symlink(other.path(), models.join("linked")).unwrap();
    let lock = |files: &[(&str, &[u8])]| Lock {
        files: files.iter().map(|(path, content)| ((*path).to_owned(), locked(content))).collect(),
        ..Lock::default()
    };
    let manifest = Manifest {
        format: FORMAT,
        models: BTreeMap::from([
            ("linked".to_owned(), lock(&[("f", b"new"), ("onnx/m.onnx", b"graph")])),
            ("beside".to_owned(), lock(&[("f", b"x")])),
        ]),
    };
    let members: [Member<'_>; 3] = [
        ("beside/f", EntryType::Regular, b"x"),
        ("linked/f", EntryType::Regular, b"new"),
        ("linked/onnx/m.onnx", EntryType::Regular, b"graph"),
    ];
    forged(&file, &manifest, &members[..2]);
    assert!(take(&file, &models).unwrap_err().full().contains("the archive was cut"));
    assert!(!models.join("beside").exists() && fs::read_to_string(other.path().join("f")).unwrap() == "old");
    forged(&file, &manifest, &members);
    // Room is looked for where the model will be.
    let full = |folder: &Path| Some(if folder.ends_with("linked") { ByteSize::mib(1) } else { ByteSize::mib(999) });
    assert_eq!(import(&file, &models, &catalogue(), false, &full).unwrap_err().kind(), Kind::TooLarge);
    take(&file, &models).unwrap();
    assert_eq!(fs::read_to_string(other.path().join("onnx/m.onnx")).unwrap(), "graph");
    assert_eq!(fs::read_to_string(other.path().join("f")).unwrap(), "new");
    assert!(!other.path().join(STAGING).exists() && models.join("linked").is_symlink());
}

#[test]
fn an_archive_that_is_cut_or_broken_says_so_without_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    forged(&file, &list("m", "f", locked(&[b'x'; 2000])), &[("m/f", EntryType::Regular, &[b'x'; 2000])]);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1024 - 1500]).unwrap();
    let error = take(&file, &models).unwrap_err().full();
    assert!(error.contains("it was cut within m/f"), "{error}");
    let begin = whole.len() - 1024 - 2048 - 512;
    fs::write(&file, [&whole[..begin], &[0x1b; 512][..]].concat()).unwrap();
    let error = take(&file, &models).unwrap_err().full();
    assert!(error.contains("it was cut, or is broken") && !error.contains('\x1b'), "{error:?}");
}

#[test]
fn an_archive_of_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    let none = Manifest { format: FORMAT, models: BTreeMap::new() };
    let hollow = Manifest { format: FORMAT, models: BTreeMap::from([("m".to_owned(), Lock::default())]) };
    for (manifest, words) in [(none, "it holds no model"), (hollow, "it has no file of m")] {
        forged(&file, &manifest, &[]);
        let error = take(&file, &dir.path().join("models")).unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.full().contains(words), "{}", error.full());
    }
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    for content in [&b""[..], b"hello", &[0; 2048], &[b'x'; 4096]] {
        fs::write(&file, content).unwrap();
        let error = take(&file, dir.path()).unwrap_err();
        assert!(error.full().contains("no archive of models"), "{}", error.full());
    }
    assert!(take(&dir.path().join("nowhere.tar"), dir.path()).is_err());
}

#[test]
fn a_list_of_another_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    let newer = Manifest { format: FORMAT + 1, ..list("m", "f", locked(b"x")) };
    let files = (0..=MAX_FILES).map(|n| (format!("f{n}"), locked(b""))).collect();
    let many = Lock { files, ..Lock::default() };
    let many = Manifest { format: FORMAT, models: BTreeMap::from([("m".to_owned(), many)]) };
    for (manifest, kind, words) in [
        (newer, Kind::Invalid, "the same version of Vigía on both machines"),
        (many, Kind::TooLarge, "lists more than 20000 files"),
    ] {
        forged(&file, &manifest, &[]);
        let error = take(&file, &models).unwrap_err();
        assert!(error.kind() == kind && error.full().contains(words), "{words}: {}", error.full());
    }
    for text in ["{", "[]", "{\"format\": 1}", "{\"format\": 1, \"models\": {}, \"more\": 1}"] {
        let mut builder = Builder::new(File::create(&file).unwrap());
        builder.append(&header(MANIFEST, text.len() as u64).unwrap(), text.as_bytes()).unwrap();
        builder.finish().unwrap();
        let error = take(&file, &models).unwrap_err();
        assert!(error.full().contains("its list cannot be read"), "{text}: {}", error.full());
    }
    assert!(!models.exists(), "nothing was begun");
}

#[test]
fn what_cannot_be_written_is_said_and_leaves_no_half() {
    let dir = tempfile::tempdir().unwrap();
    let (file, models) = (dir.path().join("a.tar"), dir.path().join("models"));
    put(dir.path(), "m/config.json", "{}");
    let m = dir.path().join("m");
    let carried = [Carried { name: "m", dir: &m }];
    let error = export(&dir.path().join("absent/a.tar"), &carried, &catalogue(), &no_limit).unwrap_err();
    assert!(error.full().contains("cannot be written"), "{}", error.full());
    let little = |_: &Path| Some(ByteSize::mib(1));
    let error = export(&file, &carried, &catalogue(), &little).unwrap_err();
    assert!(
        error.kind() == Kind::TooLarge && error.full().contains("name a file on a larger disk"),
        "{}",
        error.full()
    );
    let mut lock = Lock::default();
    lock.files.insert("gone.bin".to_owned(), locked(b"x"));
    lock.write(&m).unwrap();
    let error = export(&file, &carried, &catalogue(), &no_limit).unwrap_err();
    assert!(error.full().contains("gone.bin of m is missing"), "{}", error.full());
    assert!(fs::read_dir(dir.path()).unwrap().count() == 1, "no part of an archive is left");

    forged(&file, &list("taken", "f", locked(b"x")), &[("taken/f", EntryType::Regular, b"x")]);
    put(&models, "taken", "a file where a model's folder should be");
    let error = take(&file, &models).unwrap_err();
    assert!(error.full().contains("taken/f cannot be written"), "{}", error.full());
    assert!(!models.join(STAGING).exists());
    // As an import that was cut may leave it, and as it may not.
    put(&models, STAGING, "no folder");
    assert!(take(&file, &models).unwrap_err().full().contains("cannot be written"));
}

//! Pulling from a hub that cuts, lies, redirects, refuses and tires.

use std::time::Duration;

use super::*;
use crate::models::{
    catalogue::Catalogue,
    fake_hub::{COMMIT, FakeHub, Fault},
    installed::{Verdict, files_below, find, verify},
};

const REPOSITORY: &str = "owner/tiny";
const WEIGHTS: &str = "onnx/model_q4.onnx";

/// An entry as a user may write one.
fn entry(more: &str) -> Entry {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "name = \"tiny\"\ntitle = \"Tiny\"\ntasks = [\"chat\"]\nfamily = \"qwen2\"\nrepository = \"{REPOSITORY}\"\n\
         default_variant = \"q4\"\nfiles = [\"config.json\"]\noptional = [\"tokenizer.json\", \"absent.json\"]\n{more}\n\
         [licence]\nname = \"MIT\"\n[graphs]\nmodel = \"onnx/model\"\n[variants]\nfp32 = {{}}\nq4 = {{ model = \"_q4\" }}\n"
    );
    fs::write(dir.path().join("tiny.toml"), text).unwrap();
    Catalogue::load(Some(dir.path())).unwrap().require("tiny").unwrap().clone()
}

fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(u32::to_le_bytes).collect()
}

fn hub(token: Option<&str>) -> FakeHub {
    let hub = FakeHub::start(token);
    hub.put(REPOSITORY, "config.json", "{}");
    hub.put(REPOSITORY, "tokenizer.json", "{\"t\":1}");
    hub.put(REPOSITORY, "README.md", "not asked for");
    hub.put(REPOSITORY, WEIGHTS, weights());
    hub.put(REPOSITORY, "onnx/model_q4.onnx_data", "beside");
    hub.put(REPOSITORY, "onnx/model_fp16.onnx", "another variant");
    hub
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("tiny")
    }

    fn pull_with(&self, client: &Hub, entry: &Entry) -> Result<Pulled> {
        pull(client, entry, "q4", self.0.path(), &|_| None, &|_| ())
    }

    fn pull(&self, hub: &FakeHub) -> Result<Pulled> {
        self.pull_with(&hub.client(None), &entry(""))
    }

    fn files(&self) -> Vec<String> {
        files_below(&self.dir()).map(|files| files.into_keys().collect()).unwrap_or_default()
    }
}

#[test]
fn a_variant_comes_whole_with_what_lies_beside_it_and_nothing_else() {
    let (hub, place) = (hub(None), Place::new());
    let pulled = place.pull(&hub).unwrap();
    assert_eq!(place.files(), ["config.json", WEIGHTS, "onnx/model_q4.onnx_data", "tokenizer.json"]);
    assert_eq!(pulled.files, 4);
    assert_eq!(fs::read(place.dir().join(WEIGHTS)).unwrap(), weights());
    let found = find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap();
    assert_eq!(found.variants, ["q4"]);
    let lock = Lock::read(&place.dir()).unwrap().unwrap();
    assert_eq!(lock.commits[REPOSITORY], COMMIT);
    assert!(verify(Some(&entry("")), &place.dir()).unwrap().values().all(|it| *it == Verdict::Good));
    assert!(hub.seen(WEIGHTS)[0].path.contains(COMMIT), "files are asked for by commit");

    // A second time nothing comes, and from the same commit.
    hub.forget();
    assert_eq!(place.pull(&hub).unwrap(), Pulled { files: 0, ..pulled });
    assert!(hub.seen(WEIGHTS).is_empty());
    assert!(hub.seen("?blobs=true")[0].path.contains(COMMIT));
}

#[test]
fn a_file_that_is_cut_goes_on_where_it_was() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail(WEIGHTS, [Fault::Cut(500_000), Fault::Cut(100_000)]);
    place.pull(&hub).unwrap();
    assert_eq!(fs::read(place.dir().join(WEIGHTS)).unwrap(), weights());
    let ranges: Vec<Option<String>> = hub.seen(WEIGHTS).iter().map(|it| it.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=500000-".to_owned()), Some("bytes=600000-".to_owned())]);
}

#[test]
fn what_came_before_patience_ended_is_there_the_next_time() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail(WEIGHTS, [Fault::Cut(1000), Fault::Cut(1000), Fault::Cut(1000)]);
    let error = place.pull(&hub).unwrap_err();
    assert!(error.full().contains("cut at 3000 bytes"), "{}", error.full());
    assert!(!place.dir().join(WEIGHTS).exists(), "half a file has no name");
    assert!(find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap().variants.is_empty());
    hub.forget();
    place.pull(&hub).unwrap();
    assert_eq!(hub.seen(WEIGHTS)[0].headers["range"], "bytes=3000-");
    assert_eq!(fs::read(place.dir().join(WEIGHTS)).unwrap(), weights());
    assert!(contents(&place.dir()).unwrap().parts.is_empty());
}

#[test]
fn nothing_has_its_name_before_all_of_it_is_there() {
    let (hub, place) = (hub(None), Place::new());
    // Long enough for all others to come meanwhile.
    let faults = [Fault::Silence(Duration::from_secs(3)), Fault::Status(500, &[]), Fault::Status(500, &[])];
    hub.fail("onnx/model_q4.onnx_data", faults);
    place.pull(&hub).unwrap_err();
    assert!(place.files().is_empty(), "{:?}", place.files());
    let found = find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap();
    assert!(found.variants.is_empty() && !found.unfinished.is_empty() && found.bytes > 0, "{found:?}");
    let verdicts = verify(Some(&entry("")), &place.dir()).unwrap();
    assert!(verdicts.values().all(|verdict| *verdict == Verdict::Missing), "{verdicts:?}");

    // What came whole does not come again.
    hub.forget();
    let whole = weights().len() + "{}".len() + "{\"t\":1}".len() + "beside".len();
    assert_eq!(place.pull(&hub).unwrap(), Pulled { files: 4, bytes: whole as u64 });
    assert!(hub.seen("tokenizer.json").is_empty() && hub.seen(WEIGHTS).is_empty());
    assert_eq!(find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap().variants, ["q4"]);
    // Of another revision, and of another variant.
    let (old, other) = (
        place.dir().join("config.json.part-00000000000000ff"),
        place.dir().join("onnx/model.onnx.part-0123456789abcdef"),
    );
    // Where the weights had another name.
    let beside = place.dir().join("onnx/model_q4.onnx.data.part-00000000000000ff");
    [&old, &other, &beside].iter().for_each(|part| fs::write(part, "half").unwrap());
    assert!(find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap().variants.is_empty());
    // Where only one has to come, the size is still that of all.
    fs::remove_file(place.dir().join("tokenizer.json")).unwrap();
    assert_eq!(place.pull(&hub).unwrap(), Pulled { files: 1, bytes: whole as u64 });
    assert!(!old.exists() && other.exists(), "what another pull would go on with is kept");
    assert!(!beside.exists(), "it would keep a whole model from being one");
    assert_eq!(find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap().variants, ["q4"]);
}

/// The moves at the end may be ended too, as by a power cut: no graph is there before what it needs.
#[test]
fn a_pull_that_ends_among_its_moves_goes_on() {
    let (hub, place) = (hub(None), Place::new());
    fs::create_dir_all(place.dir().join("onnx/model_q4.onnx_data/in the way")).unwrap();
    let error = place.pull(&hub).unwrap_err();
    assert!(error.full().contains("model_q4.onnx_data cannot be written"), "{}", error.full());
    fs::remove_dir_all(place.dir().join("onnx/model_q4.onnx_data")).unwrap();
    place.pull(&hub).unwrap();
    // As if it had been killed before the last of them.
    let graph = place.dir().join(WEIGHTS);
    let hash = Lock::read(&place.dir()).unwrap().unwrap().files[WEIGHTS].sha256.clone();
    fs::rename(&graph, place.dir().join(catalogue::part_of(WEIGHTS, &hash))).unwrap();
    let found = find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap();
    assert!(found.variants.is_empty() && !found.unfinished.is_empty(), "{found:?}");
    hub.forget();
    place.pull(&hub).unwrap();
    assert!(hub.seen(WEIGHTS).is_empty(), "it was whole");
    assert_eq!(fs::read(graph).unwrap(), weights());
}

#[test]
fn a_folder_of_links_is_completed_and_what_they_lead_to_stays() {
    let (hub, place, cache) = (hub(None), Place::new(), tempfile::tempdir().unwrap());
    for (blob, path) in [("right", "tokenizer.json"), ("wrong", "config.json")] {
        fs::write(cache.path().join(blob), if blob == "right" { "{\"t\":1}" } else { "[]" }).unwrap();
        fs::create_dir_all(place.dir()).unwrap();
        std::os::unix::fs::symlink(cache.path().join(blob), place.dir().join(path)).unwrap();
    }
    place.pull(&hub).unwrap();
    assert!(hub.seen("tokenizer.json").is_empty() && place.dir().join("tokenizer.json").is_symlink());
    assert_eq!(fs::read_to_string(place.dir().join("config.json")).unwrap(), "{}");
    assert_eq!(fs::read_to_string(cache.path().join("wrong")).unwrap(), "[]");

    // Neither through a folder nor through a part that is a link.
    let (hub, place) = (self::hub(None), Place::new());
    fs::create_dir_all(place.dir()).unwrap();
    std::os::unix::fs::symlink(cache.path(), place.dir().join("onnx")).unwrap();
    assert!(place.pull(&hub).unwrap_err().full().contains("onnx is a link"));
    let (place, mut digest) = (Place::new(), Digest::default());
    digest.add(b"{}");
    fs::create_dir_all(place.dir()).unwrap();
    let part = place.dir().join(catalogue::part_of("config.json", &digest.sha256()));
    std::os::unix::fs::symlink(cache.path().join("wrong"), &part).unwrap();
    place.pull(&hub).unwrap();
    assert_eq!(fs::read_to_string(cache.path().join("wrong")).unwrap(), "[]");
}

#[test]
fn a_wrong_hash_deletes_the_file_and_fails() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail(WEIGHTS, [Fault::Flip]);
    let error = place.pull(&hub).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.full().contains(WEIGHTS) && error.full().contains("deleted"), "{}", error.full());
    assert!(
        !place.files().iter().any(|path| path.contains("model_q4.onnx.") || path == WEIGHTS),
        "{:?}",
        place.files()
    );
    assert_eq!(hub.seen(WEIGHTS).len(), 1, "what is wrong is not tried again");
}

#[test]
fn a_hub_that_has_another_file_than_the_catalogue_is_refused_before_a_byte_comes() {
    let (hub, place) = (hub(None), Place::new());
    let pinned = format!("known = [{{ path = \"{WEIGHTS}\", sha256 = \"{}\" }}]", "0".repeat(64));
    let error = place.pull_with(&hub.client(None), &entry(&pinned)).unwrap_err();
    assert!(error.full().contains("another onnx/model_q4.onnx"), "{}", error.full());
    assert!(hub.seen(WEIGHTS).is_empty());

    hub.list_no_hashes();
    let error = place.pull_with(&hub.client(None), &entry(&pinned)).unwrap_err();
    assert!(error.full().contains("deleted"), "{}", error.full());
}

#[test]
fn a_hash_that_nobody_knew_is_recorded_and_then_enforced() {
    let (hub, place) = (hub(None), Place::new());
    hub.list_no_hashes();
    place.pull(&hub).unwrap();
    fs::remove_file(place.dir().join("config.json")).unwrap();
    hub.put(REPOSITORY, "config.json", "[]");
    let error = place.pull(&hub).unwrap_err();
    assert!(error.full().contains("config.json"), "{}", error.full());
    assert!(!place.dir().join("config.json").exists());
}

#[test]
fn a_redirect_is_followed_and_the_token_stays_with_the_hub() {
    let (hub, elsewhere, place) = (hub(Some("secret")), FakeHub::start(None), Place::new());
    elsewhere.put("c/d", "blob", weights());
    hub.fail(WEIGHTS, [Fault::Redirect(format!("{}/c/d/resolve/x/blob", elsewhere.endpoint()))]);
    // On the same host a path is enough, and the token goes along.
    hub.fail("config.json", [Fault::Redirect(format!("/{REPOSITORY}/resolve/{COMMIT}/config.json"))]);
    place.pull_with(&hub.client(Some("secret")), &entry("")).unwrap();
    assert_eq!(fs::read(place.dir().join(WEIGHTS)).unwrap(), weights());
    let there = elsewhere.seen("blob");
    assert!(there.len() == 1 && !there[0].headers.contains_key("authorization"), "{there:?}");
    assert!(hub.seen(WEIGHTS)[0].headers.contains_key("authorization"));
}

#[test]
fn redirects_in_a_circle_end() {
    let (hub, place) = (hub(None), Place::new());
    let circle = format!("/{REPOSITORY}/resolve/{COMMIT}/config.json");
    hub.fail("config.json", (0..20).map(|_| Fault::Redirect(circle.clone())));
    let error = place.pull(&hub).unwrap_err();
    assert!(error.full().contains("redirects"), "{}", error.full());
}

#[test]
fn what_is_gated_says_what_to_do_and_never_the_token() {
    let (hub, place) = (hub(Some("secret")), Place::new());
    let error = place.pull(&hub).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(error.full().contains("HF_TOKEN") && error.full().contains("licence"), "{}", error.full());

    hub.fail("?blobs=true", [Fault::Status(403, &[])]);
    let error = place.pull_with(&hub.client(Some("secret")), &entry("")).unwrap_err();
    assert!(error.full().contains("licence") && !error.full().contains("secret"), "{}", error.full());
    assert_eq!(hub.seen("?blobs=true").len(), 2, "a refusal is not tried again");
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let (hub, place) = (hub(None), Place::new());
    let error = pull(&hub.client(None), &entry(""), "fp32", place.0.path(), &|_| None, &|_| ()).unwrap_err();
    assert_eq!(error.full(), "owner/tiny has no onnx/model.onnx (it has: q4)");
    let empty = FakeHub::start(None);
    let error = place.pull(&empty).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.full().contains("owner/tiny"), "{}", error.full());
    // Listed and then gone.
    hub.fail(WEIGHTS, [Fault::Status(404, &[])]);
    let error = place.pull(&hub).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.full().contains("onnx/model_q4.onnx of owner/tiny is not on the hub"), "{}", error.full());
}

#[test]
fn a_tired_hub_is_asked_again_and_not_for_ever() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail("?blobs=true", [Fault::Status(429, &["Retry-After: 0"])]);
    hub.fail(WEIGHTS, [Fault::Status(503, &["Retry-After: 3600"]), Fault::Status(500, &[])]);
    place.pull(&hub).unwrap();
    assert_eq!(hub.seen(WEIGHTS).len(), 3);

    let place = Place::new();
    hub.fail("config.json", (0..3).map(|_| Fault::Status(429, &[])));
    let error = place.pull(&hub).unwrap_err();
    assert!(error.full().contains("429") && error.full().contains("later"), "{}", error.full());
}

#[test]
fn a_hub_that_falls_silent_is_left_and_asked_again() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail(WEIGHTS, [Fault::Silence(Duration::from_secs(3))]);
    place.pull(&hub).unwrap();
    assert_eq!(hub.seen(WEIGHTS).len(), 2);
}

#[test]
fn a_hub_that_is_not_there_says_where_it_was_looked_for() {
    let (hub, place) = (hub(None), Place::new());
    let client = hub.client(None);
    let endpoint = hub.endpoint();
    drop(hub);
    let error = place.pull_with(&client, &entry("")).unwrap_err();
    assert!(error.full().contains(&endpoint) && error.full().contains("HF_ENDPOINT"), "{}", error.full());
}

#[test]
fn several_files_come_at_a_time_and_not_all() {
    let hub = hub(None);
    let files: Vec<String> = (0..9).map(|n| format!("voices/{n}.bin")).collect();
    for path in &files {
        hub.put(REPOSITORY, path, path.as_str());
        // Long enough for another to come, on a busy machine too.
        hub.fail(path, [Fault::Silence(Duration::from_millis(500))]);
    }
    let list = files.iter().map(|path| format!("\"{path}\"")).collect::<Vec<_>>().join(", ");
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "name = \"tiny\"\ntitle = \"T\"\ntasks = [\"speak\"]\nfamily = \"f\"\nrepository = \"{REPOSITORY}\"\nfiles = [{list}]\n[licence]\nname = \"MIT\"\n"
    );
    fs::write(dir.path().join("tiny.toml"), text).unwrap();
    let entry = Catalogue::load(Some(dir.path())).unwrap().require("tiny").unwrap().clone();
    let place = Place::new();
    pull(&hub.client(None), &entry, "only", place.0.path(), &|_| None, &|_| ()).unwrap();
    assert_eq!(place.files(), files);
    assert!((2..=AT_A_TIME).contains(&hub.most_at_a_time()), "{}", hub.most_at_a_time());
}

#[test]
fn a_model_that_does_not_fit_the_disk_is_not_begun() {
    let (hub, place) = (hub(None), Place::new());
    let little = |_: &Path| Some(ByteSize::mib(65));
    let error = pull(&hub.client(None), &entry(""), "q4", place.0.path(), &little, &|_| ()).unwrap_err();
    assert!(error.kind() == Kind::TooLarge && error.full().contains("65 MiB are free"), "{}", error.full());
    assert!(error.full().contains("with 64 MiB to spare") && error.full().contains("models.dir"), "{}", error.full());
    assert!(place.files().is_empty() && hub.seen(WEIGHTS).is_empty());

    // Sizes that together are more than there are numbers for.
    let listed = |path: &str| format!("{{\"rfilename\": \"{path}\", \"size\": {}}}", u64::MAX);
    let siblings = ["config.json", WEIGHTS].map(listed).join(", ");
    let listing = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{siblings}]}}");
    hub.fail("?blobs=true", [Fault::Says(listing.leak())]);
    let error = pull(&hub.client(None), &entry(""), "q4", place.0.path(), &little, &|_| ()).unwrap_err();
    assert!(error.kind() == Kind::TooLarge && hub.seen(WEIGHTS).is_empty(), "{}", error.full());
}

#[test]
fn what_is_said_to_have_come_is_what_is_there_though_the_hub_tells_no_sizes() {
    let (hub, place) = (hub(None), Place::new());
    let listed = |path: &str| format!("{{\"rfilename\": \"{path}\"}}");
    let siblings = ["config.json", WEIGHTS].map(listed).join(", ");
    let listing = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{siblings}]}}");
    hub.fail("?blobs=true", [Fault::Says(listing.leak())]);
    let plan = Mutex::new(None);
    let told = |told: Told<'_>| {
        if let Told::Plan { files, bytes } = told {
            *lock(&plan) = Some((files, bytes));
        }
    };
    let pulled = pull(&hub.client(None), &entry(""), "q4", place.0.path(), &|_| None, &told).unwrap();
    assert_eq!(pulled, Pulled { files: 2, bytes: weights().len() as u64 + 2 });
    assert_eq!(*lock(&plan), Some((2, None)));
}

#[test]
fn a_hub_cannot_name_a_file_outside_the_models_folder() {
    let (hub, place) = (hub(None), Place::new());
    for path in ["../evil", "/etc/evil", "onnx/model_q4.onnx_data/../../../evil", "onnx/model_q4.onnx_data\\..\\evil"] {
        hub.put(REPOSITORY, path, "evil");
    }
    place.pull(&hub).unwrap();
    assert!(!place.0.path().join("evil").exists() && place.files().len() == 4, "{:?}", place.files());
}

#[test]
fn what_answers_but_is_no_hub_is_said_to_be_none() {
    let hub = FakeHub::start(None);
    hub.fail("?blobs=true", [Fault::Status(200, &[])]);
    let error = Place::new().pull(&hub).unwrap_err();
    assert!(error.full().contains("does not answer as a hub"), "{}", error.full());
}

#[test]
fn a_model_on_no_hub_says_how_it_comes() {
    let silero = Catalogue::load(None).unwrap().require("silero-vad").unwrap().clone();
    let place = Place::new();
    let hub = FakeHub::start(None);
    let error = pull(&hub.client(None), &silero, "only", place.0.path(), &|_| None, &|_| ()).unwrap_err();
    assert!(error.full().contains("scripts/run"), "{}", error.full());
}

#[test]
fn progress_names_every_file_and_every_pause() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail(WEIGHTS, [Fault::Cut(10)]);
    let said = Mutex::new(Vec::new());
    let told = |told: Told<'_>| {
        lock(&said).push(match told {
            Told::Plan { files, .. } => format!("plan {files}"),
            Told::Done { path, .. } => format!("done {path}"),
            Told::Waits { path, because, time } => format!("{path} waits {time:?}: {because}"),
            Told::Begins { .. } | Told::At { .. } => return,
        });
    };
    pull(&hub.client(None), &entry(""), "q4", place.0.path(), &|_| None, &told).unwrap();
    let mut said = said.into_inner().unwrap();
    said.sort();
    let done = ["config.json", WEIGHTS, "onnx/model_q4.onnx_data", "tokenizer.json"].map(|path| format!("done {path}"));
    let waits = format!("{WEIGHTS} waits 5ms: {WEIGHTS} was cut at 10 bytes");
    assert_eq!(said, [done.to_vec(), vec![waits, "plan 4".to_owned()]].concat());
}

#[test]
fn whoever_waits_for_the_list_of_files_is_told_too() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail("?blobs=true", [Fault::Status(429, &["Retry-After: 0"])]);
    let said = Mutex::new(Vec::new());
    let told = |told: Told<'_>| {
        if let Told::Waits { path, because, .. } = told {
            lock(&said).push(format!("{path}: {because}"));
        }
    };
    pull(&hub.client(None), &entry(""), "q4", place.0.path(), &|_| None, &told).unwrap();
    assert_eq!(*lock(&said), ["owner/tiny: the hub answers 429 Too Many Requests for owner/tiny"]);
}

#[test]
fn nobody_waits_for_one_file_when_another_has_failed() {
    let (hub, place) = (hub(None), Place::new());
    hub.fail("config.json", [Fault::Status(503, &["Retry-After: 60"])]);
    hub.fail(WEIGHTS, [Fault::Status(404, &[])]);
    let patience = crate::models::hub::Patience::default();
    let client = Hub::new(&hub.endpoint(), crate::models::hub::Access::default(), patience).unwrap();
    let began = std::time::Instant::now();
    let error = place.pull_with(&client, &entry("")).unwrap_err();
    assert!(error.kind() == Kind::NotFound && began.elapsed() < Duration::from_secs(30), "{}", error.full());
}

#[test]
fn what_asking_again_cannot_mend_is_asked_once() {
    const LONG: &str = "{} and more than was listed";
    for (path, fault, words) in [
        ("config.json", Fault::Status(410, &[]), "the hub answers 410"),
        ("config.json", Fault::Status(302, &[]), "sends us nowhere"),
        ("config.json", Fault::Redirect("file:///etc/passwd".to_owned()), "sends us nowhere"),
        ("config.json", Fault::Says(LONG), "config.json is longer than it should be: it was deleted"),
        ("?blobs=true", Fault::Says("{\"sha\": \"../../x\", \"siblings\": []}"), "does not answer as a hub"),
        ("?blobs=true", Fault::Says("{\"sha\": \"\", \"siblings\": []}"), "does not answer as a hub"),
        ("?blobs=true", Fault::Says("[]"), "check HF_ENDPOINT"),
    ] {
        let (hub, place) = (hub(None), Place::new());
        hub.fail(path, [fault]);
        let error = place.pull(&hub).unwrap_err();
        assert!(error.full().contains(words), "{words}: {}", error.full());
        assert_eq!(hub.seen(path).len(), 1, "{words}");
        assert!(!place.dir().join("config.json").exists() && Lock::read(&place.dir()).unwrap().is_none(), "{words}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let (hub, place) = (hub(None), Place::new());
    fs::write(place.dir(), "a file where the model's folder should be").unwrap();
    let error = place.pull(&hub).unwrap_err();
    assert!(error.full().contains("cannot be written"), "{}", error.full());
}

/// Asks the environment, as a test may, and a process of its own, because its limit is one of processes.
#[cfg(test)]
mod full_disk {
    use super::*;

    /// Tells the helper below which hub to pull from, and where to.
    const HELPER: &str = "VIGIA_TEST_FULL_DISK";

    /// No test by itself: a process whose files may not grow, which is how a full disk looks to it.
    #[test]
    fn helper_with_a_full_disk() {
        let Some(told) = std::env::var_os(HELPER) else { return };
        let (endpoint, folder) = told.to_str().unwrap().split_once(' ').unwrap();
        let patience = crate::models::hub::Patience::default();
        let client = Hub::new(endpoint, crate::models::hub::Access::default(), patience).unwrap();
        let error = pull(&client, &entry(""), "q4", Path::new(folder), &|_| None, &|_| ()).unwrap_err();
        println!("TOLD {:?} {}", error.kind(), error.full());
    }

    #[test]
    fn a_disk_that_is_full_in_the_middle_of_a_file_is_said_once_and_what_came_stays() {
        let (hub, place) = (hub(None), Place::new());
        // A signal that is not waited for would end the process; half of a kilobyte is the shell's unit.
        let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" --exact models::pull::tests::full_disk::helper_with_a_full_disk --nocapture";
        let mut command = std::process::Command::new("sh");
        command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
        let output = command.env(HELPER, format!("{} {}", hub.endpoint(), place.0.path().display())).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let told = told.lines().find(|line| line.contains("TOLD ")).unwrap_or_else(|| panic!("{output:?}"));
        assert!(told.contains("Unavailable") && told.contains(WEIGHTS) && told.contains("cannot be written"), "{told}");
        assert_eq!(hub.seen(WEIGHTS).len(), 1, "another try would find the disk as full");
        assert!(find(&entry(""), &[place.0.path().to_owned()]).unwrap().unwrap().variants.is_empty());
        // With room again it goes on where it was.
        hub.forget();
        place.pull(&hub).unwrap();
        assert_eq!(fs::read(place.dir().join(WEIGHTS)).unwrap(), weights());
        assert!(hub.seen(WEIGHTS)[0].headers.contains_key("range"));
    }
}

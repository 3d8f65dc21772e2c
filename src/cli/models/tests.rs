//! The commands on a folder of their own, with a hub of this machine.

use std::fs;

use super::*;
use crate::models::fake_hub::FakeHub;

const OWN: &str = "name = \"tiny\"\ntitle = \"Tiny\"\ntasks = [\"chat\"]\nfamily = \"qwen2\"\nrepository = \"o/tiny\"\n\
                   files = [\"config.json\", \"m.onnx\"]\nwith = [\"other\"]\n[licence]\nname = \"Mine\"\ncommercial = false\n";
const OTHER: &str = "name = \"other\"\ntitle = \"Other\"\ntasks = [\"chat\"]\nfamily = \"qwen2\"\nrepository = \"o/other\"\n\
                     files = [\"x.onnx\"]\n[licence]\nname = \"MIT\"\n";

struct Home {
    dir: tempfile::TempDir,
    shelf: Shelf,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("models.d");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("tiny.toml"), OWN).unwrap();
    fs::write(own.join("other.toml"), OTHER).unwrap();
    let models_dir = dir.path().join("models");
    let catalogue = Catalogue::load(Some(&own)).unwrap();
    Home { shelf: Shelf { catalogue, places: vec![models_dir.clone()], models_dir }, dir }
}

fn hub() -> FakeHub {
    let hub = FakeHub::start(None);
    hub.put("o/tiny", "config.json", "{}");
    hub.put("o/tiny", "m.onnx", "graph");
    hub.put("o/other", "x.onnx", "graph");
    hub
}

fn pull(home: &Home, hub: &FakeHub, accepted: bool) -> Result<(), String> {
    let pulled = home.shelf.pull(&hub.client(None), &["tiny".to_owned()], None, accepted, false);
    pulled.map_err(|failure| failure.told().0)
}

fn row<'a>(list: &'a str, name: &str) -> &'a str {
    list.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap_or_else(|| panic!("{name}: {list}"))
}

#[test]
fn a_model_is_listed_fetched_with_its_companion_verified_and_removed() {
    let (home, hub) = (home(), hub());
    let list = home.shelf.list(false).unwrap();
    assert!(list.starts_with("NAME") && row(&list, "tiny").ends_with("no"), "{list}");
    assert!(row(&list, "tiny").contains("Mine (not commercial)"), "{list}");
    assert!(row(&list, "silero-vad").contains("2.2 MiB"), "{list}");
    assert!(home.shelf.whereabouts(Some("tiny")).unwrap_err().full().contains("vigia models pull tiny"));

    let refused = pull(&home, &hub, false).unwrap_err();
    assert!(refused.contains("--accept-licence") && hub.seen("").is_empty(), "{refused}");
    pull(&home, &hub, true).unwrap();
    pull(&home, &hub, false).unwrap();

    let list = home.shelf.list(false).unwrap();
    assert!(row(&list, "tiny").ends_with("yes") && row(&list, "other").ends_with("yes"), "{list}");
    let json: serde_json::Value = serde_json::from_str(&home.shelf.list(true).unwrap()).unwrap();
    let tiny = json.as_array().unwrap().iter().find(|it| it["name"] == "tiny").unwrap();
    assert_eq!((&tiny["found"]["bytes"], &tiny["entry"]["licence"]["commercial"]), (&7.into(), &false.into()));
    assert!(home.shelf.whereabouts(Some("tiny")).unwrap().ends_with("models/tiny\n"));

    let (text, right) = home.shelf.verify(&[], false).unwrap();
    assert!(right && text.contains("✓ tiny: 2 of 2 files"), "{text}");
    fs::write(home.shelf.models_dir.join("tiny/m.onnx"), "grapf").unwrap();
    let (text, right) = home.shelf.verify(&["tiny".to_owned()], true).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(!right && json["ok"] == false && json["models"]["tiny"]["m.onnx"] == "changed", "{text}");
    // Fetching it again puts it right.
    pull(&home, &hub, false).unwrap();
    assert!(home.shelf.verify(&[], false).unwrap().1);

    installed::remove(&home.shelf.models_dir, "tiny", true).unwrap();
    assert!(row(&home.shelf.list(false).unwrap(), "tiny").ends_with("no"));
}

#[test]
fn a_model_is_shown_with_what_to_do() {
    let home = home();
    let shown = home.shelf.show("whisper-large-v3-turbo", false).unwrap();
    for part in
        ["transcribe", "fp16-q4", "a window of 30 s", "usual: fp16", "vigia models pull whisper-large-v3-turbo", "MIT"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(home.shelf.show("yolox-nano", false).unwrap().contains("copy model/yolox_nano.onnx"));
    assert!(home.shelf.show("nobody", false).unwrap_err().full().contains("vigia models list"));
    let folder = home.shelf.models_dir.join("mine");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    fs::write(folder.join("model.onnx"), "x").unwrap();
    let json: serde_json::Value = serde_json::from_str(&home.shelf.show("mine", true).unwrap()).unwrap();
    assert!(json["entry"].is_null() && json["found"]["bytes"] == 3, "{json}");
    assert!(row(&home.shelf.list(false).unwrap(), "mine").ends_with("yes"));
}

#[test]
fn a_folder_that_no_entry_describes_shows_its_graphs_and_what_no_hub_has_says_where_it_belongs() {
    let home = home();
    let mine = home.shelf.models_dir.join("mine");
    fs::create_dir_all(mine.join("onnx")).unwrap();
    for file in ["config.json", "onnx/encoder_model.onnx", "onnx/encoder_model_q4.onnx"] {
        fs::write(mine.join(file), "{}").unwrap();
    }
    let shown = home.shelf.show("mine", false).unwrap();
    assert!(shown.contains("onnx/encoder_model.onnx, onnx/encoder_model_q4.onnx"), "{shown}");
    assert!(shown.contains("no entry describes"), "{shown}");
    let error = home.shelf.pull(&hub().client(None), &["pp-ocr".to_owned()], None, false, false).unwrap_err().told().0;
    let folder = home.shelf.models_dir.join("pp-ocr");
    assert!(error.contains("is on no hub") && error.contains(&folder.display().to_string()), "{error}");
}

#[test]
fn models_travel_on_a_stick() {
    let (here, there, hub) = (home(), home(), hub());
    pull(&here, &hub, true).unwrap();
    let stick = here.dir.path().join("stick.tar");
    let names = ["tiny", "other"].map(str::to_owned);
    let twice = [&names[..], &names[..1]].concat();
    assert!(here.shelf.export(&stick, &twice).unwrap().contains("holds tiny, other ("));
    assert!(there.shelf.import(&stick, false).unwrap_err().full().contains("--accept-licence"));
    assert_eq!(there.shelf.import(&stick, true).unwrap(), "other is installed\ntiny is installed\n");
    assert!(there.shelf.verify(&[], false).unwrap().1);
    assert!(there.shelf.export(&stick, &["kokoro-82m".to_owned()]).unwrap_err().full().contains("pull kokoro-82m"));
}

#[test]
fn a_model_that_is_there_in_part_says_so_everywhere_and_is_not_carried() {
    let (home, hub) = (home(), hub());
    // As an earlier version has left it, or somebody's copy that was cut.
    for (model, graph) in [("other", "x.onnx"), ("mine", "m.onnx")] {
        let folder = home.shelf.models_dir.join(model);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        fs::write(folder.join(graph), "graph").unwrap();
        fs::write(folder.join(format!("{graph}_data.part-0123456789abcdef")), "half").unwrap();
        let list = home.shelf.list(false).unwrap();
        assert!(row(&list, model).ends_with("in part"), "{list}");
        let shown = home.shelf.show(model, false).unwrap();
        assert!(shown.contains("in part"), "{shown}");
        let (text, right) = home.shelf.verify(&[model.to_owned()], false).unwrap();
        assert!(!right && text.contains(&format!("missing: {graph}_data")), "{text}");
        let stick = home.dir.path().join("stick.tar");
        let error = home.shelf.export(&stick, &[model.to_owned()]).unwrap_err().full();
        assert!(error.contains("only in part") && !stick.exists(), "{error}");
    }
    assert!(home.shelf.show("mine", false).unwrap().contains("copy the rest of it"), "no hub has it");
    assert!(home.shelf.show("other", false).unwrap().contains("vigia models pull other"));
    hub.put("o/other", "x.onnx_data", "whole");
    let pulled = home.shelf.pull(&hub.client(None), &["other".to_owned()], None, false, false);
    pulled.map_err(|failure| failure.told().0).unwrap();
    assert!(row(&home.shelf.list(false).unwrap(), "other").ends_with("yes"));
    assert!(home.shelf.verify(&["other".to_owned()], false).unwrap().0.contains("with nothing to compare with"));
}

#[test]
fn an_entry_is_printed_as_it_is_written_and_no_terminal_obeys_one() {
    let dir = tempfile::tempdir().unwrap();
    let text = OTHER.replace("title = \"Other\"", "title = \"\\u001b[31mOther\"").replace("MIT", "\\u001b]0;x\\u0007");
    fs::write(dir.path().join("other.toml"), text).unwrap();
    let catalogue = Catalogue::load(Some(dir.path())).unwrap();
    assert_eq!(catalogue.get("other").unwrap().title, "\x1b[31mOther");
    let shelf = Shelf { catalogue, places: Vec::new(), models_dir: dir.path().to_owned() };
    let told = shelf.list(false).unwrap() + &shelf.show("other", false).unwrap();
    assert!(!told.contains('\x1b') && told.contains("\\u{1b}[31mOther"), "{told:?}");

    let entry = shelf.entry("whisper-base").unwrap();
    assert!(entry.contains("name = \"whisper-base\"") && entry.contains("[graphs]"), "{entry}");
    assert!(shelf.entry("other").unwrap_err().full().contains("/etc/vigia/models.d"));
    assert!(shelf.entry("nobody").unwrap_err().full().contains("vigia models list"));
}

#[test]
fn a_wrong_variant_is_refused_before_anything_is_asked_for() {
    let (home, hub) = (home(), hub());
    let name = ["tiny".to_owned()];
    let told = home.shelf.pull(&hub.client(None), &name, Some("fp8"), true, false).unwrap_err().told().0;
    assert!(told.contains("no variant `fp8`") && hub.seen("").is_empty(), "{told}");
}

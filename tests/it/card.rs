//! A card as the driver's library tells of it, without one: `tests/data/device/stand-in.rs` stands in for that library.

use std::{ffi::OsString, fs, path::PathBuf, process::Command, sync::OnceLock};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    engines::{engines, stt},
    harness::{Daemon, root, vigia},
};

const MIB: u64 = 1 << 20;

/// Whose memory a test sets.
struct Card {
    dir: TempDir,
}

impl Card {
    fn new(lines: &str) -> Card {
        let card = Card { dir: tempfile::tempdir().unwrap() };
        card.is(lines);
        card
    }

    /// From now on.
    fn is(&self, lines: &str) {
        // Whole, for it may be read at any moment.
        let new = self.dir.path().join("new");
        fs::write(&new, lines).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("card")
    }

    fn envs(&self) -> Vec<(&'static str, OsString)> {
        vec![("VIGIA_TEST_CARD", self.file().into()), ("LD_LIBRARY_PATH", library().parent().unwrap().into())]
    }

    fn doctor(&self, sets: &[&str]) -> String {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let output = vigia().arg("doctor").args(sets).envs(self.envs()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Built once.
fn library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nvml-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let library = folder.join("libnvidia-ml.so.1");
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(compiler);
        command.args(["--edition=2024", "--crate-type=cdylib", "-o"]).arg(&library);
        assert!(command.arg(root().join("tests/data/device/stand-in.rs")).status().unwrap().success());
        library
    })
}

fn row(health: &Value) -> Value {
    health["memory"]["ledgers"][0]["models"][0].clone()
}

#[tokio::test]
async fn the_ledger_of_a_card_has_what_the_driver_says() {
    let card = |used: u64, processes: &str| format!("total {}\nused {}\n{processes}", 8192 * MIB, used * MIB);
    let stand_in = Card::new(&card(1000, &format!("process 1 {}\n", 1000 * MIB)));
    let sets = ["tasks.transcribe.model=test-echo", "tasks.transcribe.provider=cuda", "memory.foreign_secs=1"];
    let daemon = Daemon::start_beside(&sets, stand_in.envs());
    let (_, health) = daemon.get("/api/health").await;
    let ledger = &health["memory"]["ledgers"][0];
    assert_eq!(ledger["budget"]["memory_kind"], json!("dedicated"), "{health}");
    assert_eq!(ledger["budget"]["total"], json!(8192 * MIB));
    daemon.eventually("/api/health", |health| health["memory"]["ledgers"][0]["foreign"] == 1000 * MIB).await;

    let (status, answer) = stt(&daemon).await;
    assert_eq!(status, 200, "{answer}");
    let [engine] = engines(&daemon)[..] else { panic!("one engine: {:?}", engines(&daemon)) };
    let (_, health) = daemon.get("/api/health").await;
    assert_eq!((&row(&health)["provider"], &row(&health)["is_measured"]), (&json!("cuda"), &json!(false)), "{health}");

    // What it takes is no longer taken for others', and what it grows by is seen.
    for mib in [300, 500] {
        let processes = format!("process 1 {}\nprocess {engine} {}\n", 1000 * MIB, mib * MIB);
        stand_in.is(&card(1000 + mib, &processes));
        let agree = |health: &Value| {
            let ledger = &health["memory"]["ledgers"][0];
            row(health)["measured"] == mib * MIB && ledger["foreign"] == 1000 * MIB
        };
        let health = daemon.eventually("/api/health", agree).await;
        assert_eq!((&row(&health)["is_measured"], &row(&health)["reserved"]), (&json!(true), &json!(mib * MIB)));
    }

    // The driver goes: the last figures stay, it is told once, and its return is told too.
    let before = row(&daemon.get("/api/health").await.1);
    stand_in.is("memory 15\n");
    while !daemon.log().contains("cannot be measured") {
        tokio::task::yield_now().await;
    }
    assert_eq!(row(&daemon.get("/api/health").await.1)["reserved"], before["reserved"]);

    // Others take nearly all of it: the engine, which nobody uses, leaves.
    stand_in.is(&card(8000, &format!("process 1 {}\nprocess {engine} {}\n", 7500 * MIB, 500 * MIB)));
    daemon.eventually("/api/health", |health| row(health).is_null()).await;
    let log = daemon.log();
    assert_eq!(log.matches("cannot be measured").count(), 1, "{log}");
    assert!(log.contains("is measured again") && log.contains("so some leave"), "{log}");
}

/// In containers, and where the GPU is shared with Windows.
#[tokio::test]
async fn where_the_driver_hides_processes_what_is_reserved_is_believed() {
    let card = |used: u64| format!("total {}\nused {}\nprocess 1 5\nhides\n", 8192 * MIB, used * MIB);
    let stand_in = Card::new(&card(1000));
    let sets = ["tasks.transcribe.model=test-echo", "tasks.transcribe.provider=cuda", "memory.foreign_secs=1"];
    let daemon = Daemon::start_beside(&sets, stand_in.envs());
    assert_eq!(stt(&daemon).await.0, 200);
    stand_in.is(&card(1400));
    let beside = |health: &Value| {
        let ledger = &health["memory"]["ledgers"][0];
        let reserved = ledger["reserved"].as_u64().unwrap();
        reserved > 0 && ledger["foreign"] == 1400 * MIB - reserved
    };
    let health = daemon.eventually("/api/health", beside).await;
    assert_eq!(row(&health)["is_measured"], json!(false), "{health}");
}

#[test]
fn a_driver_that_does_not_answer_is_a_note_of_the_doctor() {
    for (code, words) in [(9, "installed but not loaded"), (18, "updated while running"), (15, "does not answer")] {
        let told = Card::new(&format!("init {code}\n")).doctor(&[]);
        assert!(told.contains(words), "{code}: {told}");
    }
    let told = Card::new(&format!("total {}\n", 8192 * MIB)).doctor(&[]);
    assert!(told.contains("Stand-in RTX") && told.contains("8 GiB") && told.contains("580.65.06"), "{told}");
}

fn two(first: u64, second: u64) -> String {
    format!("total {}\ncard\ntotal {}\n", first * MIB, second * MIB)
}

#[test]
fn of_several_cards_the_doctor_says_which_computes() {
    let stand_in = Card::new(&two(8192, 16384));
    let told = stand_in.doctor(&[]);
    let line = |told: &str, name: &str| told.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
    assert!(
        line(&told, "GPU 1").contains("Stand-in RTX 1, 16 GiB") && line(&told, "GPU 1").contains("run here"),
        "{told}"
    );
    assert!(line(&told, "GPU 0").contains("not used"), "{told}");
    let told = stand_in.doctor(&["providers.device_id=0"]);
    assert!(line(&told, "GPU 0").contains("run here") && line(&told, "GPU 1").contains("not used"), "{told}");
    let told = stand_in.doctor(&["providers.device_id=2"]);
    let fault = line(&told, "there is no card 2");
    assert!(fault.contains("1 is Stand-in RTX 1, 0 is Stand-in RTX 0"), "{told}");

    // One that does not answer, and one that is divided.
    stand_in.is(&format!("memory 15\ncard\ntotal {}\ndivided\n", 4096 * MIB));
    let told = stand_in.doctor(&[]);
    assert!(told.contains("card 0 does not answer") && told.contains("Stand-in RTX 1, 4 GiB"), "{told}");
    assert!(told.contains("card 1 (Stand-in RTX 1) is divided (MIG)"), "{told}");
}

#[tokio::test]
async fn the_card_that_is_measured_is_the_one_that_engines_see() {
    for (set, number, mib) in [("providers.device_id=auto", 1, 16384), ("providers.device_id=0", 0, 8192)] {
        let stand_in = Card::new(&two(8192, 16384));
        let sets = [set, "tasks.transcribe.model=test-echo", "tasks.transcribe.provider=cuda", "memory.foreign_secs=1"];
        let daemon = Daemon::start_beside(&sets, stand_in.envs());
        assert_eq!(stt(&daemon).await.0, 200);
        let (_, health) = daemon.get("/api/health").await;
        assert_eq!(health["memory"]["ledgers"][0]["budget"]["total"], json!(mib * MIB), "{set}: {health}");
        let [engine] = engines(&daemon)[..] else { panic!("one engine: {:?}", engines(&daemon)) };
        let environment = fs::read(format!("/proc/{engine}/environ")).unwrap();
        let variables: Vec<_> = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let seen = format!("CUDA_VISIBLE_DEVICES=GPU-57a9d1e0-0000-0000-0000-00000000000{number}");
        assert!(variables.iter().any(|it| *it == seen), "{set}: {variables:?}");
        assert!(variables.iter().any(|it| it == "CUDA_DEVICE_ORDER=PCI_BUS_ID"), "{set}: {variables:?}");

        // What it takes on that card is in its row, whatever happens on the other.
        let process = |mib: u64| format!("used {0}\nprocess {engine} {0}\n", mib * MIB);
        let other = format!("used {0}\nprocess 1 {0}\n", 7000 * MIB);
        let (first, second) = if number == 0 { (process(300), other) } else { (other, process(300)) };
        stand_in.is(&format!("total {}\n{first}card\ntotal {}\n{second}", 8192 * MIB, 16384 * MIB));
        let health = daemon.eventually("/api/health", |health| row(health)["measured"] == 300 * MIB).await;
        assert_eq!(health["memory"]["ledgers"][0]["foreign"], json!(0), "{set}: {health}");
    }
}

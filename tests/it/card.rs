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

    fn doctor(&self) -> (bool, String) {
        let output = vigia().arg("doctor").envs(self.envs()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
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
        let (_, told) = Card::new(&format!("init {code}\n")).doctor();
        assert!(told.contains(words), "{code}: {told}");
    }
    let (_, told) = Card::new(&format!("total {}\n", 8192 * MIB)).doctor();
    assert!(told.contains("Stand-in RTX") && told.contains("8 GiB") && told.contains("580.65.06"), "{told}");
}

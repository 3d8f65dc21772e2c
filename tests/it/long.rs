//! Recordings of any length on the small trained model: as long as hours with `VIGIA_TEST_LONG`, as minutes without.

use std::{env, path::Path};

use crate::harness::{common_sets, vigia};

#[test]
fn long_recordings_take_no_more_memory_and_what_nobody_says_gives_no_text() {
    let Some(assets) = env::var_os("VIGIA_TEST_ASSETS") else {
        println!("skipped: VIGIA_TEST_ASSETS is not set");
        return;
    };
    let secs = if env::var_os("VIGIA_TEST_LONG").is_some() { "10800" } else { "100" };
    let dir = tempfile::tempdir().unwrap();
    let mut bench = vigia();
    bench.args(["bench", "long", "--secs", secs, "--model"]).arg(Path::new(&assets).join("real/micro-whisper"));
    // It says so with its exit code: memory, words that are wrong, text of sounds.
    let output = bench.args(common_sets(dir.path())).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
}

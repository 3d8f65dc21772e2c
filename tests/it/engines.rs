//! The engine of the daemon itself: it does not outlive the daemon, and its death in the middle of a job is nothing
//! that whoever asked has to know.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::{
    harness::{Daemon, LIMIT, common_sets, data, root, speech_pcm, vigia},
    hosts::is_running,
};

/// Said of what must be gone, or answered, by then.
const KILLED: Duration = Duration::from_secs(1);
const ANSWERED: Duration = Duration::from_secs(2);

fn daemon() -> Daemon {
    Daemon::start_with(&[&format!("tasks.transcribe.model={}", root().join("tests/data/whisper-tiny").display())])
}

/// The processes of engines are the daemon's only children.
pub(crate) fn engines(daemon: &Daemon) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let parent = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()
    };
    pids.filter(|pid| parent(*pid) == Some(daemon.pid()) && is_running(*pid)).collect()
}

fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn form() -> Bytes {
    let head = b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n".to_vec();
    [head, data("speech/speech.wav"), b"\r\n--XX--\r\n".to_vec()].concat().into()
}

pub(crate) async fn stt(daemon: &Daemon) -> (u16, Value) {
    daemon.post("/api/stt", "multipart/form-data; boundary=XX", form()).await
}

fn leases(health: &Value) -> u64 {
    health["memory"]["ledgers"][0]["models"][0]["leases"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn a_job_whose_engine_is_killed_is_answered_by_the_next_one() {
    let daemon = daemon();
    let (status, first) = stt(&daemon).await;
    assert_eq!(status, 200, "{first}");
    let [engine] = engines(&daemon)[..] else { panic!("one engine: {:?}", engines(&daemon)) };
    // It cannot be done before it is killed.
    signal(engine, "-STOP");
    let killed_in_its_work = async {
        daemon.eventually("/api/health", |health| leases(health) == 1).await;
        signal(engine, "-KILL");
        Instant::now()
    };
    let answered = async { (stt(&daemon).await, Instant::now()) };
    let (killed_at, ((status, second), answered_at)) = tokio::join!(killed_in_its_work, answered);
    assert_eq!((status, &second["text"]), (200, &first["text"]), "{second}");
    let took = answered_at.duration_since(killed_at);
    assert!(took < ANSWERED, "{took:?}\n{}", daemon.log());
    assert!(!is_running(engine) && engines(&daemon).len() == 1);
    let health = daemon.eventually("/api/health", |health| leases(health) == 0).await;
    assert_eq!(health["tasks"]["transcribe"]["state"], json!("ready"));
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_job_gives_its_lease_back() {
    let daemon = daemon();
    let (status, first) = stt(&daemon).await;
    assert_eq!(status, 200, "{first}");
    let [engine] = engines(&daemon)[..] else { panic!("one engine: {:?}", engines(&daemon)) };
    // It cannot be done before whoever asked has left.
    signal(engine, "-STOP");
    let body = form();
    let mut caller = tokio::net::TcpStream::connect(daemon.http).await.unwrap();
    let head = format!(
        "POST /api/stt HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    caller.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    daemon.eventually("/api/health", |health| leases(health) == 1).await;
    drop(caller);
    daemon.eventually("/api/health", |health| leases(health) == 0).await;
    let begun = Instant::now();
    let (status, second) = stt(&daemon).await;
    assert_eq!((status, &second["text"]), (200, &first["text"]), "{second}");
    assert!(begun.elapsed() < LIMIT && engines(&daemon).len() == 1, "one that obeys no cancel is replaced");
}

/// Of the tests' model neither the first variant can be loaded nor the second work: both say so in ONNX Runtime's words.
#[tokio::test]
async fn where_the_device_runs_out_of_memory_a_smaller_variant_answers_and_everybody_is_told() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-large"]);
    let mut events = daemon.socket("/ws/events?types=model.state").await;
    for _ in 0..2 {
        let (status, answer) = stt(&daemon).await;
        assert_eq!((status, answer["text"].as_str().unwrap().contains(" dB")), (200, true), "{answer}");
    }
    let (_, health) = daemon.get("/api/health").await;
    let task = &health["tasks"]["transcribe"];
    assert_eq!((&task["state"], &task["variant"]), (&json!("ready"), &json!("q8")), "{health}");
    let reason = task["reason"].as_str().unwrap();
    assert!(reason.starts_with("runs as q8 on cpu: the device has no memory for test-large (fp32 on cpu)"), "{reason}");
    assert_eq!(health["status"], json!("degraded"));
    let (_, answer) = stt(&daemon).await;
    assert_eq!(answer["warnings"][0]["code"], json!("instead"), "{answer}");
    assert!(answer["warnings"][0]["message"].as_str().unwrap().contains("runs as q8 on cpu"), "{answer}");
    let mut stream = daemon.audio(json!({ "type": "config", "sample_rate": 16000, "encoding": "pcm16" })).await;
    stream.audio(&speech_pcm()).await;
    stream.end().await;
    let result = stream.until("final_result").await;
    assert_eq!(result["warnings"], answer["warnings"], "{result}");
    assert!(daemon.log().contains("runs as q8 on cpu"), "{}", daemon.log());
    let of = |variant: &str, state: &str| json!([variant, state]);
    let mut told = Vec::new();
    while told.last() != Some(&of("q8", "ready")) {
        let data = events.until("model.state").await["data"].clone();
        assert_eq!(data["instead_of"].as_str(), (data["variant"] != "fp32").then_some("fp32 on cpu"), "{data}");
        told.push(json!([data["variant"], data["state"]]));
    }
    let loads: Vec<_> = told.iter().filter(|it| it[1] == "loading").map(|it| it[0].as_str().unwrap()).collect();
    assert_eq!(loads, ["fp32", "fp16", "q8"], "none is tried twice: {told:?}");
    assert!(told.contains(&of("fp32", "failed")) && told.contains(&of("fp16", "unloaded")), "{told:?}");
}

/// `VIGIA_TEST_GPU=1`, with `ORT_DYLIB_PATH` naming a GPU build of ONNX Runtime.
#[tokio::test]
async fn on_a_card_the_ledger_agrees_with_the_driver() {
    if std::env::var_os("VIGIA_TEST_GPU").is_none() {
        println!("SKIPPED: VIGIA_TEST_GPU is not set");
        return;
    }
    let model = format!("tasks.transcribe.model={}", root().join("tests/data/whisper-tiny").display());
    let daemon = Daemon::start_with(&[&model, "tasks.transcribe.provider=cuda", "memory.foreign_secs=1"]);
    let (status, answer) = stt(&daemon).await;
    assert_eq!(status, 200, "{answer}");
    let [engine] = engines(&daemon)[..] else { panic!("one engine: {:?}", engines(&daemon)) };
    // What it takes beyond its load is measured a moment later.
    daemon
        .eventually("/api/health", |health| {
            let model = &health["memory"]["ledgers"][0]["models"][0];
            let measured = model["measured"].as_f64().unwrap_or_default();
            let used = used_on_the_card(engine);
            model["is_measured"] == true && (measured - used).abs() <= 0.03 * used
        })
        .await;
}

/// In bytes, as NVML tells the driver's own tool.
fn used_on_the_card(pid: u32) -> f64 {
    let query = ["--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"];
    let told = Command::new("nvidia-smi").args(query).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let rows = told.lines().filter_map(|line| line.split_once(','));
    let (_, mib) = rows.map(|(pid, mib)| (pid.trim(), mib.trim())).find(|(it, _)| *it == pid.to_string()).unwrap();
    f64::from(mib.parse::<u32>().expect("the driver tells what each process uses")) * f64::from(1 << 20)
}

#[tokio::test]
async fn no_engine_outlives_a_daemon_that_is_killed() {
    let mut daemon = daemon();
    assert_eq!(stt(&daemon).await.0, 200);
    let engines = engines(&daemon);
    assert_eq!(engines.len(), 1);
    // Not even one that can do nothing about it.
    signal(engines[0], "-STOP");
    daemon.signal("-KILL");
    let killed_at = Instant::now();
    assert_eq!(daemon.wait(), None);
    while is_running(engines[0]) {
        assert!(killed_at.elapsed() < KILLED, "the engine goes on without its daemon");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_provider_that_this_machine_cannot_have_is_told_before_anybody_speaks() {
    if fs::metadata("/dev/nvidia0").is_ok() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let model = format!("tasks.transcribe.model={}", root().join("tests/data/whisper-tiny").display());
    let daemon = Daemon::start_with(&[&model, "tasks.transcribe.provider=cuda"]);
    let (_, health) = daemon.get("/api/health").await;
    assert_eq!(health["tasks"]["transcribe"]["state"], json!("unavailable"));
    assert!(health["tasks"]["transcribe"]["reason"].as_str().unwrap().contains("cuda needs a GPU"), "{health}");
    let (status, error) = tokio::time::timeout(LIMIT, stt(&daemon)).await.unwrap();
    assert_eq!((status, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
}

#[test]
fn the_bench_of_a_card_says_what_is_missing_where_there_is_none() {
    if fs::metadata("/dev/nvidia0").is_ok() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let model = root().join("tests/data/whisper-tiny");
    let mut command = vigia();
    command.args(["bench", "gpu", "--model"]).arg(model).args(common_sets(Path::new("/nowhere")));
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("no NVIDIA card was found here"), "{told}");
    assert!(told.contains("nvidia-smi"), "{told}");
}

#[tokio::test]
async fn a_task_whose_server_is_down_is_unavailable_and_says_why() {
    let daemon = Daemon::start_with(&[
        "remotes.large.url=http://127.0.0.1:1",
        "tasks.transcribe.remote=large",
        "tasks.transcribe.model=large-v3",
    ]);
    let task = |health: &Value| health["tasks"]["transcribe"].clone();
    let health = daemon.eventually("/api/health", |health| task(health)["state"] == "unavailable").await;
    assert!(task(&health)["reason"].as_str().unwrap().contains("large"), "{health}");
    let problems = health["problems"].as_array().unwrap();
    assert!(problems.iter().any(|it| it.as_str().unwrap().starts_with("transcribe: ")), "{health}");
    let log = daemon.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("the remote large")), "{log}");
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_told_once_and_not_at_every_job() {
    // This one alone is permitted, and the device has no memory for it.
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-large", "tasks.transcribe.variant=fp32"]);
    for _ in 0..3 {
        let (status, error) = tokio::time::timeout(LIMIT, stt(&daemon)).await.unwrap();
        assert_eq!((status, &error["error"]["code"]), (503, &json!("over_budget")), "{error}");
    }
    let log = daemon.log();
    let told = |words: &str| log.lines().filter(|line| line.contains("WARN") && line.contains(words)).count();
    assert_eq!(told("could not be loaded"), 1, "{log}");
    assert_eq!(told("out of memory"), 3, "the load, the shortage and the task, once each: {log}");
}

//! Engines in processes of their own, with the real binary: what dies is restarted, what hangs is killed, and nothing
//! outlives its daemon or keeps its memory.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, Once},
    time::{Duration, Instant},
};

use vigia::{
    base::Kind,
    engines::{
        AsrSpec, BallastAsk, BallastSpec, Engine, EngineSpec, Handle, Launch, Limits, RestartRules, Spec,
        TranscribeAsk, Vitals,
        puppet::{Play, Puppet, PuppetSpec},
    },
};

use crate::harness::LIMIT;

const LONG: Duration = Duration::from_secs(600);
const MIB: u64 = 1 << 20;
/// Tells the helper below what its engine is to do.
const HELPER_PLAYS: &str = "VIGIA_TEST_HELPER_PLAYS";

fn launch(name: &str) -> Launch {
    let limits = Limits { load: LIMIT, job: LIMIT, grace: Duration::from_millis(300) };
    Launch { program: env!("CARGO_BIN_EXE_vigia").into(), limits, ..Launch::new(name) }
}

async fn puppet(launch: Launch) -> Handle<Puppet> {
    Handle::process(PuppetSpec::default(), launch).await.unwrap()
}

fn pid<E: Engine>(host: &Handle<E>) -> u32 {
    host.vitals().borrow().pid.unwrap()
}

async fn until<E: Engine>(host: &Handle<E>, wanted: impl FnMut(&Vitals) -> bool) -> Vitals {
    let mut vitals = host.vitals();
    tokio::time::timeout(LIMIT, vitals.wait_for(wanted)).await.unwrap().unwrap().clone()
}

fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Not even as one that nobody has waited for.
fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What has ended and is waited for by nobody counts as gone: who adopts orphans here may be slow.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn one_spec_answers_alike_on_a_thread_and_in_a_process() {
    let ask = TranscribeAsk { words: true, ..TranscribeAsk::of(vec![0.5; 16_000].into(), "es") };
    let thread = Handle::thread("alike", &Limits::default(), || AsrSpec::TestEcho.build()).await.unwrap();
    let process = Handle::process(AsrSpec::TestEcho, launch("alike")).await.unwrap();
    let answers = [thread.ask(ask.clone()).await.unwrap(), process.ask(ask).await.unwrap()];
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0][0].segments[0].text, "1.00 s -6 dB");
    assert_eq!((thread.memory_bytes(), process.memory_bytes().is_some()), (None, true));
    thread.close().await.unwrap();
    process.close().await.unwrap();
}

#[tokio::test]
async fn a_job_whose_process_is_killed_is_answered_by_the_next_one_within_two_seconds() {
    let spec = BallastSpec { bytes: MIB, work_bytes: 0, load_ms: 0, step_ms: 20 };
    let host = Handle::process(spec, launch("killed")).await.unwrap();
    let first = pid(&host);
    let (mut killed, mut told) = (None, Vec::new());
    let answer = host.ask_with(BallastAsk { steps: 10 }, |step| {
        told.push(step);
        if step == 5 && killed.is_none() {
            signal(first, "-KILL");
            killed = Some(Instant::now());
        }
    });
    assert_eq!(answer.await.unwrap(), MIB);
    let took = killed.unwrap().elapsed();
    println!("kill -9 of a child in the middle of a job: answered {took:?} later, 200 ms of it the job");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(told[told.len() - 10..], (0..10).collect::<Vec<u32>>());
    let vitals = host.vitals().borrow().clone();
    assert_eq!(vitals.deaths, 1);
    assert!(vitals.last_death.unwrap().contains("it was killed by SIGKILL"));
    assert!(vitals.pid.unwrap() != first && !is_there(first));
}

#[tokio::test]
async fn a_job_that_kills_every_process_fails_and_the_next_one_runs() {
    let host = puppet(launch("poison")).await;
    let error = host.ask(Play::Die).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.message().contains("the engine poison died twice on this job: it was killed by SIGKILL"), "{error}");
    assert_eq!(host.ask(Play::Say("still here".to_owned())).await.unwrap(), "still here");

    let dir = tempfile::tempdir().unwrap();
    host.ask(Play::DieOnce(dir.path().join("marker"))).await.unwrap();
    assert_eq!(host.vitals().borrow().deaths, 3);
}

#[tokio::test]
async fn a_panic_is_no_death_but_an_engine_that_failed_twice_leaves_its_process() {
    let host = puppet(launch("panics")).await;
    let first = pid(&host);
    let error = host.ask(Play::Panic).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.message().contains("panics crashed"), "{error}");
    assert_eq!(host.ask(Play::Fail).await.unwrap_err().message(), "on purpose");
    host.ask(Play::Say(String::new())).await.unwrap();
    assert!(pid(&host) != first);
    assert_eq!(host.vitals().borrow().deaths, 0);
}

#[tokio::test]
async fn a_process_in_which_nothing_can_be_built_any_more_ends_and_the_next_one_has_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let host = puppet(launch("spoilt")).await;
    let first = pid(&host);
    assert_eq!(host.ask(Play::Spoil(dir.path().join("marker"))).await.unwrap(), "");
    let vitals = host.vitals().borrow().clone();
    assert!(vitals.deaths == 1 && vitals.pid.unwrap() != first, "{vitals:?}");
    assert!(vitals.last_death.unwrap().contains("exit status 1"));
    assert_eq!(host.ask(Play::Say("well".to_owned())).await.unwrap(), "well");
}

#[tokio::test]
async fn a_process_that_hangs_past_its_deadline_is_killed_and_replaced() {
    let host = puppet(launch("hangs")).await;
    let first = pid(&host);
    let error = host.limited(Duration::from_millis(100)).ask(Play::Hang(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    let vitals = until(&host, |vitals| vitals.deaths == 1).await;
    assert!(vitals.last_death.unwrap().contains("did not give up a cancelled job within 0.3 s"));
    assert!(!is_there(first));
    assert_eq!(host.ask(Play::Say("new".to_owned())).await.unwrap(), "new");
}

#[tokio::test]
async fn a_cancel_reaches_the_engine_within_one_step() {
    const STEP: Duration = Duration::from_millis(100);
    let spec = BallastSpec { bytes: MIB, work_bytes: 0, load_ms: 0, step_ms: STEP.as_millis() as u64 };
    let host = Handle::process(spec, launch("cancelled")).await.unwrap();
    let first = pid(&host);
    let (began, mut begun) = tokio::sync::mpsc::channel(1);
    let endless = host.ask_with(BallastAsk { steps: u32::MAX }, |_| began.try_send(()).unwrap_or(()));
    tokio::select! {
        answer = endless => panic!("{answer:?}"),
        _ = begun.recv() => {}
    }
    let left = Instant::now();
    host.ask(BallastAsk { steps: 0 }).await.unwrap();
    let took = left.elapsed();
    println!("a cancelled job of steps of {STEP:?}: the engine was free again after {took:?}");
    assert!(took < 3 * STEP, "{took:?}");
    assert_eq!((pid(&host), host.vitals().borrow().deaths), (first, 0));
}

#[tokio::test]
async fn closing_ends_the_process_and_gives_its_memory_back() {
    let spec = BallastSpec { bytes: 64 * MIB, work_bytes: 0, load_ms: 0, step_ms: 10 };
    let host = Handle::process(spec, launch("closed")).await.unwrap();
    let first = pid(&host);
    let held = host.memory_bytes().unwrap();
    assert!((64 * MIB..128 * MIB).contains(&held), "{held}");
    let asking = tokio::spawn({
        let host = host.clone();
        async move { host.ask(BallastAsk { steps: u32::MAX }).await }
    });
    tokio::task::yield_now().await;
    let begun = Instant::now();
    host.close().await.unwrap();
    println!("64 MiB were given back in {:?}", begun.elapsed());
    assert!(!is_there(first), "it is waited for, too");
    assert_eq!(asking.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(host.ask(BallastAsk { steps: 0 }).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!((host.memory_bytes(), host.vitals().borrow().deaths), (None, 0));
}

#[tokio::test]
async fn an_engine_that_does_not_unload_is_killed_by_closing() {
    let host = puppet(launch("stubborn")).await;
    let first = pid(&host);
    let asking = tokio::spawn({
        let host = host.clone();
        async move { host.ask_with(Play::Hang(LONG), |()| {}).await }
    });
    tokio::task::yield_now().await;
    host.close().await.unwrap();
    assert!(!is_there(first));
    assert_eq!(asking.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_process_leaves_with_its_last_handle() {
    let host = puppet(launch("dropped")).await;
    let (first, mut vitals) = (pid(&host), host.vitals());
    drop(host);
    while tokio::time::timeout(LIMIT, vitals.changed()).await.unwrap().is_ok() {}
    assert!(!is_there(first));
}

#[tokio::test]
async fn repeated_deaths_are_a_quarantine_that_ends() {
    let cool_down = Duration::from_secs(1);
    let restarts = RestartRules { deaths: 2, cool_down, ..RestartRules::default() };
    let host = puppet(Launch { restarts, ..launch("fragile") }).await;
    host.ask(Play::Die).await.unwrap_err();
    let until = host.vitals().borrow().quarantined_until.unwrap();
    let refused = host.ask(Play::Say(String::new())).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable);
    assert!(refused.message().contains("has died too often") && refused.hint_text().unwrap().contains("again in 1 s"));
    tokio::time::sleep_until(until.into()).await;
    host.ask(Play::Say(String::new())).await.unwrap();
    assert_eq!(host.vitals().borrow().quarantined_until, None);
}

#[tokio::test]
async fn an_engine_that_cannot_be_built_says_why_and_is_no_death() {
    let spec = BallastSpec { bytes: u64::MAX / 4, work_bytes: 0, load_ms: 0, step_ms: 0 };
    let error = Handle::process(spec, launch("too-big")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::OverBudget);
    assert!(error.full().contains("memory allocation failed"), "the cause has come too: {}", error.full());

    let spec = PuppetSpec { at_load: Some(Play::Die) };
    let error = Handle::process(spec, launch("dies-loading")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.message().contains("died while it was loading: it was killed by SIGKILL"), "{error}");
}

#[tokio::test]
async fn a_load_past_its_deadline_is_given_up_and_its_process_killed() {
    // Of this run of the tests alone.
    let name = format!("loads-for-ever-{}", std::process::id());
    let mut launch = launch(&name);
    launch.limits.load = Duration::from_millis(300);
    let spec = PuppetSpec { at_load: Some(Play::Hang(LONG)) };
    let error = Handle::process(spec, launch).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Timeout);
    assert_eq!(pids_of(&name), [0; 0]);
}

/// The processes of an engine, by its name on their command line.
fn pids_of(engine: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let named = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == format!("vigia\0engine-host\0{engine}\0").as_bytes()
    };
    pids.filter(named).collect()
}

#[tokio::test]
async fn a_process_has_only_what_it_needs() {
    let leaked = tempfile::NamedTempFile::new().unwrap();
    // SAFETY: fcntl(2) on a file that is open; it takes the flag away that keeps it from other programs.
    assert_eq!(unsafe { libc::fcntl(leaked.as_file().as_raw_fd(), libc::F_SETFD, 0) }, 0);
    let host = puppet(launch("modest")).await;
    let proc = format!("/proc/{}", pid(&host));
    let read = |name: &str| fs::read_to_string(format!("{proc}/{name}")).unwrap();

    let files = fs::read_dir(format!("{proc}/fd")).unwrap();
    let mut open = files.map(|file| fs::read_link(file.unwrap().path()).unwrap_or_default());
    assert!(open.all(|path| path != leaked.path()), "a file of the daemon is open");
    assert_eq!(read("oom_score_adj").trim(), "500");
    assert!(read("status").contains("NoNewPrivs:\t1"));
    assert!(read("limits").lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")));
    let group = read("stat").rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap().to_owned();
    assert_eq!(group, pid(&host).to_string());

    let given = host.ask(Play::Variables).await.unwrap();
    let secret = |name: &&str| !name.starts_with("CUDA_") && !name.starts_with("NVIDIA_");
    let allowed = ["HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "RUST_BACKTRACE", "TMPDIR", "XDG_CACHE_HOME"];
    let unwanted: Vec<&str> = given.split_whitespace().filter(secret).filter(|it| !allowed.contains(it)).collect();
    assert_eq!(unwanted, [""; 0]);
    assert!(given.split(' ').any(|name| name == "PATH"), "{given}");
}

#[test]
fn a_process_does_not_die_with_the_thread_that_asked_for_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asker = runtime.handle().clone();
    let host = std::thread::spawn(move || asker.block_on(puppet(launch("survivor")))).join().unwrap();
    let first = pid(&host);
    assert_eq!(runtime.block_on(host.ask(Play::Say("alive".to_owned()))).unwrap(), "alive");
    assert_eq!(runtime.block_on(host.ask(Play::DeathSignal)).unwrap(), libc::SIGKILL.to_string());
    assert_eq!((pid(&host), host.vitals().borrow().deaths), (first, 0));
    runtime.block_on(host.close()).unwrap();
}

/// Not a test: the daemon that the next ones kill. Does nothing where nobody tells it what.
#[test]
#[ignore = "run by other tests"]
fn helper_daemon() {
    let Some(plays) = std::env::var_os(HELPER_PLAYS) else { return };
    let play = match plays.to_str().unwrap() {
        "hang" => Play::Hang(LONG),
        "hang alone" => Play::HangAlone(LONG),
        other => panic!("{other}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let host = puppet(launch("orphan")).await;
        let pid = pid(&host);
        host.ask_with(play, |()| println!("\nchild {pid}")).await.unwrap();
    });
}

/// A daemon, and the process of its engine in the middle of a job.
fn helper(plays: &str) -> (Child, u32) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "hosts::helper_daemon", "--ignored", "--nocapture"]).env(HELPER_PLAYS, plays);
    let mut daemon = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let child = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("child ")?.parse().ok());
    (daemon, child.unwrap())
}

/// How long it took.
fn is_gone_a_second_after_its_daemon(plays: &str, before: impl FnOnce(u32)) -> Duration {
    let (mut daemon, child) = helper(plays);
    assert!(is_running(child));
    before(child);
    daemon.kill().unwrap();
    let killed = Instant::now();
    daemon.wait().unwrap();
    while is_running(child) && killed.elapsed() < Duration::from_secs(1) {
        std::thread::yield_now();
    }
    let took = killed.elapsed();
    if is_running(child) {
        signal(child, "-KILL");
        panic!("{plays}: the child is there {took:?} after its daemon was killed");
    }
    took
}

#[test]
fn no_child_is_left_a_second_after_the_daemon_was_killed() {
    let took = is_gone_a_second_after_its_daemon("hang", |_| {});
    println!("kill -9 of the daemon: the child was gone after {took:?}");
}

#[test]
fn not_even_a_child_that_is_stopped_is_left() {
    is_gone_a_second_after_its_daemon("hang", |child| signal(child, "-STOP"));
}

#[test]
fn a_child_that_the_kernel_does_not_kill_sees_the_end_while_its_engine_works() {
    // The engine has told the kernel so a moment after it told its step.
    is_gone_a_second_after_its_daemon("hang alone", |_| std::thread::sleep(Duration::from_millis(100)));
}

/// `vigia engine-host` with one end of a socket.
fn bare() -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vigia"));
    command.args(["engine-host", "bare"]).stdin(OwnedFd::from(theirs)).stderr(Stdio::piped());
    (command.spawn().unwrap(), ours)
}

fn ended(mut child: Child) -> (Option<i32>, String) {
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    (child.wait().unwrap().code(), told)
}

#[test]
fn garbage_on_the_socket_ends_the_process_with_an_error() {
    for garbage in [b"\xff\xff\xff\xff".as_slice(), b"\x02\x00\x00\x00ab", b"\x06\x00\x00\x00vgia\xe7\x07", b"\x09\0"] {
        let (child, mut socket) = bare();
        socket.write_all(garbage).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let (code, told) = ended(child);
        assert_eq!(code, Some(1), "{garbage:?}: {told}");
        assert!(told.contains("between the daemon and an engine: "), "{told}");
    }
    let (child, socket) = bare();
    drop(socket);
    assert_eq!(ended(child).0, Some(1), "a daemon that leaves at once");
}

#[test]
fn garbage_after_the_greeting_ends_the_process_while_its_engine_loads() {
    let (child, mut socket) = bare();
    let spec = EngineSpec::from(PuppetSpec { at_load: Some(Play::Hang(LONG)) });
    let load = postcard::to_stdvec(&("bare", "INFO", spec)).unwrap();
    socket.write_all(b"\x05\0\0\0vgia\x01").unwrap();
    socket.write_all(&(load.len() as u32).to_le_bytes()).unwrap();
    socket.write_all(&load).unwrap();
    socket.write_all(b"\x01\0\0\0\x77").unwrap();
    let (code, told) = ended(child);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("<ERROR>vigia::engines::host::child: between the daemon and an engine"), "{told}");
}

#[test]
fn a_person_who_starts_it_is_told_what_to_use() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vigia"));
    let child = command.args(["engine-host", "asr"]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (code, told) = ended(child);
    assert_eq!(code, Some(1));
    assert!(told.contains("started by the daemon") && told.contains("vigia run"), "{told}");
}

#[tokio::test]
async fn a_program_that_is_no_engine_is_an_error_and_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    for (script, told) in [
        ("printf 'HTTP/1.1 400' >&0; exec sleep 600", "a message of 1347703880 bytes is announced"),
        ("exit 3", "the exit status 3"),
        ("echo 'no library' >&2; exit 4", "the exit status 4; its last words: no library"),
    ] {
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let launch = Launch { program: program.clone(), ..launch("impostor") };
        let error = Handle::process(PuppetSpec::default(), launch).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains(told), "{error}");
    }
    let launch = Launch { program: dir.path().join("absent"), ..launch("absent") };
    let error = Handle::process(PuppetSpec::default(), launch).await.err().unwrap();
    assert!(error.message().contains("does not start") && error.full().contains("No such file"), "{}", error.full());
}

/// What this process has logged.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collect;

impl log::Log for Collect {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let engine = record.key_values().get("engine".into()).map(|it| it.to_string()).unwrap_or_default();
        let line = format!("{} {} [{engine}] {}", record.level(), record.target(), record.args());
        LOGGED.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn what_an_engine_prints_is_in_the_log_under_its_name_and_in_its_obituary() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_boxed_logger(Box::new(Collect)).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    let host = puppet(launch("talker")).await;
    for number in 0..300 {
        host.ask(Play::Print(format!("CUDA error {number}"))).await.unwrap();
    }
    host.ask(Play::Log("nearly full".to_owned())).await.unwrap();
    let error = host.ask(Play::Die).await.unwrap_err();
    assert!(error.message().contains("died twice"), "{error}");
    host.close().await.unwrap();
    let logged = LOGGED.lock().unwrap().clone();
    let of_engine: Vec<_> = logged.iter().filter(|line| line.contains("[talker]")).collect();
    assert!(of_engine.iter().any(|it| *it == "INFO vigia::engines::host::stderr [talker] CUDA error 0"), "{logged:#?}");
    assert!(!of_engine.iter().any(|it| it.ends_with("] CUDA error 299")), "a flood is cut");
    assert!(of_engine.iter().any(|it| it.contains("201 lines of this engine are left out")), "{of_engine:#?}");
    let words = "it was killed by SIGKILL; its last words: CUDA error 296 | CUDA error 297 | \
                 CUDA error 298 | CUDA error 299 | nearly full play=log";
    assert!(of_engine.iter().any(|it| it.starts_with("ERROR") && it.contains(words)), "{of_engine:#?}");
}

#[tokio::test]
async fn thirty_seconds_of_audio_cross_quickly() {
    let host = puppet(launch("hears")).await;
    let audio = vigia::flow::Pcm::from(vec![0.25; 480_000]);
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(host.ask(Play::Hear(audio.clone())).await.unwrap(), "480000");
        fastest = fastest.min(begun.elapsed());
    }
    let begun = Instant::now();
    host.ask(Play::Say(String::new())).await.unwrap();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!("{build}: 30 s of audio cross in {fastest:?}, nothing in {:?}", begun.elapsed());
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
}

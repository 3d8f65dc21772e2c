//! `vigia bench ledger`: many requests for more models than fit, against the real ledger of memory, with engines whose
//! processes really hold what they say (scaled down). What is asked is random, and the same for the same seed.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::task::JoinSet;

use crate::{
    base::{ByteSize, Error, Result, lock},
    cli::{
        Outcome,
        bench::figures::{Figure, percentile, to_text, told, wanted},
        print,
    },
    device::MemoryKind,
    engines::{Ballast, BallastAsk, BallastSpec, Handle, Launch},
    flow::Priority,
    models::{Budget, Costs, Load, Loader, Manager, ManagerLimits, ModelKey, Need},
};

struct Model {
    name: &'static str,
    /// What it takes once it is loaded, and what it works in beside that.
    mib: u64,
    work_mib: u64,
    /// Of whoever asks for it.
    priority: Priority,
    /// Of a job.
    steps: u32,
}

/// Seven models as a box would have them.
const MODELS: [Model; 7] = [
    Model { name: "transcribe", mib: 1240, work_mib: 400, priority: Priority::Live, steps: 1 },
    Model { name: "diarize", mib: 60, work_mib: 40, priority: Priority::Live, steps: 1 },
    Model { name: "detect", mib: 30, work_mib: 20, priority: Priority::Live, steps: 1 },
    Model { name: "describe", mib: 1600, work_mib: 650, priority: Priority::Interactive, steps: 2 },
    Model { name: "speak", mib: 260, work_mib: 100, priority: Priority::Interactive, steps: 1 },
    Model { name: "chat", mib: 1000, work_mib: 230, priority: Priority::Batch, steps: 5 },
    Model { name: "paint", mib: 2300, work_mib: 700, priority: Priority::Batch, steps: 5 },
];
/// A process of its own, before it holds anything. It shares most of that with others as a rule, but the kernel may leave
/// it alone with it.
const PROCESS_BYTES: u64 = 14 << 20;
const STEP_MS: u64 = 1;
/// People do one thing for a while: so many requests prefer the same few models.
const SCENE: usize = 2000;
/// Of a hundred requests of a scene, those for anything at all.
const STRAY: u8 = 1;
/// One child is killed in so many requests.
const KILL_EVERY: usize = 2000;
/// Live work may wait this long beside one load.
const LIVE_WAIT: Duration = Duration::from_millis(300);
/// As `memory.wait_secs` is unless it is set: the ledger refuses whoever has waited longer, and says so.
const WAIT: Duration = Duration::from_secs(60);
/// Nobody should be without any answer for so long, whatever it is: that would be a deadlock.
const STUCK: Duration = Duration::from_secs(90);

/// Random requests for seven models on 4, 8 and 12 GB, against the real ledger and processes that hold memory
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Requests, shared out among the budgets
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..))]
    requests: u32,
    /// Budgets in GiB
    #[arg(long, value_delimiter = ',', default_values_t = [4_u64, 8, 12])]
    budgets: Vec<u64>,
    /// One byte of a process stands for so many
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=256))]
    scale: u64,
    /// Requests at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    clients: u8,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn run(args: Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let mut held = true;
    // The rest of a division goes to the first, which has the most to do.
    let share = args.requests as usize / args.budgets.len().max(1);
    let mut left = args.requests as usize;
    for (place, gib) in args.budgets.iter().enumerate() {
        let requests = left - share * (args.budgets.len() - 1 - place);
        left -= requests;
        print(&format!(
            "{requests} requests for {} models on {gib} GiB (1 : {}), {} at a time\n",
            MODELS.len(),
            args.scale,
            args.clients
        ))?;
        let (figures, unserved) = runtime.block_on(replay(&args, requests, gib << 30))?;
        held &= figures.iter().all(|figure| figure.holds != Some(false));
        print(&to_text(&figures))?;
        for (who, times) in unserved {
            print(&format!("    {times} × {who}\n"))?;
        }
    }
    if held { Ok(()) } else { Err(anyhow::anyhow!("not every figure is what is wanted").into()) }
}

/// What happens to everybody, counted.
#[derive(Default)]
struct Tally {
    waits: Mutex<[Vec<Duration>; 3]>,
    answered: AtomicUsize,
    refused: AtomicUsize,
    /// Whoever was not served, and why: how often.
    unserved: Mutex<BTreeMap<String, usize>>,
    yielded: AtomicUsize,
    stuck: AtomicUsize,
    killed: AtomicUsize,
    /// Moments at which more was reserved than there is, and at which the processes had more.
    over_reserved: AtomicUsize,
    over_held: AtomicUsize,
    /// How much more was reserved, at most.
    most_over: AtomicU64,
    most_held: AtomicU64,
    looks: AtomicUsize,
}

struct Rig {
    manager: Manager<BallastLoader>,
    children: Arc<Children>,
    scale: u64,
    tally: Tally,
}

/// Engines that run, how long their loads took, and how many had to leave.
#[derive(Default)]
struct Children {
    running: Mutex<BTreeMap<ModelKey, Handle<Ballast>>>,
    loads: Mutex<Vec<Duration>>,
    evictions: AtomicUsize,
}

impl Children {
    fn running(&self) -> Vec<Handle<Ballast>> {
        lock(&self.running).values().cloned().collect()
    }
}

struct BallastLoader {
    children: Arc<Children>,
    scale: u64,
}

impl Loader for BallastLoader {
    type Loaded = Handle<Ballast>;

    fn load(&self, need: &Need) -> BoxFuture<'static, Result<Load<Handle<Ballast>>>> {
        let (key, children) = (need.key.clone(), Arc::clone(&self.children));
        let model = MODELS.iter().find(|model| model.name == key.model);
        let [bytes, work_bytes] = model.map_or([0; 2], |it| [it.mib, it.work_mib].map(|mib| (mib << 20) / self.scale));
        async move {
            let begun = Instant::now();
            let spec = BallastSpec { bytes, work_bytes, load_ms: 0, step_ms: STEP_MS };
            let loaded = Handle::process(spec, Launch::new(&key.model)).await?;
            lock(&children.loads).push(begun.elapsed());
            let measured_bytes = loaded.memory_bytes();
            lock(&children.running).insert(key, loaded.clone());
            Ok(Load { loaded, measured_bytes })
        }
        .boxed()
    }

    fn unload(&self, need: &Need, loaded: Handle<Ballast>) -> BoxFuture<'static, ()> {
        let (key, children) = (need.key.clone(), Arc::clone(&self.children));
        async move {
            lock(&children.running).remove(&key);
            children.evictions.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = loaded.close().await {
                log::error!("{}", error.full());
            }
        }
        .boxed()
    }
}

async fn replay(args: &Args, asked: usize, budget_bytes: u64) -> Result<(Vec<Figure>, BTreeMap<String, usize>)> {
    let dir = std::env::temp_dir().join(format!("vigia-bench-ledger-{}", std::process::id()));
    let total = budget_bytes / args.scale;
    let children = Arc::new(Children::default());
    let loader = BallastLoader { children: Arc::clone(&children), scale: args.scale };
    let limits = ManagerLimits { idle: Duration::from_secs(3600), wait: WAIT };
    let manager = Manager::start(loader, budget(total), Costs::open(&dir, "bench"), limits);
    let rig = Arc::new(Rig { manager, children, scale: args.scale, tally: Tally::default() });
    let (looking, begun) = (Arc::new(AtomicBool::new(true)), Instant::now());
    let watcher = tokio::task::spawn_blocking({
        let (rig, looking) = (Arc::clone(&rig), Arc::clone(&looking));
        move || watch(&rig, &looking, total)
    });

    let requests = Arc::new(Mutex::new(Requests::new(args.seed, asked)));
    let mut clients = JoinSet::new();
    for _ in 0..args.clients {
        clients.spawn(client(Arc::clone(&rig), Arc::clone(&requests)));
    }
    while clients.join_next().await.is_some() {}
    let elapsed = begun.elapsed();

    looking.store(false, Ordering::Relaxed);
    watcher.await.map_err(|error| Error::internal("the watcher of memory ended badly").cause(error))?;
    let evictions = rig.children.evictions.load(Ordering::Relaxed);
    rig.manager.close().await;
    let left = rig.manager.ledger().reserved + rig.children.running().len() as u64;
    fs::remove_dir_all(&dir).unwrap_or(());
    let unserved = lock(&rig.tally.unserved).clone();
    Ok((figures(asked, &rig, elapsed, (evictions, left)), unserved))
}

fn budget(total: u64) -> Budget {
    let (system, media, margin) = (0, 0, 0);
    Budget { memory_kind: MemoryKind::None, total, system, media, margin, set_limit: None, limit: total }
}

/// What is asked next, by whoever comes.
struct Requests {
    random: fastrand::Rng,
    left: usize,
    favourites: [usize; 3],
}

impl Requests {
    fn new(seed: u64, left: usize) -> Requests {
        Requests { random: fastrand::Rng::with_seed(seed), left, favourites: [0, 3, 4] }
    }

    /// A model, and whether its process is to be killed meanwhile.
    fn next(&mut self) -> Option<(usize, bool)> {
        self.left = self.left.checked_sub(1)?;
        if self.left.is_multiple_of(SCENE) {
            // Somebody always speaks; what else goes on changes.
            self.favourites = [self.random.usize(0..3), self.random.usize(3..7), self.random.usize(0..7)];
        }
        let model = match self.random.u8(0..100) {
            0..STRAY => self.random.usize(0..MODELS.len()),
            _ => self.favourites[self.random.usize(0..3)],
        };
        Some((model, self.left % KILL_EVERY == 7))
    }
}

async fn client(rig: Arc<Rig>, requests: Arc<Mutex<Requests>>) {
    loop {
        let Some((model, kill)) = lock(&requests).next() else { return };
        let model = &MODELS[model];
        let asked = Instant::now();
        let served = tokio::time::timeout(STUCK, serve(&rig, model, kill, asked)).await;
        let tally = &rig.tally;
        let (counter, why) = match served {
            Ok(Ok(())) => (&tally.answered, None),
            Ok(Err(error)) => (&tally.refused, Some(error.full())),
            Err(_) => (&tally.stuck, Some(format!("no answer within {} s", STUCK.as_secs()))),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(why) = why {
            *lock(&tally.unserved).entry(format!("{} {}: {why}", model.priority.name(), model.name)).or_default() += 1;
        }
    }
}

async fn serve(
    rig: &Rig,
    &Model { name, mib, work_mib, priority, steps }: &Model,
    kill: bool,
    asked: Instant,
) -> Result<()> {
    loop {
        let key = ModelKey { model: name.to_owned(), variant: "only".to_owned(), provider: "cpu".to_owned() };
        let [loaded, workspace_bytes] = [mib, work_mib].map(|mib| (mib << 20) / rig.scale);
        let (estimate_bytes, yields) = (loaded + PROCESS_BYTES, priority == Priority::Batch);
        let need = Need { key, estimate_bytes, workspace_bytes, priority, resident: false, yields, instead_of: None };
        let lease = rig.manager.lease(need).await?;
        lock(&rig.tally.waits)[priority as usize].push(asked.elapsed());
        if kill {
            rig.tally.killed.fetch_add(1, Ordering::Relaxed);
            kill_in_the_middle(&lease);
        }
        tokio::select! {
            answer = lease.ask(BallastAsk { steps }) => return answer.map(drop),
            () = lease.asked_to_yield(), if yields => rig.tally.yielded.fetch_add(1, Ordering::Relaxed),
        };
    }
}

fn kill_in_the_middle(engine: &Handle<Ballast>) {
    let Some(pid) = engine.vitals().borrow().pid else { return };
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(STEP_MS)).await;
        // SAFETY: kill(2) takes two numbers; the number was our child's a millisecond ago.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
    });
}

/// Looks at the ledger and at the processes themselves, as often as the kernel can tell.
fn watch(rig: &Rig, looking: &AtomicBool, total: u64) {
    let tally = &rig.tally;
    while looking.load(Ordering::Relaxed) {
        let ledger = rig.manager.ledger();
        if ledger.reserved > ledger.limit {
            tally.over_reserved.fetch_add(1, Ordering::Relaxed);
            tally.most_over.fetch_max(ledger.reserved - ledger.limit, Ordering::Relaxed);
        }
        let held: u64 = rig.children.running().iter().filter_map(Handle::memory_bytes).sum();
        tally.most_held.fetch_max(held, Ordering::Relaxed);
        if held > total {
            tally.over_held.fetch_add(1, Ordering::Relaxed);
        }
        tally.looks.fetch_add(1, Ordering::Relaxed);
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn figures(asked: usize, rig: &Rig, elapsed: Duration, (evictions, left): (usize, u64)) -> Vec<Figure> {
    let tally = &rig.tally;
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let mut loads = lock(&rig.children.loads).clone();
    loads.sort();
    let one_load = percentile(&loads, 0.99);
    let done = count(&tally.answered) + count(&tally.refused) + count(&tally.stuck);
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let per_request = evictions as f64 / asked as f64;
    let held = ByteSize(tally.most_held.load(Ordering::Relaxed));
    let total = ByteSize(rig.manager.ledger().budget.limit);
    let none = |name, number: usize| wanted(name, number.to_string(), "0", number == 0);
    let mut figures = vec![
        none("over budget, by the ledger", count(&tally.over_reserved)),
        none("over budget, by the processes", count(&tally.over_held)),
        told("most reserved beyond it", ByteSize(tally.most_over.load(Ordering::Relaxed)).to_string()),
        told("most held by the processes", format!("{held} of {total} ({} looks)", count(&tally.looks))),
        none("no answer within 90 s", count(&tally.stuck)),
        none("lost requests", asked - done),
        none("failed or refused requests", count(&tally.refused)),
        wanted("returned at the end", if left == 0 { "everything" } else { "not all" }, "everything", left == 0),
        told("evictions per request", format!("{per_request:.4} ({evictions}, and {} loads)", loads.len())),
        told("a load", format!("median {}, p99 {}", ms(percentile(&loads, 0.5)), ms(one_load))),
        told("batch jobs asked to yield", count(&tally.yielded).to_string()),
        told("processes killed in mid-job", count(&tally.killed).to_string()),
    ];
    let mut waits = lock(&tally.waits);
    for (priority, name) in Priority::ALL.into_iter().zip(["live waits", "interactive waits", "batch waits"]) {
        let waited = &mut waits[priority as usize];
        waited.sort();
        let [half, p99] = [0.5, 0.99].map(|part| percentile(waited, part));
        let worst = waited.last().copied().unwrap_or_default();
        let text = format!("median {}, p99 {}, worst {}", ms(half), ms(p99), ms(worst));
        figures.push(match priority {
            Priority::Live => wanted(name, text, "p99 300 ms plus one load", p99 <= LIVE_WAIT + one_load),
            Priority::Interactive | Priority::Batch => told(name, text),
        });
    }
    figures.push(told("time", format!("{:.0} s", elapsed.as_secs_f64())));
    figures
}

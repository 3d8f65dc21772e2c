//! Builds every part in the order of the layers, wires them, and puts them down in reverse. Does no work itself.
//!
//! Shutdown: intake stops → live work finishes → publishers flush → the store closes; one deadline for all of it,
//! whoever is late is named, a second signal ends at once.

mod audio_room;
mod commands;
mod states;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};

use self::audio_room::AudioRoom;
use crate::{
    api::{self, Context, RunningProfile},
    base::{Error, Result, Shutdown, shutdown::deadline},
    device::Facts,
    engines::{Places, Registry},
    flow::Task,
    jobs::{self, Queue, QueueLimits},
    media::Media,
    publish::{Broker, Hub, Mqtt, MqttStatus, Node},
    settings::{MqttMode, Settings},
    sources::{Services, Sessions, partial_rules, speech_rules},
    store::{AudioLog, Store},
    systemd::{self, Notifier},
    telemetry::Metrics,
};

/// Events that a live subscriber may be behind before it is closed.
const LIVE_EVENTS: usize = 4096;
/// Commands over MQTT that may wait.
const COMMANDS: usize = 16;
/// Old sessions are looked for at start and then once a day.
const PRUNE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// What waits for the disk has this long, even when the shutdown's deadline has passed: it takes milliseconds, and
/// systemd waits longer than the deadline.
const WRITE_LEAST: Duration = Duration::from_secs(2);

/// What the command line has found out.
pub struct Options {
    pub settings: Settings,
    pub facts: Facts,
    pub profile: RunningProfile,
    pub places: Places,
    /// Written once ready: `{"http":"127.0.0.1:PORT","mqtt":"127.0.0.1:PORT"|null}`.
    pub announce: Option<PathBuf>,
}

/// Runs until a signal asks it to stop.
pub async fn run(options: Options) -> Result<()> {
    let begun = Instant::now();
    let mut signals = Signals::new()?;
    let notifier = Notifier::from_env();
    let running = Running::start(options, begun).await?;
    running.announce()?;
    notifier.ready(&format!("listening on http://{}", running.http));
    log::info!(http:% = running.http, ready_ms = begun.elapsed().as_millis() as u64; "ready");
    let (queue, registry) = (running.queue.clone(), running.registry.clone());
    let heartbeat = async move || live_path_beats(&queue, &registry).await;
    let watchdog = tokio::spawn(systemd::watchdog(notifier.clone(), heartbeat, running.intake.clone()));
    let signal = signals.next().await;
    log::info!("{signal}: stopping");
    notifier.stopping();
    tokio::select! {
        () = running.stop() => {}
        signal = signals.next() => log::warn!("{signal} again: ending at once"),
    }
    watchdog.abort();
    Ok(())
}

/// All parts, in the order in which they were built.
struct Running {
    settings: Arc<Settings>,
    store: Store,
    audio_log: AudioLog,
    broker: Option<Broker>,
    queue: Queue,
    registry: Registry,
    /// Stops what takes new work in: connections and sessions.
    intake: Shutdown,
    /// Stops what works for them.
    work: Shutdown,
    /// Stops what carries their results out.
    publishing: Shutdown,
    http: SocketAddr,
    announce: Option<PathBuf>,
}

impl Running {
    async fn start(options: Options, begun: Instant) -> Result<Running> {
        let Options { settings, facts, profile, places, announce } = options;
        let settings = Arc::new(settings);
        let metrics = Metrics::install();
        let (intake, work, publishing) = (Shutdown::new(), Shutdown::new(), Shutdown::new());

        let store = Store::open(&settings.store_dir())?;
        let server = &settings.server;
        api::may_listen(server.listen, store.has_keys().await?, server.allow_anonymous)?;
        let audio_log = AudioLog::open(&settings.store_dir())?;
        let hub = Hub::new(settings.node.name.as_str().into(), store.clone(), LIVE_EVENTS);
        tokio::spawn(prune_daily(store.clone(), settings.store.keep_days, work.clone()));

        let registry = Registry::new(&settings, places);
        registry.begin(&facts);
        states::publish(&registry, &hub, &work);
        let limits = QueueLimits {
            live: settings.jobs.queue_live,
            interactive: settings.jobs.queue_interactive,
            batch: settings.jobs.queue_batch,
        };
        let queue = Queue::new(limits);
        let job_limit = Duration::from_secs(settings.jobs.timeout_secs);
        tokio::spawn(jobs::run(queue.clone(), registry.clone(), job_limit, work.clone()));

        let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
        let sessions = Sessions::new(Arc::new(Services {
            media: media.clone(),
            registry: registry.clone(),
            queue: queue.clone(),
            hub: hub.clone(),
            store: store.clone(),
            voices_dir: settings.store_dir(),
            audio_log: audio_log.clone(),
            shutdown: intake.clone(),
            rules: speech_rules(&settings.vad),
            max_sessions: settings.audio.max_sessions,
            partials: partial_rules(&settings.audio),
            resume_window: Duration::from_secs(settings.audio.resume_secs),
            keep_audio: settings.store.keep_audio,
            chat_model: settings.model_for(Task::Chat).unwrap_or_default().to_owned(),
        }));
        let room = AudioRoom::new(&settings.store, store.clone(), audio_log.clone());
        room.clear().await?;
        tokio::spawn(room.watch(work.clone()));
        // Before anybody can come: a client finds its session as it was.
        sessions.recover().await?;

        // The port is taken before anything is told to anybody, so that a second daemon changes nothing.
        let listener = api::bind(server.listen).await?;
        let http = listener.local_addr().map_err(|error| Error::internal("no local address").cause(error))?;
        let broker = match settings.mqtt.mode {
            MqttMode::Embedded => Some(Broker::start(&settings.mqtt)?),
            MqttMode::External | MqttMode::Off => None,
        };
        let context_later = Arc::new(OnceLock::new());
        let mqtt = match settings.mqtt.mode {
            MqttMode::Off => None,
            MqttMode::Embedded | MqttMode::External => {
                let (commands, asked) = mpsc::channel(COMMANDS);
                tokio::spawn(commands::carry_out(asked, registry.clone()));
                let embedded = broker.as_ref().map(Broker::address);
                let node = node(&settings, &facts, Arc::clone(&context_later));
                Some(Mqtt::new(&settings.mqtt, embedded, node, store.clone(), hub.clone(), commands)?)
            }
        };
        let mqtt_status = match &mqtt {
            Some(mqtt) => mqtt.status(),
            None => watch::channel(MqttStatus::Off).1,
        };
        let context = Arc::new(Context {
            settings: Arc::clone(&settings),
            facts: Arc::new(facts),
            profile,
            store: store.clone(),
            hub: hub.clone(),
            registry: registry.clone(),
            queue: queue.clone(),
            sessions,
            media,
            frames: api::Frames::default(),
            metrics,
            mqtt: mqtt_status,
            started: begun,
            shutdown: intake.clone(),
        });
        context_later.set(Arc::downgrade(&context)).unwrap_or(());
        if let Some(mqtt) = mqtt {
            tokio::spawn(mqtt.run(publishing.clone()));
        }
        tokio::spawn(api::serve(listener, context));
        Ok(Running { settings, store, audio_log, broker, queue, registry, intake, work, publishing, http, announce })
    }

    /// Tells whoever started us where we listen. Written aside and renamed, so that nobody reads half of it.
    fn announce(&self) -> Result<()> {
        let Some(path) = &self.announce else { return Ok(()) };
        let mqtt = self.broker.as_ref().map(|broker| broker.address().to_string());
        let text = json!({ "http": self.http.to_string(), "mqtt": mqtt }).to_string();
        let aside = path.with_extension("part");
        let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, path));
        written.map_err(|error| {
            Error::invalid(format!("cannot write {}", path.display())).hint("--announce names a file").cause(error)
        })
    }

    async fn stop(self) {
        let limit = Duration::from_secs(self.settings.shutdown.deadline_secs);
        let until = deadline(limit);
        self.intake.start();
        // One rude client may be late with everything; what the others have said still has to get out.
        name_the_late("intake", &self.intake.finished(until - limit / 4).await);
        self.work.start();
        self.publishing.start();
        name_the_late("publishing", &self.publishing.finished(until).await);
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
        // They would end with this process anyway; so their memory is back before anybody is told that it has stopped.
        if tokio::time::timeout_at(until.max(deadline(WRITE_LEAST)), self.registry.close()).await.is_err() {
            name_the_late("engines", &["a model is still in memory".to_owned()]);
        }
        // Who was late before must not cost what is still to be written.
        let until = until.max(deadline(WRITE_LEAST));
        for closed in [self.audio_log.close(until).await, self.store.close(until).await] {
            if let Err(error) = closed {
                log::error!("{}", error.full());
            }
        }
        log::info!("stopped");
    }
}

/// What MQTT says of this box besides events. The API's view of health is the one truth; it is there a moment later.
fn node(settings: &Settings, facts: &Facts, context: Arc<OnceLock<Weak<Context>>>) -> Node {
    let name = settings.node.name.as_str().into();
    let info = json!({ "name": settings.node.name, "version": env!("CARGO_PKG_VERSION"), "device": facts.title() });
    let ask = move || context.get().and_then(Weak::upgrade);
    let health = {
        let ask = ask.clone();
        move || ask().map_or(Value::Null, |context| json!(api::health(&context)))
    };
    let tasks = move || {
        let statuses = ask().map(|context| context.registry.statuses()).unwrap_or_default();
        statuses.into_iter().map(|it| (it.task.name().to_owned(), it.state.name().to_owned())).collect()
    };
    Node { name, info, health: Arc::new(health), tasks: Arc::new(tasks) }
}

fn name_the_late(stage: &str, late: &[String]) {
    if !late.is_empty() {
        log::warn!("{stage}: not finished in time: {}", late.join(", "));
    }
}

async fn prune_daily(store: Store, keep_days: u32, shutdown: Shutdown) {
    loop {
        match store.prune(keep_days).await {
            Ok(0) => {}
            Ok(count) => log::info!("removed {count} sessions that ended over {keep_days} days ago"),
            Err(error) => log::error!("{}", error.full()),
        }
        tokio::select! {
            () = tokio::time::sleep(PRUNE_EVERY) => {}
            () = shutdown.wait() => return,
        }
    }
}

/// A turn of the queue's worker and one of the listening thread: what live speech needs to be alive.
async fn live_path_beats(queue: &Queue, registry: &Registry) -> bool {
    let listening = async {
        match registry.voice_if_loaded() {
            Some(voice) => voice.beat().await,
            None => Ok(()),
        }
    };
    queue.beat().await.is_ok() && listening.await.is_ok()
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let listen = |kind| signal(kind).map_err(|error| Error::internal("cannot listen for signals").cause(error));
        Ok(Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

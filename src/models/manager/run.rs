//! The manager's task: tells the plan what happens, carries out what it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{broadcast, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Load, Loader, ManagerLimits, News, gone};
use crate::{
    base::{ByteSize, Error, Kind, Result},
    flow::Priority,
    models::{
        Budget, Costs, Ledger, LedgerModel, ModelKey, ModelState, Need, Phase, Waiting,
        lease::{Granted, Inbox, Ticket},
        plan::{Action, Event, Failure, Numbers, Plan, Refusal, Rules, State, TakeOut},
    },
};

/// Batch work ranks with interactive work after this part of the longest wait, which leaves it time for a few tries that
/// live work interrupts.
const PATIENCE: u32 = 4;

type Picture = (Instant, Ledger);

pub(super) struct Run<L: Loader> {
    loader: Arc<L>,
    plan: Plan,
    budget: Budget,
    foreign: u64,
    limits: ManagerLimits,
    costs: Arc<Costs>,
    started: Instant,
    work: JoinSet<Done<L::Loaded>>,
    loaded: BTreeMap<ModelKey, L::Loaded>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Result<Granted<L::Loaded>>>>,
    leased: BTreeMap<Ticket, CancellationToken>,
    unloads: Vec<(BTreeSet<ModelKey>, oneshot::Sender<Result<()>>)>,
    closing: bool,
    closers: Vec<oneshot::Sender<()>>,
    /// Why those that could not be loaded the last time were not: the log has had it.
    failed: BTreeMap<ModelKey, String>,
    states: broadcast::Sender<ModelState>,
    /// Told once the ledger shows them: whoever hears of a change looks there next.
    untold: Vec<ModelState>,
    ledger: watch::Sender<Picture>,
}

enum Done<T> {
    Loaded(ModelKey, Result<Load<T>>),
    Unloaded(ModelKey),
}

impl<L: Loader> Run<L> {
    pub(super) fn new(
        loader: L,
        budget: Budget,
        costs: Costs,
        limits: ManagerLimits,
        states: broadcast::Sender<ModelState>,
    ) -> (Run<L>, watch::Receiver<Picture>) {
        let rules = Rules { idle: limits.idle, wait: limits.wait, patience: limits.wait / PATIENCE };
        let plan = Plan::new(rules, budget.limit, costs.all());
        let (ledger, pictures) = watch::channel((Instant::now(), picture(&plan, &budget, 0, Duration::ZERO)));
        let run = Run {
            loader: Arc::new(loader),
            plan,
            budget,
            foreign: 0,
            limits,
            costs: Arc::new(costs),
            started: Instant::now(),
            work: JoinSet::new(),
            loaded: BTreeMap::new(),
            waiting: BTreeMap::new(),
            leased: BTreeMap::new(),
            unloads: Vec::new(),
            closing: false,
            closers: Vec::new(),
            failed: BTreeMap::new(),
            states,
            untold: Vec::new(),
            ledger,
        };
        (run, pictures)
    }

    /// Until it was closed and all memory is back.
    pub(super) async fn run(mut self, inbox: Arc<Inbox<L::Loaded>>) {
        while !(self.closing && self.plan.models().next().is_none()) {
            let due = self.plan.next_tick().map(|at| self.started + at);
            tokio::select! {
                news = inbox.wait() => news.into_iter().for_each(|news| self.hear(news)),
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.finish(done),
                    // Panics are caught inside, and nobody aborts these.
                    Err(error) => log::error!("a load or unload ended badly: {error}"),
                },
                () = until(due) => self.step(Event::Tick, None),
            }
            let picture = picture(&self.plan, &self.budget, self.foreign, self.started.elapsed());
            self.ledger.send_replace((Instant::now(), picture));
            for state in self.untold.drain(..) {
                // Nobody may be listening.
                drop(self.states.send(state));
            }
        }
        // Who asked at the last moment learns it now; later ones when the inbox is dropped.
        inbox.close().into_iter().for_each(|news| self.hear(news));
        self.closers.into_iter().for_each(|closer| closer.send(()).unwrap_or(()));
    }

    fn hear(&mut self, news: News<L::Loaded>) {
        match news {
            News::Asked(ticket, need, reply) => {
                self.waiting.insert(ticket, reply);
                self.step(Event::Asked(ticket, need), None);
            }
            News::Gone(ticket) => {
                self.waiting.remove(&ticket);
                self.leased.remove(&ticket);
                self.step(Event::Gone(ticket), None);
            }
            News::Died(key) => {
                log::warn!("{key} has ended, or is given up");
                self.step(Event::Died(key), None);
            }
            News::Foreign(bytes) => self.foreign_is(bytes),
            News::Measured(key, bytes) => {
                self.step(Event::Measured(key.clone(), bytes), None);
                self.keep_cost(&key);
            }
            News::Progress(key, fraction) => self.tell(&key, Phase::Loading, Some(fraction)),
            News::Unload(model, reply) => self.take_out(&model, reply),
            News::Close(closer) => {
                self.closing = true;
                self.closers.extend(closer);
                self.step(Event::Close, None);
            }
        }
    }

    fn foreign_is(&mut self, bytes: u64) {
        self.foreign = bytes;
        let limit = self.budget.limit_beside(bytes);
        if limit < self.plan.reserved() {
            let [bytes, limit, reserved] = [bytes, limit, self.plan.reserved()].map(ByteSize);
            log::warn!("others use {bytes} of the memory: models may take {limit} and have {reserved}, so some leave");
        }
        self.step(Event::Limit(limit), None);
    }

    fn finish(&mut self, done: Done<L::Loaded>) {
        match done {
            Done::Loaded(key, Ok(Load { loaded, measured_bytes })) => {
                self.loaded.insert(key.clone(), loaded);
                self.failed.remove(&key);
                let event = Event::Loaded(key.clone(), measured_bytes);
                let actions = self.plan.step(self.started.elapsed(), event);
                // First, for it may have to leave again at once.
                self.tell(&key, Phase::Ready, None);
                self.carry_out(actions, None);
                self.keep_cost(&key);
            }
            Done::Loaded(key, Err(error)) => {
                let is_news = self.failed.insert(key.clone(), error.full()).as_ref() != Some(&error.full());
                let level = if is_news { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "{key} could not be loaded: {}", error.full());
                self.tell(&key, Phase::Failed, None);
                let is_full = error.kind() == Kind::OverBudget;
                let failure = if is_full { Failure::OutOfMemory } else { Failure::Other };
                self.step(Event::LoadFailed(key, failure), Some(&error));
            }
            Done::Unloaded(key) => {
                self.tell(&key, Phase::Unloaded, None);
                for (keys, _) in &mut self.unloads {
                    keys.remove(&key);
                }
                for (_, reply) in self.unloads.extract_if(.., |(keys, _)| keys.is_empty()) {
                    reply.send(Ok(())).unwrap_or(());
                }
                self.step(Event::Unloaded(key), None);
            }
        }
    }

    fn take_out(&mut self, model: &str, reply: oneshot::Sender<Result<()>>) {
        let actions = match self.plan.take_out(model) {
            Ok(actions) => actions,
            Err(why) => {
                let error = match why {
                    TakeOut::NotLoaded => Error::new(Kind::NotFound, format!("{model} is not loaded")),
                    TakeOut::InUse => Error::new(Kind::Busy, format!("{model} is in use")).hint("try again later"),
                };
                return reply.send(Err(error)).unwrap_or(());
            }
        };
        let keys = self.plan.models().map(|(key, _)| key).filter(|key| key.model == model).cloned().collect();
        self.unloads.push((keys, reply));
        self.carry_out(actions, None);
    }

    fn step(&mut self, event: Event, failed: Option<&Error>) {
        let actions = self.plan.step(self.started.elapsed(), event);
        self.carry_out(actions, failed);
    }

    fn carry_out(&mut self, actions: Vec<Action>, failed: Option<&Error>) {
        for action in actions {
            match action {
                Action::Grant(ticket, key) => self.grant(ticket, &key),
                Action::Load(need) => self.load(&need),
                Action::Unload(key) => self.unload(&key),
                Action::AskToYield(ticket) => self.leased.get(&ticket).iter().for_each(|token| token.cancel()),
                Action::Refuse(ticket, key, refusal) => {
                    let error = self.refusal(&key, refusal, failed);
                    if let Some(reply) = self.waiting.remove(&ticket) {
                        // Whoever asked may have left.
                        reply.send(Err(error)).unwrap_or(());
                    }
                }
            }
        }
    }

    fn grant(&mut self, ticket: Ticket, key: &ModelKey) {
        let (Some(reply), Some(loaded)) = (self.waiting.remove(&ticket), self.loaded.get(key)) else { return };
        let yields = CancellationToken::new();
        self.leased.insert(ticket, yields.clone());
        // Whoever left meanwhile has said so: the lease ends with that.
        drop(reply.send(Ok(Granted { loaded: loaded.clone(), yields })));
    }

    fn load(&mut self, need: &Need) {
        let key = need.key.clone();
        log::info!("loading {key}, {} reserved", ByteSize(self.plan.cost(need)));
        self.tell(&key, Phase::Loading, None);
        let (loader, need) = (Arc::clone(&self.loader), need.clone());
        self.work.spawn(async move {
            let loading = AssertUnwindSafe(async { loader.load(&need).await }).catch_unwind();
            let panicked = |_| Err(Error::internal(format!("loading {key} panicked")));
            let loaded = loading.await.unwrap_or_else(panicked);
            Done::Loaded(key, loaded)
        });
    }

    fn unload(&mut self, key: &ModelKey) {
        let (Some(loaded), Some(model)) = (self.loaded.remove(key), self.plan.model(key)) else { return };
        log::info!("unloading {key}, {} come free", ByteSize(model.bytes));
        let (loader, need, key) = (Arc::clone(&self.loader), model.need.clone(), key.clone());
        self.tell(&key, Phase::Unloading, None);
        self.work.spawn(async move {
            let unloading = AssertUnwindSafe(async { loader.unload(&need, loaded).await }).catch_unwind();
            if unloading.await.is_err() {
                log::error!("unloading {key} panicked: its memory is taken to be back");
            }
            Done::Unloaded(key)
        });
    }

    fn tell(&mut self, key: &ModelKey, state: Phase, progress: Option<f32>) {
        let bytes = match state {
            Phase::Unloaded | Phase::Failed => 0,
            Phase::Loading | Phase::Ready | Phase::Unloading => self.plan.model(key).map_or(0, |model| model.bytes),
        };
        let instead_of = self.plan.model(key).and_then(|model| model.need.instead_of.clone());
        self.untold.push(ModelState { key: key.clone(), state, bytes, progress, instead_of });
    }

    fn keep_cost(&self, key: &ModelKey) {
        let Some(seen) = self.plan.seen(key) else { return };
        if self.costs.set(key, seen) {
            let costs = Arc::clone(&self.costs);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = costs.write() {
                    log::error!("{}", error.full());
                }
            });
        }
    }

    fn refusal(&self, key: &ModelKey, refusal: Refusal, failed: Option<&Error>) -> Error {
        match refusal {
            Refusal::OverBudget(numbers) => {
                let kept = match numbers.kept {
                    0 => String::new(),
                    kept => format!(", of which {} stay with resident models", ByteSize(kept)),
                };
                let others = match numbers.limit < self.budget.limit {
                    true => format!(" while other programs use {}", ByteSize(self.foreign)),
                    false => String::new(),
                };
                let [wanted, limit] = [numbers.wanted, numbers.limit].map(ByteSize);
                let text = format!("{key} needs {wanted} of memory; models may take {limit}{kept}{others}");
                Error::new(Kind::OverBudget, text)
                    .hint("choose a smaller model or variant; `memory` in /api/health says who has it")
            }
            Refusal::OutOfMemory(numbers) => {
                let Numbers { wanted, limit, reserved, .. } = numbers;
                let [wanted, limit, reserved] = [wanted, limit, reserved].map(ByteSize);
                let text = format!(
                    "the device has no memory for {key}, of which {wanted} were expected; models have {reserved} of {limit}"
                );
                let why = failed.map(|error| error.full()).unwrap_or_default();
                Error::new(Kind::OverBudget, text)
                    .cause(why)
                    .hint("choose a smaller model or variant, or set a larger memory.margin")
            }
            Refusal::Busy(numbers) => {
                let [wanted, limit, reserved] = [numbers.wanted, numbers.limit, numbers.reserved].map(ByteSize);
                let text = format!(
                    "{key} needs {wanted} of memory, and other work held {reserved} of {limit} for over {} s",
                    self.limits.wait.as_secs()
                );
                Error::new(Kind::Busy, text).hint("try again later; memory.wait_secs sets the limit")
            }
            Refusal::Slow => {
                let text = format!("{key} was not loaded within {} s", self.limits.wait.as_secs());
                Error::new(Kind::Timeout, text).hint("it goes on loading: try again; memory.wait_secs sets the limit")
            }
            Refusal::LoadFailed => failed.map_or_else(|| Error::internal(format!("{key} could not be loaded")), again),
            Refusal::Closing => gone(),
        }
    }
}

/// The same for everybody who waited; the cause is in the log once.
fn again(error: &Error) -> Error {
    let copy = Error::new(error.kind(), error.message());
    match error.hint_text() {
        Some(hint) => copy.hint(hint),
        None => copy,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn picture(plan: &Plan, budget: &Budget, foreign: u64, at: Duration) -> Ledger {
    let models = plan.models().map(|(key, model)| LedgerModel {
        key: key.clone(),
        state: match model.state {
            State::Loading { .. } | State::Clearing(_) => Phase::Loading,
            State::Ready => Phase::Ready,
            State::Unloading => Phase::Unloading,
        },
        reserved: model.bytes,
        is_measured: plan.seen(key).is_some(),
        measured: plan.seen(key).map_or(0, |seen| seen.most.min(model.bytes)),
        leases: model.leases.len(),
        resident: model.resident.is_some(),
        instead_of: model.need.instead_of.clone(),
        idle_secs: model.is_idle().then(|| at.saturating_sub(model.last_used).as_secs()),
    });
    let models: Vec<LedgerModel> = models.collect();
    Ledger {
        budget: budget.clone(),
        foreign,
        limit: plan.limit(),
        reserved: plan.reserved(),
        measured: models.iter().map(|model| model.measured).sum(),
        models,
        waiting: Waiting {
            live: plan.waiting(Priority::Live),
            interactive: plan.waiting(Priority::Interactive),
            batch: plan.waiting(Priority::Batch),
        },
    }
}

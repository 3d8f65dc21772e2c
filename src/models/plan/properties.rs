//! What the plan promises (`models/plan.rs`), held against a world that does whatever it likes: requests, releases,
//! loads that succeed, cost more, fail or find no memory, deaths, a limit that shrinks and grows, people who leave.

use proptest::prelude::*;

use super::*;
use crate::flow::Priority;

const RULES: Rules =
    Rules { idle: Duration::from_secs(50), wait: Duration::from_secs(200), patience: Duration::from_secs(60) };
const MODELS: u64 = 7;
/// Of the estimate; what a load is measured at is without it.
const WORKSPACE: u64 = 2;

#[derive(Debug, Clone)]
enum Doing {
    Ask {
        model: u64,
        priority: Priority,
        resident: bool,
        yields: bool,
    },
    /// The nth of those who wait or hold a lease leaves.
    Leave(usize),
    /// The nth load ends so.
    LoadEnds(usize, Ending),
    UnloadEnds(usize),
    Dies(usize),
    Grows(usize, u64),
    Limit(u64),
    Pass(u64),
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    AsExpected,
    Unmeasured,
    Larger(u64),
    Fails,
    OutOfMemory,
}

fn doing(limits: std::ops::Range<u64>) -> impl Strategy<Value = Doing> {
    let priority = prop::sample::select(Priority::ALL.to_vec());
    let ending = prop_oneof![
        4 => Just(Ending::AsExpected),
        1 => Just(Ending::Unmeasured),
        1 => (1_u64..4).prop_map(Ending::Larger),
        1 => Just(Ending::Fails),
        1 => Just(Ending::OutOfMemory),
    ];
    prop_oneof![
        8 => (0..MODELS, priority, prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(model, priority, resident, yields)| Doing::Ask { model, priority, resident, yields }),
        5 => any::<usize>().prop_map(Doing::Leave),
        5 => (any::<usize>(), ending).prop_map(|(nth, ending)| Doing::LoadEnds(nth, ending)),
        5 => any::<usize>().prop_map(Doing::UnloadEnds),
        1 => any::<usize>().prop_map(Doing::Dies),
        1 => (any::<usize>(), 1_u64..4).prop_map(|(nth, more)| Doing::Grows(nth, more)),
        1 => limits.prop_map(Doing::Limit),
        2 => (0_u64..40).prop_map(Doing::Pass),
    ]
}

/// Estimates 1 to 7 with what they work in, so that a limit of 10 holds a few.
fn need(model: u64, priority: Priority, resident: bool, yields: bool) -> Need {
    let key = ModelKey { model: model.to_string(), variant: "only".to_owned(), provider: "cpu".to_owned() };
    let workspace_bytes = WORKSPACE.min(model);
    let estimate_bytes = model + 1 - workspace_bytes;
    let yields = yields && priority == Priority::Batch;
    Need { key, estimate_bytes, workspace_bytes, priority, resident, yields, instead_of: None }
}

/// What the world knows by the plan's actions alone.
struct World {
    plan: Plan,
    at: Duration,
    limit: u64,
    next: u64,
    waiting: BTreeMap<Ticket, Need>,
    leased: BTreeMap<Ticket, Need>,
    asked_to_yield: BTreeSet<Ticket>,
    memory: BTreeMap<ModelKey, Taken>,
}

#[derive(Debug, Clone, Copy)]
struct Taken {
    bytes: u64,
    now: Now,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Now {
    Loading,
    Ready,
    Unloading,
}

impl World {
    fn new(limit: u64) -> World {
        World {
            plan: Plan::new(RULES, limit, BTreeMap::new()),
            at: Duration::ZERO,
            limit,
            next: 0,
            waiting: BTreeMap::new(),
            leased: BTreeMap::new(),
            asked_to_yield: BTreeSet::new(),
            memory: BTreeMap::new(),
        }
    }

    fn those(&self, now: Now) -> Vec<ModelKey> {
        self.memory.iter().filter(|(_, taken)| taken.now == now).map(|(key, _)| key.clone()).collect()
    }

    fn taken(&self) -> u64 {
        self.memory.values().map(|taken| taken.bytes).sum()
    }

    fn leaving(&self) -> u64 {
        self.memory.values().filter(|taken| taken.now == Now::Unloading).map(|taken| taken.bytes).sum()
    }

    fn is_leased(&self, key: &ModelKey) -> bool {
        self.leased.values().any(|need| need.key == *key)
    }

    fn does(&mut self, doing: Doing) {
        match doing {
            Doing::Ask { model, priority, resident, yields } => {
                self.ask(need(model, priority, resident, yields));
            }
            Doing::Leave(nth) => {
                let tickets: Vec<Ticket> = self.waiting.keys().chain(self.leased.keys()).copied().collect();
                if let Some(ticket) = pick(&tickets, nth) {
                    self.leave(ticket);
                }
            }
            Doing::LoadEnds(nth, ending) => {
                if let Some(key) = pick(&self.those(Now::Loading), nth) {
                    self.load_ends(key, ending);
                }
            }
            Doing::UnloadEnds(nth) => {
                if let Some(key) = pick(&self.those(Now::Unloading), nth) {
                    self.unload_ends(key);
                }
            }
            Doing::Dies(nth) => {
                if let Some(key) = pick(&self.those(Now::Ready), nth) {
                    self.leased.retain(|_, need| need.key != key);
                    self.step(Event::Died(key));
                }
            }
            Doing::Grows(nth, more) => {
                if let Some(key) = pick(&self.those(Now::Ready), nth) {
                    let taken = self.memory.get_mut(&key).unwrap();
                    taken.bytes += more;
                    let bytes = taken.bytes;
                    self.step(Event::Measured(key, bytes));
                }
            }
            Doing::Limit(limit) => {
                self.limit = limit;
                self.step(Event::Limit(limit));
            }
            Doing::Pass(secs) => {
                self.at += Duration::from_secs(secs);
                self.step(Event::Tick);
            }
        }
    }

    fn ask(&mut self, need: Need) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, need.clone());
        self.step(Event::Asked(ticket, need));
        ticket
    }

    fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.leased.remove(&ticket);
        self.step(Event::Gone(ticket));
    }

    /// If it has yielded it does not ask again, which it would as an older one.
    fn leave_for_good(&mut self, ticket: Ticket) {
        self.leave(ticket);
        self.plan.yielded.clear();
    }

    fn load_ends(&mut self, key: ModelKey, ending: Ending) {
        let taken = self.memory.get_mut(&key).unwrap();
        let measured = match ending {
            Ending::AsExpected => Some(taken.bytes),
            Ending::Unmeasured => None,
            Ending::Larger(more) => Some(taken.bytes + more),
            Ending::Fails | Ending::OutOfMemory => {
                let failure = if matches!(ending, Ending::Fails) { Failure::Other } else { Failure::OutOfMemory };
                self.memory.remove(&key);
                return self.step(Event::LoadFailed(key, failure));
            }
        };
        taken.bytes = measured.unwrap_or(taken.bytes);
        taken.now = Now::Ready;
        let works_in = self.plan.models[&key].need.workspace_bytes;
        self.step(Event::Loaded(key, measured.map(|bytes| bytes.saturating_sub(works_in))));
    }

    fn unload_ends(&mut self, key: ModelKey) {
        self.memory.remove(&key);
        self.step(Event::Unloaded(key));
    }

    fn step(&mut self, event: Event) {
        let closing = matches!(event, Event::Close);
        for action in self.plan.step(self.at, event) {
            match action {
                Action::Grant(ticket, key) => {
                    let need = self.waiting.remove(&ticket).expect("granted to somebody who waits");
                    assert_eq!(need.key, key);
                    assert_eq!(self.memory[&key].now, Now::Ready, "only what is there is lent");
                    self.leased.insert(ticket, need);
                }
                Action::Load(need) => {
                    let bytes = self.plan.cost(&need);
                    let before = self.memory.insert(need.key, Taken { bytes, now: Now::Loading });
                    assert!(before.is_none(), "one load of a model at a time, and only of one that is not there");
                    assert!(self.taken() <= self.limit, "{} of {} are reserved by a load", self.taken(), self.limit);
                }
                Action::Unload(key) => {
                    assert!(!self.is_leased(&key), "a leased model is never unloaded");
                    let taken = self.memory.get_mut(&key).unwrap();
                    assert_eq!(taken.now, Now::Ready);
                    taken.now = Now::Unloading;
                }
                Action::AskToYield(ticket) => {
                    let need = &self.leased[&ticket];
                    assert!(need.yields, "only those are asked who can");
                    assert!(self.asked_to_yield.insert(ticket), "and only once");
                    let is_urgent = |other: &Need| other.priority < need.priority;
                    assert!(self.taken() > self.limit || self.waiting.values().any(is_urgent));
                }
                Action::Refuse(ticket, _, refusal) => {
                    assert!(self.waiting.remove(&ticket).is_some(), "refused who waits");
                    assert!(closing || refusal != Refusal::Closing);
                }
            }
        }
        self.holds();
    }

    fn holds(&self) {
        // What a second try has reserved is in no memory, so the plan may count more than there is, never less.
        assert!(self.plan.reserved() >= self.taken());
        let waits: Vec<Ticket> = self.plan.line.iter().map(|waiter| waiter.ticket).collect();
        assert_eq!(waits.iter().copied().collect::<BTreeSet<_>>(), self.waiting.keys().copied().collect());
        assert!(self.plan.line.is_sorted_by_key(|waiter| (waiter.rank, waiter.since, waiter.ticket)));
        assert!(self.plan.line.iter().all(|waiter| self.at < waiter.came + RULES.wait), "every wait ends");
        let is_promoted =
            |waiter: &Waiter| waiter.need.priority == Priority::Batch && waiter.since + RULES.patience <= self.at;
        for waiter in &self.plan.line {
            let rank = if is_promoted(waiter) { Priority::Interactive } else { waiter.need.priority };
            assert_eq!(waiter.rank, rank, "batch work alone is promoted, when it is due, and never before live work");
        }

        let excess = (self.taken() - self.leaving()).saturating_sub(self.limit);
        if excess > 0 {
            // Whatever could be asked for memory has been asked; the rest is in use or on its way and drains.
            let wanted = |key: &ModelKey| self.waiting.values().any(|need| need.key == *key);
            for (key, _) in self.memory.iter().filter(|(_, taken)| taken.now == Now::Ready) {
                let mut leases = self.leased.iter().filter(|(_, need)| need.key == *key).peekable();
                if leases.peek().is_none() {
                    assert!(wanted(key), "{key} is idle and stays although {excess} are lacking");
                } else if self.plan.draining.contains(key) && leases.clone().all(|(_, need)| need.yields) {
                    assert!(leases.all(|(ticket, _)| self.asked_to_yield.contains(ticket)));
                }
            }
            let draining: u64 = self.plan.draining.iter().map(|key| self.plan.models[key].bytes).sum();
            assert!(draining >= excess, "{excess} are lacking, {draining} drain");
        }
    }

    /// All loads and unloads end well, and all leases; nothing new is asked, and no time passes.
    fn comes_to_rest(&mut self) {
        for _ in 0..500 {
            if let Some(key) = pick(&self.those(Now::Unloading), 0) {
                self.unload_ends(key);
            } else if let Some(key) = pick(&self.those(Now::Loading), 0) {
                self.load_ends(key, Ending::AsExpected);
            } else if let Some(ticket) = self.leased.keys().next().copied() {
                self.leave(ticket);
            } else {
                return;
            }
        }
        panic!("it goes on and on: {:?}", self.plan);
    }
}

fn pick<T: Clone>(list: &[T], nth: usize) -> Option<T> {
    (!list.is_empty()).then(|| list[nth % list.len()].clone())
}

/// Asks the environment, as a test may: `scripts/test --long` tries fifty times as many.
#[cfg(test)]
fn cases() -> u32 {
    if std::env::var_os("VIGIA_TEST_LONG").is_some() { 20_000 } else { 400 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_promises_hold_and_everybody_is_answered_in_the_end(
        limit in 3_u64..16, doings in prop::collection::vec(doing(0..16), 0..120),
    ) {
        let mut world = World::new(limit);
        for doing in doings {
            world.does(doing);
        }
        world.comes_to_rest();
        prop_assert!(world.waiting.is_empty(), "no deadlock: {:?} still wait: {:?}", world.waiting, world.plan);
        prop_assert!(world.taken() <= world.limit);
        prop_assert_eq!(world.plan.reserved(), world.taken());

        world.step(Event::Close);
        world.comes_to_rest();
        prop_assert_eq!(world.plan.reserved(), 0, "everything comes back");
        prop_assert!(world.memory.is_empty());
    }

    /// The first in the line waits for the leases it found, never for one that was given after it came, however many
    /// come and never leave.
    #[test]
    fn nobody_behind_holds_up_the_first_in_the_line(
        before in prop::collection::vec(doing(10..11), 0..60),
        model in 0..MODELS,
        priority in prop::sample::select(Priority::ALL.to_vec()),
        after in prop::collection::vec((0..MODELS, prop::sample::select(Priority::ALL.to_vec()), any::<bool>()), 40),
    ) {
        let mut world = World::new(10);
        before.into_iter().for_each(|doing| world.does(doing));
        // Those ahead of it leave, so that it is the first.
        let ahead: Vec<Ticket> = world.waiting.keys().copied().collect();
        ahead.into_iter().for_each(|ticket| world.leave(ticket));
        world.plan.yielded.clear();
        let found: Vec<Ticket> = world.leased.keys().copied().collect();
        let first = world.ask(need(model, priority, false, false));

        let mut found = found.into_iter();
        for (model, other, yields) in after {
            world.ask(need(model, other.max(priority), false, yields));
            if let Some(key) = pick(&world.those(Now::Unloading), 0) {
                world.unload_ends(key);
            } else if let Some(key) = pick(&world.those(Now::Loading), 0) {
                world.load_ends(key, Ending::Unmeasured);
            } else if let Some(ticket) = found.next() {
                world.leave_for_good(ticket);
            }
        }
        found.for_each(|ticket| world.leave_for_good(ticket));
        for _ in 0..100 {
            if let Some(key) = pick(&world.those(Now::Unloading), 0) {
                world.unload_ends(key);
            } else if let Some(key) = pick(&world.those(Now::Loading), 0) {
                world.load_ends(key, Ending::Unmeasured);
            }
        }
        prop_assert!(!world.waiting.contains_key(&first), "it still waits: {:?}", world.plan);
    }

    /// Batch work that has lost its patience waits for interactive work that is older, and for none that comes later,
    /// however much comes and never leaves, once no live work is there.
    #[test]
    fn no_interactive_work_starves_batch_work(
        before in prop::collection::vec(doing(10..11), 0..60),
        model in 0..MODELS,
        after in prop::collection::vec((0..MODELS, any::<bool>(), any::<bool>()), 40),
    ) {
        let mut world = World::new(10);
        before.into_iter().for_each(|doing| world.does(doing));
        let batch = world.ask(need(model, Priority::Batch, false, true));
        world.does(Doing::Pass(RULES.patience.as_secs()));
        let ahead: Vec<Ticket> = world.waiting.keys().filter(|ticket| **ticket < batch).copied().collect();
        ahead.into_iter().for_each(|ticket| world.leave(ticket));
        let is_live = |(_, need): &(&Ticket, &Need)| need.priority == Priority::Live;
        let live: Vec<Ticket> = world.leased.iter().filter(is_live).map(|(ticket, _)| *ticket).collect();
        live.into_iter().for_each(|ticket| world.leave(ticket));
        while let Some(key) = pick(&world.those(Now::Loading), 0) {
            world.load_ends(key, Ending::Unmeasured);
        }
        world.plan.yielded.clear();

        let mut found = world.leased.keys().copied().collect::<Vec<_>>().into_iter();
        for (model, is_batch, yields) in after {
            let priority = if is_batch { Priority::Batch } else { Priority::Interactive };
            world.ask(need(model, priority, false, yields));
            if let Some(key) = pick(&world.those(Now::Unloading), 0) {
                world.unload_ends(key);
            } else if let Some(key) = pick(&world.those(Now::Loading), 0) {
                world.load_ends(key, Ending::Unmeasured);
            } else if let Some(ticket) = found.next() {
                world.leave_for_good(ticket);
            }
        }
        found.for_each(|ticket| world.leave_for_good(ticket));
        for _ in 0..100 {
            if let Some(key) = pick(&world.those(Now::Unloading), 0) {
                world.unload_ends(key);
            } else if let Some(key) = pick(&world.those(Now::Loading), 0) {
                world.load_ends(key, Ending::Unmeasured);
            }
        }
        prop_assert!(!world.waiting.contains_key(&batch), "it still waits: {:?}", world.plan);
    }
}

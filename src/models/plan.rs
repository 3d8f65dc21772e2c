//! Which model may be in memory: the table of models, the line of those who wait, and what to do next. A pure state
//! machine: it is told what happened and when, and answers with actions; it knows no clock, task or device.
//!
//! What holds after every step:
//!
//! 1. What is reserved is at most the limit. Two kinds of news may break that: a model turns out larger than its
//!    estimate, or others use more of the device. Then, in the same step, what is idle leaves and leases that yield
//!    are asked to, until the excess is covered; what is still missing drains (no new lease). Nothing is reserved
//!    until all is within the limit again.
//! 2. A leased model is never unloaded. (A model that died is only waited for.)
//! 3. Those who wait are served by rank, then by age. Each takes what those before it have left over, and claims
//!    the models that will have to leave for it: nobody behind it gets a new lease of these, or memory it counts on.
//!    So the first in the line waits at most for the leases it found, one unload and one load, however many small
//!    ones come after it.
//! 4. The rank is the priority, but batch work that has waited for `Rules::patience` ranks with interactive work: two
//!    models that do not fit beside each other would otherwise be swapped for ever in front of it. What it was lent so
//!    it keeps until it is done, except from live work. It never comes before live work, and while live work uses what
//!    it needs it claims nothing, so that it holds up nobody whom live work does not.
//! 5. Who yields and asks again is as old as before.
//! 6. Every wait ends: granted, refused because it can never fit, failed with its load, or at `Rules::wait`.

#[cfg(test)]
mod properties;
mod room;
mod serve;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    flow::Priority,
    models::lease::{ModelKey, Need, Seen, Ticket},
};

pub(super) use table::{Model, State};

#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// A model that nobody has used for this long leaves, unless it is resident.
    pub(super) idle: Duration,
    /// Nobody waits longer.
    pub(super) wait: Duration,
    /// Batch work that has waited for so long ranks with interactive work.
    pub(super) patience: Duration,
}

/// What happened.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Asked(Ticket, Need),
    /// Whoever held this ticket has left the line or dropped the lease.
    Gone(Ticket),
    /// With what it takes, where that could be measured.
    Loaded(ModelKey, Option<u64>),
    /// Whatever it took has been given back.
    LoadFailed(ModelKey, Failure),
    Unloaded(ModelKey),
    /// The engine ended by itself; its memory may still be on its way back.
    Died(ModelKey),
    /// It has been seen to take this much.
    Measured(ModelKey, u64),
    /// Models may take this much from now on.
    Limit(u64),
    /// Time has passed.
    Tick,
    /// Nothing is given any more, everything leaves.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    OutOfMemory,
    Other,
}

/// What to do about it, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Grant(Ticket, ModelKey),
    /// The memory for it is reserved.
    Load(Need),
    Unload(ModelKey),
    AskToYield(Ticket),
    Refuse(Ticket, ModelKey, Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It cannot fit, whoever leaves.
    OverBudget(Numbers),
    /// The device has no memory for it although the ledger has.
    OutOfMemory(Numbers),
    /// Others held the memory for too long.
    Busy(Numbers),
    /// Its own load took too long.
    Slow,
    LoadFailed,
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) wanted: u64,
    pub(super) limit: u64,
    pub(super) reserved: u64,
    /// Held by residents that do not leave for this work.
    pub(super) kept: u64,
}

#[derive(Debug)]
pub(super) struct Plan {
    rules: Rules,
    limit: u64,
    models: BTreeMap<ModelKey, Model>,
    /// By rank, then by age.
    line: Vec<Waiter>,
    /// Leases that were given back because they were asked for, until they are asked for again.
    yielded: BTreeMap<ModelKey, Yielded>,
    /// Costs that have been measured, now or in an earlier life.
    known: BTreeMap<ModelKey, Seen>,
    /// Models in use that have to leave because more is reserved than there is.
    draining: BTreeSet<ModelKey>,
    closing: bool,
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    need: Need,
    came: Duration,
    /// When it came first, if it has yielded since then.
    since: Duration,
    /// Its priority, or better: see the head.
    rank: Priority,
    /// In use, and to leave for this one. Kept from step to step, so that it does not wait for one and then for
    /// another in turns.
    claims: BTreeSet<ModelKey>,
}

#[derive(Debug)]
struct Yielded {
    at: Duration,
    /// Of the oldest of them.
    since: Duration,
}

impl Waiter {
    fn is_promoted(&self) -> bool {
        self.rank < self.need.priority
    }
}

impl Plan {
    pub(super) fn new(rules: Rules, limit: u64, known: BTreeMap<ModelKey, Seen>) -> Plan {
        Plan {
            rules,
            limit,
            models: BTreeMap::new(),
            line: Vec::new(),
            yielded: BTreeMap::new(),
            known,
            draining: BTreeSet::new(),
            closing: false,
            actions: Vec::new(),
        }
    }

    /// `at` counts from any one moment and never goes back.
    pub(super) fn step(&mut self, at: Duration, event: Event) -> Vec<Action> {
        match event {
            Event::Asked(ticket, need) => self.asked(at, ticket, need),
            Event::Gone(ticket) => self.gone(at, ticket),
            Event::Loaded(key, measured) => self.loaded(at, &key, measured),
            Event::LoadFailed(key, failure) => self.load_failed(&key, failure),
            Event::Unloaded(key) => self.unloaded(&key),
            Event::Died(key) => self.died(&key),
            Event::Measured(key, bytes) => self.measured(&key, None, bytes),
            Event::Limit(limit) => self.limit = limit,
            Event::Tick => (),
            Event::Close => self.close(),
        }
        self.settle(at);
        std::mem::take(&mut self.actions)
    }

    /// Takes out every variant of a model, unless somebody uses it or waits for it: then nothing is done.
    pub(super) fn take_out(&mut self, model: &str) -> Result<Vec<Action>, TakeOut> {
        let found = || self.models.iter().filter(|(key, _)| key.model == model);
        if found().next().is_none() {
            return Err(TakeOut::NotLoaded);
        }
        let wanted = self.line.iter().any(|waiter| waiter.need.key.model == model);
        let busy = |it: &Model| !(it.is_idle() || it.state == State::Unloading);
        if wanted || found().any(|(_, it)| busy(it)) {
            return Err(TakeOut::InUse);
        }
        let idle: Vec<ModelKey> = found().filter(|(_, it)| it.is_idle()).map(|(key, _)| key.clone()).collect();
        idle.iter().for_each(|key| self.unload(key));
        Ok(std::mem::take(&mut self.actions))
    }

    /// When something falls due although nothing happens.
    pub(super) fn next_tick(&self) -> Option<Duration> {
        let waits = self.line.iter().map(|waiter| waiter.came + self.rules.wait);
        let promotions = self.line.iter().filter(|waiter| waiter.rank == Priority::Batch);
        let waits = waits.chain(promotions.map(|waiter| waiter.since + self.rules.patience));
        let retiring = self.models.values().filter(|model| model.is_idle() && model.resident.is_none());
        waits.chain(retiring.map(|model| model.last_used + self.rules.idle)).min()
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn models(&self) -> impl Iterator<Item = (&ModelKey, &Model)> {
        self.models.iter()
    }

    pub(super) fn model(&self, key: &ModelKey) -> Option<&Model> {
        self.models.get(key)
    }

    pub(super) fn waiting(&self, priority: Priority) -> usize {
        self.line.iter().filter(|waiter| waiter.need.priority == priority).count()
    }

    pub(super) fn reserved(&self) -> u64 {
        self.models.values().map(|model| model.bytes).fold(0, u64::saturating_add)
    }

    /// What a model takes once it is loaded, as far as that is known, with what it works in; more where more was seen.
    pub(super) fn cost(&self, need: &Need) -> u64 {
        let seen = self.known.get(&need.key).copied().unwrap_or_default();
        let loaded = seen.loaded.unwrap_or(need.estimate_bytes);
        loaded.saturating_add(need.workspace_bytes).max(seen.most)
    }

    /// The most that a model was ever seen to take.
    pub(super) fn seen(&self, key: &ModelKey) -> Option<Seen> {
        self.known.get(key).copied()
    }

    fn asked(&mut self, at: Duration, ticket: Ticket, need: Need) {
        let yielded = if need.yields { self.yielded.remove(&need.key) } else { None };
        let since = yielded.filter(|yielded| at < yielded.at + self.rules.wait).map_or(at, |yielded| yielded.since);
        let waiter = Waiter { ticket, rank: need.priority, need, came: at, since, claims: BTreeSet::new() };
        if self.closing {
            return self.refuse(&waiter, Refusal::Closing);
        }
        self.line.push(waiter);
    }

    fn gone(&mut self, at: Duration, ticket: Ticket) {
        self.line.retain(|waiter| waiter.ticket != ticket);
        for (key, model) in &mut self.models {
            let Some(held) = model.leases.remove(&ticket) else { continue };
            model.last_used = at;
            if held.asked {
                let yielded = self.yielded.entry(key.clone()).or_insert(Yielded { at, since: held.since });
                *yielded = Yielded { at, since: held.since.min(yielded.since) };
            }
        }
    }

    fn loaded(&mut self, at: Duration, key: &ModelKey, measured: Option<u64>) {
        let Some(model) = self.models.get_mut(key).filter(|model| model.is_loading()) else { return };
        model.state = State::Ready;
        model.last_used = at;
        if let Some(bytes) = measured {
            self.measured(key, Some(bytes), bytes);
        }
    }

    /// The most that has ever been seen is what the next load has to reckon with. `loaded`: it has not worked yet.
    fn measured(&mut self, key: &ModelKey, loaded: Option<u64>, now: u64) {
        let ready = |model: &&mut Model| model.state == State::Ready;
        let Some(need) = self.models.get_mut(key).filter(ready).map(|model| model.need.clone()) else { return };
        self.known.entry(key.clone()).or_default().add(loaded, now);
        let bytes = self.cost(&need);
        if let Some(model) = self.models.get_mut(key) {
            model.bytes = bytes;
        }
    }

    fn load_failed(&mut self, key: &ModelKey, failure: Failure) {
        let Some(State::Loading { again }) = self.models.get(key).map(|model| model.state.clone()) else { return };
        let asker = self.line.iter().find(|waiter| waiter.need.key == *key).map(|waiter| waiter.need.priority);
        if let (Failure::OutOfMemory, false, Some(asker)) = (failure, again, asker) {
            let idle = |model: &Model| model.is_idle() && !model.is_kept_from(asker);
            let idle: Vec<ModelKey> =
                self.models.iter().filter(|(_, model)| idle(model)).map(|(key, _)| key.clone()).collect();
            idle.iter().for_each(|key| self.unload(key));
            let leaving = self.models.iter().filter(|(_, model)| model.state == State::Unloading);
            let leaving: BTreeSet<ModelKey> = leaving.map(|(key, _)| key.clone()).collect();
            if let Some(model) = self.models.get_mut(key).filter(|_| !leaving.is_empty()) {
                model.state = State::Clearing(leaving);
                return;
            }
        }
        for waiter in std::mem::take(&mut self.line) {
            if waiter.need.key != *key {
                self.line.push(waiter);
            } else if failure == Failure::OutOfMemory {
                self.refuse(&waiter, Refusal::OutOfMemory(self.numbers(&waiter.need)));
            } else {
                self.refuse(&waiter, Refusal::LoadFailed);
            }
        }
        self.models.remove(key);
    }

    fn unloaded(&mut self, key: &ModelKey) {
        if self.models.get(key).is_none_or(|model| model.state != State::Unloading) {
            return;
        }
        self.models.remove(key);
        for model in self.models.values_mut() {
            if let State::Clearing(leaving) = &mut model.state {
                leaving.remove(key);
            }
        }
    }

    fn died(&mut self, key: &ModelKey) {
        if let Some(model) = self.models.get_mut(key).filter(|model| model.state == State::Ready) {
            model.leases.clear();
            self.unload(key);
        }
    }

    fn close(&mut self) {
        self.closing = true;
        for waiter in std::mem::take(&mut self.line) {
            self.refuse(&waiter, Refusal::Closing);
        }
    }

    fn unload(&mut self, key: &ModelKey) {
        if let Some(model) = self.models.get_mut(key) {
            model.state = State::Unloading;
            self.actions.push(Action::Unload(key.clone()));
        }
    }

    fn refuse(&mut self, waiter: &Waiter, refusal: Refusal) {
        self.actions.push(Action::Refuse(waiter.ticket, waiter.need.key.clone(), refusal));
    }

    fn numbers(&self, need: &Need) -> Numbers {
        Numbers { wanted: self.cost(need), limit: self.limit, reserved: self.reserved(), kept: self.kept_from(need) }
    }

    fn kept_from(&self, need: &Need) -> u64 {
        let others = self.models.iter().filter(|(key, _)| **key != need.key);
        let kept = others.filter(|(_, model)| model.is_kept_from(need.priority));
        kept.map(|(_, model)| model.bytes).fold(0, u64::saturating_add)
    }
}

/// Why a model is not taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakeOut {
    NotLoaded,
    InUse,
}

//! After every event: what is too much leaves, then the line is walked from its head, each taking what it needs of
//! what those before it have left.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    flow::Priority,
    models::{
        lease::ModelKey,
        plan::{
            Action, Plan, Refusal, Waiter,
            room::{Candidate, Ease, Leaving, Room, enough, enough_or_all, value},
            table::{Held, Model, State},
        },
    },
};

impl Plan {
    pub(super) fn settle(&mut self, at: Duration) {
        self.refuse_late(at);
        self.promote(at);
        while self.walk(at) {}
        self.retire(at);
    }

    /// True when something came free on the way, so that the line has to be walked again.
    fn walk(&mut self, at: Duration) -> bool {
        let wanted: BTreeSet<ModelKey> = self.line.iter().map(|waiter| waiter.need.key.clone()).collect();
        // What is not in memory and wanted by nobody any more.
        self.models.retain(|key, model| !matches!(model.state, State::Clearing(_)) || wanted.contains(key));

        let mut room = self.room();
        if room.shortage(0) > 0 {
            // A second try that waits for others to leave holds no memory yet: whoever wants it starts anew.
            self.models.retain(|_, model| !matches!(model.state, State::Clearing(_)));
            room = self.room();
        }
        self.shed_excess(&wanted, &mut room);
        for mut waiter in std::mem::take(&mut self.line) {
            if !self.serve(at, &mut waiter, &wanted, &mut room) {
                self.line.push(waiter);
            }
        }
        self.load_again(&room)
    }

    fn refuse_late(&mut self, at: Duration) {
        for waiter in std::mem::take(&mut self.line) {
            if at < waiter.came + self.rules.wait {
                self.line.push(waiter);
                continue;
            }
            let is_loading = self.models.get(&waiter.need.key).is_some_and(Model::is_loading);
            let refusal = if is_loading { Refusal::Slow } else { Refusal::Busy(self.numbers(&waiter.need)) };
            self.refuse(&waiter, refusal);
        }
    }

    fn promote(&mut self, at: Duration) {
        for waiter in &mut self.line {
            if waiter.rank == Priority::Batch && at >= waiter.since + self.rules.patience {
                waiter.rank = Priority::Interactive;
            }
        }
        self.line.sort_by_key(|waiter| (waiter.rank, waiter.since, waiter.ticket));
    }

    fn room(&self) -> Room {
        let leaving = self.models.values().filter(|model| model.state == State::Unloading);
        let leaving: i128 = leaving.map(|model| i128::from(model.bytes)).sum();
        let reserved: i128 = self.models.values().map(|model| i128::from(model.bytes)).sum();
        let free = i128::from(self.limit) - reserved;
        Room { free, coming: leaving, claimed: BTreeSet::new(), awaited: BTreeSet::new() }
    }

    /// More is reserved than there is: what can leave at once does, before anybody is served. Residents too: the
    /// device would otherwise run out of memory.
    fn shed_excess(&mut self, wanted: &BTreeSet<ModelKey>, room: &mut Room) {
        if room.shortage(0) <= 0 {
            self.draining.clear();
            return;
        }
        let staying = self.models.iter().filter(|(_, model)| model.state != State::Unloading);
        let mut candidates: Vec<_> = staying
            .map(|(key, model)| {
                let is_wanted = wanted.contains(key);
                let ease = match model.is_idle() {
                    true if is_wanted => Ease::Wanted,
                    true => Ease::Idle,
                    false if model.yields_to(|held| held.yields) => Ease::Yields,
                    false => Ease::InUse,
                };
                let order = (model.resident.is_some(), value(model, is_wanted));
                Candidate { key: key.clone(), bytes: model.bytes, ease, order }
            })
            .collect();
        let mut leaving = Leaving::new();
        let mut shortage = room.shortage(0);
        // What can leave at once does, even where what drains would be enough later on. What drains already goes on, so
        // that a new lease elsewhere does not let it off.
        let turn = |candidate: &Candidate<_>| match candidate.ease {
            Ease::Idle => 0,
            _ if self.draining.contains(&candidate.key) => 1,
            Ease::Yields => 2,
            Ease::Wanted => 3,
            Ease::InUse => 4,
        };
        for now in 0..=4 {
            let those = candidates.extract_if(.., |candidate| turn(candidate) == now).collect();
            let those = enough_or_all(shortage, those);
            shortage -= those.values().map(|(bytes, _)| i128::from(*bytes)).sum::<i128>();
            leaving.extend(those);
        }
        let in_use = leaving.iter().filter(|(_, (_, ease))| matches!(ease, Ease::Yields | Ease::InUse));
        self.draining = in_use.map(|(key, _)| key.clone()).collect();
        for (key, (_, ease)) in &leaving {
            match ease {
                Ease::Idle | Ease::Wanted => self.unload(key),
                Ease::Yields => self.ask_to_yield(key),
                Ease::InUse => (),
            }
        }
        room.cover(leaving);
    }

    /// What the device had no memory for is tried once more, when all that was idle has left. Where somebody has
    /// claimed its reservation meanwhile, that goes at once, for nothing is behind it; then it is true.
    fn load_again(&mut self, room: &Room) -> bool {
        let cleared = |model: &Model| matches!(&model.state, State::Clearing(leaving) if leaving.is_empty());
        let cleared = self.models.iter().filter(|(_, model)| cleared(model));
        let cleared: Vec<ModelKey> = cleared.map(|(key, _)| key.clone()).collect();
        let mut came_free = false;
        for key in cleared {
            if room.claimed.contains(&key) {
                self.models.remove(&key);
                came_free = true;
            } else if let Some(model) = self.models.get_mut(&key).filter(|_| room.free >= 0) {
                model.state = State::Loading { again: true };
                self.actions.push(Action::Load(model.need.clone()));
            }
        }
        came_free
    }

    /// True when this one is done with waiting.
    fn serve(&mut self, at: Duration, waiter: &mut Waiter, wanted: &BTreeSet<ModelKey>, room: &mut Room) -> bool {
        let key = &waiter.need.key;
        let is_leaving = match self.models.get_mut(key) {
            // 1. It is there, and nobody ahead needs it to leave.
            Some(model) if model.state == State::Ready && !room.claimed.contains(key) => {
                model.lend(at, waiter);
                self.actions.push(Action::Grant(waiter.ticket, key.clone()));
                return true;
            }
            // 2. It is on its way, or leaves if somebody ahead gets what he wants. If it leaves in any case, this one
            //    needs room for it anew, and has its place in the line for that too.
            Some(model) if model.state != State::Unloading && !self.draining.contains(key) => return false,
            Some(_) => true,
            None => false,
        };
        // 3. It can never fit.
        let numbers = self.numbers(&waiter.need);
        if numbers.wanted > numbers.limit.saturating_sub(numbers.kept) {
            self.refuse(waiter, Refusal::OverBudget(numbers));
            return true;
        }
        // 4. Somebody ahead has it loaded.
        if !room.awaited.insert(key.clone()) {
            return false;
        }
        // 5. It fits.
        let bytes = i128::from(numbers.wanted);
        if !is_leaving && bytes <= room.free {
            self.models.insert(key.clone(), Model::new(at, waiter.need.clone(), numbers.wanted));
            self.actions.push(Action::Load(waiter.need.clone()));
            room.free -= bytes;
            return false;
        }
        // 6. It will fit when others have left. If those ahead have taken all there is, it takes nothing: it is not
        //    its turn.
        let leaving = if room.shortage(bytes) <= 0 {
            Some(Leaving::new())
        } else {
            self.leaving_for(waiter, wanted, bytes, room)
        };
        let Some(leaving) = leaving else {
            waiter.claims.clear();
            return false;
        };
        // It may count on what drains too, and goes on doing so when that need not drain any more.
        waiter.claims = leaving.keys().chain(&self.draining).cloned().collect();
        self.make_way(&leaving);
        room.promise(bytes, leaving);
        false
    }

    /// Who leaves for a waiter. Residents only if nothing else is enough, even after a while.
    fn leaving_for(&self, waiter: &Waiter, wanted: &BTreeSet<ModelKey>, bytes: i128, room: &Room) -> Option<Leaving> {
        let asker = waiter.need.priority;
        let is_live = |model: &Model| !model.is_idle() && model.priority() == Priority::Live;
        let may_leave = |key: &ModelKey, model: &Model| {
            let is_claimed = room.claimed.contains(key) || waiter.is_promoted() && is_live(model);
            model.state != State::Unloading && !model.is_kept_from(asker) && !is_claimed
        };
        let candidates = self.models.iter().filter(|(key, model)| may_leave(key, model)).map(|(key, model)| {
            let ease = match model.is_idle() {
                true => Ease::Idle,
                false if model.yields_to(|held| makes_way(held, asker)) => Ease::Yields,
                false => Ease::InUse,
            };
            // Once claimed, a model in use stays the one that is waited for, unless idle ones are enough.
            let is_new = ease != Ease::Idle && !waiter.claims.contains(key);
            let is_wanted = wanted.contains(key);
            let order = (model.resident.is_some(), ease != Ease::Idle, is_new, ease, value(model, is_wanted));
            Candidate { key: key.clone(), bytes: model.bytes, ease, order }
        });
        enough(room.shortage(bytes), candidates.collect())
    }

    /// Nothing idle leaves, and nobody is asked, before that is enough: a wait for others may end in another way.
    fn make_way(&mut self, leaving: &Leaving) {
        let hardest = leaving.values().map(|(_, ease)| *ease).max();
        for key in leaving.keys() {
            match hardest {
                Some(Ease::Idle) => self.unload(key),
                Some(Ease::Yields) => self.ask_to_yield(key),
                _ => (),
            }
        }
    }

    fn ask_to_yield(&mut self, key: &ModelKey) {
        let Some(model) = self.models.get_mut(key) else { return };
        for (ticket, held) in model.leases.iter_mut().filter(|(_, held)| !held.asked) {
            held.asked = true;
            self.actions.push(Action::AskToYield(*ticket));
        }
    }

    fn retire(&mut self, at: Duration) {
        let is_due = |model: &Model| model.resident.is_none() && at >= model.last_used + self.rules.idle;
        let due = self.models.iter().filter(|(_, model)| model.is_idle() && (self.closing || is_due(model)));
        let due: Vec<ModelKey> = due.map(|(key, _)| key.clone()).collect();
        due.iter().for_each(|key| self.unload(key));
    }
}

/// Batch work makes way for whoever is more urgent, if it can.
fn makes_way(held: &Held, asker: Priority) -> bool {
    held.yields && held.rank > asker
}

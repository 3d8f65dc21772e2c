//! One line of the table: a model that has memory reserved, and who holds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    flow::Priority,
    models::{
        lease::{ModelKey, Need, Ticket},
        plan::Waiter,
    },
};

#[derive(Debug)]
pub(in crate::models) struct Model {
    /// Of whoever had it loaded.
    pub(in crate::models) need: Need,
    /// Reserved.
    pub(in crate::models) bytes: u64,
    pub(in crate::models) state: State,
    pub(in crate::models) leases: BTreeMap<Ticket, Held>,
    pub(in crate::models) last_used: Duration,
    /// Of the last lease.
    pub(super) last_priority: Priority,
    /// The highest priority that wanted it to stay.
    pub(in crate::models) resident: Option<Priority>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::models) enum State {
    /// `again`: the device had no memory for it once already.
    Loading {
        again: bool,
    },
    /// Not in memory: it is loaded again when these have left.
    Clearing(BTreeSet<ModelKey>),
    Ready,
    /// Its memory is on its way back.
    Unloading,
}

#[derive(Debug)]
pub(in crate::models) struct Held {
    /// With which it was lent.
    pub(super) rank: Priority,
    /// How long whoever holds it had been waiting.
    pub(super) since: Duration,
    pub(super) yields: bool,
    /// To yield; once is enough.
    pub(super) asked: bool,
}

impl Model {
    pub(super) fn new(at: Duration, need: Need, bytes: u64) -> Model {
        Model {
            bytes,
            state: State::Loading { again: false },
            leases: BTreeMap::new(),
            last_used: at,
            last_priority: need.priority,
            resident: need.resident.then_some(need.priority),
            need,
        }
    }

    pub(super) fn lend(&mut self, at: Duration, waiter: &Waiter) {
        let Waiter { ticket, need, since, rank, .. } = waiter;
        self.leases.insert(*ticket, Held { rank: *rank, since: *since, yields: need.yields, asked: false });
        self.last_used = at;
        self.last_priority = *rank;
        if need.resident {
            self.resident = Some(self.resident.map_or(need.priority, |it| it.min(need.priority)));
        }
    }

    pub(in crate::models) fn is_idle(&self) -> bool {
        self.state == State::Ready && self.leases.is_empty()
    }

    pub(super) fn is_loading(&self) -> bool {
        matches!(self.state, State::Loading { .. })
    }

    /// A resident leaves only for work of a higher priority than its own.
    pub(super) fn is_kept_from(&self, priority: Priority) -> bool {
        self.state != State::Unloading && self.resident.is_some_and(|resident| resident <= priority)
    }

    /// In use, but by nobody who would not make way.
    pub(super) fn yields_to(&self, makes_way: impl Fn(&Held) -> bool) -> bool {
        self.state == State::Ready && self.leases.values().all(makes_way)
    }

    /// The best rank of those who hold it, else of the last who did.
    pub(super) fn priority(&self) -> Priority {
        self.leases.values().map(|held| held.rank).min().unwrap_or(self.last_priority)
    }
}

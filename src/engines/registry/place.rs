//! Where on this box a model is to serve now, and in which variant: as the settings want it, or, where there is no memory
//! for that, in the next smaller variant that they permit, then at the next provider. What stands in says so in health,
//! in the log and in the state of its model, and never stays longer than it is used.

use std::{collections::BTreeSet, time::Instant};

use crate::{
    base::{Error, Kind, Result, lock},
    engines::{
        Hireable, Hired, Registry,
        registry::{
            Failure,
            appetite::Portion,
            loader::Loaded,
            serving::Serving,
            tensorrt::{Built, Order},
        },
    },
    flow::Priority,
    models::{Lease, ModelKey, Need},
    settings::Provider,
};

struct Place {
    serving: Serving,
    provider: Provider,
    key: ModelKey,
    built: Option<Built>,
    /// What it stands in for, where there was no memory for that.
    instead_of: Option<ModelKey>,
    /// Why it is not as the settings want it.
    why: Option<String>,
}

impl Registry {
    pub(super) async fn hire_here<E: Hireable>(&self, priority: Priority) -> Result<Hired<E>> {
        let mut place = self.place::<E>(priority)?;
        let mut tried = BTreeSet::new();
        loop {
            let error = match self.lease(&place, priority).await {
                Ok(lease) => return self.hired(&place, lease),
                Err(error) if error.kind() == Kind::OverBudget => error,
                Err(error) => return Err(error),
            };
            self.note_shortage::<E>(&place.key, priority, &error);
            tried.insert(place.key.clone());
            place = self.place::<E>(priority)?;
            if tried.contains(&place.key) {
                let smaller = E::smaller(&self.stock(), &E::serving(&self.stock())?)?;
                let hints: Vec<&str> = error.hint_text().into_iter().chain(smaller.hint.as_deref()).collect();
                let hint = hints.join("; ");
                return Err(error.hint(hint));
            }
        }
    }

    /// The device had no memory for what this engine worked in: it leaves. Whether another stands in from now on, so that
    /// the job is worth another try.
    pub fn ran_out<E: Hireable>(&self, hired: Hired<E>, priority: Priority, error: &Error) -> bool {
        let (Some(key), Ok(memory)) = (hired.key().cloned(), self.memory()) else { return false };
        self.note_shortage::<E>(&key, priority, error);
        memory.give_up(&key);
        drop(hired);
        self.place::<E>(priority).is_ok_and(|place| place.key != key)
    }

    fn place<E: Hireable>(&self, priority: Priority) -> Result<Place> {
        let stock = self.stock();
        let mut wanted = E::serving(&stock)?;
        let unserved = wanted.told.take();
        let memory = self.memory()?;
        self.has_a_place(&wanted)?;
        let Order { providers, built, told } = self.order(&wanted)?;
        let is_short = lock(&self.0.shortages).touch(&wanted.model);
        let smaller = if is_short { E::smaller(&stock, &wanted)?.servings } else { Vec::new() };
        let servings: Vec<Serving> = std::iter::once(wanted).chain(smaller).collect();
        let mut places: Vec<(usize, Provider)> = Vec::new();
        for provider in providers {
            // To build an engine of a smaller variant would take more than is missing.
            let count = if provider == Provider::TensorRt { 1 } else { servings.len() };
            let may = |serving: &usize| *serving == 0 || servings[*serving].providers.contains(&provider);
            places.extend((0..count).filter(may).map(|serving| (serving, provider)));
        }
        let key_of = |(serving, provider): &(usize, Provider)| ModelKey {
            model: servings[*serving].model.clone(),
            variant: servings[*serving].variant.clone(),
            provider: provider.name().to_owned(),
        };
        let keys: Vec<ModelKey> = places.iter().map(key_of).collect();
        let is_loaded = |key: &ModelKey| memory.is_loaded(key);
        let (chosen, why) = lock(&self.0.shortages).choose(&keys, priority, Instant::now(), is_loaded);
        let nowhere = || Error::unavailable("no provider is set").hint("set providers.order");
        let (serving, provider) = *places.get(chosen).ok_or_else(nowhere)?;
        let serving = servings.into_iter().nth(serving).ok_or_else(nowhere)?;
        let key = keys[chosen].clone();
        let instead_of = why.is_some().then(|| keys[0].clone());
        Ok(Place { serving, provider, key, built, instead_of, why: why.or(told).or(unserved) })
    }

    async fn lease(&self, place: &Place, priority: Priority) -> Result<Lease<Loaded>> {
        let Place { serving, provider, key, built, instead_of, .. } = place;
        let memory = self.memory()?;
        let Portion { units, loaded_bytes, workspace_bytes } =
            serving.appetite.portion(*provider, memory.limit(*provider)?);
        memory.shelf(*provider)?.put(key, serving.recipe(*provider, units, built.as_ref(), &self.0.settings));
        let is_smaller = instead_of.as_ref().is_some_and(|wanted| wanted.variant != key.variant);
        let need = Need {
            key: key.clone(),
            estimate_bytes: loaded_bytes,
            workspace_bytes,
            priority,
            // What is wanted takes the place of a smaller one when that has left: it does not stay for nobody.
            resident: serving.resident && !is_smaller,
            yields: priority == Priority::Batch,
            instead_of: instead_of.as_ref().map(|wanted| format!("{} on {}", wanted.variant, wanted.provider)),
        };
        memory.lease(*provider, need).await
    }

    fn hired<E: Hireable>(&self, place: &Place, lease: Lease<Loaded>) -> Result<Hired<E>> {
        let hired = Hired::leased(lease)?;
        let note = hired.vitals().borrow().note.as_deref().map(str::to_owned);
        let mut failures = lock(&self.0.failures);
        match place.why.clone().or(note) {
            Some(why) => {
                let variant = match &place.instead_of {
                    Some(wanted) if wanted.variant != place.key.variant => format!("as {} ", place.key.variant),
                    _ => String::new(),
                };
                let told = format!("runs {variant}on {}: {why}", place.key.provider);
                let failure = Failure { reason: told.clone(), files: None };
                if failures.insert(E::TASK, failure).is_none_or(|before| before.reason != told) {
                    log::warn!(task = E::TASK.name(), model = place.key.model.as_str(); "{told}");
                }
            }
            None => drop(failures.remove(&E::TASK)),
        }
        drop(failures);
        Ok(hired)
    }

    fn note_shortage<E: Hireable>(&self, key: &ModelKey, priority: Priority, error: &Error) {
        let pause = self.0.settings.memory.retry();
        let is_news = lock(&self.0.shortages).note(key, priority, error.full(), Instant::now() + pause);
        // Where nothing else may serve, every job tries anew.
        let level = if is_news { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, task = E::TASK.name(), retry_secs = pause.as_secs(); "{key}: {}", error.full());
    }
}

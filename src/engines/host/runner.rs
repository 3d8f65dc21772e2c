//! An engine and how to build it again: what a thread and a process do alike. A panic, or an error of its own, costs
//! this engine alone: it is built anew and the job tried once more, then the job fails with an error that says so.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    base::{Error, Kind, Result},
    engines::{Cancel, Engine},
};

pub(super) struct Runner<E, B> {
    name: String,
    build: B,
    /// None after a crash, until the next job.
    engine: Option<E>,
    is_spoilt: bool,
}

impl<E: Engine, B: Fn() -> Result<E>> Runner<E, B> {
    pub(super) fn start(name: &str, build: B) -> Result<Runner<E, B>> {
        let engine = guarded(name, &build)?;
        Ok(Runner { name: name.to_owned(), build, engine: Some(engine), is_spoilt: false })
    }

    /// After a failure it could not be built anew, though there is memory: what is broken is not the engine but what it
    /// shares with this process, such as the state of a driver.
    pub(super) fn is_spoilt(&self) -> bool {
        self.is_spoilt
    }

    pub(super) fn note(&self) -> Option<String> {
        self.engine.as_ref().and_then(Engine::note)
    }

    /// The steps of a job that is tried again are told again, from its beginning.
    pub(super) fn answer(
        &mut self,
        ask: &E::Ask,
        step: &mut dyn FnMut(E::Progress),
        cancel: &Cancel,
    ) -> Result<E::Answer> {
        let first = self.try_once(ask, step, cancel);
        let crashed = first.as_ref().is_err_and(|error| error.kind() == Kind::Internal);
        if !crashed || cancel.is_cancelled() {
            return first;
        }
        self.try_once(ask, step, cancel)
    }

    fn try_once(&mut self, ask: &E::Ask, step: &mut dyn FnMut(E::Progress), cancel: &Cancel) -> Result<E::Answer> {
        let mut engine = match self.engine.take() {
            Some(engine) => engine,
            None => {
                let built = guarded(&self.name, &self.build);
                let spoils = |error: &Error| !matches!(error.kind(), Kind::OverBudget | Kind::Cancelled);
                self.is_spoilt = built.as_ref().is_err_and(spoils);
                built?
            }
        };
        let outcome = guarded(&self.name, || engine.answer(ask, step, cancel));
        match &outcome {
            Err(error) if error.kind() == Kind::Internal => {
                log::warn!(engine = self.name.as_str(); "an engine failed and is built anew: {}", error.full());
                // What a panic has left half changed may panic again.
                let dropped = guarded(&self.name, || {
                    drop(engine);
                    Ok(())
                });
                dropped.unwrap_or(());
            }
            _ => self.engine = Some(engine),
        }
        outcome
    }
}

/// A panic becomes an error; its text is already in the log through the panic hook.
fn guarded<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // The engine is thrown away after a panic, so nobody sees it half changed.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::internal(format!("the engine {name} crashed on this job"))))
}

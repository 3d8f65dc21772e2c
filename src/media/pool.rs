//! Pipelines kept for the next client, and the threads on which they are built, started and stopped.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use gstreamer::{self as gst, glib};
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit, task::spawn_blocking, time::timeout};

use super::{feed::Feed, pipeline::Pipeline, recipe::Recipes};
use crate::base::{Error, Result, lock};

/// Resting pipelines of a kind: enough for takes that follow each other, little memory when all is quiet.
const KEPT_PER_NAME: usize = 4;

/// A start takes milliseconds; the first of all may have GStreamer look at every plugin that is installed.
const START_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Pool {
    recipes: Recipes,
    kept: Mutex<HashMap<&'static str, Vec<Pipeline>>>,
}

/// A running pipeline. Dropping it stops it off the async threads and gives it back, and then its seat.
pub(super) struct Lent {
    /// `None` only inside `drop`.
    pipeline: Option<Pipeline>,
    pool: Arc<Pool>,
    runtime: Handle,
    seat: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub(super) fn new(recipes: Recipes) -> Pool {
        Pool { recipes, kept: Mutex::default() }
    }

    pub(super) fn recipes(&self) -> &Recipes {
        &self.recipes
    }

    /// A running pipeline of that name, on `seat` until it has stopped.
    pub(super) async fn lend(
        self: &Arc<Self>,
        name: &'static str,
        seat: OwnedSemaphorePermit,
        feed: Feed,
        caps: Vec<(&'static str, String)>,
    ) -> Result<Lent> {
        let pool = Arc::clone(self);
        let runtime = Handle::current();
        let start = move || {
            start_gstreamer()?;
            let kept = lock(&pool.kept).get_mut(name).and_then(Vec::pop);
            let pipeline = match kept {
                Some(pipeline) => pipeline,
                None => Pipeline::build(pool.recipes.get(name)?)?,
            };
            let lent = Lent { pipeline: Some(pipeline), pool, runtime, seat: Some(seat) };
            lent.start(feed, &caps)?;
            Ok(lent)
        };
        match timeout(START_LIMIT, spawn_blocking(start)).await {
            Ok(started) => started.map_err(|error| Error::internal("a pipeline could not be started").cause(error))?,
            Err(_) => Err(Error::unavailable(format!("the {name} decoder does not start")).hint("run `vigia doctor`")),
        }
    }

    fn take_back(&self, pipeline: Pipeline) {
        if !pipeline.rest() {
            return;
        }
        let mut kept = lock(&self.kept);
        let resting = kept.entry(pipeline.name()).or_default();
        if resting.len() < KEPT_PER_NAME {
            resting.push(pipeline);
            return;
        }
        drop(kept);
        // One too many ends here, outside the lock: stopping waits.
        drop(pipeline);
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        lock(&self.kept).values().map(Vec::len).sum()
    }
}

impl Deref for Lent {
    type Target = Pipeline;

    fn deref(&self) -> &Pipeline {
        match &self.pipeline {
            Some(pipeline) => pipeline,
            None => unreachable!("a pipeline is taken out only by drop"),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(pipeline) = self.pipeline.take() else { return };
        let pool = Arc::clone(&self.pool);
        let seat = self.seat.take();
        // When the runtime is already gone the closure is dropped unrun, and the pipeline ends with it.
        self.runtime.spawn_blocking(move || {
            pool.take_back(pipeline);
            drop(seat);
        });
    }
}

/// Once a process; later calls are free. May take seconds where GStreamer's registry is stale.
pub(super) fn start_gstreamer() -> Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // GLib writes to standard error otherwise, past the log.
        glib::log_set_default_handler(|domain, level, message| {
            log::debug!("{} {level:?}: {message}", domain.unwrap_or("GLib"));
        });
        gst::init().map_err(|error| error.to_string())
    });
    started.clone().map_err(|cause| {
        Error::unavailable("GStreamer does not start")
            .cause(cause)
            .hint("sudo apt-get install --reinstall libgstreamer1.0-0 gstreamer1.0-plugins-base")
    })
}

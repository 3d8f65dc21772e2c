//! What is asked of the memory ledger, and the guard that is given for it. While a lease lives its model stays
//! loaded; dropping it is the only release. Must never outlive its word: a lease that is dropped while it is still
//! being waited for gives up its place in the line.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex},
};

use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{Result, lock},
    flow::Priority,
    models::manager::News,
};

/// One loadable thing: the same model in another precision or on another provider is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ModelKey {
    pub model: String,
    pub variant: String,
    pub provider: String,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} on {})", self.model, self.variant, self.provider)
    }
}

/// What a model was seen to take, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// When it had been loaded and not worked yet.
    pub loaded: Option<u64>,
    /// At any time.
    pub most: u64,
}

impl Seen {
    pub(super) fn add(&mut self, loaded: Option<u64>, now: u64) {
        self.loaded = self.loaded.max(loaded);
        self.most = self.most.max(now);
    }
}

/// What somebody wants to have in memory, and how much it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    pub key: ModelKey,
    /// What the model takes once it is loaded. Counts until that has been measured.
    pub estimate_bytes: u64,
    /// What it works in beside that, at most. Counts until it was seen to take more.
    pub workspace_bytes: u64,
    pub priority: Priority,
    /// The model stays when it is idle, and leaves for nothing but work of a higher priority than this.
    pub resident: bool,
    /// Whoever holds the lease listens to [`Lease::asked_to_yield`].
    pub yields: bool,
    /// What it stands in for, because there was no memory for that: said wherever the model is told of.
    pub instead_of: Option<String>,
}

/// The number of one ask: its place in the line first, its lease later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// A loaded model that will not be taken away. Several may live of one model at a time.
pub struct Lease<T> {
    key: ModelKey,
    granted: Granted<T>,
    _place: Place<T>,
}

pub(super) struct Granted<T> {
    pub(super) loaded: T,
    pub(super) yields: CancellationToken,
}

impl<T> Lease<T> {
    pub(super) async fn wait(
        key: ModelKey,
        place: Place<T>,
        grant: oneshot::Receiver<Result<Granted<T>>>,
    ) -> Result<Lease<T>> {
        let granted = grant.await.map_err(|_| super::manager::gone())??;
        Ok(Lease { key, granted, _place: place })
    }

    pub fn key(&self) -> &ModelKey {
        &self.key
    }

    /// Resolves when more urgent work needs this memory: stop at the next step, drop the lease, ask again.
    pub async fn asked_to_yield(&self) {
        self.granted.yields.cancelled().await;
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.granted.loaded
    }
}

impl<T> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).finish_non_exhaustive()
    }
}

/// A place in the line, then a lease. Dropping it gives back either.
pub(super) struct Place<T> {
    pub(super) ticket: Ticket,
    pub(super) inbox: Arc<Inbox<T>>,
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.inbox.put(News::Gone(self.ticket));
    }
}

/// What the manager's task is told. A release may come from any thread and may not wait, so this is no channel; it
/// is bounded by those who tell: the line has a size, and each place in it says two things.
pub(super) struct Inbox<T> {
    /// Nothing once nobody reads it any more.
    news: Mutex<Option<Vec<News<T>>>>,
    bell: Notify,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Inbox { news: Mutex::new(Some(Vec::new())), bell: Notify::new() }
    }
}

impl<T> Inbox<T> {
    pub(super) fn put(&self, news: News<T>) {
        let unread = match &mut *lock(&self.news) {
            Some(list) => {
                list.push(news);
                None
            }
            None => Some(news),
        };
        // Outside the lock: what is unread may hold a place of its own.
        drop(unread);
        self.bell.notify_one();
    }

    pub(super) async fn wait(&self) -> Vec<News<T>> {
        loop {
            let news = lock(&self.news).as_mut().map(std::mem::take).unwrap_or_default();
            if !news.is_empty() {
                return news;
            }
            self.bell.notified().await;
        }
    }

    /// What was not read yet; whoever puts something in from now on is answered by its being dropped.
    pub(super) fn close(&self) -> Vec<News<T>> {
        lock(&self.news).take().unwrap_or_default()
    }
}

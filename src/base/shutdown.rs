//! The one signal that travels against the flow: stop. Cheap to clone; dropping a clone means nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::base::lock;

#[derive(Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    working: Arc<Working>,
}

/// Who has not finished yet, by name and number.
#[derive(Default)]
struct Working {
    names: Mutex<BTreeMap<String, usize>>,
    changed: Notify,
}

/// While it lives, shutdown waits for its holder (within the deadline).
pub struct Busy {
    name: String,
    working: Arc<Working>,
}

impl Shutdown {
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// Asks everyone to stop.
    pub fn start(&self) {
        self.token.cancel();
    }

    pub fn started(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves once stopping has been asked for.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Registers work that should be let finish; `name` is what the log says if it is late.
    pub fn busy(&self, name: &str) -> Busy {
        *lock(&self.working.names).entry(name.to_owned()).or_default() += 1;
        Busy { name: name.to_owned(), working: Arc::clone(&self.working) }
    }

    /// A stage with its own work to wait for, stopped together with this one.
    pub fn child(&self) -> Shutdown {
        Shutdown { token: self.token.child_token(), working: Arc::default() }
    }

    /// Waits until nobody is busy; after `deadline` returns the names of those who are late.
    pub async fn finished(&self, deadline: Instant) -> Vec<String> {
        loop {
            let changed = self.working.changed.notified();
            let late = self.late();
            if late.is_empty() {
                return late;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return self.late();
            }
        }
    }

    fn late(&self) -> Vec<String> {
        let names = lock(&self.working.names);
        names.iter().map(|(name, count)| if *count > 1 { format!("{name} ×{count}") } else { name.clone() }).collect()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut names = lock(&self.working.names);
        if let Some(count) = names.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                names.remove(&self.name);
            }
        }
        drop(names);
        // `notify_one` keeps a permit, so a waiter between its check and its wait does not miss it.
        self.working.changed.notify_one();
    }
}

/// A deadline that far from now.
pub fn deadline(after: Duration) -> Instant {
    Instant::now() + after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_the_busy_and_names_the_late() {
        let shutdown = Shutdown::new();
        let quick = shutdown.busy("quick");
        let _slow = shutdown.busy("slow");
        let _slow_too = shutdown.busy("slow");
        tokio::spawn(async move { drop(quick) });
        let late = shutdown.finished(deadline(Duration::from_millis(50))).await;
        assert_eq!(late, ["slow ×2"]);
    }

    #[tokio::test]
    async fn a_child_stops_with_its_parent_and_waits_alone() {
        let parent = Shutdown::new();
        let child = parent.child();
        let _busy = parent.busy("parent's");
        parent.start();
        child.wait().await;
        assert!(child.finished(deadline(Duration::from_secs(1))).await.is_empty());
    }
}

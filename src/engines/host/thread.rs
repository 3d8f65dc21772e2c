//! A thread that owns one engine. It cannot be killed: an engine that may hang or crash belongs in a process.

use tokio::sync::{mpsc, oneshot};

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Engine,
        host::{Asked, Desk, Handle, Limits, runner::Runner},
    },
};

impl<E: Engine> Handle<E> {
    /// Starts a thread, builds the engine on it, and waits until it is there.
    pub async fn thread(
        name: &str,
        limits: &Limits,
        build: impl Fn() -> Result<E> + Send + 'static,
    ) -> Result<Handle<E>> {
        let (handle, desk) = Handle::new(name, limits);
        let (ready, built) = oneshot::channel();
        let thread_name = name.to_owned();
        std::thread::Builder::new()
            .name(thread_name.clone())
            .spawn(move || run(&thread_name, build, desk, ready))
            .map_err(|error| Error::internal(format!("no thread for the engine {name}")).cause(error))?;
        let Ok(built) = tokio::time::timeout(limits.load, built).await else {
            let secs = limits.load.as_secs_f32();
            return Err(Error::new(Kind::Timeout, format!("the engine {name} did not load within {secs} s")));
        };
        built.map_err(|_| Error::internal(format!("the engine {name} ended while it was loading")))??;
        Ok(handle)
    }
}

fn run<E: Engine>(name: &str, build: impl Fn() -> Result<E>, desk: Desk<E>, ready: oneshot::Sender<Result<()>>) {
    // Dropped after the engine, whose memory is back by then.
    let _ended = desk.ended.drop_guard();
    let mut runner = match Runner::start(name, build) {
        Ok(runner) => {
            let note = runner.note();
            desk.vitals.send_modify(|vitals| vitals.note = note.map(Into::into));
            if ready.send(Ok(())).is_err() {
                return;
            }
            runner
        }
        Err(error) => {
            // Whoever started the host may have gone; then nobody needs the error.
            drop(ready.send(Err(error)));
            return;
        }
    };
    let mut asks = desk.asks;
    while let Some(Asked { ask, steps, cancel, reply }) = asks.blocking_recv() {
        if reply.is_closed() {
            continue;
        }
        let outcome = runner.answer(&ask, &mut |step| tell(steps.as_ref(), step), &cancel);
        drop(steps);
        drop(reply.send(outcome));
    }
}

fn tell<P>(steps: Option<&mpsc::Sender<P>>, step: P) {
    if let Some(steps) = steps {
        // Whoever asked may have left; then the engine sees that it is cancelled.
        drop(steps.blocking_send(step));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use super::*;
    use crate::engines::Cancel;

    /// Panics as often as it is told to, over all its lives.
    struct Fragile(Arc<AtomicUsize>);

    impl Engine for Fragile {
        type Ask = u32;
        type Progress = ();
        type Answer = u32;

        fn answer(&mut self, ask: &u32, _: &mut dyn FnMut(()), _: &Cancel) -> Result<u32> {
            if self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                panic!("on purpose");
            }
            Ok(ask + 1)
        }
    }

    async fn fragile(panics: usize) -> Handle<Fragile> {
        let left = Arc::new(AtomicUsize::new(panics));
        Handle::thread("fragile", &Limits::default(), move || Ok(Fragile(Arc::clone(&left)))).await.unwrap()
    }

    /// Steps until it is cancelled, and tells on dropping that it is gone.
    struct Endless(Arc<AtomicUsize>);

    impl Engine for Endless {
        type Ask = ();
        type Progress = u32;
        type Answer = ();

        fn answer(&mut self, (): &(), step: &mut dyn FnMut(u32), cancel: &Cancel) -> Result<()> {
            for number in 0.. {
                step(number);
                if cancel.is_cancelled() {
                    break;
                }
            }
            Err(Error::new(Kind::Cancelled, "given up"))
        }
    }

    impl Drop for Endless {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn endless(job: Duration) -> (Handle<Endless>, Arc<AtomicUsize>) {
        let drops = Arc::new(AtomicUsize::new(0));
        let theirs = Arc::clone(&drops);
        let limits = Limits { job, ..Limits::default() };
        (Handle::thread("endless", &limits, move || Ok(Endless(Arc::clone(&theirs)))).await.unwrap(), drops)
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_job_whose_engine_panics_once_is_answered_by_the_next_engine() {
        assert_eq!(fragile(1).await.ask(1).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_job_that_crashes_twice_fails_and_the_next_job_runs() {
        let host = fragile(2).await;
        let error = host.ask(1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains("fragile"));
        assert_eq!(host.ask(5).await.unwrap(), 6);
    }

    #[tokio::test]
    async fn an_engine_that_cannot_be_built_says_why() {
        let build = || Err(Error::unavailable("no weights"));
        let built = Handle::<Fragile>::thread("broken", &Limits::default(), build).await;
        assert_eq!(built.err().unwrap().message(), "no weights");
    }

    #[tokio::test]
    async fn an_overdue_job_is_cancelled_and_every_step_until_then_is_told_in_order() {
        let (host, _) = endless(Duration::from_millis(50)).await;
        let mut told = Vec::new();
        let error = host.ask_with((), |step| told.push(step)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout);
        assert!(told.len() > 1 && told.iter().zip(0..).all(|(step, number)| *step == number));
        assert_eq!(host.limited(Duration::from_millis(1)).ask(()).await.unwrap_err().kind(), Kind::Timeout);
    }

    #[tokio::test]
    async fn closing_gives_up_the_job_in_hand_and_drops_the_engine() {
        let (host, drops) = endless(LIMIT).await;
        let asking = tokio::spawn({
            let host = host.clone();
            async move { host.ask(()).await }
        });
        tokio::task::yield_now().await;
        host.close().await.unwrap();
        assert_eq!(drops.load(Ordering::SeqCst), 1);
        assert_eq!(asking.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(host.ask(()).await.unwrap_err().kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn an_engine_leaves_with_its_last_handle() {
        let (host, drops) = endless(LIMIT).await;
        let ended = host.shared.ended.clone();
        drop(host);
        tokio::time::timeout(LIMIT, ended.cancelled()).await.unwrap();
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }
}

//! A thread that owns one engine. Everyone else holds the [`Host`] and asks.
//!
//! A panic costs this engine alone: it is built anew and the job tried once more, then it fails with an error that
//! says so. Dropping the last clone of a host ends its thread after the job in hand.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    base::{Error, Kind, Result},
    engines::{Cancel, PieceText, TranscribeAsk, TranscribeStep, Transcriber},
};

/// What a host's thread runs: one kind of question, one kind of answer.
pub trait Engine: 'static {
    type Ask: Send + 'static;
    type Progress: Send + 'static;
    type Answer: Send + 'static;

    fn answer(
        &mut self,
        ask: &Self::Ask,
        step: &mut dyn FnMut(Self::Progress),
        cancel: &Cancel,
    ) -> Result<Self::Answer>;
}

/// Any transcriber, as a host runs it.
pub struct Asr(pub Box<dyn Transcriber>);

impl Engine for Asr {
    type Ask = TranscribeAsk;
    type Progress = TranscribeStep;
    type Answer = Vec<PieceText>;

    fn answer(
        &mut self,
        ask: &TranscribeAsk,
        step: &mut dyn FnMut(TranscribeStep),
        cancel: &Cancel,
    ) -> Result<Vec<PieceText>> {
        self.0.transcribe(ask, step, cancel)
    }
}

pub struct Host<E: Engine> {
    name: Arc<str>,
    asks: mpsc::Sender<Asked<E>>,
}

struct Asked<E: Engine> {
    ask: E::Ask,
    cancel: Cancel,
    reply: oneshot::Sender<Result<E::Answer>>,
}

impl<E: Engine> Clone for Host<E> {
    fn clone(&self) -> Self {
        Host { name: Arc::clone(&self.name), asks: self.asks.clone() }
    }
}

impl<E: Engine> Host<E> {
    /// Starts the thread, builds the engine on it, and waits until it is there.
    pub async fn start(name: &str, build: impl Fn() -> Result<E> + Send + 'static) -> Result<Host<E>> {
        // One waits while one runs; the queue that people see is in `jobs`.
        let (asks, inbox) = mpsc::channel(1);
        let (ready, built) = oneshot::channel();
        let name: Arc<str> = name.into();
        let thread_name = Arc::clone(&name);
        std::thread::Builder::new()
            .name(name.to_string())
            .spawn(move || run(&thread_name, build, inbox, ready))
            .map_err(|error| Error::internal(format!("no thread for the engine {name}")).cause(error))?;
        built.await.map_err(|_| Error::internal(format!("the engine {name} ended while it was loading")))??;
        Ok(Host { name, asks })
    }

    /// Dropping the future cancels the work at the engine's next step.
    pub async fn ask(&self, ask: E::Ask) -> Result<E::Answer> {
        let ended = || Error::internal(format!("the engine {} has ended", self.name));
        let cancel = Cancel::default();
        let _cancel_on_drop = CancelOnDrop(cancel.clone());
        let (reply, answer) = oneshot::channel();
        self.asks.send(Asked { ask, cancel, reply }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn run<E: Engine>(
    name: &str,
    build: impl Fn() -> Result<E>,
    mut inbox: mpsc::Receiver<Asked<E>>,
    ready: oneshot::Sender<Result<()>>,
) {
    let mut engine = match guarded(name, &build) {
        Ok(engine) => {
            if ready.send(Ok(())).is_err() {
                return;
            }
            Some(engine)
        }
        Err(error) => {
            // Whoever started the host may have gone; then nobody needs the error.
            drop(ready.send(Err(error)));
            return;
        }
    };
    while let Some(Asked { ask, cancel, reply }) = inbox.blocking_recv() {
        if reply.is_closed() {
            continue;
        }
        let mut outcome = Err(Error::internal(format!("the engine {name} is not running")));
        for attempt in 1..=2 {
            if engine.is_none() {
                match guarded(name, &build) {
                    Ok(built) => engine = Some(built),
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            let Some(running) = engine.as_mut() else { break };
            outcome = guarded(name, || running.answer(&ask, &mut |_| {}, &cancel));
            let crashed = outcome.as_ref().is_err_and(|error| error.kind() == Kind::Internal);
            if !crashed || cancel.is_cancelled() {
                break;
            }
            log::warn!(engine = name, attempt; "an engine failed and is built anew");
            engine = None;
        }
        drop(reply.send(outcome));
    }
}

/// A panic becomes an error; its text is already in the log through the panic hook.
fn guarded<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // The engine is thrown away after a panic, so nobody sees it half changed.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::internal(format!("the engine {name} crashed on this job"))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

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

    async fn host(panics: usize) -> Host<Fragile> {
        let left = Arc::new(AtomicUsize::new(panics));
        Host::start("fragile", move || Ok(Fragile(Arc::clone(&left)))).await.unwrap()
    }

    #[tokio::test]
    async fn a_job_whose_engine_panics_once_is_answered_by_the_next_engine() {
        assert_eq!(host(1).await.ask(1).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_job_that_crashes_twice_fails_and_the_next_job_runs() {
        let host = host(2).await;
        let error = host.ask(1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains("fragile"));
        assert_eq!(host.ask(5).await.unwrap(), 6);
    }

    #[tokio::test]
    async fn an_engine_that_cannot_be_built_says_why() {
        let built = Host::<Fragile>::start("broken", || Err(Error::unavailable("no weights"))).await;
        assert_eq!(built.err().unwrap().message(), "no weights");
    }
}

//! The thread that listens to every live stream at once.
//!
//! Streams hand in samples whenever they come; the thread takes one frame from each stream that has one and runs them
//! as one batch. It never waits for a stream, never drops a sample, and sleeps when nobody speaks to it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    base::{Error, Result, lock},
    engines::{VoiceDetector, VoiceFrame, VoiceState},
    segment::{Voiced, speech::FRAME},
    telemetry::events::{VadBatchDone, emit},
};

const FRAME_LEN: usize = FRAME as usize;

/// How many frames go together, and how long the first may wait for company.
#[derive(Debug, Clone, Copy)]
pub struct VoiceLimits {
    /// Beyond this a batch gets no cheaper per frame (measured: 0.07 ms alone, 0.03 ms among 32).
    pub max_batch: usize,
    /// With few streams company is unlikely and waiting would only cost time.
    pub gather_above: usize,
    pub gather: Duration,
}

impl Default for VoiceLimits {
    fn default() -> VoiceLimits {
        VoiceLimits { max_batch: 32, gather_above: 8, gather: Duration::from_millis(8) }
    }
}

/// What a stream's sink is told, on the listening thread: it must be quick and must not wait.
#[derive(Debug)]
pub enum Heard<'a> {
    Frame {
        voiced: Voiced,
        /// What the detector remembers after this frame.
        state: &'a VoiceState,
    },
    /// The stream has been heard to its end.
    End,
    /// Nothing more comes.
    Failed(Error),
}

pub type Sink = Box<dyn FnMut(Heard<'_>) + Send>;

/// Cheap to clone; the thread ends when the last clone and the last stream are gone.
#[derive(Clone)]
pub struct Voice(Arc<Room>);

/// One stream's way in. Dropping it forgets the stream.
pub struct VoiceStream {
    stream: Arc<Stream>,
    /// Keeps the thread alive while a stream is open.
    room: Voice,
}

/// What the handles and the thread share. The thread holds `Shared` alone, so that it can see the handles go.
struct Room {
    shared: Arc<Shared>,
}

struct Shared {
    limits: VoiceLimits,
    ready: Mutex<Ready>,
    wake: Condvar,
}

#[derive(Default)]
struct Ready {
    /// Streams with a whole frame (or their end) to be heard, each at most once.
    queue: VecDeque<Arc<Stream>>,
    /// Some have waited for company already and are here with their next frame.
    again: bool,
    beats: Vec<oneshot::Sender<()>>,
    streams: usize,
    closing: bool,
}

struct Stream {
    inbox: Mutex<Inbox>,
}

struct Inbox {
    samples: VecDeque<f32>,
    queued: bool,
    ending: bool,
    closed: bool,
    /// With the thread while it works on this stream.
    desk: Option<Box<Desk>>,
}

/// What only the thread touches.
struct Desk {
    state: VoiceState,
    sink: Sink,
}

/// One stream's part in a batch.
struct Turn {
    stream: Arc<Stream>,
    desk: Box<Desk>,
    samples: [f32; FRAME_LEN],
    /// Nothing follows this frame (and if it is empty, not even this frame).
    last: bool,
    empty: bool,
    probability: f32,
}

impl Voice {
    /// Starts the thread, builds the detector on it, and waits until it is there.
    pub async fn start(
        limits: VoiceLimits,
        build: impl Fn() -> Result<Box<dyn VoiceDetector>> + Send + 'static,
    ) -> Result<Voice> {
        let shared = Arc::new(Shared { limits, ready: Mutex::default(), wake: Condvar::new() });
        let (ready, built) = oneshot::channel();
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("voice".to_owned())
            .spawn(move || match build() {
                Ok(detector) => {
                    if ready.send(Ok(())).is_ok() {
                        Listener { shared: theirs, build, detector }.run();
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .map_err(|error| Error::internal("no thread for the voice detector").cause(error))?;
        built.await.map_err(|_| Error::internal("the voice detector ended while it was loading"))??;
        Ok(Voice(Arc::new(Room { shared })))
    }

    /// A stream that goes on from a state; a new one begins with the default.
    pub fn open(&self, state: VoiceState, sink: Sink) -> VoiceStream {
        lock(&self.0.shared.ready).streams += 1;
        let desk = Some(Box::new(Desk { state, sink }));
        let inbox = Inbox { samples: VecDeque::new(), queued: false, ending: false, closed: false, desk };
        let stream = Arc::new(Stream { inbox: Mutex::new(inbox) });
        VoiceStream { stream, room: self.clone() }
    }

    /// Resolves when the thread has come round once: a sign of life for the watchdog.
    pub async fn beat(&self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0.shared.ready).beats.push(sender);
        self.0.shared.wake.notify_one();
        receiver.await.map_err(|_| Error::internal("the voice detector's thread has ended"))
    }
}

impl VoiceStream {
    /// Hands samples in, in order. Never waits: watch `backlog` and hold back instead. Vanish once it has failed.
    pub fn push(&self, samples: &[f32]) {
        let mut inbox = lock(&self.stream.inbox);
        if inbox.closed {
            return;
        }
        inbox.samples.extend(samples);
        if inbox.samples.len() >= FRAME_LEN {
            self.enqueue(inbox);
        }
    }

    /// No more samples; the rest is filled up with silence and heard.
    pub fn end(&self) {
        let mut inbox = lock(&self.stream.inbox);
        inbox.ending = true;
        self.enqueue(inbox);
    }

    /// Samples handed in and not heard yet.
    pub fn backlog(&self) -> usize {
        lock(&self.stream.inbox).samples.len()
    }

    fn enqueue(&self, mut inbox: MutexGuard<'_, Inbox>) {
        if inbox.queued || inbox.desk.is_none() {
            // Waiting already, or with the thread, which looks again when it puts the desk back.
            return;
        }
        inbox.queued = true;
        drop(inbox);
        let shared = &self.room.0.shared;
        let mut ready = lock(&shared.ready);
        ready.queue.push_back(Arc::clone(&self.stream));
        // In between, the thread is busy or waits for company: waking it for each would cost more than it brings.
        if ready.queue.len() == 1 || ready.is_full(&shared.limits) {
            drop(ready);
            shared.wake.notify_one();
        }
    }
}

impl Drop for VoiceStream {
    fn drop(&mut self) {
        let mut inbox = lock(&self.stream.inbox);
        inbox.closed = true;
        inbox.samples = VecDeque::new();
        inbox.desk = None;
        drop(inbox);
        lock(&self.room.0.shared.ready).streams -= 1;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        lock(&self.shared.ready).closing = true;
        self.shared.wake.notify_one();
    }
}

impl Ready {
    /// Nobody is left to wait for.
    fn is_full(&self, limits: &VoiceLimits) -> bool {
        self.queue.len() >= limits.max_batch.min(self.streams)
    }
}

struct Listener<B> {
    shared: Arc<Shared>,
    build: B,
    detector: Box<dyn VoiceDetector>,
}

impl<B: Fn() -> Result<Box<dyn VoiceDetector>>> Listener<B> {
    fn run(mut self) {
        let mut streams = Vec::with_capacity(self.shared.limits.max_batch);
        let mut turns = Vec::with_capacity(self.shared.limits.max_batch);
        while self.gather(&mut streams) {
            turns.extend(streams.drain(..).filter_map(take_turn));
            if let Err(error) = self.detect(&mut turns) {
                log::error!("the voice detector failed twice: {}", error.full());
                for turn in turns.drain(..) {
                    fail(turn, &error);
                }
            }
            for turn in turns.drain(..) {
                self.deliver(turn);
            }
        }
    }

    /// Waits for streams with something to hear. False when nobody is left to listen to.
    fn gather(&self, streams: &mut Vec<Arc<Stream>>) -> bool {
        let limits = &self.shared.limits;
        let mut ready = lock(&self.shared.ready);
        let mut until = None;
        loop {
            for beat in ready.beats.drain(..) {
                // Whoever asked may have stopped waiting.
                beat.send(()).unwrap_or(());
            }
            if ready.queue.is_empty() {
                if ready.closing {
                    return false;
                }
                ready = self.shared.wake.wait(ready).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if ready.again || ready.is_full(limits) || ready.streams <= limits.gather_above {
                break;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + limits.gather);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            ready = self.shared.wake.wait_timeout(ready, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        ready.again = false;
        let count = ready.queue.len().min(limits.max_batch);
        streams.extend(ready.queue.drain(..count));
        true
    }

    fn detect(&mut self, turns: &mut [Turn]) -> Result<()> {
        let first = self.detect_once(turns);
        let Err(error) = first else { return Ok(()) };
        // The streams' states are written only when a batch has worked, so the same batch can be tried again.
        log::warn!("the voice detector failed and is built anew: {}", error.full());
        self.detector = (self.build)()?;
        self.detect_once(turns)
    }

    fn detect_once(&mut self, turns: &mut [Turn]) -> Result<()> {
        let mut frames: Vec<VoiceFrame<'_>> = turns
            .iter_mut()
            .filter(|turn| !turn.empty)
            .map(|turn| VoiceFrame { samples: &turn.samples, state: &mut turn.desk.state, probability: 0.0 })
            .collect();
        if frames.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let detector = &mut self.detector;
        catch_unwind(AssertUnwindSafe(|| detector.detect(&mut frames)))
            .unwrap_or_else(|_| Err(Error::internal("the voice detector crashed")))?;
        emit(VadBatchDone { frames: frames.len(), elapsed: begun.elapsed() });
        let probabilities: Vec<f32> = frames.iter().map(|frame| frame.probability).collect();
        for (turn, probability) in turns.iter_mut().filter(|turn| !turn.empty).zip(probabilities) {
            turn.probability = probability;
        }
        Ok(())
    }

    fn deliver(&self, turn: Turn) {
        let Turn { stream, mut desk, last, empty, probability, samples } = turn;
        if !empty {
            (desk.sink)(Heard::Frame { voiced: Voiced::new(probability, &samples), state: &desk.state });
        }
        if last {
            (desk.sink)(Heard::End);
        }
        let mut inbox = lock(&stream.inbox);
        if inbox.closed || last {
            return;
        }
        inbox.desk = Some(desk);
        inbox.queued = inbox.samples.len() >= FRAME_LEN || inbox.ending;
        let again = inbox.queued;
        drop(inbox);
        if again {
            let mut ready = lock(&self.shared.ready);
            ready.queue.push_back(stream);
            ready.again = true;
        }
    }
}

fn take_turn(stream: Arc<Stream>) -> Option<Turn> {
    let mut inbox = lock(&stream.inbox);
    inbox.queued = false;
    let desk = inbox.desk.take()?;
    let mut samples = [0.0; FRAME_LEN];
    let count = inbox.samples.len().min(FRAME_LEN);
    for (slot, sample) in samples.iter_mut().zip(inbox.samples.drain(..count)) {
        *slot = sample;
    }
    let last = inbox.ending && inbox.samples.is_empty();
    drop(inbox);
    Some(Turn { stream, desk, samples, last, empty: count == 0, probability: 0.0 })
}

fn fail(mut turn: Turn, error: &Error) {
    let mut inbox = lock(&turn.stream.inbox);
    // Nobody will hear what waits: it would hold its client back for ever.
    inbox.closed = true;
    inbox.samples = VecDeque::new();
    drop(inbox);
    let told = Error::new(error.kind(), error.message());
    (turn.desk.sink)(Heard::Failed(told));
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        sync::mpsc,
    };

    use super::*;

    /// Answers with the mean of the frame and counts frames in its state, so that a mixed-up stream shows.
    struct Mean {
        crashes: Arc<AtomicUsize>,
        largest: Arc<AtomicUsize>,
    }

    impl VoiceDetector for Mean {
        fn detect(&mut self, frames: &mut [VoiceFrame<'_>]) -> Result<()> {
            self.largest.fetch_max(frames.len(), Ordering::SeqCst);
            if self.crashes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                panic!("on purpose");
            }
            for frame in frames {
                frame.state.recurrent[0] += 1.0;
                frame.probability = frame.samples.iter().sum::<f32>() / frame.samples.len() as f32;
            }
            Ok(())
        }
    }

    struct Rig {
        voice: Voice,
        largest: Arc<AtomicUsize>,
    }

    async fn rig(crashes: usize) -> Rig {
        let largest = Arc::new(AtomicUsize::new(0));
        let crashes = Arc::new(AtomicUsize::new(crashes));
        let theirs = Arc::clone(&largest);
        let build = move || {
            let mean = Mean { crashes: Arc::clone(&crashes), largest: Arc::clone(&theirs) };
            Ok(Box::new(mean) as Box<dyn VoiceDetector>)
        };
        Rig { voice: Voice::start(VoiceLimits::default(), build).await.unwrap(), largest }
    }

    #[derive(Debug)]
    enum Told {
        Frame { probability: f32, state: Box<VoiceState> },
        End,
        Failed(Error),
    }

    fn listen(voice: &Voice) -> (VoiceStream, mpsc::Receiver<Told>) {
        listen_from(voice, VoiceState::default())
    }

    fn listen_from(voice: &Voice, state: VoiceState) -> (VoiceStream, mpsc::Receiver<Told>) {
        let (sender, receiver) = mpsc::channel();
        let sink = move |heard: Heard<'_>| {
            let told = match heard {
                Heard::Frame { voiced, state } => {
                    Told::Frame { probability: voiced.probability, state: Box::new(state.clone()) }
                }
                Heard::End => Told::End,
                Heard::Failed(error) => Told::Failed(error),
            };
            sender.send(told).unwrap_or(());
        };
        (voice.open(state, Box::new(sink)), receiver)
    }

    fn hear_all(receiver: &mpsc::Receiver<Told>) -> Vec<f32> {
        hear_states(receiver).into_iter().map(|(probability, _)| probability).collect()
    }

    fn hear_states(receiver: &mpsc::Receiver<Told>) -> Vec<(f32, Box<VoiceState>)> {
        let mut frames = Vec::new();
        loop {
            match receiver.recv_timeout(Duration::from_secs(10)).unwrap() {
                Told::Frame { probability, state } => frames.push((probability, state)),
                Told::End => return frames,
                Told::Failed(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_stream_goes_on_from_the_state_that_another_had_reached() {
        let rig = rig(0).await;
        let (stream, receiver) = listen(&rig.voice);
        stream.push(&[1.0; FRAME_LEN * 3]);
        stream.end();
        let (_, state) = hear_states(&receiver).pop().unwrap();
        let kept = VoiceState::from_bytes(&state.to_bytes()).unwrap();
        let (stream, receiver) = listen_from(&rig.voice, kept);
        stream.push(&[1.0; FRAME_LEN]);
        stream.end();
        assert_eq!(hear_states(&receiver)[0].1.recurrent[0], 4.0);
        assert!(VoiceState::from_bytes(&[0; 1279]).is_none());
    }

    #[tokio::test]
    async fn every_stream_hears_its_own_frames_in_order_whatever_the_chunks() {
        let rig = rig(0).await;
        let streams: Vec<_> = (0..40).map(|_| listen(&rig.voice)).collect();
        let frames = 20;
        for (number, (stream, _)) in streams.iter().enumerate() {
            let samples: Vec<f32> = (0..frames).flat_map(|frame| [(number * 100 + frame) as f32; FRAME_LEN]).collect();
            for chunk in samples.chunks(333 + number) {
                stream.push(chunk);
            }
            stream.end();
        }
        for (number, (_, receiver)) in streams.iter().enumerate() {
            let expected: Vec<f32> = (0..frames).map(|frame| (number * 100 + frame) as f32).collect();
            assert_eq!(hear_all(receiver), expected, "stream {number}");
        }
        assert!(rig.largest.load(Ordering::SeqCst) > 1, "nothing was batched");
    }

    #[tokio::test]
    async fn a_crash_costs_nothing_and_a_second_one_tells_the_streams() {
        let crashed = rig(1).await;
        let (stream, receiver) = listen(&crashed.voice);
        stream.push(&[1.0; FRAME_LEN]);
        stream.end();
        assert_eq!(hear_all(&receiver), [1.0]);

        let broken = rig(2).await;
        let (stream, receiver) = listen(&broken.voice);
        stream.push(&[1.0; FRAME_LEN]);
        assert!(matches!(receiver.recv_timeout(Duration::from_secs(10)), Ok(Told::Failed(_))));
        stream.push(&[1.0; FRAME_LEN * 50]);
        assert_eq!(stream.backlog(), 0, "nobody waits for what nobody hears");
        let (stream, receiver) = listen(&broken.voice);
        stream.push(&[2.0; FRAME_LEN]);
        stream.end();
        assert_eq!(hear_all(&receiver), [2.0]);
    }

    #[tokio::test]
    async fn an_empty_stream_ends_at_once_and_a_short_rest_is_filled_up() {
        let rig = rig(0).await;
        let (stream, receiver) = listen(&rig.voice);
        stream.end();
        assert!(hear_all(&receiver).is_empty());
        let (stream, receiver) = listen(&rig.voice);
        stream.push(&[1.0; FRAME_LEN / 2]);
        stream.end();
        assert_eq!(hear_all(&receiver), [0.5]);
    }

    #[tokio::test]
    async fn a_dropped_stream_is_forgotten_and_the_thread_beats_on() {
        let rig = rig(0).await;
        let (stream, receiver) = listen(&rig.voice);
        stream.push(&[1.0; FRAME_LEN * 50]);
        drop(stream);
        rig.voice.beat().await.unwrap();
        while receiver.recv_timeout(Duration::from_secs(10)).is_ok() {}
    }
}

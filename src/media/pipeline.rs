//! One built pipeline: `in` (appsrc) → what the recipe says → `out` (appsink).
//!
//! GStreamer's threads do the work; async code only hands chunks over and takes samples away. Building, starting
//! and stopping wait for those threads: `pool` does that on threads that may block.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gstreamer::{self as gst, prelude::*};
use gstreamer_app::{AppSink, AppSinkCallbacks, AppSrc, AppSrcCallbacks, AppStreamType};
use tokio::{sync::Notify, time::timeout};

use super::{
    allowed, bus,
    feed::{Chunk, Feed, Portion, Stream, Unit},
    recipe::Recipe,
};
use crate::base::{Error, Kind, Result, lock};

/// A decoder that neither takes nor gives anything for this long is stuck.
pub(super) const WAIT_LIMIT: Duration = Duration::from_secs(10);

/// Decoded buffers that may wait for their reader; then the decoder waits.
const MAX_WAITING_BUFFERS: u32 = 8;

/// Demuxers search for the next valid byte without end; data that gives nothing for this long is refused.
const MAX_SILENT_BYTES: usize = 8 << 20;

pub(super) struct Pipeline {
    pipeline: gst::Pipeline,
    /// A microphone has none: it brings what there is itself.
    input: Option<AppSrc>,
    output: AppSink,
    recipe: Arc<Recipe>,
    shared: Arc<Shared>,
}

/// Between GStreamer's threads and the tasks. The lock is never held while GStreamer is called.
struct Shared {
    state: Mutex<State>,
    /// Something for the reader: a sample, the end, a failure.
    output: Notify,
    /// Something for the writer: room, or a failure.
    room: Notify,
}

struct State {
    feed: Feed,
    failure: Failure,
    silent_bytes: usize,
}

enum Failure {
    None,
    Untold(Error),
    Told,
}

impl Pipeline {
    pub(super) fn build(recipe: Arc<Recipe>) -> Result<Pipeline> {
        recipe.ensure_installed()?;
        let wrong = |what: &dyn fmt::Display| {
            Error::internal(format!("pipelines/{}.toml cannot be built", recipe.name)).cause(what.to_string())
        };
        let element = gst::parse::launch(&recipe.launch).map_err(|error| wrong(&error))?;
        let pipeline = element.downcast::<gst::Pipeline>().map_err(|_| wrong(&"it is a single element"))?;
        let end = |name: &str| pipeline.by_name(name).ok_or_else(|| wrong(&format!("no element is named `{name}`")));
        let input = match pipeline.by_name("in") {
            None if recipe.is_source() => None,
            _ => Some(end("in")?.downcast::<AppSrc>().map_err(|_| wrong(&"`in` is no appsrc"))?),
        };
        let output = end("out")?.downcast::<AppSink>().map_err(|_| wrong(&"`out` is no appsink"))?;
        for (from, to) in [("split", "decode"), ("decode", "join")] {
            if let Some(from) = pipeline.by_name(from) {
                link_audio(&from, &end(to)?);
            }
        }

        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                feed: Feed::Stream(Stream::new(Unit::Bytes)),
                failure: Failure::None,
                silent_bytes: 0,
            }),
            output: Notify::new(),
            room: Notify::new(),
        });
        if let Some(decodebin) = pipeline.by_name("decode") {
            let refused = Arc::clone(&shared);
            allowed::guard(&decodebin, move |error| refused.fail(error))?;
        }
        input.iter().for_each(|input| connect_input(input, &shared));
        connect_output(&output, &shared);
        let bus = pipeline.bus().ok_or_else(|| wrong(&"it has no bus"))?;
        let (on_bus, of) = (Arc::clone(&shared), Arc::clone(&recipe));
        bus.set_sync_handler(move |_, message| {
            if let gst::MessageView::Error(message) = message.view() {
                on_bus.fail(bus::error(&of, message));
            }
            gst::BusSyncReply::Drop
        });
        Ok(Pipeline { pipeline, input, output, recipe, shared })
    }

    /// Sets the caps by element name (`in`, `decoded`, `wanted`) and runs.
    pub(super) fn start(&self, feed: Feed, caps: &[(&str, String)]) -> Result<()> {
        let (format, shape, size) = match &feed {
            Feed::Stream(stream) if stream.unit == Unit::Bytes => (gst::Format::Bytes, AppStreamType::Stream, -1),
            Feed::Stream(_) => (gst::Format::Time, AppStreamType::Stream, -1),
            Feed::Whole(whole) => (gst::Format::Bytes, AppStreamType::RandomAccess, whole.len as i64),
        };
        if let Some(input) = &self.input {
            input.set_format(format);
            input.set_stream_type(shape);
            input.set_size(size);
        }
        for (name, caps) in caps {
            if let Some(element) = self.pipeline.by_name(name) {
                let caps: gst::Caps = caps.parse().map_err(|error| {
                    Error::internal(format!("the caps `{caps}` are wrong")).cause(format!("{error}"))
                })?;
                element.set_property("caps", caps);
            }
        }
        *lock(&self.shared.state) = State { feed, failure: Failure::None, silent_bytes: 0 };
        // A full appsink holds a lock that starting needs, and nobody takes from it before it has started.
        self.output.set_max_buffers(0);
        let started = self.pipeline.set_state(gst::State::Playing);
        self.output.set_max_buffers(MAX_WAITING_BUFFERS);
        match started {
            Ok(_) => Ok(()),
            Err(error) => Err(self.shared.take_failure().unwrap_or_else(|| {
                Error::internal(format!("the {} {} does not start", self.recipe.name, self.recipe.work())).cause(error)
            })),
        }
    }

    /// Stops and forgets everything of this client: only in the state Null do all elements, the appsink's queue
    /// among them. False: not to be used again.
    pub(super) fn rest(&self) -> bool {
        let stopped = self.pipeline.set_state(gst::State::Null).is_ok();
        let mut state = lock(&self.shared.state);
        state.feed = Feed::Stream(Stream::new(Unit::Bytes));
        stopped && matches!(state.failure, Failure::None)
    }

    pub(super) fn name(&self) -> &'static str {
        self.recipe.name
    }

    /// As far as what is read says it, once it has been read.
    pub(super) fn duration(&self) -> Option<Duration> {
        self.pipeline.query_duration::<gst::ClockTime>().map(Into::into)
    }

    /// Waits until a chunk may be pushed, within the limit. Nothing is lost when the wait is given up.
    pub(super) async fn room(&self) -> Result<()> {
        let wait = async {
            while !self.shared.has_room() {
                self.shared.room.notified().await;
            }
        };
        timeout(WAIT_LIMIT, wait).await.map_err(|_| {
            Error::new(Kind::Timeout, format!("the {} {} takes no more data", self.recipe.name, self.recipe.work()))
                .hint("what is decoded must be taken away")
        })
    }

    /// Hands a chunk over; only after `room`. After a failure it is dropped: `next` tells of it.
    pub(super) fn push(&self, chunk: Bytes) {
        let mut state = lock(&self.shared.state);
        if !matches!(state.failure, Failure::None) {
            return;
        }
        let silent_bytes = state.silent_bytes + chunk.len();
        state.silent_bytes = silent_bytes;
        let Feed::Stream(stream) = &mut state.feed else { return };
        let silent = stream.unit == Unit::Bytes && silent_bytes > MAX_SILENT_BYTES;
        let now = stream.push(chunk);
        drop(state);
        if silent {
            let error = format!("the last {} MiB of {} data hold no audio", MAX_SILENT_BYTES >> 20, self.recipe.name);
            self.shared.fail(Error::invalid(error).hint("check that the encoding named is the one sent"));
        } else if let (Some(chunk), Some(input)) = (now, &self.input) {
            push_buffer(input, chunk);
        }
    }

    /// No more chunks; what is decoded still comes out.
    pub(super) fn end(&self) {
        let mut state = lock(&self.shared.state);
        let Feed::Stream(stream) = &mut state.feed else { return };
        let now = stream.end();
        drop(state);
        if let Some(input) = self.input.as_ref().filter(|_| now) {
            end_of_stream(input);
        }
        // The reader's wait has a limit from here on.
        self.shared.output.notify_one();
    }

    pub(super) fn fail(&self, error: Error) {
        self.shared.fail(error);
    }

    /// The next decoded buffer, `None` at the end. `limited` says whether a wait has a limit now: a client may be
    /// silent for hours, a decoder that has everything may not. Dropping the future loses nothing.
    pub(super) async fn next(&self, limited: impl Fn() -> bool) -> Option<Result<gst::Sample>> {
        loop {
            // 1. What was decoded before a failure comes out before the failure: look at the flag first.
            let failed = self.shared.failed();
            if let Some(sample) = self.output.try_pull_sample(gst::ClockTime::ZERO) {
                return Some(Ok(sample));
            }
            // An end that came since then may itself come from a failure: GStreamer tells that one first.
            if failed || self.output.is_eos() {
                return self.shared.take_failure().map(Err);
            }
            // 2. Nothing yet.
            let more = self.shared.output.notified();
            if !limited() {
                more.await;
            } else if timeout(WAIT_LIMIT, more).await.is_err() {
                let error =
                    Error::new(Kind::Timeout, format!("the {} {} is stuck", self.recipe.name, self.recipe.work()));
                self.shared.fail(error.hint("send the audio again, or in another encoding"));
            }
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if let Err(error) = self.pipeline.set_state(gst::State::Null) {
            log::warn!("the pipeline `{}` does not stop: {error}", self.recipe.name);
        }
    }
}

impl Shared {
    fn fail(&self, error: Error) {
        let mut state = lock(&self.state);
        // The first error is the cause, the others are its consequences.
        if matches!(state.failure, Failure::None) {
            state.failure = Failure::Untold(error);
        }
        drop(state);
        self.output.notify_one();
        self.room.notify_one();
    }

    fn failed(&self) -> bool {
        !matches!(lock(&self.state).failure, Failure::None)
    }

    fn take_failure(&self) -> Option<Error> {
        let mut state = lock(&self.state);
        if matches!(state.failure, Failure::None) {
            return None;
        }
        match std::mem::replace(&mut state.failure, Failure::Told) {
            Failure::Untold(error) => Some(error),
            _ => None,
        }
    }

    fn has_room(&self) -> bool {
        let state = lock(&self.state);
        match &state.feed {
            Feed::Stream(stream) => stream.has_room() || !matches!(state.failure, Failure::None),
            Feed::Whole(_) => true,
        }
    }
}

fn connect_input(input: &AppSrc, shared: &Arc<Shared>) {
    let (on_need, on_seek) = (Arc::clone(shared), Arc::clone(shared));
    let callbacks = AppSrcCallbacks::builder()
        .need_data(move |input, wanted| {
            let portion = lock(&on_need.state).feed.next(wanted as usize);
            match portion {
                Ok(Portion::Chunk(chunk)) => push_buffer(input, chunk),
                Ok(Portion::End) => end_of_stream(input),
                Ok(Portion::Later) => (),
                Err(error) => {
                    on_need.fail(Error::internal("the audio file cannot be read").cause(error));
                    end_of_stream(input);
                }
            }
            on_need.room.notify_one();
        })
        .seek_data(move |_, offset| match &mut lock(&on_seek.state).feed {
            Feed::Whole(whole) => {
                whole.at = offset;
                true
            }
            Feed::Stream(_) => false,
        })
        .build();
    input.set_callbacks(callbacks);
}

fn connect_output(output: &AppSink, shared: &Arc<Shared>) {
    output.set_sync(false);
    // Without preroll: starting waits for no data.
    output.set_async(false);
    output.set_enable_last_sample(false);
    // For the same reason as in `start`; what waits still comes out before the end is told.
    output.set_wait_on_eos(false);
    let (on_sample, on_end) = (Arc::clone(shared), Arc::clone(shared));
    let callbacks = AppSinkCallbacks::builder()
        .new_sample(move |_| {
            lock(&on_sample.state).silent_bytes = 0;
            on_sample.output.notify_one();
            Ok(gst::FlowSuccess::Ok)
        })
        .eos(move |_| on_end.output.notify_one())
        .build();
    output.set_callbacks(callbacks);
}

/// A demuxer's pad comes with the data, and again with each reuse; gst-launch's own delayed link works only once.
fn link_audio(from: &gst::Element, to: &gst::Element) {
    let to = to.downgrade();
    let complete = Arc::new(AtomicBool::new(false));
    let on_complete = Arc::clone(&complete);
    from.connect_no_more_pads(move |_| on_complete.store(true, Ordering::Release));
    from.connect_pad_added(move |_, pad| {
        let Some(sink) = to.upgrade().and_then(|to| to.static_pad("sink")) else { return };
        // A recorder that was started anew begins a new chain of Ogg in the same stream. Its pad comes before the
        // old one has gone, whose end would else be taken for the end of everything.
        if complete.swap(false, Ordering::AcqRel)
            && let Some(old) = sink.peer()
        {
            old.unlink(&sink).unwrap_or_else(|error| log::debug!("the chain before stays linked: {error}"));
        }
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let audio = caps.structure(0).is_some_and(|it| it.name().starts_with("audio/"));
        // A video track, or a second one of audio, is left alone.
        if audio
            && !sink.is_linked()
            && let Err(error) = pad.link(&sink)
        {
            log::debug!("a decoded pad does not fit: {error}");
        }
    });
}

/// Without copying. Refused only when the pipeline is stopping or has failed, and then nobody waits for it.
fn push_buffer(input: &AppSrc, chunk: Chunk) {
    let mut buffer = gst::Buffer::from_slice(chunk.bytes);
    // audioresample counts on from the first buffer's time; without one it keeps its last samples at the end.
    if chunk.first
        && let Some(buffer) = buffer.get_mut()
    {
        buffer.set_pts(gst::ClockTime::ZERO);
    }
    if let Err(flow) = input.push_buffer(buffer) {
        log::debug!("a chunk came too late: {flow}");
    }
}

fn end_of_stream(input: &AppSrc) {
    if let Err(flow) = input.end_of_stream() {
        log::debug!("the end came too late: {flow}");
    }
}

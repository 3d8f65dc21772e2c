//! One struct per thing worth counting; code says `emit(ChunkReceived { bytes })` and nothing about metrics.
//!
//! Labels come from closed lists (`&'static str`), so that no client can make the number of series grow.
//! Things that happen for every chunk or frame use handles that are made once.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::telemetry::Metrics;

/// Something that can be counted.
pub trait Countable {
    fn count(self);
}

pub fn emit(event: impl Countable) {
    event.count();
}

/// Bytes of audio came from a client.
pub struct ChunkReceived {
    pub bytes: usize,
}

/// Audio became 16 kHz samples.
pub struct SamplesDecoded {
    pub samples: usize,
}

/// A decoder gave up on what a client sent.
pub struct DecoderFailed {
    pub encoding: &'static str,
}

/// Frames of several streams went through the voice detector together.
pub struct VadBatchDone {
    pub frames: usize,
    pub elapsed: Duration,
}

/// A span of speech is complete.
pub struct SegmentCut {
    pub secs: f64,
}

/// Received audio of all sessions became durable with one fsync.
pub struct AudioSynced {
    pub bytes: usize,
}

/// The store committed a transaction, with one fsync.
pub struct StoreCommitted;

/// A reading of a segment that is being spoken: `done`; `left_out` because finals wait; `given_up` because its segment
/// ended or paused before; `failed`.
pub struct PartialEnded {
    pub outcome: &'static str,
    /// From asking to the answer.
    pub took: Option<Duration>,
}

/// Partials take so long that the next one waits longer than the settings say.
pub struct PartialStretched;

/// A final reading that was begun while it was not known whether speech had ended: it became the `final` one, was `given_up`
/// because speech went on, or was `left_out` because finals wait.
pub struct TrialEnded {
    pub outcome: &'static str,
}

/// A final text of which something had been committed: it is the `same` there, or what was committed was kept against it
/// (`spelling_kept`, `words_kept`).
pub struct FinalFitted {
    pub fit: &'static str,
}

/// A job left the queue for good: `done`, `failed`, `cancelled`, `timeout`, or `abandoned` by who asked.
pub struct JobEnded {
    pub task: &'static str,
    pub priority: &'static str,
    pub outcome: &'static str,
    /// From being asked to being answered.
    pub elapsed: Duration,
}

/// A full queue refused a job at the door.
pub struct QueueRefused {
    pub priority: &'static str,
}

/// The hub numbered an event.
pub struct EventPublished {
    pub kind: &'static str,
}

/// A message was handed to the broker.
pub struct MqttPublished;

/// The broker has confirmed a message.
pub struct MqttAcked;

/// An event that the broker cannot or does not take was left out.
pub struct MqttSkipped {
    pub reason: &'static str,
}

/// The connection to the broker stands again, or for the first time.
pub struct MqttConnected;

pub struct SocketOpened {
    pub route: &'static str,
}

pub struct SocketClosed {
    pub route: &'static str,
}

/// A client did not take what was sent to it and was closed.
pub struct ClientTooSlow {
    pub route: &'static str,
}

/// `route` is the pattern (`/sessions/{id}`), never the path.
pub struct HttpAnswered {
    pub method: &'static str,
    pub route: &'static str,
    pub status: u16,
    pub elapsed: Duration,
}

/// A connection was refused at the door.
pub struct ConnectionRefused;

/// How many sessions are live now.
pub struct SessionsLive {
    pub count: usize,
}

/// Handles for what happens per chunk, frame or event.
struct Hot {
    chunks: Counter,
    chunk_bytes: Counter,
    samples: Counter,
    vad_frames: Counter,
    vad_batch_size: Histogram,
    vad_seconds: Histogram,
    segments: Counter,
    segment_seconds: Histogram,
    audio_syncs: Counter,
    audio_synced_bytes: Counter,
    store_commits: Counter,
    mqtt_published: Counter,
    mqtt_acked: Counter,
    sessions: Gauge,
}

static HOT: LazyLock<Hot> = LazyLock::new(|| {
    // Handles made before there is a recorder would count into nothing for ever.
    Metrics::install();
    describe();
    Hot {
        chunks: counter!("vigia_audio_chunks_total"),
        chunk_bytes: counter!("vigia_audio_bytes_total"),
        samples: counter!("vigia_audio_samples_total"),
        vad_frames: counter!("vigia_vad_frames_total"),
        vad_batch_size: histogram!("vigia_vad_batch_size"),
        vad_seconds: histogram!("vigia_vad_batch_seconds"),
        segments: counter!("vigia_segments_total"),
        segment_seconds: histogram!("vigia_segment_seconds"),
        audio_syncs: counter!("vigia_audio_log_syncs_total"),
        audio_synced_bytes: counter!("vigia_audio_log_bytes_total"),
        store_commits: counter!("vigia_store_commits_total"),
        mqtt_published: counter!("vigia_mqtt_published_total"),
        mqtt_acked: counter!("vigia_mqtt_acked_total"),
        sessions: gauge!("vigia_sessions_live"),
    }
});

fn describe() {
    describe_counter!("vigia_audio_chunks_total", "Chunks of audio received.");
    describe_counter!("vigia_audio_bytes_total", "Bytes of audio received.");
    describe_counter!("vigia_audio_samples_total", "Samples decoded, at 16 kHz.");
    describe_counter!("vigia_decoder_errors_total", "Streams that a decoder gave up, by encoding.");
    describe_counter!("vigia_vad_frames_total", "Frames seen by the voice detector.");
    describe_histogram!("vigia_vad_batch_size", "Frames that went through the voice detector together.");
    describe_histogram!("vigia_vad_batch_seconds", "Time of one batch in the voice detector.");
    describe_counter!("vigia_segments_total", "Spans of speech cut.");
    describe_histogram!("vigia_segment_seconds", "Length of the spans of speech.");
    describe_counter!(
        "vigia_audio_log_syncs_total",
        "Times that received audio was made durable, of all sessions together."
    );
    describe_counter!("vigia_audio_log_bytes_total", "Bytes of received audio that were made durable.");
    describe_counter!("vigia_store_commits_total", "Transactions of the store.");
    describe_counter!("vigia_partials_total", "Readings of segments that were being spoken, by outcome.");
    describe_counter!("vigia_partials_stretched_total", "Partials after which the next one waits longer than set.");
    describe_histogram!("vigia_partial_seconds", "Time from asking for a partial to its answer.");
    describe_counter!("vigia_trials_total", "Final readings begun on trial when somebody paused, by outcome.");
    describe_counter!(
        "vigia_finals_fitted_total",
        "Final texts that something had been committed of, by how they fit it."
    );
    describe_counter!("vigia_jobs_total", "Jobs ended, by task, priority and outcome.");
    describe_histogram!("vigia_job_seconds", "Time from asking to the answer, by priority.");
    describe_counter!("vigia_queue_refused_total", "Jobs refused by a full queue, by priority.");
    describe_counter!("vigia_events_total", "Events published, by type.");
    describe_counter!("vigia_mqtt_published_total", "Messages handed to the MQTT broker.");
    describe_counter!("vigia_mqtt_acked_total", "Messages that the MQTT broker has confirmed.");
    describe_counter!("vigia_mqtt_skipped_total", "Events not sent to the MQTT broker, by reason.");
    describe_counter!("vigia_mqtt_connects_total", "Connections made to the MQTT broker.");
    describe_gauge!("vigia_sockets_open", "Open WebSockets, by route.");
    describe_counter!("vigia_clients_too_slow_total", "Clients closed because they did not read, by route.");
    describe_counter!("vigia_http_requests_total", "Requests answered, by method, route and status.");
    describe_histogram!("vigia_http_request_seconds", "Time of answering, by route.");
    describe_counter!("vigia_connections_refused_total", "Connections refused at the door.");
    describe_gauge!("vigia_sessions_live", "Live sessions.");
}

/// Samples of a histogram wait in memory until somebody renders. Nobody may ever do so; every so many samples
/// the one who brings the last of them sorts them in.
fn record(histogram: &Histogram, value: f64) {
    const WAITING_AT_MOST: usize = 4096;
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    histogram.record(value);
    if WAITING.fetch_add(1, Ordering::Relaxed) % WAITING_AT_MOST == WAITING_AT_MOST - 1 {
        Metrics::install().upkeep();
    }
}

impl Countable for ChunkReceived {
    fn count(self) {
        HOT.chunks.increment(1);
        HOT.chunk_bytes.increment(self.bytes as u64);
    }
}

impl Countable for SamplesDecoded {
    fn count(self) {
        HOT.samples.increment(self.samples as u64);
    }
}

impl Countable for VadBatchDone {
    fn count(self) {
        HOT.vad_frames.increment(self.frames as u64);
        record(&HOT.vad_batch_size, self.frames as f64);
        record(&HOT.vad_seconds, self.elapsed.as_secs_f64());
    }
}

impl Countable for SegmentCut {
    fn count(self) {
        HOT.segments.increment(1);
        record(&HOT.segment_seconds, self.secs);
    }
}

impl Countable for AudioSynced {
    fn count(self) {
        HOT.audio_syncs.increment(1);
        HOT.audio_synced_bytes.increment(self.bytes as u64);
    }
}

impl Countable for StoreCommitted {
    fn count(self) {
        HOT.store_commits.increment(1);
    }
}

impl Countable for MqttPublished {
    fn count(self) {
        HOT.mqtt_published.increment(1);
    }
}

impl Countable for MqttAcked {
    fn count(self) {
        HOT.mqtt_acked.increment(1);
    }
}

impl Countable for SessionsLive {
    fn count(self) {
        HOT.sessions.set(self.count as f64);
    }
}

/// What happens a few times a second at most is looked up each time, after the recorder is there.
pub(super) fn ready() {
    LazyLock::force(&HOT);
}

impl Countable for DecoderFailed {
    fn count(self) {
        ready();
        counter!("vigia_decoder_errors_total", "encoding" => self.encoding).increment(1);
    }
}

impl Countable for PartialEnded {
    fn count(self) {
        ready();
        counter!("vigia_partials_total", "outcome" => self.outcome).increment(1);
        if let Some(took) = self.took {
            record(&histogram!("vigia_partial_seconds"), took.as_secs_f64());
        }
    }
}

impl Countable for PartialStretched {
    fn count(self) {
        ready();
        counter!("vigia_partials_stretched_total").increment(1);
    }
}

impl Countable for TrialEnded {
    fn count(self) {
        ready();
        counter!("vigia_trials_total", "outcome" => self.outcome).increment(1);
    }
}

impl Countable for FinalFitted {
    fn count(self) {
        ready();
        counter!("vigia_finals_fitted_total", "fit" => self.fit).increment(1);
    }
}

impl Countable for JobEnded {
    fn count(self) {
        ready();
        let JobEnded { task, priority, outcome, elapsed } = self;
        counter!("vigia_jobs_total", "task" => task, "priority" => priority, "outcome" => outcome).increment(1);
        record(&histogram!("vigia_job_seconds", "task" => task, "priority" => priority), elapsed.as_secs_f64());
    }
}

impl Countable for QueueRefused {
    fn count(self) {
        ready();
        counter!("vigia_queue_refused_total", "priority" => self.priority).increment(1);
    }
}

impl Countable for EventPublished {
    fn count(self) {
        ready();
        counter!("vigia_events_total", "type" => self.kind).increment(1);
    }
}

impl Countable for MqttSkipped {
    fn count(self) {
        ready();
        counter!("vigia_mqtt_skipped_total", "reason" => self.reason).increment(1);
    }
}

impl Countable for MqttConnected {
    fn count(self) {
        ready();
        counter!("vigia_mqtt_connects_total").increment(1);
    }
}

impl Countable for SocketOpened {
    fn count(self) {
        ready();
        gauge!("vigia_sockets_open", "route" => self.route).increment(1.0);
    }
}

impl Countable for SocketClosed {
    fn count(self) {
        ready();
        gauge!("vigia_sockets_open", "route" => self.route).decrement(1.0);
    }
}

impl Countable for ClientTooSlow {
    fn count(self) {
        ready();
        counter!("vigia_clients_too_slow_total", "route" => self.route).increment(1);
    }
}

impl Countable for HttpAnswered {
    fn count(self) {
        ready();
        let status = self.status.to_string();
        counter!("vigia_http_requests_total", "method" => self.method, "route" => self.route, "status" => status)
            .increment(1);
        record(&histogram!("vigia_http_request_seconds", "route" => self.route), self.elapsed.as_secs_f64());
    }
}

impl Countable for ConnectionRefused {
    fn count(self) {
        ready();
        counter!("vigia_connections_refused_total").increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_stands_in_the_text() {
        emit(ChunkReceived { bytes: 640 });
        emit(SamplesDecoded { samples: 320 });
        emit(DecoderFailed { encoding: "ogg" });
        emit(VadBatchDone { frames: 32, elapsed: Duration::from_millis(1) });
        emit(SegmentCut { secs: 1.5 });
        emit(AudioSynced { bytes: 640 });
        emit(StoreCommitted);
        emit(JobEnded { task: "chat", priority: "live", outcome: "done", elapsed: Duration::from_millis(3) });
        emit(QueueRefused { priority: "batch" });
        emit(EventPublished { kind: "speech" });
        emit(MqttPublished);
        emit(MqttAcked);
        emit(MqttSkipped { reason: "too_large" });
        emit(MqttConnected);
        emit(SocketOpened { route: "/ws/test" });
        emit(SocketOpened { route: "/ws/test" });
        emit(SocketClosed { route: "/ws/test" });
        emit(ClientTooSlow { route: "/ws/test" });
        emit(HttpAnswered { method: "GET", route: "/test/{id}", status: 404, elapsed: Duration::from_millis(3) });
        emit(ConnectionRefused);
        emit(SessionsLive { count: 3 });
        let text = Metrics::install().render();
        // Other tests of this process count too: only series of this test's own labels are compared exactly.
        for part in [
            "vigia_audio_chunks_total ",
            "vigia_audio_bytes_total ",
            "vigia_audio_samples_total ",
            "vigia_decoder_errors_total{encoding=\"ogg\"} ",
            "vigia_vad_batch_size_bucket{le=\"32\"} ",
            "vigia_vad_batch_seconds_count ",
            "vigia_segments_total ",
            "vigia_audio_log_syncs_total ",
            "vigia_audio_log_bytes_total ",
            "vigia_store_commits_total ",
            "vigia_jobs_total{task=\"chat\",priority=\"live\",outcome=\"done\"} ",
            "vigia_queue_refused_total{priority=\"batch\"} ",
            "vigia_events_total{type=\"speech\"} ",
            "vigia_mqtt_published_total ",
            "vigia_mqtt_acked_total ",
            "vigia_mqtt_skipped_total{reason=\"too_large\"} ",
            "vigia_mqtt_connects_total ",
            "vigia_sockets_open{route=\"/ws/test\"} 1\n",
            "vigia_clients_too_slow_total{route=\"/ws/test\"} 1\n",
            "vigia_http_requests_total{method=\"GET\",route=\"/test/{id}\",status=\"404\"} 1\n",
            "vigia_http_request_seconds_bucket{route=\"/test/{id}\",le=\"0.005\"} 1\n",
            "vigia_connections_refused_total ",
            "vigia_sessions_live ",
            "# HELP vigia_sessions_live Live sessions.\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}

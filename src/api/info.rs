//! What the box is and how it is: `/`, health, capabilities, metrics. Asks everyone, changes nothing.

use std::{fs, time::Duration};

use hyper::StatusCode;
use tokio::time::timeout;

use crate::{
    api::{
        Context,
        call::{self, Call, found, json, text},
        error::Reply,
        wire::{About, Capabilities, ErrorBody, Health, HealthStatus, MemoryHealth, MqttHealth, Queues, TaskHealth},
    },
    base::Error,
    device::MemoryKind,
    engines::{TaskState, TaskStatus},
    publish::MqttStatus,
};

/// A store that does not answer within this is not ready.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// What this is
///
/// A browser is sent to the dashboard.
#[utoipa::path(get, path = "/", tag = "information", responses(
    (status = 200, description = "Name, version, and where to go on", body = About),
    (status = 302, description = "For a browser (`Accept: text/html`): to `/ui`"),
))]
pub(crate) async fn about(call: Call) -> Reply {
    if call.wants_html() {
        return Ok(found("/ui"));
    }
    let version = env!("CARGO_PKG_VERSION");
    Ok(json(StatusCode::OK, &About { name: "vigia", version, docs: "/docs", ui: "/ui" }))
}

/// Is the process alive?
///
/// Open to all, even where keys are needed.
#[utoipa::path(get, path = "/healthz", tag = "information", responses(
    (status = 200, description = "It is", body = String, content_type = "text/plain", example = "ok"),
))]
pub(crate) async fn healthz(_: Call) -> Reply {
    Ok(text(StatusCode::OK, "ok"))
}

/// May requests be sent here?
#[utoipa::path(get, path = "/readyz", tag = "information", responses(
    (status = 200, description = "They may", body = String, content_type = "text/plain", example = "ok"),
    (status = 503, description = "Not now; the message says why", body = ErrorBody),
))]
pub(crate) async fn readyz(call: Call) -> Reply {
    let context = call.context();
    let mut reasons = Vec::new();
    if context.shutdown.started() {
        reasons.push("the daemon is stopping".to_owned());
    }
    match timeout(STORE_TIMEOUT, context.store.has_keys()).await {
        Ok(Ok(_)) => (),
        Ok(Err(error)) => reasons.push(error.message().to_owned()),
        Err(_) => reasons.push("the store does not answer".to_owned()),
    }
    if reasons.is_empty() {
        return Ok(text(StatusCode::OK, "ok"));
    }
    Err(Error::unavailable(format!("not ready: {}", reasons.join("; "))).hint("GET /api/health says more").into())
}

/// How is it?
///
/// The machine, the state of every task, memory, queues and MQTT. `degraded` means that something is not as the
/// settings ask; `problems` says what.
#[utoipa::path(get, path = "/api/health", tag = "information", responses(
    (status = 200, description = "Health", body = Health),
))]
pub(crate) async fn health(call: Call) -> Reply {
    Ok(json(StatusCode::OK, &current(call.context())))
}

/// What can this machine do?
#[utoipa::path(get, path = "/api/system/capabilities", tag = "information", responses(
    (status = 200, description = "The machine and its profile", body = Capabilities),
))]
pub(crate) async fn capabilities(call: Call) -> Reply {
    Ok(json(StatusCode::OK, &hardware(call.context())))
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "information", responses(
    (status = 200, description = "Prometheus text", body = String, content_type = "text/plain"),
))]
pub(crate) async fn metrics(call: Call) -> Reply {
    let rendered = call.context().metrics.render();
    Ok(call::typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", rendered))
}

/// The health that `/api/health` shows and MQTT publishes.
pub fn current(context: &Context) -> Health {
    let statuses = context.registry.statuses();
    let mqtt = mqtt(&context.mqtt.borrow());
    let depth = context.queue.depth();
    let problems = problems(context, &statuses, &mqtt);
    Health {
        status: if problems.is_empty() { HealthStatus::Ok } else { HealthStatus::Degraded },
        problems,
        version: env!("CARGO_PKG_VERSION"),
        node: context.settings.node.name.clone(),
        hardware: hardware(context),
        tasks: statuses.into_iter().map(|status| (status.task.name().to_owned(), task(status))).collect(),
        memory: memory(context),
        engine_builds: context.registry.engine_builds(),
        remotes: context.registry.remote_health(),
        queues: Queues { live: depth.live, interactive: depth.interactive, batch: depth.batch },
        mqtt,
        sessions: context.sessions.count(),
        uptime_secs: context.started.elapsed().as_secs(),
    }
}

/// What the settings ask for and is not there. A task without a model is off, which is no problem.
fn problems(context: &Context, statuses: &[TaskStatus], mqtt: &MqttHealth) -> Vec<String> {
    let mut problems: Vec<String> = statuses
        .iter()
        .filter(|status| status.state == TaskState::Unavailable || status.reason.is_some())
        .filter(|status| context.settings.model_for(status.task).is_some())
        .map(|status| {
            let reason = status.reason.as_deref().unwrap_or("it is unavailable");
            format!("{}: {reason}", status.task.name())
        })
        .collect();
    problems.extend(context.registry.catalogue_problems().iter().cloned());
    if let Some(reason) = &mqtt.reason {
        problems.push(format!("mqtt: {reason}"));
    }
    problems
}

fn task(status: TaskStatus) -> TaskHealth {
    TaskHealth {
        state: status.state.name(),
        model: status.model,
        variant: status.variant,
        provider: status.provider,
        device: status.device,
        reason: status.reason,
    }
}

fn memory(context: &Context) -> MemoryHealth {
    let ledgers = context.registry.ledgers();
    let first = ledgers.first();
    let daemon = resident_bytes();
    MemoryHealth {
        budget: first.map(|ledger| ledger.limit),
        reserved: first.map_or(0, |ledger| ledger.reserved),
        daemon,
        measured: daemon,
        ledgers,
    }
}

fn mqtt(status: &MqttStatus) -> MqttHealth {
    let (state, reason) = match status {
        MqttStatus::Off => ("off", None),
        MqttStatus::Connecting => ("connecting", None),
        MqttStatus::Connected => ("connected", None),
        MqttStatus::Failed { reason } => ("failed", Some(reason.clone())),
    };
    MqttHealth { state, reason }
}

fn hardware(context: &Context) -> Capabilities {
    let facts = &context.facts;
    let gpu = facts.gpus.first();
    Capabilities {
        cpu_cores: facts.cpu_cores,
        ram_gb: gib(facts.usable_ram_bytes()),
        gpu_model: gpu.map_or("CPU Only", |gpu| &gpu.name).to_owned(),
        gpu_vram_gb: gib(facts.gpu_memory_bytes()),
        device: if gpu.is_some() { "cuda" } else { "cpu" },
        profile: context.profile.name.clone(),
        profile_why: context.profile.why.clone(),
        memory_kind: match facts.memory_kind {
            MemoryKind::Dedicated => "dedicated",
            MemoryKind::Unified => "unified",
            MemoryKind::None => "none",
        },
        jetpack: facts.jetson.as_ref().and_then(|jetson| jetson.jetpack.clone()),
        arch: facts.arch.clone(),
        os: facts.os.clone(),
        kernel: facts.kernel.clone(),
        cpu_model: facts.cpu_model.clone(),
        notes: facts.notes.clone(),
    }
}

fn gib(bytes: u64) -> f64 {
    let tenths = (bytes as f64 / (1_u64 << 30) as f64 * 10.0).round();
    tenths / 10.0
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_people_say_them() {
        assert_eq!(gib(0), 0.0);
        assert_eq!(gib(16_700_000_000), 15.6);
    }

    #[test]
    fn our_own_memory_is_known() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}

//! How every task stands, as `/api/health` says it.

use serde::Serialize;

use crate::{
    base::lock,
    engines::{
        Registry,
        registry::{Failure, kinds},
    },
    flow::{Task, Warning, WarningCode},
    models::{Ledger, LedgerModel, Phase},
    settings::Provider,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Ready,
    /// Installed; loaded by the first who needs it.
    Cold,
    Loading,
    Unavailable,
}

impl TaskState {
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Ready => "ready",
            TaskState::Cold => "cold",
            TaskState::Loading => "loading",
            TaskState::Unavailable => "unavailable",
        }
    }
}

/// What `/api/health` says of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskStatus {
    pub task: Task,
    pub state: TaskState,
    pub model: Option<String>,
    pub variant: Option<String>,
    pub provider: Option<String>,
    pub device: Option<String>,
    pub reason: Option<String>,
}

impl Registry {
    /// How every task stands now.
    pub fn statuses(&self) -> Vec<TaskStatus> {
        let ledgers = self.ledgers();
        Task::ALL.into_iter().map(|task| self.status(task, &ledgers)).collect()
    }

    pub fn state(&self, task: Task) -> TaskState {
        self.status(task, &self.ledgers()).state
    }

    /// What whoever reads a result of these tasks has to know of who made it, where that is not what the settings want
    /// first.
    pub fn instead(&self, tasks: &[Task]) -> Vec<Warning> {
        let failures = lock(&self.0.failures);
        let told = tasks.iter().filter_map(|task| Some((task, failures.get(task)?)));
        let told = told.filter(|(_, failure)| failure.runs());
        let message = |(task, failure): (&Task, &Failure)| format!("{} {}", task.name(), failure.reason);
        told.map(|told| Warning { code: WarningCode::Instead, message: message(told) }).collect()
    }

    fn status(&self, task: Task, ledgers: &[Ledger]) -> TaskStatus {
        let failure = self.failure(task);
        let model = self.0.settings.model_for(task).map(str::to_owned);
        let mut status = TaskStatus {
            task,
            state: TaskState::Cold,
            model,
            variant: None,
            provider: None,
            device: None,
            reason: failure.as_ref().map(|failure| failure.reason.clone()),
        };
        if let Err(error) = self.installed(task) {
            return TaskStatus { state: TaskState::Unavailable, reason: Some(error.full()), ..status };
        }
        if let Some((name, _)) = self.0.settings.remote_for(task) {
            status.provider = Some("remote".to_owned());
            status.device = Some(name.to_owned());
            let trouble = self.remote(name).ok().and_then(|remote| remote.trouble(task));
            status.state = if trouble.is_some() { TaskState::Unavailable } else { TaskState::Ready };
            status.reason = trouble.or(status.reason);
        } else if task == Task::Vad {
            status.provider = Some(Provider::Cpu.name().to_owned());
            status.device = Some("cpu".to_owned());
            status.state = *lock(&self.0.voice_state);
        } else if let Ok(serving) = kinds::serving(task, &self.stock()) {
            let is_wanted = |row: &LedgerModel| row.key.variant == serving.variant;
            let rows = ledgers.iter().flat_map(|ledger| &ledger.models).filter(|row| row.key.model == serving.model);
            // Another engine of the model is none of this task's.
            let rows = rows.filter(|row| is_wanted(row) || row.instead_of.is_some());
            let row = rows.min_by_key(|row| (row.state != Phase::Ready, !is_wanted(row)));
            status.state = match row.map(|row| row.state) {
                Some(Phase::Ready) => TaskState::Ready,
                Some(Phase::Loading) => TaskState::Loading,
                _ => TaskState::Cold,
            };
            let wanted = serving.providers.first().map(|provider| provider.name().to_owned());
            let provider = row.map(|row| row.key.provider.clone()).or(wanted);
            status.device = provider.as_ref().map(|name| if name == "cpu" { "cpu" } else { "gpu" }.to_owned());
            status.provider = provider;
            status.variant = row.map(|row| row.key.variant.clone()).or(Some(serving.variant));
        }
        let fails = failure.is_some_and(|failure| !failure.runs());
        let works = status.state == TaskState::Ready || !fails;
        if works { status } else { TaskStatus { state: TaskState::Unavailable, ..status } }
    }
}

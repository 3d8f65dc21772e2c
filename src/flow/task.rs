//! The kinds of work an engine can do, by the names that settings, health and MQTT topics use; and who goes first.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    Vad,
    Transcribe,
    Diarize,
    Describe,
    Chat,
    Speak,
    Paint,
    Read,
    Detect,
}

impl Task {
    pub const ALL: [Task; 9] = [
        Task::Vad,
        Task::Transcribe,
        Task::Diarize,
        Task::Describe,
        Task::Chat,
        Task::Speak,
        Task::Paint,
        Task::Read,
        Task::Detect,
    ];

    /// Those that make a transcript.
    pub fn of_transcript(diarizes: bool) -> &'static [Task] {
        if diarizes { &[Task::Transcribe, Task::Diarize] } else { &[Task::Transcribe] }
    }

    pub fn name(self) -> &'static str {
        match self {
            Task::Vad => "vad",
            Task::Transcribe => "transcribe",
            Task::Diarize => "diarize",
            Task::Describe => "describe",
            Task::Chat => "chat",
            Task::Speak => "speak",
            Task::Paint => "paint",
            Task::Read => "read",
            Task::Detect => "detect",
        }
    }
}

/// Lets settings, which know no module of their own layer, be asked by task.
impl AsRef<str> for Task {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

/// Who goes first. Live work is what somebody is speaking right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Live,
    Interactive,
    Batch,
}

impl Priority {
    pub const ALL: [Priority; 3] = [Priority::Live, Priority::Interactive, Priority::Batch];

    pub fn name(self) -> &'static str {
        match self {
            Priority::Live => "live",
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
        }
    }
}

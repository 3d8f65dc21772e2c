//! The kinds of engines that can be hired, each with its task: the one list that grows with every kind.

use crate::{
    base::Result,
    engines::{
        Asr, Chat, Describe, Speak, Speakers, Voiceprints,
        registry::{
            Hireable,
            serving::{Serving, Stock},
            smaller::Smaller,
            voices,
        },
        remote::Remote,
    },
    flow::Task,
};

impl Hireable for Asr {
    const TASK: Task = Task::Transcribe;

    fn serving(stock: &Stock<'_>) -> Result<Serving> {
        stock.transcriber(stock.model(Task::Transcribe)?)
    }

    fn smaller(stock: &Stock<'_>, wanted: &Serving) -> Result<Smaller> {
        stock.smaller_transcribers(wanted)
    }

    fn elsewhere(remote: &Remote, model: &str) -> Result<Asr> {
        remote.transcriber(model).map(Asr)
    }
}

impl Hireable for Speakers {
    const TASK: Task = Task::Diarize;

    fn serving(stock: &Stock<'_>) -> Result<Serving> {
        voices::speakers(stock)
    }
}

/// The model of voices that goes with the diarizer, for one utterance at a time.
impl Hireable for Voiceprints {
    const TASK: Task = Task::Diarize;

    fn serving(stock: &Stock<'_>) -> Result<Serving> {
        voices::voiceprints(stock)
    }
}

/// Elsewhere alone so far, as are the next two.
impl Hireable for Chat {
    const TASK: Task = Task::Chat;

    fn elsewhere(remote: &Remote, model: &str) -> Result<Chat> {
        remote.chatter(model).map(Chat)
    }
}

impl Hireable for Describe {
    const TASK: Task = Task::Describe;

    fn elsewhere(remote: &Remote, model: &str) -> Result<Describe> {
        remote.describer(model).map(Describe)
    }
}

impl Hireable for Speak {
    const TASK: Task = Task::Speak;

    fn elsewhere(remote: &Remote, model: &str) -> Result<Speak> {
        remote.speaker(model).map(Speak)
    }
}

/// What health shows of a task: the engine that does its main work.
pub(super) fn serving(task: Task, stock: &Stock<'_>) -> Result<Serving> {
    match task {
        Task::Transcribe => Asr::serving(stock),
        Task::Diarize => Speakers::serving(stock),
        _ => stock.not_yet(task),
    }
}

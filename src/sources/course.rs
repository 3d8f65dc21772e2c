//! The course of a session: when its takes begin and end, which client it has, who is let in next, and when it is over.
//! Pure: it knows no clock, no wire and no audio. The session's task tells it what happens and does what it says.
//!
//! 1. A session outlives its client. A line that breaks leaves the take open; who comes back goes on in it. Only after
//!    the window (`audio.resume_secs`) is the take finished and the session over.
//! 2. A client that says goodbye is done: its take is finished, and with it the session.
//! 3. The newer of two clients wins. One that resumes goes on in the take of the older; another one waits until that
//!    take is finished, and begins its own.
//! 4. A daemon that stops leaves everything as it is. The next one goes on with it, as after a crash.

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    /// The client sends audio …
    Audio,
    /// … says that its take is complete …
    End,
    /// … or wants it dropped.
    Cancel,
    /// All that the client sent is taken in, and no more comes. `done`: it said goodbye.
    Left { done: bool },
    /// A newer client is at the door.
    Came { resumes: bool },
    /// The one that was to be let in has not waited, or could not be served.
    WentAway,
    /// The take is finished or dropped.
    TakeOver,
    /// No client has come within the window.
    WindowOver,
    /// The daemon stops.
    Stop,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    BeginTake,
    /// What was sent is heard to its end, transcribed and told; then the take is over.
    FinishTake,
    DropTake,
    /// A take that held nothing has a result too.
    SayEmpty,
    /// The one at the door is the client now. Of the older one nothing more is read.
    LetIn {
        resumed: bool,
    },
    /// The client may come back within the window.
    AwaitClient,
    /// The session is over.
    EndSession,
    /// The daemon stops; the session stays open.
    Leave,
}

/// How far the session's take is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    None,
    Open,
    Finishing,
}

#[derive(Debug, Clone)]
pub(super) struct Course {
    /// Whether clients may come back at all.
    resumable: bool,
    /// Whether the session was there before its next client.
    known: bool,
    take: Stage,
    present: bool,
    /// Somebody is at the door; whether it resumes.
    door: Option<bool>,
    /// When the take is over, the session is.
    ends: bool,
}

impl Course {
    /// Of a session that begins with its first client.
    pub(super) fn new(resumable: bool) -> Course {
        Course { resumable, known: false, take: Stage::None, present: false, door: None, ends: false }
    }

    /// Of a session that an earlier daemon left open.
    pub(super) fn left_open(resumable: bool, take: Stage) -> Course {
        Course { known: true, take, ..Course::new(resumable) }
    }

    /// Whether what the client says next is to be looked at.
    pub(super) fn listens(&self) -> bool {
        self.take != Stage::Finishing
    }

    pub(super) fn take_is_open(&self) -> bool {
        self.take == Stage::Open
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.take == Stage::Finishing
    }

    pub(super) fn has_client(&self) -> bool {
        self.present
    }

    /// Whether it had a client before, be it of an earlier daemon.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    pub(super) fn on(&mut self, happening: Happening) -> Option<Duty> {
        match happening {
            Happening::Audio => self.audio(),
            Happening::End => match self.take {
                Stage::None => Some(Duty::SayEmpty),
                Stage::Open => self.finish(),
                Stage::Finishing => None,
            },
            Happening::Cancel => {
                let open = self.take == Stage::Open;
                open.then(|| {
                    self.take = Stage::Finishing;
                    Duty::DropTake
                })
            }
            Happening::Left { done } => self.left(done),
            Happening::Came { resumes } => self.came(resumes),
            Happening::WentAway => self.left(false),
            Happening::TakeOver => self.take_over(),
            Happening::WindowOver => self.wind_up(),
            Happening::Stop if self.resumable => Some(Duty::Leave),
            Happening::Stop => self.wind_up(),
        }
    }

    fn audio(&mut self) -> Option<Duty> {
        let begins = self.take == Stage::None;
        begins.then(|| {
            self.take = Stage::Open;
            Duty::BeginTake
        })
    }

    fn finish(&mut self) -> Option<Duty> {
        self.take = Stage::Finishing;
        Some(Duty::FinishTake)
    }

    fn left(&mut self, done: bool) -> Option<Duty> {
        self.present = false;
        match self.door {
            Some(resumes) => self.came(resumes),
            None if done || !self.resumable => self.wind_up(),
            None => Some(Duty::AwaitClient),
        }
    }

    fn came(&mut self, resumes: bool) -> Option<Duty> {
        self.door = Some(resumes);
        match (resumes, self.take) {
            (true, _) => self.let_in(),
            // What the older client had sent is part of its take.
            (false, _) if self.present => None,
            (false, Stage::None) => self.let_in(),
            (false, Stage::Open) => self.finish(),
            (false, Stage::Finishing) => None,
        }
    }

    fn let_in(&mut self) -> Option<Duty> {
        let resumed = self.door.take().unwrap_or_default() && self.known;
        self.known = true;
        self.present = true;
        self.ends = false;
        Some(Duty::LetIn { resumed })
    }

    fn take_over(&mut self) -> Option<Duty> {
        self.take = Stage::None;
        if self.door.is_some() && !self.present {
            self.let_in()
        } else if self.ends {
            Some(Duty::EndSession)
        } else {
            None
        }
    }

    /// Nobody is waited for any more.
    fn wind_up(&mut self) -> Option<Duty> {
        self.ends = true;
        match self.take {
            Stage::None => Some(Duty::EndSession),
            Stage::Open => self.finish(),
            Stage::Finishing => None,
        }
    }
}

//! Any order of {audio, cut, goodbye, resume, second client, kill, stop, end, cancel, waiting in vain, partials}: each sample
//! is heard once and in order, nothing is acknowledged that a kill would take, no segment is told twice with another
//! content, what was told as committed begins all later texts of its segment, and a session ends once. Drives the pure parts (`course`, `marks`, `chunks`) as the session's task does, with a
//! disk whose writes become durable when the test says so.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{
    segment::{CommitRule, Committer, Reading, Span},
    sources::{
        chunks::Chunks,
        committed::Commitments,
        course::{Course, Duty, Happening, Stage},
        kept::Owed,
        marks::Marks,
    },
};

/// Samples of one segment: here speech is cut by the clock.
const SEGMENT: u64 = 10;
/// A checkpoint comes at each cut, and after so many samples besides.
const MARK: u64 = 7;
/// The client numbers its chunks.
const CHUNK: u64 = 3;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// The client sends that many chunks.
    Audio(u8),
    /// The audio log makes durable what it has.
    Sync,
    /// The store commits what it has.
    Commit,
    /// The oldest segment that is owed gets its text.
    Text,
    /// The segment that is being spoken is read.
    Read,
    Cut,
    Goodbye,
    Resume,
    /// Also while the older client is there.
    Second {
        resumes: bool,
    },
    Kill,
    Stop,
    End,
    Cancel,
    WindowOver,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1..6u8).prop_map(Op::Audio),
        4 => Just(Op::Sync),
        4 => Just(Op::Commit),
        4 => Just(Op::Text),
        6 => Just(Op::Read),
        3 => Just(Op::Cut),
        1 => Just(Op::Goodbye),
        4 => Just(Op::Resume),
        1 => any::<bool>().prop_map(|resumes| Op::Second { resumes }),
        3 => Just(Op::Kill),
        1 => Just(Op::Stop),
        2 => Just(Op::End),
        1 => Just(Op::Cancel),
        1 => Just(Op::WindowOver),
    ]
}

/// A take as of one sample.
#[derive(Debug, Clone, Default)]
struct State {
    heard: u64,
    next_segment: u64,
    owed: Vec<Owed>,
    ended: bool,
}

/// What goes to the store, in its order.
#[derive(Debug, Clone)]
enum Entry {
    Checkpoint { take: u64, state: State },
    Committed { id: u64, text: String },
    Segment { take: u64, id: u64, span: Span, text: String },
    Final { take: u64, samples: u64 },
    Dropped { samples: u64, next_segment: u64 },
    Ended,
}

/// What a killed daemon leaves.
#[derive(Debug, Default)]
struct Disk {
    /// The audio of each take, and how much of it is durable.
    audio: BTreeMap<u64, (Vec<u64>, usize)>,
    entries: Vec<Entry>,
    committed: usize,
}

#[derive(Debug)]
struct OpenTake {
    number: u64,
    marks: Marks,
    chunks: Chunks,
    heard: u64,
    /// As of the last checkpoint.
    unmarked: u64,
    next_segment: u64,
    owed: Vec<Owed>,
    ended: bool,
    /// Of the segment that is being spoken, and of those that are owed.
    committers: BTreeMap<u64, Committer>,
}

#[derive(Debug)]
struct Daemon {
    course: Course,
    take: Option<OpenTake>,
    takes: u64,
    /// Samples of the takes that are over.
    samples: u64,
    next_segment: u64,
    /// The session is not over.
    open: bool,
}

/// Sends samples whose value is their number in the take, in numbered chunks.
#[derive(Debug, Default)]
struct Client {
    connected: bool,
    /// The next sample of the take that it sends.
    at: u64,
}

struct World {
    disk: Disk,
    daemon: Daemon,
    client: Client,
    acknowledged: BTreeMap<u64, u64>,
    /// What was told as committed of each segment, in order.
    promised: BTreeMap<u64, Vec<String>>,
    /// Daemons so far: each reads the same audio otherwise.
    runs: u64,
}

impl World {
    fn new() -> World {
        let course = Course::new(true);
        let daemon = Daemon { course, take: None, takes: 0, samples: 0, next_segment: 0, open: true };
        let mut world = World {
            disk: Disk::default(),
            daemon,
            client: Client::default(),
            acknowledged: BTreeMap::new(),
            promised: BTreeMap::new(),
            runs: 0,
        };
        world.come(false);
        world
    }

    fn run(&mut self, op: Op) {
        if !self.daemon.open {
            // A new session of the same name: only what was kept counts.
            self.daemon.open = true;
            self.daemon.course = Course::new(true);
            self.client.connected = false;
            self.disk.entries.retain(|entry| !matches!(entry, Entry::Ended));
            self.commit();
        }
        match op {
            Op::Audio(chunks) => (0..chunks).for_each(|_| self.chunk()),
            Op::Sync => self.sync(),
            Op::Commit => self.commit(),
            Op::Text => self.text(),
            Op::Read => self.read(),
            Op::Cut if self.client.connected => self.leave(false),
            Op::Goodbye if self.client.connected => self.leave(true),
            Op::Resume if !self.client.connected => self.come(true),
            Op::Second { resumes } => self.come(resumes),
            Op::Kill => self.kill(),
            Op::Stop => {
                // Everything that it had is written in order, and nothing is decided.
                assert_eq!(self.daemon.course.on(Happening::Stop), Some(Duty::Leave));
                self.sync();
                self.commit();
                self.kill();
            }
            Op::End if self.client.connected && self.daemon.course.listens() => self.on(Happening::End),
            Op::Cancel if self.client.connected && self.daemon.course.listens() => self.on(Happening::Cancel),
            Op::WindowOver if !self.daemon.course.has_client() => self.on(Happening::WindowOver),
            _ => {}
        }
        self.settle();
    }

    fn come(&mut self, resumes: bool) {
        // A client that does not resume is let in when the older one has left: that one is told to.
        let present = self.daemon.course.has_client();
        self.on(Happening::Came { resumes });
        if !resumes && present {
            self.on(Happening::Left { done: false });
        }
        self.settle();
    }

    fn leave(&mut self, done: bool) {
        self.client.connected = false;
        self.on(Happening::Left { done });
    }

    fn chunk(&mut self) {
        if !self.client.connected || !self.daemon.course.listens() {
            return;
        }
        let id = self.client.at / CHUNK;
        if self.daemon.take.as_ref().is_some_and(|take| take.chunks.is_replay(Some(id))) {
            // Only what it did not know to have arrived comes again.
            self.client.at = (id + 1) * CHUNK;
            return;
        }
        self.on(Happening::Audio);
        let samples: Vec<u64> = (self.client.at..self.client.at + CHUNK).collect();
        self.client.at += CHUNK;
        let Some(take) = &mut self.daemon.take else { panic!("audio begins a take") };
        take.chunks.pushed(Some(id));
        take.chunks.decoded();
        self.listen(&samples, true);
    }

    /// As the task does with what was decoded, or comes out of the log again.
    fn listen(&mut self, samples: &[u64], journals: bool) {
        let Daemon { take: Some(take), .. } = &mut self.daemon else { return };
        let at = take.marks.at();
        let fresh = take.marks.pass(samples.len());
        assert_eq!(samples.first(), Some(&at), "what comes is what is expected next");
        for sample in &samples[fresh.for_ears..] {
            assert_eq!(*sample, take.heard, "each is heard once and in order");
            take.heard += 1;
            take.unmarked += 1;
            let cut = take.heard.is_multiple_of(SEGMENT);
            if cut {
                let span = Span { start: take.heard - SEGMENT, end: take.heard };
                take.owed.push(Owed { id: take.next_segment, span });
                take.next_segment += 1;
            }
            if cut || take.unmarked == MARK {
                take.unmarked = 0;
                self.disk.entries.push(take.checkpoint(false));
            }
        }
        if journals {
            let (audio, _) = self.disk.audio.entry(take.number).or_default();
            let first = (at as usize) + fresh.for_log;
            assert!(first <= audio.len(), "the log has no gap");
            audio.truncate(first);
            audio.extend(&samples[fresh.for_log..]);
            take.marks.journaled();
        }
    }

    fn sync(&mut self) {
        for (audio, durable) in self.disk.audio.values_mut() {
            *durable = audio.len();
        }
        if let Some(take) = &self.daemon.take {
            let (_, durable) = self.disk.audio.get(&take.number).cloned().unwrap_or_default();
            self.acknowledged.insert(take.number, durable as u64);
        }
    }

    fn text(&mut self) {
        let Some(take) = &mut self.daemon.take else { return };
        if take.owed.is_empty() || take.owed[0].span.end > take.marks.taped_to() && !take.ended {
            return;
        }
        let Owed { id, span } = take.owed.remove(0);
        let text = words(self.runs, span.len());
        let (text, _) = take.committers.remove(&id).unwrap_or_else(committer).settle(&text);
        self.disk.entries.push(Entry::Segment { take: take.number, id, span, text });
    }

    fn read(&mut self) {
        let Some(take) = self.daemon.take.as_mut().filter(|take| !take.ended) else { return };
        let spoken = take.heard % SEGMENT;
        let (id, runs) = (take.next_segment, self.runs);
        let committer = take.committers.entry(id).or_insert_with(committer);
        let before = committer.committed().to_owned();
        let reading = Reading { text: words(runs, spoken), heard_secs: spoken as f64, ..Reading::default() };
        let text = committer.read(reading, None).committed;
        if text != before {
            // Told once this is on disk.
            self.disk.entries.push(Entry::Committed { id, text });
        }
    }

    /// What was to be on disk before it is told is told.
    fn commit(&mut self) {
        for entry in self.disk.entries.iter().skip(self.disk.committed) {
            if let Entry::Committed { id, text } = entry {
                self.promised.entry(*id).or_default().push(text.clone());
            }
        }
        self.disk.committed = self.disk.entries.len();
    }

    /// A take that is being finished goes on when all it has is durable.
    fn settle(&mut self) {
        while self.daemon.course.is_finishing() {
            let Some(take) = &mut self.daemon.take else { return };
            if !take.ended {
                take.ended = true;
                let entry = take.checkpoint(true);
                self.sync();
                self.disk.entries.push(entry);
            }
            let Some(take) = &self.daemon.take else { return };
            if !take.owed.is_empty() {
                // Its texts take their time.
                return;
            }
            self.close_take(true);
            self.on(Happening::TakeOver);
        }
    }

    fn close_take(&mut self, told: bool) {
        let Some(take) = self.daemon.take.take() else { return };
        let samples = take.marks.at();
        // What was read of a take that is dropped is never told of another segment.
        let was_read = take.committers.contains_key(&take.next_segment);
        let next_segment = take.next_segment + u64::from(was_read && !told);
        self.disk.entries.push(match told {
            true => Entry::Final { take: take.number, samples },
            false => Entry::Dropped { samples, next_segment },
        });
        // Nothing of a later take comes before that is committed.
        self.commit();
        // Here speech that is not cut is no segment.
        self.promised.retain(|id, _| *id < next_segment);
        self.daemon.samples += samples;
        self.daemon.next_segment = next_segment;
        self.client.at = 0;
    }

    fn on(&mut self, happening: Happening) {
        let mut duty = self.daemon.course.on(happening);
        while let Some(next) = duty.take() {
            match next {
                Duty::BeginTake => {
                    self.daemon.takes += 1;
                    let (number, next_segment) = (self.daemon.takes, self.daemon.next_segment);
                    assert!(self.daemon.take.is_none());
                    // Its number has no audio of another one.
                    self.disk.audio.remove(&number);
                    self.daemon.take = Some(OpenTake::new(number, next_segment));
                    self.client.at = 0;
                }
                Duty::FinishTake => assert!(self.daemon.take.is_some()),
                Duty::DropTake => {
                    self.close_take(false);
                    duty = self.daemon.course.on(Happening::TakeOver);
                }
                Duty::SayEmpty | Duty::AwaitClient => {}
                Duty::LetIn { .. } => self.let_in(),
                Duty::EndSession => {
                    assert!(self.daemon.take.is_none() && self.daemon.open);
                    self.daemon.open = false;
                    self.disk.entries.push(Entry::Ended);
                }
                Duty::Leave => panic!("only for a daemon that stops"),
            }
        }
    }

    /// It goes on where everything is durable, or begins a take of its own.
    fn let_in(&mut self) {
        self.client.connected = true;
        self.client.at = 0;
        self.sync();
        if let Some(take) = &mut self.daemon.take
            && self.daemon.course.take_is_open()
        {
            let durable = self.disk.audio.get(&take.number).map_or(0, |(_, durable)| *durable as u64);
            assert!(durable >= self.acknowledged.get(&take.number).copied().unwrap_or(0));
            take.marks.go_back(durable);
            take.chunks.reconnect(true);
            self.client.at = durable;
        }
    }

    fn kill(&mut self) {
        let Disk { audio, entries, committed } = &mut self.disk;
        entries.truncate(*committed);
        audio.values_mut().for_each(|(audio, durable)| audio.truncate(*durable));
        for (take, acknowledged) in &self.acknowledged {
            let durable = audio.get(take).map_or(0, |(audio, _)| audio.len() as u64);
            assert!(durable >= *acknowledged, "take {take}: {acknowledged} were acknowledged, {durable} are there");
        }
        self.client.connected = false;
        self.recover();
    }

    /// As `recovery` reads what is left.
    fn recover(&mut self) {
        self.runs += 1;
        let (mut takes, mut samples, mut next_segment) = (0, 0, 0);
        let mut checkpoint = None;
        let mut told: Vec<u64> = Vec::new();
        let mut committed: BTreeMap<u64, String> = BTreeMap::new();
        for entry in &self.disk.entries {
            match entry {
                Entry::Checkpoint { take, state } => checkpoint = Some((*take, state.clone())),
                Entry::Committed { id, text } => drop(committed.insert(*id, text.clone())),
                Entry::Segment { id, .. } => told.push(*id),
                Entry::Final { take, samples: all } => {
                    committed.clear();
                    (takes, samples) = (*take, samples + all);
                    next_segment = told.iter().max().map_or(next_segment, |id| next_segment.max(id + 1));
                    if let Some((of, state)) = &checkpoint
                        && of == take
                    {
                        next_segment = next_segment.max(state.next_segment);
                    }
                }
                Entry::Dropped { samples: all, next_segment: next } => {
                    committed.clear();
                    (takes, samples, next_segment) = (takes + 1, samples + all, *next);
                }
                Entry::Ended => {
                    self.daemon.open = false;
                    return;
                }
            }
        }
        let number = takes + 1;
        // Of later takes nothing may be left: they would have been numbered after this one was over.
        let checkpoint = checkpoint.filter(|(take, _)| *take == number).map(|(_, state)| state);
        let audio = self.disk.audio.get(&number).map_or(&[][..], |(audio, _)| audio).to_vec();
        let journaled = audio.len() as u64;
        let mut take = None;
        if checkpoint.is_some() || !audio.is_empty() {
            let mut state = checkpoint.unwrap_or_else(|| State { next_segment, ..State::default() });
            state.owed.retain(|owed| !told.contains(&owed.id));
            let heard = if state.ended { journaled } else { state.heard };
            let mut left = Commitments::left(committed, state.next_segment);
            let open = state.owed.iter().map(|owed| owed.id).chain([state.next_segment]);
            let resumed = |text| Committer::resumed(CommitRule::Agreement, text);
            let committers = open.filter_map(|id| Some((id, resumed(left.take(id)?)))).collect();
            let from = state.owed.iter().map(|it| it.span.start).fold(heard, u64::min).min(journaled);
            take = Some(OpenTake {
                number,
                marks: Marks::resumed(from, heard, journaled),
                chunks: Chunks::resumed((journaled / CHUNK).checked_sub(1)),
                heard,
                unmarked: 0,
                next_segment: state.next_segment,
                owed: state.owed,
                ended: state.ended,
                committers,
            });
        }
        let stage = match &take {
            None => Stage::None,
            Some(take) if take.ended => Stage::Finishing,
            Some(_) => Stage::Open,
        };
        let course = Course::left_open(true, stage);
        self.daemon = Daemon { course, take, takes, samples, next_segment, open: true };
        if let Some(take) = &mut self.daemon.take {
            let from = take.marks.at() as usize;
            self.daemon.takes += 1;
            let again = audio[from..].to_vec();
            if !again.is_empty() {
                self.listen(&again, false);
            }
        }
    }

    /// What anybody was ever told.
    fn check(&self) {
        let mut segments: BTreeMap<u64, (u64, Span)> = BTreeMap::new();
        let mut of_take: BTreeMap<u64, Vec<Span>> = BTreeMap::new();
        let mut finals = BTreeMap::new();
        for entry in &self.disk.entries {
            match entry {
                Entry::Segment { take, id, span, text } => {
                    assert_eq!(segments.insert(*id, (*take, *span)), None, "segment {id} is told once");
                    for promised in self.promised.get(id).into_iter().flatten() {
                        assert!(text.starts_with(&**promised), "{promised:?} was promised of {text:?}");
                    }
                    of_take.entry(*take).or_default().push(*span);
                }
                Entry::Final { take, samples } => {
                    assert_eq!(finals.insert(*take, *samples), None, "take {take} has one result");
                }
                _ => {}
            }
        }
        for (take, spans) in &of_take {
            // As an uninterrupted run cuts them.
            let expected = (0..).map(|n| Span { start: n * SEGMENT, end: (n + 1) * SEGMENT });
            assert!(spans.iter().copied().eq(expected.take(spans.len())), "take {take}: {spans:?}");
            if let Some(samples) = finals.get(take) {
                // What was cut before a kill may end behind what was durable, if nobody came to send that again.
                let whole = spans.iter().filter(|span| span.end <= *samples).count();
                assert_eq!(whole as u64, samples / SEGMENT, "take {take} of {samples} samples");
            }
        }
        for promised in self.promised.values() {
            assert!(promised.is_sorted_by(|earlier, later| later.starts_with(&**earlier)), "{promised:?}");
        }
        for (audio, _) in self.disk.audio.values() {
            assert!(audio.iter().copied().eq(0..audio.len() as u64), "the log is what was sent");
        }
    }
}

impl OpenTake {
    fn new(number: u64, next_segment: u64) -> OpenTake {
        OpenTake {
            number,
            marks: Marks::default(),
            chunks: Chunks::default(),
            heard: 0,
            unmarked: 0,
            next_segment,
            owed: Vec::new(),
            ended: false,
            committers: BTreeMap::new(),
        }
    }

    fn checkpoint(&self, ended: bool) -> Entry {
        let (heard, next_segment, owed) = (self.heard, self.next_segment, self.owed.clone());
        let state = State { heard, next_segment, owed, ended };
        Entry::Checkpoint { take: self.number, state }
    }
}

fn committer() -> Committer {
    Committer::new(CommitRule::Agreement)
}

/// What a daemon understands of so many samples.
fn words(run: u64, samples: u64) -> String {
    (0..samples).map(|sample| format!("w{run}x{sample}")).collect::<Vec<_>>().join(" ")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_everything_is_heard_once_and_told_once(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
            world.check();
        }
        // In the end somebody comes back and finishes.
        world.run(Op::Resume);
        for op in [Op::Audio(5), Op::End] {
            world.run(op);
        }
        for _ in 0..50 {
            world.run(Op::Text);
        }
        world.run(Op::Goodbye);
        world.run(Op::Commit);
        world.check();
        prop_assert!(world.daemon.take.is_none(), "no take stays open");
    }
}

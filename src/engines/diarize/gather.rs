//! Speakers of a recording of any length, from what is observed of it piece by piece. Pure.
//!
//! What was observed is held for half an hour and a little; then the half hour settles: its voices become groups, and its
//! turns name those. At the end the groups of all blocks are joined in the same way as voices within one. So hours take little
//! more memory than the first half, and a recording that fits into one block is seen as a whole.

use crate::engines::diarize::{
    Likeness, VoiceKind, Voices,
    ask::{Heard, Island, Observed, TrackWindow, Turn},
    cluster::{Group, agglomerate},
    islands, speaker_name, tracks,
};

/// Half an hour of speech takes 9 MB.
const BLOCK_SECS: f64 = 1800.0;
/// So much is heard behind a block before it settles, so that the last one is never too short to tell its speakers.
const BEHIND_SECS: f64 = 450.0;
/// Over an hour a voice spreads, and its groups of two blocks have less in common than windows close by: so much less is asked
/// of them.
const ACROSS_BLOCKS: f32 = 0.1;
/// Pauses of one speaker shorter than this are part of the turn, as people who mark turns by hand see it.
const FILL_SECS: f64 = 1.0;
/// A voice detector is sure of speech only once it is under way.
const PAD_SECS: f64 = 0.1;

/// Who speaks in a whole recording.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cast {
    /// In the order of their starts.
    pub turns: Vec<Turn>,
    /// By speaker, of unit length.
    pub voices: Vec<Vec<f32>>,
    /// None where nobody was observed.
    pub kind: Option<VoiceKind>,
}

impl Cast {
    /// What each speaker is called: by name where the voice is known, else `S1`, `S2` …
    pub fn names(&self, known: &Voices) -> Vec<String> {
        let named = |voice: &Vec<f32>| {
            let kind = self.kind.as_ref()?;
            known.name_of(&kind.model, voice, kind.likeness.same).map(str::to_owned)
        };
        self.voices.iter().enumerate().map(|(at, voice)| named(voice).unwrap_or_else(|| speaker_name(at))).collect()
    }
}

/// Collects what is observed of one recording, in order.
#[derive(Default)]
pub struct Gathering {
    kind: Option<VoiceKind>,
    islands: Vec<Island>,
    tracks: Vec<TrackWindow>,
    blocks: Vec<Block>,
    /// Where the block that is not settled begins.
    since: f64,
}

struct Block {
    /// Their speakers are the block's groups.
    turns: Vec<Turn>,
    groups: Vec<Group>,
}

impl Gathering {
    pub fn add(&mut self, observed: Observed) {
        match observed.heard {
            Heard::Islands(heard) => self.islands.extend(heard),
            Heard::Tracks(heard) => self.tracks.extend(heard),
        }
        self.kind = Some(observed.kind);
        let until = f64::max(
            self.islands.last().map_or(0.0, |island| island.end),
            self.tracks.last().map_or(0.0, |window| window.start),
        );
        if until - self.since >= BLOCK_SECS + BEHIND_SECS {
            let cut = self.since + BLOCK_SECS;
            let islands = self.islands.split_off(self.islands.partition_point(|island| island.start < cut));
            let tracks = self.tracks.split_off(self.tracks.partition_point(|window| window.start < cut));
            let until = self.islands.last().map_or(cut, |island| island.end.max(cut));
            self.settle(None);
            // A window reaches into the next block, which hears that part itself.
            if let Some(block) = self.blocks.last_mut() {
                block.turns.iter_mut().for_each(|turn| turn.end = turn.end.min(until));
                block.turns.retain(|turn| turn.start < turn.end);
            }
            (self.islands, self.tracks) = (islands, tracks);
            self.since = cut;
        }
    }

    /// `count`: how many speakers there are, where it is known.
    pub fn finish(mut self, count: Option<usize>) -> Cast {
        let count = count.filter(|count| *count > 0);
        let is_whole = self.blocks.is_empty();
        self.settle(count.filter(|_| is_whole));
        let Some(kind) = self.kind else { return Cast::default() };
        let (mut turns, groups) = joined(self.blocks, &kind.likeness, count.filter(|_| !is_whole));
        turns.sort_by(|a, b| a.start.total_cmp(&b.start));
        let order = renumber(&mut turns);
        let voices = order.into_iter().map(|speaker| groups[speaker].centroid()).collect();
        Cast { turns, voices, kind: Some(kind) }
    }

    fn settle(&mut self, count: Option<usize>) {
        let Some(VoiceKind { likeness, .. }) = &self.kind else { return };
        let (turns, mut groups) = islands::turns(&self.islands, likeness, count);
        let mut turns = padded(filled(turns));
        // The segmentation model has measured its edges, and two may speak at once.
        let (of_tracks, more) = tracks::turns(&self.tracks, likeness, count);
        let first = groups.len();
        turns.extend(filled(of_tracks).into_iter().map(|turn| Turn { speaker: first + turn.speaker, ..turn }));
        groups.extend(more);
        self.blocks.push(Block { turns, groups });
        // Their room as well: the next block may be silent.
        (self.islands, self.tracks) = (Vec::new(), Vec::new());
    }
}

/// Who speaks when in a whole recording, from all its pieces.
pub fn speakers(pieces: impl IntoIterator<Item = Observed>, count: Option<usize>) -> Vec<Turn> {
    let mut gathering = Gathering::default();
    pieces.into_iter().for_each(|piece| gathering.add(piece));
    gathering.finish(count).turns
}

/// The turns of all blocks, and whom they name.
fn joined(mut blocks: Vec<Block>, likeness: &Likeness, count: Option<usize>) -> (Vec<Turn>, Vec<Group>) {
    if blocks.len() == 1 {
        return blocks.pop().map_or_else(Default::default, |block| (block.turns, block.groups));
    }
    let mut groups = Vec::new();
    let mut turns = Vec::new();
    for block in blocks {
        let first = groups.len();
        turns.extend(block.turns.into_iter().map(|turn| Turn { speaker: first + turn.speaker, ..turn }));
        groups.extend(block.groups.into_iter().enumerate().map(|(at, group)| group.numbered(first + at)));
    }
    let mut groups = agglomerate(groups, likeness, likeness.merge - ACROSS_BLOCKS, count.unwrap_or(1));
    if let Some(count) = count {
        groups = agglomerate(groups, likeness, f32::NEG_INFINITY, count);
    }
    let mut joined = std::collections::BTreeMap::new();
    for (speaker, group) in groups.iter().enumerate() {
        joined.extend(group.members.iter().map(|member| (*member, speaker)));
    }
    turns.iter_mut().for_each(|turn| turn.speaker = joined.get(&turn.speaker).copied().unwrap_or(0));
    (turns, groups)
}

/// One turn of what one speaker says with short pauses, where nobody else begins in between.
fn filled(turns: Vec<Turn>) -> Vec<Turn> {
    let mut filled: Vec<Turn> = Vec::new();
    for turn in turns {
        match filled.last_mut() {
            Some(last) if last.speaker == turn.speaker && turn.start - last.end < FILL_SECS => {
                last.end = last.end.max(turn.end);
            }
            _ => filled.push(turn),
        }
    }
    filled
}

fn padded(mut turns: Vec<Turn>) -> Vec<Turn> {
    for at in 0..turns.len() {
        let before = at.checked_sub(1).map_or(0.0, |before| turns[before].end);
        turns[at].start = (turns[at].start - PAD_SECS).max(before).min(turns[at].start);
        let after = turns.get(at + 1).map_or(turns[at].end + PAD_SECS, |next| next.start);
        turns[at].end = (turns[at].end + PAD_SECS).min(after).max(turns[at].end);
    }
    turns
}

/// In the order in which they are first heard; whom each number stood for before.
fn renumber(turns: &mut [Turn]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    for turn in turns {
        let known = order.iter().position(|speaker| *speaker == turn.speaker);
        turn.speaker = known.unwrap_or_else(|| {
            order.push(turn.speaker);
            order.len() - 1
        });
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::diarize::{ask::VoiceWindow, embedder::unit};

    fn turn(start: f64, end: f64, speaker: usize) -> Turn {
        Turn { start, end, speaker }
    }

    fn kind() -> VoiceKind {
        VoiceKind { model: "m".to_owned(), likeness: Likeness { merge: 0.7, coherence: 0.8, same: 0.7 } }
    }

    /// Turns of five seconds with a pause after each, one piece a turn; the voices are a little noisy.
    fn observed(order: impl Iterator<Item = usize>) -> impl Iterator<Item = Observed> {
        let mut random = fastrand::Rng::with_seed(4);
        order.enumerate().map(move |(at, speaker)| {
            let start = at as f64 * 6.0;
            let mut windows = Vec::new();
            for step in 0..18 {
                let mut voice: Vec<f32> = (0..16).map(|_| (random.f32() - 0.5) * 0.25).collect();
                voice[speaker] += 1.0;
                let from = start + f64::from(step) * 0.2;
                windows.push(VoiceWindow { start: from, end: from + 1.6, voice: unit(voice) });
            }
            Observed { kind: kind(), heard: Heard::Islands(vec![Island { start, end: start + 5.0, windows }]) }
        })
    }

    #[test]
    fn short_pauses_of_one_speaker_are_part_of_the_turn() {
        let turns = vec![turn(0.0, 1.0, 0), turn(1.6, 2.0, 0), turn(2.1, 3.0, 1), turn(3.1, 4.0, 0), turn(5.1, 6.0, 0)];
        let expected = [turn(0.0, 2.0, 0), turn(2.1, 3.0, 1), turn(3.1, 4.0, 0), turn(5.1, 6.0, 0)];
        assert_eq!(filled(turns), expected);
    }

    #[test]
    fn speakers_are_numbered_as_they_are_heard() {
        let mut turns = [turn(0.0, 1.0, 7), turn(1.0, 2.0, 2), turn(2.0, 3.0, 7)];
        assert_eq!(renumber(&mut turns), [7, 2]);
        assert_eq!(turns.map(|turn| turn.speaker), [0, 1, 0]);
    }

    #[test]
    fn nothing_observed_is_nobody() {
        assert_eq!(Gathering::default().finish(None), Cast::default());
        let silence = Observed { kind: kind(), heard: Heard::Islands(Vec::new()) };
        assert!(speakers([silence], Some(2)).is_empty());
    }

    #[test]
    fn speakers_keep_their_numbers_over_hours_of_which_only_groups_are_held() {
        // Two hours and a half. The third is heard in the last hour alone, the first not at all in it.
        let order = |at: usize| if at < 900 { at % 2 } else { 1 + at % 2 };
        let mut gathering = Gathering::default();
        let mut held = 0;
        for piece in observed((0..1500).map(order)) {
            gathering.add(piece);
            held = held.max(gathering.islands.len());
        }
        assert!(gathering.blocks.len() >= 4 && held <= 376, "{held}");
        let cast = gathering.finish(None);
        assert_eq!((cast.turns.len(), cast.voices.len()), (1500, 3));
        assert!(cast.turns.iter().enumerate().all(|(at, turn)| turn.speaker == order(at)));
        for (speaker, voice) in cast.voices.iter().enumerate() {
            assert!(voice[speaker] > 0.95);
        }
        // A minute behind the first half hour is no block of its own.
        let mut short = Gathering::default();
        observed((0..310).map(order)).for_each(|piece| short.add(piece));
        assert!(short.blocks.is_empty());
        let mut two = Gathering::default();
        observed((0..1500).map(order)).for_each(|piece| two.add(piece));
        assert_eq!(two.finish(Some(2)).voices.len(), 2);
    }
}

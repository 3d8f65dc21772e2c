//! Where the audio of a take stands. Audio may come twice: again from a client that was cut off, or from the log after a
//! crash. What it is good for, each sample is used for once and in order. Pure.

/// All in samples since the take's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Marks {
    /// The next sample that comes is this one.
    at: u64,
    /// What may still be cut out of the tape ends here.
    taped: u64,
    /// What the voice detector was given ends here.
    heard: u64,
    /// What the audio log was given ends here.
    journaled: u64,
}

/// Of the samples that came: from which on each is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fresh {
    pub(super) for_tape: usize,
    pub(super) for_ears: usize,
    pub(super) for_log: usize,
}

impl Marks {
    /// After a crash: the log holds `journaled` samples, of which those before `heard` were heard to their end but for
    /// what begins at `at`. More may have been heard than was journaled.
    pub(super) fn resumed(at: u64, heard: u64, journaled: u64) -> Marks {
        Marks { at, taped: at, heard, journaled }
    }

    pub(super) fn pass(&mut self, count: usize) -> Fresh {
        let known = |mark: u64| usize::try_from(mark.saturating_sub(self.at)).unwrap_or(usize::MAX).min(count);
        let fresh = Fresh { for_tape: known(self.taped), for_ears: known(self.heard), for_log: known(self.journaled) };
        self.at += count as u64;
        self.taped = self.taped.max(self.at);
        self.heard = self.heard.max(self.at);
        fresh
    }

    /// The log has taken what was new to it.
    pub(super) fn journaled(&mut self) {
        self.journaled = self.journaled.max(self.at);
    }

    /// What comes next begins at this sample, which has been here before or is the next one.
    pub(super) fn go_back(&mut self, to: u64) {
        self.at = to.min(self.at);
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn taped_to(&self) -> u64 {
        self.taped
    }

    pub(super) fn journaled_to(&self) -> u64 {
        self.journaled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_is_new_to_nobody_who_had_it() {
        let mut marks = Marks::default();
        assert_eq!(marks.pass(100), Fresh { for_tape: 0, for_ears: 0, for_log: 0 });
        marks.journaled();
        // The disk fails: the next are heard only.
        marks.pass(50);
        marks.go_back(100);
        assert_eq!(marks.pass(80), Fresh { for_tape: 50, for_ears: 50, for_log: 0 });
        marks.journaled();
        assert_eq!((marks.at(), marks.journaled_to()), (180, 180));
        marks.go_back(500);
        assert_eq!(marks.at(), 180, "nothing is skipped");
    }

    #[test]
    fn after_a_crash_the_tape_fills_first_and_nothing_is_heard_twice() {
        // Heard up to 640, of which 600 were durable; a segment that begins at 512 has no text yet.
        let mut marks = Marks::resumed(512, 640, 600);
        assert_eq!(marks.pass(88), Fresh { for_tape: 0, for_ears: 88, for_log: 88 });
        assert_eq!(marks.pass(100), Fresh { for_tape: 0, for_ears: 40, for_log: 0 });
        assert_eq!(marks.taped_to(), 700);
    }
}

//! What the process of an engine writes to its standard error goes into the log under the engine's name, and its last
//! lines into the error when it dies. Bounded in every way: an engine may print without end.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use log::Level;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    task::JoinHandle,
    time::Instant,
};

use crate::{base::lock, telemetry::logs};

/// The rest of a longer line is a line of its own.
const LINE_BYTES: usize = 2048;
/// Lines of a process that go into the log in one period; the others are counted.
const LINES_A_PERIOD: usize = 100;
const PERIOD: Duration = Duration::from_secs(10);
/// Lines that are kept for when it dies.
const LAST_LINES: usize = 5;
/// After the process has ended, for what is still in the pipe.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// Reads until the process ends.
pub(super) struct Tail {
    last: Arc<Mutex<VecDeque<String>>>,
    reading: JoinHandle<()>,
}

impl Tail {
    pub(super) fn follow(engine: &str, stderr: impl AsyncRead + Unpin + Send + 'static) -> Tail {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let reader = Reader { engine: engine.to_owned(), last: Arc::clone(&last), quota: Quota::default() };
        Tail { last, reading: tokio::spawn(reader.run(stderr)) }
    }

    /// The last lines of a process that has ended.
    pub(super) async fn last_words(mut self) -> Vec<String> {
        if tokio::time::timeout(DRAIN_LIMIT, &mut self.reading).await.is_err() {
            self.reading.abort();
        }
        lock(&self.last).drain(..).collect()
    }
}

struct Reader {
    engine: String,
    last: Arc<Mutex<VecDeque<String>>>,
    quota: Quota,
}

impl Reader {
    async fn run(mut self, mut stderr: impl AsyncRead + Unpin) {
        let mut arrived = Vec::with_capacity(2 * LINE_BYTES);
        while let Ok(1..) = (&mut stderr).take(LINE_BYTES as u64).read_buf(&mut arrived).await {
            while let Some(end) = line_end(&arrived) {
                self.line(&String::from_utf8_lossy(&arrived[..end]));
                arrived.drain(..end + usize::from(arrived.get(end) == Some(&b'\n')));
            }
        }
        if !arrived.is_empty() {
            self.line(&String::from_utf8_lossy(&arrived));
        }
        self.left_out(self.quota.left_out);
    }

    fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        // Lines of its own log say how grave they are and where they come from; a library's own do not.
        let (level, target, text) = logs::from_engine(line).unwrap_or((Level::Info, module_path!(), line));
        {
            let mut last = lock(&self.last);
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(text.to_owned());
        }
        if !log::log_enabled!(target: target, level) {
            return;
        }
        let left_out = self.quota.left_out;
        if self.quota.take(Instant::now()) {
            self.left_out(left_out);
            log::log!(target: target, level, engine = self.engine.as_str(); "{text}");
        }
    }

    fn left_out(&self, lines: usize) {
        if lines > 0 {
            log::warn!(engine = self.engine.as_str(); "{lines} lines of this engine are left out");
        }
    }
}

/// Where the first line ends, if it is whole or too long to wait for the rest.
fn line_end(arrived: &[u8]) -> Option<usize> {
    let newline = arrived.iter().take(LINE_BYTES).position(|byte| *byte == b'\n');
    newline.or((arrived.len() >= LINE_BYTES).then_some(LINE_BYTES))
}

#[derive(Default)]
struct Quota {
    since: Option<Instant>,
    used: usize,
    left_out: usize,
}

impl Quota {
    fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since >= PERIOD) {
            *self = Quota { since: Some(now), used: 0, left_out: 0 };
        }
        let granted = self.used < LINES_A_PERIOD;
        if granted {
            self.used += 1;
        } else {
            self.left_out += 1;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_without_their_marks_and_long_ones_are_cut() {
        let long = "x".repeat(LINE_BYTES + 3);
        let text = format!("first\n\nsecond\n<WARN>vigia::x: third\n{long}\nno newline \u{1F}");
        let words = Tail::follow("test", std::io::Cursor::new(text)).last_words().await;
        assert_eq!(words, ["second", "third", &long[3..], "xxx", "no newline \u{1F}"]);
    }

    #[tokio::test]
    async fn a_flood_without_a_newline_stays_small() {
        let words = Tail::follow("test", tokio::io::repeat(7).take(1 << 20)).last_words().await;
        assert_eq!(words.len(), LAST_LINES);
        assert!(words.iter().all(|line| line.len() <= LINE_BYTES));
    }

    #[test]
    fn a_process_may_log_so_many_lines_a_period() {
        let (now, mut quota) = (Instant::now(), Quota::default());
        assert_eq!((0..LINES_A_PERIOD + 9).filter(|_| quota.take(now)).count(), LINES_A_PERIOD);
        assert_eq!(quota.left_out, 9);
        assert!(quota.take(now + PERIOD));
    }
}

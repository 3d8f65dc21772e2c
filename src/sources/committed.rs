//! What was committed of segments whose final text is not told yet, and whether that is on disk. Nobody is told that words
//! are committed before they are kept: a crash must not take them back.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use crate::{base::Result, segment::Shown};

/// The text so far of the segment that is being spoken.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Partial {
    pub(super) shown: Shown,
    pub(super) segment: u64,
    pub(super) start: f64,
}

/// Of one take.
#[derive(Default)]
pub(super) struct Commitments {
    /// Of segments that an earlier daemon left without their final text.
    left: BTreeMap<u64, String>,
    /// What is on disk of the segment that is being spoken.
    kept: Option<(u64, String)>,
    keeping: Option<Keeping>,
}

struct Keeping {
    partial: Partial,
    kept: BoxFuture<'static, Result<()>>,
}

impl Commitments {
    /// What an earlier daemon kept, by segment; `open` is the one that was being spoken.
    pub(super) fn left(left: BTreeMap<u64, String>, open: u64) -> Commitments {
        let kept = left.get(&open).map(|text| (open, text.clone()));
        Commitments { left, kept, keeping: None }
    }

    /// What an earlier daemon committed of that segment; asked for once.
    pub(super) fn take(&mut self, segment: u64) -> Option<String> {
        self.left.remove(&segment)
    }

    /// Whether what is committed in it may be told.
    pub(super) fn holds(&self, partial: &Partial) -> bool {
        partial.shown.committed == self.of(partial.segment)
    }

    /// Tells the partial, by `next`, when it is `kept`.
    pub(super) fn keep(&mut self, partial: Partial, kept: BoxFuture<'static, Result<()>>) {
        self.keeping = Some(Keeping { partial, kept });
    }

    pub(super) fn is_keeping(&self) -> bool {
        self.keeping.is_some()
    }

    /// A partial that may be told by now. Where it could not be kept its words are shown as what may still change. For ever
    /// pending where nothing is being kept; giving up the wait loses nothing.
    pub(super) async fn next(&mut self) -> Partial {
        let Some(keeping) = &mut self.keeping else { return std::future::pending().await };
        let kept = (&mut keeping.kept).await;
        let mut partial = keeping.partial.clone();
        self.keeping = None;
        match kept {
            Ok(()) => self.kept = Some((partial.segment, partial.shown.committed.clone())),
            Err(error) => {
                log::error!("words are not committed, for they cannot be kept: {}", error.full());
                partial.shown.committed = self.of(partial.segment).to_owned();
            }
        }
        partial
    }

    fn of(&self, segment: u64) -> &str {
        self.kept.as_ref().filter(|(kept, _)| *kept == segment).map_or("", |(_, text)| text)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::base::Error;

    fn partial(segment: u64, committed: &str) -> Partial {
        let shown = Shown { text: format!("{committed} y más"), committed: committed.to_owned() };
        Partial { shown, segment, start: 1.0 }
    }

    #[tokio::test]
    async fn words_are_told_as_committed_once_they_are_kept_and_not_where_they_cannot_be() {
        let mut it = Commitments::default();
        assert!(it.holds(&partial(4, "")) && !it.holds(&partial(4, "hola")));
        let (kept, waits) = tokio::sync::oneshot::channel();
        it.keep(partial(4, "hola"), waits.map(|kept| kept.unwrap_or(Ok(()))).boxed());
        assert!(it.next().now_or_never().is_none(), "not yet");
        kept.send(Ok(())).unwrap();
        assert_eq!(it.next().await, partial(4, "hola"));
        assert!(it.holds(&partial(4, "hola")) && !it.is_keeping());
        assert!(it.next().now_or_never().is_none(), "told once");

        let failed = std::future::ready(Err(Error::unavailable("the disk is full"))).boxed();
        it.keep(partial(4, "hola Ana"), failed);
        let told = it.next().await.shown;
        assert_eq!((told.committed.as_str(), told.text.as_str()), ("hola", "hola Ana y más"));
        assert!(!it.holds(&partial(5, "hola")), "of another segment nothing is kept");
    }

    #[test]
    fn what_was_left_is_of_each_segment_and_is_asked_for_once() {
        let left = [(6, "uno".to_owned()), (7, "dos".to_owned())].into();
        let mut it = Commitments::left(left, 7);
        assert!(it.holds(&partial(7, "dos")) && !it.holds(&partial(6, "uno")));
        assert_eq!([it.take(6), it.take(6), it.take(8)], [Some("uno".to_owned()), None, None]);
    }
}

//! Who has to leave so that something fits: the least valuable first, and never more than needed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::models::{lease::ModelKey, plan::table::Model};

/// What those further ahead in the line have left over, during one step.
#[derive(Debug)]
pub(super) struct Room {
    /// Now. Below zero while more is reserved than there is.
    pub(super) free: i128,
    /// What comes free when all that is leaving, or claimed, has left.
    pub(super) coming: i128,
    /// Models that leave for somebody ahead: no new lease of these.
    pub(super) claimed: BTreeSet<ModelKey>,
    /// Models that somebody ahead is waiting to load.
    pub(super) awaited: BTreeSet<ModelKey>,
}

impl Room {
    /// How much is lacking even in the end.
    pub(super) fn shortage(&self, bytes: i128) -> i128 {
        bytes - self.free - self.coming
    }

    /// For what is too much already.
    pub(super) fn cover(&mut self, leaving: Leaving) {
        self.coming += total(&leaving);
        self.claimed.extend(leaving.into_keys());
    }

    /// For one who waits until these have left: he has what they give first, then what is free, so that nobody behind
    /// takes it from him while he waits, and only then what comes free anyway.
    pub(super) fn promise(&mut self, bytes: i128, leaving: Leaving) {
        let given = total(&leaving);
        self.claimed.extend(leaving.into_keys());
        let rest = (bytes - given).max(0);
        let of_free = rest.min(self.free.max(0));
        self.free -= of_free;
        self.coming += (given - bytes).max(0) - (rest - of_free);
    }
}

fn total(leaving: &Leaving) -> i128 {
    leaving.values().map(|(bytes, _)| i128::from(*bytes)).sum()
}

/// How easily a model leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ease {
    Idle,
    /// As soon as those who hold it have been asked.
    Yields,
    /// Idle, but somebody is waiting for just this one.
    Wanted,
    /// When those who hold it are done.
    InUse,
}

/// A model that may have to leave. Its place in `order` says after which others.
pub(super) struct Candidate<Order> {
    pub(super) key: ModelKey,
    pub(super) bytes: u64,
    pub(super) ease: Ease,
    pub(super) order: Order,
}

/// Who leaves, with how easily.
pub(super) type Leaving = BTreeMap<ModelKey, (u64, Ease)>;

/// What one model is worth beside others that leave as easily: wanted by somebody, of high priority, used of late.
pub(super) fn value(model: &Model, is_wanted: bool) -> impl Ord + use<> {
    (is_wanted, Reverse(model.priority()), model.last_used)
}

/// The first of the candidates that are enough together, less those without whom the others are still enough.
pub(super) fn enough<Order: Ord>(shortage: i128, candidates: Vec<Candidate<Order>>) -> Option<Leaving> {
    let all: i128 = candidates.iter().map(|candidate| i128::from(candidate.bytes)).sum();
    (all >= shortage).then(|| enough_or_all(shortage, candidates))
}

/// The same, or all of them where even all are not enough.
pub(super) fn enough_or_all<Order: Ord>(shortage: i128, mut candidates: Vec<Candidate<Order>>) -> Leaving {
    candidates.sort_by(|a, b| (&a.order, &a.key).cmp(&(&b.order, &b.key)));
    let mut sum = 0_i128;
    let mut taken = Vec::new();
    for candidate in candidates {
        if sum >= shortage {
            break;
        }
        sum += i128::from(candidate.bytes);
        taken.push(candidate);
    }
    let mut leaving = Leaving::new();
    for candidate in taken.into_iter().rev() {
        let without = sum - i128::from(candidate.bytes);
        if without >= shortage {
            sum = without;
        } else {
            leaving.insert(candidate.key, (candidate.bytes, candidate.ease));
        }
    }
    leaving
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(sizes: &[u64]) -> Vec<Candidate<usize>> {
        let key = |index: usize| ModelKey {
            model: format!("{index:03}"),
            variant: "only".to_owned(),
            provider: "cpu".to_owned(),
        };
        let candidate = |(order, &bytes)| Candidate { key: key(order), bytes, ease: Ease::Idle, order };
        sizes.iter().enumerate().map(candidate).collect()
    }

    fn taken(shortage: i128, sizes: &[u64]) -> Option<Vec<u64>> {
        enough(shortage, candidates(sizes)).map(|leaving| leaving.values().map(|(bytes, _)| *bytes).collect())
    }

    #[test]
    fn the_first_leave_and_nobody_in_vain() {
        assert_eq!(taken(3, &[3, 3, 3]), Some(vec![3]));
        assert_eq!(taken(4, &[1, 1, 1, 4]), Some(vec![4]), "the small ones would leave for nothing");
        assert_eq!(taken(5, &[1, 2, 4]), Some(vec![1, 4]));
        assert_eq!(taken(8, &[1, 2, 4]), None);
        assert_eq!(taken(0, &[1]), Some(vec![]));
        assert_eq!(taken(1, &[0, 1]), Some(vec![1]));
    }

    proptest! {
        #[test]
        fn what_leaves_is_enough_and_without_any_one_of_them_it_is_not(
            sizes in prop::collection::vec(0_u64..20, 0..12), shortage in 1_i128..60,
        ) {
            let all: u64 = sizes.iter().sum();
            match taken(shortage, &sizes) {
                Some(taken) => {
                    let sum: u64 = taken.iter().sum();
                    prop_assert!(i128::from(sum) >= shortage);
                    prop_assert!(taken.iter().all(|one| i128::from(sum - one) < shortage));
                }
                None => prop_assert!(i128::from(all) < shortage),
            }
        }
    }
}

//! Whether an engine answers as its model does: every number of every output within a part of the largest one.

use std::collections::BTreeMap;

use crate::{
    base::{Error, Result},
    runtime::Answers,
};

/// By role of the graph.
pub type GraphAnswers = BTreeMap<String, Answers>;

/// Answers that nothing can be held against are no record.
pub(super) fn usable(answers: &GraphAnswers) -> Result<()> {
    let mut outputs = answers.values().flat_map(Answers::iter);
    match outputs.find(|(_, numbers)| !numbers.iter().all(|number| number.is_finite())) {
        Some((output, _)) => {
            Err(Error::unavailable(format!("the check's output {output} is not finite on the provider that serves")))
        }
        None if answers.values().all(BTreeMap::is_empty) => {
            Err(Error::unavailable("the check has no outputs to compare"))
        }
        None => Ok(()),
    }
}

/// The first difference that is too large, in words.
pub(super) fn compare(expected: &GraphAnswers, found: &GraphAnswers, tolerance: f32) -> Result<(), String> {
    for (role, outputs) in expected {
        for (output, expected) in outputs {
            let found = found.get(role).and_then(|outputs| outputs.get(output));
            let found = found.ok_or_else(|| format!("{role} lacks the output {output}"))?;
            if found.len() != expected.len() {
                return Err(format!("{role}: {output} has {} numbers instead of {}", found.len(), expected.len()));
            }
            let largest = expected.iter().fold(0.0_f32, |largest, number| largest.max(number.abs()));
            let limit = largest * tolerance;
            // A NaN is within no limit.
            let within = |(expected, found): &(&f32, &f32)| (*expected - *found).abs() <= limit;
            let off = expected.iter().zip(found).find(|pair| !within(pair));
            if let Some((expected, found)) = off {
                return Err(format!("{role}: {output} is {found} instead of {expected}, more than {limit} off"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(numbers: &[f32]) -> GraphAnswers {
        [("encoder".to_owned(), [("y".to_owned(), numbers.to_vec())].into())].into()
    }

    #[test]
    fn what_is_within_the_tolerance_of_the_largest_number_is_the_same() {
        let expected = answers(&[0.0, -10.0, 3.0]);
        assert_eq!(compare(&expected, &answers(&[0.09, -9.95, 3.0]), 0.01), Ok(()));
        for wrong in [&[0.2, -10.0, 3.0][..], &[f32::NAN, -10.0, 3.0], &[0.0, f32::INFINITY, 3.0]] {
            let difference = compare(&expected, &answers(wrong), 0.01).unwrap_err();
            assert!(difference.starts_with("encoder: y is "), "{difference}");
        }
        assert!(compare(&expected, &answers(&[0.0]), 0.01).unwrap_err().contains("1 numbers instead of 3"));
        assert!(compare(&expected, &GraphAnswers::new(), 0.01).unwrap_err().contains("lacks"));
    }

    #[test]
    fn answers_that_prove_nothing_are_no_record() {
        assert!(usable(&answers(&[1.0])).is_ok());
        assert!(usable(&answers(&[f32::NAN])).is_err());
        assert!(usable(&GraphAnswers::new()).is_err());
    }
}

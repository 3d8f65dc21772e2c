//! Arithmetic over a row of logits: some fifty thousand numbers, for every token. Written so that the compiler can use
//! wide registers.

const LANES: usize = 8;

pub(super) fn argmax(row: &[f32]) -> usize {
    let greatest = max(row);
    row.iter().position(|value| *value == greatest).unwrap_or(0)
}

pub(super) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane = if *value > *lane { *value } else { *lane });
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// ln Σ eˣ; −∞ where every x is.
pub(super) fn ln_sum_exp(row: &[f32]) -> f32 {
    let greatest = max(row);
    if greatest == f32::NEG_INFINITY {
        return greatest;
    }
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += exp(value - greatest));
    }
    let sum: f32 = lanes.iter().copied().chain(rest.iter().map(|value| exp(value - greatest))).sum();
    greatest + sum.ln()
}

/// eˣ for x ≤ 0 to about 1e-7, 0 below −87. The library's own goes one number at a time.
fn exp(x: f32) -> f32 {
    let x = x.max(-104.0);
    // Adding and taking away 1.5 · 2²³ rounds to a whole number.
    let whole = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    // ln 2 in two parts, the first with few digits, so that nothing is lost by taking it away.
    let part = (x - whole * 0.693_359_4) + whole * 2.121_944_4e-4;
    // eˣ around 0: the Taylor series is good to 1e-7 within ±ln 2 / 2.
    let series = 1.0
        + part * (1.0 + part * (0.5 + part * (1.0 / 6.0 + part * (1.0 / 24.0 + part * (1.0 / 120.0 + part / 720.0)))));
    let power = f32::from_bits((((whole as i32) + 127).max(0) as u32) << 23);
    series * power
}

/// The `count` greatest of a row with their places, the greatest first; of equals the first.
pub(super) fn greatest(row: &[f32], count: usize) -> Vec<(f32, usize)> {
    let mut found: Vec<(f32, usize)> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (index, value) in row.iter().copied().enumerate() {
        if value > least || found.len() < count && value > f32::NEG_INFINITY {
            let at = found.partition_point(|(other, _)| *other >= value);
            found.insert(at, (value, index));
            found.truncate(count);
            if found.len() == count {
                least = found[count - 1].0;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        for i in 0..100_000 {
            let x = -(i as f32) * 0.0008;
            let (got, want) = (exp(x), x.exp());
            assert!((got - want).abs() <= want * 4e-7, "{x}: {got} instead of {want}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn sums_are_those_of_the_library() {
        let mut random = fastrand::Rng::with_seed(1);
        let row: Vec<f32> = (0..51_865).map(|_| random.f32() * 30.0 - 20.0).collect();
        let want = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        assert!((f64::from(ln_sum_exp(&row)) - want).abs() < 1e-5);
        assert_eq!(ln_sum_exp(&[f32::NEG_INFINITY; 9]), f32::NEG_INFINITY);
        assert_eq!(ln_sum_exp(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn the_greatest_come_first_and_of_equals_the_first() {
        let row = [1.0, 5.0, f32::NEG_INFINITY, 5.0, 3.0, 5.0];
        assert_eq!(greatest(&row, 3), [(5.0, 1), (5.0, 3), (5.0, 5)]);
        assert_eq!(greatest(&row, 9).len(), 5);
        assert_eq!((argmax(&row), argmax(&[f32::NEG_INFINITY])), (1, 0));
    }
}

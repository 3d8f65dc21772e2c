//! The best one-to-one assignment between two sets of speakers: the Hungarian method with potentials.

/// For each row the column that is assigned to it, so that the sum of the values is greatest; none where there are
/// fewer columns than rows. All rows have the same length.
pub fn assign(values: &[Vec<f64>]) -> Vec<Option<usize>> {
    let rows = values.len();
    let columns = values.first().map_or(0, Vec::len);
    // A square of costs; what is not there costs nothing.
    let size = rows.max(columns);
    let cost = |row: usize, column: usize| values.get(row).and_then(|row| row.get(column)).map_or(0.0, |value| -value);
    // Index 0 stands for "none" in all four, as the method is written.
    let (mut row_potential, mut column_potential) = (vec![0.0; size + 1], vec![0.0; size + 1]);
    let mut row_of = vec![0; size + 1];
    let mut way = vec![0; size + 1];
    for row in 1..=size {
        row_of[0] = row;
        let mut column = 0;
        let mut least = vec![f64::INFINITY; size + 1];
        let mut used = vec![false; size + 1];
        while row_of[column] != 0 {
            used[column] = true;
            let current = row_of[column];
            let (mut delta, mut next) = (f64::INFINITY, 0);
            for other in (1..=size).filter(|other| !used[*other]) {
                let reduced = cost(current - 1, other - 1) - row_potential[current] - column_potential[other];
                if reduced < least[other] {
                    least[other] = reduced;
                    way[other] = column;
                }
                if least[other] < delta {
                    delta = least[other];
                    next = other;
                }
            }
            for other in 0..=size {
                if used[other] {
                    row_potential[row_of[other]] += delta;
                    column_potential[other] -= delta;
                } else {
                    least[other] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[way[column]];
            column = way[column];
        }
    }
    let mut assigned = vec![None; rows];
    for (column, row) in row_of.into_iter().enumerate().skip(1) {
        if row >= 1 && row <= rows && column <= columns {
            assigned[row - 1] = Some(column - 1);
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_and_not_the_first_choice() {
        assert_eq!(assign(&[vec![9.0, 8.0], vec![8.0, 1.0]]), [Some(1), Some(0)]);
    }

    #[test]
    fn sets_of_different_sizes_leave_some_without_a_partner() {
        assert_eq!(assign(&[vec![1.0], vec![5.0], vec![2.0]]), [None, Some(0), None]);
        assert_eq!(assign(&[vec![1.0, 7.0, 3.0]]), [Some(1)]);
        assert_eq!(assign(&[]), []);
        assert_eq!(assign(&[vec![], vec![]]), [None, None]);
    }

    #[test]
    fn it_is_as_good_as_trying_every_order() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..50 {
            let values: Vec<Vec<f64>> = (0..4).map(|_| (0..4).map(|_| f64::from(random.u8(..))).collect()).collect();
            let found: f64 = assign(&values).iter().enumerate().map(|(row, column)| values[row][column.unwrap()]).sum();
            let mut best = 0.0_f64;
            for code in 0..256 {
                let order = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 & 3];
                if (0..4).all(|column| order.contains(&column)) {
                    best = best.max((0..4).map(|row| values[row][order[row]]).sum());
                }
            }
            assert_eq!(found, best);
        }
    }
}

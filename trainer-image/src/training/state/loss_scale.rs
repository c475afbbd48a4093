//! The scale of losses in fp16, whose gradients would otherwise be rounded to 0 (Micikevicius et al. 2017). Pure.
//!
//! The scale begins high. A step whose gradients leave the range of fp16 is computed again with half of it, so that neither its records
//! nor the weights are lost; after many steps in a row that did not, it is doubled. It is a power of two, so that scaling alone rounds
//! nothing.

use super::snapshot::{Column, Columns};

const COLUMN: &str = "loss_scale/numbers";
/// The scale of the first step.
const FIRST: u64 = 1 << 16;
/// The largest scale.
const MOST: u64 = 1 << 24;
/// Steps in a row without an overflow after which the scale is doubled.
const INTERVAL: u64 = 2000;

/// The scale, and what decides about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LossScale {
    scale: u64,
    /// Steps in a row without an overflow, since the scale was changed last.
    steps: u64,
    /// Number of all overflows.
    pub(crate) overflows: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: FIRST, steps: 0, overflows: 0 }
    }
}

impl LossScale {
    /// Returns the factor of the losses of the next step.
    pub(crate) fn value(&self) -> f64 {
        self.scale as f64
    }

    /// Records that the gradients of a step left the range. Returns false if the losses were not scaled, so that the scale is not the
    /// reason.
    pub(crate) fn back_off(&mut self) -> bool {
        if self.scale == 1 {
            return false;
        }
        *self = Self { scale: self.scale / 2, steps: 0, overflows: self.overflows + 1 };
        true
    }

    /// Records a step with finite gradients.
    pub(crate) fn advance(&mut self) {
        self.steps += 1;
        if self.steps >= INTERVAL && self.scale < MOST {
            (self.scale, self.steps) = (2 * self.scale, 0);
        }
    }

    /// Adds the column of this value to a snapshot.
    pub(crate) fn save(&self, rest: &mut Columns) {
        rest.insert(COLUMN.to_owned(), Column::U64(vec![self.scale, self.steps, self.overflows]));
    }

    /// Takes the value out of the columns of a snapshot; an error if it is malformed.
    pub(crate) fn load(rest: &mut Columns) -> Result<Option<Self>, ()> {
        let Some(column) = rest.remove(COLUMN) else { return Ok(None) };
        let Column::U64(numbers) = column else { return Err(()) };
        let [scale, steps, overflows] = numbers.try_into().map_err(drop)?;
        if !scale.is_power_of_two() || scale > MOST {
            return Err(());
        }
        Ok(Some(Self { scale, steps, overflows }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_falls_with_overflows_and_rises_without_them() {
        let mut scale = LossScale::default();
        for _ in 1..INTERVAL {
            scale.advance();
        }
        assert!(scale.back_off());
        assert_eq!((scale.scale, scale.steps, scale.overflows), (FIRST / 2, 0, 1));
        for _ in 0..INTERVAL {
            assert_eq!(scale.scale, FIRST / 2);
            scale.advance();
        }
        assert_eq!((scale.scale, scale.steps), (FIRST, 0));
        while scale.back_off() {}
        assert_eq!((scale.scale, scale.overflows), (1, 17));
        let mut largest = LossScale { scale: MOST, steps: INTERVAL, overflows: 0 };
        largest.advance();
        assert_eq!(largest.scale, MOST);
    }

    #[test]
    fn a_snapshot_holds_the_scale() {
        let scale = LossScale { scale: 512, steps: 3, overflows: 7 };
        let mut columns = Columns::new();
        scale.save(&mut columns);
        assert_eq!(LossScale::load(&mut columns), Ok(Some(scale)));
        assert_eq!(LossScale::load(&mut columns), Ok(None));
        for numbers in [vec![512], vec![3, 0, 0], vec![0, 0, 0], vec![MOST * 2, 0, 0]] {
            columns.insert(COLUMN.to_owned(), Column::U64(numbers));
            assert_eq!(LossScale::load(&mut columns), Err(()));
        }
    }
}

//! Matrix products for generation: the result for a row does not depend on the rows beside it. Pure.

use pulp::Simd;

use super::dispatch::dispatched;

/// Outputs that lie side by side for each input: whole registers of every processor.
const PANEL: usize = 64;

/// A weight matrix laid out for generation: [outputs / PANEL, inputs, PANEL], padded with zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    data: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl Panels {
    /// Lays out `weight` [outputs, inputs].
    pub fn of(weight: &[f32], inputs: usize) -> Self {
        let outputs = weight.len() / inputs;
        let mut data = vec![0.0; inputs * outputs.next_multiple_of(PANEL)];
        for (output, row) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut data[output / PANEL * inputs * PANEL..][..inputs * PANEL];
            for (line, value) in panel.chunks_exact_mut(PANEL).zip(row) {
                line[output % PANEL] = *value;
            }
        }
        Self { data, inputs, outputs }
    }

    /// `y = x · wᵀ` (or `+=`) for rows of `x`. Each result is the sum over inputs in their order, whatever the rows beside it.
    pub fn apply(&self, x: &[f32], y: &mut [f32], add: bool) {
        project_dispatched(self, x, y, add);
    }
}

dispatched!(project_dispatched<'a>(weight: &'a Panels, x: &'a [f32], y: &'a mut [f32], add: bool) = project);

#[inline(always)]
fn project<S: Simd>(simd: S, weight: &Panels, x: &[f32], y: &mut [f32], add: bool) {
    let mut rows = x.chunks_exact(4 * weight.inputs);
    let mut out = y.chunks_exact_mut(4 * weight.outputs);
    for (x, y) in rows.by_ref().zip(out.by_ref()) {
        project_rows::<S, 4, 2>(simd, weight, x, y, add);
    }
    let (rows, out) = (rows.remainder().chunks_exact(weight.inputs), out.into_remainder());
    for (x, y) in rows.zip(out.chunks_exact_mut(weight.outputs)) {
        project_rows::<S, 1, 4>(simd, weight, x, y, add);
    }
}

/// `R` rows and `C` registers of outputs at once. Neither changes the order in which a result is summed.
#[inline(always)]
fn project_rows<S: Simd, const R: usize, const C: usize>(
    simd: S,
    weight: &Panels,
    x: &[f32],
    y: &mut [f32],
    add: bool,
) {
    let Panels { data, inputs, outputs } = weight;
    let (inputs, outputs, span) = (*inputs, *outputs, C * S::F32_LANES);
    let x: [&[f32]; R] = std::array::from_fn(|row| &x[row * inputs..][..inputs]);
    for (panel, data) in data.chunks_exact(inputs * PANEL).enumerate() {
        for part in (0..PANEL).step_by(span) {
            let start = panel * PANEL + part;
            if start >= outputs {
                return;
            }
            let mut sums = [[simd.splat_f32s(0.0); C]; R];
            for (input, line) in data.chunks_exact(PANEL).enumerate() {
                let line = S::as_simd_f32s(&line[part..part + span]).0;
                for row in 0..R {
                    let value = simd.splat_f32s(x[row][input]);
                    for column in 0..C {
                        sums[row][column] = simd.mul_add_f32s(value, line[column], sums[row][column]);
                    }
                }
            }
            for row in 0..R {
                let y = &mut y[row * outputs + start..(row + 1) * outputs];
                for (y, sum) in y.chunks_mut(S::F32_LANES).zip(sums[row]) {
                    let sum = if add { simd.add_f32s(simd.partial_load_f32s(y), sum) } else { sum };
                    simd.partial_store_f32s(y, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97)) % 1000) as f32 / 500.0 - 1.0)
            .collect()
    }

    fn naive(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
        let mut y = Vec::new();
        for x in x.chunks_exact(inputs) {
            for w in w.chunks_exact(inputs) {
                y.push(x.iter().zip(w).map(|(x, w)| x * w).sum());
            }
        }
        y
    }

    #[test]
    fn products_are_right() {
        for (rows, inputs, outputs) in [(1, 8, 3), (5, 64, 98), (600, 64, 192)] {
            let (x, w) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
            let expected = naive(&x, &w, inputs);
            let close = |y: &[f32]| y.iter().zip(&expected).all(|(y, e)| (y - e).abs() < 1e-3);
            let mut y = vec![0.0; rows * outputs];
            Panels::of(&w, inputs).apply(&x, &mut y, false);
            assert!(close(&y));
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (x, w) = (numbers(7 * 64, 3), numbers(98 * 64, 4));
        let weight = Panels::of(&w, 64);
        let mut together = vec![0.0; 7 * 98];
        weight.apply(&x, &mut together, false);
        for (row, expected) in together.chunks_exact(98).enumerate() {
            let mut alone = vec![0.0; 98];
            weight.apply(&x[row * 64..][..64], &mut alone, false);
            assert_eq!(alone, expected);
        }
    }
}

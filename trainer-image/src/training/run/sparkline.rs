//! A sparkline of losses for the terminal. Pure.

/// Maximum number of bars.
const WIDTH: usize = 32;

/// The losses of an attempt as a line of bars. Each bar is the mean of the same number of steps. When the line is full, pairs of
/// bars are merged, so it always spans all steps.
#[derive(Debug, Default)]
pub(super) struct Sparkline {
    /// Mean of each full bar.
    bars: Vec<f64>,
    /// Sum and count of the bar that is being filled.
    rest: (f64, u32),
    /// Number of losses in a full bar, as a power of two.
    doublings: u32,
}

impl Sparkline {
    /// Adds the loss of a step.
    pub(super) fn push(&mut self, loss: f64) {
        if !loss.is_finite() {
            return;
        }
        self.rest = (self.rest.0 + loss, self.rest.1 + 1);
        if self.rest.1 < 1 << self.doublings {
            return;
        }
        self.bars.push(self.rest.0 / f64::from(self.rest.1));
        self.rest = (0.0, 0);
        if self.bars.len() == WIDTH {
            self.bars = self.bars.chunks(2).map(|pair| pair.iter().sum::<f64>() / pair.len() as f64).collect();
            self.doublings = (self.doublings + 1).min(30);
        }
    }
}

impl std::fmt::Display for Sparkline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let (least, most) = self.bars.iter().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
        for bar in &self.bars {
            let height = if most > least { (bar - least) / (most - least) } else { 0.0 };
            let index = ((height * 8.0) as usize).min(7);
            write!(f, "{}", BARS[index])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_spans_all_steps() {
        let mut sparks = Sparkline::default();
        assert_eq!(sparks.to_string(), "");
        for step in 0..8 {
            sparks.push(f64::from(7 - step));
        }
        assert_eq!(sparks.to_string(), "█▇▆▅▄▃▂▁");
        for step in 0..5000 {
            sparks.push(f64::from(5000 - step));
        }
        let drawn: Vec<char> = sparks.to_string().chars().collect();
        assert!((WIDTH / 2..WIDTH).contains(&drawn.len()));
        assert_eq!(drawn.last(), Some(&'▁'));
        sparks.push(f64::NAN);
        assert_eq!(sparks.to_string().chars().count(), drawn.len());
        let mut flat = Sparkline::default();
        flat.push(1.0);
        flat.push(1.0);
        assert_eq!(flat.to_string(), "▁▁");
    }
}

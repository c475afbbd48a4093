//! Chooses the next token from logits: the most likely one, or a random one. Pure.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{cpu, decoder::most_likely};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits. 0 always chooses the most likely token.
    pub temperature: f64,
    /// Keeps the smallest set of most likely tokens whose probabilities add up to this. 1 keeps all.
    pub top_p: f64,
    /// Keeps this many of the most likely tokens, before `top_p`. 0 keeps all.
    pub top_k: usize,
    /// Seed of the draws. The same seed and logits give the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// Returns the greedy choice.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

/// A setting of [`Sampling`] is out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} {value} is out of range: use {right}")]
pub struct SamplingError {
    /// The setting.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
    /// The range.
    pub right: &'static str,
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Ids and logits of the candidates, kept between calls.
    candidates: Vec<(u32, f64)>,
    /// Logits without those of tokens that must not be chosen, kept between calls.
    masked: Vec<f32>,
}

impl Sampler {
    /// Makes a sampler that always chooses the most likely token.
    pub fn greedy() -> Self {
        Self::of(Sampling::default())
    }

    /// Makes a sampler.
    ///
    /// # Errors
    /// A setting is out of range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        let Sampling { temperature, top_p, .. } = sampling;
        if !(0.0..=100.0).contains(&temperature) {
            return Err(SamplingError { field: "temperature", value: temperature, right: "0 to 100" });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplingError { field: "top_p", value: top_p, right: "a number above 0, at most 1" });
        }
        Ok(Self::of(sampling))
    }

    /// Returns the settings.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    fn of(sampling: Sampling) -> Self {
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Self { sampling, random, candidates: Vec::new(), masked: Vec::new() }
    }

    /// Chooses among the tokens for which `allowed` returns true: the logits of all others count as −∞, before temperature,
    /// `top_k` and `top_p`. Returns `None` if no allowed token has a number above −∞ as its logit.
    pub fn choose_allowed(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
        let mut masked = std::mem::take(&mut self.masked);
        masked.clear();
        let keep = |(logit, id): (&f32, u32)| if allowed(id) && !logit.is_nan() { *logit } else { f32::NEG_INFINITY };
        masked.extend(logits.iter().zip(0..).map(keep));
        let some = masked.iter().any(|logit| *logit > f32::NEG_INFINITY);
        let chosen = some.then(|| self.choose(&masked));
        self.masked = masked;
        chosen
    }

    /// Returns a sampler with the same settings and another seed.
    #[must_use]
    pub fn with_seed(&self, seed: u64) -> Self {
        let sampling = Sampling { seed, ..self.sampling };
        Self { sampling, random: ChaCha8Rng::seed_from_u64(seed), candidates: Vec::new(), masked: Vec::new() }
    }

    /// Chooses a token by its logits. Logits that are not numbers are never chosen, unless all are.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, top_k, .. } = self.sampling;
        if temperature == 0.0 {
            return most_likely(logits);
        }
        self.candidates.clear();
        let numbers = logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan());
        self.candidates.extend(numbers.map(|(id, logit)| (id as u32, f64::from(*logit) / temperature)));
        let limited = top_k > 0 && top_k < self.candidates.len();
        if limited || top_p < 1.0 {
            // Equal logits keep the order of their ids.
            self.candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        }
        if limited {
            self.candidates.truncate(top_k);
        }
        let largest = self.candidates.iter().map(|(_, logit)| *logit).fold(f64::NEG_INFINITY, f64::max);
        if !largest.is_finite() {
            return most_likely(logits);
        }
        for (_, value) in &mut self.candidates {
            *value = (*value - largest).exp();
        }
        let mut sum: f64 = self.candidates.iter().map(|(_, weight)| weight).sum();
        if top_p < 1.0 {
            let (mut kept, mut reached) = (0, 0.0);
            while kept < self.candidates.len() && reached < top_p * sum {
                reached += self.candidates[kept].1;
                kept += 1;
            }
            self.candidates.truncate(kept.max(1));
            sum = self.candidates.iter().map(|(_, weight)| weight).sum();
        }
        let mut left = self.random.random::<f64>() * sum;
        let mut chosen = 0;
        for (id, weight) in &self.candidates {
            if *weight > 0.0 {
                chosen = *id;
                if left < *weight {
                    break;
                }
                left -= weight;
            }
        }
        chosen
    }
}

/// Returns −ln of the probability that `logits` give to a token, in nats. With the kernels it is to the bit the loss that
/// [`Engine::loss`](crate::Engine::loss) has for this token after the same ones, in the same precision.
///
/// # Panics
/// `token` is not one of the logits.
pub fn surprise(logits: &[f32], token: u32) -> f64 {
    cpu::surprise(logits, token)
}

/// The natural logarithms of probabilities that the model gives to tokens, before temperature and other settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogProbabilities {
    /// That of the chosen token.
    pub chosen: f32,
    /// The most likely tokens with theirs, the most likely first. Equal ones keep the order of their ids.
    pub top: Vec<(u32, f32)>,
}

impl LogProbabilities {
    /// Computes those of a chosen token and of the `count` most likely ones.
    pub fn of(logits: &[f32], chosen: u32, count: usize) -> Self {
        let numbers = || logits.iter().copied().filter(|logit| !logit.is_nan());
        let largest = f64::from(numbers().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = numbers().map(|logit| (f64::from(logit) - largest).exp()).sum();
        let normalizer = largest + sum.ln();
        let probability =
            |id: usize| logits.get(id).map_or(f32::NEG_INFINITY, |it| (f64::from(*it) - normalizer) as f32);
        // The most likely so far, in order. Few are asked for, so that a scan is enough.
        let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
        for (id, logit) in logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan()) {
            if top.len() == count && top.last().is_none_or(|(_, least)| logit <= least) {
                continue;
            }
            let at = top.partition_point(|(_, other)| other >= logit);
            top.insert(at, (id as u32, *logit));
            top.truncate(count);
        }
        let top = top.into_iter().map(|(id, _)| (id, probability(id as usize))).collect();
        Self { chosen: probability(chosen as usize), top }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(temperature: f64, top_p: f64, top_k: usize, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_p, top_k, seed }).unwrap()
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-20.0_f32..20.0, 1..60)
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (temperature, top_p, said) in [
            (-1.0, 1.0, "temperature -1 is out of range: use 0 to 100"),
            (f64::NAN, 1.0, "temperature NaN is out of range: use 0 to 100"),
            (1.0, 0.0, "top_p 0 is out of range: use a number above 0, at most 1"),
            (1.0, 1.5, "top_p 1.5 is out of range: use a number above 0, at most 1"),
        ] {
            let refused = Sampler::new(Sampling { temperature, top_p, ..Sampling::default() }).unwrap_err();
            assert_eq!(refused.to_string(), said);
        }
    }

    /// Frequencies of 20,000 draws are the probabilities, to five standard errors.
    #[test]
    fn draws_have_the_probabilities_of_the_softmax() {
        let logits = [1.0_f32, 0.0, 2.0, -1.0];
        for (temperature, top_p, top_k) in [(1.0, 1.0, 0), (0.5, 1.0, 0), (1.0, 1.0, 2), (1.0, 0.8, 0), (2.0, 0.9, 3)] {
            let mut order: Vec<usize> = vec![2, 0, 1, 3];
            if top_k > 0 {
                order.truncate(top_k);
            }
            let weight = |id: &usize| (f64::from(logits[*id]) / temperature).exp();
            let total: f64 = order.iter().map(weight).sum();
            let mut reached = 0.0;
            order.retain(|id| {
                let keep = reached < top_p * total;
                reached += weight(id);
                keep
            });
            let total: f64 = order.iter().map(weight).sum();
            let mut sampler = sampler(temperature, top_p, top_k, 7);
            let mut counts = [0_u32; 4];
            let draws = 20_000;
            for _ in 0..draws {
                counts[sampler.choose(&logits) as usize] += 1;
            }
            for (id, count) in counts.into_iter().enumerate() {
                let expected = if order.contains(&id) { weight(&id) / total } else { 0.0 };
                let found = f64::from(count) / f64::from(draws);
                let error = (expected * (1.0 - expected) / f64::from(draws)).sqrt();
                assert!((found - expected).abs() <= 5.0 * error, "{id}: {found} {expected}");
            }
        }
    }

    #[test]
    fn logits_that_are_not_numbers_are_not_chosen() {
        let mut sampler = sampler(1.0, 1.0, 0, 1);
        for _ in 0..50 {
            assert_eq!(sampler.choose(&[f32::NAN, f32::NEG_INFINITY, 1.0]), 2);
        }
        assert_eq!(sampler.choose(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(sampler.choose_allowed(&[2.0, f32::NAN, f32::NEG_INFINITY], |id| id > 0), None);
        assert_eq!(sampler.choose_allowed(&[], |_| true), None);
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0_f32, 3.0, f32::NAN, 3.0, -2.0];
        let found = LogProbabilities::of(&logits, 0, 3);
        let sum: f64 = [1.0, 3.0, 3.0, -2.0].map(f64::exp).iter().sum();
        let expected = |logit: f64| (logit - sum.ln()) as f32;
        assert!((found.chosen - expected(1.0)).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 0]);
        assert!(found.top.iter().zip([3.0, 3.0, 1.0]).all(|((_, it), logit)| (it - expected(logit)).abs() < 1e-6));
        assert!(LogProbabilities::of(&logits, 4, 0).top.is_empty());
        assert_eq!(LogProbabilities::of(&logits, 1, 9).top.len(), 4);
    }

    proptest! {
        #[test]
        fn the_most_likely_come_first(logits in logits(), count in 0_usize..12) {
            let top = LogProbabilities::of(&logits, 0, count).top;
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            order.truncate(count);
            prop_assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order);
        }

        #[test]
        fn greedy_is_the_largest_logit(logits in logits(), seed: u64) {
            let chosen = sampler(0.0, 0.5, 3, seed).choose(&logits) as usize;
            prop_assert!(logits.iter().all(|logit| *logit <= logits[chosen]));
            prop_assert_eq!(sampler(1.0, 1.0, 1, seed).choose(&logits) as usize, chosen, "one candidate");
            prop_assert_eq!(sampler(1.0, 1e-9, 0, seed).choose(&logits) as usize, chosen, "a tiny share");
        }

        #[test]
        fn the_same_seed_gives_the_same_tokens(
            logits in logits(), seed: u64, temperature in 0.1_f64..3.0, top_p in 0.1_f64..=1.0, top_k in 0_usize..70,
        ) {
            let (mut one, mut two) = (sampler(temperature, top_p, top_k, seed), sampler(temperature, top_p, top_k, seed));
            for _ in 0..8 {
                prop_assert_eq!(one.choose(&logits), two.choose(&logits));
            }
        }

        /// A mask is the same as logits of −∞, and what it allows is chosen as without it if it is what would be chosen.
        #[test]
        fn only_allowed_tokens_are_chosen(
            logits in logits(), mask in prop::collection::vec(any::<bool>(), 60), seed: u64, temperature in 0.0_f64..3.0,
            top_p in 0.1_f64..=1.0, top_k in 0_usize..70,
        ) {
            let allowed = |id: u32| mask[id as usize];
            let (mut one, mut two) = (sampler(temperature, top_p, top_k, seed), sampler(temperature, top_p, top_k, seed));
            let masked: Vec<f32> =
                logits.iter().zip(0..).map(|(logit, id)| if allowed(id) { *logit } else { f32::NEG_INFINITY }).collect();
            for _ in 0..4 {
                let chosen = one.choose_allowed(&logits, allowed);
                prop_assert_eq!(chosen.is_some(), (0..logits.len() as u32).any(allowed));
                let Some(chosen) = chosen else { break };
                prop_assert!(allowed(chosen));
                prop_assert_eq!(chosen, two.choose(&masked));
            }
            let greedy = sampler(0.0, 1.0, 0, 0).choose(&logits);
            prop_assert_eq!(sampler(0.0, 1.0, 0, 0).choose_allowed(&logits, |id| id == greedy), Some(greedy));
        }

        #[test]
        fn only_the_most_likely_are_chosen(logits in logits(), seed: u64, top_k in 1_usize..10) {
            let chosen = sampler(5.0, 1.0, top_k, seed).choose(&logits) as usize;
            prop_assert!(logits.iter().filter(|logit| **logit > logits[chosen]).count() < top_k);
        }
    }
}

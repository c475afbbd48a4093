//! The mechanism of a private run: its parameters, its key, and the draws of its steps.

use aws_lc_rs::rand::fill;
use codex_configs::{Optimization, Randomness};
use codex_provenance::text::counted;
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use sha2::{Digest as _, Sha256};

use super::{Account, PrivacyError};
use crate::{
    artifacts::metadata::PrivacyReport,
    training::{
        schedule::scheduled_steps,
        state::{Column, Columns, StateError},
    },
};

const KEY: &str = "privacy/key";
const MECHANISM: &str = "privacy/mechanism";

/// The parameters of the sampled Gaussian mechanism.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mechanism {
    /// Standard deviation of the noise, in units of `max_grad_norm`.
    pub(crate) noise_multiplier: f64,
    /// Probability with which a step takes a record.
    pub(crate) sampling_rate: f64,
    /// Maximum norm of a record's gradient.
    pub(crate) max_grad_norm: f64,
    /// The δ of the guarantee.
    pub(crate) delta: f64,
    /// Number of records that a step has in the mean, by which the sum of gradients is divided.
    pub(crate) expected: f64,
    /// Number of records that steps are drawn from.
    records: u64,
    /// Where the key comes from.
    randomness: Randomness,
}

impl Mechanism {
    /// Returns the mechanism of a run with this number of records; `None` if the run is not private.
    ///
    /// # Errors
    /// When a step would take more records than there are, or no noise is enough for the target.
    pub(crate) fn of(training: &Optimization, records: u64) -> Result<Option<Self>, PrivacyError> {
        let Some(settings) = training.private() else { return Ok(None) };
        let expected = training.batch_size as u64 * training.gradient_accumulation as u64;
        if expected > records {
            return Err(PrivacyError::Records { expected, records });
        }
        let (sampling_rate, delta) = (expected as f64 / records as f64, settings.target_delta);
        let steps = scheduled_steps(training, records);
        let calibrated = |epsilon| {
            let noise = Account::calibrate(sampling_rate, steps, (epsilon, delta));
            noise.ok_or(PrivacyError::Target { epsilon, delta, steps })
        };
        let noise = settings.noise_multiplier.map(Ok).or_else(|| settings.target_epsilon.map(calibrated));
        let Some(noise_multiplier) = noise.transpose()? else { return Ok(None) };
        Ok(Some(Self {
            noise_multiplier,
            sampling_rate,
            max_grad_norm: settings.max_grad_norm,
            delta,
            expected: expected as f64,
            records,
            randomness: settings.randomness,
        }))
    }

    /// Returns a sentence about a δ that guarantees little.
    pub(crate) fn notice(&self) -> Option<String> {
        let Self { delta, records, .. } = *self;
        (delta * records as f64 >= 1.0).then(|| {
            format!(
                "training.privacy.target_delta is {delta}, which is not less than one divided by the {}: the \
                 guarantee may fail for one of them",
                counted(records, "record")
            )
        })
    }

    fn numbers(&self) -> [f64; 3] {
        [self.noise_multiplier, self.sampling_rate, self.max_grad_norm]
    }
}

/// The mechanism and the key of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Privacy {
    pub(crate) mechanism: Mechanism,
    key: [u64; 4],
    account: Account,
}

/// The columns of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Saved {
    key: [u64; 4],
    numbers: [f64; 3],
}

impl Privacy {
    /// Begins a private run, or goes on with a saved one.
    ///
    /// # Errors
    /// When the checkpoint of `step` was trained with another mechanism, or without one, or the system gives no random numbers.
    pub(crate) fn begin(
        mechanism: Option<Mechanism>,
        saved: Option<Saved>,
        (seed, step): (u64, u64),
    ) -> Result<Option<Self>, StateError> {
        let numbers = mechanism.as_ref().map(Mechanism::numbers);
        let before = saved.as_ref().map(|saved| saved.numbers);
        if step > 0 && before != numbers {
            let described = |numbers: Option<[f64; 3]>| match numbers {
                None => "no privacy".to_owned(),
                Some([noise, rate, norm]) => {
                    format!("a noise multiplier of {noise}, a sampling rate of {rate} and a clipping norm of {norm}")
                }
            };
            return Err(StateError::Privacy { step, before: described(before), now: described(numbers) });
        }
        let Some(mechanism) = mechanism else { return Ok(None) };
        let key = match (saved.filter(|_| step > 0), mechanism.randomness) {
            (Some(saved), _) => saved.key,
            (None, Randomness::Secret) => {
                let mut key = [0; 32];
                fill(&mut key).map_err(|_| StateError::Random)?;
                words(key)
            }
            (None, Randomness::Seed) => words(digest(b"codex privacy key 1\0", &[seed])),
        };
        let account = Account::new(mechanism.sampling_rate, mechanism.noise_multiplier);
        Ok(Some(Self { mechanism, key, account }))
    }

    /// Returns the records of the step after `done` steps, as numbers below the number of records, in ascending order.
    pub(crate) fn draw(&self, done: u64) -> Vec<u64> {
        let Mechanism { sampling_rate, records, .. } = self.mechanism;
        let mut stream = ChaCha20Rng::from_seed(self.seed(b"codex privacy records 1\0", done));
        // 2^64 times the rate, rounded to what a f64 holds; a rate of 1 takes every record.
        let below = sampling_rate * 2.0_f64.powi(64);
        (0..records).filter(|_| (stream.next_u64() as f64) < below || sampling_rate >= 1.0).collect()
    }

    /// Returns the key of the noise of the step after `done` steps.
    pub(crate) fn noise(&self, done: u64) -> [u8; 32] {
        self.seed(b"codex privacy noise 1\0", done)
    }

    /// Returns the ε that `steps` steps have spent.
    pub(crate) fn epsilon(&self, steps: u64) -> f64 {
        self.account.epsilon(steps, self.mechanism.delta)
    }

    /// Returns what `run_metadata.json` says of a run with this number of steps.
    pub(crate) fn report(&self, steps: u64) -> PrivacyReport {
        let Mechanism { noise_multiplier, sampling_rate, max_grad_norm, delta, randomness, .. } = self.mechanism;
        PrivacyReport {
            epsilon: self.epsilon(steps),
            delta,
            steps,
            noise_multiplier,
            max_grad_norm,
            sampling_rate,
            unit: "record".to_owned(),
            sampling: "poisson".to_owned(),
            accountant: "rdp".to_owned(),
            secret: randomness == Randomness::Secret,
        }
    }

    fn seed(&self, purpose: &[u8], step: u64) -> [u8; 32] {
        let [a, b, c, d] = self.key;
        digest(purpose, &[a, b, c, d, step])
    }

    /// Returns what a snapshot holds of this value.
    pub(crate) fn saved(&self) -> Saved {
        Saved { key: self.key, numbers: self.mechanism.numbers() }
    }
}

impl Saved {
    /// Adds the columns of this value to a snapshot.
    pub(crate) fn save(&self, rest: &mut Columns) {
        rest.insert(KEY.to_owned(), Column::U64(self.key.to_vec()));
        rest.insert(MECHANISM.to_owned(), Column::F64(self.numbers.to_vec()));
    }

    /// Takes the value out of the columns of a snapshot.
    ///
    /// # Errors
    /// When they are malformed.
    pub(crate) fn load(rest: &mut Columns) -> Result<Option<Self>, ()> {
        match (rest.remove(KEY), rest.remove(MECHANISM)) {
            (None, None) => Ok(None),
            (Some(Column::U64(key)), Some(Column::F64(numbers))) => {
                let (key, numbers) = (key.try_into().map_err(drop)?, numbers.try_into().map_err(drop)?);
                Ok(Some(Self { key, numbers }))
            }
            _ => Err(()),
        }
    }
}

fn words(bytes: [u8; 32]) -> [u64; 4] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|at| u64::from_le_bytes(words[at]))
}

fn digest(purpose: &[u8], numbers: &[u64]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(purpose);
    for number in numbers {
        hasher.update(number.to_le_bytes());
    }
    hasher.finalize().into()
}

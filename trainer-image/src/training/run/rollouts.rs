//! Rollouts of a step: answers that the current weights give to its prompts, and their rewards. They are a function of the
//! state before the step and of the step's number, so that a checkpoint needs no rollouts: an attempt that resumes samples the
//! same ones again. Does I/O only to read a base.

use std::collections::BTreeMap;

use codex_configs::GrpoSettings;
use codex_engine::{
    Decoder, Emitted, End, Engine, EngineError, Packed, Precision, Sampler, Sampling, decoder, surprise,
};
use rayon::prelude::*;

use super::{Session, steps::seed_of};
use crate::{
    model::ModelError,
    plugins::Plugin,
    signals::Stop,
    text::Tokenizer,
    training::{
        BaseError, DataError, TrainError,
        base::TrainedModel,
        data::{Address, Dataset},
        objective::{Answer, Group, Measured, Rewards, Sampled, learned_tokens, weighted},
        state::engine_settings,
    },
};

/// The most answers that are sampled at the same time.
pub(crate) const MAX_SLOTS: usize = 64;

/// Number of records that are checked at once.
const CHECKED: usize = 1 << 14;

/// What a run that learns from rewards needs beside its state and its data.
#[derive(Clone, Debug)]
pub(crate) struct Rollouts<'a> {
    model: &'a TrainedModel,
    tokenizer: &'a Tokenizer,
    rewards: Rewards,
}

/// The rollouts of a step.
#[derive(Clone, Debug)]
pub(crate) struct StepRollouts {
    /// The groups of each batch, one for each of its prompts.
    pub(crate) groups: Vec<Vec<Group>>,
    /// The sequences of each batch that have a gradient, and the weights of their losses.
    pub(crate) batches: Vec<(Packed, Vec<f64>)>,
    /// What is measured of all answers.
    pub(crate) sampled: Sampled,
}

impl Session<'_> {
    /// Returns what rollouts need; `None` if the run learns from given responses.
    ///
    /// # Errors
    /// The regular expression of answers is malformed.
    pub(crate) fn rollouts<'a>(
        &self,
        model: &'a TrainedModel,
        tokenizer: &'a Tokenizer,
        plugin: Option<&Plugin>,
    ) -> Result<Option<Rollouts<'a>>, TrainError> {
        let Some(settings) = self.resolved.spec().settings.training.rewards() else { return Ok(None) };
        Ok(Some(Rollouts { model, tokenizer, rewards: Rewards::of(&settings.reward, plugin)? }))
    }

    /// Checks that every record has a prompt, and an answer that rewards can be computed from.
    ///
    /// # Errors
    /// Names the first record that has not, or the attempt is interrupted.
    pub(super) fn check_rewards(&self, rollouts: &Rollouts, dataset: &Dataset) -> Result<(), TrainError> {
        let Rollouts { tokenizer, rewards, .. } = rollouts;
        let check = |address: &Address| {
            if (self.stop)() {
                return Err(TrainError::Interrupted);
            }
            let (prompt, reference) = dataset.question(*address, tokenizer)?;
            let why = if prompt.is_empty() {
                "nothing stands before its response, but training.method=grpo needs a prompt".to_owned()
            } else {
                match rewards.check(&reference) {
                    Ok(()) => return Ok(()),
                    Err(wanted) => format!("the response has no answer: {wanted}"),
                }
            };
            Err(DataError::Unrewarded { record: dataset.describe(&[*address])?, why }.into())
        };
        let mut all = dataset.all();
        loop {
            let some: Vec<Address> = all.by_ref().take(CHECKED).collect();
            if some.is_empty() {
                return Ok(());
            }
            let checked: Vec<Result<(), TrainError>> = some.par_iter().map(check).collect();
            checked.into_iter().collect::<Result<(), _>>()?;
        }
    }

    /// Samples the answers of the step after `done` steps, to the records of its batches. Returns `None` if the attempt is
    /// interrupted meanwhile.
    ///
    /// # Errors
    /// When the base cannot be read, or the decoder fails.
    pub(crate) fn roll_out(
        &self,
        rollouts: &Rollouts,
        engine: &dyn Engine,
        dataset: &Dataset,
        (done, addresses): (u64, &[Vec<Address>]),
    ) -> Result<Option<StepRollouts>, TrainError> {
        let run = self.resolved.spec();
        let training = &run.settings.training;
        let Some(settings) = training.rewards() else { return Err(BaseError::None("grpo").into()) };
        let questions: Vec<(Vec<u32>, String)> = addresses
            .iter()
            .flatten()
            .map(|address| dataset.question(*address, rollouts.tokenizer))
            .collect::<Result<_, _>>()?;
        let prompts: Vec<&[u32]> = questions.iter().map(|(prompt, _)| prompt.as_slice()).collect();
        let drawn = {
            let mut decoder = rollouts.decoder(self, engine, prompts.len() * settings.group)?;
            let seed = |prompt, member| seed_of(b"codex rollout 1\0", &[run.seed, done, prompt, member]);
            sample(decoder.as_mut(), &prompts, settings, seed, self.stop)?
        };
        let Some(drawn) = drawn else { return Ok(None) };
        let mut all = Vec::with_capacity(questions.len());
        let asked = addresses.iter().flatten();
        for (((prompt, reference), drawn), address) in questions.into_iter().zip(drawn).zip(asked) {
            let question = rollouts.tokenizer.decode(&prompt).map_err(ModelError::from)?;
            let answers = drawn.into_iter().map(|Drawn { tokens, end, surprise }| {
                let text = rollouts.tokenizer.decode(&tokens).map_err(ModelError::from)?;
                let reward = match rollouts.rewards.reward(&question, &text, &reference) {
                    Ok(reward) => reward,
                    Err(source) => {
                        return Err(DataError::Reward { record: dataset.describe(&[*address])?, source }.into());
                    }
                };
                Ok(Answer { tokens, ended: end == Some(End::Stop), surprise, text, reward })
            });
            let answers = answers.collect::<Result<Vec<_>, TrainError>>()?;
            all.push(Group { prompt, answers });
        }
        let sampled = Sampled::of(&all, settings);
        let tokens = learned_tokens(all.iter());
        let mut rest = all.into_iter();
        let groups: Vec<Vec<Group>> =
            addresses.iter().map(|addresses| rest.by_ref().take(addresses.len()).collect()).collect();
        let batches = groups.iter().map(|groups| {
            let learned: Vec<_> = groups.iter().flat_map(|group| weighted(group, tokens)).collect();
            let packed = Packed::new(learned.iter().map(|(ids, prompt, _)| (ids.as_slice(), *prompt)));
            (packed, learned.iter().map(|(.., weight)| *weight).collect())
        });
        Ok(Some(StepRollouts { batches: batches.collect(), groups, sampled }))
    }
}

impl Rollouts<'_> {
    /// Returns a decoder with the current weights, for at most `answers` sequences at once.
    fn decoder(&self, session: &Session, engine: &dyn Engine, answers: usize) -> Result<Box<dyn Decoder>, TrainError> {
        let training = &session.resolved.spec().settings.training;
        let settings = engine_settings(training).suited(&self.model.config);
        let trained = engine.parameters()?;
        let merged = self.model.parameters(session.base, &trained)?;
        // Steps of an adapter are smaller than the rounding of weights in bf16.
        let precision = if merged.is_some() { Precision::F32 } else { settings.precision };
        let parameters = merged.as_deref().unwrap_or(&trained);
        let slots = answers.clamp(1, MAX_SLOTS);
        Ok(decoder(&self.model.config, parameters, codex_engine::Settings { precision, ..settings }, slots)?)
    }
}

/// What was sampled in one slot.
#[derive(Clone, Debug, Default)]
struct Drawn {
    tokens: Vec<u32>,
    end: Option<End>,
    surprise: f64,
}

/// Samples `settings.group` answers to each prompt from the probabilities of the model, as many at once as there are slots. `seed`
/// gives the seed of an answer by the numbers of its prompt and of the answer. Returns `None` soon after `stop` returns true.
fn sample(
    decoder: &mut dyn Decoder,
    prompts: &[&[u32]],
    settings: &GrpoSettings,
    seed: impl Fn(u64, u64) -> u64,
    stop: Stop,
) -> Result<Option<Vec<Vec<Drawn>>>, TrainError> {
    struct Running {
        prompt: usize,
        member: usize,
        sampler: Sampler,
    }
    let GrpoSettings { group, max_new_tokens, .. } = *settings;
    let sampler = Sampler::new(Sampling { temperature: 1.0, ..Sampling::default() })
        .map_err(|error| TrainError::Arguments(error.to_string()))?;
    let mut drawn: Vec<Vec<Drawn>> = prompts.iter().map(|_| vec![Drawn::default(); group]).collect();
    let mut waiting = (0..prompts.len()).flat_map(|prompt| (0..group).map(move |member| (prompt, member)));
    let mut running: BTreeMap<usize, Running> = BTreeMap::new();
    loop {
        if stop() {
            return Ok(None);
        }
        while let Some(slot) = decoder.slots().free() {
            let Some((prompt, member)) = waiting.next() else { break };
            let sampler = sampler.with_seed(seed(prompt as u64, member as u64));
            let refused =
                |error: codex_engine::PromptError| TrainError::Arguments(format!("a prompt is refused: {error}"));
            decoder.prefill(slot, prompts[prompt]).map_err(refused)?;
            running.insert(slot, Running { prompt, member, sampler });
        }
        let emitted = decoder.step_by(&mut |slot, logits| {
            let Some(Running { prompt, member, sampler }) = running.get_mut(&slot) else { return 0 };
            let token = sampler.choose(logits);
            drawn[*prompt][*member].surprise += surprise(logits, token);
            token
        })?;
        if emitted.is_empty() {
            return Ok(Some(drawn));
        }
        for Emitted { slot, token, end } in emitted {
            let Some(Running { prompt, member, .. }) = running.get(&slot) else { continue };
            let answer = &mut drawn[*prompt][*member];
            answer.tokens.push(token);
            answer.end = end;
            if end.is_some() || answer.tokens.len() >= max_new_tokens {
                running.remove(&slot);
                decoder.release(slot);
            }
        }
    }
}

/// Adds the gradients of the rollouts of a step, and returns its loss; `None` if `stop` returns true between two batches.
///
/// # Errors
/// When the engine rejects a batch.
pub(crate) fn accumulate_rollouts(
    engine: &mut dyn Engine,
    rollouts: &StepRollouts,
    stop: Stop,
) -> Result<Option<Measured>, EngineError> {
    let mut loss = 0.0;
    for (batch, weights) in rollouts.batches.iter().filter(|(_, weights)| !weights.is_empty()) {
        if stop() {
            return Ok(None);
        }
        let losses = engine.accumulate_weighted(batch, &mut |_| weights.clone())?;
        loss += losses.iter().zip(weights).map(|(loss, weight)| loss * weight).sum::<f64>();
    }
    Ok(Some(Measured { loss, preferences: None, sampled: Some(rollouts.sampled) }))
}

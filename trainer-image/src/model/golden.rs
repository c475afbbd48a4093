//! Golden tokens: generates them for a record, and generates those of a record again. Pure.
//!
//! Both go the same way through the decoder: it is fed the recorded tokens and must prefer each of them itself. With the same code
//! path, instruction set and version of the kernels, tokens and log-probabilities have the same bits, whatever the number of slots
//! and threads. Elsewhere the log-probabilities of the recorded tokens must be near. The products of candle may add in another order
//! on another machine, so its records never bind to the bit.

use std::{collections::BTreeMap, fmt};

use codex_engine::{KERNELS, PromptError, Sampler, instruction_set, surprise};
use codex_provenance::golden::{Golden, GoldenError, GoldenPrompt, MAX_PROMPT_TOKENS, MAX_PROMPTS, MAX_TOKENS, Tokens};
use codex_reports::Reproduction;

use super::generate::{GenerateError, Generator};

/// The promoted tolerance of log-probabilities in `f32`, in nats. The largest difference that was measured with SmolLM2-135M between
/// AVX-512, AVX2 and the portable kernels is 0.000016; products on GPUs may round more.
const TOLERANCE: &str = "0.01";
/// That of `bf16`, whose activations are rounded to eight bits: about four times the largest difference that was measured with
/// SmolLM2-135M between AVX-512, AVX2 and the portable kernels, 0.13.
const TOLERANCE_OF_BF16: &str = "0.5";

/// Why a model does not reproduce golden tokens.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotReproduced {
    /// The record is malformed.
    #[error("the record is malformed: {0}")]
    Record(#[from] GoldenError),
    /// The model does not take a prompt, or the decoder failed.
    #[error("prompt {prompt}: {error}")]
    Prompt {
        /// The number of the prompt, from 1.
        prompt: usize,
        /// The reason.
        error: GenerateError,
    },
    /// The model was judged in another precision than it is computed in.
    #[error(
        "the model was judged in {recorded} (code path {recorded_path}) and is computed here in {own} (code path {own_path}): serve it \
         with a release and on a device that compute it in {recorded}, or evaluate it again with this one"
    )]
    Precision {
        /// The precision of the record.
        recorded: &'static str,
        /// The code path of the record.
        recorded_path: String,
        /// The precision of the decoder.
        own: &'static str,
        /// The code path of the decoder.
        own_path: &'static str,
    },
    /// A token differs.
    #[error("{0}")]
    Differs(Box<Differs>),
}

/// The precisions that code paths name.
const PRECISIONS: [&str; 2] = ["f32", "bf16"];

/// Returns the precision of a code path, such as `bf16` of `cpu-bf16-amx`; `None` if it names none that this release knows.
fn precision(path: &str) -> Option<&'static str> {
    PRECISIONS.into_iter().find(|precision| path.split('-').any(|part| part == *precision))
}

/// The first token that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Differs {
    /// The number of the prompt, from 1.
    prompt: usize,
    /// The number of the token after it, from 1.
    token: usize,
    /// The recorded token, its text and log-probability.
    recorded: (u32, String, f32),
    /// The log-probability that the model gives to the recorded token.
    found: f32,
    /// The token that the model prefers, with its text.
    preferred: (u32, String),
    /// The greatest difference of log-probabilities; `None` if tokens must be equal.
    tolerance: Option<f32>,
    /// How both were computed.
    how: String,
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt, token, recorded: (id, text, recorded), found, preferred, tolerance, how } = self;
        write!(f, "prompt {prompt}, token {token}: ")?;
        match tolerance {
            None if preferred.0 != *id => {
                let (other, said) = preferred;
                write!(f, "{id} ({text:?}) is recorded, but the model generates {other} ({said:?}); {how}")
            }
            None => write!(
                f,
                "{id} ({text:?}) is recorded with the log-probability {recorded}, but the model gives it {found}; {how}"
            ),
            Some(tolerance) => write!(
                f,
                "{id} ({text:?}) is recorded with the log-probability {recorded}, but the model gives it {found}, which differs \
                 by more than the promoted tolerance {tolerance}; {how}"
            ),
        }
    }
}

/// A token that the decoder was fed.
struct Fed {
    token: u32,
    log_probability: f32,
    preferred: u32,
}

/// How a generator computes.
#[derive(PartialEq)]
struct How<'a> {
    path: &'a str,
    instruction_set: &'a str,
    kernels: u32,
}

impl How<'static> {
    fn of(generator: &Generator) -> Self {
        Self { path: generator.path(), instruction_set: instruction_set(), kernels: KERNELS }
    }

    /// Whether the same way of computing gives the same bits on another machine: only our own kernels promise it.
    fn binds(&self) -> bool {
        !self.path.starts_with("candle")
    }
}

impl<'a> How<'a> {
    fn recorded(golden: &'a Golden) -> Self {
        Self { path: &golden.path, instruction_set: &golden.instruction_set, kernels: golden.kernels }
    }
}

impl fmt::Display for How<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} (kernels {})", self.path, self.instruction_set, self.kernels)
    }
}

impl Generator {
    /// Records what the model generates for the first prompts that are short enough. If none is, the beginning of the first one is
    /// taken. `None` if no prompt can be encoded, or the model gives numbers that are not finite. All slots must be free, and are
    /// free afterwards.
    ///
    /// # Errors
    /// The decoder fails.
    pub(crate) fn golden<'a>(
        &mut self,
        prompts: impl Iterator<Item = &'a str>,
    ) -> Result<Option<Golden>, GenerateError> {
        let context = self.config().max_position_embeddings;
        let most = MAX_PROMPT_TOKENS.min(context.saturating_sub(1));
        let (mut chosen, mut cut): (Vec<Vec<u32>>, Option<Vec<u32>>) = (Vec::new(), None);
        for prompt in prompts {
            let Ok(mut ids) = self.encode_prompt(prompt) else { continue };
            if ids.len() > most {
                ids.truncate(most);
                cut = cut.or(Some(ids));
            } else if !ids.is_empty() {
                chosen.push(ids);
            }
            if chosen.len() == MAX_PROMPTS {
                break;
            }
        }
        if chosen.is_empty() {
            chosen.extend(cut.filter(|ids| !ids.is_empty()));
        }
        if chosen.is_empty() {
            return Ok(None);
        }
        let asked: Vec<(&[u32], Option<&[u32]>)> = chosen.iter().map(|ids| (ids.as_slice(), None)).collect();
        let fed = self.feed(&asked).map_err(|(_, error)| error)?;
        let prompts = chosen.iter().zip(fed).map(|(prompt, fed)| {
            GoldenPrompt::new(&Tokens {
                prompt: prompt.clone(),
                tokens: fed.iter().map(|one| one.token).collect(),
                log_probabilities: fed.iter().map(|one| one.log_probability).collect(),
            })
        });
        let prompts = prompts.collect();
        let How { path, instruction_set, kernels } = How::of(self);
        let tolerance = if path.contains("bf16") { TOLERANCE_OF_BF16 } else { TOLERANCE };
        let (path, instruction_set) = (path.to_owned(), instruction_set.to_owned());
        let golden = Golden { path, instruction_set, kernels, tolerance: tolerance.to_owned(), prompts };
        // A model that diverged gives numbers that are not finite; its gates judge it.
        Ok(Some(golden).filter(|golden| golden.read().is_ok()))
    }

    /// Whether a record was computed as this generator computes, so that it binds to the bit.
    pub(crate) fn binds(&self, golden: &Golden) -> bool {
        let own = How::of(self);
        own.binds() && own == How::recorded(golden)
    }

    /// Generates the tokens of a record again. All slots must be free, and are free afterwards.
    ///
    /// # Errors
    /// The record is malformed, or the first token that differs.
    pub(crate) fn reproduce(&mut self, golden: &Golden) -> Result<Reproduction, NotReproduced> {
        let recorded = golden.read()?;
        // The tolerance allows for another order of sums, not for other numbers.
        if let (Some(judged), Some(own)) = (precision(&golden.path), precision(self.path()))
            && judged != own
        {
            let (recorded_path, own_path) = (golden.path.clone(), self.path());
            return Err(NotReproduced::Precision { recorded: judged, recorded_path, own, own_path });
        }
        let tolerance = if self.binds(golden) { None } else { Some(golden.tolerance()?) };
        let asked: Vec<(&[u32], Option<&[u32]>)> =
            recorded.iter().map(|it| (it.prompt.as_slice(), Some(it.tokens.as_slice()))).collect();
        let fed = self.feed(&asked).map_err(|(prompt, error)| NotReproduced::Prompt { prompt: prompt + 1, error })?;
        for (prompt, (recorded, fed)) in recorded.iter().zip(&fed).enumerate() {
            let expected = recorded.tokens.iter().zip(&recorded.log_probabilities);
            for (token, ((id, expected), fed)) in expected.zip(fed).enumerate() {
                let found = fed.log_probability;
                let same = match tolerance {
                    None => fed.preferred == *id && found.to_bits() == expected.to_bits(),
                    // Not a number is not near.
                    Some(tolerance) => (found - expected).abs() <= tolerance,
                };
                if !same {
                    let text = |id: u32| self.tokenizer.decode(&[id]).unwrap_or_default();
                    return Err(NotReproduced::Differs(Box::new(Differs {
                        prompt: prompt + 1,
                        token: token + 1,
                        recorded: (*id, text(*id), *expected),
                        found,
                        preferred: (fed.preferred, text(fed.preferred)),
                        tolerance,
                        how: format!("recorded by {}, generated by {}", How::recorded(golden), How::of(self)),
                    })));
                }
            }
            if fed.len() < recorded.tokens.len() {
                let right = "tokens of which only the last one may end the response";
                return Err(GoldenError::Number { field: "prompts.tokens", right }.into());
            }
        }
        Ok(if tolerance.is_none() { Reproduction::Equal } else { Reproduction::Near })
    }

    /// Feeds each prompt and the tokens after it, as many prompts at once as there are slots: the given tokens, or else those that
    /// the model prefers. A response ends as any other, or after [`MAX_TOKENS`].
    ///
    /// # Errors
    /// The decoder refuses a prompt, named by its index, or fails.
    fn feed(&mut self, sequences: &[(&[u32], Option<&[u32]>)]) -> Result<Vec<Vec<Fed>>, (usize, GenerateError)> {
        let mut fed: Vec<Vec<Fed>> = sequences.iter().map(|_| Vec::new()).collect();
        let mut waiting = sequences.iter().enumerate();
        let mut running: BTreeMap<usize, usize> = BTreeMap::new();
        let outcome = loop {
            while let Some(slot) = self.free_slot() {
                let Some((index, (prompt, _))) = waiting.next() else { break };
                if let Err(error) = self.known_ids(sequences[index].1).and_then(|()| self.prefill(slot, prompt)) {
                    self.release_all(running.keys());
                    return Err((index, error));
                }
                running.insert(slot, index);
            }
            let Some(first) = running.values().next().copied() else { break Ok(fed) };
            let choose = |slot: usize, logits: &[f32]| {
                let Some(index) = running.get(&slot) else { return 0 };
                let preferred = preferred(logits);
                let given = sequences[*index].1.and_then(|tokens| tokens.get(fed[*index].len()).copied());
                let token = given.unwrap_or(preferred);
                fed[*index].push(Fed { token, log_probability: -surprise(logits, token) as f32, preferred });
                token
            };
            let emitted = match self.step_by(choose) {
                Ok(emitted) => emitted,
                Err(error) => break Err((first, error)),
            };
            for emitted in emitted {
                let Some(index) = running.get(&emitted.slot) else { continue };
                let most = sequences[*index].1.map_or(MAX_TOKENS, <[u32]>::len);
                if emitted.end.is_some() || fed[*index].len() >= most {
                    self.release(emitted.slot);
                    running.remove(&emitted.slot);
                }
            }
        };
        self.release_all(running.keys());
        outcome
    }

    /// Checks that the vocabulary has these tokens.
    fn known_ids(&self, tokens: Option<&[u32]>) -> Result<(), GenerateError> {
        let vocabulary = self.config().vocab_size;
        let unknown = tokens.into_iter().flatten().find(|id| **id as usize >= vocabulary);
        unknown.map_or(Ok(()), |id| Err(PromptError::Id { id: *id, vocabulary }.into()))
    }
}

/// Returns the most likely token, the first of equal ones.
fn preferred(logits: &[f32]) -> u32 {
    Sampler::greedy().choose(logits)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::read_directory;

    const PROMPTS: [&str; 5] = ["347+86:", "208-9:", "5+5:", "9-1:", "1+2:"];

    fn generator(slots: usize) -> Generator {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/trained");
        Generator::load(&read_directory(&files).unwrap(), slots, codex_configs::Device::Cpu).unwrap()
    }

    fn golden() -> Golden {
        generator(2).golden(PROMPTS.into_iter()).unwrap().unwrap()
    }

    #[test]
    fn golden_tokens_are_the_same_with_any_slots_and_reproduced_to_the_bit() {
        let golden = golden();
        assert_eq!(golden.prompts.len(), MAX_PROMPTS);
        let mut one = generator(1);
        assert_eq!(one.golden(PROMPTS.into_iter()).unwrap().unwrap(), golden);
        for slots in [1, 3, 8] {
            let mut generator = generator(slots);
            assert_eq!(generator.reproduce(&golden).unwrap(), Reproduction::Equal);
            // Every slot is free again, and what was generated changes nothing.
            assert!((0..slots).all(|slot| generator.is_free(slot)));
            assert_eq!(generator.reproduce(&golden).unwrap(), Reproduction::Equal);
        }
        // They are those of ordinary generation.
        let tokens = &golden.read().unwrap()[0];
        let mut text = one.complete(&PROMPTS[..1], MAX_TOKENS, |_| ());
        assert_eq!(text.remove(0).unwrap().tokens, tokens.tokens);
    }

    #[test]
    fn other_tokens_and_other_bits_are_named() {
        let told = |change: &dyn Fn(&mut Tokens), edit: &dyn Fn(&mut Golden)| {
            let mut golden = golden();
            let mut tokens = golden.read().unwrap().remove(1);
            change(&mut tokens);
            golden.prompts[1] = GoldenPrompt::new(&tokens);
            edit(&mut golden);
            generator(2).reproduce(&golden).map_err(|error| error.to_string())
        };
        let own = How::of(&generator(1)).to_string();
        let first = golden().read().unwrap()[1].tokens[0];
        let other = if first == 5 { 6 } else { 5 };
        let said = told(&|it| it.tokens[0] = other, &|_| ()).unwrap_err();
        assert!(said.starts_with(&format!("prompt 2, token 1: {other} (")), "{said}");
        assert!(said.contains(&format!("is recorded, but the model generates {first} (")), "{said}");
        assert!(said.ends_with(&format!("; recorded by {own}, generated by {own}")), "{said}");
        let nudge = |it: &mut Tokens| {
            it.log_probabilities[2] = f32::from_bits(it.log_probabilities[2].to_bits() + 1);
        };
        let said = told(&nudge, &|_| ()).unwrap_err();
        assert!(said.starts_with("prompt 2, token 3: ") && said.contains("with the log-probability "), "{said}");
        // Elsewhere a bit does not matter, but a difference above the tolerance does.
        let elsewhere = |it: &mut Golden| it.instruction_set = "another".to_owned();
        assert_eq!(told(&nudge, &elsewhere).unwrap(), Reproduction::Near);
        let said = told(&|it| it.log_probabilities[0] -= 1.0, &elsewhere).unwrap_err();
        assert!(said.contains("more than the promoted tolerance 0.01"), "{said}");
        for edit in [
            |it: &mut Golden| it.path = "candle-cuda-f32".to_owned(),
            |it: &mut Golden| it.kernels += 1,
            |it: &mut Golden| it.instruction_set = "another".to_owned(),
        ] {
            assert_eq!(told(&nudge, &edit).unwrap(), Reproduction::Near);
        }
    }

    #[test]
    fn a_record_in_another_precision_is_refused_however_near_it_is() {
        let mut golden = golden();
        assert_eq!(precision(&golden.path), Some("f32"));
        (golden.path, golden.tolerance) = ("cpu-bf16-amx".to_owned(), "100".to_owned());
        let mut generator = generator(1);
        let error = generator.reproduce(&golden).unwrap_err();
        assert!(matches!(error, NotReproduced::Precision { recorded: "bf16", own: "f32", .. }), "{error}");
        let said = error.to_string();
        assert!(
            said.starts_with("the model was judged in bf16 (code path cpu-bf16-amx) and is computed here in f32"),
            "{said}"
        );
        assert!(generator.is_free(0));
        for (path, named) in [("candle-cuda-bf16", Some("bf16")), ("candle-f32", Some("f32")), ("cpu-f8", None)] {
            assert_eq!(precision(path), named, "{path}");
        }
    }

    #[test]
    fn a_record_that_does_not_fit_the_model_is_refused() {
        let told = |edit: &dyn Fn(&mut Golden)| {
            let mut golden = golden();
            edit(&mut golden);
            let mut generator = generator(2);
            let error = generator.reproduce(&golden).unwrap_err().to_string();
            assert!((0..2).all(|slot| generator.is_free(slot)), "{error}");
            error
        };
        let said = told(&|it| it.prompts[2].prompt = "99999".to_owned());
        assert!(said.starts_with("prompt 3: token id 99999 is outside the vocabulary"), "{said}");
        let said = told(&|it| it.prompts[1].tokens = it.prompts[1].tokens.replacen(|_: char| true, "9999", 1));
        assert!(said.starts_with("prompt 2: token id "), "{said}");
        let said = told(&|it| it.prompts.clear());
        assert_eq!(said, "the record is malformed: prompts has 0 prompts; 1 to 4 are allowed");
    }

    #[test]
    fn long_prompts_are_left_out_or_cut() {
        let mut generator = generator(2);
        let context = generator.config().max_position_embeddings;
        let long = "1+".repeat(context);
        let found = generator.golden([long.as_str(), "5+5:"].into_iter()).unwrap().unwrap();
        assert_eq!(found.prompts.len(), 1);
        let found = generator.golden([long.as_str()].into_iter()).unwrap().unwrap();
        let read = found.read().unwrap();
        assert_eq!(read[0].prompt.len(), MAX_PROMPT_TOKENS.min(context - 1));
        assert_eq!(generator.golden([""].into_iter()).unwrap(), None);
    }
}

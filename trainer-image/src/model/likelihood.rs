//! The log-probability of an expected response, through the decoder that also generates. Pure.
//!
//! The tokens are those that training takes for a prompt and its response: with a chat template what the assistant writes, its end
//! token included; else the text of the response and the end token. The decoder is fed the expected tokens, not its own.

use std::collections::BTreeMap;

use codex_engine::{Logits, PromptError};
use codex_verdict::Likelihood;

use super::generate::{GenerateError, Generator};
use crate::text::{Message, Role};

/// A prompt and the response that is expected, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The tokens up to the last one that counts.
    ids: Vec<u32>,
    /// Whether each token counts.
    counts: Vec<bool>,
    /// Number of tokens before the first one that counts; at least 1.
    prompt: usize,
}

/// A sequence that is being scored.
struct Running {
    index: usize,
    expected: Expected,
    /// Place of the token that is scored next.
    at: usize,
    log_probability: f64,
    /// Number of tokens so far that were the most likely one.
    most_likely: u64,
}

/// How likely a text is after a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Continuation {
    /// Its log-probability, and the number of its tokens.
    pub(crate) likelihood: Likelihood,
    /// Number of its tokens that are the most likely one.
    pub(crate) most_likely: u64,
}

impl Continuation {
    /// Returns whether each of its tokens is the most likely one.
    pub(crate) fn is_greedy(&self) -> bool {
        self.most_likely == self.likelihood.tokens
    }
}

impl Generator {
    /// Returns the tokens of a prompt and of the response that is expected.
    ///
    /// # Errors
    /// A text cannot be encoded, both together exceed the model's context, or nothing of the response counts.
    pub(crate) fn expect(&self, prompt: &str, response: &str) -> Result<Expected, GenerateError> {
        let (ids, counts) = if self.tokenizer.has_template() && !self.plain {
            let message = |role, content: &str| Message { role, content: content.to_owned() };
            let turns =
                self.tokenizer.encode_turns(&[message(Role::User, prompt), message(Role::Assistant, response)])?;
            (turns.ids, turns.assistant)
        } else {
            let mut ids = self.tokenizer.encode(prompt)?;
            let prompt = ids.len();
            ids.extend(self.tokenizer.encode_more(response)?);
            if !self.tokenizer.is_characters() {
                ids.extend(self.tokenizer.ends().first());
            }
            let counts = (0..ids.len()).map(|at| at >= prompt).collect();
            (ids, counts)
        };
        self.bounded(ids, counts)
    }

    /// Returns the tokens of a text and of what follows it, to which no end token is added.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub(crate) fn continued(&self, text: &str, more: &str) -> Result<Expected, GenerateError> {
        let mut ids = self.tokenizer.encode(text)?;
        let given = ids.len();
        ids.extend(self.tokenizer.encode_more(more)?);
        let counts = (0..ids.len()).map(|at| at >= given).collect();
        self.bounded(ids, counts)
    }

    /// Returns tokens up to the last one that counts.
    fn bounded(&self, mut ids: Vec<u32>, mut counts: Vec<bool>) -> Result<Expected, GenerateError> {
        let config = self.decoder.config();
        let prompt = counts.iter().position(|counts| *counts).filter(|at| *at > 0).ok_or(PromptError::Empty)?;
        // The decoder ends a sequence with its first end token; nothing counts after it.
        let end = (prompt..ids.len()).find(|at| counts[*at] && config.eos_token_ids.contains(&ids[*at]));
        let last = end.or_else(|| counts.iter().rposition(|counts| *counts)).unwrap_or(prompt);
        ids.truncate(last + 1);
        counts.truncate(last + 1);
        let (tokens, context, vocabulary) = (ids.len(), config.max_position_embeddings, config.vocab_size);
        if tokens > context {
            return Err(GenerateError::Response { tokens, context });
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(PromptError::Id { id: *id, vocabulary }.into());
        }
        Ok(Expected { ids, counts, prompt })
    }

    /// Returns the likelihood of the response to each prompt, as many at once as there are slots, or `None` as soon as `go_on` returns
    /// false. All slots must be free, and are free afterwards. The likelihood of a pair depends on that pair alone.
    pub(crate) fn likelihoods_while(
        &mut self,
        pairs: &[(&str, &str)],
        go_on: impl FnMut() -> bool,
    ) -> Option<Vec<Result<Continuation, GenerateError>>> {
        self.scored_while(pairs, Self::expect, go_on)
    }

    /// As [`likelihoods_while`](Self::likelihoods_while), for texts and what follows them as it is: without a chat template and without
    /// an end token.
    pub(crate) fn continuations_while(
        &mut self,
        pairs: &[(&str, &str)],
        go_on: impl FnMut() -> bool,
    ) -> Option<Vec<Result<Continuation, GenerateError>>> {
        self.scored_while(pairs, Self::continued, go_on)
    }

    fn scored_while(
        &mut self,
        pairs: &[(&str, &str)],
        encode: impl Fn(&Self, &str, &str) -> Result<Expected, GenerateError>,
        mut go_on: impl FnMut() -> bool,
    ) -> Option<Vec<Result<Continuation, GenerateError>>> {
        let mut results: Vec<Option<Result<Continuation, GenerateError>>> = pairs.iter().map(|_| None).collect();
        let mut waiting = pairs.iter().enumerate();
        let mut running: BTreeMap<usize, Running> = BTreeMap::new();
        loop {
            while let Some(slot) = self.free_slot() {
                let Some((index, (prompt, response))) = waiting.next() else { break };
                let placed = encode(self, prompt, response).and_then(|expected| {
                    self.prefill(slot, &expected.ids[..expected.prompt])?;
                    Ok(Running { index, at: expected.prompt, expected, log_probability: 0.0, most_likely: 0 })
                });
                match placed {
                    Ok(one) => drop(running.insert(slot, one)),
                    Err(error) => results[index] = Some(Err(error)),
                }
            }
            if running.is_empty() {
                break;
            }
            let logits = match self.decoder.logits() {
                Ok(logits) => logits,
                Err(error) => {
                    let error = GenerateError::from(error);
                    for slot in running.keys() {
                        self.decoder.release(*slot);
                    }
                    let all = results.into_iter().map(|result| result.unwrap_or_else(|| Err(error.clone())));
                    return Some(all.collect());
                }
            };
            for (index, continuation) in self.take(&logits, &mut running) {
                results[index] = Some(Ok(continuation));
            }
            if !go_on() {
                for slot in running.keys() {
                    self.decoder.release(*slot);
                }
                return None;
            }
        }
        Some(results.into_iter().map(|result| result.unwrap_or_else(|| Err(PromptError::Empty.into()))).collect())
    }

    /// Scores the next token of each sequence, and returns what is done.
    fn take(&mut self, logits: &Logits, running: &mut BTreeMap<usize, Running>) -> Vec<(usize, Continuation)> {
        let mut done = Vec::new();
        for (slot, row) in logits.slots.iter().zip(logits.rows.chunks_exact(logits.vocabulary.max(1))) {
            let Some(one) = running.get_mut(slot) else { continue };
            let Expected { ids, counts, .. } = &one.expected;
            let token = ids[one.at];
            if counts[one.at] {
                one.log_probability += log_probability(row, token);
                one.most_likely += u64::from(is_most_likely(row, token));
            }
            self.decoder.push(*slot, token);
            one.at += 1;
            if one.at == ids.len() {
                let tokens = counts.iter().filter(|counts| **counts).count() as u64;
                let likelihood = Likelihood { log_probability: one.log_probability, tokens };
                done.push((one.index, Continuation { likelihood, most_likely: one.most_likely }));
                running.remove(slot);
                self.decoder.release(*slot);
            }
        }
        done
    }
}

/// Whether a token is the most likely one, the first of equal ones.
fn is_most_likely(logits: &[f32], token: u32) -> bool {
    let token = token as usize;
    logits
        .get(token)
        .is_some_and(|own| logits.iter().enumerate().all(|(at, logit)| logit < own || (at >= token && logit <= own)))
}

/// Returns the natural logarithm of a token's probability; at most 0.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    let own = logits.get(token as usize).map_or(f64::NEG_INFINITY, |logit| f64::from(logit - most));
    (own - sum.ln()).min(0.0)
}

#[cfg(test)]
mod tests {
    use codex_engine::{Decoder, Layout, ModelConfig, Settings, Shape, decoder, initial};

    use super::*;
    use crate::text::Tokenizer;

    fn model() -> (ModelConfig, Vec<f32>) {
        let shape = Shape {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 24,
            rope_theta: 10_000.0,
        };
        let config = ModelConfig::new(shape, Tokenizer::characters().unwrap().for_model().unwrap()).unwrap();
        let parameters = initial(&config, &Layout::of(&config), 11);
        (config, parameters)
    }

    fn generator(slots: usize) -> Generator {
        let (config, parameters) = model();
        Generator::new(&config, &parameters, Tokenizer::characters().unwrap(), slots).unwrap()
    }

    const PAIRS: [(&str, &str); 5] =
        [("347+86:", "#433$"), ("1-2:", "1-2=1 #1$"), ("9", "#9$"), ("1+1:", "2"), ("a$b", "c$d$")];

    fn all(generator: &mut Generator, pairs: &[(&str, &str)]) -> Vec<Likelihood> {
        let found = generator.likelihoods_while(pairs, || true).unwrap();
        found.into_iter().map(|one| one.unwrap().likelihood).collect()
    }

    #[test]
    fn a_likelihood_is_the_sum_over_the_expected_tokens_alone() {
        let (config, parameters) = model();
        let mut decoder: Box<dyn Decoder> = decoder(&config, &parameters, Settings::default(), 1).unwrap();
        let tokenizer = Tokenizer::characters().unwrap();
        // Each prefix is a prompt of its own: no cache, no batch.
        let (mut ids, response) = (tokenizer.encode("347+86:").unwrap(), tokenizer.encode_more("#433$").unwrap());
        let mut sum = 0.0;
        for token in &response {
            decoder.prefill(0, &ids).unwrap();
            let row = decoder.logits().unwrap().rows;
            decoder.release(0);
            let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            sum += (f64::from(row[*token as usize]).exp() / total).ln();
            ids.push(*token);
        }
        let found = all(&mut generator(2), &PAIRS[..1])[0];
        assert_eq!(found.tokens, 5);
        assert!((found.log_probability - sum).abs() < 1e-4, "{} is not {sum}", found.log_probability);
        assert!(found.log_probability < 0.0);
    }

    #[test]
    fn a_text_is_greedy_if_the_model_would_write_it() {
        let mut generator = generator(2);
        let written = generator.complete(&["347+86:"], 4, |_| ()).remove(0).unwrap().text;
        let other = if written.starts_with('1') { "2" } else { "1" };
        let other = format!("{other}{}", &written[1..]);
        let (start, last) = written.split_at(written.len() - 1);
        let ended = format!("{start}{}", if last == "1" { "2" } else { "1" });
        let pairs = [written.as_str(), other.as_str(), ended.as_str()].map(|text| ("347+86:", text));
        let found = generator.continuations_while(&pairs, || true).unwrap();
        let [own, other, ended] = &found.into_iter().map(Result::unwrap).collect::<Vec<_>>()[..] else { panic!() };
        assert!(own.is_greedy() && !other.is_greedy());
        assert_eq!(ended.most_likely, start.len() as u64, "all but the last one");
        assert_eq!(generator.expect("12:", "#3$").unwrap(), generator.continued("12:", "#3$").unwrap());
    }

    #[test]
    fn the_same_alone_or_in_a_batch() {
        let together = all(&mut generator(3), &PAIRS);
        let alone: Vec<Likelihood> = PAIRS.iter().flat_map(|pair| all(&mut generator(1), &[*pair])).collect();
        assert_eq!(together, alone);
        let tokens: Vec<u64> = together.iter().map(|it| it.tokens).collect();
        assert_eq!(tokens, [5, 9, 3, 1, 2], "nothing counts after an end token");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_leaves_the_slots_free() {
        let mut generator = generator(1);
        let long = "1".repeat(21);
        let found = generator.likelihoods_while(&[("12:", &long), ("12:", "é$"), ("12:", "#3$")], || true).unwrap();
        let [too_long, foreign, fine] = &found[..] else { panic!("{found:?}") };
        assert_eq!(fine.as_ref().map(|it| it.likelihood.tokens).ok(), Some(3));
        assert!(too_long.is_ok(), "24 tokens fit into a context of 24");
        assert!(foreign.is_err());
        let said = generator.expect("12:", &"1".repeat(22)).unwrap_err().to_string();
        assert!(
            said.starts_with("the prompt and the response have 25 tokens, but the model's context holds 24"),
            "{said}"
        );
        assert_eq!(generator.likelihoods_while(&PAIRS, || false).map(|it| it.len()), None);
        assert_eq!(generator.free_slot(), Some(0));
    }
}

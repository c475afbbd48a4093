//! Problems that come with a request to a server, scored as an evaluation scores those of a file. Pure.

use std::collections::{BTreeMap, HashMap};

use codex_configs::{
    Environment, Evaluation, Generation, OnDemand, ReferenceForm, Resolved, Sources, explain_evaluation,
};
use codex_verdict::Resampling;
use serde_json::{Map, Value, json};

use super::{
    inputs::{MAX_CLUSTER, is_cluster},
    outputs::{CONFIDENCE, Shown},
    score::{Scored, metrics},
};
use crate::tasks::{Answers, Record};

/// Seed of bootstrapped bounds, as `codex evaluate` has it by default.
const SEED: u64 = 1;

/// A problem of a request.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// The problem with its reference.
    pub(crate) record: Record,
    /// Whether the reference is the answer itself, whatever the settings say.
    pub(crate) is_answer: bool,
}

/// How the problems of a request are asked and scored.
#[derive(Clone, Debug)]
pub(crate) struct Scorer {
    resolved: Resolved<Evaluation>,
    answers: Answers,
    /// The same for references that are the answer.
    whole: Answers,
}

/// What is wrong with a problem: its index, its field, and what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unscorable {
    pub(crate) at: usize,
    pub(crate) field: &'static str,
    pub(crate) why: String,
}

/// The scores of the problems of a request.
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    /// Every problem, in order.
    pub(crate) scored: Vec<Scored>,
    /// The numbers with their bounds; `None` where one cannot be.
    pub(crate) metrics: BTreeMap<String, Option<Shown>>,
    /// One-sided, of each bound on its own that is not approximate.
    pub(crate) confidence: f64,
}

impl Scorer {
    /// Makes the scorer of a preset with some settings of `evaluation` changed.
    ///
    /// # Errors
    /// A sentence that names the preset or the key: it does not exist, its value is invalid, or it asks for more than one greedy
    /// answer to each problem.
    pub(crate) fn compose(preset: &str, settings: Option<&Map<String, Value>>) -> Result<Self, String> {
        // JSON is YAML.
        let config = settings.map(|settings| json!({ "evaluation": settings }).to_string());
        let environment = Environment::ABSENT;
        let config = config.as_deref();
        let sources = Sources { group: Some(preset), config, environment, ..Sources::default() };
        let explained = explain_evaluation(&sources, SEED, Vec::new()).map_err(|why| why.to_string())?;
        let resolved = explained.resolved;
        let evaluation = resolved.spec();
        let settings = &evaluation.settings.evaluation;
        if settings.samples != 1 {
            let found = settings.samples;
            return Err(format!("evaluation.samples is {found}: a server answers each problem once; write 1"));
        }
        if settings.temperature > 0.0 {
            let found = settings.temperature;
            return Err(format!("evaluation.temperature is {found}: a server answers problems greedily; write 0"));
        }
        if let Some(metric) = evaluation.feeding_references() {
            return Err(format!("evaluation.metrics has {metric}, which only codex evaluate measures: remove it"));
        }
        let answers = Answers::of(settings).map_err(|why| why.to_string())?;
        let of_answers = Generation { reference: ReferenceForm::Whole, ..settings.clone() };
        let whole = Answers::of(&of_answers).map_err(|why| why.to_string())?;
        Ok(Self { resolved, answers, whole })
    }

    /// Returns the name of the preset.
    pub(crate) fn preset(&self) -> &str {
        &self.resolved.spec().preset
    }

    /// Returns how problems are answered.
    pub(crate) fn settings(&self) -> &Generation {
        &self.resolved.spec().settings.evaluation
    }

    /// Checks problems as the evaluator checks those of a file: each has an answer, none is repeated, and all have clusters or none
    /// has.
    ///
    /// # Errors
    /// The first problem that cannot be scored.
    pub(crate) fn check(&self, problems: &[Given]) -> Result<(), Unscorable> {
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (at, Given { record, is_answer }) in problems.iter().enumerate() {
            let refuse = |field, why| Err(Unscorable { at, field, why });
            if let Err(wanted) = self.answers_of(*is_answer).of_reference(&record.response) {
                let field = if *is_answer { "answer" } else { "response" };
                return refuse(field, format!("it has no answer: {wanted}"));
            }
            if let Some(first) = first.insert(&record.prompt, at) {
                return refuse("prompt", format!("it is that of problems[{first}]: ask each problem once"));
            }
            if record.cluster.as_deref().is_some_and(|name| !is_cluster(name)) {
                return refuse("cluster", format!("use 1 to {MAX_CLUSTER} characters"));
            }
            let has_clusters = problems.first().is_some_and(|problem| problem.record.cluster.is_some());
            if record.cluster.is_some() != has_clusters {
                return refuse("cluster", "give a cluster to every problem, or to none".to_owned());
            }
        }
        Ok(())
    }

    /// Scores the response to each problem, and measures the metrics over all.
    pub(crate) fn score(&self, answered: Vec<(Given, String)>) -> Scores {
        let evaluation = self.resolved.spec();
        let asked: Vec<OnDemand> = OnDemand::ALL.into_iter().filter(|it| evaluation.measures(it.metric())).collect();
        let one = |(at, (Given { record, is_answer }, response)): (usize, (Given, String))| {
            Scored::of(at + 1, &record, response, None, self.answers_of(is_answer)).with_asked(&asked)
        };
        let scored: Vec<Scored> = answered.into_iter().enumerate().map(one).collect();
        let resampling = Resampling { seed: evaluation.seed, confidence: self.settings().confidence };
        let measured = metrics(&scored, resampling);
        let metrics = measured.into_iter().map(|(name, number)| {
            let shown = Shown::of(&name, &number);
            (name, shown)
        });
        Scores { metrics: metrics.collect(), scored, confidence: CONFIDENCE }
    }

    fn answers_of(&self, is_answer: bool) -> &Answers {
        if is_answer { &self.whole } else { &self.answers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Difficulty;

    fn given(prompt: &str, reference: &str, is_answer: bool) -> Given {
        let (prompt, response, category) = (prompt.to_owned(), reference.to_owned(), "sum".to_owned());
        Given { record: Record { prompt, response, difficulty: Difficulty::Easy, category, cluster: None }, is_answer }
    }

    fn scorer(settings: &Value) -> Result<Scorer, String> {
        Scorer::compose("base", settings.as_object())
    }

    #[test]
    fn problems_are_scored_as_an_evaluation_scores_them() {
        let scorer = scorer(&json!({ "answer": "last_number", "metrics": ["token_f1"] })).unwrap();
        let problems = vec![given("1+1", "so it is 2", false), given("2+2", "4", true), given("3+3", "6", true)];
        scorer.check(&problems).unwrap();
        let said = ["I think 2.", "5", "no idea"].map(str::to_owned);
        let scores = scorer.score(problems.clone().into_iter().zip(said.clone()).collect());
        let settings = scorer.settings();
        let asked = [OnDemand::TokenF1];
        let expected: Vec<Scored> = (1..)
            .zip(problems.iter().zip(said))
            .map(|(line, (problem, said))| {
                Scored::of(line, &problem.record, said, None, &Answers::of(settings).unwrap()).with_asked(&asked)
            })
            .collect();
        assert_eq!(scores.scored, expected);
        assert_eq!(scores.scored.iter().map(|one| one.correct).collect::<Vec<_>>(), [true, false, false]);
        let measured = metrics(&expected, Resampling { seed: SEED, confidence: settings.confidence });
        assert_eq!(scores.metrics["exact_match"], Shown::of("exact_match", &measured["exact_match"]));
        assert_eq!(scores.metrics.keys().collect::<Vec<_>>(), ["exact_match", "token_f1"]);
    }

    #[test]
    fn an_answer_is_the_reference_whatever_the_settings_say() {
        let scorer = scorer(&json!({ "answer": "after", "after": "####" })).unwrap();
        let told = scorer.check(&[given("1+1", "2", false)]).unwrap_err();
        assert_eq!((told.at, told.field), (0, "response"));
        assert!(told.why.starts_with("it has no answer: it needs text after evaluation.after"), "{}", told.why);
        scorer.check(&[given("1+1", "2", true)]).unwrap();
        assert!(scorer.score(vec![(given("1+1", "2", true), "#### 2".to_owned())]).scored[0].correct);
    }

    #[test]
    fn what_cannot_be_scored_is_named() {
        for (settings, told) in [
            (json!({ "samples": 2, "temperature": 1 }), "evaluation.samples is 2: a server answers each problem once"),
            (json!({ "temperature": 0.5 }), "evaluation.temperature is 0.5: a server answers problems greedily"),
            (json!({ "metrics": ["perplexity"] }), "evaluation.metrics has perplexity, which only codex evaluate"),
            (json!({ "metrics": ["token_accuracy"] }), "evaluation.metrics has token_accuracy, which only codex"),
            (json!({ "answer": "first" }), "evaluation.answer"),
            (json!({ "answr": "whole" }), "evaluation.answr"),
        ] {
            let why = scorer(&settings).unwrap_err();
            assert!(why.contains(told), "{why}");
        }
        let why = Scorer::compose("bse", None).unwrap_err();
        assert!(why.contains("preset \"bse\" is unknown"), "{why}");
        let scorer = scorer(&json!({ "answer": "whole" })).unwrap();
        let with = |cluster: Option<&str>| {
            let mut problem = given(&format!("{cluster:?}"), "2", true);
            problem.record.cluster = cluster.map(str::to_owned);
            problem
        };
        for (problems, at, field) in [
            (vec![given("1", "2", true), given("2", " ", true)], 1, "answer"),
            (vec![given("1", "2", true), given("2", "2", true), given("1", "3", true)], 2, "prompt"),
            (vec![with(Some("a")), with(Some(""))], 1, "cluster"),
            (vec![with(Some("a")), with(None)], 1, "cluster"),
        ] {
            let told = scorer.check(&problems).unwrap_err();
            assert_eq!((told.at, told.field), (at, field), "{}", told.why);
        }
    }
}

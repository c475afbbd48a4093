//! Group relative policy optimization (Shao et al. 2024): rewards of sampled answers, their advantages, and what is measured of them.
//! Pure.
//!
//! The objective is Σ over all answers of advantage · Σ over the answer's tokens of ln p, divided by the number of tokens of all
//! answers (token-level normalization, as in DAPO, Yu et al. 2025). The advantage is an answer's reward minus the mean of its group,
//! not divided by the deviation (Liu et al. 2025, "Dr. GRPO"). Answers are sampled from the weights that they train, so that
//! the importance ratio is 1, and its clipping has no effect.

use codex_configs::{ConfigError, GrpoSettings, RewardSettings};

use crate::{
    plugins::{Plugin, PluginError},
    tasks::{Answers, common_in_order, steps, written_steps},
};

/// Rewards texts. A pure function of text and reference, of one version.
#[derive(Clone, Debug)]
pub(crate) struct Rewards {
    answers: Answers,
    settings: RewardSettings,
    /// What it returns is added.
    plugin: Option<Plugin>,
}

/// What a text earned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reward {
    /// The weighted sum.
    pub(crate) total: f64,
    /// Whether its answer is right.
    pub(crate) right: bool,
    /// Whether it has an answer.
    pub(crate) answered: bool,
    /// Share of the reference's steps that it has, in their order. `None` if the reference has none.
    pub(crate) steps: Option<f64>,
}

impl Rewards {
    /// Returns the function with these settings, to whose rewards a plugin adds its own.
    ///
    /// # Errors
    /// The regular expression is missing or malformed.
    pub(crate) fn of(settings: &RewardSettings, plugin: Option<&Plugin>) -> Result<Self, ConfigError> {
        Ok(Self { answers: Answers::of_rewards(settings)?, settings: settings.clone(), plugin: plugin.cloned() })
    }

    /// Checks that a reference has what rewards are computed from.
    ///
    /// # Errors
    /// What it needs, as a sentence continues after "the response has no answer: ".
    pub(crate) fn check(&self, reference: &str) -> Result<(), String> {
        // A plugin alone may reward answers to records that have no right one.
        if self.plugin.is_some() && self.settings.needs_no_answer() {
            return Ok(());
        }
        self.answers.of_reference(reference).map(drop)
    }

    /// Returns the reward of a text that answers `prompt`. Nothing is right if the reference has no answer.
    ///
    /// # Errors
    /// The plugin failed.
    pub(crate) fn reward(&self, prompt: &str, text: &str, reference: &str) -> Result<Reward, PluginError> {
        let mut reward = self.verified(text, reference);
        if let Some(plugin) = &self.plugin {
            reward.total += plugin.reward(prompt, text, reference)?;
        }
        Ok(reward)
    }

    /// Returns what a text earns by its answer and its steps.
    fn verified(&self, text: &str, reference: &str) -> Reward {
        let expected = self.answers.of_reference(reference).ok();
        let answer = self.answers.of_response(text);
        let right =
            answer.as_deref().zip(expected.as_deref()).is_some_and(|(answer, it)| self.answers.is_right(answer, it));
        let RewardSettings { correct, format, steps: weight, .. } = self.settings;
        let wanted = steps(reference);
        let found = if wanted.is_empty() { 0.0 } else { common_in_order(&wanted, &written_steps(text)) as f64 };
        let earned = |holds: bool, reward: f64| if holds { reward } else { 0.0 };
        let total =
            earned(right, correct) + earned(answer.is_some(), format) + weight * found / wanted.len().max(1) as f64;
        let steps = (!wanted.is_empty()).then(|| found / wanted.len() as f64);
        Reward { total, right, answered: answer.is_some(), steps }
    }
}

/// A sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// Its tokens, with the one that ends it.
    pub(crate) tokens: Vec<u32>,
    /// Whether the model ended it. Others were cut off.
    pub(crate) ended: bool,
    /// Σ over its tokens of −ln of the probability with which it was sampled, in nats.
    pub(crate) surprise: f64,
    /// Its text.
    pub(crate) text: String,
    /// Its reward.
    pub(crate) reward: Reward,
}

/// The answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// The tokens of the prompt.
    pub(crate) prompt: Vec<u32>,
    /// The answers.
    pub(crate) answers: Vec<Answer>,
}

impl Group {
    /// Mean reward of the answers.
    fn mean(&self) -> f64 {
        self.answers.iter().map(|answer| answer.reward.total).sum::<f64>() / self.answers.len().max(1) as f64
    }

    /// Returns the advantage of each answer: its reward minus the mean of the group.
    pub(crate) fn advantages(&self) -> Vec<f64> {
        let mean = self.mean();
        // Equal rewards have no advantage, however the mean is rounded.
        let equal =
            self.answers.windows(2).all(|pair| pair[0].reward.total.to_bits() == pair[1].reward.total.to_bits());
        self.answers.iter().map(|answer| if equal { 0.0 } else { answer.reward.total - mean }).collect()
    }

    /// Population standard deviation of the rewards.
    fn deviation(&self) -> f64 {
        let squares: f64 = self.advantages().iter().map(|advantage| advantage * advantage).sum();
        (squares / self.answers.len().max(1) as f64).sqrt()
    }
}

/// Returns the number of tokens that the objective is divided by: those of all answers that ended.
pub(crate) fn learned_tokens<'a>(groups: impl Iterator<Item = &'a Group>) -> usize {
    groups.flat_map(|group| &group.answers).filter(|answer| answer.ended).map(|answer| answer.tokens.len()).sum()
}

/// Yields the sequences that have a gradient: the prompt and an answer, the length of the prompt, and the weight of the loss of the
/// answer's tokens. `tokens` is the number of tokens of all answers of the step.
pub(crate) fn weighted(group: &Group, tokens: usize) -> impl Iterator<Item = (Vec<u32>, usize, f64)> {
    let answers = group.answers.iter().zip(group.advantages());
    answers.filter(|(answer, advantage)| answer.ended && *advantage != 0.0).map(move |(answer, advantage)| {
        let ids = [group.prompt.as_slice(), &answer.tokens].concat();
        (ids, group.prompt.len(), advantage / tokens.max(1) as f64)
    })
}

/// What is measured of the answers of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sampled {
    /// Mean reward.
    pub(crate) reward: f64,
    /// Mean over the prompts of the rewards' standard deviation.
    pub(crate) deviation: f64,
    /// Share of the answers that are right.
    pub(crate) right: f64,
    /// Share of the prompts with a right answer: pass@k, where k is the size of the group.
    pub(crate) solved: f64,
    /// Share of the texts that have an answer.
    pub(crate) answered: f64,
    /// Mean share of the reference's steps that an answer has, in their order, over the answers whose reference has steps. `None` without
    /// such answers.
    pub(crate) steps: Option<f64>,
    /// Share of the prompts whose answers earned different rewards. Nothing is learned from others.
    pub(crate) informative: f64,
    /// Mean over the sampled tokens of −ln of their probability, which estimates the entropy, in nats.
    pub(crate) entropy: f64,
    /// Mean number of tokens of an answer.
    pub(crate) length: f64,
    /// Share of the answers that were cut off.
    pub(crate) truncated: f64,
}

impl Sampled {
    /// Measures the answers of a step.
    pub(crate) fn of(groups: &[Group], settings: &GrpoSettings) -> Self {
        let count = groups.len().max(1) as f64;
        let all = || groups.iter().flat_map(|group| &group.answers);
        let answers = count * settings.group as f64;
        let share = |holds: &dyn Fn(&Answer) -> bool| all().filter(|answer| holds(answer)).count() as f64 / answers;
        let tokens: usize = all().map(|answer| answer.tokens.len()).sum();
        let steps: Vec<f64> = all().filter_map(|answer| answer.reward.steps).collect();
        Self {
            reward: all().map(|answer| answer.reward.total).sum::<f64>() / answers,
            deviation: groups.iter().map(Group::deviation).sum::<f64>() / count,
            right: share(&|answer| answer.reward.right),
            solved: groups.iter().filter(|it| it.answers.iter().any(|answer| answer.reward.right)).count() as f64
                / count,
            answered: share(&|answer| answer.reward.answered),
            steps: (!steps.is_empty()).then(|| steps.iter().sum::<f64>() / steps.len() as f64),
            informative: groups.iter().filter(|group| group.advantages().iter().any(|it| *it != 0.0)).count() as f64
                / count,
            entropy: all().map(|answer| answer.surprise).sum::<f64>() / tokens.max(1) as f64,
            length: tokens as f64 / answers,
            truncated: share(&|answer| !answer.ended),
        }
    }

    /// Yields names and values for the metrics ledger.
    pub(crate) fn rows(self) -> impl Iterator<Item = (&'static str, f64)> {
        let always = [
            ("reward", self.reward),
            ("reward_deviation", self.deviation),
            ("answer_accuracy", self.right),
            ("solved_prompts", self.solved),
            ("answered", self.answered),
            ("informative_prompts", self.informative),
            ("entropy", self.entropy),
            ("answer_tokens", self.length),
            ("truncated", self.truncated),
        ];
        always.into_iter().chain(self.steps.map(|steps| ("step_accuracy", steps)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(overrides: &[&str]) -> GrpoSettings {
        let set: Vec<String> = overrides
            .iter()
            .map(|set| format!("training.grpo.{set}"))
            .chain(["training.method=grpo".to_owned()])
            .collect();
        let sha256 = Some(codex_provenance::DataDigest(codex_provenance::Sha256::of("")));
        let data = vec![codex_configs::Data { name: "x".to_owned(), sha256, synthetic: None }];
        codex_configs::compose_training("cot-starter", &set, None, 1, data)
            .unwrap()
            .spec()
            .settings
            .training
            .grpo
            .clone()
    }

    fn rewards(overrides: &[&str]) -> Rewards {
        Rewards::of(&settings(overrides).reward, None).unwrap()
    }

    #[test]
    fn texts_are_rewarded_for_what_can_be_verified() {
        let reference = "7+6+0=13 4+8+1=13 3+0+1=04 #433$";
        let plain = rewards(&[]);
        let none = Some(0.0);
        let right = Reward { total: 1.0, right: true, answered: true, steps: none };
        assert_eq!(plain.verified("so it is 433.", reference), right);
        let wrong = Reward { total: 0.0, right: false, answered: true, steps: none };
        assert_eq!(plain.verified("so it is 434.", reference), wrong);
        assert_eq!(plain.verified("I do not know.", reference), Reward { steps: none, ..Reward::default() });
        // Steps are measured whatever they earn.
        let written = plain.verified("7+6+0=13 4+8+1=13 #1$", reference);
        assert_eq!((written.total, written.steps), (0.0, Some(2.0 / 3.0)));
        assert_eq!(plain.verified("7+6+0=13 #433$", "#433$").steps, None, "a reference without steps");
        // A reference that is an answer alone has none either, and nothing is earned by them.
        let letters = rewards(&["reward.answer=regex", "reward.pattern=k"]);
        assert_eq!(letters.verified("a k", "k"), Reward { total: 1.0, right: true, answered: true, steps: None });
        let whole = rewards(&["reward.answer=marked", "reward.reference=whole", "reward.steps=1.5"]);
        let answered = Reward { total: 1.0, right: true, answered: true, steps: None };
        assert_eq!(whole.verified("7+6+0=13 #433$", "433"), answered);
        let marked = ["reward.answer=marked", "reward.correct=2", "reward.format=0.25", "reward.steps=1.5"];
        let all = rewards(&marked);
        let of = |text: &str| all.verified(text, reference).total;
        assert!((of(reference) - 3.75).abs() < 1e-12);
        assert!((of("7+6+0=13 #433$") - 2.75).abs() < 1e-12);
        assert!((of("4+8+1=13 7+6+0=13 #1$") - 0.75).abs() < 1e-12, "in the order of the reference");
        assert!((of("7+6+0=13") - 0.5).abs() < 1e-12);
        assert!(plain.check("no number").unwrap_err().contains("training.grpo.reward.answer is last_number"));
    }

    fn group(rewards: &[(f64, bool)]) -> Group {
        let answer = |(total, ended): &(f64, bool)| Answer {
            tokens: vec![7, 8],
            ended: *ended,
            surprise: 3.0,
            text: String::new(),
            reward: Reward { total: *total, right: *total > 0.5, answered: true, steps: ended.then_some(*total) },
        };
        Group { prompt: vec![1, 2, 3], answers: rewards.iter().map(answer).collect() }
    }

    #[test]
    fn advantages_add_up_to_nothing_and_equal_rewards_have_none() {
        let mixed = group(&[(1.0, true), (0.0, true), (0.0, false), (1.0, true)]);
        assert_eq!(mixed.advantages(), [0.5, -0.5, -0.5, 0.5]);
        assert_eq!(group(&[(0.1, true), (0.1, true), (0.1, true)]).advantages(), [0.0; 3]);
        // Cut-off answers count for the mean, and are not learned.
        assert_eq!(learned_tokens([&mixed].into_iter()), 6);
        let learned: Vec<_> = weighted(&mixed, 6).collect();
        assert_eq!(learned.len(), 3);
        assert_eq!(learned[0], (vec![1, 2, 3, 7, 8], 3, 0.5 / 6.0));
        assert!(learned[1].2 < 0.0);
        assert_eq!(weighted(&group(&[(1.0, true), (1.0, true)]), 4).count(), 0);
    }

    #[test]
    fn answers_are_measured() {
        let groups = [group(&[(1.0, true), (0.0, false)]), group(&[(0.0, true), (0.0, true)])];
        let of = Sampled::of(&groups, &settings(&["group=2"]));
        let expected = Sampled {
            reward: 0.25,
            deviation: 0.25,
            right: 0.25,
            solved: 0.5,
            answered: 1.0,
            // Of the answers whose reference has steps.
            steps: Some(1.0 / 3.0),
            informative: 0.5,
            entropy: 1.5,
            length: 2.0,
            truncated: 0.25,
        };
        assert_eq!(of, expected);
        let named = |sampled: Sampled| sampled.rows().find(|(name, _)| *name == "step_accuracy");
        assert_eq!(named(of), Some(("step_accuracy", 1.0 / 3.0)));
        assert_eq!(named(Sampled { steps: None, ..of }), None);
    }
}

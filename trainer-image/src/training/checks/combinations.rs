//! `--check`: whether a configuration, a base and data can be combined. Reads the resolved configuration, the base without its weights, and
//! the first record of each file; computes and writes nothing.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use codex_configs::{Device, Method, PLUGIN_REWARD, Resolved, Training};
use codex_engine::{Backend, EngineError, Precision, check_cuda};
use codex_provenance::text::counted;

use crate::{
    error::chain,
    model::{ModelError, open},
    text::Tokenizer,
    training::{
        BaseError, TrainError,
        base::{TrainedModel, needs_base},
        data::{Encoder, check_first_record, count_safety_rules},
        objective::Rewards,
        resources::{check_model_size, memory_limit},
        run::{check_names, model_config},
        state::engine_settings,
    },
};

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Combination<'a> {
    pub(crate) resolved: &'a Resolved<Training>,
    /// Directory of the base.
    pub(crate) base: Option<&'a Path>,
    /// Whether the base is in a repository, so that nothing of it can be read.
    pub(crate) is_remote: bool,
    pub(crate) files: &'a [(String, PathBuf)],
}

/// What the check found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// What is impossible, a sentence each.
    pub(crate) refusals: Vec<String>,
    /// What was checked.
    checked: Vec<String>,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.refusals.iter().map(|why| format!("refused: {why}"));
        let lines: Vec<String> = self.checked.iter().map(|what| format!("checked: {what}")).chain(refused).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Findings {
    /// Adds the sentence of an error, and returns the value if there is none.
    fn take<T>(&mut self, result: Result<T, impl Into<TrainError>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.refusals.push(chain(&error.into()));
                None
            }
        }
    }
}

impl Combination<'_> {
    /// Returns everything that is impossible. A part that needs another one, which is refused, is not checked.
    pub(crate) fn check(&self) -> Findings {
        let mut findings = Findings::default();
        let training = self.resolved.spec();
        let settings = &training.settings.training;
        findings.checked.push(format!("configuration {}", self.resolved.digest()));
        findings.take(check_names(training, self.files));
        let is_given = self.base.is_some() || self.is_remote;
        if let Some(method) = needs_base(settings.method).filter(|_| !is_given) {
            findings.take::<()>(Err(BaseError::None(method)));
        }
        if settings.device == Device::Cuda {
            let usable = check_cuda()
                .map_err(|error| format!("training.device is cuda, but {}: use cpu or auto", chain(&error)));
            findings.take(usable.map_err(TrainError::Arguments));
        }
        if self.is_remote {
            findings.checked.push("not the base: it is in a repository, and is not downloaded for this".to_owned());
            return findings;
        }
        if let Some((model, tokenizer)) = self.model(&mut findings) {
            self.check_model(&model, &mut findings);
            if settings.method != Method::None {
                self.check_data(&model, &tokenizer, &mut findings);
            }
        }
        findings
    }

    /// Returns what the run trains, and its tokenizer. `None` if something of it is refused or missing.
    fn model(&self, findings: &mut Findings) -> Option<(TrainedModel, Tokenizer)> {
        let training = self.resolved.spec();
        let settings = &training.settings.training;
        let Some(path) = self.base else {
            needs_base(settings.method).is_none().then_some(())?;
            let tokenizer = findings.take(Tokenizer::characters().map_err(ModelError::from))?;
            let config = findings.take(model_config(training, &tokenizer))?;
            findings.checked.push(format!("initial weights: {} parameters", config.parameters()));
            return Some((TrainedModel::whole(config), tokenizer));
        };
        let refused = |source| BaseError::Model { path: path.to_owned(), source };
        let opened = findings.take(open(path).map_err(refused))?;
        findings.checked.push(format!("base {}: {} parameters", path.display(), opened.config.parameters()));
        let model = findings.take(TrainedModel::of_config(path, opened.config, settings))?;
        Some((model, opened.tokenizer))
    }

    fn check_model(&self, model: &TrainedModel, findings: &mut Findings) {
        let settings = &self.resolved.spec().settings.training;
        if settings.method == Method::None {
            return;
        }
        let engine = engine_settings(settings).suited(&model.config);
        if (engine.backend, engine.precision) == (Backend::Candle(codex_engine::Device::Cpu), Precision::Bf16) {
            let width = model.config.head_dim;
            let why =
                format!("training.dtype is bf16, but heads have {width} numbers, for which {}", EngineError::Precision);
            findings.take::<()>(Err(TrainError::Arguments(why)));
        }
        if engine.precision == Precision::F16 && engine.backend != Backend::Candle(codex_engine::Device::Cuda) {
            let why = format!("training.dtype is fp16, but a processor computes, and {}", EngineError::Half);
            findings.take::<()>(Err(TrainError::Arguments(why)));
        }
        findings.checked.push(format!("{} trained parameters on {}", model.trained, engine.path()));
        findings.take(check_model_size(model, settings, memory_limit(Path::new("/")).as_ref()));
    }

    /// Checks the first record of each file.
    fn check_data(&self, model: &TrainedModel, tokenizer: &Tokenizer, findings: &mut Findings) {
        let training = self.resolved.spec();
        let settings = &training.settings;
        let encoder = Encoder {
            tokenizer,
            context: model.config.max_position_embeddings,
            format: settings.response.format,
            data: &settings.data,
            given: self.base.is_some(),
            preferences: settings.training.preferences().is_some(),
        };
        // A plugin may reward what has no right answer, and is not loaded here.
        let has_plugin = training.data.iter().any(|data| data.name == PLUGIN_REWARD);
        let rewards = settings.training.rewards().filter(|_| !has_plugin);
        let rewards = rewards.and_then(|settings| findings.take(Rewards::of(&settings.reward, None)));
        if let Some(rules) = findings.take(count_safety_rules(training, self.files)).flatten() {
            findings.checked.push(counted(rules, "safety rule"));
        }
        for data in training.data.iter().filter(|data| data.has_records()) {
            let Some(response) = findings.take(check_first_record(data, self.files, encoder)) else { continue };
            findings.checked.push(match &data.synthetic {
                Some(made) => format!("data {}: made by {}", data.name, made.task),
                None => format!("data {}: the first record", data.name),
            });
            if let Some((rewards, response)) = rewards.as_ref().zip(response)
                && let Err(why) = rewards.check(&response)
            {
                let why = format!("data {}, record 1: the response has no answer: {why}", data.name);
                findings.take::<()>(Err(TrainError::Arguments(why)));
            }
        }
    }
}

//! The configuration of a training run, composed from its layers. Pure.

mod check;
mod settings;
mod templates;

use std::collections::{BTreeMap, BTreeSet};

use codex_provenance::{DataDigest, Sha256};

pub(crate) use self::templates::GROUPS;
use self::templates::{group, own};
pub use self::{
    settings::{
        DataFields, DataFormat, DataSettings, Device, Dtype, Format, HEAD_WIDTHS, HeldOutShare, LoraSettings, Loss,
        Metadata, Method, MetricMode, ModelShape, Optimization, ParameterGroup, Response, Scheduler, SpikeAction,
        Training, TrainingSettings,
    },
    templates::{TEMPLATES, Template, TemplateSetting, template, template_digest, template_names, template_tasks},
};
use crate::{
    ConfigError, Data, Environment, Explained, Located, MAX_SYNTHETIC, Origin, Resolved, Sources, Synthetic,
    VALIDATION, curriculum, defaults::parts, explained::explain, keys, layers::Layers, options::TRAINING,
};

/// Every key with its default, by the path of its file.
pub(crate) const BASE: (&str, &str) = ("training/base.yaml", include_str!("../../training/base.yaml"));

pub(crate) fn layers() -> Layers {
    Layers::new(keys::TRAINING, ("training.max_steps=900", "training: {max_steps: 900}"), &TRAINING)
}

/// Adds the phases of an included curriculum, if `curriculum.phase_schedule` names one. They may be there already: settings that
/// `codex config show` prints have them.
fn add_phases(composed: &mut Layers, environment: Environment<'_>) -> Result<(), ConfigError> {
    let schedule = composed.value("curriculum.phase_schedule", environment)?;
    let schedule = schedule.as_str().unwrap_or_default();
    let Some((path, text)) = curriculum::included(schedule) else { return Ok(()) };
    let Some(origin) = composed.origin(curriculum::PHASES).filter(|origin| !origin.is_base()) else {
        return composed.group(path, text);
    };
    let mut included = layers();
    included.group(path, text)?;
    if composed.value(curriculum::PHASES, environment)? == included.value(curriculum::PHASES, environment)? {
        return Ok(());
    }
    Err(curriculum::phases_beside(schedule, origin))
}

/// Composes the configuration of a trainer: base ← template ← options ← `config` ← overrides. Defaults lists of files name more of
/// them.
///
/// # Errors
/// [`ConfigError`] names the field or key that is wrong and what to write instead.
pub fn compose_training(
    template: &str,
    overrides: &[String],
    config: Option<&str>,
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    let (_, path, text) = group(template)?;
    compose(template, (Origin::Group(path), text), overrides, config, seed, data)
}

/// Composes the configuration of a trainer as [`compose_training`] does, from a template that is not included. Its name must not be
/// that of an included one.
///
/// # Errors
/// [`ConfigError`] names the field or key that is wrong and what to write instead.
pub fn compose_training_from(
    template: &str,
    text: &str,
    overrides: &[String],
    config: Option<&str>,
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    compose(template, own(template, text)?, overrides, config, seed, data)
}

/// Composes a configuration over a template, which is a file and its text.
fn compose(
    name: &str,
    template: (Origin, &str),
    overrides: &[String],
    config: Option<&str>,
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    let mut layers = layers();
    layers.all(&parts(&TRAINING, &[base(), template], config, overrides)?, overrides)?;
    add_phases(&mut layers, Environment::ABSENT)?;
    let settings = layers.finish(Environment::ABSENT)?;
    Resolved::new(Training { template: name.to_owned(), seed, settings, data })
}

/// Returns the file with the default of every key, with its text.
fn base() -> (Origin, &'static str) {
    (Origin::Group(BASE.0), BASE.1)
}

/// Composes the configuration of a trainer with the origin of each value, as [`compose_training`] does. Without a template, the
/// base is the lowest layer alone. Without data, the configuration is checked with stand-ins for files that would do, and its
/// digest means nothing.
///
/// # Errors
/// [`Located`] names the field or key that is wrong, what to write instead, and the line.
pub fn explain_training(
    sources: &Sources<'_>,
    seed: u64,
    data: Option<Vec<Data>>,
) -> Result<Explained<Training>, Located> {
    let mut below = vec![base()];
    if let Some(template) = sources.group {
        let file = match sources.own {
            Some(text) => own(template, text),
            None => group(template).map(|(_, path, text)| (Origin::Group(path), text)),
        };
        below.push(file.map_err(Located::nowhere)?);
    }
    let parts = parts(&TRAINING, &below, sources.config, sources.overrides);
    let parts = parts.map_err(|error| Located::chosen(error, sources))?;
    explain(layers(), &parts, sources, |layers| {
        add_phases(layers, sources.environment)?;
        let settings: TrainingSettings = layers.finish(sources.environment)?;
        let data = data.unwrap_or_else(|| stand_ins(&settings));
        let template = sources.group.unwrap_or("base").to_owned();
        Resolved::new(Training { template, seed, settings, data })
    })
}

/// Returns files that a configuration accepts as its data.
fn stand_ins(settings: &TrainingSettings) -> Vec<Data> {
    let file = |name: &str| Data { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(name))), synthetic: None };
    let phases = || settings.curriculum.phases.iter().map(|phase| &phase.dataset);
    let weighted = settings.data.weights.iter().flat_map(BTreeMap::keys);
    let named: BTreeSet<&String> = weighted.chain(phases().flat_map(|dataset| &dataset.sources)).collect();
    let mut data: Vec<Data> = named.into_iter().filter(|name| *name != VALIDATION).map(|name| file(name)).collect();
    // A phase that names both tasks and sources needs a source of the task, which has any of its names.
    for task in phases().flat_map(|dataset| &dataset.tasks).collect::<BTreeSet<_>>() {
        let synthetic = || Some(Synthetic { task: task.clone(), seed: 1, count: MAX_SYNTHETIC });
        match data.iter_mut().find(|data| data.name == *task) {
            Some(item) => *item = Data { synthetic: synthetic(), sha256: None, ..item.clone() },
            None => data.push(Data { name: task.clone(), sha256: None, synthetic: synthetic() }),
        }
    }
    if data.is_empty() {
        data.push(file("records"));
    }
    if settings.training.eval_every.is_some() && settings.data.validation.share <= 0.0 {
        data.push(file(VALIDATION));
    }
    data
}

//! The inputs of an attempt: its data, the shape of its model, and its identity. Reads files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_configs::{Optimization, Training, VALIDATION};
use codex_engine::{ModelConfig, Shape};
use codex_provenance::{DataDigest, text::counted};
use codex_reports::DataFile;

use super::Session;
use crate::{
    atomic_fs::FileError,
    model::ModelError,
    text::Tokenizer,
    training::{
        Base, BaseError, TrainError,
        base::{TrainedModel, needs_base},
        checkpoint::RunIdentity,
        data::{Dataset, Encoder, Places, ValidationSet},
        resources::{RecordRows, check_estimate, estimate, memory_limit},
        schedule::{Curriculum, scheduled_steps},
    },
};

impl Session<'_> {
    /// Returns the model that the run trains, and its tokenizer: those of the base, if there is one.
    ///
    /// # Errors
    /// When the configuration needs a base, or the shape is not supported.
    pub(crate) fn model(&self) -> Result<(TrainedModel, Tokenizer), TrainError> {
        let training = self.resolved.spec();
        let settings = &training.settings.training;
        match (self.base, needs_base(settings.method)) {
            (Some(base), _) => Ok((TrainedModel::of_base(base, settings)?, base.tokenizer().clone())),
            (None, Some(method)) => Err(BaseError::None(method).into()),
            (None, None) => {
                let tokenizer = Tokenizer::characters().map_err(ModelError::from)?;
                Ok((TrainedModel::whole(model_config(training, &tokenizer)?), tokenizer))
            }
        }
    }

    /// Returns how records become tokens.
    pub(crate) fn encoder<'a>(&'a self, model: &TrainedModel, tokenizer: &'a Tokenizer) -> Encoder<'a> {
        let settings = &self.resolved.spec().settings;
        Encoder {
            tokenizer,
            context: model.config.max_position_embeddings,
            format: settings.response.format,
            data: &settings.data,
            given: self.base.is_some(),
            preferences: settings.training.preferences().is_some(),
        }
    }

    /// Reads the training data of the run, hashed as it is read.
    ///
    /// # Errors
    /// When data is missing or invalid, or the attempt is interrupted.
    pub(crate) fn read_data(&self, places: &Places, encoder: Encoder) -> Result<Dataset, TrainError> {
        let training = self.resolved.spec();
        check_names(training, self.files)?;
        let seen = |file| self.report_data(file);
        Ok(Dataset::read(training, self.files, places, encoder, self.stop, seen)?)
    }

    /// Reads the validation records, if the run evaluates, and checks that they are not also trained on.
    ///
    /// # Errors
    /// When data is missing or invalid.
    pub(super) fn read_validation(
        &self,
        dataset: &Dataset,
        encoder: Encoder,
    ) -> Result<Option<ValidationSet>, TrainError> {
        let seen = |file| self.report_data(file);
        let validation = ValidationSet::read(self.resolved.spec(), self.files, dataset, encoder, self.stop, seen)?;
        if let Some(validation) = &validation {
            validation.check_apart_from(dataset)?;
        }
        Ok(validation)
    }

    /// Reports a file of data.
    fn report_data(&self, file: DataFile) {
        self.reporter.update(|state| {
            state.data.retain(|known| known.name != file.name);
            state.data.push(file);
        });
    }

    /// Checks the memory estimate against the limit, and returns it in bytes.
    ///
    /// # Errors
    /// When the configuration does not fit.
    pub(super) fn check_memory(
        &self,
        model: &TrainedModel,
        dataset: &Dataset,
        validation: Option<&ValidationSet>,
    ) -> Result<u64, TrainError> {
        let settings = &self.resolved.spec().settings;
        let held_out = validation.map(ValidationSet::lengths);
        let limit = memory_limit(Path::new("/"));
        let Some(curriculum) = Curriculum::of(settings) else {
            let (training, records) = (&settings.training, RecordRows { trained: dataset.lengths(), held_out });
            let estimate = estimate(model, training, &records);
            tracing::info!("memory: at most {estimate}");
            check_estimate(model, training, &records, limit.as_ref())?;
            return Ok(estimate.total());
        };
        let mut most = 0;
        for (number, phase) in curriculum.phases.iter().enumerate() {
            let batch_size = curriculum.batch(number);
            let training = Optimization { batch_size, ..settings.training.clone() };
            let trained = dataset.phase_lengths(&curriculum, number);
            let records = RecordRows { trained, held_out: held_out.clone() };
            let estimate = estimate(model, &training, &records);
            tracing::info!("memory of phase {}: at most {estimate}", phase.id);
            check_estimate(model, &training, &records, limit.as_ref()).map_err(|error| error.of_phase(&phase.id))?;
            most = most.max(estimate.total());
        }
        Ok(most)
    }

    /// Returns the identity of the run; `data` has the digest of each file by name.
    pub(super) fn identity(&self, data: BTreeMap<String, DataDigest>) -> Result<RunIdentity, FileError> {
        let training = self.resolved.spec();
        let settings = serde_json::to_value(&training.settings)
            .map_err(std::io::Error::from)
            .map_err(FileError::of("encoding the configuration for", self.output))?;
        Ok(RunIdentity {
            config_digest: self.resolved.digest(),
            settings,
            seed: training.seed,
            base: self.base.map(Base::digest),
            data,
        })
    }
}

/// Checks that the configuration has every file that is given.
pub(crate) fn check_names(training: &Training, files: &[(String, PathBuf)]) -> Result<(), TrainError> {
    let known = || training.data.iter().map(|data| data.name.as_str());
    let Some((name, _)) = files.iter().find(|(name, _)| known().all(|known| known != name)) else { return Ok(()) };
    let known = known().collect::<Vec<_>>().join(", ");
    Err(TrainError::Arguments(format!("--data {name} is not in the configuration, which has {known}")))
}

/// Returns the digest of each data file by name, including validation data if the run evaluates.
pub(crate) fn data_digests(dataset: &Dataset, validation: Option<&ValidationSet>) -> BTreeMap<String, DataDigest> {
    let held_out = validation.and_then(ValidationSet::file).map(|digest| (VALIDATION.to_owned(), digest));
    dataset.files().map(|file| (file.name.clone(), file.sha256)).chain(held_out).collect()
}

/// Returns the model configuration for the settings of a run.
///
/// # Errors
/// When the engine does not support the shape.
pub(crate) fn model_config(training: &Training, tokenizer: &Tokenizer) -> Result<ModelConfig, TrainError> {
    let model = &training.settings.model;
    let shape = Shape {
        hidden_size: model.hidden_size,
        intermediate_size: model.intermediate_size,
        num_hidden_layers: model.num_hidden_layers,
        num_attention_heads: model.num_attention_heads,
        max_position_embeddings: model.max_position_embeddings,
        rope_theta: model.rope_theta,
    };
    Ok(ModelConfig::new(shape, tokenizer.for_model().map_err(ModelError::from)?)?)
}

/// Checks that warm-up ends within the schedule. Without epochs the configuration has been checked for that.
pub(super) fn check_warmup(training: &Optimization, records: u64) -> Result<(), TrainError> {
    let (steps, warmup) = (scheduled_steps(training, records), training.warmup_steps);
    if warmup <= steps {
        return Ok(());
    }
    Err(TrainError::Arguments(format!(
        "training.warmup_steps is {warmup}, but training.max_epochs yields only {} with this data: use at most {steps}",
        counted(steps, "step")
    )))
}

//! The rules of a training run that no single key can state. Pure.

use std::collections::BTreeMap;

use super::{DataSettings, Device, Dtype, HEAD_WIDTHS, Method, Scheduler, Training, TrainingSettings};
use crate::{
    ConfigError, Data, PLUGIN_FILTER, PLUGIN_REWARD, VALIDATION, augmentation, curriculum, data, deployment, keys,
    layers::recheck, optimizers, preferences, privacy, reasoning, resolved::Spec, rewards, safety,
};

impl Training {
    /// Checks the settings that name data or hold records out.
    fn check_selection(&self) -> Result<(), ConfigError> {
        let DataSettings { weights, validation, .. } = &self.settings.data;
        let trained: Vec<&str> =
            self.data.iter().filter(|data| data.is_trained_on()).map(|data| data.name.as_str()).collect();
        if let Some(name) = weights.iter().flat_map(BTreeMap::keys).find(|name| !trained.contains(&name.as_str())) {
            let why =
                if name == VALIDATION { "validation records are not trained on" } else { "no data has that name" };
            return Err(ConfigError::Conflict {
                key: "data.weights",
                value: format!("set for {name:?}"),
                right: format!("{why}; name one of {}", trained.join(", ")),
            });
        }
        if validation.share > 0.0 {
            let right = if self.settings.training.eval_every.is_none() {
                "held-out records are evaluated every training.eval_every steps; set it, or write 0"
            } else if self.data.iter().any(|data| data.name == VALIDATION) {
                "data has an item named validation, too; remove it, or write 0"
            } else {
                return Ok(());
            };
            let (key, value) = ("data.validation.share", validation.share.to_string());
            return Err(ConfigError::Conflict { key, value, right: right.to_owned() });
        }
        Ok(())
    }
}

impl Spec for Training {
    const KIND: &'static str = "TrainingRun";

    fn seed(&self) -> u64 {
        self.seed
    }

    fn check(&self) -> Result<(), ConfigError> {
        recheck(keys::TRAINING, &self.settings)?;
        let TrainingSettings { model, training, .. } = &self.settings;
        let conflict =
            |key, value: u64, right: String| Err(ConfigError::Conflict { key, value: value.to_string(), right });
        let (width, heads) = (model.hidden_size, model.num_attention_heads);
        if !HEAD_WIDTHS.iter().any(|head| heads * head == width) {
            let known = HEAD_WIDTHS.map(|head| head.to_string()).join(", ");
            let right = format!("model.hidden_size ({width}) divided by it must be one of {known}");
            return conflict("model.num_attention_heads", heads as u64, right);
        }
        if training.dtype == Dtype::Fp16 && training.device == Device::Cpu {
            let (key, value) = ("training.dtype", "fp16".to_owned());
            let right = "training.device is cpu, and fp16 needs a GPU; write bf16 or fp32".to_owned();
            return Err(ConfigError::Conflict { key, value, right });
        }
        // First, because what breaks the guarantee would otherwise be told to be completed, such as dpo.
        privacy::check(self)?;
        optimizers::check(self)?;
        preferences::check(self)?;
        rewards::check(self)?;
        reasoning::check(self)?;
        augmentation::check(self)?;
        if self.settings.metadata.model_card && training.method == Method::None {
            return Err(ConfigError::Conflict {
                key: "metadata.model_card",
                value: "true".to_owned(),
                right: "training.method=none copies the files of the base as they are; write false, or another method"
                    .to_owned(),
            });
        }
        safety::check(self)?;
        deployment::check_intended(&self.settings)?;
        // With epochs, the trainer knows the steps only after it has read the data, and checks them then.
        if training.warmup_steps > training.max_steps && training.max_epochs.is_none() {
            let right = format!("write at most training.max_steps ({})", training.max_steps);
            return conflict("training.warmup_steps", training.warmup_steps, right);
        }
        if training.scheduler == Scheduler::Constant && training.warmup_steps > 0 {
            let right =
                "training.scheduler constant has no warm-up; write 0, or training.scheduler=constant_with_warmup";
            return conflict("training.warmup_steps", training.warmup_steps, right.to_owned());
        }
        if training.scheduler == Scheduler::Polynomial && training.scheduler_end_rate >= training.learning_rate {
            return Err(ConfigError::Conflict {
                key: "training.scheduler_end_rate",
                value: training.scheduler_end_rate.to_string(),
                right: format!("write less than training.learning_rate ({})", training.learning_rate),
            });
        }
        if let Some(patience) = training.early_stop_patience
            && training.eval_every.is_none()
        {
            let right = "set training.eval_every, because patience counts evaluations".to_owned();
            return conflict("training.early_stop_patience", patience, right);
        }
        if training.best_k > 0 && training.best_metric == "val_loss" {
            let Some(every) = training.eval_every else {
                let right =
                    "val_loss is measured by evaluations only; set training.eval_every, or training.best_metric=loss";
                return conflict("training.best_k", training.best_k as u64, right.to_owned());
            };
            if !training.checkpoint_every.is_multiple_of(every) {
                let right = format!(
                    "with training.best_k, write a multiple of training.eval_every ({every}), such as {}, because a checkpoint \
                     is ranked by the val_loss of its own step",
                    training.checkpoint_every.next_multiple_of(every)
                );
                return conflict("training.checkpoint_every", training.checkpoint_every, right);
            }
        }
        if let Some(stop) = training.stop_after
            && stop > training.max_steps
            && training.max_epochs.is_none()
        {
            let right = format!("write at most training.max_steps ({}), or null", training.max_steps);
            return conflict("training.stop_after", stop, right);
        }
        if self.data.is_empty() {
            let right = "name at least one file or synthetic task to train on".to_owned();
            return Err(ConfigError::Data { field: "data".to_owned(), value: "empty".to_owned(), right });
        }
        data::check(&self.data)?;
        data::check_plugins(&self.data, &[PLUGIN_REWARD, PLUGIN_FILTER])?;
        if !self.data.iter().any(Data::has_records) {
            let right = "name at least one file or synthetic task to train on".to_owned();
            return Err(ConfigError::Data { field: "data".to_owned(), value: "without records".to_owned(), right });
        }
        self.check_selection()?;
        curriculum::check(self)?;
        let share = self.settings.data.validation.share;
        let validation = self.data.iter().position(|data| data.name == VALIDATION);
        match (validation, training.eval_every) {
            (Some(index), None) => {
                let right =
                    "validation records are evaluated every training.eval_every steps; set it, or remove this item";
                let (field, value) = (format!("data[{index}].name"), format!("{VALIDATION:?}"));
                return Err(ConfigError::Data { field, value, right: right.to_owned() });
            }
            (Some(index), _) if !self.data.iter().any(Data::is_trained_on) => {
                let right = "validation records are not trained on; name other data to train on".to_owned();
                let (field, value) = (format!("data[{index}].name"), format!("{VALIDATION:?}"));
                return Err(ConfigError::Data { field, value, right });
            }
            (None, Some(every))
                if share <= 0.0 && self.data.iter().any(|data| data.is_trained_on() && data.synthetic.is_none()) =>
            {
                let right = format!(
                    "only synthetic data has validation records of its own; add the records to evaluate on to data, as \
                     {VALIDATION}, or hold some out with data.validation.share"
                );
                return conflict("training.eval_every", every, right);
            }
            _ => {}
        }
        let counts: Option<Vec<u64>> = self
            .data
            .iter()
            .filter(|item| item.is_trained_on())
            .map(|item| Some(item.synthetic.as_ref()?.count))
            .collect();
        if let Some(records) = counts.map(|counts| counts.iter().sum::<u64>())
            && training.batch_size as u64 > records
        {
            let right = format!("write at most the number of records ({records}), or raise data[].synthetic.count");
            return conflict("training.batch_size", training.batch_size as u64, right);
        }
        Ok(())
    }
}

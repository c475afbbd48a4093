//! `codex replay-step`: takes one step of a run again. Reads the directory of the run; writes nothing there.

use std::path::PathBuf;

use codex_provenance::text::counted;
use codex_reports::exit;
use serde::Serialize;

use super::{RecordedRun, Rerun};
use crate::{
    arguments::named_file,
    atomic_fs::{self, FileError},
    error::CommandError,
    training::{
        TrainError,
        data::{Address, DataError},
        objective::Measured,
        records::LedgerRow,
        run::{StepBatches, StepData, StepRollouts, accumulate, accumulate_rollouts, record_loss, scaled},
        schedule::executed_steps,
    },
};

/// Take one step of a run again, and show its records, their losses and the gradient of each tensor.
///
/// Restores the newest checkpoint before the step, takes the steps up to it, and compares each with the ledger of the run.
#[derive(Debug, clap::Args)]
pub struct ReplayStep {
    /// Directory of the run.
    run: PathBuf,
    /// Number of the step, counted from 1.
    #[arg(value_parser = crate::arguments::whole::<u64>(1..=u64::MAX))]
    step: u64,
    /// Data file of the run, for data that is not synthetic.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data: Vec<(String, PathBuf)>,
    /// Number of records and tensors to show, highest values first.
    #[arg(long, default_value_t = 10, value_parser = crate::arguments::whole::<usize>(0..=u64::MAX))]
    show: usize,
    /// Print all results as JSON.
    #[arg(long)]
    json: bool,
}

/// Result of taking a step again.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replayed {
    step: u64,
    /// Step of the restored checkpoint; `None` for the initial state.
    restored: Option<u64>,
    /// Row of the ledger.
    recorded: Option<LedgerRow>,
    /// Whether all steps since the checkpoint match the ledger, this one included; `None` if the ledger lacks the step.
    pub(crate) reproduced: Option<bool>,
    loss: f64,
    grad_norm: Option<f64>,
    /// Sampled answers of each record, if rewards are learned from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rollouts: Vec<ReplayedGroup>,
    /// Records, highest loss first.
    pub(crate) records: Vec<ReplayedRecord>,
    /// Gradient norm of each tensor, highest first; norms that are not finite come before all others.
    tensors: Vec<(String, Option<f64>)>,
}

/// One record of a step.
#[derive(Debug, Serialize)]
pub(crate) struct ReplayedRecord {
    /// `name[number]`, counted from 1.
    pub(crate) record: String,
    /// Text of the record.
    pub(crate) text: String,
    /// Number of target tokens.
    targets: usize,
    /// Mean cross-entropy per target token in nats, or the loss of the pair of responses; `None` if it is not finite.
    pub(crate) loss: Option<f64>,
}

/// The answers that were sampled to the prompt of a record.
#[derive(Debug, Serialize)]
pub(crate) struct ReplayedGroup {
    /// `name[number]`, counted from 1.
    pub(crate) record: String,
    /// Its answers.
    pub(crate) answers: Vec<ReplayedAnswer>,
}

/// A sampled answer.
#[derive(Debug, Serialize)]
pub(crate) struct ReplayedAnswer {
    /// Its text.
    pub(crate) text: String,
    /// Its reward.
    pub(crate) reward: f64,
    /// Its reward minus the mean of the group.
    pub(crate) advantage: f64,
    /// Number of tokens.
    pub(crate) tokens: usize,
    /// Whether it was cut off.
    pub(crate) truncated: bool,
}

/// Returns the rollouts of a step by record.
///
/// # Errors
/// When the number of a record cannot be read.
fn groups(rerun: &Rerun, addresses: &[Address], rolled: &StepRollouts) -> Result<Vec<ReplayedGroup>, DataError> {
    let groups = addresses.iter().zip(rolled.groups.iter().flatten());
    let replayed = groups.map(|(address, group)| {
        let answers = group.answers.iter().zip(group.advantages()).map(|(answer, advantage)| ReplayedAnswer {
            text: answer.text.clone(),
            reward: answer.reward.total,
            advantage,
            tokens: answer.tokens.len(),
            truncated: !answer.ended,
        });
        Ok(ReplayedGroup { record: rerun.dataset.describe(&[*address])?, answers: answers.collect() })
    });
    replayed.collect()
}

impl ReplayStep {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let run = RecordedRun::open(&self.run)?;
        let replayed = replay(&run.rerun(&self.data)?, self.step)?;
        if self.json {
            let line = serde_json::to_string(&replayed).map_err(CommandError::failed)?;
            atomic_fs::say(&line).map_err(CommandError::failed)?;
        } else {
            self.show(&replayed).map_err(CommandError::failed)?;
        }
        Ok(if replayed.reproduced == Some(false) { exit::FAILED } else { exit::FINISHED })
    }

    fn show(&self, replayed: &Replayed) -> Result<(), FileError> {
        let Replayed { step, restored, recorded, reproduced, loss, grad_norm, rollouts, records, tensors } = replayed;
        let number = |number: &Option<f64>| number.map_or_else(|| "not finite".to_owned(), |x| format!("{x:.4}"));
        let from =
            restored.map_or_else(|| "the initial state".to_owned(), |step| format!("the checkpoint of step {step}"));
        atomic_fs::say(&format!(
            "step {step}, taken again from {from}: loss {loss:.6}, gradient norm {}",
            number(grad_norm)
        ))?;
        atomic_fs::say(&match (reproduced, recorded) {
            (Some(true), _) => "all steps since match the ledger of the run, bit for bit".to_owned(),
            (Some(false), Some(row)) => {
                format!("the ledger differs: loss {}, gradient norm {}", row.loss, row.grad_norm)
            }
            (Some(false), None) => "an earlier step differs from the ledger of the run".to_owned(),
            (None, _) => "the ledger of the run lacks this step".to_owned(),
        })?;
        for ReplayedGroup { record, answers } in rollouts.iter().take(self.show) {
            atomic_fs::say(&format!("\n{} to {record}:", counted(answers.len(), "answer")))?;
            for ReplayedAnswer { text, reward, advantage, tokens, truncated } in answers {
                let cut = if *truncated { ", cut off" } else { "" };
                let tokens = counted(*tokens, "token");
                atomic_fs::say(&format!("  reward {reward:.3}, advantage {advantage:+.3}, {tokens}{cut}  {text:?}"))?;
            }
        }
        atomic_fs::say(&format!("\n{}, highest loss first:", counted(records.len(), "record")))?;
        for ReplayedRecord { record, text, loss, .. } in records.iter().take(self.show) {
            atomic_fs::say(&format!("  {:>10}  {record}  {text}", number(loss)))?;
        }
        atomic_fs::say(&format!("\n{}, highest gradient norm first:", counted(tensors.len(), "tensor")))?;
        for (name, norm) in tensors.iter().take(self.show) {
            atomic_fs::say(&format!("  {:>10}  {name}", number(norm)))?;
        }
        Ok(())
    }
}

/// Takes a step again.
///
/// # Errors
/// When the run does not have the step, or its files cannot be read.
pub(crate) fn replay(rerun: &Rerun, step: u64) -> Result<Replayed, TrainError> {
    let total = executed_steps(&rerun.run.resolved.spec().settings.training, rerun.dataset.records());
    if step > total {
        return Err(TrainError::Arguments(format!(
            "step {step} does not exist: the run has {}",
            counted(total, "step")
        )));
    }
    let ledger = rerun.run.ledger()?;
    let found = rerun.checkpoint(step - 1)?;
    let mut state = rerun.state(found.as_ref())?;
    let mut agrees = true;
    let phases = &rerun.run.resolved.spec().settings.curriculum.phases;
    loop {
        if state.curriculum.as_ref().is_some_and(|progress| progress.is_finished(phases)) {
            return Err(TrainError::Arguments(format!(
                "step {step} does not exist: the curriculum of the run is completed after {}",
                counted(state.step, "step")
            )));
        }
        if state.step + 1 >= step {
            break;
        }
        let row = rerun.step(&mut state)?;
        if let Some(recorded) = ledger.get(&row.step).filter(|recorded| **recorded != row) {
            agrees = false;
            tracing::warn!(
                step = row.step,
                recorded_loss = recorded.loss,
                loss = row.loss,
                recorded_grad_norm = recorded.grad_norm,
                grad_norm = row.grad_norm,
                same_records = recorded.records == row.records,
                "a step differs from the ledger of the run"
            );
        }
    }
    let StepData { addresses, batches, targets, .. } = rerun.session().data_of(&state, &rerun.dataset)?;
    let mut records = Vec::new();
    let preferences = rerun.run.resolved.spec().settings.training.preferences();
    for address in addresses.concat() {
        let packed = rerun.dataset.pack(&[address])?;
        let loss = record_loss(state.engine.as_mut(), preferences, &rerun.dataset, address)?;
        records.push(ReplayedRecord {
            record: rerun.dataset.describe(&[address])?,
            text: rerun.dataset.text(address, &rerun.tokenizer)?,
            targets: packed.targets.len(),
            loss: Some(loss).filter(|loss| loss.is_finite()),
        });
    }
    // Values that are not finite come first.
    let height = |number: Option<f64>| number.unwrap_or(f64::INFINITY);
    records.sort_by(|a, b| height(b.loss).total_cmp(&height(a.loss)));
    let rolled = match rerun.rollouts()? {
        None => None,
        Some(rollouts) => {
            let of_step = (state.step, addresses.as_slice());
            rerun.session().roll_out(&rollouts, state.engine.as_ref(), &rerun.dataset, of_step)?
        }
    };
    let private = state.privacy.as_ref().map(|privacy| (privacy, state.step));
    let of_step = StepBatches { addresses: &addresses, batches: &batches, targets, private };
    // The step that is taken below begins with the same scale.
    let mut loss_scale = state.loss_scale;
    let measured = scaled(state.engine.as_mut(), loss_scale.as_mut(), |engine| match &rolled {
        None => accumulate(engine, preferences, &rerun.dataset, of_step, &|| false, None),
        Some(rolled) => accumulate_rollouts(engine, rolled, &|| false),
    })?;
    let rollouts = rolled.map_or_else(|| Ok(Vec::new()), |rolled| groups(rerun, &addresses.concat(), &rolled))?;
    let Measured { loss, .. } = measured.ok_or(TrainError::Interrupted)?;
    let gradients = state.engine.gradients()?;
    let mut tensors: Vec<(String, Option<f64>)> = state
        .engine
        .layout()
        .tensors()
        .iter()
        .map(|tensor| {
            let squares = gradients[tensor.range.clone()].iter().map(|x| f64::from(*x) * f64::from(*x));
            (tensor.name.clone(), Some(squares.sum::<f64>().sqrt()).filter(|norm| norm.is_finite()))
        })
        .collect();
    tensors.sort_by(|a, b| height(b.1).total_cmp(&height(a.1)));
    drop(gradients);
    let grad_norm = state.engine.gradient_norm().ok();
    let recorded = ledger.get(&step).cloned();
    let reproduced = match &recorded {
        Some(row) => Some(agrees && loss.is_finite() && grad_norm.is_some() && rerun.step(&mut state)? == *row),
        None => (!agrees).then_some(false),
    };
    let restored = found.map(|found| found.checkpoint.step);
    Ok(Replayed { step, restored, recorded, reproduced, loss, grad_norm, rollouts, records, tensors })
}

//! Reads of held-out problems: each verdict is one, and is published only after it was counted. Pure.

use codex_configs::PROBLEMS;
use codex_crds::ReadStatus;
use codex_provenance::DataDigest;

use super::{
    gates::{Counted, by_name},
    observed::LedgerRead,
    stage::Stage,
    view::View,
};
use crate::plan::{Effect, Read};

/// Returns the read that a verdict on these numbers is; `None` if the evaluator read no problems.
///
/// # Errors
/// Why it cannot be counted, and what to do.
pub(super) fn read(view: &View<'_>, counted: &Counted) -> Result<Option<ReadStatus>, String> {
    let Some(problems) = problems(counted) else { return Ok(None) };
    match view.observed.reads.get(&problems) {
        Some(LedgerRead::Number(number)) => Ok(Some(ReadStatus { data_digest: problems, number: *number })),
        Some(LedgerRead::Uncounted(why)) => Err(why.clone()),
        None => Err(format!("the read of the problems {} is not counted yet", problems.short())),
    }
}

/// Returns the read that the ledger has to number for a verdict on these numbers.
pub(super) fn wanted(view: &View<'_>, counted: &Counted) -> Option<Read> {
    problems(counted).map(|problems| of(view, problems, 0))
}

/// Returns what is recorded before the status of a verdict is written.
pub(super) fn effects(view: &View<'_>, stage: &Stage) -> Vec<Effect> {
    let Stage::Judged(judged) = stage else { return Vec::new() };
    let read = judged.read.map(|read| of(view, read.data_digest, read.number));
    read.into_iter().map(Effect::RecordRead).collect()
}

fn problems(counted: &Counted) -> Option<DataDigest> {
    by_name(&counted.data).get(PROBLEMS).copied()
}

fn of(view: &View<'_>, problems: DataDigest, number: i64) -> Read {
    let owner = &view.work.worker.owner;
    Read { problems, key: view.read_key(), number, evaluation: format!("{}/{}", owner.namespace, owner.name) }
}

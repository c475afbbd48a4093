//! The golden tokens of a promotion: a server generates them again before it is ready. Pure.

use codex_provenance::promotion::Evaluation;
use codex_reports::Reproduction;

use super::{ServeError, metrics::Metrics};
use crate::model::Generator;

/// The most Evaluations whose golden tokens are generated, so that a start stays short. Those that bind to the bit come first.
const MOST: usize = 4;
/// The result of a record that was not reproduced: a value of the label `result`.
const DIFFERENT: &str = "different";

/// Generates the golden tokens of these evaluations again. All slots must be free, and are free afterwards.
///
/// # Errors
/// The first record that is not reproduced.
pub(super) fn reproduce(
    generator: &mut Generator,
    evaluations: &[Evaluation],
    metrics: &Metrics,
) -> Result<Reproduction, ServeError> {
    let mut records: Vec<_> = evaluations
        .iter()
        .filter_map(|evaluation| Some((evaluation.name.as_str(), evaluation.golden_tokens.as_ref()?)))
        .collect();
    if records.is_empty() {
        tracing::warn!(
            "the promotion has no golden tokens: what the server generates is not compared with what \
             was judged; evaluate again to record them"
        );
        return Ok(Reproduction::Absent);
    }
    // The order of names stays within both groups.
    records.sort_by_key(|(_, golden)| !generator.binds(golden));
    let mut all = Reproduction::Equal;
    for (evaluation, golden) in records.into_iter().take(MOST) {
        let found = generator.reproduce(golden).map_err(|why| {
            metrics.golden(DIFFERENT);
            ServeError::Golden { evaluation: evaluation.to_owned(), why }
        })?;
        metrics.golden(found.name());
        if found == Reproduction::Near {
            all = found;
        }
        tracing::info!(evaluation, tokens = golden.count(), result = found.name(), "golden tokens");
    }
    Ok(all)
}
